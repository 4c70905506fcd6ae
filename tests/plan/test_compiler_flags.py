"""Compiler flags by chip: the table, how a machine's chip is found, and the command that sets them."""

import dataclasses
import os
import subprocess
import sys

import pytest

from fgclip_jax.plan import compiler_flags
from fgclip_jax.plan.compiler_flags import CHIPS, FLAGS, find_chip, flags_of, parse, set_flags


@pytest.fixture(autouse=True)
def all_seen(monkeypatch):
  """As if every flag of the table had been seen to change something."""
  monkeypatch.setattr(compiler_flags, "FLAGS", tuple(dataclasses.replace(flag, seen="much") for flag in FLAGS))


def test_what_nobody_has_seen_is_not_set(monkeypatch):
  monkeypatch.setattr(compiler_flags, "FLAGS", tuple(dataclasses.replace(flag, seen="") for flag in FLAGS))
  assert flags_of("v5e") == {} and len(flags_of("v5e", candidates=True)) == 2
  environment = {}
  assert set_flags("v5e", environment) == "compiler flags for v5e: none"
  assert environment == {}


def test_every_flag_has_a_source_and_chips():
  assert all(flag.source.startswith("https://") and flag.effect and flag.value for flag in FLAGS)
  assert all(chip in CHIPS for flag in FLAGS for chip in flag.chips)
  assert all(
    flag.name.startswith("xla_gpu_") == (chip in ("hopper", "ampere")) for flag in FLAGS for chip in flag.chips
  )
  assert flags_of("h100") == flags_of("hopper") and flags_of("v2") == {}


def test_flags_as_text():
  flags = {"xla_a": "true", "xla_b": "3"}
  assert parse(compiler_flags.as_text(flags)) == flags and parse("") == {}
  for wrong in ("--xla_a", "xla_a=1", "--xla_a=", "--other=1"):
    with pytest.raises(ValueError, match="write --xla_NAME=VALUE"):
      parse(wrong)


def test_what_is_set_already_stays():
  environment = {}
  line = set_flags("hopper", environment)
  assert parse(environment["XLA_FLAGS"]) == flags_of("hopper") and environment["XLA_FLAGS"] in line
  for value in ("--xla_mine=1", ""):
    environment = {"XLA_FLAGS": value}
    assert "is set already, and stays" in set_flags("ampere", environment)
    assert environment == {"XLA_FLAGS": value}
  environment = {"XLA_FLAGS": "--xla_mine=1"}  # of another compiler than libtpu's
  set_flags("v5e", environment)
  assert parse(environment["LIBTPU_INIT_ARGS"]) == flags_of("v5e")
  assert set_flags("v4", {}) == "compiler flags for v4: none"
  environment = {}
  assert "none are set" in set_flags(None, environment) and not environment


@pytest.mark.parametrize("device, chip", [("0x005e", "v4"), ("0x0063", "v5e"), ("0x006f", "v6e"), ("0x0001", None)])
def test_tpus_are_found_by_their_pci_devices(tmp_path, monkeypatch, device, chip):
  monkeypatch.setenv("PATH", str(tmp_path))  # without nvidia-smi
  for name, vendor in (("00:01", "0x8086"), ("00:02", "0x1ae0")):
    folder = tmp_path / "sys/bus/pci/devices" / name
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"{vendor}\n")
    (folder / "device").write_text(f"{device}\n")
  assert find_chip(str(tmp_path)) == chip


@pytest.mark.parametrize("said, chip", [("9.0\n9.0\n", "hopper"), ("8.0\n", "ampere"), ("7.5\n", None), ("", None)])
def test_gpus_are_found_by_what_nvidia_smi_says(tmp_path, monkeypatch, said, chip):
  (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{said}'\n")
  (tmp_path / "nvidia-smi").chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
  assert find_chip(str(tmp_path)) == chip


def test_it_becomes_the_command_and_imports_no_jax(root, tmp_path):
  (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 9.0\n")
  (tmp_path / "nvidia-smi").chmod(0o755)
  environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(root)}
  own = [sys.executable, "-m", "fgclip_jax.plan.compiler_flags"]

  def run(*command):
    return subprocess.run([*own, *command], env=environment, capture_output=True, text=True, timeout=60)

  done = run("sh", "-c", 'echo "$XLA_FLAGS"; exit 75')
  first, second = done.stdout.splitlines()
  assert done.returncode == 75 and first.startswith("compiler flags for hopper: ") and second in first
  assert run().returncode == 2
  missing = run(str(tmp_path / "none"))
  assert missing.returncode == 2 and "none' cannot be run: No such file" in missing.stderr
  imported = subprocess.run(
    [sys.executable, "-X", "importtime", "-c", "import fgclip_jax.plan.compiler_flags"],
    env=environment, capture_output=True, text=True, timeout=60,
  ).stderr  # fmt: skip
  assert "fgclip_jax.plan.compiler_flags" in imported and " jax" not in imported

"""`prepare benchmark`: what it measures, and what it makes of it."""

import dataclasses
import io
import json
import subprocess

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from fgclip_jax.data import record
from fgclip_jax.data.config import DataConfig
from fgclip_jax.data.dataset_folder import shard_path
from fgclip_jax.prepare import __main__ as prepare
from fgclip_jax.prepare import benchmark, loader_timing

STAGES = loader_timing.Stages(
  disk=1e-4,
  read=2e-5,
  fields=8e-5,
  image={"exact": 3e-3, "fast": 1e-3},
  tokens=3e-4,
  captions=5e-5,
  batch=5e-5,
  stored_tokens=False,
  record_bytes=50e3,
  sides=1024.0,
  jpegs=1.0,
)


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> str:
  folder = str(tmp_path_factory.mktemp("toy"))
  file = io.BytesIO()
  pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
  Image.fromarray(pixels).save(file, "JPEG")
  writer = ArrayRecordWriter(shard_path(folder, "toy", "train", 0, 1), "group_size:1")
  for number in range(12):
    region = record.Region((0.0, 0.0, 0.5, 1.0), "a half", negatives=("a quarter",))
    writer.write(record.encode(record.Record(str(number), file.getvalue(), "noise", "", (region,), 48, 40)))
  writer.close()
  return folder


def test_every_stage_takes_time(toy):
  stages = loader_timing.measure_stages(DataConfig(path=toy, batch_size=8), 32)
  assert min(stages.disk, stages.read, stages.fields, stages.tokens, stages.batch, *stages.image.values()) > 0
  assert stages.sides == 48 and stages.jpegs == 1.0 and not stages.stored_tokens
  parts = stages.read + stages.fields + stages.image["fast"] + stages.captions + stages.batch
  assert stages.total("fast") == parts


@pytest.mark.parametrize("cores", [1, 2, 4, 16, 208])
def test_settings_use_no_more_threads_than_cores(cores):
  tried = loader_timing.settings_to_try(cores)
  assert (0, 1) in tried
  assert all(max(workers, 1) * threads <= max(cores, 2) for workers, threads in tried)


def test_the_command_says_what_it_found(toy, monkeypatch, capsys):
  monkeypatch.setattr(loader_timing, "settings_to_try", lambda cores: [(0, 1)])
  monkeypatch.setattr("fgclip_jax.data.loader.choose_workers", lambda config: (0, 1))
  monkeypatch.setattr(loader_timing, "_WARM_UP", 0.0)
  command = ["benchmark", toy, "--size", "32", "--seconds", "0.1", "--batch", "64", "--step_seconds", "1000"]
  assert prepare.main(command) == 0
  said = capsys.readouterr().out
  for text in ("records/s", "picture to 32 px", "images/s of a core", "Best here:", "a host like this one feeds it"):
    assert text in said


def test_a_host_that_is_too_slow_gets_advice():
  said = benchmark.verdict(40_000.0, 2, 1000.0, 4, STAGES, 224)
  assert "20,000 for each of 2 hosts" in said and "96.0 cores" in said and "does NOT feed it" in said
  assert "hosts with 96 cores" in said and "--max_side 320" in said and "captions stored as ids" in said
  assert "storage delivers 10,000 records/s" in said
  small = dataclasses.replace(STAGES, sides=256.0, stored_tokens=True, disk=1e-6)
  said = benchmark.verdict(40_000.0, 2, 1000.0, 4, small, 224)
  assert "max_side" not in said and "stored as ids" not in said and "storage" not in said
  assert "feeds it" in benchmark.verdict(800.0, 2, 1000.0, 4, STAGES, 224)


@pytest.mark.parametrize(("topology", "hosts"), [("v5e:16x16", 64), ("v5p:4x4x8", 32), ("h100:4x8", 4), (None, 1)])
def test_hosts_of_a_topology(topology, hosts):
  assert benchmark._hosts(topology) == hosts


def test_what_a_plan_says_is_needed(monkeypatch):
  def plan(command, **_):
    file = next(word.removeprefix("--json=") for word in command if word.startswith("--json="))
    with open(file, "w", encoding="utf-8") as stream:
      json.dump({"plans": [{"batch": {"images": 4096}, "estimate": {"step_seconds_overlapped": 0.5}}]}, stream)
    return subprocess.CompletedProcess(command, 0, "", "")

  monkeypatch.setattr(subprocess, "run", plan)
  options = prepare._parse(["benchmark", "d", "--config", "configs/stage2.py", "--topology", "v5e:4x4"])
  assert benchmark._need(options) == 8192


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--config", "configs/stage2.py"], "given together"),
    (["--step_seconds", "1"], "--step_seconds needs --batch"),
    (["--config", "c", "--topology", "v5e:2x2", "--step_seconds", "1"], "give either"),
  ],
)
def test_options_that_do_not_fit(arguments, message, capsys):
  assert prepare.main(["benchmark", "folder", *arguments]) == 1
  assert message in capsys.readouterr().err


def test_a_folder_that_is_none(tmp_path, capsys):
  assert prepare.main(["benchmark", str(tmp_path / "missing")]) == 1
  assert "no data set folder" in capsys.readouterr().err

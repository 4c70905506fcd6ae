"""Everything in the recorded runs of the published code is compared, and a changed record is noticed."""

import importlib.util
import json
import math
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from fgclip_jax.train.mesh import make_mesh

pytestmark = pytest.mark.slow

FOLDERS = ("common", "fgclip_p14", "fgclip_p16", "fgclip_p16_world2")
FOLDERS2 = ("common", "loader", "fgclip2", "fgclip2_world2", "siglip2_naflex", "siglip_fixed")


@pytest.fixture(scope="module")
def command():
  """tests/oracle.py."""
  path = pathlib.Path(__file__).with_name("oracle.py")
  spec = importlib.util.spec_from_file_location("oracle", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_equals_the_recorded_run(name, command, oracle, capsys):
  if not (oracle / name).is_dir():
    pytest.skip(f"no folder {name} in {oracle}")
  with jax.numpy_dtype_promotion("standard"):  # Optax promotes dtypes
    code = command.main([str(oracle / name), "--quiet"])
  printed = capsys.readouterr().out
  assert code == 0, printed
  assert " 0 failed" in printed and "FAIL" not in printed


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS2)
def test_equals_the_recorded_run_of_fgclip2_and_siglip(name, command, shared, capsys):
  """Padded and packed, on one device and on several meshes."""
  if not (shared / "oracle_fgclip2" / name).is_dir():
    pytest.skip(f"no folder oracle_fgclip2/{name} in {shared}")
  with jax.numpy_dtype_promotion("standard"):
    code = command.main([str(shared / "oracle_fgclip2" / name), "--quiet"])
  printed = capsys.readouterr().out
  assert code == 0, printed
  assert " 0 failed" in printed and "FAIL" not in printed


def test_a_changed_quantity_of_fgclip2_fails(command, shared, tmp_path, capsys):
  """One of each kind: a feature, a term, a gradient; and something unknown."""
  if not (shared / "oracle_fgclip2").is_dir():
    pytest.skip(f"no folder oracle_fgclip2 in {shared}")
  folder = _copy(shared / "oracle_fgclip2", ["siglip_fixed/checkpoint", "siglip_fixed/io.npz"], tmp_path / "fixed")
  gradients = safetensors.numpy.load_file(shared / "oracle_fgclip2/siglip_fixed/grads.safetensors")
  gradients["logit_bias"] = gradients["logit_bias"] + 1
  safetensors.numpy.save_file(gradients, folder / "grads.safetensors")
  with np.load(folder / "io.npz") as file:
    io = dict(file)
  _off_by_a_little(io["text_embeds"])
  np.savez(folder / "io.npz", **io, other=np.zeros(3))
  report = command.Report(quiet=True)
  command.compare(folder, report)
  assert _failures(capsys.readouterr().out) == [
    "fixed/grads/packed/logit_bias", "fixed/grads/padded/logit_bias",
    "fixed/other", "fixed/packed/text_embeds", "fixed/padded/text_embeds",
  ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 3}, {"fsdp": 2, "tensor": 4}, {"data": 3, "tensor": 2}], ids=str)
def test_equals_the_recorded_run_of_two_processes_on_any_mesh(sizes, command, oracle, capsys):
  """Its six images divide over so many data shards, which are other groups than the two processes were."""
  folder = oracle / "fgclip_p16_world2"
  if not folder.is_dir():
    pytest.skip(f"no folder fgclip_p16_world2 in {oracle}")
  mesh = make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])
  report = command.Report(quiet=True)
  command.fgclip_folder(folder, report, mesh)
  assert report.failed == 0, capsys.readouterr().out
  assert report.compared > 60


def _copy(oracle, paths, folder):
  folder.mkdir()
  for path in paths:
    (shutil.copytree if (oracle / path).is_dir() else shutil.copy)(oracle / path, folder / pathlib.Path(path).name)
  for path in (folder, *folder.rglob("*")):
    path.chmod(0o755 if path.is_dir() else 0o644)
  return folder


def _off_by_a_little(array):
  array.reshape(-1)[0] += 0.01 * np.abs(array).max()


def _failures(printed):
  return sorted({line.split()[0] for line in printed.splitlines() if line.endswith("FAIL")})


def test_a_changed_or_unknown_quantity_of_a_plain_clip_and_of_roi_align_fails(command, oracle, tmp_path, capsys):
  folder = _copy(oracle, ["common/clip_gelu/checkpoint", "common/clip_gelu/io.npz"], tmp_path / "clip")
  _copy(oracle, ["common/roi_align.npz"], folder / "more")
  for path, keys in ((folder / "io.npz", ["text_embeds"]), (folder / "more/roi_align.npz", ["pooled"])):
    with np.load(path) as file:
      arrays = dict(file)
    for key in keys:
      _off_by_a_little(arrays[key])
    np.savez(path, **arrays, another=np.zeros(3))
  np.savez(folder / "another_file.npz", x=np.zeros(3))
  assert command.main([str(folder), "--quiet"]) == 1
  assert _failures(capsys.readouterr().out) == [
    "clip/another",
    "clip/another_file.npz",
    "clip/packed/text_embeds",
    "clip/padded/text_embeds",
    "roi_align/another",
    "roi_align/pooled",
  ]


@pytest.mark.slow
def test_a_changed_or_unknown_quantity_of_fgclip_fails(command, oracle, tmp_path, capsys):
  names = ("checkpoint", "inputs.npz", "losses.json", "grads_stage1.safetensors")
  folder = _copy(oracle, [f"fgclip_p16/{name}" for name in names], tmp_path / "run")
  losses = json.loads((folder / "losses.json").read_text())
  losses = {"stage1": losses["stage1"] | {"another_term": 1.0}, "stage3": losses["stage2"]}
  losses["stage1"]["total"] *= 1.001
  (folder / "losses.json").write_text(json.dumps(losses))
  gradients = safetensors.numpy.load_file(folder / "grads_stage1.safetensors")
  _off_by_a_little(gradients["visual_projection.weight"])
  gradients["another.weight"] = np.zeros(3, np.float32)
  safetensors.numpy.save_file(gradients, folder / "grads_stage1.safetensors")
  assert command.main([str(folder), "--quiet"]) == 1
  assert _failures(capsys.readouterr().out) == [
    "run/grads_stage1/packed/another.weight",
    "run/grads_stage1/packed/visual_projection.weight",
    "run/grads_stage1/padded/another.weight",
    "run/grads_stage1/padded/visual_projection.weight",
    "run/losses/packed/stage1/total",
    "run/losses/padded/stage1/total",
    "run/losses/stage1/another_term",
    "run/losses/stage3",
  ]


def test_an_empty_folder_fails(command, tmp_path):
  assert command.main([str(tmp_path)]) == 1

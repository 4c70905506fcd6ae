"""Our own model folders, and which format a folder has."""

import json
import os
import pathlib
import re

import chex
import jax
import ml_dtypes
import numpy as np
import pytest

import fgclip_jax
from fgclip_jax import convert
from fgclip_jax.models.config import preset
from fgclip_jax.models.params import flatten, unflatten
from fgclip_jax.storage import paths
from fgclip_jax.train.checkpoints.manager import Checkpoints
from fgclip_jax.train.optimizer import OptimizerConfig, make_optimizer
from fgclip_jax.train.state import make_state
from fgclip_jax.weights import formats as folders
from fgclip_jax.weights import huggingface, native

TINY = preset("tiny").replace(text={"vocab_size": 60})


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name)
def test_a_model_comes_back_as_it_was_written(dtype, tmp_path, random_params):
  flat, source = random_params(TINY, dtype), {"config": {"model_type": "clip"}, "buffers": {}}
  native.write(str(tmp_path / "model"), TINY, flat, source)
  config, read, read_source = folders.read(str(tmp_path / "model"))
  assert (config, read_source) == (TINY, source)
  assert read.keys() == flat.keys()
  for name, value in flat.items():
    assert read[name].dtype == value.dtype and read[name].tobytes() == value.tobytes(), name


def test_what_no_model_reads_comes_back_from_a_bucket(tmp_path, random_params, bucket):
  spare = {"text.positions": np.arange(6, dtype=np.float32).reshape(2, 3)}
  source = {"config": {"model_type": "clip"}, "buffers": {}, "unused": spare}
  folders.write(str(tmp_path / "model"), "jax", TINY, random_params(TINY, np.float32), source)
  paths.upload(str(tmp_path / "model"), paths.join(bucket, "unused"))
  for place in (str(tmp_path / "model"), paths.join(bucket, "unused")):
    found = folders.read(place)[2]
    assert found is not None
    chex.assert_trees_all_equal(found["unused"], spare)


def test_parameters_that_do_not_fit_the_model_file(tmp_path, random_params):
  native.write(str(tmp_path), TINY, random_params(TINY))
  native.write_model_file(str(tmp_path), TINY.replace(embedding_width=17))
  with pytest.raises(ValueError, match=r"do not fit model.json: .*vision_projection/kernel"):
    native.read(str(tmp_path))


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("{", "is not JSON"),
    ('{"format": 99}', "has format 99; this version reads 1"),
    ('{"format": 1}', "does not describe a model"),
    (f'{{"format": 1{"0" * 400}}}', "a number of 401 digits"),
    (f'{{"format": 1, "model": {{"embedding_width": -1{"0" * 30}}}}}', "a number of 32 digits"),
    ('{"format": 1, "model": {"vision": {}}, "source": null}', "lack text"),
    (json.dumps({"format": 1, "model": TINY.to_dict() | {"extra": 1}, "source": None}), "extra"),
  ],
)
def test_a_broken_model_file(content, message, tmp_path):
  (tmp_path / "model.json").write_text(content)
  with pytest.raises(ValueError, match=message) as error:
    native.read(str(tmp_path))
  assert str(tmp_path / "model.json") in str(error.value)


def test_the_format_of_a_folder(tmp_path, random_params):
  flat = random_params(TINY)
  native.write(str(tmp_path / "ours"), TINY, flat)
  huggingface.write(str(tmp_path / "theirs"), TINY, flat)
  assert folders.detect(str(tmp_path / "ours")) == "jax"
  assert folders.detect(str(tmp_path / "theirs")) == "pytorch"
  assert folders.read_config(str(tmp_path / "ours")) == folders.read_config(str(tmp_path / "theirs")) == TINY


def test_no_model_folder(tmp_path):
  with pytest.raises(FileNotFoundError, match="no model folder at"):
    folders.read(str(tmp_path / "nothing"))
  with pytest.raises(FileNotFoundError, match="is no model folder: it has neither config.json"):
    folders.read(str(tmp_path))


@pytest.mark.parametrize("ema", [True, False])
def test_a_run_gives_its_averaged_weights_or_on_request_its_last(ema, tmp_path, random_params, capsys):
  last, average = (jax.tree.map(jax.numpy.asarray, unflatten(random_params(TINY, seed=seed))) for seed in (0, 1))
  run, output = str(tmp_path / "run"), str(tmp_path / "model")
  state = make_state(make_optimizer(OptimizerConfig()), last).replace(ema=average)
  checkpoints = Checkpoints(run)
  checkpoints.save(3, state, {})
  checkpoints.close()
  native.write_model_file(run, TINY)

  expected = flatten(average if ema else last)
  assert folders.is_averaged(run)
  assert convert.main([run, output, "--to=jax", *([] if ema else ["--raw_weights"])]) == 0
  assert ("averaged over its steps" in capsys.readouterr().out) == ema
  assert not folders.is_averaged(output)
  for flat in (folders.read(run, ema)[1], flatten(fgclip_jax.load(run, ema=ema).params), folders.read(output)[1]):
    chex.assert_trees_all_equal(flat, expected)


@pytest.mark.filterwarnings("ignore")
def test_orbax_reads_the_parameters_as_the_docs_say(tmp_path, random_params):
  page = (pathlib.Path(__file__).parents[2] / "docs" / "weights.md").read_text(encoding="utf-8")
  new, old = re.findall(r"```python\n((?:from|import) orbax.*?)```", page, re.DOTALL)
  flat = random_params(TINY)
  native.write(str(tmp_path), TINY, flat)
  for code in (new, old):
    names: dict = {}
    exec(code.replace("/absolute/path/to/models/b32", str(tmp_path)), names)
    found = flatten(names["params"])
    assert found.keys() == flat.keys()
    assert all(np.array_equal(found[name], value) for name, value in flat.items())


def test_a_pipe_among_the_arrays_is_refused_at_once(tmp_path, random_params):
  native.write(str(tmp_path), TINY, random_params(TINY))
  path = tmp_path / "params" / "_CHECKPOINT_METADATA"
  path.unlink()
  os.mkfifo(path)
  with pytest.raises(OSError, match="_CHECKPOINT_METADATA' is a named pipe"):
    native.read(str(tmp_path))


@pytest.mark.parametrize("change", ["cut", "zeros", "missing"])
def test_damaged_arrays_are_named_in_one_line(change, tmp_path, random_params):
  native.write(str(tmp_path / "model"), TINY, random_params(TINY))
  files = sorted(path for path in (tmp_path / "model" / "params").rglob("*") if path.is_file() and path.stat().st_size)
  refused = 0
  for path in files:
    data = path.read_bytes()
    if change == "missing":
      path.unlink()
    else:
      path.write_bytes(data[: len(data) // 2] if change == "cut" else bytes(len(data)))
    try:
      native.read(str(tmp_path / "model"))
    except (OSError, ValueError) as error:
      assert str(tmp_path / "model") in str(error) and "\n" not in str(error)
      refused += 1
    path.write_bytes(data)
  assert refused > len(files) // 3  # Orbax does without some of them

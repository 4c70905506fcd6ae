"""Weights are found wherever a training script has left them, and the rest is never executed."""

import argparse
import collections
import dataclasses
import datetime
import enum
import json
import pathlib
import types

import numpy as np
import pytest

from fgclip_jax import convert
from fgclip_jax.models.config import preset
from fgclip_jax.weights import formats, huggingface, huggingface_names, name_map, openai_names
from tests.weights.test_torch_pickle import make_modules, save

CLIP = preset("tiny").replace(text={"long_length": None, "end_id": 2, "vocab_size": 60})
FGCLIP = preset("tiny").replace(text={"vocab_size": 60})


@dataclasses.dataclass
class _Options:
  rate: float = 1.0
  path: pathlib.Path = pathlib.Path("x")


class _Phase(enum.Enum):
  TRAIN = 1


class _Executed(Exception):
  pass


class _Runs:
  """Raises when it is unpickled the usual way."""

  def __reduce__(self):
    return _raise, ()


def _raise():
  raise _Executed


def _beside(torch):
  """What people save beside the weights."""
  parameter = torch.nn.Parameter(torch.ones(3))
  optimizer = torch.optim.AdamW([parameter])
  parameter.sum().backward()
  optimizer.step()
  return {
    "epoch": 3, "best": np.float64(0.5), "step": np.int64(7), "args": argparse.Namespace(lr=1, when=[1, (2, {3})]),
    "date": datetime.datetime(2024, 1, 2), "path": pathlib.Path("runs"), "options": _Options(), "phase": _Phase.TRAIN,
    "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state(), "array": np.arange(5.0),
    "loss": torch.tensor(1.0),
    "counts": collections.Counter("aab"), "lists": collections.defaultdict(list, {"a": [1]}), "set": {1, 2},
    "frozen": frozenset([(1, 2)]), "dtype": torch.float16, "device": torch.device("cpu"), "size": torch.Size([1, 2]),
    "runs": _Runs(), "space": types.SimpleNamespace(a=1), "complex": 1 + 2j, "tuple keys": {(1, 2): 3},
  }  # fmt: skip


def _prefixed(prefix):
  return lambda tensors, torch: {f"{prefix}{name}": value for name, value in tensors.items()}


def _inside(*path, prefix="", more=None):
  def make(tensors, torch):
    tree = _prefixed(prefix)(tensors, torch)
    for number, key in enumerate(reversed(path)):
      tree = {
        **(_beside(torch) if number == len(path) - 1 else {}),
        key: tree,
        **((more or (lambda *_: {}))(tensors, torch)),
      }
    return tree

  return make


def _others(*keys):
  return lambda tensors, torch: {key: {name: value + 1 for name, value in tensors.items()} for key in keys}


def _wrapped_inside(tensors, torch):
  """As torch.compile and FSDP name modules that they wrap one by one."""
  return {
    name.replace("visual.", "visual._orig_mod.").replace("layers.", "layers._fsdp_wrapped_module."): value
    for name, value in tensors.items()
  }


def _by_tower(tensors, torch):
  tree: dict = {"state": {}}
  for name, value in tensors.items():
    first, _, rest = name.partition(".")
    if first in ("visual", "vision_model"):
      tree["state"].setdefault(first, {})[rest] = value
    else:
      tree["state"][name] = value
  return tree


CASES = {
  **{key: _inside(key) for key in ("model_state_dict", "model", "state_dict", "module", "net", "weights", "params")},
  **{f"prefix {each}": _prefixed(each) for each in ("module.", "_orig_mod.", "model.", "clip.", "clip_model.")},
  "prefixes": _inside("state_dict", prefix="module._orig_mod.model.module.clip."),
  "deep": _inside("a", "checkpoint", "state", "model", prefix="clip_model._orig_mod."),
  "ema first": lambda tensors, torch: {**_others("model_ema")(tensors, torch), "model": tensors},
  "ema after": _inside("state_dict", more=_others("state_dict_ema", "ema")),
  "ema deep": _inside("model", more=lambda *args: {"ema": {"module": _others("x")(*args)["x"]}}),
  "ema prefix": lambda tensors, torch: {
    **{f"ema_model.{name}": value + 1 for name, value in tensors.items()},
    **{f"model.{name}": value for name, value in tensors.items()},
  },
  "beside": lambda tensors, torch: {**_beside(torch), **tensors},
  "wrapped inside": _wrapped_inside,
  "by tower": _by_tower,
  "list": lambda tensors, torch: [1, {"model": tensors}],
  "parameters": lambda tensors, torch: {
    "model": {k: torch.nn.Parameter(v, v.requires_grad) for k, v in tensors.items()}
  },
  "module": lambda tensors, torch: {"model": _module(torch, tensors)},
  "wrapped module": lambda tensors, torch: torch.nn.DataParallel(_module(torch, tensors)),
  "strides": lambda tensors, torch: {k: v.t().contiguous().t() if v.ndim == 2 else v for k, v in tensors.items()},
  "one storage": lambda tensors, torch: _one_storage(tensors, torch),
  "with loss": lambda tensors, torch: {
    "state_dict": {f"model.{k}": v for k, v in tensors.items()} | {"criterion.weight": torch.ones(3)}
  },
  "numpy": lambda tensors, torch: {"model": {name: value.numpy() for name, value in tensors.items()}},
}


def _module(torch, tensors):
  module = make_modules(torch, tensors)
  module.__class__ = torch.nn.Module  # one that can be pickled
  for each in module.modules():
    each.__class__ = torch.nn.Module
  return module


def _one_storage(tensors, torch):
  whole, made, start = torch.cat([value.flatten() for value in tensors.values()]), {}, 0
  for name, value in tensors.items():
    made[name] = whole[start : start + value.numel()].view(value.shape)
    start += value.numel()
  return made


@pytest.fixture(params=["openai", "huggingface"])
def theirs(request, torch, random_params):
  """A layout's options for reading, its flat parameters, and its tensors."""
  if request.param == "openai":
    config, rows, options = CLIP, openai_names.table(CLIP), {"heads": (2, 2), "activation": "quick_gelu"}
  else:
    config, rows, options = FGCLIP, huggingface_names.table(FGCLIP), {}
  flat = random_params(config)
  tensors = name_map.write_rows(rows, flat)
  return config, options, flat, {name: torch.tensor(np.array(value)) for name, value in tensors.items()}


def _check(path, theirs):
  config, options, flat, _ = theirs
  found, read, _ = formats.read(str(path), allow_pickle=True, **options)
  assert found == config and read.keys() == flat.keys()
  for name, value in flat.items():
    np.testing.assert_array_equal(read[name], value, err_msg=name)


def _folder(folder, config):
  if config.fine_grained:
    values = huggingface.to_config_json(config, np.dtype(np.float32))
    (folder / "config.json").write_text(json.dumps(values))
  return folder / "pytorch_model.bin"


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("case", CASES)
def test_weights_are_found(case, zipped, theirs, torch, tmp_path, capfd):
  path = _folder(tmp_path, theirs[0])
  torch.save(CASES[case](theirs[3], torch), path, _use_new_zipfile_serialization=zipped)
  _check(path, theirs)
  printed = capfd.readouterr().err
  if case not in ("strides", "one storage", "wrapped inside", "prefix module.", "prefix _orig_mod.", "wrapped module"):
    assert printed.count("\n") == 1 and str(path) in printed and ("takes the weights" in printed), printed
  if "ema" in case and case != "ema deep":
    assert "not those under" in printed and "ema" in printed


@pytest.mark.parametrize("prefix", ["module.", "model._orig_mod.", "clip_model.module."])
@pytest.mark.parametrize("sharded", [False, True])
def test_prefixes_in_safetensors(prefix, sharded, theirs, tmp_path):
  import safetensors.numpy

  path = _folder(tmp_path, theirs[0]).with_name("model.safetensors")
  tensors = {f"{prefix}{name}": np.array(value.numpy(), order="C") for name, value in theirs[3].items()}
  if sharded:
    for part in (0, 1):
      safetensors.numpy.save_file(dict(list(tensors.items())[part::2]), tmp_path / f"model-{part}.safetensors")
    weight_map = {name: f"model-{index % 2}.safetensors" for index, name in enumerate(tensors)}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": weight_map}))
  else:
    safetensors.numpy.save_file(tensors, path)
  _check(path, theirs)


def test_a_script_of_a_wrapped_model(torch, theirs, tmp_path):
  path = _folder(tmp_path, theirs[0]).with_name("model.pt")
  save(torch, "archive", {f"module.clip.{name}": value for name, value in theirs[3].items()}, path)
  _check(path, theirs)


def test_the_average_is_taken_where_there_is_nothing_else(torch, theirs, tmp_path):
  path = _folder(tmp_path, theirs[0])
  torch.save({"model_ema": theirs[3], "optimizer": {}}, path)
  _check(path, theirs)


def test_nothing_that_fits_is_an_error_that_lists_what_is_there(torch, tmp_path, capsys):
  path = tmp_path / "model.pt"
  torch.save({"epoch": 1, "model": {"fc.weight": torch.ones(2, 3), "fc.bias": torch.ones(2)}}, path)
  assert convert.main([str(path), str(tmp_path / "out"), "--allow_pickle"]) == 1
  message = capsys.readouterr().err
  assert "holds tensors of no known model" in message and "fc.weight (2, 3)" in message and message.count("\n") == 1


def test_two_tensors_of_one_name_are_an_error(torch, theirs, tmp_path):
  path = _folder(tmp_path, theirs[0])
  torch.save(theirs[3] | {f"module.{name}": value + 1 for name, value in theirs[3].items()}, path)
  with pytest.raises(ValueError, match="several of its tensors are called"):
    _check(path, theirs)

"""PyTorch's files are read as PyTorch reads them, without executing what they name."""

import pathlib
import pickle
import warnings
import zipfile

import numpy as np
import pytest

from fgclip_jax.weights.tensor_files import open_tensors

KINDS = ("archive", "state dict", "state dict of old", "checkpoint")


def make_modules(torch, tensors, buffers=()):
  """A tree of modules whose state dict is `tensors`."""

  class Tree(torch.nn.Module):
    def forward(self, x):
      return x + 1

  root = Tree()
  for name, value in tensors.items():
    *path, leaf = name.split(".")
    module = root
    for part in path:
      if not hasattr(module, part):
        module.add_module(part, Tree())
      module = getattr(module, part)
    if name in buffers or not value.dtype.is_floating_point:
      module.register_buffer(leaf, value)
    else:
      module.register_parameter(leaf, torch.nn.Parameter(value))
  return root


def save(torch, kind, tensors, path):
  """Writes tensors as PyTorch does, in one of the kinds of files that there are."""
  if kind == "archive":
    with warnings.catch_warnings():  # TorchScript is deprecated; OpenAI's files are what they are
      warnings.simplefilter("ignore")
      torch.jit.save(torch.jit.trace(make_modules(torch, tensors), torch.zeros(2)), path)
  elif kind == "checkpoint":
    state = {"epoch": 3, "name": "run", "state_dict": {f"module.{name}": value for name, value in tensors.items()}}
    torch.save({**state, "optimizer": {"state": {0: {"step": 1.5}}, "groups": [None, True]}}, path)
  else:
    torch.save(tensors, path, _use_new_zipfile_serialization=kind == "state dict")


@pytest.fixture
def tensors(torch):
  """Of every dtype that weights have, and cut from their storages in every way."""
  torch.manual_seed(0)
  whole = torch.randn(7, 6)
  return {
    "visual.transformer.resblocks.0.attn.in_proj_weight": torch.randn(6, 4).half(),
    "visual.transformer.resblocks.1.attn.in_proj_weight": torch.randn(6, 4).bfloat16(),
    "visual.proj": whole.t(),
    "visual.row": whole[3, 1:5],
    "visual.bn1.num_batches_tracked": torch.tensor(12),
    "visual.empty": torch.zeros(0, 3),
    "positional_embedding": torch.randn(3, 5).double(),
    "logit_scale": torch.tensor(4.6052),
  }


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_equal_what_pytorch_wrote(kind, torch, tensors, tmp_path):
  path = str(tmp_path / "model.pt")
  save(torch, kind, tensors, path)
  found = open_tensors(path, allow_pickle=True)
  assert found.keys() == tensors.keys()
  for name, value in tensors.items():
    array = found[name]
    assert str(value.dtype).removeprefix("torch.") == array.dtype.name, name
    assert array.flags.c_contiguous and array.shape == tuple(value.shape), name
    np.testing.assert_array_equal(array.astype(np.float64), value.double().numpy(), err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_is_read_only_when_asked_for_and_an_archive_always(kind, torch, tensors, tmp_path):
  path = str(tmp_path / "model.pt")
  save(torch, kind, tensors, path)
  if kind == "archive":
    assert open_tensors(path).keys() == tensors.keys()
  else:
    with pytest.raises(ValueError, match=r"model.pt' is a pickle, .*--allow_pickle"):
      open_tensors(path)


class _Touches:
  """A pickle that makes a file when it is loaded the usual way."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["zip", "old", "archive"])
def test_what_a_pickle_names_is_refused_and_not_executed(kind, tmp_path):
  made, path = tmp_path / "made", tmp_path / "model.pt"
  harmful = {"weight": _Touches(made)}
  pickle.loads(pickle.dumps(harmful))
  assert made.exists()
  made.unlink()
  if kind == "old":
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, harmful, [])
    path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts))
  else:
    with zipfile.ZipFile(path, "w") as archive:
      archive.writestr("model/data.pkl", pickle.dumps(harmful, protocol=2))
      if kind == "archive":
        archive.writestr("model/constants.pkl", pickle.dumps(()))
  with pytest.raises(
    ValueError, match=r"model.pt' holds no state dict: there is no tensor in it, only weight \(__builtin__.getattr\)"
  ):
    open_tensors(str(path), allow_pickle=True)
  assert not made.exists()


def test_a_tensor_beyond_its_storage_is_refused(torch, tmp_path):
  path = tmp_path / "model.pt"
  torch.save({"weight": torch.zeros(4, 4)}, path)
  with zipfile.ZipFile(path) as archive:
    parts = {name: archive.read(name) for name in archive.namelist()}
  with zipfile.ZipFile(path, "w") as archive:
    for name, data in parts.items():
      archive.writestr(name, data[:32] if name.endswith("data/0") else data)
  with pytest.raises(ValueError, match=r"model.pt': tensor weight cannot be read"):
    open_tensors(str(path), allow_pickle=True)["weight"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_truncated_file_is_an_error_that_names_it(kind, share, torch, tensors, tmp_path):
  path = tmp_path / "model.pt"
  save(torch, kind, tensors, path)
  data = path.read_bytes()
  path.write_bytes(data[: int(share * len(data))])
  with pytest.raises(ValueError, match=r"model.pt'"):
    dict(open_tensors(str(path), allow_pickle=True))


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ([1, 2], "holds no state dict"),
    ({}, "holds no state dict"),
    ({"epoch": 3}, r"no tensor in it, only epoch \(int\)"),
  ],
  ids=["list", "empty", "numbers"],
)
def test_a_pickle_without_weights(content, message, torch, tmp_path):
  path = tmp_path / "model.pt"
  torch.save(content, path)
  with pytest.raises(ValueError, match=message):
    open_tensors(str(path), allow_pickle=True)


def test_a_pickle_that_is_not_pytorchs(tmp_path):
  path = tmp_path / "model.bin"
  path.write_bytes(pickle.dumps({"a": 1}))
  with pytest.raises(ValueError, match="is a pickle, but not one of torch.save's"):
    open_tensors(str(path), allow_pickle=True)


def test_shards_of_pickles_under_an_index(torch, tensors, tmp_path):
  names, files = sorted(tensors), ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
  for index, file in enumerate(files):
    torch.save({name: tensors[name] for name in names[index::2]}, tmp_path / file)
  weight_map = ", ".join(f'"{name}": "{files[index % 2]}"' for index, name in enumerate(names))
  (tmp_path / "pytorch_model.bin.index.json").write_text(f'{{"weight_map": {{{weight_map}}}}}')
  found = open_tensors(str(tmp_path / "pytorch_model.bin.index.json"), allow_pickle=True)
  assert found.keys() == tensors.keys()
  np.testing.assert_array_equal(found["visual.proj"], tensors["visual.proj"].numpy())

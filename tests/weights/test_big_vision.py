"""SigLIP in big_vision's files: what is read and written, and what is refused."""

import json
import pathlib
import zipfile

import ml_dtypes
import numpy as np
import pytest

from fgclip_jax import convert
from fgclip_jax.models.config import preset
from fgclip_jax.weights import big_vision, clip_to_fgclip, formats

SIGLIP, NAFLEX = (preset(name) for name in ("tiny_siglip", "tiny_naflex"))


def _rewrite(path, change):
  with np.load(path) as file:
    arrays = change({name: file[name] for name in file})
  np.savez(path, **arrays)


def _unscanned(arrays):
  """The same blocks, one by one."""
  found = {}
  for name, value in arrays.items():
    if "/encoderblock/" in name:
      found |= {name.replace("encoderblock", f"encoderblock_{number}"): layer for number, layer in enumerate(value)}
    else:
      found[name] = value
  return found


def _without_prefix(arrays):
  return {name.removeprefix("params/"): value for name, value in arrays.items()}


def _other_shapes(arrays):
  for name in ("params/t", "params/b"):
    arrays[name] = arrays[name].reshape(())
  for name in ("params/img/pos_embedding", "params/txt/pos_embedding"):
    arrays[name] = arrays[name].reshape(-1, arrays[name].shape[-1])
  return arrays


CHANGES = {"as written": dict, "unscanned": _unscanned, "no prefix": _without_prefix, "other shapes": _other_shapes}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("config", [SIGLIP, NAFLEX], ids=["squares", "NaFlex"])
def test_every_form_is_read_and_comes_back_as_it_was(config, change, tmp_path, random_params):
  flat = random_params(config)
  (path,) = big_vision.write(str(tmp_path / "theirs"), config, flat)
  _rewrite(path, change)
  found, read, _ = formats.read(path)
  assert found == config.replace(vision={"max_patches": 256} if config.vision.takes_patches else {})
  assert read.keys() == flat.keys()
  for name, value in flat.items():
    assert read[name].tobytes() == value.tobytes() and read[name].dtype == value.dtype, name
  # by way of our own folder, which keeps the form
  assert convert.main([path, str(tmp_path / "ours")]) == 0
  assert convert.main([str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "big_vision"]) == 0
  with np.load(path) as before, np.load(tmp_path / "back" / big_vision.WEIGHTS_FILE) as after:
    assert set(before) == set(after)
    for name in before:
      assert before[name].shape == after[name].shape and before[name].tobytes() == after[name].tobytes(), name


def test_the_layout_is_that_of_the_published_files(tmp_path, random_params):
  """Heads have an axis of their own, the patch embedding is a convolution, blocks are stacked."""
  (path,) = big_vision.write(str(tmp_path / "theirs"), SIGLIP, random_params(SIGLIP))
  with np.load(path) as file:
    shapes = {name: file[name].shape for name in file}
  attention = "MultiHeadDotProductAttention_0"
  assert shapes["params/img/embedding/kernel"] == (8, 8, 3, 32)
  assert shapes[f"params/img/Transformer/encoderblock/{attention}/query/kernel"] == (2, 32, 2, 16)
  assert shapes[f"params/txt/Encoder_0/encoderblock/{attention}/out/kernel"] == (2, 2, 16, 32)
  assert shapes[f"params/img/MAPHead_0/{attention}/key/bias"] == (2, 16)
  assert shapes["params/img/MAPHead_0/probe"] == (1, 1, 32)
  assert shapes["params/txt/pos_embedding"] == (1, 16, 32)
  assert shapes["params/t"] == (1,)


def test_bfloat16_has_no_name_in_such_files(tmp_path, random_params):
  flat = random_params(NAFLEX, ml_dtypes.bfloat16)
  (path,) = big_vision.write(str(tmp_path / "theirs"), NAFLEX, flat)
  read = formats.read(path)[1]
  assert all(read[name].dtype == ml_dtypes.bfloat16 and read[name].tobytes() == x.tobytes() for name, x in flat.items())


def test_a_text_tower_without_a_head_and_arrays_of_others(tmp_path, random_params, capsys):
  (path,) = big_vision.write(str(tmp_path / "theirs"), SIGLIP, random_params(SIGLIP))

  def change(arrays):
    del arrays["params/txt/head/kernel"], arrays["params/txt/head/bias"]
    return arrays | {"opt/count": np.zeros(3)}

  _rewrite(path, change)
  config, flat, _ = formats.read(path)
  assert not config.text.head and "short_projection/kernel" not in flat
  assert "leaves out 1 arrays outside params/" in capsys.readouterr().err


def test_an_fgclip2_is_written_without_its_further_heads(tmp_path, random_params):
  config = preset("tiny_fgclip2")
  flat = random_params(config)
  (path,) = big_vision.write(str(tmp_path / "theirs"), config, flat)
  found, read, _ = formats.read(path)
  plain, kept = clip_to_fgclip.to_clip(config, flat)
  assert found == plain.replace(vision={"max_patches": 256})
  assert all(np.array_equal(read[name], value) for name, value in kept.items())


def _pickled(arrays):
  return arrays | {"params/b": np.array([{"a": 1}], object)}


def _other_probe(arrays):
  return arrays | {"params/img/MAPHead_0/probe": np.zeros((2, 3))}


def _without(part):
  return lambda arrays: {name: value for name, value in arrays.items() if part not in name}


BAD = {
  "a pickle": (_pickled, r"params/b.*Python objects, a pickle, which is not opened"),
  "a missing array": (_without("MAPHead_0/probe"), "missing    img/MAPHead_0/probe"),
  "a misshapen array": (_other_probe, "misshapen  img/MAPHead_0/probe"),
  "no image tower": (_without("/img/"), "there is no img/embedding/kernel"),
  "no sizes": (lambda x: x | {"params/img/embedding/kernel": np.zeros(3)}, r"img/embedding/kernel has shape \(3,\)"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_arrays_that_are_no_siglip(change, message, tmp_path, random_params):
  (path,) = big_vision.write(str(tmp_path / "theirs"), SIGLIP, random_params(SIGLIP))
  _rewrite(path, change)
  with pytest.raises(ValueError, match=f"(?s){path}.*{message}"):
    formats.read(path)


def test_damaged_archives(tmp_path, random_params):
  (path,) = big_vision.write(str(tmp_path / "theirs"), SIGLIP, random_params(SIGLIP))
  data = pathlib.Path(path).read_bytes()
  for cut in (0, 100, len(data) // 2):
    (tmp_path / "cut.npz").write_bytes(data[:cut])
    with pytest.raises(ValueError, match="cut.npz' is no readable .npz file"):
      formats.read(str(tmp_path / "cut.npz"))
  changed = bytearray(data)
  changed[len(data) // 2] ^= 1
  (tmp_path / "changed.npz").write_bytes(changed)
  with pytest.raises(ValueError, match="changed.npz': array .* cannot be read: Bad CRC-32"):
    formats.read(str(tmp_path / "changed.npz"))
  # a header that promises more than there is takes no memory
  with zipfile.ZipFile(tmp_path / "huge.npz", "w") as file:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000), }"
    file.writestr("params/t.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
  with pytest.raises(ValueError, match="array params/t: it has 0 bytes"):
    formats.read(str(tmp_path / "huge.npz"))


def test_a_folder_of_several_files_is_told_to_choose(tmp_path, random_params):
  (path,) = big_vision.write(str(tmp_path / "theirs"), SIGLIP, random_params(SIGLIP))
  folder = tmp_path / "theirs"
  assert formats.detect(str(folder)) == formats.detect(path) == "big_vision"
  (folder / "a.npz").write_bytes(b"")
  (folder / big_vision.WEIGHTS_FILE).rename(folder / "b.npz")
  with pytest.raises(FileNotFoundError, match="it holds a.npz, b.npz: give the path of one"):
    formats.read(str(folder))


def test_a_source_that_makes_no_sense_is_refused(tmp_path, random_params):
  (path,) = big_vision.write(str(tmp_path / "theirs"), SIGLIP, random_params(SIGLIP))
  assert convert.main([path, str(tmp_path / "ours")]) == 0
  values = json.loads((tmp_path / "ours" / "model.json").read_text())
  values["source"]["shapes"] = {"t": "x"}
  (tmp_path / "ours" / "model.json").write_text(json.dumps(values))
  with pytest.raises(ValueError, match="source.shapes.t is no shape"):
    formats.read(str(tmp_path / "ours"))

"""Damaged and hostile files of weights: one line that names the file and the entry, and bounded memory."""

import io
import json
import pickle
import resource
import struct
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from fgclip_jax import convert
from fgclip_jax.models.config import preset
from fgclip_jax.weights import huggingface, native

FGCLIP = preset("tiny").replace(text={"vocab_size": 60})
MEMORY = 300_000  # KiB that reading a small file may add to the process


def _zip(data, script=False, method=zipfile.ZIP_STORED, storages=()):
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", method) as archive:
    archive.writestr("m/data.pkl", data)
    for key, values in enumerate(storages):
      archive.writestr(f"m/data/{key}", values)
    if script:
      archive.writestr("m/constants.pkl", pickle.dumps(()))
  return file.getvalue()


def _tensor(shape, strides, offset=0, size=4):
  """The pickle of {"visual.x": a tensor of one storage}."""
  numbers = lambda values: b"(" + b"".join(b"L%dL\n" % value for value in values) + b"t"  # noqa: E731
  storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuL%dL\ntQ" % size
  arguments = b"(" + storage + b"L%dL\n" % offset + numbers(shape) + numbers(strides) + b"I00\nNt"
  return b"\x80\x02}X\x08\x00\x00\x00visual.xctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"Rs."


def _deep_modules(count):
  module = b"c__torch__\nM\n)\x81"
  return b"\x80\x02" + module + b"".join(b"}X\x01\x00\x00\x00m" + module for _ in range(count)) + b"sb" * count + b"."


def _bad_entry(method):
  data = bytearray(_zip(bytes(1000), method=method))
  start = data.index(b"data.pkl") + 8
  data[start : start + 12] = b"\xff" * 12
  return bytes(data)


def _encrypted():
  data = bytearray(_zip(_tensor((2,), (1,)), storages=[bytes(16)]))
  for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
    start = data.index(mark)
    data[start + place] |= 1
  return bytes(data)


FILES = {
  "memo": _zip(b"\x80\x02}r\xff\xff\xff\x7f."),
  "binbytes8": _zip(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"a."),
  "frame": _zip(b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"}."),
  "stride 0": _zip(_tensor((1 << 40,), (0,)), storages=[bytes(16)]),
  "product": _zip(_tensor((1 << 40, 1 << 40), (1, 1)), storages=[bytes(16)]),
  "negative": _zip(_tensor((-1, 2), (1, 1)), storages=[bytes(16)]),
  "no such storage": _zip(_tensor((2,), (1,))),
  "cycle": _zip(b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.", script=True),
  "deep modules": _zip(_deep_modules(20000), script=True),
  "deep lists": _zip(b"\x80\x02" + b"]" * 100000 + b"a" * 99999 + b"."),
  "deep tuple key": _zip(b"\x80\x02})" + b"\x85" * 100000 + b"Ks."),
  "deflate": _bad_entry(zipfile.ZIP_DEFLATED),
  "lzma": _bad_entry(zipfile.ZIP_LZMA),
  "bzip2": _bad_entry(zipfile.ZIP_BZIP2),
  "bomb": _zip(bytes(200 << 20), method=zipfile.ZIP_DEFLATED),
  "encrypted": _encrypted(),
  "set attribute": _zip(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__)s\x86b."),
  "extension": _zip(b"\x80\x02\x82\x01."),
  "empty": _zip(b""),
  "no tree": _zip(b"")[:40] + b"PK\x05\x06" + bytes(18),
  "text": b"\x80\x02X\xff\xff\xff\x7fabc.",
}


@pytest.mark.parametrize("case", FILES)
def test_a_damaged_pickle(case, tmp_path, capsys):
  path = tmp_path / "model.pt"
  path.write_bytes(FILES[case])
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert convert.main([str(path), str(tmp_path / "out"), "--allow_pickle", "--activation", "gelu"]) == 1
  message = capsys.readouterr().err
  assert message.startswith("error: ") and str(path) in message and message.count("\n") == 1, message
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY
  assert not (tmp_path / "out").exists()


def _safetensors(header, size=64):
  data = json.dumps(header).encode()
  return struct.pack("<Q", len(data)) + data + bytes(size)


SAFETENSORS = {
  "dtype": _safetensors({"visual.x": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}, 4),
  "f4": _safetensors({"visual.x": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}, 4),
  "unknown": _safetensors({"visual.x": {"dtype": "Q9", "shape": [4], "data_offsets": [0, 4]}}, 4),
  "list": _safetensors([1]),
  "huge": struct.pack("<Q", 1 << 62) + b"{}",
  "nothing": _safetensors({}, 0),
}
INDEX = {
  "list": ["a"], "number": {"visual.x": 5}, "nested": {"visual.x": ["a"]}, "outside": {"visual.x": "../a.safetensors"},
  "absolute": {"visual.x": "/dev/zero"}, "folder": {"visual.x": "."}, "null": None, "empty": {},
  "escape": {"\x1b[31m": 5},
}  # fmt: skip


@pytest.mark.parametrize("case", [*SAFETENSORS, *(f"index {name}" for name in INDEX), "index deep", "index pipe"])
def test_odd_safetensors_and_index_files(case, tmp_path, capsys):
  path = tmp_path / "model.safetensors"
  if case.startswith("index"):
    path = tmp_path / "model.safetensors.index.json"
    values = INDEX.get(case[6:], {"visual.x": "pipe.safetensors"})
    path.write_text('{"weight_map":' * 60000 if "deep" in case else json.dumps({"weight_map": values}))
    if "pipe" in case:
      import os

      os.mkfifo(tmp_path / "pipe.safetensors")
  else:
    path.write_bytes(SAFETENSORS[case])
  assert convert.main([str(path), str(tmp_path / "out"), "--activation", "gelu"]) == 1
  message = capsys.readouterr().err
  assert message.startswith("error: ") and message.count("\n") == 1 and "\x1b" not in message
  assert str(tmp_path) in message


@pytest.mark.parametrize("kind", ["safetensors", "pickle", "class"])
def test_names_in_files_are_printed_escaped(kind, torch, tmp_path, capsys):
  path, name = tmp_path / "model.pt", "visual.\x1b[31mred\nline"
  if kind == "safetensors":
    safetensors.numpy.save_file({name: np.zeros(2), "visual.conv1.weight": np.zeros(1)}, path)
  elif kind == "pickle":
    torch.save({name: torch.zeros(2)}, path)
  else:
    path.write_bytes(_zip(b"\x80\x02}X\x01\x00\x00\x00ac\x1b[31m\nX\n)\x81s."))
  assert convert.main([str(path), str(tmp_path / "out"), "--allow_pickle", "--activation", "gelu"]) == 1
  message = capsys.readouterr().err
  assert "\x1b" not in message and message.startswith("error: ") and message.count("\n") == 1


SIZES = {
  "num_hidden_layers": [10**9, -2, "3", 2.5, None, 10**400], "hidden_size": [10**9, 0, -32, "32", [32], 60000],
  "num_attention_heads": [0, -1, 10**9, True], "layer_norm_eps": ["x", float("nan"), -1],
  "intermediate_size": [10**9, 10**6, 1.5], "hidden_act": ["relu", 3, None, {}],
}  # fmt: skip
SINGLE = {("projection_dim", value) for value in (10**9, -1, "x", 1.5, 100000)} | {("logit_scale_init_value", "x")}
VISION = {("patch_size", value) for value in (0, -8, 10**9, "8")} | {
  ("image_size", value) for value in (-32, 10**9, 31)
}
CONFIGS = [
  ((tower, key), value)
  for tower in ("text_config", "vision_config")
  for key, values in SIZES.items()
  for value in values
]
CONFIGS += [((key,), value) for key, value in sorted(SINGLE, key=str)]
CONFIGS += [(("vision_config", key), value) for key, value in sorted(VISION, key=str)]
CONFIGS += [
  (("text_config", "vocab_size"), 10**9),
  (("text_config", "max_position_embeddings"), 10**12),
  (("text_config",), 5),
]


def put(path, keys, value) -> None:
  """Puts a value into a JSON file, at a place given by the keys that lead there."""
  values = json.loads(path.read_text())
  *outer, last = keys
  target = values
  for key in outer:
    target = target[key]
  target[last] = value
  path.write_text(json.dumps(values))


@pytest.mark.parametrize(("keys", "value"), CONFIGS, ids=lambda x: str(x)[:40])
def test_sizes_that_no_model_has(keys, value, random_params, tmp_path, capsys):
  huggingface.write(str(tmp_path / "m"), FGCLIP, random_params(FGCLIP))
  path = tmp_path / "m" / "config.json"
  put(path, keys, value)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert convert.main([str(tmp_path / "m"), str(tmp_path / "out")]) == 1
  message = capsys.readouterr().err
  assert message.startswith("error: ") and str(tmp_path / "m") in message
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY


MODELS = [
  (("model", tower, key), value)
  for tower in ("vision", "text")
  for key, values in {
    "depth": [1.5, -1, "2", 10**9], "heads": [0, -2], "width": ["x", 10**9], "type": ["eva", [], None],
    "tokenizer": [5],
  }.items()
  for value in values
]  # fmt: skip
MODELS += [(("model", "vision", "image_size"), -32), (("model", "vision", "patch_size"), 0), (("model", "vision"), "x")]
MODELS += [(("model", "vision", "pixels"), value) for value in ("x", [], {"mean": 1}, {"x": 1})]
MODELS += [(("model", "embedding_width"), value) for value in ("x", None, 10**9)] + [
  (("model",), []),
  (("source",), "x"),
]
MODELS += [(("source",), {"format": "pytorch", "buffers": {"a": "b"}}), (("source",), {"config": 5}), (("format",), 9)]


@pytest.mark.parametrize(("keys", "value"), MODELS, ids=lambda x: str(x)[:40])
def test_a_model_file_that_describes_no_model(keys, value, random_params, tmp_path, capsys):
  native.write(str(tmp_path / "m"), FGCLIP, random_params(FGCLIP))
  path = tmp_path / "m" / "model.json"
  put(path, keys, value)
  assert convert.main([str(tmp_path / "m"), str(tmp_path / "out")]) == 1
  message = capsys.readouterr().err
  assert message.startswith("error: ") and str(path) in message and message.count("\n") == 1


@pytest.mark.parametrize("text", ['{"model":' * 20000, "[" * 100000, "", "{", "\ufeff[]", '{"a": 1e999}', "\x00" * 10])
def test_a_model_file_that_is_no_json(text, tmp_path, capsys):
  (tmp_path / "model.json").write_text(text)
  assert convert.main([str(tmp_path), str(tmp_path.parent / "out")]) == 1
  message = capsys.readouterr().err
  assert message.startswith("error: ") and "model.json" in message and message.count("\n") == 1

"""SigLIP and SigLIP 2 as big_vision publishes them: one `.npz` of arrays, and nothing beside it.

All sizes follow from the arrays' shapes, the attention heads included. big_vision's layout is ours but for axes that
are split or of length one; its blocks are stacked along their first axis (`scan`) or stored one by one. Arrays of
Python objects, which are pickles, are refused.
"""

import functools
import math
import os
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from fgclip_jax.models.config import ModelConfig, NaflexVisionConfig, SiglipVisionConfig
from fgclip_jax.storage.skip_report import printable
from fgclip_jax.weights import huggingface_siglip
from fgclip_jax.weights.clip_to_fgclip import to_clip
from fgclip_jax.weights.name_map import Row, leaf_shapes, read_rows, same, tensor_shape, write_rows
from fgclip_jax.weights.tensor_files import Reader, Tensors

SUFFIX = ".npz"
WEIGHTS_FILE = "big_vision.npz"
_PREFIX = "params/"
_ENCODERS = {"img": "img/Transformer", "txt": "txt/Encoder_0"}
_ATTENTION = "MultiHeadDotProductAttention_0"
_LOOSE = ("img/pos_embedding", "txt/pos_embedding", "t", "b")  # with axes of length one or without, in their files
_SIDES = {(14, 27): 384}  # by patch and grid: published sizes that are no whole patches
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError)


def _reshaped(ours: str, theirs: str, inner: tuple[int, ...], outer: tuple[int, ...]) -> Row:
  """A row of the same numbers in the same order, of other shapes."""
  return Row((ours,), (theirs,), lambda x: (x.reshape(inner),), lambda x: (x.reshape(outer),))


def _split_heads(ours: str, theirs: str, heads: int, axis: int, layers: range | None) -> Row:
  """A row of arrays of which they split an axis, counted from the last, into heads and channels."""

  def read(x):
    first = x.ndim + axis - 1
    return (x.reshape(*x.shape[:first], x.shape[first] * x.shape[first + 1], *x.shape[first + 2 :]),)

  def write(x):
    first = x.ndim + axis
    return (x.reshape(*x.shape[:first], heads, x.shape[first] // heads, *x.shape[first + 1 :]),)

  return Row((ours,), (theirs,), read, write, layers)


def _attention(ours: str, theirs: str, heads: int, layers: range | None = None) -> list[Row]:
  rows = []
  for part in ("query", "key", "value"):
    for leaf in ("kernel", "bias"):
      rows.append(_split_heads(f"{ours}/{part}/{leaf}", f"{theirs}/{_ATTENTION}/{part}/{leaf}", heads, -1, layers))
  rows.append(_split_heads(f"{ours}/out/kernel", f"{theirs}/{_ATTENTION}/out/kernel", heads, -2, layers))
  return [*rows, same(f"{ours}/out/bias", f"{theirs}/{_ATTENTION}/out/bias", layers)]


def _equal(ours: str, theirs: str, layers: range | None = None) -> list[Row]:
  """The rows of a linear layer or, where the name says so, of a LayerNorm: both sides store them alike."""
  leaves = ("scale", "bias") if "norm" in ours.rpartition("/")[2] else ("kernel", "bias")
  return [same(f"{ours}/{leaf}", f"{theirs}/{leaf}", layers) for leaf in leaves]


def _tower(ours: str, theirs: str, depth: int, heads: int, scanned: bool) -> list[Row]:
  blocks, layers = (f"{theirs}/encoderblock", None) if scanned else (f"{theirs}/encoderblock_{{}}", range(depth))
  ours_blocks = f"{ours}/transformer/blocks"
  names = {"norm1": "LayerNorm_0", "norm2": "LayerNorm_1", "mlp/up": "MlpBlock_0/Dense_0"}
  names |= {"mlp/down": "MlpBlock_0/Dense_1"}
  rows = _attention(f"{ours_blocks}/attention", blocks, heads, layers)
  for mine, other in names.items():
    rows += _equal(f"{ours_blocks}/{mine}", f"{blocks}/{other}", layers)
  return rows


def _table(config: ModelConfig, scanned: Mapping[str, bool]) -> list[Row]:
  """The rows for a SigLIP of this size; `scanned` says of `img` and `txt` whether their blocks are stacked."""
  vision: Any = config.vision  # SigLIP's, of either kind
  text: Any = config.text
  width, side, grid = vision.width, vision.patch_size, vision.grid
  # NaFlex embeds flat patches, and keeps both sides of its table
  patches = (side * side * 3, width) if vision.takes_patches else (side, side, 3, width)
  table = (grid, grid, width) if vision.takes_patches else (1, grid * grid, width)
  kernel, head = "vision/patch_embedding/kernel", "img/MAPHead_0"
  rows = [
    _reshaped(kernel, "img/embedding/kernel", (side * side * 3, width), patches),
    same("vision/patch_embedding/bias", "img/embedding/bias"),
    _reshaped("vision/positions", "img/pos_embedding", (grid * grid, width), table),
    *_tower("vision", _ENCODERS["img"], vision.depth, vision.heads, scanned["img"]),
    *_equal("vision/post_norm", "img/Transformer/encoder_norm"),
    _reshaped("vision/pooling_head/probe", f"{head}/probe", (width,), (1, 1, width)),
    *_attention("vision/pooling_head", head, vision.heads),
    *_equal("vision/pooling_head/norm", f"{head}/LayerNorm_0"),
    *_equal("vision/pooling_head/mlp/up", f"{head}/MlpBlock_0/Dense_0"),
    *_equal("vision/pooling_head/mlp/down", f"{head}/MlpBlock_0/Dense_1"),
    same("text/token_embedding", "txt/Embed_0/embedding"),
    _reshaped(
      "text/short_positions",
      "txt/pos_embedding",
      (text.short_length, text.width),
      (1, text.short_length, text.width),
    ),
    *_tower("text", _ENCODERS["txt"], text.depth, text.heads, scanned["txt"]),
    *_equal("text/final_norm", "txt/Encoder_0/encoder_norm"),
    *(_equal("short_projection", "txt/head") if text.head else []),
    _reshaped("temperature/global", "t", (), (1,)),
    _reshaped("temperature/bias", "b", (), (1,)),
  ]
  return rows


def _scanned(tensors: Mapping[str, Any]) -> dict[str, bool]:
  return {
    part: any(name.startswith(f"{encoder}/encoderblock/") for name in tensors) for part, encoder in _ENCODERS.items()
  }


def infer_config(tensors: Mapping[str, Any]) -> ModelConfig:
  """The size of a model from its arrays; a ValueError names one that is missing or of an impossible shape."""
  scanned = _scanned(tensors)

  def shape(name, *ranks):
    if name not in tensors:
      raise ValueError(f"there is no {name}, from which the model's size would follow")
    found = tensor_shape(tensors, name)
    if len(found) not in ranks or 0 in found:
      raise ValueError(f"{name} has shape {found}, from which no size follows")
    return found

  def tower(part) -> dict[str, Any]:
    encoder = _ENCODERS[part]
    block = f"{encoder}/encoderblock" if scanned[part] else f"{encoder}/encoderblock_0"
    query = shape(f"{block}/{_ATTENTION}/query/kernel", 3 + scanned[part])
    numbers = {name.split("/")[2] for name in tensors if name.startswith(f"{encoder}/encoderblock_")}
    return {
      "width": query[-3],
      "depth": query[0] if scanned[part] else len(numbers),
      "heads": query[-2],
      "mlp_width": shape(f"{block}/MlpBlock_0/Dense_0/kernel", 2 + scanned[part])[-1],
    }

  kernel = shape("img/embedding/kernel", 2, 4)
  grid = math.isqrt(math.prod(shape("img/pos_embedding", 2, 3, 4)) // kernel[-1])
  vocabulary, text_width = shape("txt/Embed_0/embedding", 2)
  if len(kernel) == 4:
    side = _SIDES.get((kernel[0], grid), grid * kernel[0])
    vision: SiglipVisionConfig | NaflexVisionConfig = SiglipVisionConfig(
      **tower("img"), image_size=side, patch_size=kernel[0]
    )
  else:
    vision = NaflexVisionConfig(**tower("img"), patch_size=math.isqrt(kernel[0] // 3), position_grid=grid)
  text = huggingface_siglip.text_config(
    tower("txt"),
    vocab_size=vocabulary,
    short_length=math.prod(shape("txt/pos_embedding", 2, 3)) // text_width,
    head="txt/head/kernel" in tensors,
  )
  return huggingface_siglip.siglip(vision, text)


def _header(file: zipfile.ZipFile, entry: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype]:
  """The shape and dtype of an array in an archive, of which only the start is read."""
  with file.open(entry) as stream:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    start = stream.tell()
  if dtype.hasobject:
    raise ValueError("it holds Python objects, a pickle, which is not opened")
  if start + math.prod(shape) * dtype.itemsize != entry.file_size:
    raise ValueError(f"it has {entry.file_size - start} bytes, not those of an array of {shape}")
  return tuple(shape), dtype


def _read_array(path: str, name: str) -> np.ndarray:
  try:
    with np.load(path, allow_pickle=False) as arrays:
      array = np.asarray(arrays[name], order="C")
  except _DAMAGE as error:
    raise ValueError(f"{path!r}: array {printable(name)} cannot be read: {printable(str(error))}") from error
  return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array  # NumPy has no name for it


def open_arrays(path: str) -> Tensors:
  """The arrays of a `.npz` file by name, each read from disk when asked for; a ValueError names the file."""
  readers = {}
  try:
    with zipfile.ZipFile(path) as file:
      for entry in file.infolist():
        name = entry.filename.removesuffix(".npy")
        try:
          shape, _ = _header(file, entry)
        except _DAMAGE as error:
          raise ValueError(f"array {printable(name)}: {printable(str(error))}") from error
        readers[name] = Reader(shape, functools.partial(_read_array, path, name))
  except _DAMAGE as error:
    raise ValueError(f"{path!r} is no readable .npz file: {printable(str(error))}") from error
  return Tensors(readers)


def _find(path: str) -> str:
  if not os.path.isdir(path):
    return path
  names = [name for name in os.listdir(path) if name.endswith(SUFFIX)]
  if len(names) != 1:
    raise FileNotFoundError(f"{path!r} holds {len(names)} files *{SUFFIX}: give the path of one")
  return os.path.join(path, names[0])


def _open(path: str) -> tuple[str, Tensors, str]:
  """The file, its arrays under names without a prefix, and the prefix."""
  file = _find(path)
  tensors = open_arrays(file)
  prefix = _PREFIX if any(name.startswith(_PREFIX) for name in tensors) else ""
  others = [name for name in tensors if not name.startswith(prefix)]
  note = f"{file!r}: leaves out {len(others)} arrays outside {prefix}" if others else ""
  renamed = tensors.renamed(lambda name: name.removeprefix(prefix) if name.startswith(prefix) else None)
  renamed.note = note
  return file, renamed, prefix


def read_config(path: str) -> ModelConfig:
  """The size of a model; raises as `read` does."""
  file, tensors, _ = _open(path)
  try:
    return infer_config(tensors)
  except (ValueError, TypeError) as error:
    raise ValueError(f"{file!r}: {error}") from None


def read(path: str) -> tuple[ModelConfig, dict[str, np.ndarray], dict[str, Any]]:
  """Reads a SigLIP of big_vision's.

  Args:
    path: a `.npz` file, or a folder that holds one. Names begin with `params/`, or with what is in it.

  Returns:
    The model's size, with SigLIP 2's way of making pictures ready, of which the file says nothing; its flat parameters
    in the file's dtypes; and what `write` needs to give the same arrays back.

  Raises:
    FileNotFoundError, ValueError: name the file, and list every array that does not fit.
  """
  config = read_config(path)
  file, tensors, prefix = _open(path)
  tensors.print_note()
  scanned = _scanned(tensors)
  rows = _table(config, scanned)
  usual = {row.theirs[0]: row.shapes(leaf_shapes(config))[0] for row in rows if row.theirs[0] in _LOOSE}
  shapes = {name: tensors.shape(name) for name in usual if name in tensors and tensors.shape(name) != usual[name]}
  fitting = {
    name: tensors[name].reshape(usual[name]) for name in shapes if math.prod(shapes[name]) == math.prod(usual[name])
  }
  try:
    flat = read_rows(rows, tensors.replaced(fitting), leaf_shapes(config))
  except ValueError as error:
    raise ValueError(f"{file!r}: {error}") from None
  source = {"format": "big_vision", "prefix": prefix, "scanned": scanned}
  return config, flat, source | {"shapes": {name: list(shape) for name, shape in shapes.items()}}


def write(
  folder: str, config: ModelConfig, flat: Mapping[str, np.ndarray], source: Mapping[str, Any] | None = None
) -> list[str]:
  """Writes a folder with a `.npz` file that big_vision loads; of an FG-CLIP 2 its path for short texts.

  Args:
    folder: made if it does not exist.
    config: the model's size.
    flat: flat parameters; their dtype is kept.
    source: what `read` returned for the file this model came from, so that the same names and shapes go out; without
      one, blocks are stacked and names begin with `params/`.

  Raises:
    ValueError: the model is no SigLIP.
  """
  if config.text.type != "siglip" or config.vision.type not in ("siglip", "naflex"):
    raise ValueError("big_vision's files hold SigLIPs, and the model is none: write it as jax, clip or open_clip")
  config, flat = to_clip(config, flat)
  source = source if source and source.get("format") == "big_vision" else {}
  scanned = {part: bool(source.get("scanned", {}).get(part, True)) for part in _ENCODERS}
  tensors = write_rows(_table(config, scanned), flat)
  for name, shape in source.get("shapes", {}).items():
    if name in tensors and math.prod(shape) == tensors[name].size:
      tensors[name] = tensors[name].reshape(shape)
  os.makedirs(folder, exist_ok=True)
  path = os.path.join(folder, WEIGHTS_FILE)
  prefix = source.get("prefix", _PREFIX)
  with open(path, "wb") as file:
    named: dict[str, Any] = {f"{prefix}{name}": np.asarray(x, order="C") for name, x in sorted(tensors.items())}
    np.savez(file, **named)
  return [path]

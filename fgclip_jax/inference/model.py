"""A model as its users have it: pictures and texts in, unit-length embeddings out.

```python
model = fgclip_jax.load("path/to/folder")
image = model.encode_image("picture.jpg")                        # [1, D]
text = model.encode_text(["a cat", "a dog"])                     # [2, D]
model.similarity(image, text)                                    # [1, 2], cosines
```
"""

import dataclasses
import functools
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jaxtyping import Float32
from numpy.typing import ArrayLike

from fgclip_jax.data import image as images
from fgclip_jax.data import packing
from fgclip_jax.data.tokenizers import Tokenizer, files, get_tokenizer
from fgclip_jax.inference import inputs, programs
from fgclip_jax.models import config as presets
from fgclip_jax.models import params as parameters
from fgclip_jax.models.attention import load_kernels
from fgclip_jax.models.config import TEXT_KINDS, ModelConfig, TextKind
from fgclip_jax.models.positions import resize
from fgclip_jax.models.transformer import Runtime
from fgclip_jax.weights import formats

KINDS = TEXT_KINDS
DTYPES = ("float32", "bfloat16", "float16")

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")

Vectors = Float32[np.ndarray, "B D"]
Regions = Float32[np.ndarray, "B K D"] | list[np.ndarray]  # a list has [K, D] for each image


def load(
  path_or_name: str | os.PathLike,
  dtype: str = "float32",
  device: programs.Device | None = None,
  ema: bool = True,
  allow_pickle: bool = False,
) -> "FGCLIP":
  """Loads a model.

  Args:
    path_or_name: a model of FG-CLIP or CLIP in any format that `python -m fgclip_jax.convert` reads, one of our model
      folders, or a run folder, of which the newest checkpoint is taken; or else the `owner/name` of a model on the
      Hugging Face hub, which is downloaded once.
    dtype: what activations are computed in: `float32`, `bfloat16` or `float16`. Parameters are kept in float32.
    device: what to compute on: a device, its name (`cpu`, `gpu`, `gpu:1`, `tpu:3`), or a mesh, over which images and
      texts are then spread. None: JAX's default device.
    ema: takes the weights that a run has averaged over its steps, if it has; otherwise those of its last step.
    allow_pickle: reads weights in a pickle (`.bin`, `.pt`) too, without executing it; refused by default.

  Raises:
    FileNotFoundError, ValueError: there is no model, or a broken one; the message names the file. No such device.
  """
  if dtype not in DTYPES:
    raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
  if isinstance(device, str):
    device = programs.find_device(device)  # a wrong name is told before gigabytes are read
  path = _find(os.fspath(path_or_name), allow_pickle)
  config, flat, _ = formats.read(path, ema, allow_pickle)
  config = config.replace(text={"tokenizer": files.locate(config.text.tokenizer, path)})
  return FGCLIP(config, programs.place(parameters.unflatten(flat), device), Runtime(dtype=jnp.dtype(dtype)))


def list_presets() -> list[str]:
  """The names of the sizes of models, as configs take them: `--config=configs/stage2.py:NAME`."""
  return list(presets.PRESETS)


def preprocess(
  pictures: images.Picture | Sequence[images.Picture], config: ModelConfig, mode: str | None = None
) -> Float32[np.ndarray, "B S S 3"]:
  """Images as a model of this size takes them: squared, scaled to its resolution and normalised.

  Args:
    pictures: a PIL image, the path or the bytes of an image file, an open one, a uint8 array [H, W, 3], or a sequence
      of those. A single image makes a batch of one.
    config: the model's.
    mode: `squash` (boxes stay fractions of the whole picture), `center_crop` or `pad`. None: as the model's folder
      says, else `squash` for an FG-CLIP and `center_crop` for a plain CLIP, as the published code does.

  Raises:
    ImageError, FileNotFoundError, TypeError, ValueError: see `fgclip_jax.data.image.preprocess`.
  """
  inputs.check_ordered(pictures, "images")
  return images.preprocess(pictures, config.vision.image_size, mode or config.resize, config.vision.pixels)


class FGCLIP:
  """A model with its parameters. Every `encode_*` takes any number of inputs and returns NumPy float32 of length one.

  Images are given as PIL images, paths, bytes, open files, uint8 arrays [H, W, 3], a list or an iterator of any of
  these, or batches [B, S, S, 3] of the model's own size: uint8, or normalised floats as `preprocess` makes them. They
  are decoded by threads while the device computes, so that an iterator over any number of files takes little memory.

  Attributes:
    config: the model's size.
    params: nested dict of float32 arrays, on the device.
    runtime: how it computes.
    trained_image_size: the side of the images that it was trained on, whatever `with_image_size` made of it since.
  """

  def __init__(self, config: ModelConfig, params: parameters.Params, runtime: Runtime = Runtime()):
    """Makes a model of a config and parameters, e.g. those of a running training.

    What was compiled for one model serves every other of the same config, so this is cheap. Parameters that are
    sharded over a mesh are used where they are, and the work is spread over that mesh; in a run of several
    processes all of them must make the same calls.
    """
    self.config = config
    self.trained_image_size = config.vision.image_size
    load_kernels()
    self.params = programs.place(params, None)
    mesh = programs.find_mesh(self.params)
    sharding = None if mesh is None else jax.sharding.NamedSharding(mesh, jax.P(mesh.axis_names))
    runtime = dataclasses.replace(runtime, dtype=jnp.dtype(runtime.dtype), remat="none", sharding=sharding)
    self.runtime = runtime
    self._setup = programs.Setup(config, runtime, mesh)

  def __repr__(self) -> str:
    vision, text = self.config.vision, self.config.text
    lengths = "/".join(map(str, text.position_tables.values()))
    tower = f"patch {vision.patch_size}" if vision.has_patches else vision.label
    return (
      f"{'FGCLIP' if self.config.fine_grained else 'FGCLIP (plain CLIP)'}("
      f"image {vision.image_size} px, {tower}, width {vision.width} x {vision.depth} blocks; "
      f"text {lengths} tokens, width {text.width} x {text.depth} blocks; "
      f"embedding {self.config.embedding_width}; "
      f"{parameters.count(self.params) / 1e6:.1f} M parameters, {self.runtime.dtype.name})"
    )

  @property
  def tokenizer(self) -> Tokenizer:
    """The tokenizer that the config names."""
    return get_tokenizer(self.config.text.tokenizer)

  @property
  def batch_size(self) -> int:
    """The largest batch that is computed at once; multiples of it leave nothing to pad."""
    return self._setup.sizes[-1]

  def preprocess(
    self, pictures: images.Picture | Sequence[images.Picture], mode: str | None = None
  ) -> Float32[np.ndarray, "B S S 3"]:
    """Images as this model takes them; see `fgclip_jax.preprocess`."""
    return preprocess(pictures, self.config, mode)

  def with_image_size(self, size: int) -> "FGCLIP":
    """The same model for images of another side, in pixels: its image positions are interpolated (bicubic).

    Raises:
      ValueError: the side is not a multiple of the model's patches.
    """
    params, config = resize(self.params, self.config, size)
    resized = FGCLIP(config, params, self.runtime)
    resized.trained_image_size = self.trained_image_size
    return resized

  def encode_image(self, pictures: inputs.Pictures, normalize: bool = True) -> Vectors:
    """Embeds whole images, at least one.

    Args:
      pictures: the images; see the class. A plain CLIP sees the middle square of a picture unless its folder says
        otherwise, an FG-CLIP all of it, squashed: for another way, use `preprocess`.
      normalize: False gives the features as they are, of any length.
    """
    encode = functools.partial(self._encode_pixels, dense=False, normalize=normalize)
    return np.concatenate([image for image, _ in self._in_chunks(encode, pictures, self.config.resize)])

  def encode_dense(self, pictures: inputs.Pictures, normalize: bool = True) -> Float32[np.ndarray, "B h w D"]:
    """Embeds the patches of images, for comparison with region (or short) texts.

    Args:
      pictures: the images; see the class. They are squashed to squares, so that patches divide the whole picture.
      normalize: False gives the features as they are, of any length.
    """

    def encode(pixels):
      dense = self._encode_pixels(pixels, dense=True, normalize=True)[1]
      return programs.finish(dense, normalize=normalize)

    return np.concatenate(list(self._in_chunks(encode, pictures, "squash")))

  def encode_regions(self, pictures: inputs.Pictures, boxes: inputs.Boxes, normalize: bool = True) -> Regions:
    """Embeds boxes of images, for comparison with region texts.

    Args:
      pictures: as for `encode_dense`.
      boxes: x1 y1 x2 y2 as fractions of the image's width and height: an array [B, K, 4], or a list that has [K, 4]
        for each image, K differing and possibly 0. A box of no size gives zero.
      normalize: False gives the features as they are, of any length.

    Returns:
      [B, K, D] for an array of boxes, a list that has [K, D] for each image for a list.
    """
    return self.encode_image_and_regions(pictures, boxes, normalize)[1]

  def encode_image_and_regions(
    self, pictures: inputs.Pictures, boxes: inputs.Boxes, normalize: bool = True
  ) -> tuple[Vectors, Regions]:
    """`encode_regions` and embeddings of the whole, squashed images in one pass through the image tower."""

    def encode(pixels, boxes):
      image, dense = self._encode_pixels(pixels, dense=True, normalize=normalize)
      return image, programs.pool(dense, boxes, normalize=normalize)

    whole, regions = [], []
    for image, pooled, counts in self._in_chunks(encode, pictures, "squash", boxes):
      whole.append(image)
      regions += [row[:count] for row, count in zip(pooled, counts, strict=True)]
    return np.concatenate(whole), np.stack(regions) if hasattr(boxes, "ndim") else regions

  def encode_text(
    self,
    texts: inputs.Texts,
    kind: str = "short",
    progress: bool = False,
    normalize: bool = True,
    truncate: bool = True,
  ) -> Vectors:
    """Embeds texts, at least one. A text that is longer than the model reads is cut, with a warning.

    Args:
      texts: one text, a sequence of texts, or token ids, each text with an end-of-text id: an integer array [B, L] or
        a list of lists of ids.
      kind: `short` or `region` (one path for both, 77 tokens) or `long` (248 tokens; FG-CLIP alone has it).
      progress: shows a progress bar.
      normalize: False gives the features as they are, of any length.
      truncate: False makes a text that is too long an error.
    """
    if kind not in KINDS:
      raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    kinds = self.config.text.kinds
    if kind not in kinds:
      raise ValueError(
        f"this model is a plain CLIP, which reads no {kind} texts: use kind='short', or make an FG-CLIP of it with "
        "`python -m fgclip_jax.convert INPUT OUTPUT --as fgclip`"
      )
    path, longest = kinds[kind], max(kinds, key=lambda name: kinds[name].length)
    whole = inputs.to_ids(texts, self.config.text)
    better = kinds[longest].length > path.length
    advice = f"; kind={longest!r} reads {kinds[longest].length}" if better else ""
    ids = inputs.cut_ids(whole, path.length, kind, advice, truncate)
    return self._encode_ids(ids, path, progress, normalize)

  def similarity(self, image: ArrayLike, text: ArrayLike) -> Float32[np.ndarray, "*B N"]:
    """Cosines, -1 to 1, of embeddings [..., D] of images, patches or regions with embeddings [N, D] of texts.

    Of features that are not of unit length it gives the inner products.
    """
    image, text = np.asarray(image, np.float32), np.asarray(text, np.float32)
    if text.ndim != 2 or image.ndim < 1 or image.shape[-1] != text.shape[-1]:
      raise ValueError(f"needs embeddings [..., D] and [N, D], got {list(image.shape)} and {list(text.shape)}")
    return image @ text.T

  def _encode_pixels(self, pixels: np.ndarray, dense: bool, normalize: bool) -> tuple[jax.Array, jax.Array | None]:
    programs.announce(pixels)
    return programs.encode_pixels(self.params, pixels, setup=self._setup, dense=dense, normalize=normalize)

  def _in_chunks(
    self, function: Callable, pictures: inputs.Pictures, mode: str, boxes: inputs.Boxes | None = None
  ) -> Iterator:
    """Applies a function to chunks of images, and of boxes, of few sizes; yields its results without the padding.

    With boxes, also the number of boxes of each image.
    """
    pixels = inputs.to_pixels(pictures, self.config, mode)
    count = (
      len(pixels) if isinstance(pixels, np.ndarray) else len(pictures) if isinstance(pictures, list | tuple) else None
    )
    rows = pixels if boxes is None else _pairs(pixels, inputs.to_boxes(boxes, count))
    kept: list = []  # of chunks under way

    def start():
      for batch in inputs.batches(inputs.not_empty(rows), self.batch_size):
        for size in programs.split(len(batch), self._setup.sizes):
          chunk, batch = batch[:size], batch[size:]
          filled = chunk + [chunk[-1]] * (size - len(chunk))
          spec = self.config.vision.pixels
          if boxes is None:
            kept.append((len(chunk), None))
            yield function(inputs.stack_pixels(filled, spec))
          else:
            kept.append((len(chunk), [len(each) for _, each in chunk]))
            columns = list(zip(*filled, strict=True))
            yield function(inputs.stack_pixels(columns[0], spec), inputs.pad_boxes(columns[1]))

    for result in programs.run_ahead(start()):
      count, box_counts = kept.pop(0)
      result = jax.tree.map(lambda leaf, count=count: leaf[:count], result)
      yield result if box_counts is None else (*result, box_counts)

  def _encode_ids(self, ids: Sequence[inputs.Ids], kind: TextKind, progress: bool, normalize: bool) -> np.ndarray:
    """Packs captions into rows of up to `kind.length` tokens and encodes the rows, chunk by chunk."""
    # none counts as shorter than two tokens, which bounds the captions that end within a chunk
    lengths = [max(len(row), 2) for row in ids]
    length = programs.row_length(sum(lengths), kind.length)
    places = np.asarray(packing.best_fit(lengths, length))
    sizes = programs.split(int(places[:, 0].max()) + 1, self._setup.sizes)
    starts = [0, *itertools.accumulate(sizes)]
    captions = [packing.Caption(row, long=kind.first_position > 0) for row in ids]
    text = packing.fill_rows(captions, places.tolist(), starts[-1], length, kind.first_position)
    ends = places[:, 1] + [len(row) - 1 for row in ids]
    by_row = np.argsort(places[:, 0], kind="stable")
    bounds = np.searchsorted(places[by_row, 0], starts)

    def start():
      for row, size, first, last in zip(starts, sizes, bounds, bounds[1:], strict=False):
        mine = by_row[first:last]
        at = np.zeros((2, size * length // 2), np.int32)
        at[:, : len(mine)] = places[mine, 0] - row, ends[mine]
        arrays = [text[key][row : row + size] for key in ("tokens", "segment", "position")]
        programs.announce(*arrays, *at)
        yield programs.encode_rows(self.params, *arrays, *at, setup=self._setup, kind=kind, normalize=normalize)

    features = np.zeros((len(ids), self.config.embedding_width), np.float32)
    found = tqdm.tqdm(programs.run_ahead(start()), "texts", len(sizes), unit="chunk", disable=not progress)
    for first, last, encoded in zip(bounds, bounds[1:], found, strict=False):
      features[by_row[first:last]] = encoded[: last - first]
    return features


def _pairs(pixels: Iterable, boxes: Iterable) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Each image with its boxes; an error if one of them ends before the other."""
  try:
    yield from zip(pixels, boxes, strict=True)
  except ValueError as error:
    if "zip()" not in str(error):
      raise
    raise ValueError("there must be boxes for each image, and no more: an empty list for one without") from error


def _find(path_or_name: str, allow_pickle: bool) -> str:
  """The path of a model; one on the Hugging Face hub is downloaded unless it is there already."""
  top = path_or_name.split("/")[0]
  if os.path.exists(path_or_name) or os.path.isdir(top) or not _HUB_NAME.fullmatch(path_or_name):
    if path_or_name in presets.PRESETS and not os.path.exists(path_or_name):
      raise FileNotFoundError(f"{path_or_name!r} is a preset, a size without weights: give a model folder")
    return path_or_name
  import huggingface_hub

  try:
    wanted = ["*.json", "*.safetensors", *(["*.bin"] if allow_pickle else [])]
    return huggingface_hub.snapshot_download(path_or_name, allow_patterns=wanted)
  except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
    raise FileNotFoundError(
      f"no model folder at {path_or_name!r}, and no such model could be had from the Hugging Face hub: "
      f"{str(error).splitlines()[0]}"
    ) from error

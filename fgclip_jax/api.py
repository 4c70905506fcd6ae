"""A model as its users have it: pictures and texts in, unit-length embeddings out.

```python
model = fgclip_jax.load("path/to/folder")
image = model.encode_image(model.preprocess("picture.jpg"))      # [1, D]
text = model.encode_text(["a cat", "a dog"])                     # [2, D]
model.similarity(image, text)                                    # [1, 2], cosines
```
"""

import dataclasses
import functools
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jaxtyping import Float32
from numpy.typing import ArrayLike

from fgclip_jax.data import image as images
from fgclip_jax.data import packing
from fgclip_jax.data.tokenizer import Tokenizer
from fgclip_jax.models import fgclip, parameters
from fgclip_jax.models.presets import ModelConfig
from fgclip_jax.models.roi_align import roi_align
from fgclip_jax.models.transformer import Runtime
from fgclip_jax.weights import folder

KINDS = ("short", "long", "region")
DTYPES = ("float32", "bfloat16", "float16")
# Sizes that programs are compiled for: images per chunk, and rows of packed captions per chunk. A call uses the
# largest that it can fill, so that at most three programs of a kind exist and less than half of a call is padding.
CHUNKS = (1, 8, 64)

Ids = tuple[int, ...]


def load(path: str | os.PathLike, dtype: str = "float32", ema: bool = True) -> "FGCLIP":
  """Loads a model.

  Args:
    path: a folder in PyTorch format (`config.json`, `model.safetensors`) of FG-CLIP or plain CLIP, one of our model
      folders, or a run folder, of which the newest checkpoint is taken.
    dtype: what activations are computed in: `float32`, `bfloat16` or `float16`. Parameters are kept in float32.
    ema: takes the weights that a run has averaged over its steps, if it has; otherwise those of its last step.

  Raises:
    FileNotFoundError, ValueError: `path` holds no model, or a broken one; the message names the file.
  """
  if dtype not in DTYPES:
    raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
  config, flat, _ = folder.read(os.fspath(path), ema)
  return FGCLIP(config, parameters.unflatten(flat), Runtime(dtype=jnp.dtype(dtype)))


def preprocess(
  pictures: images.Picture | Sequence[images.Picture], config: ModelConfig, mode: images.Mode = "squash"
) -> Float32[np.ndarray, "B S S 3"]:
  """Images as a model of this size takes them: squared, scaled to its resolution and normalised.

  Args:
    pictures: a PIL image, the path or the bytes of an image file, a uint8 array [H, W, 3], or a sequence of those.
      A single image makes a batch of one.
    config: the model's.
    mode: `squash` (FG-CLIP; boxes stay fractions of the whole picture) or `center_crop` (plain CLIP).

  Raises:
    ImageError, FileNotFoundError, TypeError, ValueError: see `fgclip_jax.data.image.preprocess`.
  """
  return images.preprocess(pictures, config.vision.image_size, mode)


class FGCLIP:
  """A model with its parameters. Every `encode_*` takes any number of inputs and returns NumPy float32 of length one.

  Attributes:
    config: the model's size.
    params: nested dict of float32 arrays, on the device.
    runtime: how it computes.
  """

  def __init__(self, config: ModelConfig, params: parameters.Params, runtime: Runtime = Runtime()):
    """Makes a model of a config and parameters, e.g. those of a running training.

    What was compiled for one model serves every other of the same config, so this is cheap. Parameters that are
    sharded over a mesh are used where they are, and the work is spread over that mesh; in a run of several
    processes all of them must make the same calls.
    """
    self.config = config
    self.params = jax.tree.map(_to_float32, params)
    mesh = _mesh(self.params)
    sharding = None if mesh is None else jax.sharding.NamedSharding(mesh, jax.P(mesh.axis_names))
    runtime = dataclasses.replace(runtime, dtype=jnp.dtype(runtime.dtype), remat="none", sharding=sharding)
    self.runtime = runtime
    self._setup = _Setup(config, runtime, mesh)

  def __repr__(self) -> str:
    vision, text = self.config.vision, self.config.text
    lengths = f"{text.short_length}" + (f"/{text.long_length}" if self.config.fine_grained else "")
    return (
      f"{'FGCLIP' if self.config.fine_grained else 'FGCLIP (plain CLIP)'}("
      f"image {vision.image_size} px, patch {vision.patch_size}, width {vision.width} x {vision.depth} blocks; "
      f"text {lengths} tokens, width {text.width} x {text.depth} blocks; "
      f"embedding {self.config.embedding_width}; "
      f"{parameters.count(self.params) / 1e6:.1f} M parameters, {self.runtime.dtype.name})"
    )

  @functools.cached_property
  def tokenizer(self) -> Tokenizer:
    """CLIP's tokenizer."""
    return Tokenizer()

  @property
  def batch_size(self) -> int:
    """The largest batch that is computed at once; multiples of it leave nothing to pad."""
    return self._setup.chunk(CHUNKS[-1])

  def preprocess(
    self, pictures: images.Picture | Sequence[images.Picture], mode: images.Mode = "squash"
  ) -> Float32[np.ndarray, "B S S 3"]:
    """Images as this model takes them; see `fgclip_jax.preprocess`."""
    return preprocess(pictures, self.config, mode)

  def encode_image(self, pixels: ArrayLike) -> Float32[np.ndarray, "B D"]:
    """Embeds whole images.

    Args:
      pixels: [B, S, S, 3], float as `preprocess` gives them, or uint8 RGB (normalised on the device).
    """
    pixels = self._check_pixels(pixels)
    return self._in_chunks(lambda chunk: self._encode_pixels(chunk, dense=False)[0], pixels)[0]

  def encode_dense(self, pixels: ArrayLike) -> Float32[np.ndarray, "B h w D"]:
    """Embeds the patches of images, for comparison with region (or short) texts.

    Args:
      pixels: as for `encode_image`.
    """
    pixels = self._check_pixels(pixels)
    return self._in_chunks(lambda chunk: _unit_length(self._encode_pixels(chunk, dense=True)[1]), pixels)[0]

  def encode_regions(self, pixels: ArrayLike, boxes: ArrayLike) -> Float32[np.ndarray, "B K D"]:
    """Embeds boxes of images, for comparison with region texts.

    Args:
      pixels: as for `encode_image`.
      boxes: [B, K, 4], x1 y1 x2 y2 as fractions of the image's width and height. A box of no size gives zero.
    """
    return self.encode_image_and_regions(pixels, boxes)[1]

  def encode_image_and_regions(
    self, pixels: ArrayLike, boxes: ArrayLike
  ) -> tuple[Float32[np.ndarray, "B D"], Float32[np.ndarray, "B K D"]]:
    """`encode_image` and `encode_regions` in one pass through the image tower."""
    pixels = self._check_pixels(pixels)
    boxes = _check_boxes(boxes, len(pixels))
    count = boxes.shape[1]
    padding = (1 << max(count - 1, 0).bit_length()) - count  # to a power of two: few shapes to compile
    boxes = np.pad(boxes, ((0, 0), (0, padding), (0, 0)))

    def encode(pixels, boxes):
      image, dense = self._encode_pixels(pixels, dense=True)
      return image, _pool(dense, boxes)

    image, regions = self._in_chunks(encode, pixels, boxes)
    return image, regions[:, :count]

  def encode_text(
    self, texts: str | Sequence[str] | ArrayLike, kind: str = "short", progress: bool = False
  ) -> Float32[np.ndarray, "B D"]:
    """Embeds texts. A text that is longer than the model reads is cut, with a warning.

    Args:
      texts: one text, a sequence of texts, or an integer array [B, L] of token ids, each row with an end-of-text id.
      kind: `short` or `region` (one path for both, 77 tokens) or `long` (248 tokens; FG-CLIP alone has it).
      progress: shows a progress bar.
    """
    if kind not in KINDS:
      raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "long" and not self.config.fine_grained:
      raise ValueError(
        "this model is a plain CLIP, which reads no long texts: use kind='short', or make an FG-CLIP of it with "
        "`python -m fgclip_jax.convert INPUT OUTPUT --as fgclip`"
      )
    length = self.config.text.long_length if kind == "long" else self.config.text.short_length
    whole = self._to_ids(texts)
    ids = [row if len(row) <= length else (*row[: length - 1], row[-1]) for row in whole]
    over = [len(row) - length for row in whole if len(row) > length]
    if over:
      warnings.warn(
        f"{len(over)} of {len(whole)} texts are longer than the {length} tokens of kind={kind!r}: "
        f"{sum(over)} tokens were cut",
        stacklevel=2,
      )
    return self._encode_ids(ids, length, kind == "long", progress)

  def similarity(self, image: ArrayLike, text: ArrayLike) -> Float32[np.ndarray, "*B N"]:
    """Cosines, -1 to 1, of embeddings [..., D] of images, patches or regions with embeddings [N, D] of texts."""
    image, text = np.asarray(image, np.float32), np.asarray(text, np.float32)
    if text.ndim != 2 or image.ndim < 1 or image.shape[-1] != text.shape[-1]:
      raise ValueError(f"needs embeddings [..., D] and [N, D], got {list(image.shape)} and {list(text.shape)}")
    return image @ text.T

  def _encode_pixels(self, pixels: np.ndarray, dense: bool) -> tuple[jax.Array, jax.Array | None]:
    return _encode_pixels(self.params, pixels, setup=self._setup, dense=dense)

  def _in_chunks(self, function: Callable[..., Any], *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Applies a function of batches to chunks of one size, the last one padded with copies of its last row."""
    total = len(arrays[0])
    size = self._setup.chunk(total)
    parts = []
    for start in range(0, total, size):
      rows = np.minimum(np.arange(start, start + size), total - 1)
      outputs = function(*(array[rows] for array in arrays))
      parts.append([np.asarray(part) for part in (outputs if isinstance(outputs, tuple) else (outputs,))])
    return tuple(np.concatenate(column)[:total] for column in zip(*parts, strict=True))

  def _encode_ids(self, ids: Sequence[Ids], length: int, long: bool, progress: bool) -> np.ndarray:
    """Packs captions into rows of `length` tokens and encodes the rows, chunk by chunk."""
    # none counts as shorter than two tokens, which bounds the captions that end within a chunk
    places = np.asarray(packing.best_fit([max(len(row), 2) for row in ids], length))
    rows = int(places[:, 0].max()) + 1
    size = self._setup.chunk(rows)
    rows = -(-rows // size) * size
    captions = [packing.Caption(tuple(row), long) for row in ids]
    text = packing.fill_rows(captions, places.tolist(), rows, length, self.config.text.short_length)
    ends = places[:, 1] + [len(caption) - 1 for caption in ids]
    features = np.zeros((len(ids), self.config.embedding_width), np.float32)
    by_row = np.argsort(places[:, 0], kind="stable")
    starts = np.searchsorted(places[by_row, 0], np.arange(0, rows + 1, size))
    chunks = tqdm.trange(rows // size, desc="texts", unit="chunk", disable=not progress)
    for chunk in chunks:
      mine = by_row[starts[chunk] : starts[chunk + 1]]
      at = np.zeros((2, size * length // 2), np.int32)
      at[:, : len(mine)] = places[mine, 0] - chunk * size, ends[mine]
      part = slice(chunk * size, (chunk + 1) * size)
      arrays = (text[key][part] for key in ("tokens", "segment", "position"))
      encoded = _encode_rows(self.params, *arrays, *at, setup=self._setup, long=long)
      features[mine] = np.asarray(encoded)[: len(mine)]
    return features

  def _to_ids(self, texts: str | Sequence[str] | ArrayLike) -> list[Ids]:
    """Token ids of each text up to the one that it is read at; not yet cut to a length."""
    end_id, vocabulary = self.config.text.end_id, self.config.text.vocab_size
    if isinstance(texts, np.ndarray | jax.Array) and jnp.issubdtype(texts.dtype, jnp.integer):
      rows = np.asarray(texts)
      if rows.ndim != 2 or not rows.size:
        raise ValueError(f"token ids must have the shape [B, L], got {list(rows.shape)}")
      if rows.min() < 0 or rows.max() >= vocabulary:
        raise ValueError(f"token ids must lie in 0..{vocabulary - 1}, got {rows.min()}..{rows.max()}")
      endless = np.flatnonzero(~(rows == end_id).any(1)) if end_id != 2 else ()
      if len(endless):
        raise ValueError(f"row {endless[0]} of the token ids has no end-of-text id ({end_id})")
    else:
      texts = [texts] if isinstance(texts, str) else list(texts)
      if not texts:
        raise ValueError("there are no texts: give at least one")
      if vocabulary != Tokenizer.vocab_size:
        raise ValueError(
          f"the model has a vocabulary of {vocabulary:,} tokens and CLIP's tokenizer {Tokenizer.vocab_size:,}: "
          "give token ids instead of strings"
        )
      rows = [np.asarray(row) for row in self.tokenizer.encode_batch(texts)]
    return [packing.cut(row, end_id).ids for row in rows]

  def _check_pixels(self, pixels: ArrayLike) -> np.ndarray:
    """Pixels as uint8 or float32 [B, S, S, 3], or an error that says what to do."""
    pixels = np.asarray(pixels)
    side = self.config.vision.image_size
    expected = f"[B, {side}, {side}, 3]"
    if pixels.shape == (side, side, 3):
      raise ValueError(f"pixels must be a batch {expected}, got one image {list(pixels.shape)}: use pixels[None]")
    if pixels.ndim != 4 or pixels.shape[1:] != (side, side, 3):
      raise ValueError(f"pixels must be {expected}, got {list(pixels.shape)}: use model.preprocess")
    if not len(pixels):
      raise ValueError(f"pixels {list(pixels.shape)} hold no image: give at least one")
    if pixels.dtype == np.uint8:
      return pixels
    if not jnp.issubdtype(pixels.dtype, jnp.floating):
      raise ValueError(f"pixels must be normalised floats or uint8, got {pixels.dtype}")
    largest = float(np.abs(pixels).max())
    if largest > 10:
      raise ValueError(
        f"float pixels must be normalised (about -1.8 to 2.2), got values up to {largest:g}: use model.preprocess, "
        "or give levels 0..255 as uint8"
      )
    return pixels.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class _Setup:
  """What compiled programs depend on beside the shapes of their arguments."""

  config: ModelConfig
  runtime: Runtime
  mesh: jax.sharding.Mesh | None

  def chunk(self, count: int) -> int:
    """The size of the chunks that `count` rows are encoded in."""
    size = max(chunk for chunk in CHUNKS if chunk <= max(count, 1))
    devices = self.mesh.size if self.mesh else 1
    return -(-size // devices) * devices

  def spread(self, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Rows of a batch spread over all devices of the mesh."""
    return self._constrain(arrays, lambda mesh: jax.P(mesh.axis_names))

  def gather(self, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Results on every device, so that every process can read them."""
    return self._constrain(arrays, lambda mesh: jax.P())

  def _constrain(self, arrays, spec):
    if self.mesh is None:
      return arrays
    sharding = jax.sharding.NamedSharding(self.mesh, spec(self.mesh))
    return tuple(jax.lax.with_sharding_constraint(array, sharding) for array in arrays)


def _mesh(params: parameters.Params) -> jax.sharding.Mesh | None:
  """The mesh of several devices that parameters live on, if they do."""
  sharding = jax.tree.leaves(params)[0].sharding
  several = isinstance(sharding, jax.sharding.NamedSharding) and sharding.mesh.size > 1
  return sharding.mesh if several else None


def _to_float32(leaf: Any) -> jax.Array:
  done = isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32
  return leaf if done else jnp.asarray(leaf, jnp.float32)


def _check_boxes(boxes: ArrayLike, count: int) -> np.ndarray:
  """Boxes as float32 [B, K, 4] within 0..1, or an error that names the first wrong one."""
  boxes = np.asarray(boxes, np.float32)
  if boxes.ndim != 3 or boxes.shape[::2] != (count, 4):
    raise ValueError(f"boxes must be [B, K, 4] with B = {count}, one list for each image, got {list(boxes.shape)}")
  inside = ((boxes >= -1e-3) & (boxes <= 1 + 1e-3)).all(-1)  # False for NaN; a thousandth outside is rounding
  wrong = np.argwhere(~(inside & (boxes[..., :2] <= boxes[..., 2:]).all(-1)))
  if len(wrong):
    image, box = wrong[0]
    raise ValueError(
      f"box {box} of image {image} is {boxes[image, box].tolist()}; needs x1 <= x2 and y1 <= y2 in 0..1, as "
      "fractions of the image's width and height"
    )
  return boxes.clip(0, 1)


@functools.partial(jax.jit, static_argnames=("setup", "dense"))
def _encode_pixels(params, pixels, *, setup, dense):
  """Unit-length image embeddings [B, D]; with `dense`, also patch features [B, h, w, D] of any length."""
  (pixels,) = setup.spread(pixels)
  if pixels.dtype == jnp.uint8:
    mean, std = (jnp.asarray(values, jnp.float32) for values in (images.MEAN, images.STD))
    pixels = (pixels.astype(jnp.float32) / 255 - mean) / std
  image, patches = parameters.build(setup.config, params, setup.runtime).image_features(pixels)
  (image,) = setup.gather(fgclip.unit_length(image))
  return image, setup.gather(patches)[0] if dense else None


@functools.partial(jax.jit, static_argnames=("setup", "long"))
def _encode_rows(params, tokens, segment, position, row, end, *, setup, long):
  """Unit-length embeddings [N, D] of captions that end at `[row, end]` of packed rows."""
  tokens, segment, position = setup.spread(tokens, segment, position)
  model = parameters.build(setup.config, params, setup.runtime)
  return setup.gather(fgclip.unit_length(model.text_features(tokens, segment, position, row, end, long)))[0]


@jax.jit
def _pool(dense, boxes):
  """Unit-length embeddings [B, K, D] of boxes, pooled from patch features of any length."""
  return fgclip.unit_length(roi_align(dense, boxes))


_unit_length = jax.jit(fgclip.unit_length)

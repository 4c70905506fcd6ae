"""Parts of a model as functions of arrays alone, with its weights inside, for export."""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from fgclip_jax.inference.describe import family
from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.models import params as parameters
from fgclip_jax.models.config import TextKind
from fgclip_jax.models.fgclip import DualEncoder, unit_length
from fgclip_jax.models.pixel_spec import PixelSpec
from fgclip_jax.models.pixels import normalize, normalize_patches
from fgclip_jax.models.roi_align import roi_align, roi_align_patches
from fgclip_jax.models.siglip import NaflexTower, PatchRows
from fgclip_jax.models.transformer import Runtime, Transformer

PARTS = ("image", "text", "long_text", "dense", "regions", "region_text")
TEXT_PARTS = {
  "text": "short",
  "long_text": "long",
  "region_text": "region",
}  # parts that take texts, and the kind that each takes
# what the description says of a tokenizer
TOKENIZER_RULES = {
  "clip": "CLIP's byte-pair encoding of lower-cased text (openai/clip-vit-base-patch16)",
  "gemma": "Gemma's byte-pair encoding of lower-cased text, by the tokenizer.json beside this file",
  "siglip": "SigLIP's SentencePiece of lower-cased text, by the spiece.model beside this file",
}

Shape = tuple[int | str, ...]


@dataclasses.dataclass(frozen=True)
class Part:
  """A function to export, of arrays in the order of `inputs`; a name in a shape is a size that may be anything."""

  function: Callable[..., Array]
  inputs: dict[str, tuple[Shape, str]]  # shape, dtype
  output: str
  preprocessing: dict[str, Any]


class _Unrolled(nnx.Module):
  """A transformer's blocks one after another: ONNX would make a loop of a scan, which takes half as long again."""

  def __init__(self, transformer: Transformer):
    self.blocks = nnx.List(
      [jax.tree.map(lambda leaf, at=at: leaf[at], transformer.blocks) for at in range(transformer.depth)]
    )

  def __call__(
    self, x: Float[Array, "B T W"], segment: Int[Array, "B T"] | None = None
  ) -> tuple[Float[Array, "B T W"], Float[Array, "B T W"]]:
    penultimate = x
    for block in self.blocks:
      x, penultimate = block(x, segment), x
    return x, penultimate

  def last_block(self) -> nnx.Module:
    return self.blocks[-1]


def make_part(model: FGCLIP, what: str, unroll: bool = False) -> Part:
  """One of `PARTS` as a function with the model's weights.

  Args:
    model: the model, on one device.
    what: `image` (embeddings of whole images), `text` and `long_text` (of token ids), `dense` (of patches), `regions`
      (of boxes).
    unroll: the blocks of the towers one after another instead of in a loop.

  Raises:
    ValueError: there is no such part, or this model does not have it.
  """
  config = model.config
  spec = config.vision.pixels
  if what not in PARTS:
    raise ValueError(f"there is no part {what!r}: choose of {', '.join(PARTS)}")
  if what in TEXT_PARTS and TEXT_PARTS[what] not in config.text.kinds:
    raise ValueError(f"this model is a {family(config)}, which reads no {TEXT_PARTS[what]} texts: leave {what} out")
  # exactly what each product would do with them, and half the size of the file
  params = parameters.unflatten(
    {
      name: leaf.astype(model.runtime.dtype) if name.endswith("kernel") else leaf
      for name, leaf in parameters.flatten(model.params).items()
    }
  )

  def network() -> DualEncoder:
    built = parameters.build(config, params, Runtime(dtype=model.runtime.dtype, attention="xla"))
    towers: tuple[Any, ...] = (built.vision, built.text) if unroll else ()
    for tower in towers:
      if isinstance(getattr(tower, "transformer", None), Transformer):
        tower.transformer = _Unrolled(tower.transformer)
    return built

  def patched(patches: UInt8[Array, "B N X"], grid: Int[Array, "B 2"]) -> tuple[DualEncoder, Array, Array]:
    """The network, the patches after its tower, and which of them are no padding."""
    built, rows = network(), lay_out(patches, grid, spec)
    return built, cast(NaflexTower, built.vision)(rows), rows.segment

  def patched_image(patches: UInt8[Array, "B N X"], grid: Int[Array, "B 2"]) -> Float[Array, "B D"]:
    built, hidden, segment = patched(patches, grid)
    return unit_length(cast(NaflexTower, built.vision).pooling_head.pool(hidden, segment > 0))

  def patched_dense(patches: UInt8[Array, "B N X"], grid: Int[Array, "B 2"]) -> Float[Array, "B N D"]:
    built, hidden, segment = patched(patches, grid)
    found = unit_length(cast(NaflexTower, built.vision).dense_features(hidden, segment))
    return jnp.where(segment[..., None] > 0, found, 0.0)

  def patched_regions(
    patches: UInt8[Array, "B N X"], grid: Int[Array, "B 2"], boxes: Float[Array, "B K 4"]
  ) -> Float[Array, "B K D"]:
    built, hidden, segment = patched(patches, grid)
    found = cast(NaflexTower, built.vision).dense_features(hidden, segment)
    return unit_length(roi_align_patches(found, grid, boxes))

  def image(pixels: UInt8[Array, "B S S 3"]) -> Float[Array, "B D"]:
    return unit_length(network().image_features(normalize(pixels, spec))[0])

  def patches(pixels: UInt8[Array, "B S S 3"]) -> Float[Array, "B h w D"]:
    features = network().image_features(normalize(pixels, spec))[1]
    assert features is not None  # no patches are dropped
    return features

  def dense(pixels: UInt8[Array, "B S S 3"]) -> Float[Array, "B h w D"]:
    return unit_length(patches(pixels))

  def regions(pixels: UInt8[Array, "B S S 3"], boxes: Float[Array, "B K 4"]) -> Float[Array, "B K D"]:
    return unit_length(roi_align(patches(pixels), boxes))

  def text(tokens: Int[Array, "B L"]) -> Float[Array, "B D"]:
    return _encode_text(network(), tokens, config.text.kinds[TEXT_PARTS[what]])

  side = config.vision.image_size
  if what in TEXT_PARTS:
    longest, name = config.text.kinds[TEXT_PARTS[what]].length, config.text.tokenizer.partition(":")[0]
    preparation = {
      "tokenizer": TOKENIZER_RULES.get(name, name),
      "name": name,
      "start_id": model.tokenizer.start_id,
      "end_id": model.tokenizer.end_id,
      "pad_id": model.tokenizer.pad_id,
      "longest": longest,
      "rule": "start_id, the text, end_id, then padding; of a text that is too long keep the first ids and end_id",
    }
    return Part(text, {"tokens": (("batch", longest), "int32")}, "text_embedding", preparation)
  preparation: dict[str, Any] = {
    "color": "RGB",
    "size": side,
    "resize": config.resize if what == "image" else "squash",
    "resample": spec.interpolation,
    "mean": spec.mean,
    "std": spec.std,
    "fill": spec.fill,
    "rule": "levels 0..255; the graph normalises them",
  }
  functions: dict[str, Callable[..., Array]] = {"image": image, "dense": dense, "regions": regions}
  pixels: dict[str, tuple[Shape, str]] = {"pixels": (("batch", side, side, 3), "uint8")}
  if config.vision.takes_patches:
    budget = fixed_budget(model)
    for key in ("size", "resize", "fill"):
      del preparation[key]
    preparation |= {
      "max_patches": budget,
      "patch_size": config.vision.patch_size,
      "rule": "scaled to the largest grid of patches within max_patches, cut into patches row by row, each by row, "
      "column and channel; levels 0..255, which the graph normalises; padding is 0; grid is rows and columns",
    }
    shape: Shape = ("batch", budget, 3 * config.vision.patch_size**2)
    pixels = {"patches": (shape, "uint8"), "grid": (("batch", 2), "int32")}
    functions = {"image": patched_image, "dense": patched_dense, "regions": patched_regions}
  if what != "regions":
    return Part(functions[what], pixels, f"{what}_embedding", preparation)
  preparation["boxes"] = "x1 y1 x2 y2 as fractions of the picture's width and height; padding is 0 0 0 0"
  return Part(functions[what], pixels | {"boxes": (("batch", "boxes", 4), "float32")}, "region_embedding", preparation)


def fixed_budget(model: FGCLIP) -> int:
  """The patch budget of an exported graph: the one that was asked for, else the one in the config."""
  own = getattr(model.config.vision, "max_patches")  # noqa: B009 - no field of every image tower
  return model.max_patches if isinstance(model.max_patches, int) else own


def lay_out(patches: UInt8[Array, "B N X"], grid: Int[Array, "B 2"], spec: PixelSpec) -> PatchRows:
  """Padded pictures, each in a row of its own, as the tower reads them."""
  index = jnp.arange(patches.shape[1], dtype=jnp.int32)[None]
  height, width = grid[:, :1], grid[:, 1:]
  valid = index < height * width
  places = (index // width, index % width, height + 0 * index, width + 0 * index)
  place = jnp.stack([jnp.where(valid, each, empty) for each, empty in zip(places, (0, 0, 1, 1), strict=True)], axis=-1)
  segment = valid.astype(jnp.int32)
  return PatchRows(normalize_patches(patches, segment, spec), segment, place)


def _encode_text(network: DualEncoder, tokens: Int[Array, "B L"], kind: TextKind) -> Float[Array, "B D"]:
  """Embeddings of texts of one kind, each in a row of its own."""
  config = network.config.text
  position = jnp.zeros_like(tokens) + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None] + kind.first_position
  hidden = network.text(tokens, jnp.ones_like(tokens), position)
  # argmax takes the first: of the ids, or of the places of the end-of-text token
  end = jnp.argmax(tokens if config.end_id == 2 else (tokens == config.end_id).astype(jnp.int32), axis=1)
  if config.reads_padding:
    end = jnp.full_like(end, tokens.shape[1] - 1)
  read = jnp.take_along_axis(hidden, end[:, None, None], axis=1)[:, 0]
  return unit_length(network.project_text(network.text.final_norm(read), kind))


def sample(model: FGCLIP, part: Part, batch: int, seed: int = 0) -> list[np.ndarray]:
  """Random inputs of a part."""
  rng = np.random.default_rng(seed)
  free: dict[int | str, int] = {"batch": batch, "boxes": 3}
  arrays, shapes = [], part.inputs
  for name, (shape, dtype) in shapes.items():
    sizes = [int(free.get(size, size)) for size in shape]
    if name == "pixels":
      arrays.append(rng.integers(0, 256, sizes).astype(dtype))
    elif name == "patches":
      arrays.append(rng.integers(0, 256, sizes).astype(dtype))
    elif name == "grid":
      rows = rng.integers(1, int(shapes["patches"][0][1]) + 1, batch)
      arrays.append(np.stack([rows, int(shapes["patches"][0][1]) // rows], axis=1).astype(dtype))
    elif name == "boxes":
      arrays.append(np.sort(rng.random((*sizes[:2], 2, 2)), axis=2).reshape(sizes).astype(dtype))
    else:
      end = model.config.text.vocab_size - 1 if model.config.text.end_id == 2 else model.config.text.end_id
      tokens = rng.integers(1, end, sizes).astype(dtype)
      ends = rng.integers(1, sizes[1], batch)
      tokens[np.arange(batch), ends] = end
      if model.config.text.reads_padding:
        tokens[np.arange(sizes[1]) > ends[:, None]] = getattr(model.config.text, "pad_id")  # noqa: B009
      arrays.append(tokens)
  return arrays

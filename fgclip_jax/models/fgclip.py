"""The dual encoder: two towers, their projections and the temperatures, as FG-CLIP has them (arXiv 2505.05071)."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from fgclip_jax.models.config import ModelConfig, TextKind
from fgclip_jax.models.resnet import Statistics
from fgclip_jax.models.roi_align import roi_align, roi_align_patches
from fgclip_jax.models.siglip import NaflexTower, PatchRows, take_slots
from fgclip_jax.models.text_pooling import AskedTexts, TextPooling, ask_texts
from fgclip_jax.models.towers import IMAGE_TOWERS, TEXT_TOWERS, ImageTower
from fgclip_jax.models.transformer import Runtime, gradient_cached_map, linear


@flax.struct.dataclass
class Embeddings:
  """What the losses compare: unit-length float32 embeddings and masks. B images, K boxes each, H hard boxes.

  `long` is None for a plain CLIP; the region and hard-negative fields are None where K = 0. `captions` are C further
  captions of each picture, short or long, with their weights (0: there is none, and the embedding means nothing); None
  where the batch has no such sets. Equal numbers in `caption_id` stand for equal captions, as in `short_caption` and
  `long_caption`, which are None unless the batch has them.
  A hard box's first text is the true one, the others are its negatives; `hard_row` is its place among all B*K
  boxes. Equal numbers in `region_caption` stand for equal captions. `statistics` are the model's own, a tree like its
  parameters: BatchNorm's, moved by this batch; None where there are none to move.

  `conditioned_own` and `conditioned_other` are cosines by text-conditioned pooling: of texts with what each finds in
  the picture, k of its own captions and n of other pictures; None where they are not asked for.
  """

  image: Float[Array, "B D"]
  short: Float[Array, "B D"]
  long: Float[Array, "B D"] | None = None
  region_image: Float[Array, "B K D"] | None = None
  region_text: Float[Array, "B K D"] | None = None
  region_valid: Bool[Array, "B K"] | None = None
  region_caption: Int[Array, "B K"] | None = None
  hard_image: Float[Array, "H D"] | None = None
  hard_text: Float[Array, "H T D"] | None = None
  hard_valid: Bool[Array, "H T"] | None = None
  hard_row: Int[Array, "H"] | None = None
  captions: Float[Array, "B C D"] | None = None
  caption_weight: Float[Array, "B C"] | None = None
  caption_id: Int[Array, "B C"] | None = None
  short_caption: Int[Array, "B"] | None = None
  long_caption: Int[Array, "B"] | None = None
  statistics: Any = None
  conditioned_own: Float[Array, "B k"] | None = None
  conditioned_weight: Float[Array, "B k"] | None = None
  conditioned_other: Float[Array, "B n"] | None = None
  conditioned_valid: Bool[Array, "B n"] | None = None


def unit_length(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
  """x / |x| in float32; a vector shorter than 1e-12 becomes zero and has zero gradient."""
  x = x.astype(jnp.float32)
  square = jnp.sum(x * x, axis=-1, keepdims=True)
  counts = square > 1e-24
  return x * jnp.where(counts, jax.lax.rsqrt(jnp.where(counts, square, 1.0)), 0.0)


class DualEncoder(nnx.Module):
  """The model. Features are not normalised unless said; see `__call__` for what training compares."""

  def __init__(self, config: ModelConfig, runtime: Runtime = Runtime(), *, rngs: nnx.Rngs):
    self.config, self.runtime = config, runtime
    # the order in which modules are made decides which random numbers each of them draws
    self.vision: ImageTower | NaflexTower = IMAGE_TOWERS[config.vision.type](config.vision, runtime, rngs=rngs)
    self.text = TEXT_TOWERS[config.text.type](config.text, runtime, rngs=rngs)

    def projection(width, use_bias=False):
      return linear(width, config.embedding_width, width**-0.5, runtime.dtype, rngs, use_bias)

    if config.vision.has_projection:
      self.vision_projection = projection(config.vision.output_width, use_bias=config.vision.pools_by_projection)
    for name in dict.fromkeys(kind.projection for kind in config.text.kinds.values() if kind.projection):
      setattr(self, name, projection(config.text.width, config.text.projection_bias))
    first = dict(config.first_temperatures)
    if config.logit_bias is not None:
      first["bias"] = config.logit_bias
    self.temperature = nnx.Dict({name: nnx.Param(jnp.asarray(value, jnp.float32)) for name, value in first.items()})
    if config.text_pooling is not None:
      self.text_pooling = TextPooling(config.embedding_width, config.text_pooling, runtime, rngs=rngs)

  def image_features(
    self, image: Float[Array, "B S S 3"], keep: Int[Array, "B N"] | None = None
  ) -> tuple[Float[Array, "B D"], Float[Array, "B h w D"] | None]:
    """Features of whole images and of their patches (the dense ones, for regions).

    `keep` names the patches to look at, by number (patch dropout); there are then no dense features. A ValueError with
    a ResNet, which has no patches to drop.
    """
    return self._image_features(image, keep, train=False)[:2]

  def _image_features(
    self, image: Float[Array, "B S S 3"], keep: Int[Array, "B N"] | None, train: bool
  ) -> tuple[Float[Array, "B D"], Float[Array, "B h w D"] | None, Statistics]:
    pooled, dense, statistics = cast(ImageTower, self.vision)(image, keep, train)
    return self._project_image(pooled), None if dense is None else self._project_image(dense), statistics

  def _project_image(self, vectors: Float[Array, "*B W"]) -> Float[Array, "*B D"]:
    return self.vision_projection(vectors) if self.config.vision.has_projection else vectors

  def patch_features(
    self, rows: PatchRows, slot: Int[Array, "B P"], dense: bool = True
  ) -> tuple[Float[Array, "B D"], Float[Array, "B P D"] | None]:
    """`image_features` of pictures of any shape, for a model that takes patches.

    Args:
      rows: their packed patches.
      slot: where among the slots of all rows the patches of each picture lie, row by row over its grid; -1 beyond them.
      dense: False leaves the dense features out.

    Returns:
      The features of whole pictures, and of their patches; what lies beyond a picture's patches is of no meaning.
    """
    tower = cast(NaflexTower, self.vision)
    hidden = tower(rows)
    found = take_slots(tower.dense_features(hidden, rows.segment), slot) if dense else None
    return tower.pool(hidden, slot), found

  def text_features(
    self,
    tokens: Int[Array, "R L"],
    segment: Int[Array, "R L"],
    position: Int[Array, "R L"],
    row: Int[Array, "N"],
    end: Int[Array, "N"],
    kind: str | TextKind = "short",
  ) -> Float[Array, "N D"]:
    """Features of N captions that end at `[row, end]` of packed rows, all of one kind; not normalised.

    Args:
      tokens, segment, position: R rows of L slots, see `TextTower`.
      row, end: where each caption's end-of-text token is.
      kind: a name in `config.text.kinds`, or what is found there.
    """
    hidden = self.text(tokens, segment, position)
    return self.project_text(self.text.final_norm(hidden[row, end]), kind)

  def project_text(self, vectors: Float[Array, "*B W"], kind: str | TextKind) -> Float[Array, "*B D"]:
    """The text tower's vectors, read at the ends of captions of one kind, in the embedding space."""
    path = self.config.text.kinds[kind] if isinstance(kind, str) else kind
    return getattr(self, path.projection)(vectors) if path.projection else vectors

  def __call__(
    self,
    batch: dict[str, Array],
    keep: Int[Array, "B N"] | None = None,
    running_statistics: bool = False,
    conditioned_negatives: int | None = None,
  ) -> Embeddings:
    """Embeds a batch (see docs/design.md for its keys; images or patches already normalised floats).

    `keep` drops patches (see `image_features`); the batch must then be without regions. BatchNorm goes by the batch's
    own statistics (each micro-batch's, averaged in the end), or with `running_statistics` by the running ones.
    `conditioned_negatives` asks a model with text pooling for the cosines of each picture with its own captions and
    with so many of other pictures.
    """
    shards, per_shard = batch["boxes"].shape[:2]
    images = shards * per_shard
    regions = batch["boxes"].shape[2] if self.config.fine_grained else 0
    ends = {"short": batch["short_eot"]}
    if "long" in self.config.text.kinds:
      ends["long"] = batch["long_eot"]
    if regions:
      ends["region"] = batch["region_eot"]
      ends["hard"] = batch["hard_eot"]
    if "caption_eot" in batch:
      ends["caption"] = batch["caption_eot"]
    # the texts first, since they may ask the pictures
    read = self._read_ends(batch, ends)
    short = unit_length(self.project_text(read["short"], "short"))
    sets: dict[str, Any] = self._caption_sets(batch, read.get("caption"))
    asked = texts = None
    if conditioned_negatives is not None:
      asked = self._ask_texts(batch, short, sets, conditioned_negatives)
      texts = asked.text
    region_image: Any
    cosines: Any
    if self.config.vision.takes_patches:
      image, region_image, cosines, statistics = *self._encode_patches(batch, bool(regions), texts), {}
    else:
      image, region_image, cosines, statistics = self._encode_squares(
        batch, bool(regions), keep, texts, train=not running_statistics
      )
    embeddings = Embeddings(image=image, short=short, **sets)
    if statistics and not running_statistics:
      embeddings = dataclasses.replace(embeddings, statistics={"vision": jax.tree.map(lambda x: x.mean(0), statistics)})
    if "long" in self.config.text.kinds:
      embeddings = dataclasses.replace(embeddings, long=unit_length(self.project_text(read["long"], "long")))
    if asked is not None:
      own, other = jnp.split(cosines, [asked.weight.shape[1]], axis=1)
      embeddings = dataclasses.replace(
        embeddings,
        conditioned_own=own,
        conditioned_weight=asked.weight,
        conditioned_other=other,
        conditioned_valid=asked.valid,
      )
    if not regions:
      return embeddings

    # hard boxes name their box within their shard: gathered shard by shard, nothing crosses devices
    hard_box = jnp.maximum(batch["hard_box"], 0)
    by_shard = region_image.reshape(shards, per_shard * regions, -1)
    hard_image = jnp.take_along_axis(by_shard, hard_box[..., None], axis=1)
    first_row = jnp.arange(shards, dtype=hard_box.dtype)[:, None] * (per_shard * regions)
    hard_text = unit_length(self.project_text(read["hard"], "region"))
    return dataclasses.replace(
      embeddings,
      region_image=region_image,
      region_text=unit_length(self.project_text(read["region"], "region")).reshape(images, regions, -1),
      region_valid=(batch["region_eot"] >= 0).reshape(images, regions),
      region_caption=batch["region_caption"].reshape(images, regions),
      hard_image=hard_image.reshape(-1, hard_image.shape[-1]),
      hard_text=hard_text,
      hard_valid=((batch["hard_eot"] >= 0) & (batch["hard_box"] >= 0)[..., None]).reshape(-1, ends["hard"].shape[-1]),
      hard_row=(first_row + hard_box).reshape(-1),
    )

  def _caption_sets(
    self, batch: dict[str, Array], vectors: Float[Array, "B C W"] | None
  ) -> dict[str, Float[Array, "..."] | Int[Array, "..."]]:
    """The fields of `Embeddings` that describe sets of captions, as far as the batch has them."""
    found = {key: batch[key].reshape(-1) for key in ("short_caption", "long_caption") if key in batch}
    if vectors is None:
      return found
    features, kinds = self.project_text(vectors, "short"), self.config.text.kinds
    if "long" in kinds and kinds["long"].projection != kinds["short"].projection:
      # both projections of every caption: a set mixes the kinds, and a product is cheap beside the tower
      is_long = batch["caption_long"].reshape(*vectors.shape[:2], 1)
      features = jnp.where(is_long, self.project_text(vectors, "long"), features)
    fields = {key: batch[key].reshape(vectors.shape[:2]) for key in ("caption_weight", "caption_id")}
    return {"captions": unit_length(features), **fields, **found}

  def _ask_texts(
    self, batch: dict[str, Array], short: Float[Array, "B D"], sets: dict[str, Any], negatives: int
  ) -> AskedTexts:
    """The texts that each picture is compared with: its set of captions, or its short one, and those of others."""
    own, weight = sets.get("captions"), sets.get("caption_weight")
    if own is None or weight is None:
      own, weight = short[:, None], jnp.ones_like(short[:, :1])
    record = batch["repeated_record"].reshape(-1) if "repeated_record" in batch else None
    number = sets.get("short_caption")  # there where equal captions of different pictures are not to repel each other
    if number is not None:
      number = sets["caption_id"] if "caption_id" in sets else number[:, None]
    return ask_texts(own, weight, negatives, record, number)

  def text_cosines(
    self, patches: Float[Array, "B P D"], text: Float[Array, "B T D"], valid: Bool[Array, "B P"] | None = None
  ) -> Float[Array, "B T"]:
    """Cosines of texts with what each of them finds in its picture; arguments as of `TextPooling`.

    Patches may have any length, texts are of unit length.
    """

    def compare(patches, text, valid):
      found = unit_length(self.text_pooling(unit_length(patches), text, valid))
      return jnp.sum(found * text, axis=-1)

    # what is held for the backward pass are patches and texts, which are there anyway
    compare = compare if self.runtime.remat == "none" else jax.checkpoint(compare)
    return compare(patches, text, valid)

  def _encode_squares(
    self,
    batch: dict[str, Array],
    regions: bool,
    keep: Int[Array, "B N"] | None,
    texts: Float[Array, "B T D"] | None,
    train: bool,
  ) -> tuple:
    """Unit-length embeddings of the batch's square images and of their boxes, cosines with texts, and statistics.

    These are the tower's. What is not asked for is None.
    """
    shards, per_shard = batch["image"].shape[:2]

    def encode(image, boxes, keep, texts):
      pooled, dense, statistics = self._image_features(image, keep, train)
      for_each = jax.tree.map(lambda x: jnp.broadcast_to(x, (shards, *x.shape)), statistics)  # as parts are joined
      of_boxes = unit_length(roi_align(cast(Array, dense), boxes)) if regions else None
      cosines = None
      if texts is not None:
        patches = cast(Array, dense)
        cosines = self.text_cosines(patches.reshape(patches.shape[0], -1, patches.shape[-1]), texts)
      return unit_length(pooled), of_boxes, cosines, for_each

    folded = (batch[key].reshape(shards * per_shard, *batch[key].shape[2:]) for key in ("image", "boxes"))
    return gradient_cached_map(encode, self.runtime.micro_batches, shards, *folded, keep, texts)

  def _encode_patches(
    self, batch: dict[str, Array], regions: bool, texts: Float[Array, "B T D"] | None
  ) -> tuple[Array, Array | None, Array | None]:
    """Unit-length embeddings of pictures of any shape and of their boxes, and cosines with texts.

    The tower goes through rows; a picture is read from its slots, as a caption is from its end. These count within a
    shard, so that nothing crosses devices.
    """
    tower = cast(NaflexTower, self.vision)

    def encode(patches, segment, place):
      hidden = tower(PatchRows(patches, segment, place))
      return hidden, tower.dense_features(hidden, segment) if regions or texts is not None else None

    by_shard = self._encode_rows(encode, *(batch[key] for key in ("patches", "patch_segment", "patch_place")))

    def read(hidden, dense, slot, grid, boxes, texts):
      patches: Any = None if dense is None else take_slots(dense, slot)
      of_boxes = unit_length(roi_align_patches(patches, grid, boxes)) if regions else None
      cosines = None if texts is None else self.text_cosines(patches, texts, slot >= 0)
      return unit_length(tower.pool(hidden, slot)), of_boxes, cosines

    places = [batch[key] for key in ("patch_slot", "image_grid", "boxes")]
    by_picture = [*places, None if texts is None else texts.reshape(*places[0].shape[:2], *texts.shape[1:])]
    found = jax.vmap(read)(*by_shard, *by_picture)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)

  def _encode_rows(self, encode: Callable[..., Any], *arrays: Array) -> Any:
    """`encode` of a batch's packed rows, arrays [G, R, ...], in micro-batches; its results, [G, R or more, ...].

    Empty rows, all zeros, fill R up to a multiple of the micro-batches.
    """
    parts, (shards, rows) = self.runtime.micro_batches, arrays[0].shape[:2]
    rows += -rows % parts
    padded = (jnp.pad(x, ((0, 0), (0, rows - x.shape[1]), *[(0, 0)] * (x.ndim - 2))) for x in arrays)
    folded = (x.reshape(shards * rows, *x.shape[2:]) for x in padded)
    found = gradient_cached_map(encode, parts, shards, *folded)
    return jax.tree.map(lambda x: x.reshape(shards, rows, *x.shape[1:]), found)

  def _read_ends(self, batch: dict[str, Array], ends: dict[str, Int[Array, "G ..."]]) -> dict[str, Float[Array, "..."]]:
    """Encodes the batch's rows and reads, for each array of ends, the normed vectors: shard axis folded."""
    rows = self._encode_rows(self.text, *(batch[key] for key in ("tokens", "segment", "position")))
    shards = len(rows)
    hidden = rows.reshape(shards, -1, rows.shape[-1])
    flat = {name: end.reshape(shards, -1) for name, end in ends.items()}
    index = jnp.maximum(jnp.concatenate(list(flat.values()), axis=1), 0)
    vectors = self.text.final_norm(jnp.take_along_axis(hidden, index[..., None], axis=1))
    starts = list(itertools.accumulate(end.shape[1] for end in flat.values()))[:-1]
    parts = dict(zip(flat, jnp.split(vectors, starts, axis=1), strict=True))
    return {name: part.reshape(-1, *ends[name].shape[2:], part.shape[-1]) for name, part in parts.items()}

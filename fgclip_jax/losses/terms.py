"""The terms of the objective: each a function, and a line of `LOSS_TERMS` that declares what it needs.

To add a term, write its function here or in a file of its own, and enter it in `LOSS_TERMS`. Its weight is then a key
of the config section `objective` and its value the metric `loss_NAME`; the checks of a config and the counts of
floating-point operations follow from its declaration.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from fgclip_jax.losses.blockwise import FORMS, Axis
from fgclip_jax.losses.caption_set import caption_set_loss
from fgclip_jax.losses.contrastive import (
  contrast,
  hard_contrast_loss,
  hard_negative_loss,
  hard_rank_loss,
  text_intra_modal_loss,
)
from fgclip_jax.losses.text_conditioned import text_conditioned_loss
from fgclip_jax.models.fgclip import Embeddings

CONTRASTS = ("softmax", "sigmoid")
# What the published code of FG-CLIP 2 does where a device, a contrast group of ours, has little to contrast, by the
# name that switches it on, so that a run can be compared. Without, every term is computed with what there is.
QUIRKS = {
  "few_regions": "a group of fewer than ten regions counts as zero in all region terms",
  "one_hard_box": "a group with a single hard box counts as zero in the three hard terms",
  "empty_groups": "a group without a hard box counts in the mean that moves the margin, with the margin as it is",
}

# what a model or a batch may lack and a term may need: the field of `Embeddings` that is None without it
NEEDS = {"long": "long", "regions": "region_image", "captions": "captions", "text_pooling": "conditioned_own"}
FINE_GRAINED = {"long", "regions"}  # of these, what a plain CLIP lacks
PresentEmbeddings = Any  # `Embeddings` in which what the term needs is not None, which no type can say


@dataclasses.dataclass(frozen=True)
class Options:
  """How terms are computed: the keys of the config section `objective` that are not weights.

  Attributes:
    regional_group: images per contrast group of the region terms (each is averaged within a group, then over
      groups); None is the whole batch. The published code contrasts within each device's own batch, 512 images: set
      512 to get its objective on any mesh.
    regional_mask_identical: regions with identical captions do not repel each other.
    contrast: of the global terms and the regional one: `softmax`, CLIP's InfoNCE, or `sigmoid`, SigLIP's loss of
      single pairs, whose bias is learned beside the temperatures.
    form: how these are computed, which changes no result: `dense`, `all_gather`, `chunked`, `ring` (see
      `fgclip_jax/losses/blockwise.py`), or `auto`, which goes by the number of rows and devices.
    chunk: how many columns of logits the forms `chunked` and `ring` hold at a time.
    regional_contrast: `softmax` or `sigmoid` for the regional term; None: as `contrast`.
    quirks: names of `QUIRKS`: what to do as the published code of FG-CLIP 2 does.
    mask_identical: equal captions of different pictures do not repel each other in the global terms and `caption_set`.
    conditioned_negatives: how many captions of other pictures `text_conditioned` compares each picture with.

  Raises:
    ValueError: an impossible value; the message names the key.
  """

  regional_group: int | None = None
  regional_mask_identical: bool = False
  contrast: str = "softmax"
  form: str = "auto"
  chunk: int = 1024
  regional_contrast: str | None = None
  quirks: tuple[str, ...] = ()
  mask_identical: bool = False
  conditioned_negatives: int = 8

  def __post_init__(self):
    if self.form == "rows":  # its name before it was called what it does
      print("objective.form=rows is now called all_gather", flush=True)
      object.__setattr__(self, "form", "all_gather")
    for name, choices in (("contrast", CONTRASTS), ("form", ("auto", *FORMS))):
      if getattr(self, name) not in choices:
        raise ValueError(f"objective.{name} must be one of {choices}, got {getattr(self, name)!r}")
    if self.chunk < 1:
      raise ValueError(f"objective.chunk must be at least 1, got {self.chunk}")
    if self.conditioned_negatives < 1:
      raise ValueError(f"objective.conditioned_negatives must be at least 1, got {self.conditioned_negatives}")
    if self.regional_contrast not in (None, *CONTRASTS):
      raise ValueError(f"objective.regional_contrast must be one of {CONTRASTS}, got {self.regional_contrast!r}")
    if unknown := [quirk for quirk in self.quirks if quirk not in QUIRKS]:
      raise ValueError(f"objective.quirks may hold {', '.join(QUIRKS)}, got {unknown[0]!r}")

  @property
  def needs_bias(self) -> bool:
    """Whether a term is SigLIP's, which needs a learned bias of the logits."""
    return "sigmoid" in (self.contrast, self.regional_contrast)


@dataclasses.dataclass(frozen=True)
class Context:
  """What a term gets besides embeddings and its scale; inside `jax.shard_map` the arrays are one device's rows.

  Attributes:
    options: the objective.
    bias: of the sigmoid contrast; None where no term is one.
    groups: how many groups there are.
    local_groups: whether no group is spread over several devices.
    axis: the mesh axes that the batch is split over; None: the arrays are the whole batch.
    region_group, hard_group: the contrast group of each region, int [B, K], and of each hard box, int [H]; None without
      regions.
    record, picture: of each image, its record and its number in the whole batch, int [B]; None: every image is of
      another record.
    hard_record, hard_picture: the same of each hard box, int [H].
    margin: of `hard_rank`, in units of the logits.
  """

  options: Options
  bias: Float[Array, ""] | None
  groups: int
  local_groups: bool
  axis: Axis
  region_group: Any = None  # Int[Array, "B K"]
  hard_group: Any = None  # Int[Array, "H"]
  record: Any = None  # Int[Array, "B"]
  picture: Any = None  # Int[Array, "B"]
  hard_record: Any = None  # Int[Array, "H"]
  hard_picture: Any = None  # Int[Array, "H"]
  margin: Any = 0.0  # Float[Array, ""]

  def contrast(
    self,
    image: Float[Array, "N D"],
    text: Float[Array, "N D"],
    scale: Float[Array, ""],
    kind: str | None = None,
    **masks: Any,
  ):
    """`contrastive.contrast` in the form that the options choose; `masks` are its arguments from `valid` on.

    `kind` is one of `CONTRASTS`, by default that of the options.

    Where rows are the batch's images, or the same number of regions of each, in the batch's order, those of one record
    do not repel each other. For other rows give `record` and `picture` of each.
    """
    bias = self.bias if (kind or self.options.contrast) == "sigmoid" else None
    masks = self.records(len(image)) | masks
    return contrast(image, text, scale, bias, form=self.options.form, chunk=self.options.chunk, axis=self.axis, **masks)

  def records(self, rows: int) -> dict[str, Any]:
    """`record` and `picture` of rows that are the batch's images, or the same number of regions of each."""
    if self.record is None or rows % len(self.record):
      return {}
    each = rows // len(self.record)
    return {"record": jnp.repeat(self.record, each), "picture": jnp.repeat(self.picture, each)}


def _identical(e: PresentEmbeddings, name: str, context: Context) -> Any:
  """The field that numbers captions, equal ones alike, if they shall not repel each other; else None."""
  if not context.options.mask_identical:
    return None
  if getattr(e, name) is None:
    raise ValueError(f"objective.mask_identical needs {name} in the batch, numbers that are equal for equal captions")
  return getattr(e, name)


def global_long(e: PresentEmbeddings, scale: Float[Array, ""], context: Context) -> Float[Array, ""]:
  """Images against their long captions."""
  return context.contrast(e.image, e.long, scale, caption=_identical(e, "long_caption", context))


def global_short(e: PresentEmbeddings, scale: Float[Array, ""], context: Context) -> Float[Array, ""]:
  """Images against their short captions."""
  return context.contrast(e.image, e.short, scale, caption=_identical(e, "short_caption", context))


def regional(e: PresentEmbeddings, scale: Float[Array, ""], context: Context) -> Float[Array, ""]:
  """Regions against their captions, within each contrast group."""
  width = e.image.shape[-1]
  return context.contrast(
    e.region_image.reshape(-1, width),
    e.region_text.reshape(-1, width),
    scale,
    context.options.regional_contrast,
    valid=e.region_valid.reshape(-1),
    group=context.region_group.reshape(-1),
    groups=context.groups,
    caption=e.region_caption.reshape(-1) if context.options.regional_mask_identical else None,
    local_groups=context.local_groups,
  )


def hard_negative(e: PresentEmbeddings, scale: Float[Array, ""], context: Context) -> Float[Array, ""]:
  """Boxes against their true caption and its hard negatives."""
  return hard_negative_loss(
    e.hard_image, e.hard_text, e.hard_valid, context.hard_group, scale, groups=context.groups, axis=context.axis
  )


def text_intra_modal(e: PresentEmbeddings, scale: None, context: Context) -> Float[Array, ""]:
  """Captions of regions against those most like them, within each contrast group; there is no temperature."""
  text = e.region_text.reshape(-1, e.image.shape[-1])
  return text_intra_modal_loss(
    text,
    e.region_valid.reshape(-1),
    context.region_group.reshape(-1),
    groups=context.groups,
    local_groups=context.local_groups,
    chunk=context.options.chunk,
    axis=context.axis,
    **context.records(len(text)),
  )


def hard_contrast(e: PresentEmbeddings, scale: Float[Array, ""], context: Context) -> Float[Array, ""]:
  """Hard boxes against the captions and hard negatives of their contrast group."""
  return hard_contrast_loss(
    e.hard_image,
    e.hard_text,
    e.hard_valid,
    context.hard_group,
    scale,
    groups=context.groups,
    record=context.hard_record,
    picture=context.hard_picture,
    local_groups=context.local_groups,
    form=context.options.form,
    chunk=context.options.chunk,
    axis=context.axis,
  )


def hard_rank(e: PresentEmbeddings, scale: Float[Array, ""], context: Context) -> Float[Array, ""]:
  """Boxes prefer their true caption to each of its hard negatives by the margin."""
  return hard_rank_loss(
    e.hard_image,
    e.hard_text,
    e.hard_valid,
    context.hard_group,
    scale,
    context.margin,
    groups=context.groups,
    axis=context.axis,
  )


def caption_set(e: PresentEmbeddings, scale: Float[Array, ""], context: Context) -> Float[Array, ""]:
  """Images against all captions of their sets."""
  return caption_set_loss(
    e.image,
    e.captions,
    e.caption_weight,
    scale,
    context.bias if context.options.contrast == "sigmoid" else None,
    record=context.record,
    caption=_identical(e, "caption_id", context),
    form=context.options.form,
    chunk=context.options.chunk,
    axis=context.axis,
  )


def text_conditioned(e: PresentEmbeddings, scale: Float[Array, ""], context: Context) -> Float[Array, ""]:
  """Pictures, as each text sees them, against their captions and sampled ones of other pictures."""
  bias = context.bias if context.options.contrast == "sigmoid" else None
  fields = e.conditioned_own, e.conditioned_weight, e.conditioned_other, e.conditioned_valid
  return text_conditioned_loss(*fields, scale, bias, axis=context.axis)


@dataclasses.dataclass(frozen=True)
class Term:
  """A term of the objective.

  Attributes:
    function: computes it from the embeddings, its scale (`exp` of its temperature) and the context.
    weight: its default weight, which is FG-CLIP's stage 2.
    temperature: the log scale it uses, one of the model's `temperature` parameters; None: none.
    needs: of `NEEDS`, what it cannot do without. Where the embeddings lack it, the term is not computed.
    captions: the key of the batch with the ends of the captions that it compares.
    logits: how many logits it computes for a number of captions (each is a product of the embeddings' width).
    for_each_image: these are the logits of one image of the batch; by default they are all.
  """

  function: Callable[[PresentEmbeddings, Any, Context], Float[Array, ""]]
  weight: float
  temperature: str | None
  needs: tuple[str, ...]
  captions: str
  logits: Callable[[int], int]
  for_each_image: bool = False

  @property
  def needs_fgclip(self) -> bool:
    """Whether a plain CLIP lacks what the term needs."""
    return bool(FINE_GRAINED & set(self.needs))

  def count_logits(self, captions: int, images: int) -> int:
    """How many logits it computes for a batch with so many of its captions."""
    return self.logits(captions) * (images if self.for_each_image else 1)

  def is_possible(self, embeddings: Embeddings) -> bool:
    """Whether the embeddings hold what the term needs."""
    return all(getattr(embeddings, NEEDS[need]) is not None for need in self.needs)


def _square(captions: int) -> int:
  return 2 * captions**2  # once by row and once by column, as the form `all_gather` computes them


def _twice(captions: int) -> int:
  return 2 * captions


def _each(captions: int) -> int:
  return captions


def _once(captions: int) -> int:
  return captions**2


def _hard(captions: int) -> int:
  return 2 * captions**2 // 11  # a box for every eleven: ten negatives and the true caption


# The order decides the order of summation, and so the last bits of the loss: add new terms at the end.
LOSS_TERMS = {
  "global_long": Term(global_long, 1.0, "global", ("long",), "long_eot", _square),
  "global_short": Term(global_short, 1.0, "global", (), "short_eot", _square),
  "regional": Term(regional, 0.1, "regional", ("regions",), "region_eot", _square),
  "hard_negative": Term(hard_negative, 0.5, "hard_negative", ("regions",), "hard_eot", _each),
  "text_intra_modal": Term(text_intra_modal, 0.0, None, ("regions",), "region_eot", _once),
  "hard_contrast": Term(hard_contrast, 0.0, "hard_negative", ("regions",), "hard_eot", _hard),
  "hard_rank": Term(hard_rank, 0.0, "hard_negative", ("regions",), "hard_eot", _each),
  "caption_set": Term(caption_set, 0.0, "global", ("captions",), "caption_eot", _twice, for_each_image=True),
  "text_conditioned": Term(text_conditioned, 0.0, "global", ("text_pooling",), "short_eot", _each),
}

"""FG-CLIP's training objective: the weighted sum of its terms, on one device or over a mesh."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from fgclip_jax.losses.blockwise import FORMS
from fgclip_jax.losses.contrastive import contrast, hard_negative_loss
from fgclip_jax.losses.pairs import Axis
from fgclip_jax.models.fgclip import Embeddings

CONTRASTS = ("softmax", "sigmoid")


@dataclasses.dataclass(frozen=True)
class Objective:
  """The weights of the terms and their options; the defaults are FG-CLIP's stage 2.

  Attributes:
    global_long, global_short, regional, hard_negative: weight of each term; a term of weight 0 is not computed.
    regional_group: images per contrast group of the two region terms (each is averaged within a group, then
      over groups); None is the whole batch. The published code contrasts within each device's own batch, 512
      images: set 512 to get its objective on any mesh.
    regional_mask_identical: regions with identical captions do not repel each other.
    contrast: of the global terms and the regional one: `softmax`, CLIP's InfoNCE, or `sigmoid`, SigLIP's loss of
      single pairs, whose bias is learned beside the temperatures.
    form: how these are computed, which changes no result: `dense`, `rows`, `chunked`, `ring` (see
      `fgclip_jax/losses/forms.py`), or `auto`, which goes by the number of rows and devices.
    chunk: how many columns of logits the forms `chunked` and `ring` hold at a time.
  """

  global_long: float = 1.0
  global_short: float = 1.0
  regional: float = 0.1
  hard_negative: float = 0.5
  regional_group: int | None = None
  regional_mask_identical: bool = False
  contrast: str = "softmax"
  form: str = "auto"
  chunk: int = 1024

  def __post_init__(self):
    for name, choices in (("contrast", CONTRASTS), ("form", ("auto", *FORMS))):
      if getattr(self, name) not in choices:
        raise ValueError(f"objective.{name} must be one of {choices}, got {getattr(self, name)!r}")
    if self.chunk < 1:
      raise ValueError(f"objective.chunk must be at least 1, got {self.chunk}")

  @property
  def needs_regions(self) -> bool:
    """Whether any term looks at regions."""
    return bool(self.regional or self.hard_negative)


def objective_terms(
  embeddings: Embeddings,
  temperature: Mapping[str, Float[Array, ""]],
  objective: Objective,
  mesh: Mesh | None = None,
  batch_axes: tuple[str, ...] = ("data", "fsdp"),
) -> dict[str, Float[Array, ""]]:
  """Computes the terms, unweighted, and their weighted sum `total`.

  Args:
    embeddings: of the whole batch; under a mesh, sharded over `batch_axes` along their first axis.
    temperature: log scales `global`, and for the region terms `regional`, `hard_negative`; for the sigmoid contrast
      also its `bias`.
    objective: the weights and options.
    mesh: where the losses are computed with local rows; None computes on the whole arrays.
    batch_axes: the axes of the mesh that the batch is split over.

  Raises:
    ValueError: `regional_group` does not divide the number of images, or the sigmoid contrast has no bias.
  """
  if objective.contrast == "sigmoid" and "bias" not in temperature:
    raise ValueError("the sigmoid contrast needs temperature/bias: give the model a logit_bias")
  images = embeddings.image.shape[0]
  group = objective.regional_group or images
  if images % group:
    raise ValueError(f"regional_group {group} must divide the batch of {images} images")
  inputs = {"embeddings": embeddings}
  if embeddings.region_image is not None:
    boxes = embeddings.region_image.shape[1]
    inputs["region_group"] = jnp.repeat(jnp.arange(images) // group, boxes).reshape(images, boxes)
    inputs["hard_group"] = embeddings.hard_row // (boxes * group)
  scales = {name: jnp.exp(value) for name, value in temperature.items() if name != "bias"}
  bias = temperature["bias"] if objective.contrast == "sigmoid" else None
  if mesh is None:
    return _terms(inputs, scales, bias, objective, images // group, local_groups=True, axis=None)
  shards = 1
  for axis in batch_axes:
    shards *= mesh.shape[axis]
  local_groups = (images // shards) % group == 0
  local = functools.partial(
    _terms, objective=objective, groups=images // group, local_groups=local_groups, axis=batch_axes
  )
  split, everywhere = PartitionSpec(batch_axes), PartitionSpec()
  sharded = jax.shard_map(local, mesh=mesh, in_specs=(split, everywhere, everywhere), out_specs=everywhere)
  return sharded(inputs, scales, bias)


def _terms(inputs, scales, bias, objective: Objective, groups: int, local_groups: bool, axis: Axis):
  e: Embeddings = inputs["embeddings"]
  terms = {}
  term = functools.partial(contrast, form=objective.form, chunk=objective.chunk, axis=axis)
  if objective.global_long and e.long is not None:
    terms["global_long"] = term(e.image, e.long, scales["global"], bias)
  if objective.global_short:
    terms["global_short"] = term(e.image, e.short, scales["global"], bias)
  if objective.regional and e.region_image is not None:
    width = e.image.shape[-1]
    terms["regional"] = term(
      e.region_image.reshape(-1, width),
      e.region_text.reshape(-1, width),
      scales["regional"],
      bias,
      valid=e.region_valid.reshape(-1),
      group=inputs["region_group"].reshape(-1),
      groups=groups,
      caption=e.region_caption.reshape(-1) if objective.regional_mask_identical else None,
      local_groups=local_groups,
    )
  if objective.hard_negative and e.hard_image is not None:
    terms["hard_negative"] = hard_negative_loss(
      e.hard_image, e.hard_text, e.hard_valid, inputs["hard_group"], scales["hard_negative"], groups=groups, axis=axis
    )
  total = sum((getattr(objective, name) * value for name, value in terms.items()), jnp.zeros((), e.image.dtype))
  return {"total": total, **terms}

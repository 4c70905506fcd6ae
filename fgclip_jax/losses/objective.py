"""FG-CLIP's training objective: the weighted sum of its terms, on one device or over a mesh."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from fgclip_jax.losses.contrastive import Axis, hard_negative_loss, info_nce, regional_info_nce
from fgclip_jax.models.fgclip import Embeddings


@dataclasses.dataclass(frozen=True)
class Objective:
  """The weights of the terms and their options; the defaults are FG-CLIP's stage 2.

  Attributes:
    global_long, global_short, regional, hard_negative: weight of each term; a term of weight 0 is not computed.
    regional_group: images per contrast group of the two region terms (each is averaged within a group, then
      over groups); None is the whole batch. The published code contrasts within each device's own batch, 512
      images: set 512 to get its objective on any mesh.
    regional_mask_identical: regions with identical captions do not repel each other.
  """

  global_long: float = 1.0
  global_short: float = 1.0
  regional: float = 0.1
  hard_negative: float = 0.5
  regional_group: int | None = None
  regional_mask_identical: bool = False

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
    temperature: log scales `global`, and for the region terms `regional`, `hard_negative`.
    mesh: where the losses are computed with local rows; None computes on the whole arrays.

  Raises:
    ValueError: `regional_group` does not divide the number of images.
  """
  images = embeddings.image.shape[0]
  group = objective.regional_group or images
  if images % group:
    raise ValueError(f"regional_group {group} must divide the batch of {images} images")
  inputs = {"embeddings": embeddings}
  if embeddings.region_image is not None:
    boxes = embeddings.region_image.shape[1]
    inputs["region_group"] = jnp.repeat(jnp.arange(images) // group, boxes).reshape(images, boxes)
    inputs["hard_group"] = embeddings.hard_row // (boxes * group)
  scales = {name: jnp.exp(value) for name, value in temperature.items()}
  if mesh is None:
    return _terms(inputs, scales, objective, images // group, local_groups=True, axis=None)
  shards = 1
  for axis in batch_axes:
    shards *= mesh.shape[axis]
  local_groups = (images // shards) % group == 0
  local = functools.partial(
    _terms, objective=objective, groups=images // group, local_groups=local_groups, axis=batch_axes
  )
  spec = PartitionSpec(batch_axes)
  return jax.shard_map(local, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=PartitionSpec())(inputs, scales)


def _terms(inputs, scales, objective: Objective, groups: int, local_groups: bool, axis: Axis):
  e: Embeddings = inputs["embeddings"]
  terms = {}
  if objective.global_long and e.long is not None:
    terms["global_long"] = info_nce(e.image, e.long, scales["global"], axis=axis)
  if objective.global_short:
    terms["global_short"] = info_nce(e.image, e.short, scales["global"], axis=axis)
  if objective.regional and e.region_image is not None:
    width = e.image.shape[-1]
    terms["regional"] = regional_info_nce(
      e.region_image.reshape(-1, width),
      e.region_text.reshape(-1, width),
      e.region_valid.reshape(-1),
      inputs["region_group"].reshape(-1),
      scales["regional"],
      groups=groups,
      caption=e.region_caption.reshape(-1) if objective.regional_mask_identical else None,
      local_groups=local_groups,
      axis=axis,
    )
  if objective.hard_negative and e.hard_image is not None:
    terms["hard_negative"] = hard_negative_loss(
      e.hard_image, e.hard_text, e.hard_valid, inputs["hard_group"], scales["hard_negative"], groups=groups, axis=axis
    )
  total = sum((getattr(objective, name) * value for name, value in terms.items()), jnp.zeros((), e.image.dtype))
  return {"total": total, **terms}

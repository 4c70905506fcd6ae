"""FG-CLIP's training objective: the weighted sum of its terms, on one device or over a mesh."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from fgclip_jax.losses.blockwise import Axis
from fgclip_jax.losses.groups import as_published, make_groups
from fgclip_jax.losses.terms import LOSS_TERMS, Context, Options
from fgclip_jax.models.fgclip import Embeddings

_Weights = dataclasses.make_dataclass(
  "_Weights", [(name, float, term.weight) for name, term in LOSS_TERMS.items()], frozen=True
)


@dataclasses.dataclass(frozen=True)
class Objective(Options, _Weights):
  """The weight of each term of `LOSS_TERMS` by its name, and the `Options`; the defaults are FG-CLIP's stage 2.

  L = sum over terms of weight * term: 1 global_long + 1 global_short + 0.1 regional + 0.5 hard_negative. A term of
  weight 0 is not computed. FG-CLIP 2's stage 2 (arXiv 2510.10921) is 1 global_long + 1 global_short, by the sigmoid
  contrast, + 0.2 regional, by softmax, + 0.1 text_intra_modal + 0.3 hard_contrast + 1.5 hard_negative + 0.2 hard_rank.
  """

  @property
  def weights(self) -> dict[str, float]:
    """The weight of each term, those of weight 0 included, in the order of `LOSS_TERMS`."""
    return {name: getattr(self, name) for name in LOSS_TERMS}

  @property
  def needs(self) -> set[str]:
    """What the terms need that have a weight: some of `terms.NEEDS`."""
    return {need for name, weight in self.weights.items() if weight for need in LOSS_TERMS[name].needs}

  @property
  def needs_regions(self) -> bool:
    """Whether any term looks at regions."""
    return "regions" in self.needs

  @property
  def needs_margin(self) -> bool:
    """Whether a term has the margin that moves from step to step."""
    return self.hard_rank != 0

  @property
  def counts_rows(self) -> bool:
    """Whether steps count what a batch holds for the region terms: with those that few rows make a special case of."""
    return any((self.text_intra_modal, self.hard_contrast, self.hard_rank))


def objective_terms(
  embeddings: Embeddings,
  temperature: Mapping[str, Float[Array, ""]],
  objective: Objective,
  mesh: Mesh | None = None,
  batch_axes: tuple[str, ...] = ("data", "fsdp"),
  record: Int[Array, "B"] | None = None,
  margin: Float[Array, ""] | None = None,
) -> dict[str, Float[Array, ""]]:
  """Computes the terms, unweighted, and their weighted sum `total`.

  Args:
    embeddings: of the whole batch; under a mesh, sharded over `batch_axes` along their first axis.
    temperature: log scales `global`, and for the region terms `regional`, `hard_negative`; for the sigmoid contrast
      also its `bias`.
    objective: the weights and options.
    mesh: where the losses are computed with local rows; None computes on the whole arrays.
    batch_axes: the axes of the mesh that the batch is split over.
    record: of each image, the record it is of; given, images of one record are not each other's negatives, nor are
      their regions. None: all images count as different ones.
    margin: of the term `hard_rank`, in units of the logits; None: 0, with which it begins.

  Raises:
    ValueError: `regional_group` does not divide the number of images, or the sigmoid contrast has no bias.
  """
  if objective.needs_bias and "bias" not in temperature:
    raise ValueError("the sigmoid contrast needs temperature/bias: give the model a logit_bias")
  # Groups are numbered here, where the batch is whole: inside `shard_map` a device does not know its rows' numbers.
  groups = make_groups(embeddings, objective)
  images = embeddings.image.shape[0]
  inputs: dict[str, Any] = {}
  if record is not None:
    inputs |= {"record": record, "picture": jnp.arange(images, dtype=jnp.int32)}
  if groups is not None:
    embeddings = as_published(embeddings, groups, objective.quirks)
    inputs |= {"region_group": groups.region, "hard_group": groups.hard}
    if record is not None:
      hard_picture = cast(Array, embeddings.hard_row) // groups.region.shape[1]
      inputs |= {"hard_picture": hard_picture, "hard_record": record[hard_picture]}
  inputs["embeddings"] = embeddings
  scales = {name: jnp.exp(value) for name, value in temperature.items() if name != "bias"}
  if margin is not None:
    scales["margin"] = jax.lax.stop_gradient(margin)
  bias = temperature["bias"] if objective.needs_bias else None
  group = objective.regional_group or images
  if mesh is None:
    return _terms(inputs, scales, bias, objective, images // group, local_groups=True, axis=None)
  shards = 1
  for axis in batch_axes:
    shards *= mesh.shape[axis]
  # A device that holds whole groups needs no other device's regions, and its blocks of logits are that much smaller.
  local_groups = (images // shards) % group == 0
  local = functools.partial(
    _terms, objective=objective, groups=images // group, local_groups=local_groups, axis=batch_axes
  )
  split, everywhere = PartitionSpec(batch_axes), PartitionSpec()
  sharded = jax.shard_map(local, mesh=mesh, in_specs=(split, everywhere, everywhere), out_specs=everywhere)
  return sharded(inputs, scales, bias)


def _terms(inputs, scales, bias, objective: Objective, groups: int, local_groups: bool, axis: Axis):
  inputs = dict(inputs)
  embeddings: Embeddings = inputs.pop("embeddings")
  context = Context(
    objective,
    bias,
    groups=groups,
    local_groups=local_groups,
    axis=axis,
    margin=scales.get("margin", 0.0),
    **inputs,
  )
  values = {}
  for name, term in LOSS_TERMS.items():
    if getattr(objective, name) and term.is_possible(embeddings):
      scale = None if term.temperature is None else scales[term.temperature]
      values[name] = term.function(embeddings, scale, context)
  zero = jnp.zeros((), embeddings.image.dtype)
  total = sum((getattr(objective, name) * value for name, value in values.items()), zero)
  return {"total": total, **values}

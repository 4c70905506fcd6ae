"""The contrast groups of region terms: which rows are of which group, and what a group holds.

All of it is computed where the batch is whole, outside `jax.shard_map`: a few small integers for each box.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fgclip_jax.losses.contrastive import MOST_ALIKE, has_negatives
from fgclip_jax.losses.terms import Options
from fgclip_jax.models.fgclip import Embeddings


class Groups(NamedTuple):
  """How many contrast groups there are, and the group of each region and of each hard box."""

  count: int
  region: Int[Array, "B K"]
  hard: Int[Array, "H"]


def make_groups(embeddings: Embeddings, options: Options) -> Groups | None:
  """The groups of `options.regional_group` successive images; None without regions.

  Raises:
    ValueError: `regional_group` does not divide the number of images.
  """
  images = embeddings.image.shape[0]
  size = options.regional_group or images
  if images % size:
    raise ValueError(f"regional_group {size} must divide the batch of {images} images")
  if embeddings.region_image is None or embeddings.hard_row is None:
    return None
  boxes = embeddings.region_image.shape[1]
  region = jnp.repeat(jnp.arange(images) // size, boxes).reshape(images, boxes)
  return Groups(images // size, region, embeddings.hard_row // (boxes * size))


def rows_by_group(embeddings: Embeddings, groups: Groups) -> tuple[Int[Array, "G"], Int[Array, "G"]]:
  """The number of regions of each group, and of hard boxes with a negative."""
  assert embeddings.region_valid is not None and embeddings.hard_valid is not None  # else there are no groups
  rows = embeddings.region_valid.reshape(-1), groups.region.reshape(-1)
  hard = has_negatives(embeddings.hard_valid), groups.hard
  regions, hard = (jax.ops.segment_sum(valid.astype(jnp.int32), group, groups.count) for valid, group in (rows, hard))
  return regions, hard


def count_rows(embeddings: Embeddings, options: Options) -> dict[str, Float[Array, ""]]:
  """What a batch holds for the region terms, as metrics; empty without regions.

  `regions`, `hard_boxes`: in the whole batch. `groups_few_regions`: contrast groups of fewer than ten regions, whose
  captions `text_intra_modal` fills up with zeros. `groups_no_hard_box`: groups that count as zero in the hard terms.
  """
  groups = make_groups(embeddings, options)
  if groups is None:
    return {}
  regions, hard = rows_by_group(embeddings, groups)
  counts = {
    "regions": regions,
    "hard_boxes": hard,
    "groups_few_regions": regions < MOST_ALIKE,
    "groups_no_hard_box": hard == 0,
  }
  return {name: jnp.sum(count).astype(jnp.float32) for name, count in counts.items()}


def as_published(embeddings: Embeddings, groups: Groups, quirks: tuple[str, ...]) -> Embeddings:
  """The embeddings without the rows that the published code drops; see `terms.QUIRKS`."""
  if not quirks:
    return embeddings
  regions, hard = rows_by_group(embeddings, groups)
  keep_regions = regions >= MOST_ALIKE if "few_regions" in quirks else jnp.ones(groups.count, bool)
  keep_hard = keep_regions & (hard != 1) if "one_hard_box" in quirks else keep_regions
  assert embeddings.region_valid is not None and embeddings.hard_valid is not None  # else there are no groups
  return dataclasses.replace(
    embeddings,
    region_valid=embeddings.region_valid & keep_regions[groups.region],
    hard_valid=embeddings.hard_valid & keep_hard[groups.hard][:, None],
  )

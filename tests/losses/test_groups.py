"""Contrast groups: which rows they hold, what is counted, and what the published code drops."""

import jax.numpy as jnp
import numpy as np
import pytest

from fgclip_jax.losses.groups import as_published, count_rows, make_groups
from fgclip_jax.losses.objective import Objective
from fgclip_jax.models.fgclip import Embeddings

IMAGES, BOXES, WIDTH = 4, 6, 2


def batch(regions=(6, 6, 3, 0), hard=(2, 0, 1, 0)) -> Embeddings:
  """Images with these numbers of regions, and of regions that have a negative."""
  rows = IMAGES * BOXES
  hard_row = np.zeros(rows, np.int32)
  hard_valid = np.zeros((rows, 2), bool)
  boxes = [image * BOXES + box for image, count in enumerate(hard) for box in range(count)]
  hard_row[: len(boxes)], hard_valid[: len(boxes)] = boxes, True
  return Embeddings(
    image=jnp.ones((IMAGES, WIDTH)),
    short=jnp.ones((IMAGES, WIDTH)),
    region_image=jnp.ones((IMAGES, BOXES, WIDTH)),
    region_text=jnp.ones((IMAGES, BOXES, WIDTH)),
    region_valid=jnp.asarray(np.arange(BOXES) < np.asarray(regions)[:, None]),
    hard_image=jnp.ones((rows, WIDTH)),
    hard_text=jnp.ones((rows, 2, WIDTH)),
    hard_valid=jnp.asarray(hard_valid),
    hard_row=jnp.asarray(hard_row),
  )


def kept(quirks, **counts):
  """Regions of each image, and hard boxes, that are left."""
  e = batch(**counts)
  groups = make_groups(e, Objective(regional_group=2))
  left = as_published(e, groups, quirks)
  return np.asarray(left.region_valid).sum(axis=1).tolist(), int(np.asarray(left.hard_valid[:, 0]).sum())


def test_groups_are_of_successive_images():
  groups = make_groups(batch(), Objective(regional_group=2))
  assert groups.count == 2 and groups.region[:, 0].tolist() == [0, 0, 1, 1] and groups.hard[:3].tolist() == [0, 0, 1]
  assert make_groups(batch(), Objective()).count == 1
  assert make_groups(Embeddings(image=jnp.eye(2), short=jnp.eye(2)), Objective()) is None
  with pytest.raises(ValueError, match="regional_group 3 must divide the batch of 4 images"):
    make_groups(batch(), Objective(regional_group=3))


def test_what_a_batch_holds_is_counted():
  counts = {name: float(value) for name, value in count_rows(batch(), Objective(regional_group=2)).items()}
  assert counts == {"regions": 15, "hard_boxes": 3, "groups_few_regions": 1, "groups_no_hard_box": 0}
  counts = count_rows(batch(hard=(0, 0, 1, 0)), Objective(regional_group=2))
  assert counts["groups_no_hard_box"] == 1
  assert count_rows(Embeddings(image=jnp.eye(2), short=jnp.eye(2)), Objective()) == {}


def test_what_the_published_code_drops_is_dropped_if_asked():
  assert kept(()) == ([6, 6, 3, 0], 3)
  assert kept(("few_regions",)) == ([6, 6, 0, 0], 2)
  assert kept(("one_hard_box",)) == ([6, 6, 3, 0], 2)
  assert kept(("few_regions", "one_hard_box"), hard=(1, 0, 1, 0)) == ([6, 6, 0, 0], 0)
  assert kept(("one_hard_box",), hard=(1, 1, 0, 0)) == ([6, 6, 3, 0], 2)


def test_an_unknown_quirk():
  with pytest.raises(ValueError, match="objective.quirks may hold few_regions, .*, got 'few'"):
    Objective(quirks=("few",))

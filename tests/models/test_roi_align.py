"""RoIAlign equals torchvision's definition, written here as the slow loops of its documentation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fgclip_jax.models.roi_align import roi_align

HEIGHT, WIDTH, CHANNELS = 5, 7, 3
SCALE = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], np.float32)
F = np.float32


def bilinear(weights, y, x, share):
  """Adds what one sample takes from each cell, as torchvision's `bilinear_interpolate` does."""
  height, width = weights.shape
  if y < -1 or y > height or x < -1 or x > width:
    return
  y, x = max(y, F(0)), max(x, F(0))
  low_y, low_x = int(y), int(x)
  if low_y >= height - 1:
    low_y = high_y = height - 1
    y = F(low_y)
  else:
    high_y = low_y + 1
  if low_x >= width - 1:
    low_x = high_x = width - 1
    x = F(low_x)
  else:
    high_x = low_x + 1
  dy, dx = float(y) - low_y, float(x) - low_x
  weights[low_y, low_x] += share * (1 - dy) * (1 - dx)
  weights[low_y, high_x] += share * (1 - dy) * dx
  weights[high_y, low_x] += share * dy * (1 - dx)
  weights[high_y, high_x] += share * dy * dx


def slow_weights(box, height=HEIGHT, width=WIDTH):
  """The weight of each cell for a box in cells: output_size 1, spatial_scale 1, sampling_ratio -1, aligned."""
  x1, y1, x2, y2 = (F(v) - F(0.5) for v in box)
  roi_width, roi_height = x2 - x1, y2 - y1
  samples_y, samples_x = math.ceil(roi_height), math.ceil(roi_width)
  count = max(samples_y * samples_x, 1)
  weights = np.zeros((height, width))
  for i in range(samples_y):
    for j in range(samples_x):
      y = y1 + F(i + 0.5) * roi_height / F(samples_y)
      x = x1 + F(j + 0.5) * roi_width / F(samples_x)
      bilinear(weights, y, x, 1 / count)
  return weights


@pytest.fixture(scope="module")
def pooled_and_gradient():
  """The compiled function: features, boxes and a cotangent to the pooled features and the gradients."""

  def compute(features, boxes, cotangent):
    pooled, pullback = jax.vjp(roi_align, features, boxes)
    return pooled, *pullback(cotangent)

  return jax.jit(compute)


def _check(compute, boxes, tolerance=1e-5):
  """Compares for one image; `boxes` in 0..1."""
  rng = np.random.default_rng(0)
  boxes = np.asarray(boxes, F)
  features = rng.normal(size=(1, HEIGHT, WIDTH, CHANNELS)).astype(F)
  cotangent = rng.normal(size=(1, len(boxes), CHANNELS)).astype(F)
  arrays = (jnp.asarray(x) for x in (features, boxes[None], cotangent))
  pooled, gradient, to_boxes = (np.asarray(x) for x in compute(*arrays))
  weights = np.stack([slow_weights(box * SCALE) for box in boxes])
  np.testing.assert_allclose(pooled[0], np.einsum("khw,hwd->kd", weights, features[0]), rtol=0, atol=tolerance)
  np.testing.assert_allclose(gradient[0], np.einsum("khw,kd->hwd", weights, cotangent[0]), rtol=0, atol=tolerance)
  assert not to_boxes.any()
  return pooled[0]


NAMED = {
  "whole map": (0, 0, 1, 1),
  "zero size": (0.4, 0.4, 0.4, 0.4),
  "zero width": (0.4, 0.1, 0.4, 0.9),
  "over the right and lower edge": (0.7, 0.8, 1.5, 1.3),
  "over the left and upper edge": (-0.4, -0.3, 0.2, 0.3),
  "outside": (1.6, 1.6, 2.0, 2.2),
  "just beyond the edge": (1.0, 1.0, 1.1, 1.1),
  "far larger than the map": (-9.0, -7.0, 11.0, 8.0),
  "swapped corners": (0.8, 0.8, 0.2, 0.2),
  "one cell": (2 / 7, 3 / 5, 3 / 7, 4 / 5),
  "less than a cell": (0.50, 0.50, 0.51, 0.52),
}


def test_named_boxes(pooled_and_gradient):
  boxes = list(NAMED.values())
  pooled = _check(pooled_and_gradient, boxes)
  zero = [name for name, value in zip(NAMED, pooled, strict=True) if not value.any()]
  assert zero == ["zero size", "zero width", "outside", "swapped corners"]


_edges = st.floats(0, 1, width=32) | st.sampled_from([i / 35 for i in range(36)])
_beyond = st.floats(-2, 3, width=32)


@given(st.lists(st.tuples(_edges, _edges, _edges, _edges), min_size=11, max_size=11))
@example([(0.0, 0.22857142857142856, 1.0, 0.6285714285714286)] * 11)  # 2 cells high: a fused product gives 3 samples
def test_boxes_within_the_image(pooled_and_gradient, boxes):
  _check(pooled_and_gradient, [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in boxes])


@given(st.lists(st.tuples(_beyond, _beyond, _beyond, _beyond), min_size=11, max_size=11))
def test_boxes_beyond_the_image(pooled_and_gradient, boxes):
  _check(pooled_and_gradient, boxes)


def test_the_whole_map_is_the_mean():
  features = np.random.default_rng(1).normal(size=(2, HEIGHT, WIDTH, CHANNELS)).astype(F)
  pooled = jax.jit(roi_align)(jnp.asarray(features), jnp.asarray(np.tile([0, 0, 1, 1], (2, 1, 1)), jnp.float32))
  np.testing.assert_allclose(np.asarray(pooled)[:, 0], features.mean((1, 2)), rtol=0, atol=1e-6)


def test_half_precision_features_are_pooled_in_float32():
  features = jnp.ones((1, HEIGHT, WIDTH, CHANNELS), jnp.bfloat16) * 1.5
  pooled = jax.jit(roi_align)(features, jnp.asarray([[[0.1, 0.2, 0.7, 0.9]]]))
  assert pooled.dtype == jnp.float32
  np.testing.assert_allclose(np.asarray(pooled), 1.5, rtol=1e-6)


def test_the_recorded_boxes(oracle):
  path = oracle / "common" / "roi_align.npz"
  if not path.exists():
    pytest.skip(f"no {path}")
  recorded = np.load(path)
  features, boxes = recorded["features_nchw"], recorded["boxes_xyxy"]
  expected = [
    [np.einsum("hw,dhw->d", slow_weights(box, *features.shape[2:]), image) for box in own]
    for image, own in zip(features, boxes, strict=True)
  ]
  # the slow loops of this file are themselves what torchvision computes
  np.testing.assert_allclose(np.asarray(expected), recorded["pooled"], rtol=0, atol=1e-5)

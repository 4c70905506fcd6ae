"""Operations by formula against XLA's count, which is right where nothing is scanned."""

import dataclasses

import jax
import numpy as np
import pytest

from fgclip_jax.data.packing import Caption, Example, Layout, assemble
from fgclip_jax.losses.objective import Objective
from fgclip_jax.models.config import ResNetConfig, preset
from fgclip_jax.models.params import abstract_params, build
from fgclip_jax.models.siglip import PatchRows
from fgclip_jax.models.transformer import Runtime
from fgclip_jax.train import flops
from fgclip_jax.train.step import make_loss

MODEL = preset("tiny").replace(
  vision={"width": 96, "mlp_width": 384, "image_size": 64}, text={"width": 96, "mlp_width": 384, "vocab_size": 512}
)
STAGE1 = Objective(regional=0.0, hard_negative=0.0)


def make_batch(boxes: int, set_size: int = 0) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)

  def caption(length: int, long: bool = False) -> Caption:
    return Caption((510, *rng.integers(0, 500, length - 2).tolist(), 511), long)

  examples = [
    Example(
      image=np.zeros((64, 64, 3), np.uint8),
      short=caption(12),
      long=caption(130, long=True),
      boxes=np.asarray([[0.1, 0.1, 0.5, 0.6]] * boxes, np.float32).reshape(-1, 4),
      regions=tuple(caption(10) for _ in range(boxes)),
      negatives=tuple((caption(10), tuple(caption(10) for _ in range(10))) if k == 0 else None for k in range(boxes)),
      captions=tuple(caption(30) for _ in range(set_size)),
      caption_weights=(1.0,) * set_size,
    )
    for _ in range(8)
  ]
  return assemble(examples, 1, Layout(boxes=boxes, set_size=set_size))


def xla_flops(objective: Objective, batch, frozen: bool = False, model=MODEL, **savings) -> float:
  """XLA's count of loss and gradient, with every block unrolled."""
  loss = make_loss(model, objective, Runtime(unroll=0), None, **savings)

  def total(params, batch):
    if frozen:
      params = {**params, "vision": jax.lax.stop_gradient(params["vision"])}
    return loss(params, batch, jax.random.key(0))[0]

  return jax.jit(jax.grad(total)).lower(abstract_params(model), batch).compile().cost_analysis()["flops"]


SETS = Objective(regional=0.0, hard_negative=0.0, caption_set=1.0)


@pytest.mark.parametrize(("objective", "boxes", "set_size"), [(STAGE1, 0, 0), (Objective(), 4, 0), (SETS, 0, 4)])
def test_executed_operations_are_those_that_xla_counts(objective, boxes, set_size):
  batch = make_batch(boxes, set_size)
  # XLA also counts softmax, activations and norms: a few percent in a model this narrow
  ratio = xla_flops(objective, batch) / flops.count_flops(MODEL, objective, batch).executed
  assert 1.0 < ratio < 1.05


def test_a_frozen_image_tower_and_dropped_patches_save_what_the_formula_says():
  batch = make_batch(0)
  for ours, xla in (
    ({"frozen_image_tower": True}, {"frozen": True}),
    ({"patch_dropout": 0.5}, {"patch_dropout": 0.5}),
    ({"image_size": 32}, {"image_size": 32}),
  ):
    ratio = xla_flops(STAGE1, batch, **xla) / flops.count_flops(MODEL, STAGE1, batch, **ours).executed
    assert 0.97 < ratio < 1.06, ours


def test_a_resnet_s_forward_pass_and_regions_are_what_xla_counts():
  model = dataclasses.replace(MODEL, vision=ResNetConfig(32, (1, 2, 1, 2), 64))

  def encode(params, images):
    return build(model, params, Runtime(unroll=0)).image_features(images)

  images = jax.ShapeDtypeStruct((8, 64, 64, 3), "float32")
  counted = jax.jit(encode).lower(abstract_params(model), images).compile().cost_analysis()["flops"]
  # XLA counts norms and pools too, and not the products with the zeros around a map
  assert 0.9 < counted / (8 * (flops.image_forward(model) + flops.dense_forward(model))) < 1.05


@pytest.mark.parametrize("dense", [False, True])
def test_packed_patches_are_what_xla_counts(dense):
  model = preset("tiny_fgclip2").replace(vision={"width": 96, "mlp_width": 384}, text={"width": 96}, embedding_width=96)
  rows, slots, images, budget = 3, 64, 4, 40

  def encode(params, patches, segment, place, slot):
    return build(model, params, Runtime(unroll=0)).patch_features(PatchRows(patches, segment, place), slot, dense)

  shapes = (
    ((rows, slots, 192), "float32"),
    ((rows, slots), "int32"),
    ((rows, slots, 4), "int32"),
    ((images, budget), "int32"),
  )
  arrays = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
  counted = jax.jit(encode).lower(abstract_params(model), *arrays).compile().cost_analysis()["flops"]
  work = rows * slots, rows * slots**2
  expected = flops.patches_forward(model.vision, *work) + (flops.patches_dense(model.vision, *work) if dense else 0)
  assert 1.0 < counted / expected < 1.1


def test_useful_work_is_that_of_the_captions_alone():
  batch = make_batch(4)
  wider = {key: np.pad(batch[key], ((0, 0), (0, 3), (0, 0))) for key in ("tokens", "segment", "position")}
  work, more = (flops.count_flops(MODEL, Objective(), b) for b in (batch, batch | wider))
  assert more.useful == work.useful < work.executed < more.executed
  assert more.tokens == work.tokens == int((batch["segment"] > 0).sum())
  assert more.slots == work.slots + 3 * 256


def test_a_causal_triangle_of_each_caption_is_what_it_needs():
  batch = make_batch(0)
  lengths = [12] * 8 + [130] * 8
  needed = flops.text_forward(MODEL, sum(lengths), sum(n * (n + 1) // 2 for n in lengths))
  without = {**batch, "segment": np.zeros_like(batch["segment"])}
  useful = [flops.count_flops(MODEL, STAGE1, b).useful for b in (batch, without)]
  assert useful[0] - useful[1] == pytest.approx(3 * needed)


def test_peaks():
  assert flops.peak_flops("TPU v5 lite") == 197e12
  assert flops.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
  assert flops.peak_flops("cpu") is None

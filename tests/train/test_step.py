"""The training step: the same on any mesh, and sound on batches with little in them."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgclip_jax.data.image import normalize as normalize_on_host
from fgclip_jax.data.packing import Caption, Example, Layout, assemble, geometric_row_buckets
from fgclip_jax.losses.objective import Objective
from fgclip_jax.models.config import preset
from fgclip_jax.models.params import abstract_params, flatten, unflatten
from fgclip_jax.models.transformer import Runtime
from fgclip_jax.train.mesh import data_shards, make_mesh, param_sharding, to_devices
from fgclip_jax.train.optimizer import OptimizerConfig
from fgclip_jax.train.state import TrainSetup, state_from
from fgclip_jax.train.step import make_loss, make_step, normalize

IMAGES, BOXES = 16, 2
MODEL = preset("tiny").replace(
  vision={"image_size": 16}, text={"vocab_size": 128, "short_length": 12, "long_length": 20, "end_id": 127}
)
LAYOUT = Layout(boxes=BOXES, row_length=24, short_length=12, long_length=20)
# eps far above rounding: where a gradient is zero but for rounding, Adam would make a whole step of its sign
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, total_steps=10, eps=1e-3, clip_norm=1.0)
OBJECTIVE = Objective(regional_group=4)  # a group lies in several shards of one mesh and within one of another


def caption(rng: np.random.Generator, long: bool = False) -> Caption:
  length = rng.integers(1, 19 if long else 11)
  return Caption((126, *rng.integers(0, 126, length).tolist(), 127), long)


def make_examples(regions: bool = True) -> list[Example]:
  """Images with 0 to 2 boxes, of which some have 0, 3 or 10 negatives."""
  rng = np.random.default_rng(0)
  examples = []
  for number in range(IMAGES):
    boxes = number % (BOXES + 1) if regions else 0
    low, high = rng.uniform(0, 0.4, (boxes, 2)), rng.uniform(0.5, 1, (boxes, 2))
    negatives = [tuple(caption(rng) for _ in range((0, 3, 10)[(number + k) % 3])) for k in range(boxes)]
    examples.append(
      Example(
        image=rng.integers(0, 256, (16, 16, 3), np.uint8),
        short=caption(rng),
        long=caption(rng, long=True),
        boxes=np.concatenate([low, high], axis=1).astype(np.float32),
        regions=tuple(caption(rng) for _ in range(boxes)),
        negatives=tuple((caption(rng), group) if group else None for group in negatives),
        record=number,
      )
    )
  return examples


def random_params(model, seed: int = 0):
  rng = np.random.default_rng(seed)
  params = {
    name: rng.normal(0, 0.05, leaf.shape).astype(np.float32) for name, leaf in flatten(abstract_params(model)).items()
  }
  params |= {name: np.float32(2.6) for name in params if name.startswith("temperature")}
  params |= {name: value + 1 for name, value in params.items() if name.endswith("scale")}
  return unflatten(params)


class Run:
  """A compiled step on a mesh, with a fresh state each time."""

  def __init__(
    self, quick, sizes: dict[str, int], devices: int = 8, runtime: Runtime = Runtime(), objective=OBJECTIVE, **setup
  ):
    self.model = MODEL.replace(logit_bias=-10.0) if objective.needs_bias else MODEL
    self.mesh = make_mesh(sizes, jax.devices()[:devices])
    self.shards = data_shards(self.mesh)
    self.layout = dataclasses.replace(LAYOUT, row_buckets=geometric_row_buckets(LAYOUT, IMAGES // self.shards)[-1:])
    self.setup = TrainSetup(self.model, self.mesh, objective, OPTIMIZER, runtime, **setup)
    self.step = quick(make_step(self.setup))

  def state(self):
    return state_from(self.setup, random_params(self.model))

  def batch(self, examples: list[Example]):
    return to_devices(assemble(examples, self.shards, self.layout), self.mesh)

  def updates(self, examples: list[Example], count: int = 3):
    state, metrics = self.state(), []
    for _ in range(count):
      state, values = self.step(state, self.batch(examples))
      metrics.append({name: float(value) for name, value in values.items()})
    return state, metrics


@pytest.fixture(scope="module")
def single(quick) -> Run:
  return Run(quick, {"data": 1}, devices=1)


@pytest.fixture(scope="module")
def expected(single):
  return single.updates(make_examples())


def test_metrics(expected):
  _, metrics = expected
  first, second, _ = metrics
  terms = {"loss_global_long": 1, "loss_global_short": 1, "loss_regional": 0.1, "loss_hard_negative": 0.5}
  assert set(first) == {
    "loss", *terms, "learning_rate", "gradient_norm", "update_norm", "skipped_updates", "skipped_in_a_row",
    "embedding_variance_image", "embedding_variance_short",
    "temperature_global", "temperature_regional", "temperature_hard_negative",
  }  # fmt: skip
  assert first["loss"] == pytest.approx(sum(weight * first[name] for name, weight in terms.items()), rel=1e-6)
  assert first["temperature_global"] == pytest.approx(np.exp(2.6), rel=1e-6)
  assert first["learning_rate"] == pytest.approx(1e-2) and second["learning_rate"] < 1e-2
  assert second["loss"] < first["loss"]  # the same batch again
  chex.assert_tree_all_finite(metrics)


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 2, "fsdp": 4}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_a_mesh_gives_what_one_device_gives(quick, expected, sizes):
  run = Run(quick, sizes)
  state, metrics = run.updates(make_examples())
  for values, single_values in zip(metrics, expected[1], strict=True):
    assert values == pytest.approx(single_values, rel=1e-5)
  for name, leaf in flatten(state.params).items():
    assert leaf.sharding == param_sharding(name, leaf.shape, run.mesh), name  # and so they stay
  chex.assert_trees_all_close(state.params, expected[0].params, rtol=1e-5, atol=2e-6)
  # and the moments, which are means of gradients and of their squares
  moments = jax.tree_util.tree_leaves_with_path(state.opt_state)
  for (path, leaf), other in zip(moments, jax.tree.leaves(expected[0].opt_state), strict=True):
    floor = 1e-5 * max(np.max(np.abs(other)), 1e-4)
    np.testing.assert_allclose(leaf, other, rtol=1e-5, atol=floor, err_msg=jax.tree_util.keystr(path))
  assert int(state.step) == 3


@pytest.mark.parametrize("parts, sizes", [(4, {"data": 1}), (2, {"data": 2, "fsdp": 2})], ids=str)
def test_micro_batches_give_what_one_piece_gives(quick, single, expected, parts, sizes):
  """Regions, hard negatives and packed text included; with four parts there are empty rows to fill the last."""
  run = Run(quick, sizes, devices=math.prod(sizes.values()), runtime=Runtime(micro_batches=parts))
  assert run.batch(make_examples())["tokens"].shape[1] % parts or parts == 2
  state, metrics = run.updates(make_examples())
  for values, single_values in zip(metrics, expected[1], strict=True):
    assert values == pytest.approx(single_values, rel=1e-5)
  chex.assert_trees_all_close(state.params, expected[0].params, rtol=1e-5, atol=2e-6)


def test_micro_batches_hold_less():
  def temporary(parts):
    loss = make_loss(MODEL, OBJECTIVE, Runtime(micro_batches=parts), None)
    batch = jax.tree.map(jnp.asarray, assemble(make_examples() * 4, 1, LAYOUT))
    gradient = jax.jit(jax.grad(lambda params: loss(params, batch, jax.random.key(0))[0]))
    compiled = gradient.lower(random_params(MODEL)).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary(8) < 0.5 * temporary(1)


def test_micro_batches_that_do_not_divide():
  loss = make_loss(MODEL, OBJECTIVE, Runtime(micro_batches=3), None)
  with pytest.raises(ValueError, match="runtime.micro_batches 3 must divide the 16 images of a data shard"):
    given = jax.tree.map(jnp.asarray, (random_params(MODEL), assemble(make_examples(), 1, LAYOUT)))
    loss(*given, jax.random.key(0))


def test_a_batch_without_any_region(single):
  state, metrics = single.updates(make_examples(regions=False))
  for values in metrics:
    assert values["loss_regional"] == values["loss_hard_negative"] == 0
  chex.assert_tree_all_finite((state.params, metrics))
  start = flatten(random_params(MODEL))
  for name, leaf in flatten(state.params).items():
    if name in ("temperature/regional", "temperature/hard_negative"):  # no gradient; decay moves them a little
      np.testing.assert_allclose(leaf, start[name], rtol=1e-4)
    else:
      assert (leaf != start[name]).any(), name


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(single):
  state = single.state()
  state, values = single.step(state, single.batch(make_examples()))
  before = jax.device_get(state)
  assert float(values["update_norm"]) > 0 and 0 < float(values["embedding_variance_image"]) < 1
  sound = make_examples()
  sick = [dataclasses.replace(e, boxes=e.boxes * np.float32(np.nan)) for e in sound]
  for number in (1, 2):
    state, values = single.step(state, single.batch(sick))
    assert not np.isfinite(float(values["loss"])) and float(values["update_norm"]) == 0
    assert int(values["skipped_updates"]) == int(values["skipped_in_a_row"]) == number
  for name in ("params", "opt_state"):
    chex.assert_trees_all_equal(getattr(before, name), getattr(state, name))
  assert int(state.step) == 3 and state.margin is None  # this objective has none
  state, values = single.step(state, single.batch(sound))
  assert int(values["skipped_updates"]) == 2 and int(values["skipped_in_a_row"]) == 0
  assert np.isfinite(float(values["loss"]))


FGCLIP2 = Objective(
  contrast="sigmoid", regional_contrast="softmax", regional_group=4,
  regional=0.2, text_intra_modal=0.1, hard_contrast=0.3, hard_negative=1.5, hard_rank=0.2,
)  # fmt: skip


def test_the_margin_moves_with_the_state_on_any_mesh_and_stays_where_nothing_moves_it(quick):
  single = Run(quick, {"data": 1}, devices=1, objective=FGCLIP2, ema_decay=0.5)
  state, metrics = single.updates(make_examples())
  terms = {"loss_global_long": 1, "loss_global_short": 1} | {
    f"loss_{name}": getattr(FGCLIP2, name)
    for name in ("regional", "text_intra_modal", "hard_contrast", "hard_negative", "hard_rank")
  }
  for values in metrics:
    assert values["loss"] == pytest.approx(sum(weight * values[name] for name, weight in terms.items()), rel=1e-6)
    assert {name: values[name] for name in ("regions", "hard_boxes", "groups_few_regions", "groups_no_hard_box")} == {
      "regions": 15, "hard_boxes": 10, "groups_few_regions": 4, "groups_no_hard_box": 0
    }  # fmt: skip
  # a step uses the margin that the one before has left
  assert metrics[0]["margin"] == 0 and metrics[1]["margin"] > 0 and metrics[2]["margin"] != metrics[1]["margin"]

  run = Run(quick, {"data": 2, "fsdp": 4}, objective=FGCLIP2, ema_decay=0.5)
  other, other_metrics = run.updates(make_examples())
  for values, single_values in zip(other_metrics, metrics, strict=True):
    assert values == pytest.approx(single_values, rel=2e-5, abs=1e-6)
  assert other.margin.sharding.is_fully_replicated and float(other.margin) == pytest.approx(
    float(state.margin), rel=1e-4
  )
  chex.assert_trees_all_close(other.params, state.params, rtol=1e-5, atol=1e-5)

  state = state.replace(margin=jax.device_put(jnp.float32(1.25), state.margin.sharding))
  state, _ = single.step(state, single.batch(make_examples(regions=False)))  # no hard box
  assert float(state.margin) == 1.25
  sick = [dataclasses.replace(e, boxes=e.boxes * np.float32(np.nan)) for e in make_examples()]
  state, values = single.step(state, single.batch(sick))
  assert float(values["margin"]) == float(state.margin) == 1.25 and int(values["skipped_updates"]) == 1


def test_the_given_state_is_donated(single):
  state = single.state()
  kernel = state.params["vision_projection"]["kernel"]
  single.step(state, single.batch(make_examples()))
  assert kernel.is_deleted()


def test_bfloat16_computes_about_the_same_and_keeps_float32_weights(quick, expected):
  run = Run(quick, {"data": 1}, devices=1, runtime=Runtime(dtype=jnp.bfloat16, remat="full"))
  state, metrics = run.updates(make_examples())
  assert metrics[0]["loss"] == pytest.approx(expected[1][0]["loss"], rel=0.02)
  assert metrics[0]["loss"] != expected[1][0]["loss"]
  chex.assert_tree_all_finite(metrics)
  chex.assert_type(jax.tree.leaves(state.params), jnp.float32)


@pytest.mark.parametrize("contrast", ["softmax", "sigmoid"])
def test_plain_clip(quick, contrast):
  model = MODEL.replace(text={"long_length": None}, logit_bias=None if contrast == "softmax" else -10.0)
  layout = Layout(boxes=0, row_length=24, short_length=12, long_length=None)
  mesh = make_mesh({"data": 2}, jax.devices()[:2])
  optimizer = dataclasses.replace(OPTIMIZER, temperature_max=2.6)
  objective = Objective(global_long=0.0, regional=0.0, hard_negative=0.0, contrast=contrast)
  setup = TrainSetup(model, mesh, objective, optimizer)
  step = quick(make_step(setup))
  examples = [dataclasses.replace(e, long=None, boxes=e.boxes[:0], regions=(), negatives=()) for e in make_examples()]
  state = state_from(setup, random_params(model))
  losses, bias = [], {"logit_bias"} if contrast == "sigmoid" else set()
  for _ in range(6):
    state, values = step(state, to_devices(assemble(examples, 2, layout), mesh))
    losses.append(float(values["loss"]))
  assert {name for name in values if name.startswith(("loss_", "temperature_"))} == {
    "loss_global_short", "temperature_global"
  }  # fmt: skip
  assert bias <= set(values)
  assert losses[-1] < losses[0]
  assert float(state.params["temperature"]["global"]) <= np.float32(2.6)


def test_sets_of_captions(quick):
  """A set of the short caption and an absent one is trained as the short caption; equal captions are spared alike."""
  model = MODEL.replace(text={"long_length": None})
  layout = Layout(boxes=0, row_length=24, short_length=12, long_length=None)
  mesh = make_mesh({"data": 2, "fsdp": 2}, jax.devices()[:4])
  weights = {"global_long": 0.0, "regional": 0.0, "hard_negative": 0.0, "caption_set": 0.5}
  setup = TrainSetup(model, mesh, Objective(**weights, mask_identical=True, form="ring", chunk=2), OPTIMIZER)
  examples = [dataclasses.replace(e, long=None, boxes=e.boxes[:0], regions=(), negatives=()) for e in make_examples()]
  batch = assemble(examples, 4, layout)
  number = (np.arange(IMAGES, dtype=np.int32) // 2).reshape(4, -1)
  batch |= {
    "caption_eot": np.stack([batch["short_eot"], np.full_like(number, -1)], axis=-1),
    "caption_weight": np.stack([np.full(number.shape, 3.0, np.float32), np.zeros(number.shape, np.float32)], axis=-1),
    "caption_id": np.stack([number, np.zeros_like(number)], axis=-1),
    "caption_long": np.zeros((*number.shape, 2), bool),
    "short_caption": number,
  }
  state, values = quick(make_step(setup))(state_from(setup, random_params(model)), to_devices(batch, mesh))
  np.testing.assert_allclose(values["loss_caption_set"], values["loss_global_short"], rtol=1e-5)
  np.testing.assert_allclose(values["loss"], 1.5 * values["loss_global_short"], rtol=1e-5)
  assert values["gradient_norm"] > 0
  chex.assert_tree_all_finite(state.params)


def test_images_are_normalised_on_the_device_as_on_the_host():
  image = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
  np.testing.assert_allclose(normalize(jnp.asarray(image)), normalize_on_host(image), rtol=1e-6, atol=1e-6)

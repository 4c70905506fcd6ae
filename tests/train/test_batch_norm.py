"""Training a model with BatchNorm: its statistics move with the batches of all devices, and with nothing else."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgclip_jax.data.packing import Caption, Example, Layout, assemble, geometric_row_buckets
from fgclip_jax.losses.objective import Objective
from fgclip_jax.models.config import preset
from fgclip_jax.models.params import build, flatten, init_params, is_statistic, split_statistics, unflatten
from fgclip_jax.models.transformer import Runtime
from fgclip_jax.train.mesh import data_shards, make_mesh, param_sharding, to_devices
from fgclip_jax.train.optimizer import NAMES, OptimizerConfig, check_rules, make_optimizer
from fgclip_jax.train.state import TrainSetup, state_from
from fgclip_jax.train.step import make_step, normalize

pytestmark = pytest.mark.slow

IMAGES = 16
MODEL = preset("tiny_resnet").replace(
  vision={"depths": (1, 1, 1, 2), "image_size": 32},
  text={"depth": 1, "vocab_size": 128, "short_length": 12, "long_length": 20},
)
OBJECTIVE = Objective(regional=0.0, hard_negative=0.0)
LAYOUT = Layout(boxes=0, row_length=24, short_length=12, long_length=20)
# eps far above rounding, which is large where so few images are normalised by their own statistics
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, total_steps=10, eps=0.1, weight_decay=0.1)
FROZEN = (("(mean|variance)$", "frozen", 1.0), *OPTIMIZER.rules)


def make_examples() -> list[Example]:
  """Images, each of its own brightness."""
  rng = np.random.default_rng(0)

  def caption(long=False):
    return Caption((126, *rng.integers(0, 126, rng.integers(1, 18 if long else 10)).tolist(), 127), long)

  return [
    Example(
      image=rng.integers(8 * number, 100 + 8 * number, (32, 32, 3), np.uint8),
      short=caption(),
      long=caption(long=True),
      boxes=np.zeros((0, 4), np.float32),
      regions=(),
      negatives=(),
      record=number,
    )
    for number in range(IMAGES)
  ]


@functools.cache
def first_params():
  """Fresh parameters whose last norms of blocks take part."""
  flat = flatten(jax.device_get(jax.jit(lambda: init_params(MODEL, jax.random.key(0)))()))
  ones = {name: np.ones_like(leaf) for name, leaf in flat.items() if name.endswith("norm3/scale")}
  return {name: jnp.asarray(leaf) for name, leaf in (flat | ones).items()}


class Run:
  """A compiled step on a mesh."""

  def __init__(self, quick, sizes, devices=8, runtime=Runtime(), optimizer=OPTIMIZER, ema_decay=None):
    self.mesh = make_mesh(sizes, jax.devices()[:devices])
    self.shards = data_shards(self.mesh)
    self.layout = dataclasses.replace(LAYOUT, row_buckets=geometric_row_buckets(LAYOUT, IMAGES // self.shards)[-1:])
    self.setup = TrainSetup(MODEL, self.mesh, OBJECTIVE, optimizer, runtime, ema_decay=ema_decay)
    self.step = quick(make_step(self.setup))

  def updates(self, examples, count=2):
    state = state_from(self.setup, unflatten(first_params()))
    batch, metrics = to_devices(assemble(examples, self.shards, self.layout), self.mesh), []
    for _ in range(count):
      state, values = self.step(state, batch)
      metrics.append({name: float(value) for name, value in values.items()})
    return state, metrics


@pytest.fixture(scope="module")
def single(quick):
  return Run(quick, {"data": 1}, devices=1, ema_decay=0.5)


@pytest.fixture(scope="module")
def expected(single):
  return single.updates(make_examples())


def assert_params_close(state, expected, **tolerance):
  chex.assert_trees_all_close(state.params, expected.params, **tolerance)


@pytest.mark.parametrize(
  "sizes", [pytest.param({"data": 8}, marks=pytest.mark.slow), {"data": 2, "fsdp": 2, "tensor": 2}], ids=str
)
def test_statistics_are_those_of_all_devices(quick, expected, sizes):
  run = Run(quick, sizes)
  state, metrics = run.updates(make_examples())
  for values, single in zip(metrics, expected[1], strict=True):
    assert values == pytest.approx(single, rel=1e-3)
  assert_params_close(state, expected[0], rtol=1e-3, atol=3e-5)
  for name, leaf in flatten(state.params).items():
    assert leaf.sharding == param_sharding(name, leaf.shape, run.mesh), name


def test_a_step_moves_statistics_towards_the_batch_and_nothing_else_does(single):
  """The first step's batch seen by the first parameters; decay and the optimizer leave statistics alone."""
  state, _ = single.updates(make_examples(), count=1)
  images = jnp.asarray(np.stack([example.image for example in make_examples()]))
  model = build(MODEL, unflatten(first_params()))
  _, _, moved = jax.jit(lambda model, x: model.vision(normalize(x), train=True))(model, images)
  after = flatten(split_statistics(state.params)[1])
  for name, leaf in flatten({"vision": moved}).items():
    np.testing.assert_allclose(after[name], leaf, rtol=1e-4, atol=1e-5, err_msg=name)
    assert (np.asarray(leaf) != np.asarray(first_params()[name])).any(), name
  assert not any(is_statistic(name) for name in _names(state.opt_state))
  assert any("norm1" in name for name in _names(state.opt_state))


def _names(tree):
  return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(tree)]


def test_the_average_of_the_weights_averages_statistics_too(single):
  state, _ = single.updates(make_examples(), count=1)
  ema, now = (flatten(tree) for tree in (state.ema, state.params))
  for name in filter(is_statistic, now):
    np.testing.assert_allclose(ema[name], (first_params()[name] + now[name]) / 2, rtol=1e-5, atol=1e-7, err_msg=name)


def test_micro_batches_normalise_by_themselves(quick, expected):
  """Another computation than the whole batch's, but the same on one device and on several."""
  runtime = Runtime(micro_batches=2)
  one, several = (
    Run(quick, {"data": n}, devices=n, runtime=runtime).updates(_arranged(make_examples(), n), count=1) for n in (1, 4)
  )
  assert several[1][0] == pytest.approx(one[1][0], rel=1e-3)
  assert one[1][0]["loss"] != pytest.approx(expected[1][0]["loss"], rel=1e-3)
  of_several, of_one = (split_statistics(state.params)[1] for state, _ in (several, one))
  chex.assert_trees_all_close(of_several, of_one, rtol=1e-4, atol=1e-5)


def _arranged(examples, shards):
  """In an order in which each micro-batch of so many shards holds the same images as with one shard."""
  half = len(examples) // 2
  per = half // shards
  return [
    example
    for shard in range(shards)
    for part in (examples[:half], examples[half:])
    for example in part[shard * per : (shard + 1) * per]
  ]


def test_frozen_statistics_stay_and_are_used(quick):
  state, metrics = Run(quick, {"data": 2}, devices=2, optimizer=dataclasses.replace(OPTIMIZER, rules=FROZEN)).updates(
    make_examples()
  )
  before, after = (split_statistics(params)[1] for params in (unflatten(first_params()), state.params))
  chex.assert_trees_all_equal(after, before)
  assert metrics[1]["loss"] < metrics[0]["loss"]
  scale = "vision/stem/norm1/scale"
  assert (np.asarray(flatten(state.params)[scale]) != np.asarray(first_params()[scale])).all()


def test_some_statistics_frozen_and_others_not_is_an_error():
  names = list(first_params())
  check_rules((("^vision", "frozen", 1.0),), names)
  check_rules(FROZEN, names)
  with pytest.raises(ValueError, match=r"freeze 'vision/stage1/.*' and not '.*' *: BatchNorm goes by running"):
    check_rules((("stage1", "frozen", 1.0),), names)
  check_rules((*FROZEN, ("stage1", "frozen", 1.0)), names)
  with pytest.raises(ValueError, match="freeze every parameter"):
    check_rules((("(mean|variance)$", "frozen", 0.0), ("", "frozen", 1.0)), names)


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_takes_a_resnet(name):
  optimizer = make_optimizer(dataclasses.replace(OPTIMIZER, name=name, rules=FROZEN))
  trained, _ = split_statistics(unflatten(first_params()))
  with jax.numpy_dtype_promotion("standard"):
    updates, _ = jax.eval_shape(lambda p: optimizer.update(p, optimizer.init(p), p), trained)
  assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, trained)

"""The optimizer equals AdamW written out, with its schedule, groups, clipping and limits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.models.parameters import abstract_params, flatten, unflatten
from fgclip_jax.models.presets import preset
from fgclip_jax.train.optimizer import OptimizerConfig, apply_updates, decay_mask, make_optimizer, schedule


@pytest.fixture(autouse=True)
def promotion():
  """Optax promotes dtypes."""
  with jax.numpy_dtype_promotion("standard"):
    yield


def rate(config, step):
  """Linear from 0 to the peak, then a cosine to the end."""
  if step < config.warmup_steps:
    return config.learning_rate * step / config.warmup_steps
  total = max(config.total_steps, config.warmup_steps + 1)
  progress = min((step - config.warmup_steps) / (total - config.warmup_steps), 1.0)
  cosine = (1 + math.cos(math.pi * progress)) / 2
  return config.learning_rate * (config.end_fraction + (1 - config.end_fraction) * cosine)


@given(st.integers(0, 50), st.integers(1, 300), st.sampled_from([0.0, 0.1, 1.0]))
def test_the_schedule_is_linear_then_cosine(warmup, total, end_fraction):
  config = OptimizerConfig(learning_rate=0.25, warmup_steps=warmup, total_steps=total, end_fraction=end_fraction)
  steps = np.array([0, 1, warmup // 2, warmup, warmup + 1, (warmup + total) // 2, total - 1, total, total + 100])
  ours = np.asarray(schedule(config)(jnp.asarray(steps)))
  np.testing.assert_allclose(ours, [rate(config, step) for step in steps.tolist()], rtol=0, atol=0.25 * 1e-6)


def test_named_points_of_the_schedule():
  at = schedule(OptimizerConfig(learning_rate=2.0, warmup_steps=10, total_steps=110, end_fraction=0.1))
  assert [float(at(step)) for step in (0, 5, 10, 60, 110)] == pytest.approx([0.0, 1.0, 2.0, 1.1, 0.2])
  assert float(schedule(OptimizerConfig(learning_rate=2.0, warmup_steps=0))(0)) == 2.0


def test_weight_decay_spares_norms_and_biases_alone():
  shapes = abstract_params(preset("tiny"))
  decays = flatten(decay_mask(shapes, OptimizerConfig().no_decay))
  assert decays.keys() == flatten(shapes).keys()
  for name, value in decays.items():
    assert value == (
      not any(part.startswith(("norm", "pre_norm", "post_norm", "final_norm", "bias")) for part in name.split("/"))
    ), name
  for name in ("temperature/global", "vision/class_embedding", "text/long_positions", "short_projection/kernel"):
    assert decays[name]
  for name in ("vision/pre_norm/scale", "text/final_norm/bias", "text/transformer/blocks/attention/out/bias"):
    assert not decays[name]
  assert all(flatten(decay_mask(shapes, ())).values())


def make_params(seed=0):
  """A few parameters, one of each group."""
  rng = np.random.default_rng(seed)
  shapes = {
    "a/kernel": (3, 4),
    "a/bias": (4,),
    "norm/scale": (4,),
    "temperature/global": (),
    "temperature/regional": (),
  }
  return unflatten({name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()})


def train(config, params, gradients):
  """The parameters after each update."""
  optimizer = make_optimizer(config)
  state = optimizer.init(params)

  @jax.jit
  def update(gradient, state, params):
    updates, state = optimizer.update(gradient, state, params)
    return apply_updates(config, params, updates), state

  history = []
  for gradient in gradients:
    params, state = update(gradient, state, params)
    history.append(flatten(params))
  return history


def adamw(config, params, gradients):
  """The same, written out in float64."""
  params = {name: np.asarray(value, np.float64) for name, value in flatten(params).items()}
  first, second = ({name: np.zeros_like(value) for name, value in params.items()} for _ in range(2))
  history = []
  for step, gradient in enumerate(gradients):
    gradient = {name: np.asarray(value, np.float64) for name, value in flatten(gradient).items()}
    norm = math.sqrt(sum((value**2).sum() for value in gradient.values()))
    scale = 1.0 if config.clip_norm is None else min(1.0, config.clip_norm / norm)
    for name in params:
      g = scale * gradient[name]
      first[name] = config.b1 * first[name] + (1 - config.b1) * g
      second[name] = config.b2 * second[name] + (1 - config.b2) * g**2
      mean, variance = first[name] / (1 - config.b1 ** (step + 1)), second[name] / (1 - config.b2 ** (step + 1))
      decay = 0.0 if "norm" in name or "bias" in name else config.weight_decay
      params[name] = params[name] - rate(config, step) * (
        mean / (np.sqrt(variance) + config.eps) + decay * params[name]
      )
      if config.temperature_max is not None and name.startswith("temperature"):
        params[name] = np.minimum(params[name], config.temperature_max)
    history.append(dict(params))
  return history


SETTINGS = {"learning_rate": 0.1, "warmup_steps": 2, "total_steps": 8, "b2": 0.98, "eps": 1e-6, "weight_decay": 0.2}


@pytest.mark.parametrize(
  "changes",
  [{}, {"clip_norm": 0.5}, {"clip_norm": 1e6}, {"temperature_max": 0.1}, {"warmup_steps": 0}, {"weight_decay": 0.0}],
  ids=str,
)
def test_updates_equal_adamw_written_out(changes):
  config = OptimizerConfig(**(SETTINGS | changes))
  gradients = [make_params(seed) for seed in range(1, 7)]
  ours, expected = (function(config, make_params(), gradients) for function in (train, adamw))
  for step, (a, b) in enumerate(zip(ours, expected, strict=True)):
    for name, value in b.items():
      np.testing.assert_allclose(a[name], value, rtol=0, atol=2e-6, err_msg=f"{name} after update {step}")


def test_the_first_update_of_a_warm_up_changes_nothing():
  params = make_params()
  (after,) = train(OptimizerConfig(**SETTINGS), params, [make_params(1)])
  for name, value in flatten(params).items():
    np.testing.assert_array_equal(after[name], value, err_msg=name)


def test_temperatures_are_held_at_their_maximum_and_nothing_else_is():
  params = jax.tree.map(lambda leaf: leaf + 5.0, make_params())
  gradients = [jax.tree.map(lambda leaf: -jnp.ones_like(leaf), params)] * 4
  limit = math.log(100)
  held = train(OptimizerConfig(**SETTINGS, temperature_max=limit), params, gradients)
  free = train(OptimizerConfig(**SETTINGS), params, gradients)
  for name, value in held[-1].items():
    if name.startswith("temperature"):
      assert float(value) == pytest.approx(limit) and float(free[-1][name]) > limit
    else:
      np.testing.assert_allclose(value, free[-1][name], rtol=1e-6)


def test_frozen_parameters_stay_and_do_not_count_for_clipping():
  config = OptimizerConfig(**SETTINGS, clip_norm=0.5, frozen=("^a/",))
  params, gradients = make_params(), [make_params(seed) for seed in range(1, 4)]
  ours = train(config, params, gradients)
  rest = {name: value for name, value in flatten(params).items() if not name.startswith("a/")}
  gradients = [unflatten({name: flatten(gradient)[name] for name in rest}) for gradient in gradients]
  expected = adamw(config, unflatten(rest), gradients)
  for name, value in flatten(params).items():
    if name.startswith("a/"):
      np.testing.assert_array_equal(ours[-1][name], value)
    else:
      np.testing.assert_allclose(ours[-1][name], expected[-1][name], rtol=0, atol=2e-6, err_msg=name)


def test_the_optimizers_state_has_no_room_for_frozen_parameters():
  optimizer = make_optimizer(OptimizerConfig(**SETTINGS, frozen=("^a/",)))
  sizes = [leaf.size for leaf in jax.tree.leaves(jax.eval_shape(optimizer.init, make_params())) if leaf.ndim]
  assert sorted(sizes) == [4, 4]  # two moments of norm/scale; temperatures have no axis

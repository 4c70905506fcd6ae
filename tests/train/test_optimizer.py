"""The optimizers equal AdamW written out and Optax's own; frozen parts, rates by layer, limits, averages."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.models.params import flatten, unflatten
from fgclip_jax.train.optimizer import (
  NAMES,
  OptimizerConfig,
  apply_updates,
  freezes,
  make_optimizer,
  schedule,
  update_average,
)


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


def test_the_warm_up_as_a_share_of_the_steps():
  at = schedule(OptimizerConfig(learning_rate=2.0, warmup_share=0.03, total_steps=101, warmup_steps=7))
  assert [float(at(step)) for step in (0, 2, 4)] == pytest.approx([0.0, 1.0, 2.0])  # 3.03 steps are 4
  assert float(schedule(OptimizerConfig(learning_rate=2.0, warmup_share=0.0, warmup_steps=7))(0)) == 2.0
  with pytest.raises(ValueError, match="optimizer.warmup_share must lie in 0..1, got 3.0"):
    OptimizerConfig(warmup_share=3.0)


@pytest.mark.parametrize("name", NAMES)
def test_a_probe_that_nothing_asks_with_stays(name):
  """FG-CLIP 2's dense head holds one, which PyTorch's optimizers leave alone, having no gradient."""
  probe, other = "vision/dense_head/probe", "vision/pooling_head/probe"
  params = random_params({probe: (4,), other: (4,), "text/transformer/blocks/mlp/up/kernel": (2, 4, 4)}, 0)
  optimizer = make_optimizer(OptimizerConfig(name=name, warmup_steps=0, learning_rate=0.1, weight_decay=0.5))
  updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
  assert not np.asarray(flatten(updates)[probe]).any() and np.asarray(flatten(updates)[other]).all()


def make_params(seed=0):
  """A few parameters, one of each group."""
  return random_params(
    {
      "a/kernel": (3, 4),
      "a/bias": (4,),
      "norm/scale": (4,),
      "temperature/global": (),
      "temperature/regional": (),
      "temperature/bias": (),
    },
    seed,
  )


# embeddings, two blocks, what follows them; a matrix of it is large enough for Adafactor to factor
TOWER = {
  "vision/positions": (5, 130),
  "vision/pre_norm/scale": (130,),
  "vision/transformer/blocks/mlp/up/kernel": (2, 130, 128),
  "vision/transformer/blocks/mlp/up/bias": (2, 128),
  "vision/post_norm/scale": (130,),
  "vision_projection/kernel": (130, 6),
  "temperature/global": (),
}


def random_params(shapes, seed=0):
  rng = np.random.default_rng(seed)
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
  chex.assert_trees_all_close(ours, expected, rtol=0, atol=2e-6)


def test_the_first_update_of_a_warm_up_changes_nothing():
  params = make_params()
  (after,) = train(OptimizerConfig(**SETTINGS), params, [make_params(1)])
  chex.assert_trees_all_equal(after, flatten(params))


def test_temperatures_are_held_at_their_maximum_and_nothing_else_is():
  params = jax.tree.map(lambda leaf: leaf + 5.0, make_params())
  gradients = [jax.tree.map(lambda leaf: -jnp.ones_like(leaf), params)] * 4
  limit = math.log(100)
  held = train(OptimizerConfig(**SETTINGS, temperature_max=limit), params, gradients)
  free = train(OptimizerConfig(**SETTINGS), params, gradients)
  for name, value in held[-1].items():
    if name.startswith("temperature/") and name != "temperature/bias":
      assert float(value) == pytest.approx(limit) and float(free[-1][name]) > limit
    else:
      np.testing.assert_allclose(value, free[-1][name], rtol=1e-6)


def freeze(*patterns):
  return (*((pattern, "frozen", 1.0) for pattern in patterns), *OptimizerConfig().rules)


def test_frozen_parameters_stay_and_do_not_count_for_clipping():
  config = OptimizerConfig(**SETTINGS, clip_norm=0.5, rules=freeze("^a/"))
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


def optax_own(config):
  """Optax's whole optimizers, with the decay and the schedule of the config."""
  rate, moments = schedule(config), {"b1": config.b1, "b2": config.b2}
  spared = lambda params: unflatten({n: not ("norm" in n or "bias" in n) for n in flatten(params)})  # noqa: E731
  if config.name == "adamw":
    return optax.adamw(rate, **moments, eps=config.eps, weight_decay=config.weight_decay, mask=spared)
  if config.name == "lion":
    return optax.lion(rate, **moments, weight_decay=config.weight_decay, mask=spared)
  if config.name == "adafactor":
    return optax.adafactor(config.learning_rate, multiply_by_parameter_scale=False, momentum=config.b1)
  stack = optax.contrib.MuonDimensionNumbers(1, 2)
  return optax.contrib.muon(
    rate,
    eps=config.eps,
    adam_b1=config.b1,
    adam_b2=config.b2,
    muon_weight_dimension_numbers=lambda params: unflatten(
      {n: stack if n.endswith("up/kernel") else None for n in flatten(params)}
    ),
    consistent_rms=0.2,
  )


def settings_for(name):
  """Settings that Optax's own optimizer of this name has too."""
  if name in ("adamw", "lion"):
    return {**SETTINGS, "name": name}
  constant = {"warmup_steps": 0, "end_fraction": 1.0} if name == "adafactor" else {}
  return {**SETTINGS, "name": name, "weight_decay": 0.0, **constant}


@pytest.mark.parametrize("name", NAMES)
def test_each_is_optaxs_own(name):
  config = OptimizerConfig(**settings_for(name))
  theirs = optax_own(config)
  params = expected = random_params(TOWER)
  state, update = theirs.init(params), jax.jit(theirs.update)
  gradients = [random_params(TOWER, seed) for seed in range(1, 4)]
  ours = train(config, params, gradients)
  for step, gradient in enumerate(gradients):
    updates, state = update(gradient, state, expected)
    expected = optax.apply_updates(expected, updates)
    chex.assert_trees_all_close(ours[step], flatten(expected), rtol=0, atol=3e-7)


def test_muon_treats_each_layer_alone():
  """The update of a stack is the stack of its layers' updates, each near orthogonal and of Adam's size."""
  config = OptimizerConfig(name="muon", learning_rate=1.0, warmup_steps=0, weight_decay=0.0)
  name = "vision/transformer/blocks/mlp/up/kernel"
  stacks = [random_params({name: (3, 20, 12)}, seed) for seed in (0, 1)]
  layers = [[jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], stack) for stack in stacks] for i in range(3)]
  whole = updates_of(config, stacks[0], stacks[1:])[0][name]
  parts = np.concatenate([updates_of(config, params, [gradient])[0][name] for params, gradient in layers])
  np.testing.assert_allclose(whole, parts, atol=1e-5)
  values = np.linalg.svd(whole, compute_uv=False) / (0.2 * math.sqrt(20))
  assert values.min() > 0.5 and values.max() < 1.3


def test_adamw_is_optaxs_own_bit_for_bit():
  config = OptimizerConfig(**SETTINGS)
  params, gradient = random_params(TOWER), random_params(TOWER, 1)
  results = []
  for optimizer in (make_optimizer(config), optax_own(config)):
    state = optimizer.init(params)
    for _ in range(2):
      updates, state = optimizer.update(gradient, state, params)
    results.append(jax.tree.leaves((updates, state)))
  for ours, theirs in zip(*results, strict=True):
    assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_decay_is_scaled_by_rate_and_rule_alone(name):
  """Without a gradient, what moves a parameter is its decay."""
  rules = (("positions", "weight_decay", 0.5), ("scale|bias", "weight_decay", 0.0))
  config = OptimizerConfig(name=name, learning_rate=0.5, warmup_steps=0, weight_decay=0.25, rules=rules, clip_norm=1.0)
  params = random_params(TOWER)
  (after,) = train(config, params, [jax.tree.map(jnp.zeros_like, params)])
  for key, value in flatten(params).items():
    factor = 0.5 if "positions" in key else 0.0 if "scale" in key or "bias" in key else 1.0
    np.testing.assert_allclose(after[key], value * (1 - 0.5 * 0.25 * factor), rtol=1e-6, err_msg=key)


def updates_of(config, params, gradients):
  optimizer = make_optimizer(config)
  state, update = optimizer.init(params), jax.jit(optimizer.update)
  for gradient in gradients:
    updates, state = update(gradient, state, params)
  return flatten(updates), state


@pytest.mark.parametrize("name", NAMES)
def test_rates_by_rule_and_by_layer_scale_updates(name):
  """Rules and layers together, with a part of the tower frozen."""
  rules = (("^vision_projection", "learning_rate", 0.25), ("^vision", "learning_rate", 3.0))
  shared = {**SETTINGS, "name": name, "warmup_steps": 0, "clip_norm": 1.0}
  params, gradients = random_params(TOWER), [random_params(TOWER, seed) for seed in (1, 2)]
  frozen = freeze("mlp/up/kernel")
  plain, _ = updates_of(OptimizerConfig(**shared, rules=frozen), params, gradients)
  scaled, _ = updates_of(OptimizerConfig(**shared, rules=frozen + rules, layer_decay=0.5), params, gradients)
  factors = {
    "vision/positions": 3.0 / 8,
    "vision/pre_norm/scale": 3.0 / 8,
    "vision/transformer/blocks/mlp/up/kernel": 1.0,  # frozen: both are zero
    "vision/transformer/blocks/mlp/up/bias": np.array([[3.0 / 4], [3.0 / 2]], np.float32),
    "vision/post_norm/scale": 3.0,
    "vision_projection/kernel": 0.25,
    "temperature/global": 1.0,
  }
  assert factors.keys() == plain.keys()
  for key, factor in factors.items():
    np.testing.assert_allclose(scaled[key], plain[key] * np.float32(factor), rtol=1e-5, atol=1e-8, err_msg=key)
    assert np.any(plain[key]) == ("kernel" not in key or "projection" in key), key


@pytest.mark.parametrize("name", NAMES)
def test_first_moments_are_kept_in_bfloat16(name):
  params, gradients = random_params(TOWER), [random_params(TOWER, seed) for seed in (1, 2)]
  narrow, state = updates_of(OptimizerConfig(name=name, moment_dtype="bfloat16", warmup_steps=0), params, gradients)
  wide, wide_state = updates_of(OptimizerConfig(name=name, warmup_steps=0), params, gradients)
  trained = sum(leaf.size for leaf in jax.tree.leaves(params))
  halved = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.bfloat16)
  assert halved == trained  # each parameter has one first moment
  assert not any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(wide_state))
  for key, update in narrow.items():
    assert update.dtype == jnp.float32
    scale = float(jnp.abs(wide[key]).max())
    # the sign of a sum near zero may turn, which for Lion is a whole step
    close = np.abs(update - wide[key]) <= 0.05 * scale
    assert close.mean() > 0.99, key


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("settings", [{}, {"clip_norm": 1.0, "layer_decay": 0.5}], ids=str)
def test_the_state_has_no_room_for_frozen_parameters(name, settings):
  config = OptimizerConfig(name=name, rules=freeze("^vision/"), **settings)
  params = random_params(TOWER)
  state = jax.eval_shape(make_optimizer(config).init, params)
  large = {leaf.size for leaf in jax.tree.leaves(state) if leaf.size > 3}  # not counts, nor Muon's coefficients
  assert large == {130 * 6}
  updates, _ = updates_of(config, params, [random_params(TOWER, 1)] * 2)
  assert {key for key, update in updates.items() if np.any(update)} == {
    "vision_projection/kernel",
    "temperature/global",
  }


def test_adafactor_keeps_rows_and_columns_of_each_layer():
  config = OptimizerConfig(name="adafactor", b1=0.0)
  state = jax.eval_shape(make_optimizer(config).init, random_params({"blocks/kernel": (3, 130, 128)}))
  assert sorted(leaf.shape for leaf in jax.tree.leaves(state) if leaf.size > 1) == [(3, 128), (3, 130)]


def test_an_exception_to_a_frozen_tower():
  params = random_params(TOWER)
  assert freezes(freeze("^vision"), params, "vision") and freezes(freeze("^vision/"), params, "vision")
  rules = (("post_norm", "frozen", 0.0), *freeze("^vision"))
  assert not freezes(rules, params, "vision")
  updates, _ = updates_of(OptimizerConfig(rules=rules), params, [random_params(TOWER, 1)] * 2)
  assert {key for key, update in updates.items() if np.any(update)} == {"vision/post_norm/scale", "temperature/global"}


def test_an_unknown_optimizer():
  with pytest.raises(
    ValueError, match="optimizer.name must be one of .'adamw', 'adafactor', 'lion', 'muon'., got 'sgd'"
  ):
    make_optimizer(OptimizerConfig(name="sgd"))


@given(st.sampled_from([0.5, 0.9, 0.999]), st.integers(1, 20))
def test_the_average_is_the_weighted_sum_of_what_was(decay, steps):
  history = np.random.default_rng(steps).normal(size=(steps + 1, 3))
  average = {"a": jnp.asarray(history[0], jnp.float32)}
  for value in history[1:]:
    average = update_average(decay, average, {"a": jnp.asarray(value, jnp.float32)})
  weights = decay ** np.arange(steps, -1, -1.0) * np.array([1.0] + [1.0 - decay] * steps)
  assert weights.sum() == pytest.approx(1.0)
  np.testing.assert_allclose(average["a"], weights @ history, atol=2e-6)
  assert average["a"].dtype == jnp.float32

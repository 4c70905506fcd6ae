"""The state of a run: made the same on any mesh, really split over it, and the same after a step there."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgclip_jax.losses.objective import Objective
from fgclip_jax.models.config import preset
from fgclip_jax.models.params import abstract_params, flatten, init_params, unflatten
from fgclip_jax.models.transformer import Runtime
from fgclip_jax.train.mesh import make_mesh, param_sharding, to_devices
from fgclip_jax.train.optimizer import NAMES, OptimizerConfig, apply_updates
from fgclip_jax.train.state import TrainSetup, TrainState, init_state, state_from
from fgclip_jax.train.step import make_loss, make_step

MODEL = preset("tiny").replace(text={"vocab_size": 512})


@pytest.fixture(scope="module")
def mesh():
  return make_mesh({"data": 2, "fsdp": 2, "tensor": 2})


@jax.jit
def random_params(seed):
  return init_params(MODEL, jax.random.key(seed))


def moments(state: TrainState) -> list[dict]:
  """Adam's two moments, as trees like the parameters."""
  return [
    getattr(part, name)
    for part in jax.tree.leaves(state.opt_state, is_leaf=is_adam)
    if is_adam(part)
    for name in ("mu", "nu")
  ]


def is_adam(part) -> bool:
  return hasattr(part, "mu")


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_moments_lie_where_their_parameters_lie(mesh, clip_norm):
  setup = TrainSetup(MODEL, mesh, optimizer_config=OptimizerConfig(clip_norm=clip_norm))
  shardings = setup.state_shardings
  shapes = {name: leaf.shape for name, leaf in flatten(abstract_params(MODEL)).items()}
  trees = [shardings.params, *moments(shardings)]
  assert len(trees) == 3
  for tree in trees:
    for name, sharding in flatten(tree).items():
      assert sharding == param_sharding(name, shapes[name], mesh), name
  assert shardings.step.is_fully_replicated


def test_frozen_parameters_have_no_moments(mesh):
  optimizer = OptimizerConfig(rules=(("^vision", "frozen", 1.0),), clip_norm=1.0)
  shardings = TrainSetup(MODEL, mesh, optimizer_config=optimizer).state_shardings
  shapes = {name: leaf.shape for name, leaf in flatten(abstract_params(MODEL)).items()}
  trained = {name for name in shapes if not name.startswith("vision")}
  for tree in moments(shardings):
    leaves = jax.tree_util.tree_leaves_with_path(tree)  # what is frozen is masked, and has no leaf
    found = {jax.tree_util.keystr(path, simple=True, separator="/"): sharding for path, sharding in leaves}
    assert found == {name: param_sharding(name, shapes[name], mesh) for name in trained}


def test_a_random_state_is_born_split_and_the_same_on_any_mesh():
  mesh = make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])
  state = init_state(TrainSetup(MODEL, mesh, seed=3))
  for tree in (state.params, *moments(state)):
    kernel = tree["vision"]["transformer"]["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.shape == (2, 32, 64) and kernel.addressable_shards[0].data.shape == (2, 16, 32)
    assert tree["text"]["token_embedding"].addressable_shards[0].data.shape == (256, 32)
  assert int(state.step) == 0
  assert not any(np.any(leaf) for tree in moments(state) for leaf in jax.tree.leaves(tree))
  chex.assert_trees_all_close(state.params, random_params(3), rtol=1e-6, atol=1e-8)


def test_a_state_around_given_parameters_is_float32(mesh):
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float16), random_params(0))
  state = state_from(TrainSetup(MODEL, mesh), params)
  chex.assert_trees_all_equal(state.params, jax.tree.map(lambda leaf: leaf.astype(np.float32), params), strict=True)
  for name, leaf in flatten(state.params).items():
    assert leaf.sharding == param_sharding(name, leaf.shape, mesh)


# ---- a step of every optimizer
SMALL = preset("tiny").replace(  # wide enough for Adafactor to factor the blocks' matrices
  vision={"image_size": 16, "width": 128, "mlp_width": 256, "depth": 2},
  text={"vocab_size": 32, "width": 128, "mlp_width": 128, "depth": 2, "short_length": 8, "long_length": None}
  | {"end_id": 31},
)
OBJECTIVE = Objective(global_long=0.0, regional=0.0, hard_negative=0.0)
IMAGES = 8


def make_batch(shards: int) -> dict:
  """Images with one caption each, a caption a row."""
  rng = np.random.default_rng(0)
  each = IMAGES // shards
  tokens = rng.integers(0, 31, (shards, each, 8)).astype(np.int32)
  tokens[..., -1] = 31
  return {
    "image": rng.integers(0, 256, (shards, each, 16, 16, 3), np.uint8),
    "boxes": np.zeros((shards, each, 0, 4), np.float32),
    "box_count": np.zeros((shards, each), np.int32),
    "tokens": tokens,
    "segment": np.ones_like(tokens),
    "position": np.broadcast_to(np.arange(8, dtype=np.int32), tokens.shape).copy(),
    "long_eot": np.full((shards, each), -1, np.int32),
    "short_eot": np.tile(np.arange(each, dtype=np.int32) * 8 + 7, (shards, 1)),
    "region_eot": np.zeros((shards, each, 0), np.int32),
    "region_caption": np.zeros((shards, each, 0), np.int32),
    "hard_box": np.zeros((shards, 0), np.int32),
    "hard_eot": np.zeros((shards, 0, 1), np.int32),
    "record": np.tile(np.arange(each), (shards, 1)),
  }


@pytest.fixture(scope="module")
def small_params():
  rng = np.random.default_rng(0)
  shapes = flatten(abstract_params(SMALL))
  return unflatten({name: rng.normal(0, 0.1, leaf.shape).astype(np.float32) for name, leaf in shapes.items()})


@pytest.fixture(scope="module")
def gradients(quick, small_params):
  """On one device."""
  loss = make_loss(SMALL, OBJECTIVE, Runtime(), None)
  gradient = quick(jax.jit(jax.grad(lambda params, batch: loss(params, batch, jax.random.key(0))[0])))
  return flatten(gradient(small_params, jax.tree.map(jnp.asarray, make_batch(1))))


@pytest.mark.parametrize("name", NAMES)
def test_a_step_on_a_mesh_is_that_of_one_device(quick, mesh, small_params, gradients, name):
  """With everything that a config may ask for; its state lies where `state_shardings` says, and is overwritten."""
  rate, decay = 1e-2, 0.75
  rules = (("^text/token", "frozen", 1.0), ("^text", "learning_rate", 0.5), ("norm|bias", "weight_decay", 0.0))
  config = OptimizerConfig(
    name=name, learning_rate=rate, warmup_steps=0, eps=1e-6, rules=rules, layer_decay=0.75, clip_norm=1.0
  )
  setup = TrainSetup(SMALL, mesh, OBJECTIVE, config, ema_decay=decay)
  optimizer, state, step = setup.optimizer, state_from(setup, small_params), quick(make_step(setup))
  after, _ = step(state, to_devices(make_batch(4), mesh))
  kernel = "vision/transformer/blocks/mlp/up/kernel"
  assert flatten(state.params)[kernel].is_deleted() and flatten(state.ema)[kernel].is_deleted()
  assert jax.tree.map(lambda leaf: leaf.sharding, after) == setup.state_shardings
  assert flatten(after.params)[kernel].addressable_shards[0].data.shape == (2, 64, 128)
  assert flatten(after.ema)[kernel].addressable_shards[0].data.shape == (2, 64, 128)

  update = quick(jax.jit(lambda params, flat: optimizer.update(unflatten(flat), optimizer.init(params), params)[0]))
  expected = flatten(apply_updates(config, small_params, update(small_params, gradients)))
  for key, leaf in flatten(after.params).items():
    start, gradient = flatten(small_params)[key], gradients[key]
    # where a gradient is zero but for rounding, Adam and Lion take whole steps of its sign
    sure = np.abs(gradient) > 1e-4 * np.abs(gradient).max() if name != "muon" else np.full(leaf.shape, True)
    assert np.all(leaf == start) == (key == "text/token_embedding"), key
    if np.abs(gradient).max() < 1e-7:
      continue  # keys' biases have no influence
    assert sure.mean() > 0.75, key
    np.testing.assert_allclose(
      np.where(sure, leaf, 0), np.where(sure, expected[key], 0), rtol=0, atol=0.01 * rate, err_msg=key
    )
    average = decay * start + (1 - decay) * np.asarray(leaf)
    np.testing.assert_allclose(flatten(after.ema)[key], average, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_what_has_a_parameters_shape_lies_like_it(mesh, name):
  model = preset("vit_b16")
  optimizer = OptimizerConfig(name=name, moment_dtype="bfloat16", clip_norm=1.0)
  setup = TrainSetup(model, mesh, optimizer_config=optimizer, ema_decay=0.99)
  state, shardings = setup.abstract_state, setup.state_shardings
  assert shardings.ema == shardings.params
  everywhere = 0
  for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
    if sharding.is_fully_replicated:
      everywhere += leaf.size
  spread = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(model)))
  assert everywhere < 0.02 * spread  # biases, norms, counts, Adafactor's rows and columns

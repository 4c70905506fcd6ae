"""The configs that come with the project at tiny size, and runs of them that check every step they make."""

import importlib
import itertools
from typing import Any

import chex
import jax
import numpy as np

from fgclip_jax.data.loader import Loader
from fgclip_jax.models.config import ModelConfig
from fgclip_jax.models.params import abstract_params, flatten
from fgclip_jax.train import step as step_module
from fgclip_jax.train.config import RunConfig, read_config
from fgclip_jax.train.loop import train

FORMS = ("stage1", "stage2", "clip", "clip:rn50", "quickstart:stage1", "quickstart:stage2")
BATCH = 8  # one image on each of eight devices


def tiny_run(form: str, data: str, init_from: str = "", **changes: Any) -> RunConfig:
  """Two steps of a config, written as after `--config=configs/`, with a tiny preset in place of its model."""
  name, _, argument = form.partition(":")
  config = importlib.import_module(f"configs.{name}").get_config(*filter(None, [argument]))
  config.model = "tiny_resnet" if argument.startswith("rn") else "tiny"
  config.steps, config.init_from, config.optimizer.warmup_steps = 2, init_from, 1
  config.data.update({"path": data, "batch_size": BATCH, "workers": 0})
  if config.objective.regional_group:
    config.objective.regional_group = BATCH // 2
  config.log_every, config.keep.newest = 1, 1
  config.runtime.unroll = 1  # the same numbers, and a program for one block instead of one for each
  config.update_from_flattened_dict(changes)
  return read_config(config)


def random_weights(model: ModelConfig) -> dict[str, np.ndarray]:
  """Parameters by name, drawn by NumPy: nothing to compile."""
  rng = np.random.default_rng(0)
  shapes = {name: leaf.shape for name, leaf in flatten(abstract_params(model)).items()}
  flat = {name: rng.normal(0, 0.05, shape).astype(np.float32) for name, shape in shapes.items()}
  flat |= {name: np.asarray(2.6, np.float32) for name in shapes if name.startswith("temperature")}
  return flat | {name: abs(flat[name]) + 1 for name in shapes if name.endswith(("scale", "variance"))}


def train_checked(run: RunConfig, workdir, devices: int, monkeypatch) -> Any:
  """Trains on the first so many devices, with every step checked; returns the last state.

  The step is traced once for each row bucket and image size. It takes and gives arrays of the same shapes, dtypes and
  shardings, on all these devices; what it gives is finite.
  """
  chex.clear_trace_counter()
  traces, found, made, jit = count_shapes(run, devices), jax.devices()[:devices], [], jax.jit

  def checked_jit(function, **options):
    if function.__module__ != step_module.__name__:
      return jit(function, **options)
    step = jit(chex.assert_max_traces(function, n=traces), **options)

    def checked(state, batch):
      chex.assert_tree_has_only_ndarrays((state, batch))
      assert_on_devices((state, batch), found)
      after, metrics = step(state, batch)
      chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
      assert jax.tree.map(lambda leaf: leaf.sharding, after) == jax.tree.map(lambda leaf: leaf.sharding, state)
      assert_on_devices(after, found)
      with jax.transfer_guard("allow"):
        chex.assert_tree_all_finite((after, metrics))
      made.append(step)
      return after, metrics

    return checked

  with monkeypatch.context() as patch, jax.numpy_dtype_promotion("standard"):  # Optax's own code needs it
    patch.setattr(jax, "jit", checked_jit)
    patch.setattr(jax, "devices", lambda *_: found)
    state = train(run, str(workdir))
  assert len(made) == int(state.step) == run.steps
  assert int(state.skipped) == 0
  return state


def count_shapes(run: RunConfig, devices: int) -> int:
  """The programs that the steps of a run need, on a mesh of data-parallel devices.

  One for each row bucket and image size, with and without records that are in the batch more than once.
  """
  loader = Loader(run.data, run.layout(), run.model.vision.image_size, seed=run.seed, shards=devices)
  batches = [(batch, loader.repeats) for batch in itertools.islice(loader, run.steps)]
  loader.close()
  sizes = [[size for start, size in run.progressive if start <= step][-1:] for step in range(run.steps)]
  return len({(batch["tokens"].shape, again, *size) for (batch, again), size in zip(batches, sizes, strict=True)})


def assert_on_devices(tree: Any, devices: list) -> None:
  """Every leaf is on all of these devices, and on no other."""
  if len(devices) == 1:
    chex.assert_tree_is_on_device(tree, device=devices[0])
  else:
    chex.assert_tree_is_sharded(tree, devices=devices)

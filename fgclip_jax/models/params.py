"""Parameters as a nested dict of arrays, and the model as a function of them.

Everything outside `models` handles parameters in this form: keys joined by '/' name a leaf, e.g.
`vision/transformer/blocks/attention/query/kernel` (stacked over depth along its first axis). The statistics that
BatchNorm has gathered are among them, so that they go wherever a model goes; they are no parameters, though: no
optimizer sees them and they are not counted.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx, traverse_util

from fgclip_jax.models.config import ModelConfig
from fgclip_jax.models.fgclip import DualEncoder
from fgclip_jax.models.text_pooling import TextPooling
from fgclip_jax.models.transformer import Runtime

Params = Mapping[str, Any]
STATISTICS = ("mean", "variance")  # BatchNorm's, the last parts of their names


def flatten(params: Params) -> dict[str, Any]:
  """{'a': {'b': x}} -> {'a/b': x}."""
  return traverse_util.flatten_dict(params, sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `flatten`."""
  return traverse_util.unflatten_dict(flat, sep="/")


def is_statistic(name: str) -> bool:
  """Whether the leaf of this name is one of BatchNorm's statistics."""
  return name.rpartition("/")[2] in STATISTICS


def split_statistics(params: Params) -> tuple[Params, Params]:
  """Two trees: what is trained, and BatchNorm's statistics (empty for a Vision Transformer)."""
  flat = flatten(params)
  parts = ({name: leaf for name, leaf in flat.items() if is_statistic(name) == which} for which in (False, True))
  trained, statistics = map(unflatten, parts)
  return trained, statistics


def merge(first: Params, second: Params) -> Params:
  """One tree of two, e.g. the inverse of `split_statistics`; where both have a leaf, the second's."""
  return unflatten(flatten(first) | flatten(second))


def named_leaves(tree: Any) -> dict[str, Any]:
  """The leaves of any tree by the names of their places, as `flatten` names those of nested dicts."""
  paths = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def init_params(config: ModelConfig, key: jax.Array) -> Params:
  """Random parameters, float32; the same for the same key. Jit it to create them sharded."""
  return nnx.to_pure_dict(nnx.state(DualEncoder(config, rngs=nnx.Rngs(key)), (nnx.Param, nnx.BatchStat)))


def init_text_pooling(config: ModelConfig, key: jax.Array) -> Params:
  """Random parameters of the text pooling alone, for a model that has none yet."""
  assert config.text_pooling is not None, "the model is to have one"
  module = TextPooling(config.embedding_width, config.text_pooling, Runtime(), rngs=nnx.Rngs(key))
  return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def abstract_params(config: ModelConfig) -> Params:
  """The shapes and dtypes of the parameters, without making them."""
  return jax.tree.map(lambda leaf: leaf, _abstract_params(config))  # a tree of the caller's own


@functools.lru_cache(maxsize=64)
def _abstract_params(config: ModelConfig) -> Params:
  """Traced once for each model: a run asks several times, and tracing takes longer than reading the weights."""
  return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def build(config: ModelConfig, params: Params, runtime: Runtime = Runtime()) -> DualEncoder:
  """A model that computes with these parameters; cheap, and free of side effects under jit."""
  graphdef, abstract = _abstract_model(config, runtime)
  state = jax.tree.map(lambda leaf: leaf, abstract)  # a state of this model's own
  nnx.replace_by_pure_dict(state, dict(params))
  return nnx.merge(graphdef, state)


@functools.lru_cache(maxsize=64)
def _abstract_model(config: ModelConfig, runtime: Runtime) -> tuple[Any, Any]:
  """Traced once for each model and way of computing: every program that is traced builds the model."""
  return nnx.split(nnx.eval_shape(lambda: DualEncoder(config, runtime, rngs=nnx.Rngs(0))))


def count(params: Params) -> int:
  """The number of parameters; BatchNorm's statistics are none."""
  return sum(leaf.size for name, leaf in flatten(params).items() if not is_statistic(name))

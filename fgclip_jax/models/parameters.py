"""Parameters as a nested dict of arrays, and the model as a function of them.

Everything outside `models` handles parameters in this form: keys joined by '/' name a leaf, e.g.
`vision/transformer/blocks/attention/query/kernel` (stacked over depth along its first axis).
"""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx, traverse_util

from fgclip_jax.models.fgclip import FGCLIP
from fgclip_jax.models.presets import ModelConfig
from fgclip_jax.models.transformer import Runtime

Params = Mapping[str, Any]


def flatten(params: Params) -> dict[str, Any]:
  """{'a': {'b': x}} -> {'a/b': x}."""
  return traverse_util.flatten_dict(params, sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `flatten`."""
  return traverse_util.unflatten_dict(flat, sep="/")


def named_leaves(tree: Any) -> dict[str, Any]:
  """The leaves of any tree by the names of their places, as `flatten` names those of nested dicts."""
  paths = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def init_params(config: ModelConfig, key: jax.Array) -> Params:
  """Random parameters, float32; the same for the same key. Jit it to create them sharded."""
  return nnx.to_pure_dict(nnx.state(FGCLIP(config, rngs=nnx.Rngs(key)), nnx.Param))


def abstract_params(config: ModelConfig) -> Params:
  """The shapes and dtypes of the parameters, without making them."""
  return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def build(config: ModelConfig, params: Params, runtime: Runtime = Runtime()) -> FGCLIP:
  """A model that computes with these parameters; cheap, and free of side effects under jit."""
  abstract = nnx.eval_shape(lambda: FGCLIP(config, runtime, rngs=nnx.Rngs(0)))
  graphdef, state = nnx.split(abstract)
  nnx.replace_by_pure_dict(state, params)
  return nnx.merge(graphdef, state)


def count(params: Params) -> int:
  """The number of parameters."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))

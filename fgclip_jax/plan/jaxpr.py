"""The matrix operations of a traced program: what a step computes, before a compiler has seen it.

XLA's cost analysis counts a loop's body once and sees nothing in custom kernels; here both are counted.
"""

import collections
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np


def matrix_operations(jaxpr: Any, devices: int) -> collections.Counter:
  """Operations of matrix products and convolutions, recomputation and empty slots included; a multiply-add is two.

  Args:
    jaxpr: of the traced step, in global shapes.
    devices: each runs the parts under `shard_map` on its own shapes.

  Returns:
    Operations of all devices under `float32` (full precision was asked for) and `other`. Of several branches the
    dearest is counted (which kernel is taken is decided when lowering).
  """
  total: collections.Counter = collections.Counter()
  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
      (contracted, _), _ = params["dimension_numbers"]
      left, output = equation.invars[0].aval, equation.outvars[0].aval
      depth = math.prod(left.shape[axis] for axis in contracted)
      total[_precision(params["precision"], left.dtype)] += 2 * math.prod(output.shape) * depth
    elif name == "conv_general_dilated":
      kernel, output = equation.invars[1].aval, equation.outvars[0].aval
      outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
      operations = 2 * math.prod(output.shape) * (math.prod(kernel.shape) // outputs)
      total[_precision(params["precision"], kernel.dtype)] += operations
    elif name == "cond":
      branches = [matrix_operations(branch.jaxpr, devices) for branch in params["branches"]]
      total += max(branches, key=lambda counts: sum(counts.values()))
    else:
      times = 1
      if name == "scan":
        times = params["length"]
      elif name == "shard_map":
        times = devices
      elif name == "pallas_call":
        times = math.prod(params["grid_mapping"].grid)
      for inner in _inner(params):
        for kind, count in matrix_operations(inner, devices).items():
          total[kind] += times * count
  return total


def _inner(params: dict[str, Any]) -> Iterator[Any]:
  for value in params.values():
    value = getattr(value, "jaxpr", value)  # closed or not
    if hasattr(value, "eqns"):
      yield value


def _precision(precision: Any, dtype: Any) -> str:
  highest = jax.lax.Precision.HIGHEST
  full = precision == highest or (isinstance(precision, tuple) and highest in precision)
  return "float32" if full and dtype == np.float32 else "other"

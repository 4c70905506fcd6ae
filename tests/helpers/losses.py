"""What the tests of losses over devices share."""

import re

import jax
import numpy as np

AXES = ("data", "fsdp")  # that the batch is split over


def over(shape):
  """A mesh of the simulated devices; () is none."""
  axis_types = (jax.sharding.AxisType.Auto,) * 3
  return jax.make_mesh(shape, (*AXES, "tensor"), axis_types=axis_types) if shape else None


def elements(program: str) -> int:
  """The size of the largest array that a program's text names, in StableHLO or in HLO."""
  shapes = re.findall(r"tensor<((?:\d+x)+)[a-z]", program) + re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", program)
  return max(int(np.prod([int(side) for side in re.findall(r"\d+", shape)])) for shape in shapes)

"""Compiling for TPUs in a process of its own: libtpu's compiler was once seen to hang, and nothing ends it then."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fgclip_jax.plan import hardware

ROOT = Path(__file__).resolve().parents[2]


def need_libtpu() -> None:
  """Skips the test where TPUs cannot be described or compiled for."""
  pytest.importorskip("libtpu", reason="needs libtpu, see requirements-tpu.txt")


def tpus(name: str, slices: int = 1) -> tuple:
  """The devices of a topology, as `hardware.describe` takes it; skips without libtpu."""
  need_libtpu()
  hardware.prepare_environment(name)
  return hardware.describe(name, slices).devices


def run(command: Sequence[str], seconds: float, **options) -> subprocess.CompletedProcess[str]:
  """What the command returned and printed; one that takes longer than it may is killed and begun anew, once."""
  options |= {"capture_output": True, "text": True, "check": False, "timeout": seconds}
  try:
    return subprocess.run(command, **options)
  except subprocess.TimeoutExpired:
    print(f"not done in {seconds:g} s, begun anew: {' '.join(command)}")
    return subprocess.run(command, **options)


def printed(function: Callable[[], None]) -> str:
  """What a function of a test module that compiles for TPUs prints in a process of its own; skips without libtpu."""
  need_libtpu()
  code = f"from {function.__module__} import {function.__name__} as function; function()"
  done = run([sys.executable, "-c", code], 120, env=os.environ | {"PYTHONPATH": str(ROOT)})
  assert done.returncode == 0, done.stderr
  return done.stdout

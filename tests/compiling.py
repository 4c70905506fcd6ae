"""Compiling for TPUs in a process of its own: libtpu's compiler was once seen to hang, and nothing ends it then."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRIES = 2


def run(command: Sequence[str], seconds: float, **options) -> subprocess.CompletedProcess[str]:
  """What the command returned and printed; one that takes longer than it may is killed and begun anew, once."""
  for left in reversed(range(TRIES)):
    try:
      return subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds, **options)
    except subprocess.TimeoutExpired:
      if not left:
        raise
      print(f"not done in {seconds:g} s, begun anew: {' '.join(command)}")
  raise AssertionError("there is a last try")


def printed(function: Callable[[], None], seconds: float = 120) -> str:
  """What a function of a test module prints in a process of its own, where devices are described, not present."""
  code = f"from {function.__module__} import {function.__name__} as function; function()"
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  done = run([sys.executable, "-c", code], seconds, env=environment)
  assert done.returncode == 0, done.stderr
  return done.stdout

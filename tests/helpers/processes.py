"""Runs of two processes with four devices each, which tests start and wait for."""

import os
import subprocess
import sys

from tests.helpers import buckets


def run_two(code: str, root, cache: str, *arguments: str) -> list[str]:
  """Runs a script twice, with `index coordinator` before the arguments; returns what each printed.

  Args:
    code: the script.
    root: the repository.
    cache: a folder of compiled programs.
    arguments: what follows `index coordinator` on the command line.
  """
  coordinator = f"localhost:{buckets.free_port()}"
  environment = os.environ | {"PYTHONPATH": str(root), "JAX_NUM_CPU_DEVICES": "4"}
  environment |= {"JAX_COMPILATION_CACHE_DIR": cache}  # the second run in a process finds what the first has compiled
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", code, str(index), coordinator, *arguments],
      env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    for index in range(2)
  ]  # fmt: skip
  outputs = [process.communicate(timeout=600)[0] for process in processes]  # compiling takes minutes where all is busy
  assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
  return outputs

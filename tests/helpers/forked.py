"""Runs a command many times without waiting for its imports: a process that has made them forks for each run."""

import json
import os
import subprocess
import sys
from typing import Any

# Imports first what a command needs, then for each line of its input runs the module in a fork. JAX starts its threads
# with its first computation, so that a process which has only imported it may fork.
_SERVER = """
import importlib, json, os, runpy, signal, sys, tempfile
for name in sys.argv[3:]:
  importlib.import_module(name)
for line in sys.stdin:
  arguments, folder = json.loads(line)
  files = [tempfile.TemporaryFile() for _ in range(2)]
  child = os.fork()
  if not child:
    signal.alarm(int(sys.argv[2]))
    os.chdir(folder)
    for number, file in enumerate(files, 1):
      os.dup2(file.fileno(), number)
    sys.argv = [sys.argv[1], *arguments]
    code = 1
    try:
      runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
      code = 0
    except SystemExit as end:
      code = end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException:
      sys.excepthook(*sys.exc_info())
    finally:
      sys.stdout.flush(), sys.stderr.flush()
      os._exit(code)
  status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  for file in files:
    file.seek(0)
  print(json.dumps([status, *(file.read().decode() for file in files)]), flush=True)
"""


class ForkedCommand:
  """A module that can be run as `python -m` does; a context.

  Args:
    module: the command, e.g. `fgclip_jax.main`.
    imports: modules that are imported once, not the command itself.
    seconds: what a run may take before it is killed.
    environment: as for `subprocess`.
  """

  def __init__(self, module: str, *imports: str, seconds: int = 100, environment: dict[str, str] | None = None):
    self._process: Any = subprocess.Popen(
      [sys.executable, "-c", _SERVER, module, str(seconds), *imports],
      env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip

  def __call__(self, *arguments: str, folder: str | os.PathLike = ".") -> tuple[int, str, str]:
    """Runs the command in a folder; returns its exit code and what it printed to stdout and stderr."""
    self._process.stdin.write(json.dumps([arguments, os.fspath(folder)]) + "\n")
    self._process.stdin.flush()
    return tuple(json.loads(self._process.stdout.readline()))

  def __enter__(self) -> "ForkedCommand":
    return self

  def __exit__(self, *_: Any) -> None:
    self._process.stdin.close()
    self._process.wait()

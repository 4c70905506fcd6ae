"""Work in a forked process: one in which JAX has computed has threads, and must not fork itself."""

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable


def in_fork(work: Callable[[], object], quiet: bool = True) -> None:
  """Runs something in a process of its own.

  Raises:
    RuntimeError: it failed; the process has printed the traceback.
  """
  sys.stdout.flush()
  child = os.fork()
  if not child:
    code = 1
    try:
      with contextlib.ExitStack() as stack:
        if quiet:
          stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
          stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        work()
      code = 0
    except BaseException:
      traceback.print_exc()
    finally:
      os._exit(code)
  if os.waitpid(child, 0)[1]:
    raise RuntimeError("the work of another process has failed")

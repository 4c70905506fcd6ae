"""A profile of some steps, for TensorBoard and Perfetto; and a server for profiles on demand."""

import shutil
import socket
import tempfile

import jax

from fgclip_jax.storage import paths
from fgclip_jax.storage.errors import first_line


def start_server(port: int) -> None:
  """Lets XProf capture profiles of this process while it runs (in TensorBoard: "Capture profile", HOST:PORT).

  Raises:
    ValueError: the port cannot be listened on.
  """
  if not 0 < port < 1 << 16:
    raise ValueError(f"--profiler_port {port} cannot be listened on: ports go from 1 to 65535")
  try:
    socket.create_server(("", port)).close()  # the profiler itself would only log that it cannot
  except OSError as error:
    raise ValueError(f"--profiler_port {port} cannot be listened on: {error}") from error
  jax.profiler.start_server(port)


class Profile:
  """A profile of the steps first..last, written under `WORKDIR/profile` for TensorBoard and Perfetto."""

  def __init__(self, steps: tuple[int, ...], workdir: str):
    self._first, self._last = steps or (0, 0)
    self._folder, self._running = paths.join(workdir, "profile"), False
    self._written = self._folder  # by the profiler, which knows no buckets

  def before(self, step: int) -> None:
    """Starts before its first step."""
    if step == self._first:
      if paths.is_remote(self._folder):
        self._written = tempfile.mkdtemp()
      jax.profiler.start_trace(self._written, create_perfetto_trace=True)
      self._running = True

  def ends(self, step: int) -> bool:
    """Whether all steps up to this one must be done before the next: at the first and last step of the profile."""
    return step in (self._first - 1, self._last) and self._last > 0

  def after(self, step: int) -> None:
    """Ends after its last step."""
    if self._running and step == self._last and self.close():
      print(f"wrote {self._folder} (a profile of steps {self._first} to {self._last})")

  def close(self) -> bool:
    """Ends the profile, if it is running; returns whether it was written. A full disk does not end the run."""
    if not self._running:
      return False
    self._running = False
    try:
      jax.profiler.stop_trace()
      if paths.is_remote(self._folder):
        paths.upload(self._written, self._folder)
        shutil.rmtree(self._written, ignore_errors=True)
    except Exception as error:  # of the profiler, or of the storage
      print(f"no profile in {self._folder}: {first_line(error)}", flush=True)
      return False
    return True

"""The folder of a run, on a disk or in a bucket: how it is made, and held by one run at a time.

Whoever trains there holds a lease, `WORKDIR/lease.json`, and renews it. A new run that finds one of a process which is
gone from this machine takes it at once; any other one it watches for a while. If it is not renewed meanwhile, its run
was killed on another machine. No two clocks are compared.
"""

import json
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import jax

from fgclip_jax.storage import paths
from fgclip_jax.storage.errors import AccessRefusedError, UnreachableError, retry

FILE = "lease.json"
RENEWED_EVERY = 10.0  # seconds
WATCHED = 3.5  # intervals without a renewal after which the holder counts as gone
_SETTLES = 1.0  # seconds after which one of two runs that begin at the same moment sees the other's lease in a bucket


def make_workdir(workdir: str) -> None:
  """Makes the run's folder; an OSError where it cannot be written, a ValueError for a URL that can hold no run."""
  paths.check(workdir, "--workdir", write=True)
  if paths.is_remote(workdir):
    probe = paths.join(workdir, f".probe-{jax.process_index()}")

    def write() -> None:
      paths.make_folder(workdir)
      paths.write(probe, b"")
      paths.remove(probe)

    try:
      retry(write, workdir)
    except (UnreachableError, AccessRefusedError):
      raise
    except Exception as error:  # each storage has error types of its own
      kind = type(error) if isinstance(error, FileNotFoundError | PermissionError) else OSError
      raise kind(f"--workdir {workdir!r} cannot be written: {error}") from error
    return
  if os.path.lexists(workdir) and not os.path.isdir(workdir):
    raise NotADirectoryError(f"--workdir {workdir!r} is a file; name a folder")
  os.makedirs(workdir, exist_ok=True)
  with tempfile.TemporaryFile(dir=workdir):
    pass


class WorkdirInUseError(ValueError):
  """Another run trains in the workdir."""


class Lease:
  """The right to train in a workdir, from now until `close`.

  Args:
    workdir: the run's folder, which exists; may be a URL.
    log: prints a line.
    every: seconds between renewals.

  Raises:
    WorkdirInUseError: another run holds the lease and renews it.
    OSError: the lease cannot be written.
  """

  def __init__(self, workdir: str, log: Callable[[str], object] = print, every: float = RENEWED_EVERY):
    self._workdir, self._log, self._every = workdir, log, every
    self._path = paths.join(workdir, FILE)
    self._holder = {"id": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), **_identity(os.getpid())}
    self._count, self._taken_by = 0, ""
    self._wait_for_holder()
    self._renew()
    time.sleep(_SETTLES if paths.is_remote(workdir) else min(_SETTLES, every) / 20)
    self.check_now()
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
    self._thread.start()

  def check(self) -> None:
    """Raises `WorkdirInUseError` if another run has taken the lease, as it may after this process was suspended."""
    if self._taken_by:
      raise WorkdirInUseError(
        f"{self._taken_by} has begun to train in {self._workdir}: this run had not renewed its lease "
        f"({FILE}) for too long, and ends"
      )

  def check_now(self) -> None:
    """The same, from what the file holds at this moment."""
    found = _read(self._path)
    if found and found.get("id") != self._holder["id"]:
      self._taken_by = _name(found)
    self.check()

  def close(self) -> None:
    """Gives the lease back."""
    self._ended.set()
    self._thread.join()
    try:
      found = _read(self._path)
      if found and found.get("id") == self._holder["id"]:
        paths.remove(self._path)
    except Exception as error:  # each storage has error types of its own
      self._log(f"{self._path} could not be removed ({error}); the next run watches it for a moment")

  def _wait_for_holder(self) -> None:
    """Returns once nobody holds the lease."""
    found = _read(self._path)
    if found is None or _is_gone(found):
      return
    seconds = WATCHED * self._every
    self._log(f"{_name(found)} had this workdir; waiting up to {seconds:.0f} s to see whether it still trains")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
      time.sleep(min(self._every / 4, 1.0))
      now = _read(self._path)
      if now is None:
        return
      if now != found:
        raise WorkdirInUseError(
          f"{_name(now)} trains in {self._workdir}: end that run first, or give another --workdir"
        )

  def _renew(self) -> None:
    self._count += 1
    paths.write(self._path, json.dumps({**self._holder, "renewed": self._count}).encode())

  def _keep(self) -> None:
    failing = False
    while not self._ended.wait(self._every):
      try:
        self.check_now()
        self._renew()
        failing = False
      except WorkdirInUseError:
        return  # the loop raises it at its next save
      except Exception as error:  # a full disk or a lost network; each storage raises its own types
        if not failing:
          self._log(f"{self._path} cannot be renewed ({error}); trying again")
        failing = True


def _read(path: str) -> dict[str, Any] | None:
  """Returns what a lease says; None: there is none. One that is damaged names nobody."""
  try:
    found = json.loads(paths.read(path, 0, 1 << 16))
  except FileNotFoundError:
    return None
  except ValueError:
    return {}
  return found if isinstance(found, dict) else {}


def _identity(pid: int) -> dict[str, str]:
  """Tells a process from all others: the machine since it was started, and on Linux the container and the process."""
  try:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
      machine = f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
      return {"machine": machine, "started": file.read().rpartition(")")[2].split()[19]}
  except OSError:
    return {"machine": f"{uuid.getnode():x}", "started": ""}


def _is_gone(holder: dict[str, Any]) -> bool:
  """Whether the holder was a process of this machine that has ended; False where that cannot be known."""
  pid = holder.get("pid")
  if not isinstance(pid, int) or holder.get("machine") != _identity(os.getpid())["machine"]:
    return False
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return True
  except (OSError, OverflowError):
    return False
  return _identity(pid)["started"] != holder.get("started")  # another process has got its number


def _name(holder: dict[str, Any]) -> str:
  host, pid = (str(holder.get(key, "?"))[:80] for key in ("host", "pid"))
  return f"process {pid} on {host}" if holder else f"a run whose {FILE} is damaged"

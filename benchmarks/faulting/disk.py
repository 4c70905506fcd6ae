"""A disk that can be full, and runs on it."""

import ctypes
import os
import resource

from faulting.bench import Bench
from faulting.runs import Attempt

DISK_MIB = 64


def full_disk(bench: Bench, for_good: bool) -> None:
  """A disk without a free byte, until it has room again; or until the run gives up."""
  name = "disk, full for good" if for_good else "disk"
  with Disk(os.path.join(bench.folder, name)) as disk:
    run = bench.run(os.path.join(name, "run"))
    attempt = run.start()
    attempt.wait_for("step 10")
    disk.fill(attempt)
    if for_good:
      attempt.end()
    else:
      attempt.wait_for("(2 of 3 failures in a row)")
    disk.free(attempt)
    attempt.end()
    how = "until the run ended" if for_good else "for two saves"
    said = attempt.find("error:" if for_good else "could not be saved")
    bench.report(f"a full disk ({disk.kind}) {how}", run, said)


class Disk:
  """A small disk that can be filled to the last byte: a tmpfs, or where mounting is not allowed a limit on files.

  Attributes:
    folder: where it is.
    kind: what it is.
  """

  def __init__(self, folder: str):
    self.folder, self._ballast = folder, os.path.join(folder, "ballast")
    os.makedirs(folder)
    # MS_NOSUID | MS_NODEV
    options = f"size={DISK_MIB}m".encode()
    self._mounted = ctypes.CDLL(None).mount(b"tmpfs", folder.encode(), b"tmpfs", 6, options) == 0
    self.kind = f"tmpfs of {DISK_MIB} MiB" if self._mounted else "RLIMIT_FSIZE of the process"

  def fill(self, attempt: Attempt) -> None:
    """Leaves no byte free."""
    if not self._mounted:
      resource.prlimit(attempt.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
      return
    size = 1 << 20
    with open(self._ballast, "wb", buffering=0) as file:
      while size:
        try:
          file.write(bytes(size))
        except OSError:
          size //= 2

  def free(self, attempt: Attempt) -> None:
    """Makes room again."""
    if self._mounted:
      os.remove(self._ballast)
    elif attempt.running():
      resource.prlimit(attempt.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

  def __enter__(self) -> "Disk":
    return self

  def __exit__(self, *_) -> None:
    if self._mounted:
      ctypes.CDLL(None).umount2(self.folder.encode(), 2)  # MNT_DETACH

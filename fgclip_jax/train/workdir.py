"""The folder of a run, on a disk or in a bucket."""

import os
import tempfile

import jax

from fgclip_jax.storage import paths


def make_workdir(workdir: str) -> None:
  """Makes the run's folder; an OSError where it cannot be written, a ValueError for a URL that can hold no run."""
  paths.check(workdir, "--workdir", paths.ORBAX, write=True)
  if paths.is_remote(workdir):
    probe = paths.join(workdir, f".probe-{jax.process_index()}")
    try:
      paths.write(probe, b"")
      paths.remove(probe)
    except Exception as error:  # each storage has error types of its own
      kind = type(error) if isinstance(error, FileNotFoundError | PermissionError) else OSError
      raise kind(f"--workdir {workdir!r} cannot be written: {error}") from error
    return
  if os.path.lexists(workdir) and not os.path.isdir(workdir):
    raise NotADirectoryError(f"--workdir {workdir!r} is a file; name a folder")
  os.makedirs(workdir, exist_ok=True)
  with tempfile.TemporaryFile(dir=workdir):
    pass

"""What commands share: the exit code of an error."""

import errno

import pytest

from fgclip_jax import cli
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.paths import NotRegularFileError


@pytest.mark.parametrize(
  ("error", "code"),
  [
    (ValueError("a key"), cli.WRONG_USAGE),
    (RecordError("kind", "field", "wrong"), cli.WRONG_USAGE),
    (FileNotFoundError("no data set folder"), cli.WRONG_USAGE),
    (OSError(errno.ENOTDIR, "Not a directory", "a/b"), cli.WRONG_USAGE),
    (OSError(errno.EROFS, "Read-only file system", "a"), cli.WRONG_USAGE),
    (OSError(errno.EACCES, "Permission denied", "a"), cli.WRONG_USAGE),
    (NotRegularFileError("a", 0o010644), cli.WRONG_USAGE),
    (ModuleNotFoundError("libtpu is not installed"), cli.WRONG_USAGE),
    (OSError(errno.ENOSPC, "No space left on device", "a"), cli.FAILED),
    (OSError(errno.EIO, "Input/output error"), cli.FAILED),
    (OSError(errno.ESTALE, "Stale file handle"), cli.FAILED),
    (ConnectionError("could not join the other processes"), cli.FAILED),
    (TimeoutError(), cli.FAILED),
    (OSError("a bucket does not answer"), cli.FAILED),
    (FloatingPointError("NaN"), cli.FAILED),
    (MemoryError(), cli.FAILED),
  ],
  ids=repr,
)
def test_only_what_can_never_work_is_wrong_usage(error, code):
  assert cli.exit_code(error) == code

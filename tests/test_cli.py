"""What commands share."""

import errno

import pytest

from fgclip_jax.cli import FAILED, WRONG_USAGE, exit_code, print_error


def test_an_error_cannot_write_on_the_terminal(capsys):
  print_error(ValueError("a\x1b[2Jb.jpg\rc:\nsecond line \u202e"))
  assert capsys.readouterr().err == "error: a\\x1b[2Jb.jpg\\rc:\nsecond line \\u202e\n"


@pytest.mark.parametrize(
  ("error", "code"),
  [
    (ValueError("a key"), WRONG_USAGE),
    (FileNotFoundError("a path"), WRONG_USAGE),
    (OSError(errno.EROFS, "read-only"), WRONG_USAGE),
    (OSError(errno.ENOSPC, "full"), FAILED),
    (TimeoutError("network"), FAILED),
  ],
)
def test_what_may_pass_is_tried_again(error, code):
  assert exit_code(error) == code

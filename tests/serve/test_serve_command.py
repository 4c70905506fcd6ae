"""The command: it answers, ends by a signal, and refuses what would not be safe."""

import os
import re
import signal
import subprocess
import sys

import jax
import pytest

from fgclip_jax.models import params
from fgclip_jax.serve import __main__ as command
from fgclip_jax.weights import native
from tests.serve.conftest import Caller

pytest.importorskip("fastapi", reason="needs fastapi, see requirements-serve.txt")
pytest.importorskip("uvicorn", reason="needs uvicorn, see requirements-serve.txt")


def test_sizes_of_batches():
  assert command.sizes(1) == [1] and command.sizes(8) == [1, 2, 4, 8] and command.sizes(12) == [1, 2, 4, 8, 12]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--host", "0.0.0.0"], "give --token_file"),
    (["--host", "0.0.0.0", "--token_file", "short.txt"], "at least 16 characters"),
    (["--token_file", "gone.txt"], "gone.txt"),
    (["--port", "70000"], "0..65535"),
    (["--index", "gone"], "is no index"),
    ([], "bash launch/quickstart.sh"),
  ],
)
def test_what_is_refused_before_a_model_is_loaded(tmp_path, monkeypatch, capsys, options, message):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "short.txt").write_text("abc")
  assert command.main(options) == 2
  assert message in capsys.readouterr().err


def test_a_server_of_its_own_answers_and_ends(model, tmp_path):
  native.write(str(tmp_path / "model"), model.config, params.flatten(jax.device_get(model.params)))
  options = ["--model", str(tmp_path / "model"), "--port", "0", "--max_batch", "1"]
  process = subprocess.Popen(
    [sys.executable, "-m", "fgclip_jax.serve", *options], stdout=subprocess.PIPE, text=True, env=os.environ
  )
  assert process.stdout is not None
  try:
    port = next(int(found[1]) for line in process.stdout if (found := re.search(r"http://127.0.0.1:(\d+)", line)))
    assert Caller(port)("/v1/embed/texts", {"texts": ["a"]})[0] == 200
    process.send_signal(signal.SIGINT)
    assert process.wait(20) in (0, -signal.SIGINT)
  finally:
    process.kill()
    process.stdout.close()
    process.wait()

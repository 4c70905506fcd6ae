"""The training command: its errors in one line, and a run from end to end."""

import json
import os
import re
import socket
import subprocess
import sys

import pytest

from fgclip_jax.prepare.sources import scenes
from fgclip_jax.train import config_flags
from tests.helpers.forked import ForkedCommand


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
  folder = str(tmp_path_factory.mktemp("scenes"))
  scenes.write(folder, train=24, validation=2, workers=1)
  return folder


@pytest.fixture
def begin(root, tmp_path):
  """Types the command in an empty folder; returns the process."""
  begun = []

  def begin(*arguments: str) -> subprocess.Popen:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_NUM")}
    environment |= {"PYTHONPATH": str(root)}
    process = subprocess.Popen(
      [sys.executable, "-m", "fgclip_jax.main", *arguments],
      cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    begun.append(process)
    return process

  yield begin
  for process in begun:
    process.kill()


@pytest.fixture
def run(begin):
  """Types the command in an empty folder; returns its exit code and what it printed."""

  def run(*arguments: str) -> tuple[int, str, str]:
    process = begin(*arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err

  return run


@pytest.fixture(scope="module")
def command(root):
  """The command; a mistake in it ends it before JAX starts."""
  environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_NUM")}
  with ForkedCommand(
    "fgclip_jax.main", "fgclip_jax.train.loop", environment=environment | {"PYTHONPATH": str(root)}
  ) as command:
    yield command


@pytest.mark.slow
def test_a_run_from_end_to_end(run, command, root, data, tmp_path):
  arguments = [
    f"--config={root}/configs/stage2.py:tiny",
    "--workdir=runs/tiny",
    f"--config.data.path={data}",
    "--config.data.batch_size=4",
    "--config.data.row_length=1024",
    "--config.data.boxes=2",
    "--config.objective.regional_group=2",
    "--config.steps=4",
    "--config.optimizer.warmup_steps=1",
    "--config.optimizer.learning_rate=1e-3",
    "--config.optimizer.rules=(('^vision', 'frozen', 1.0), ('norm', 'weight_decay', 0.0))",
    "--config.model_changes.vision.depth=1",
    "--config.runtime.dtype=float32",
    "--config.checkpoint_every=2",
    "--config.log_every=1",
  ]
  code, out, err = run(*arguments)
  assert code == 0, err
  assert out.startswith("FG-CLIP tiny: ") and "random weights" in out and "24 records, 6.0 steps an epoch" in out
  for step in (1, 2, 3, 4):
    speed = " images/s  left \\d:\\d\\d" if step > 1 else ""  # the first step is compiled, and measures nothing
    line = rf"^step {step}/4  loss \d+\.\d+ \(global_long .* regional .*\)  lr \d\.\d\de\S+.*{speed}$"
    assert re.search(line, out, re.M), out
  assert "0.0 images/s" not in out
  assert "trained to step 4 in 0:" in out
  assert "wrote runs/tiny/checkpoints (the model), runs/tiny/metrics.jsonl, runs/tiny/tensorboard\n" in out
  assert out.endswith(f"next: python -m fgclip_jax.evaluate --model runs/tiny --data {data}\n")

  workdir = tmp_path / "runs" / "tiny"
  files = ["checkpoints", "config.json", "metrics.jsonl", "model.json", "tensorboard", "timeline.jsonl"]
  assert sorted(os.listdir(workdir)) == files
  assert sorted(os.listdir(workdir / "checkpoints")) == ["2", "4"]
  with open(workdir / "config.json", encoding="utf-8") as file:
    config = json.load(file)
  assert config["steps"] == 4
  assert config["optimizer"]["rules"] == [["^vision", "frozen", 1.0], ["norm", "weight_decay", 0.0]]
  with open(workdir / "model.json", encoding="utf-8") as file:
    assert json.load(file)["model"]["vision"]["depth"] == 1
  with open(workdir / "metrics.jsonl", encoding="utf-8") as file:
    assert [json.loads(line)["step"] for line in file] == [1, 2, 3, 4]
  assert os.listdir(workdir / "tensorboard")

  code, out, err = command(*arguments, folder=tmp_path)
  assert code == 0, err
  assert "continuing runs/tiny from step 4\n" in out and "nothing left to do" in out

  # and another model is refused
  code, out, err = command(*arguments, "--config.model_changes.vision.depth=2", folder=tmp_path)
  assert code == 2 and "error: runs/tiny was begun with another config" in err
  assert "model_changes.vision.depth 1 -> 2" in err
  assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--workdir=w"], "error: --config is missing"),
    (["--config={configs}/stage2.py"], "error: --workdir is missing"),
    (["--config={configs}/stage2.py", "--workdir=w", "stray"], "error: unknown argument 'stray'"),
    (["--config={configs}/stage2.py", "--workdir=w", "--process=0"], "error: give all of --coordinator=HOST:PORT, "),
    (
      ["--config={configs}/stage2.py", "--workdir=w", "--config.data.path=nowhere"],
      "error: no data set folder at 'nowhere'; make one with `python -m fgclip_jax.prepare`",
    ),
    (
      ["--config={configs}/stage2.py:tiny", "--workdir=w", "--config.data.path={data}", "--config.init_from=nowhere"],
      "error: no model folder at 'nowhere'",
    ),
  ],
)
def test_mistakes_end_the_command_before_anything_is_compiled(command, root, data, tmp_path, arguments, message):
  arguments = [argument.format(configs=root / "configs", data=data) for argument in arguments]
  code, out, err = command(*arguments, folder=tmp_path)
  assert code == 2
  assert err.startswith(message) and "Traceback" not in err
  assert not out and not os.listdir(tmp_path)


@pytest.mark.slow
def test_one_of_two_processes_that_cannot_begin_ends_the_other(begin, root, data):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    places = [f"--coordinator=localhost:{free.getsockname()[1]}", "--processes=2"]
  config = [f"--config={root}/configs/stage2.py:tiny", "--workdir=w"]
  processes = [
    begin(*config, *places, f"--process={index}", f"--config.data.path={path}")
    for index, path in enumerate((data, "nowhere"))
  ]
  (out, err), (other_out, other_err) = (process.communicate(timeout=100) for process in processes)
  # no launcher starts either of them again
  assert [process.returncode for process in processes] == [2, 2], err + other_err
  # Gloo, JAX's transport between CPUs, prints a line of its own in each process
  ours, other_ours = (re.sub(r"^\[Gloo\].*\n", "", text, flags=re.MULTILINE) for text in (out, other_out))
  assert ours.startswith("2 processes as given by flags, this is process 0 at localhost:") and not other_ours
  assert "error: process 1 of 2 ended: no data set folder at 'nowhere'" in err
  assert other_err.startswith("error: no data set folder at 'nowhere'") and "Traceback" not in err + other_err


@pytest.mark.slow
@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--cofig=x"], "error: Unknown command line flag 'cofig'. Did you mean: config ?"),
    (
      ["--config=configs/stage2.py", "--workdri=x"],
      "error: Unknown command line flag 'workdri'. Did you mean: workdir",
    ),
    (["--processes=two"], "error: flag --processes=two: invalid literal for int"),
    (["--workdir"], "error: Missing value for flag --workdir"),
    (["--config=nowhere.py"], "error: no config file at 'nowhere.py'"),
    (["--config=tests/conftest.py"], "error: tests/conftest.py is no config file: it has no function get_config"),
    (["--config=pyproject.toml"], "error: .*pyproject.toml"),
    (["--config=configs/quickstart.py:stage3"], "error: .* takes stage1 or stage2 or .* after the colon, got 'stage3'"),
    (
      ["--config=configs/stage2.py", "--config.steps=3", "--config.data.pth=x"],
      "error: config.data has no key 'pth': it has batch_size, boxes, .*path, ",
    ),
    (
      ["--config=configs/stage2.py", "--config.foo=1"],
      "error: config has no key 'foo': it has checkpoint, checkpoint_every, ",
    ),
    (["--config", "configs/stage2.py", "--config.foo=1"], "error: config has no key 'foo'"),
    (
      ["--config=configs/stage2.py", "--config.steps.x=1"],
      "error: config.steps has no key 'x': it is a value, not a section",
    ),
    (
      ["--config=configs/stage2.py", "--config.model.text.width=8"],
      "error: config.model has no key 'text': it is a value, not a section",
    ),
    (
      ["--config=configs/stage2.py", "--config.optimizer.learning_rate=fast"],
      "error: .*config.optimizer.learning_rate=fast: could not convert string to float",
    ),
    (["--config=configs/stage2.py", "--config.steps=1.5"], "error: .*config.steps=1.5: invalid literal for int"),
    (["--config=configs/stage2.py", "--config.data=3"], "error: .*config.data=3: Failed to parse"),
    (["--config.steps=3", "--config=configs/stage2.py"], "error: Found --config.steps=3 in argv before"),
  ],
)
def test_mistakes_in_the_flags(command, root, arguments, message):
  code, out, err = command("--workdir=w", *arguments, folder=root)
  assert code == 2 and not out
  assert re.fullmatch(f"{message}.*\n", err), err


@pytest.mark.slow
@pytest.mark.parametrize(
  "body", ["1 / 0", "raise RuntimeError('two\\nlines')", "return [][3]", "import nothing_there", "exit(0)", "pass",
           "return {'steps': 3}", "return get_config()", "None.x", "'\0'"]
)  # fmt: skip
def test_a_config_file_that_fails(command, tmp_path, body):
  (tmp_path / "mine.py").write_text(f"def get_config():\n  {body}\n")
  code, _, err = command("--workdir=w", "--config=mine.py", folder=tmp_path)
  assert code == 2
  assert re.fullmatch("error: .*mine.py.+\n", err), err


def test_a_mistyped_flag_is_found_before_the_config_is_read(tmp_path):
  (tmp_path / "mine.py").write_text("raise SystemExit('read')\n")
  code = "from fgclip_jax.train.config_flags import *; import sys; parse_flags(sys.argv)"
  for arguments in (["--config=mine.py", "--other=3"], ["--config", "mine.py", "--config.steps", "3", "--other"]):
    ended = subprocess.run(
      [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
      env={"PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert ended.returncode == 2
    assert re.fullmatch("error: Unknown command line flag 'other'.*\n", ended.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--help", "-h", "-help", "--helpshort", "--helpfull"])
def test_help(command, tmp_path, flag):
  code, out, err = command("--config=nowhere.py", flag, folder=tmp_path)
  assert (code, err) == (0, "")
  assert out.startswith("Trains a model.\n")
  assert re.search(r"^  --config +A config file", out, re.M) and re.search(r"^  --workdir +The folder", out, re.M)
  assert "--heartbeat_timeout" in out and "(default: 100.0)" in out
  assert max(map(len, out.splitlines())) <= 140


def test_what_is_left_without_the_config():
  arguments = ["main", "--config", "a.py", "--config.steps", "-3", "--noconfig.data.packed", "--workdir=w", "-config=b"]
  assert config_flags._without_config(arguments) == ["main", "--workdir=w"]
  assert config_flags._without_config(["main", "--config.data.packed", "--other", "3"]) == ["main", "--other", "3"]


def test_the_config_argument_in_both_forms():
  assert config_flags.flag_value(["main", "--config=a.py:b", "--workdir=w"], "config") == "a.py:b"
  assert config_flags.flag_value(["main", "--workdir=w", "--config", "a.py"], "config") == "a.py"
  assert config_flags.flag_value(["main", "--config.steps=3"], "config") == ""


def test_a_config_by_path_or_by_name(root, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert config_flags._find_config("stage2") == str(root / "configs" / "stage2.py")
  (tmp_path / "stage2").touch()
  assert config_flags._find_config("stage2") == "stage2"
  for unknown in ("stage3", "", "../fgclip_jax/main"):
    with pytest.raises(SystemExit):
      config_flags._find_config(unknown)
    assert capsys.readouterr().err.endswith("there are clip, common, fgclip2, quickstart, stage1, stage2\n")


@pytest.mark.slow
@pytest.mark.parametrize(
  "config", [["--config=mine.py"], ["--config", "mine.py"], ["--config", "common"], ["-config=common"]]
)
def test_a_config_of_ones_own_imports_its_neighbours_and_ours(command, tmp_path, config):
  (tmp_path / "base.py").write_text("from configs import common\nget_config = common.get_config\n")
  (tmp_path / "mine.py").write_text("from configs.base import get_config\n")
  code, out, err = command("--workdir=w", *config, "--config.steps=0", folder=tmp_path)
  # the config was read, and its key set
  assert (code, out, err) == (2, "", "error: config.steps must be a whole number in 1..2147483647, got 0\n")

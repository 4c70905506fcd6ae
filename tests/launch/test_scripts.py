"""All scripts: shellcheck, mistakes in their flags; setup.sh and train_loop.sh."""

import itertools
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.slow

PREEMPTED, WRONG_USAGE = 75, 2
JOB = ["--name=night", "--image=image", "--claim=shared"]


def test_shellcheck_finds_nothing(root):
  scripts = sorted((root / "launch").rglob("*.sh"))
  assert len(scripts) >= 9
  shellcheck = pathlib.Path(sys.executable).parent / "shellcheck"
  ended = subprocess.run([shellcheck, "-x", *scripts], cwd=root, capture_output=True, text=True)
  assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize(
  ("command", "message"),
  [
    (["launch/train_loop.sh"], "which command"),
    (["launch/train_loop.sh", "--max_restarts=few", "true"], "--max_restarts takes a whole number, got 'few'"),
    (["launch/train_loop.sh", "--preempted=later", "true"], "unknown flag '--preempted=later'"),
    (["launch/tpu_vm.sh", "--config=configs/stage1.py"], "the training's own flags come after --"),
    (["launch/tpu_pod.sh", "begin", "--name=n", "--zone=z"], "create, train, log, stop or delete, got 'begin'"),
    (["launch/tpu_pod.sh", "train", "--name=n", "--", "--config=c"], "--zone is missing"),
    (["launch/tpu_pod.sh", "create", "--name=n", "--zone=z", "--type=t"], "--version is missing"),
    (["launch/tpu_pod.sh", "train", "--name=n", "--zone=z"], "the training's flags"),
    (["launch/slurm.sh", "--max_restarts=1"], "the training's flags come after --"),
    (["launch/kubernetes.sh", "cpu"], "tpu or gpu, got 'cpu'"),
    (["launch/kubernetes.sh", "gpu", *JOB, "--", "--config=c"], "--nodes is missing"),
    (["launch/kubernetes.sh", "tpu", *JOB, "--accelerator=a", "--topology=16", "--", "-c"], "4x4x8, got '16'"),
    (
      ["launch/kubernetes.sh", "tpu", *JOB, "--accelerator=a", "--topology=16x16", "--chips_per_host=3", "--", "-c"],
      "256 chips are no multiple of --chips_per_host=3",
    ),
  ],
)
def test_a_mistake_is_said_before_anything_runs(machine, command, message):
  here = machine("gcloud", "kubectl", "srun")
  assert message in here.bash(*command, code=2).stderr
  assert here.calls() == []


def test_setup_installs_what_has_changed(machine, root, tmp_path):
  here = machine()
  copy = tmp_path / "repository"
  shutil.copytree(root / "launch", copy / "launch")
  for path in (*root.glob("requirements*.txt"), root / "pyproject.toml", root / "setup.py"):
    shutil.copy(path, copy)
  (copy / ".venv/bin").mkdir(parents=True)
  here.fake(tmp_path / "pip")
  # pip is a fake, everything else Python
  python = copy / ".venv/bin/python"
  python.write_text(
    f'#!/bin/bash\n[[ "$2" == pip ]] && exec "{tmp_path}/pip" "${{@:3}}"\nexec "{sys.executable}" "$@"\n'
  )
  python.chmod(0o755)

  def installed(*flags: str) -> list[str]:
    before = len(here.calls())
    here.bash(str(copy / "launch/setup.sh"), *flags)
    calls = [call for call in here.calls()[before:] if "install" in call]
    assert all(call[-2:] == ["--editable", "."] for call in calls)
    return [arg.removeprefix("--requirement=") for call in calls for arg in call if arg.startswith("--requirement")]

  assert installed() == ["requirements.txt"]
  assert installed() == []
  tpu = ["requirements.txt", "requirements-tpu.txt", "requirements-gcs.txt"]
  assert installed("--tpu", "--dev") == [*tpu, "requirements-dev.txt"]
  assert installed("--tpu") == installed("--dev") == installed() == []
  text = (copy / "requirements-tpu.txt").read_text()
  for changed in (text + "six\n", text):
    (copy / "requirements-tpu.txt").write_text(changed)
    assert installed() == installed("--dev") == []
    assert installed("--tpu") == tpu
  (copy / "pyproject.toml").write_text((copy / "pyproject.toml").read_text() + "# changed\n")
  assert installed() == ["requirements.txt"] and installed("--tpu") == []
  here.ends_with("pip", 0, 1)
  (copy / "requirements.txt").write_text("six\n")
  here.bash(str(copy / "launch/setup.sh"), code=1)
  assert installed() == ["requirements.txt"]  # what has failed is tried again
  assert "usage" in here.bash(str(copy / "launch/setup.sh"), "--cpu", code=2).stderr


def expected_runs(codes: list[int], max_restarts: int, stop_at_preemption: bool) -> tuple[int, int]:
  """How often a command with these exit codes (0 after them) runs, and the code it ends with."""
  failures = 0
  for runs, code in enumerate(itertools.chain(codes, itertools.repeat(0)), 1):
    failures += code not in (0, PREEMPTED)
    if code in (0, WRONG_USAGE) or failures > max_restarts or (code == PREEMPTED and stop_at_preemption):
      return runs, code
  raise AssertionError("unreachable")


@settings(max_examples=25)
@given(
  codes=st.lists(st.sampled_from([1, 134, 137, PREEMPTED, WRONG_USAGE]), max_size=6),
  max_restarts=st.integers(0, 4),
  stop_at_preemption=st.booleans(),
)
@example(codes=[1, PREEMPTED, 1, PREEMPTED, 1], max_restarts=2, stop_at_preemption=False)
@example(codes=[1, WRONG_USAGE, 1], max_restarts=4, stop_at_preemption=False)
def test_failures_are_counted_and_preemptions_are_not(root, tmp_path_factory, codes, max_restarts, stop_at_preemption):
  folder = tmp_path_factory.mktemp("loop")
  (folder / "codes").write_text("\n".join(map(str, [*codes, 0])) + "\n")
  # prints a line for each run and ends with the next code
  command = 'echo run; read -r code < codes; sed -i 1d codes; exit "$code"'
  flags = [f"--max_restarts={max_restarts}", "--pause=0", f"--preempted={'stop' if stop_at_preemption else 'restart'}"]
  ended = subprocess.run(
    ["bash", root / "launch/train_loop.sh", *flags, "bash", "-c", command],
    cwd=folder,
    capture_output=True,
    text=True,
  )
  runs, code = expected_runs(codes, max_restarts, stop_at_preemption)
  assert (ended.stdout.count("run"), ended.returncode) == (runs, code), ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("code", [PREEMPTED, 0, 1])
def test_a_signal_lets_the_run_save_and_ends_the_loop(root, tmp_path, number, code):
  # like training: says that it has begun, and saves for a while when it is told to end
  save = f"trap 'sleep 0.3; echo saved; exit {code}' TERM; echo begun; while :; do sleep 0.05; done"
  loop = subprocess.Popen(
    # tests that run in the background ignore Ctrl-C, and so would all that they start
    ["env", "--default-signal=INT", "bash", root / "launch/train_loop.sh", "--pause=0", "bash", "-c", save],
    stdout=subprocess.PIPE,
    text=True,
  )
  assert loop.stdout.readline() == "begun\n"
  loop.send_signal(number)
  printed, _ = loop.communicate(timeout=30)
  assert (printed, loop.returncode) == ("saved\n", code)


def test_a_signal_between_two_runs_ends_the_loop(root):
  loop = subprocess.Popen(
    ["bash", root / "launch/train_loop.sh", "--pause=60", "bash", "-c", "exit 3"], stderr=subprocess.PIPE, text=True
  )
  assert "restart 1 of 3 in 60 s" in loop.stderr.readline()
  loop.send_signal(signal.SIGTERM)
  loop.communicate(timeout=30)
  assert loop.returncode == 3

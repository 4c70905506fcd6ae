"""tpu_vm.sh, on a TPU VM, and tpu_pod.sh, which works on all VMs of slices."""

import shutil
import subprocess
import time
from collections.abc import Callable

import pytest

pytestmark = pytest.mark.slow

FLAGS = [".venv/bin/python", "-m", "fgclip_jax.plan.compiler_flags"]
POD = ["--name=night", "--zone=us-west4-a"]


def test_tpu_vm_installs_and_trains(machine, root, tmp_path):
  here = machine()
  copy = tmp_path / "repository"
  shutil.copytree(root / "launch", copy / "launch")
  (copy / ".venv/bin").mkdir(parents=True)
  here.fake(copy / ".venv/bin/python")
  (copy / "launch/setup.sh").write_text('echo "setup $*"\n')
  script = str(copy / "launch/tpu_vm.sh")

  train = ["env", "JAX_PLATFORMS=tpu,cpu", *FLAGS, ".venv/bin/python", "-m", "fgclip_jax.main", *here.training]
  assert here.printed(script, "--dry_run", "--max_restarts=5", "--", *here.training) == [
    ["bash", "launch/setup.sh", "--tpu"],
    ["exec", "bash", "launch/train_loop.sh", "--max_restarts=5", *train],
  ]
  assert here.bash(script).stdout == "setup --tpu\n"
  assert here.calls() == []  # without the training's flags it only installs

  here.ends_with("python", 1)
  assert "no restarts left of 0" in here.bash(script, "--max_restarts=0", "--", *here.training, code=1).stderr
  here.bash(script, "--", *here.training)
  assert here.calls() == [["python", *FLAGS[1:], ".venv/bin/python", "-m", "fgclip_jax.main", *here.training]] * 2


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize(
  "action",
  [
    ["create", "--type=v5litepod-256", "--version=v2-alpha-tpuv5-lite", "--spot"],
    ["train", "--max_restarts=7"],
    ["log", "--worker=2"],
    ["stop"],
    ["delete"],
  ],
  ids=lambda action: action[0],
)
def test_tpu_pod_prints_what_it_runs(machine, action, slices):
  here = machine("gcloud")
  command = ["launch/tpu_pod.sh", *action, *POD, f"--slices={slices}"]
  training = ["--", *here.training] if action[0] == "train" else []
  printed = [line for line in here.printed(*command, "--dry_run", *training) if line[0] == "gcloud"]
  assert here.calls() == [] and printed
  here.bash(*command, *training)
  assert sorted(here.calls()) == sorted(printed)  # slices are at work at the same time, so in any order


def test_tpu_pod_reaches_every_vm_of_every_slice(machine):
  here = machine()
  pod = [*POD, "--slices=2", "--dry_run"]
  [create] = here.printed("launch/tpu_pod.sh", "create", *pod, "--type=t", "--version=v")
  assert "--node-count=2" in create and "--node-prefix=night" in create
  train = here.printed("launch/tpu_pod.sh", "train", *pod, "--", *here.training)[1:]  # the first packs
  assert all("--worker=all" in command for command in train)
  nodes = ["night-0", "night-1"]
  assert [command[6] for command in train[:2]] == [f"{node}:fgclip_jax.tar.gz" for node in nodes]
  assert [command[5] for command in train[2:]] == nodes * 2  # installs everywhere, then starts


def test_tpu_pod_copies_the_code_and_nothing_that_git_ignores(machine, tmp_path):
  here = machine("gcloud")
  here.bash("launch/tpu_pod.sh", "train", *POD, "--", *here.training)
  archive = tmp_path / "fgclip_jax-night.tar.gz"
  names = subprocess.run(["tar", "-tzf", archive], capture_output=True, text=True, check=True).stdout.splitlines()
  assert {"launch/tpu_vm.sh", "launch/common.sh", "fgclip_jax/main.py", "requirements-tpu.txt"} <= set(names)
  assert not [name for name in names if name.startswith((".venv/", "data/", "runs/", ".git/"))]


def test_tpu_pod_says_when_a_vm_fails(machine):
  here = machine("gcloud")
  here.ends_with("gcloud", 0, 1)  # copying works, installing does not
  ended = here.bash("launch/tpu_pod.sh", "train", *POD, "--", *here.training, code=1)
  assert "failed on a VM" in ended.stderr
  assert len(here.calls()) == 2  # nothing is started then


def test_tpu_pod_starts_and_stops_a_run_that_outlives_the_connection(machine, tmp_path):
  """What is sent to a VM, run here, with a stand-in for the training there."""
  here = machine()
  train = here.printed("launch/tpu_pod.sh", "train", "--dry_run", *POD, "--", *here.training)
  [stop] = here.printed("launch/tpu_pod.sh", "stop", "--dry_run", *POD)
  install, start, stop = (command[-1].removeprefix("--command=") for command in (*train[-2:], stop))
  home = tmp_path / "home"
  (home / "source/launch").mkdir(parents=True)
  # without arguments it installs; with them it trains, until it is told to end
  (home / "source/launch/tpu_vm.sh").write_text(
    "(($#)) || { echo installed; exit; }\n"
    "trap 'echo saved; exit 75' TERM\n"
    'printf "%s\\n" "$@"; while :; do sleep 0.05; done\n'
  )
  subprocess.run(["tar", "-czf", home / "fgclip_jax.tar.gz", "-C", home / "source", "launch"], check=True)

  assert here.bash("-c", install, cwd=home).stdout == "installed\n"
  assert here.bash("-c", start, cwd=home).stdout == ""  # comes back at once
  log = home / "fgclip_jax/train.log"
  arguments = ["--max_restarts=3", "--", *here.training]
  wait_until(lambda: log.exists() and log.read_text().splitlines() == arguments)
  assert "a run is under way here" in here.bash("-c", install, cwd=home, code=1).stderr
  here.bash("-c", stop, cwd=home)
  wait_until(lambda: log.read_text().splitlines() == [*arguments, "saved"])
  wait_until(lambda: subprocess.run(["bash", "-c", install], cwd=home, capture_output=True).returncode == 0)


def wait_until(true: Callable[[], bool]) -> None:
  end = time.monotonic() + 30
  while not true():
    assert time.monotonic() < end, "waited for 30 s"
    time.sleep(0.02)

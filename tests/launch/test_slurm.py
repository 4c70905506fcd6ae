"""slurm.sh: a process for each GPU, and back into the queue when preempted."""

import re
import shutil

import pytest

pytestmark = pytest.mark.slow

FLAGS = [".venv/bin/python", "-m", "fgclip_jax.plan.compiler_flags"]
SRUN = ["srun", "--kill-on-bad-exit=0", "--wait=300"]
TRAIN = ["env", "JAX_PLATFORMS=cuda,cpu", *FLAGS, ".venv/bin/python", "-m", "fgclip_jax.main"]


def test_options_ask_for_a_process_for_each_gpu_and_time_to_save(root):
  text = (root / "launch/slurm.sh").read_text()
  options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, re.MULTILINE))
  assert options["ntasks-per-node"] == options["gpus-per-node"]
  assert options["signal"].startswith("TERM@") and "requeue" in options
  # sbatch reads options up to the first command
  assert text.rindex("#SBATCH") < text.index("\nset ")


def test_a_dry_run_prints_the_command(machine):
  here = machine("srun")
  command = ["launch/slurm.sh", "--dry_run", "--max_restarts=2", "--", *here.training]
  loop = ["bash", "launch/train_loop.sh", "--max_restarts=2", "--preempted=stop"]
  assert here.printed(*command) == [[*loop, *SRUN, *TRAIN, *here.training]]
  cores = {"SLURM_CPUS_PER_TASK": "12"}
  assert here.printed(*command, **cores) == [[*loop, *SRUN, "--cpus-per-task=12", *TRAIN, *here.training]]
  assert here.calls() == []


@pytest.mark.parametrize(("code", "requeued"), [(0, 0), (1, 0), (2, 0), (75, 1)])
def test_only_a_preempted_job_goes_back_into_the_queue(machine, root, tmp_path, code, requeued):
  here = machine("srun", "scontrol")
  here.ends_with("srun", code)
  submitted = tmp_path / "submitted"
  shutil.copytree(root / "launch", submitted / "launch")
  (submitted / ".venv/bin").mkdir(parents=True)
  here.fake(submitted / ".venv/bin/python")
  # Slurm runs a copy of the script that lies elsewhere
  script = shutil.copy(root / "launch/slurm.sh", tmp_path / "slurm_script")
  slurm = {"SLURM_SUBMIT_DIR": str(submitted), "SLURM_JOB_ID": "17"}
  restarts = 3 if code == 2 else 0  # a wrong command is not started again, however often it might be
  here.bash(str(script), f"--max_restarts={restarts}", "--", *here.training, cwd=tmp_path, code=code, **slurm)
  assert here.calls("srun") == [[*SRUN, *TRAIN, *here.training]]
  assert here.calls("scontrol") == [["scontrol", "requeue", "17"]] * requeued


@pytest.mark.parametrize(("folder", "message"), [("elsewhere", "from the repository's folder"), ("bare", "no .venv")])
def test_what_is_missing_is_said(machine, root, tmp_path, folder, message):
  (tmp_path / "elsewhere").mkdir()
  shutil.copytree(root / "launch", tmp_path / "bare/launch")
  here = machine("srun")
  command = [str(root / "launch/slurm.sh"), "--", *here.training]
  assert message in here.bash(*command, code=2, SLURM_SUBMIT_DIR=str(tmp_path / folder)).stderr
  assert here.calls() == []

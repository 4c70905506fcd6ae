"""The planning command, and what the compiled step of a tiny model holds and sends."""

import json
import os
import re
import sys

import jax
import pytest

from fgclip_jax.plan import hardware
from fgclip_jax.plan.__main__ import compare
from fgclip_jax.plan.estimate import StepEstimate
from tests.helpers import compiling
from tests.helpers.forked import ForkedCommand

BATCH = 88  # no other axis has this size


@pytest.fixture
def plan(root, tmp_path):
  """Types the command in an empty folder; returns its exit code and what it printed."""

  def plan(*arguments: str, seconds: float = 120) -> tuple[int, str, str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    command = [sys.executable, "-m", "fgclip_jax.plan", *arguments]
    done = compiling.run(command, seconds, cwd=tmp_path, env=environment | {"PYTHONPATH": str(root)})
    return done.returncode, done.stdout, done.stderr

  return plan


@pytest.fixture(scope="module")
def libtpu():
  compiling.need_libtpu()


def made_plan(peak: int, asynchronous: int, problem: str = "") -> StepEstimate:
  found = {"all-reduce": {"times": 8, "asynchronous": asynchronous}}
  plan = StepEstimate({}, {}, {}, {}, problem=problem, memory={"peak": peak}, collectives=found)
  plan.estimate = {"memory_bytes": 2.0 * hardware.GIB}
  return plan


def test_what_flags_change():
  before = made_plan(hardware.GIB, 0)
  *lines, last = compare(before, made_plan(2 * hardware.GIB, 6))
  assert last.split() == ["all-reduce,", "of", "them", "asynchronous", "0", "6"]
  assert lines[1].split() == ["peak", "memory,", "GiB", "1.000", "2.000"]
  assert compare(before, made_plan(hardware.GIB, 0))[-1].startswith("they change nothing of this")
  assert compare(before, made_plan(0, 0, "no room")) == ["without the flags: fits", "with the flags: no room"]


@pytest.mark.slow
def test_a_plan_from_end_to_end(plan, root, tmp_path, libtpu):
  config = f"--config={root}/configs/stage2.py:tiny"
  keys = [f"--config.data.batch_size={BATCH}", "--config.data.boxes=3", "--config.mesh=data=2,fsdp=2"]
  keys.append("--config.objective.regional_group=22")
  code, out, err = plan(config, "--topology=v5e:2x2", *keys, "--json=plan.json", "--long_tokens=100")
  assert code == 0, err
  assert out.startswith("tiny, 1.6 M parameters, 32 px; batch 88, 2,930 steps\nv5e:2x2: 4 x TPU v5 lite; jax ")
  assert "assumed: long captions of 100 tokens, short 15, regions 15, 3.3 boxes an image, 2.5% of them with ten" in out
  assert "\nmesh data=2,fsdp=2,tensor=1; compiling ...\n" in out
  assert re.search(r"^compiles, in \d+ s$", out, re.M)
  assert re.search(r"^memory of a device, GiB: peak 0\.\d+ of 15\.75$", out, re.M)
  assert re.search(r"^  all-reduce +[1-9]\d* ", out, re.M)
  assert re.search(r"^estimate of a step, .* \(no measurement, ", out, re.M)
  assert re.search(r"^  all overlapped .* hours, .* chip-hours$", out, re.M)
  assert f"next: python -m fgclip_jax.main {config} {' '.join(keys)} --workdir=DIR" in out
  with open(tmp_path / "plan.json", encoding="utf-8") as file:
    written = json.load(file)
  assert written["versions"]["jax"] == jax.__version__ and written["captions"]["long"] == 100
  (found,) = written["plans"]
  memory, estimate = found["memory"], found["estimate"]
  assert memory["parameters"] < memory["optimizer"] < memory["peak"] < memory["limit"]
  assert found["operations"]["useful"] < found["operations"]["executed"]
  assert estimate["step_seconds_overlapped"] < estimate["step_seconds_in_turn"]
  assert estimate["chip_hours_in_turn"] == pytest.approx(4 * estimate["step_seconds_in_turn"] * 2930 / 3600)
  assert not found["problem"]
  check_step(found)


def check_step(found: dict):
  """What a compiled step that shares its state over devices must and must not do."""
  checks, memory, collectives = found["checks"], found["memory"], found["collectives"]
  assert not checks["batch_by_batch_arrays"]  # no device holds all images against all captions
  # weights are gathered, their gradients scattered: none is summed as a whole on every device
  assert collectives["all-gather"]["times"] > 0 and collectives["reduce-scatter"]["times"] > 0
  assert not checks["whole_weight_all_reduces"]
  # all of the state is updated in place; what is not are the metrics
  assert checks["donated_bytes"] >= memory["parameters"] + memory["optimizer"]
  assert checks["output_bytes"] - checks["donated_bytes"] < 1e5


@pytest.mark.slow
def test_a_batch_that_is_too_large(plan, root, libtpu):
  arguments = [f"--config={root}/configs/stage1.py:tiny", "--topology=v5e:2x2", "--config.data.batch_size=400000"]
  code, out, err = plan(*arguments, "--config.runtime.remat=none")
  assert code == 1 and not err, err
  assert re.search(r"^does not compile for these devices: RESOURCE_EXHAUSTED: .* exceeds available HBM", out, re.M)
  assert "  --config.runtime.remat=full" in out and "  --config.runtime.micro_batches=" in out
  assert out.endswith("more devices\n")


@pytest.fixture(scope="module")
def command(root):
  """The command, for mistakes that end it before anything is compiled."""
  environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
  environment |= {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
  with ForkedCommand("fgclip_jax.plan", "fgclip_jax.plan.estimate", environment=environment) as command:
    yield command


@pytest.mark.slow
@pytest.mark.parametrize(
  "arguments, message",
  [
    ([], "error: --config is missing"),
    (["--config={configs}/stage1.py:tiny"], "error: --topology is missing"),
    (["--config={configs}/stage1.py:tiny", "--topology=v9:2x2"], "error: --topology 'v9:2x2': give a chip (v4, v5e"),
    (["--config={configs}/stage1.py:tiny", "--topology=v5e:2"], "error: --topology 'v5e:2': give a chip"),
    (["--config={configs}/stage1.py:tiny", "--topology=\n"], "error: --topology '\\n': give a chip"),
    (["--config={configs}/stage1.py:tiny", "--topology=h100:0x8"], "error: --topology 'h100:0x8': give 1 to 131072"),
    (
      ["--config={configs}/stage1.py:tiny", "--topology=v5e:99999x99999"],
      "error: --topology 'v5e:99999x99999': give 1",
    ),
    (["--config={configs}/stage1.py:tiny", "--topology=v5p:" + "9" * 5000 + "x1"], "error: --topology 'v5p:99"),
    (
      ["--config={configs}/stage1.py:tiny", "--topology=v5e:2x2", "--slices=999999"],
      "error: --topology 'v5e:2x2' --sl",
    ),
    (["--config={configs}/stage1.py:tiny", "--topology=v5e:2x2", "--slices=0"], "error: --slices must be at least 1"),
    (["--config={configs}/stage1.py:tiny", "--topology=h100:2x8", "--slices=2"], "error: --topology 'h100:2x8': GPUs"),
    (["--config={configs}/stage1.py:tiny", "--topology=v5e:2x2", "stray"], "error: unknown argument 'stray'"),
    (
      ["--config={configs}/stage1.py:tiny", "--topology=v5e:2x2", "--serach"],
      "error: Unknown command line flag 'serach'",
    ),
    (["--config=nowhere.py", "--topology=v5e:2x2"], "error: no config file at 'nowhere.py'"),
    (["--config={configs}", "--topology=v5e:2x2"], "error: no config file at "),
    (["--config={configs}/stage1.py:huge", "--topology=v5e:2x2"], "error: config.model: "),
    (
      ["--config={configs}/stage1.py:tiny", "--topology=v5e:2x2", "--config.steps=0"],
      "error: config.steps must be a whole number in 1..2147483647, got 0",
    ),
    (["--config={configs}/stage1.py:tiny", "--topology=v5e:2x2", "--json=."], "error: --json '.' is a folder"),
    (
      ["--config={configs}/stage1.py:tiny", "--topology=v5e:2x2", "--json=no/a.json"],
      "error: --json 'no/a.json': there",
    ),
  ],
)
def test_mistakes(command, root, tmp_path, arguments, message):
  arguments = [argument.replace("{configs}", str(root / "configs")) for argument in arguments]
  code, out, err = command(*arguments, folder=tmp_path)
  assert code == 2 and err.startswith(message) and "Traceback" not in err and not out
  assert err.count("\n") == 1 or "is missing" in message  # which shows how the command is used
  assert not os.listdir(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
  "flag", ["--long_tokens=-1", "--short_tokens=0", "--boxes_per_image=nan", "--boxes_per_image=-1", "--hard_share=2"]
)
def test_assumptions_that_cannot_be(command, root, tmp_path, flag, libtpu):
  code, _, err = command(f"--config={root}/configs/stage1.py:tiny", "--topology=v5e:2x2", flag, folder=tmp_path)
  assert code == 2 and err.startswith(f"error: {flag.partition('=')[0]} must lie in") and err.count("\n") == 1


@pytest.mark.slow
def test_help(command, tmp_path):
  code, out, err = command("--help", folder=tmp_path)
  assert (code, err) == (0, "")
  assert out.startswith("Estimates memory and time of a run") and re.search(r"^  --topology +The devices", out, re.M)


@pytest.mark.slow
def test_a_shape_that_does_not_exist(libtpu):
  hardware.prepare_environment("v5e")
  with pytest.raises(ValueError, match="'v5e:3x3' is no shape that v5e comes in"):
    hardware.describe("v5e:3x3")


def test_a_missing_compiler_is_named(monkeypatch):
  monkeypatch.setattr(hardware.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ModuleNotFoundError, match="libtpu is not installed.*pip install -r requirements-tpu.txt"):
    hardware.describe("v5e:2x2")
  with pytest.raises(ModuleNotFoundError, match="pip install -r requirements-plan-gpu.txt"):
    hardware.describe("h100:1x8")


@pytest.mark.slow
def test_the_papers_batch_on_256_chips(plan, root, tmp_path, libtpu):
  """With a tiny model, whose weights are too small to be shared evenly: the plans of docs/scale.md take minutes."""
  keys = ["--config.runtime.micro_batches=2", "--config.mesh=data=16,fsdp=16", "--json=plan.json"]
  code, out, err = plan(f"--config={root}/configs/stage1.py:tiny", "--topology=v5e:16x16", *keys, seconds=600)
  assert code == 0, out + err
  (found,) = json.loads((tmp_path / "plan.json").read_text())["plans"]
  assert not found["problem"]
  assert found["batch"]["images"] == 61440 and not found["checks"]["batch_by_batch_arrays"]
  assert found["memory"]["peak"] < 2 * 2**30

"""Several processes: how they find each other, agree, and end together. They compute nothing, and so start quickly."""

import os
import socket
import subprocess
import sys

import pytest

from fgclip_jax.train import distributed
from fgclip_jax.train.distributed import PEER_GONE, agree, start

# arguments of start() as a literal, then what to do as a process that belongs to the others
PROCESS = """
import os, signal, sys, time
from fgclip_jax.train.distributed import agree, start
peers = start(**eval(sys.argv[1]))
index, count = (peers.index, {processes}) if peers else (0, 1)
{body}
"""
TIMEOUT = 5.0  # seconds, the shortest that is taken


def free_port() -> int:
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return free.getsockname()[1]


@pytest.fixture
def run(root):
  """Starts the processes, waits for all of them, and returns (exit code, output, errors) of each."""
  started = []

  def run(body: str, places: list[dict], environments: list[dict] | None = None):
    begun = []
    code = PROCESS.format(body=body, processes=len(places))
    for place, more in zip(places, environments or [{}] * len(places), strict=True):
      command = [sys.executable, "-c", code, repr({"heartbeat_timeout": TIMEOUT, **place})]
      environment = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"} | more
      begun.append(
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
      )
    started.extend(begun)
    outputs = [process.communicate(timeout=120) for process in begun]
    # Gloo, through which CPUs learn the store's address, prints a line of its own
    said = ["".join(line for line in out.splitlines(True) if not line.startswith("[Gloo]")) for out, _ in outputs]
    results = zip(begun, said, outputs, strict=True)
    return [(process.returncode, out, errors) for process, out, (_, errors) in results]

  yield run
  for process in started:
    process.kill()


def by_flags(processes: int) -> list[dict]:
  coordinator = f"localhost:{free_port()}"
  return [{"coordinator": coordinator, "processes": processes, "process": index} for index in range(processes)]


@pytest.mark.slow
def test_processes_agree(run):
  """Every round gives all of them the same, and leaves nothing behind but its own. The environment names the places."""
  body = """
from fgclip_jax.train import distributed
values = [(7 * index + 3 * i) % 5 for i in range(20)]
print([agree(value) for value in values] + [agree(index, min), agree(index + 1, sum)])
if index == 0:
  left = distributed._peers._store.list("fgclip/agreed")
  print({key.split("/")[2] for key in left})
peers.close()
"""
  coordinator = f"localhost:{free_port()}"
  environments = [
    {"JAX_COORDINATOR_ADDRESS": coordinator, "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": str(index)}
    for index in range(3)
  ]
  results = run(body, [{}] * 3, environments)
  assert [code for code, _, _ in results] == [0, 0, 0], results
  expected = [max((7 * index + 3 * i) % 5 for index in range(3)) for i in range(20)] + [0, 6]
  first, *others = (out.splitlines() for _, out, _ in results)
  assert f"3 processes as given by JAX_*, this is process 0 at {coordinator}; " in first[0]
  assert f"one that is silent for {TIMEOUT:g} s ends the run" in first[0]
  assert first[1:] == [str(expected), "{'21'}"]
  assert others == [[str(expected)]] * 2


@pytest.mark.slow
def test_a_killed_process_ends_the_run(run):
  body = """
agree(0)
if index == 1:
  os.kill(os.getpid(), signal.SIGKILL)
agree(0)
"""
  (zero, one, two) = run(body, by_flags(3))
  assert one[0] == -9 and zero[1].startswith("3 processes as given by flags, this is process 0 at localhost:")
  for code, _, errors in (zero, two):
    assert code == PEER_GONE, errors
    assert "error: process 1 of 3 has been silent for 3.5 s: it was killed or stopped, or has lost the net" in errors
    assert "the same command continues from the newest checkpoint" in errors


@pytest.mark.slow
def test_a_first_process_that_hangs_ends_the_run(run):
  body = """
agree(0)
if index == 0:
  after = f"exec >/dev/null 2>&1; sleep 6; kill -KILL {os.getpid()}"
  subprocess.Popen(["sh", "-c", after])
  os.kill(os.getpid(), signal.SIGSTOP)
agree(0)
"""
  (zero, one) = run("import subprocess" + body, by_flags(2))
  assert zero[0] == -9
  assert one[0] == PEER_GONE
  assert "error: process 0 of 2 has been silent for 3.5 s: it was killed or stopped, or has lost the net" in one[2]


@pytest.mark.slow
def test_a_killed_first_process_ends_the_run(run):
  body = """
agree(0)
if index == 0:
  os.kill(os.getpid(), signal.SIGKILL)
agree(0)
"""
  (zero, one) = run(body, by_flags(2))
  assert zero[0] == -9
  # JAX notices as quickly, and where it is first it aborts
  said = {PEER_GONE: "error: process 0 of 2 is gone", -6: "leader task was preempted/died"}
  assert said[one[0]] in one[2]


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_a_process_that_fails_ends_the_run(run, failing):
  body = f"""
agree(0)
if index == {failing}:
  peers.fail(OSError("the disk is full\\nas are all others"))
agree(0)
"""
  results = run(body, by_flags(2))
  assert results[failing][0] == 1
  code, _, errors = results[1 - failing]
  assert code == PEER_GONE
  assert f"error: process {failing} of 2 ended: the disk is full; the same command continues" in errors


@pytest.mark.slow
def test_one_that_is_done_is_not_missed(run):
  body = f"""
agree(0)
if index == 0:
  time.sleep({0.8 * TIMEOUT})
print("done")
peers.close()
"""
  assert [result[0] for result in run(body, by_flags(2))] == [0, 0]


@pytest.mark.slow
def test_a_benchmark_that_fails_on_one_process_has_no_numbers_on_any(run):
  body = """
import numpy as np
from fgclip_jax.evals.evaluator import Metric, Result
from fgclip_jax.models.config import preset
from fgclip_jax.models.transformer import Runtime
from fgclip_jax.train.evaluation import measure

class Probe:
  settings = dict
  def __init__(self, name, failing):
    self.name, self.failing = name, failing
  def run(self, model):
    if index in self.failing:
      raise OSError(f"no pictures for {self.name}")
    return Result({"share": Metric(0.25, None, 4)}, {}, 4)

probes = [Probe("one", [1]), Probe("all", [0, 1]), Probe("none", [])]
say = print if index == 0 else lambda *_: None
print(measure(probes, preset("tiny"), {"a": np.zeros(1)}, Runtime(), 7, say, lambda _: None))
peers.close()
"""
  (zero, one) = run(body, by_flags(2))
  assert (zero[0], one[0]) == (0, 0), zero[2] + one[2]
  numbers = "{'eval/none/share': 0.25, 'eval/skipped': 2.0}"
  assert zero[1].endswith(f"{numbers}\n")
  assert "step 7: one could not be measured: process 1 of 2 failed, and prints why; it is skipped" in zero[1]
  assert "process 0: step 7: all could not be measured: no pictures for all" in zero[1]
  assert one[1].splitlines() == [
    "process 1: step 7: one could not be measured: no pictures for one",
    "process 1: step 7: all could not be measured: no pictures for all",
    numbers,
  ]


@pytest.mark.slow
def test_places_from_slurm(run):
  job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
  environments = [job | {"SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)} for index in range(2)]
  (zero, one) = run("print(agree(index)); peers.close()", [{}, {}], environments)
  assert "2 processes as found by JAX (Slurm)" in zero[1] and one[:2] == (0, "1\n")


# ---- alone


def test_a_process_alone(monkeypatch):
  for name in ("JAX_COORDINATOR_ADDRESS", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"):
    monkeypatch.delenv(name, raising=False)
  assert agree(3) == 3 and agree(3, min) == 3
  assert start(processes=1, process=0, coordinator="localhost:1") is None


@pytest.mark.parametrize(("devices", "given", "threads"), [("4", None, "64"), ("4", "9", "9"), ("", None, None)])
def test_simulated_devices_get_enough_threads(monkeypatch, devices, given, threads):
  monkeypatch.setenv("JAX_NUM_CPU_DEVICES", devices)
  monkeypatch.delenv("NPROC")
  if given:
    monkeypatch.setenv("NPROC", given)
  start(processes=1, process=0, coordinator="localhost:1")
  assert os.environ.get("NPROC") == threads


@pytest.mark.slow
def test_a_process_without_a_launcher_is_alone(run):
  ((code, out, errors),) = run("print(peers, agree(5))", [{}])
  assert (code, out) == (0, "None 5\n"), errors
  ((code, _, errors),) = run("", [{}], [{"JAX_COORDINATOR_ADDRESS": "localhost:1"}])
  assert code == 1 and "ValueError: Number of processes must be defined" in errors


def test_a_task_alone_takes_all_devices(monkeypatch):
  monkeypatch.setenv("SLURM_NTASKS", "1")
  monkeypatch.setattr(distributed, "_join", lambda *_, **__: pytest.fail("joined"))
  assert start() is None


@pytest.mark.parametrize(
  "arguments, message",
  [
    (
      {"coordinator": "localhost:1", "processes": 2},
      "give all of --coordinator=HOST:PORT, --processes=N and --process=I",
    ),
    ({"process": 0}, "give all of"),
    ({"coordinator": "localhost:1", "processes": 2, "process": 2}, "there is no process 2 of 2"),
    ({"coordinator": "localhost:1", "processes": 0, "process": 0}, "there is no process 0 of 0"),
    ({"heartbeat_timeout": 1.0}, "--heartbeat_timeout must be at least 5 seconds, got 1"),
  ],
)
def test_impossible_arguments(arguments, message):
  with pytest.raises(ValueError, match=message):
    start(**arguments)


def test_an_impossible_environment(monkeypatch):
  for name, value in {"COORDINATOR_ADDRESS": "localhost:1", "NUM_PROCESSES": "two", "PROCESS_ID": "0"}.items():
    monkeypatch.setenv(f"JAX_{name}", value)
  with pytest.raises(ValueError, match="JAX_NUM_PROCESSES must be a whole number, got 'two'"):
    start()


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["raises at once", "raises later", "reads other texts", "ends early"])
def test_an_evaluation_that_fails_on_one_process_is_skipped_on_all(run, fault):
  """The model is spread over both processes: a computation that one never starts would hold up the other for ever."""
  body = f"""
import time
import jax, numpy as np
from fgclip_jax.evals.evaluator import Metric, Result
from fgclip_jax.models import config
from fgclip_jax.models.transformer import Runtime
from fgclip_jax.train import evaluation
from tests.helpers.toy_models import init

class Odd:
  name = "odd"
  fault = {fault!r}
  def run(self, model, progress=False):
    for turn in range(3):
      if index == 1 and (self.fault == "raises at once" or (self.fault == "raises later" and turn)):
        raise OSError("no file here")
      if index == 1 and self.fault == "ends early" and turn:
        break
      model.encode_text([f"a cat {{turn}}", "a dog" if index and self.fault == "reads other texts" else "a cup"])
      model.encode_image(np.full((2, 32, 32, 3), turn, np.uint8))
    return Result({{"share": Metric(0.5, None, 4)}}, {{}}, 4)

class Fine(Odd):
  name, fault = "fine", ""

tiny = config.preset("tiny")
mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
whole = jax.sharding.NamedSharding(mesh, jax.P())
params = jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf), whole), init(tiny, 0))
begin = time.monotonic()
for evaluators in ([Odd()], [Fine()]):
  found = evaluation.measure(evaluators, tiny, params, Runtime(), 7, lambda text: index or print(text), lambda _: None)
  print(sorted(found.items()))
print("seconds", time.monotonic() - begin)
peers.close()
"""
  results = run(body, by_flags(2), [{"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}] * 2)
  assert [code for code, _, _ in results] == [0, 0], results
  for _, out, _ in results:
    assert "[('eval/skipped', 1.0)]" in out and "[('eval/fine/share', 0.5)]" in out
  zero, one = (out for _, out, _ in results)
  if fault.startswith("raises"):
    assert "process 1: step 7: odd could not be measured: no file here" in one
    assert "step 7: odd could not be measured: process 1 of 2 failed, and prints why; it is skipped" in zero
  else:
    assert "step 7: odd could not be measured: the processes do not read the same data" in zero

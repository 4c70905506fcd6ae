"""Apache Beam as the engine: the same shards as from processes of this machine, errors and kills included."""

import importlib.util
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from fgclip_jax.data.dataset_folder import find_shards
from fgclip_jax.prepare import beam, job
from fgclip_jax.storage import workers
from tests.helpers import trees
from tests.prepare.test_pipeline import Input

needs_beam = pytest.mark.skipif(
  importlib.util.find_spec("apache_beam") is None, reason="needs apache-beam: pip install -r requirements-beam.txt"
)
DIRECT = ["--engine", "beam", "--runner=DirectRunner", "--direct_num_workers=2"]
MODES = {
  "in this process": ["--engine", "beam"],
  "processes": [*DIRECT, "--direct_running_mode=multi_processing"],
}


@pytest.fixture
def given(tmp_path):
  return Input(tmp_path)


def read_files(folder):
  """All files of a data set but those that say when and from where it was made."""
  files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
  return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@needs_beam
@pytest.mark.parametrize("mode", MODES)
def test_beam_writes_what_processes_write(given, tmp_path, mode):
  for file, count in (("a.json", 7), ("b.json", 0), ("c.json", 3)):
    given.add(file, [f"{file}-{index}.png" for index in range(count)])
  (given.images / "a.json-3.png").unlink()
  outputs = [tmp_path / "alone", tmp_path / "two", tmp_path / "beam"]
  for output, options in zip(outputs, (["--workers", "1"], ["--workers", "2"], MODES[mode]), strict=True):
    given.output = output
    assert given.convert("--shards", "3", *options) == 0
  alone, two, by_beam = map(read_files, outputs)
  assert len([file for file in alone if "index" not in file and ".array_record" in file]) == 3
  assert alone == two
  assert alone == by_beam


@needs_beam
def test_the_same_command_continues_what_another_engine_began(given, capsys):
  given.add("a.json", [f"{index}.png" for index in range(6)])
  assert given.convert("--shards", "3") == 0
  before = read_files(given.output)
  pathlib.Path(find_shards(str(given.output), "train")[1]).unlink()
  capsys.readouterr()
  assert given.convert("--shards", "3", "--engine", "beam") == 0
  assert "2 of 3 shards are finished already" in capsys.readouterr().out
  assert read_files(given.output) == before


@pytest.mark.slow
@needs_beam
def test_killed_midway_the_same_command_continues(given, root):
  given.add("a.json", [f"{index}.png" for index in range(8)])
  program = trees.write_waiting_program(given.images.parent, "5.png")  # in the third of four shards
  command = [sys.executable, program, *given.arguments("--shards", "4", "--engine", "beam")]
  state = given.output / ".prepare" / "train"
  process = subprocess.Popen(
    command, env=os.environ | {"PYTHONPATH": str(root)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
  )
  try:
    deadline = time.monotonic() + 90
    while not (state.is_dir() and {"00000.json", "00001.json"} <= set(os.listdir(state))) and process.poll() is None:
      assert time.monotonic() < deadline, "the first shards were not finished in time"
      time.sleep(0.05)
    assert process.poll() is None, process.stderr.read()
  finally:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
  assert given.convert("--shards", "4", "--engine", "beam") == 0
  continued = read_files(given.output)
  assert given.convert("--shards", "4", "--overwrite") == 0
  assert read_files(given.output) == continued


@needs_beam
def test_the_first_fault_stops_a_strict_run(given, capsys):
  given.add("a.json", ["0.png", "1.png", "2.png"])
  (given.images / "1.png").unlink()
  assert given.convert("--shards", "3", "--strict", "--engine", "beam") == 1
  assert "error: --strict:" in capsys.readouterr().err
  assert given.convert("--shards", "3", "--engine", "beam") == 0


def _double(number):
  return 2 * number


def _fail_at_three(number):
  if number == 3:
    raise job.PrepareError("three")
  return number


@needs_beam
def test_results_of_tasks_come_back_and_nothing_is_left(tmp_path):
  engine = beam.Beam((), str(tmp_path))
  results = workers.run_tasks(_double, list(range(20)), engine, total=20, label="doubling", unit="")
  assert sorted(results) == [2 * number for number in range(20)]
  assert os.listdir(tmp_path) == []


@needs_beam
def test_what_a_task_raises_is_raised(tmp_path):
  engine = beam.Beam((), str(tmp_path))
  with pytest.raises(job.PrepareError, match="three"):
    list(workers.run_tasks(_fail_at_three, list(range(6)), engine, total=6, label="failing", unit=""))


@needs_beam
def test_a_runner_that_fails_is_an_error(tmp_path):
  engine = beam.Beam(("--runner=FlinkRunner", "--flink_master=localhost:1", "--job_server_timeout=1"), str(tmp_path))
  with pytest.raises(beam.BeamError, match="Beam failed while doubling"):
    list(workers.run_tasks(_double, [1, 2], engine, total=2, label="doubling", unit=""))


@needs_beam
def test_a_flag_that_nobody_knows_is_an_error(given, capsys):
  given.add("a.json", ["0.png"])
  assert given.convert("--engine", "beam", "--max_sid=3") == 1
  assert "--max_sid is an option neither of this command nor of Apache Beam" in capsys.readouterr().err


def test_without_beam_a_flag_that_nobody_knows_is_wrong_usage(given, capsys):
  with pytest.raises(SystemExit):
    given.convert("--runner=DirectRunner")
  assert "unrecognized arguments: --runner=DirectRunner" in capsys.readouterr().err


def test_without_the_package_it_says_what_to_install(given, capsys, monkeypatch):
  given.add("a.json", ["0.png"])
  monkeypatch.setitem(sys.modules, "apache_beam", None)
  monkeypatch.setitem(sys.modules, "apache_beam.options", None)
  assert given.convert("--engine", "beam") == 1
  assert "pip install -r requirements-beam.txt" in capsys.readouterr().err


def test_what_another_wrote_is_never_unpickled(tmp_path):
  key, path = b"k" * 32, str(tmp_path / "result-000001")
  beam._save(path, [1, 2], key)
  assert beam._load(path, key) == [1, 2]
  (tmp_path / "result-000002").write_bytes((tmp_path / "result-000001").read_bytes())
  with open(path, "ab") as file:
    file.write(b"x")
  (tmp_path / "task-000001").write_bytes(b"cposix\nsystem\n(S'touch hacked'\ntR.")
  for name in ("result-000001", "result-000002", "task-000001"):
    with pytest.raises(beam.BeamError, match="was not written by this run"):
      beam._load(str(tmp_path / name), key)

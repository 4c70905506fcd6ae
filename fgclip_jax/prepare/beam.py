"""Runs tasks with Apache Beam: in this process, or on Dataflow, Flink or Spark, as the flags of its runners say.

Beam only calls a function for each task. Tasks and results are files in a folder that all machines reach: so neither is
part of the pipeline's description, which runners limit to a few megabytes, and results arrive one by one.

They are pickles, which execute code when they are read. So each is sealed with a key that is drawn for the run and
passed to the workers by Beam, never through the folder: a file that this run did not write is refused.
"""

import dataclasses
import functools
import hashlib
import hmac
import pickle
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from fgclip_jax.storage import paths

_FUNCTION, _STOP = "function.pickle", "stop"


class BeamError(ValueError):
  """Beam is missing, does not know a flag, or failed; the message says which."""


@dataclasses.dataclass(frozen=True)
class Beam:
  """Apache Beam as the engine of `run_tasks`.

  Attributes:
    flags: Beam's own flags, e.g. `--runner=DataflowRunner`, `--project=...`.
    folder: the folder of tasks and results; every machine that works must reach it.

  Raises:
    BeamError: the package apache-beam is missing, or it does not know a flag.
  """

  flags: tuple[str, ...]
  folder: str

  def __post_init__(self):
    try:
      from apache_beam.options import pipeline_options
    except ImportError as error:
      message = "--engine beam needs the package apache-beam: pip install -r requirements-beam.txt"
      raise BeamError(message) from error
    known = set(pipeline_options.PipelineOptions([]).get_all_options())
    for flag in self.flags:
      name = flag.removeprefix("--").split("=")[0]
      if flag.startswith("-") and not {name, name.removeprefix("no_")} & known:
        raise BeamError(f"{flag.split('=')[0]} is an option neither of this command nor of Apache Beam")

  def run(self, function: Callable[[Any], Any], tasks: list[Any], *, label: str) -> Iterator[Any]:
    """Yields the results of `function` as they come.

    Raises:
      BeamError: the runner failed.
      Exception: what a task raised; tasks that had not begun are not run any more.
    """
    folder = paths.join(self.folder, f"beam-{uuid.uuid4().hex[:8]}")
    paths.make_folder(folder)
    key = secrets.token_bytes(32)
    _save(paths.join(folder, _FUNCTION), function, key)
    for number, task in enumerate(tasks):
      _save(_task_path(folder, number), task, key)
    failure: list[BaseException] = []
    # The runner blocks until the pipeline ends; in a thread, results can be taken while it runs.
    runner = threading.Thread(target=self._launch, args=(folder, key, len(tasks), label, failure), daemon=True)
    runner.start()
    done: set[str] = set()
    try:
      while len(done) < len(tasks):
        alive = runner.is_alive()  # asked before the folder is listed: results written until then are not missed
        found = [name for name in paths.list_folder(folder) if name.startswith("result-") and name not in done]
        for name in found:
          if name.endswith(".tmp"):
            continue
          done.add(name)
          result, error = _load(paths.join(folder, name), key)
          if error:
            raise error
          yield result
        if failure:
          raise BeamError(f"Beam failed while {label}: {_last_line(failure[0])}") from failure[0]
        if not alive and len(done) < len(tasks):
          raise BeamError(f"Beam ended while {label}, with {len(done)} of {len(tasks)} tasks done")
        time.sleep(5.0 if paths.is_remote(folder) else 0.1)
      runner.join()
    except BaseException:
      paths.write(paths.join(folder, _STOP), b"")  # tasks that have not begun end at once
      raise
    paths.remove(folder)

  def _launch(self, folder: str, key: bytes, count: int, label: str, failure: list[BaseException]) -> None:
    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions

    try:
      with apache_beam.Pipeline(options=PipelineOptions(list(self.flags))) as pipeline:
        numbers = pipeline | "tasks" >> apache_beam.Create(range(count)) | "spread" >> apache_beam.Reshuffle()
        _ = numbers | label >> apache_beam.Map(functools.partial(_run_task, folder, key))
    except BaseException as error:
      failure.append(error)


def _run_task(folder: str, key: bytes, number: int) -> None:
  """Runs one task on a worker, and writes its result or its error to a file."""
  if paths.exists(paths.join(folder, _STOP)):
    return
  result = error = None
  try:
    function = _load(paths.join(folder, _FUNCTION), key)
    result = function(_load(_task_path(folder, number), key))
  except Exception as caught:  # raised again where the run was started
    error = caught
  _save(paths.join(folder, f"result-{number:06d}"), (result, error), key)


def _save(path: str, value: Any, key: bytes) -> None:
  data = pickle.dumps(value)
  paths.write(path, _seal(path, data, key) + data)


def _load(path: str, key: bytes) -> Any:
  """Reads what `_save` wrote with the same key and under the same name; raises `BeamError` for anything else."""
  content = paths.read(path)
  size = hashlib.sha256().digest_size
  data = content[size:]
  if not hmac.compare_digest(content[:size], _seal(path, data, key)):
    raise BeamError(f"{path} was not written by this run, and is not read")
  return pickle.loads(data)


def _seal(path: str, data: bytes, key: bytes) -> bytes:
  return hmac.digest(key, path.rpartition("/")[2].encode() + b"\0" + data, "sha256")


def _task_path(folder: str, number: int) -> str:
  return paths.join(folder, f"task-{number:06d}")


def _last_line(error: BaseException) -> str:
  return (str(error).strip() or repr(error)).splitlines()[-1]

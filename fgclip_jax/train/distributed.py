"""A run of several processes: how they find each other, agree, and end when one of them is gone.

They talk through a store in process 0 (`key_value.py`). It is host to host: no device takes part, so nothing waits for
the step that is under way. Only the store's address is spread through the devices, once, at the start.
"""

import itertools
import math
import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from fgclip_jax.cli import FAILED, WRONG_USAGE, print_error
from fgclip_jax.storage.errors import first_line
from fgclip_jax.train.key_value import KeyValueServer, KeyValueStore, RemoteStore

PEER_GONE = 76  # the exit code of a process that ends because of another one

_ENDED = "fgclip/ended"  # why the run ends, once it does
_ALIVE = "fgclip/alive"  # a folder: a count that each process raises, or _DONE
_DONE = "done"
_USAGE_MARK = "wrong usage: "  # before a reason that trying again cannot mend
_AGREED = "fgclip/agreed"  # a folder of rounds
_HOUR = 3600.0  # seconds; one process may load or compile for long while the others wait
_ADDRESS_BYTES = 1024  # room for a store's address
_LAUNCHERS = {"SLURM_NTASKS": "Slurm", "OMPI_COMM_WORLD_SIZE": "Open MPI"}  # variables with the number of processes
_rounds = itertools.count()
_peers: "Peers | None" = None  # of this process; None: it is alone


def start(
  coordinator: str | None = None,
  processes: int | None = None,
  process: int | None = None,
  heartbeat_timeout: float = 100.0,
) -> "Peers | None":
  """Joins the run's other processes, and prints what was found; call it before JAX starts a backend.

  Without arguments, they are taken from `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES`, `JAX_PROCESS_ID`, else from the
  launcher as JAX finds it: TPU metadata, Slurm, Open MPI. Under the last two JAX gives each process one GPU.

  Args:
    coordinator: HOST:PORT of process 0.
    processes: their number.
    process: this one's number, from 0.
    heartbeat_timeout: seconds of silence after which a process counts as lost and the run ends.

  Returns:
    The watch over the other processes; None: there are none.

  Raises:
    ValueError: incomplete or impossible arguments.
    ConnectionError: the other processes did not come.
  """
  global _peers
  if os.environ.get("JAX_NUM_CPU_DEVICES"):
    # Threads of JAX's CPU client, which makes one for each core. A simulated device takes one for every group of
    # devices that it waits for; with fewer than that, steps were seen to wait for ever.
    os.environ.setdefault("NPROC", "64")
  if heartbeat_timeout < 5:
    raise ValueError(f"--heartbeat_timeout must be at least 5 seconds, got {heartbeat_timeout:g}")
  given, source = (coordinator, processes, process), "as given by flags"
  if given == (None, None, None):
    texts = {name: os.environ.get(f"JAX_{name}", "") for name in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")}
    if all(texts.values()):
      coordinator, source = texts.pop("COORDINATOR_ADDRESS"), "as given by JAX_*"
      processes, process = (_whole(f"JAX_{name}", text) for name, text in texts.items())
  if coordinator is not None and processes is not None and process is not None:
    if processes < 1 or not 0 <= process < processes:
      raise ValueError(f"there is no process {process} of {processes}: --process counts from 0")
    if processes > 1:
      _join(heartbeat_timeout, coordinator, processes, process, cluster_detection_method="deactivate")
  elif given != (None, None, None):
    raise ValueError("give all of --coordinator=HOST:PORT, --processes=N and --process=I, or none of them")
  else:
    launcher = next((name for name in _LAUNCHERS if name in os.environ), "")
    if os.environ.get(launcher) != "1":  # alone, a process takes all GPUs, where JAX would give it one
      _join(heartbeat_timeout)
      source = f"as found by JAX ({_LAUNCHERS.get(launcher, 'TPU')})"
  if not jax.distributed.is_initialized() or jax.process_count() == 1:
    return None
  _peers = Peers(*_share_store(coordinator), heartbeat_timeout)
  if _peers.index == 0:
    print(
      f"{jax.process_count()} processes {source}, this is process 0 at {coordinator or socket.gethostname()}; "
      f"one that is silent for {heartbeat_timeout:g} s ends the run",
      flush=True,
    )
  return _peers


def _share_store(coordinator: str | None) -> tuple[KeyValueStore | RemoteStore, int, int]:
  """Opens the store in process 0 and reaches it from the others; returns it, this process's index and their number."""
  index, count, address = jax.process_index(), jax.process_count(), ""
  if index == 0:
    store = KeyValueStore()
    address = KeyValueServer(store, coordinator.rpartition(":")[0].strip("[]") if coordinator else None).address
  text = np.frombuffer(address.encode().ljust(_ADDRESS_BYTES), np.uint8)
  try:
    text = np.asarray(multihost_utils.broadcast_one_to_all(text))
    return (RemoteStore(text.tobytes().decode()) if index else store), index, count
  except (ConnectionError, jax.errors.JaxRuntimeError) as error:
    raise ConnectionError(f"could not join the other processes: {first_line(error)}") from error


def _whole(name: str, text: str) -> int:
  if not text.isdecimal():
    raise ValueError(f"{name} must be a whole number, got {text!r}")
  return int(text)


def _join(heartbeat_timeout: float, *where, **options) -> None:
  try:
    # twice as long as ours: JAX's own watch counts coarsely, aborts, and names no process; it is the second line
    jax.distributed.initialize(*where, heartbeat_timeout_seconds=math.ceil(2 * heartbeat_timeout), **options)
  except ValueError as error:
    # no launcher and no address: a process alone
    if where or not str(error).startswith("coordinator_address"):
      raise
  except jax.errors.JaxRuntimeError as error:
    raise ConnectionError(f"could not join the other processes: {first_line(error)}") from error


def agree(value: int, choose: Callable[[list[int]], int] = max) -> int:
  """The result of `choose` on every process's value, the same on all; each must call it the same number of times."""
  if _peers is None:
    return value
  return _peers.agree(value, choose)


class Peers:
  """Watches over the processes of a run, from threads, and ends this one when another is gone.

  Process 0 watches the others and reports a loss to them. They notice themselves if process 0 does not answer; if it
  was killed, JAX notices too, and where JAX is quicker it aborts with its own message.

  Args:
    store: through which the processes talk; in process 0 the store itself.
    index: which process this is.
    count: how many there are.
    heartbeat_timeout: seconds within which the run ends once a process is silent.

  Attributes:
    index: which process this is.
  """

  def __init__(self, store: KeyValueStore | RemoteStore, index: int, count: int, heartbeat_timeout: float):
    self._store, self.index, self._count = store, index, count
    self._silence = 0.7 * heartbeat_timeout  # it takes up to two more intervals to notice and to tell
    self._interval = min(heartbeat_timeout / 10, 2.0)
    self._stopped = threading.Event()
    self._round = 0  # of `_watch`
    self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
    self._thread.start()
    if self.index:
      threading.Thread(target=self._watch_answers, name="answers", daemon=True).start()

  def agree(self, value: int, choose: Callable[[list[int]], int]) -> int:
    """See `agree`."""
    number = next(_rounds)
    folder = f"{_AGREED}/{number}"
    if self.index:
      self._store.set(f"{folder}/{self.index}", str(value))
      return int(self._store.get(f"{folder}/result", _HOUR))
    assert isinstance(self._store, KeyValueStore)
    values = [value, *(int(self._store.get(f"{folder}/{i}", _HOUR)) for i in range(1, self._count))]
    self._store.set(f"{folder}/result", str(choose(values)))
    if number:  # all have come to this round, so they have read the result of the one before
      self._store.delete(f"{_AGREED}/{number - 1}")
    return choose(values)

  def close(self) -> None:
    """Reports that this process is done; the run continues without it."""
    self._stopped.set()
    self._thread.join(self._silence)
    self._store.set(f"{_ALIVE}/{self.index}", _DONE)

  def fail(self, error: BaseException, code: int = FAILED) -> NoReturn:
    """Ends this process with a code, and the others, so that none waits for a dead process.

    The others end with `PEER_GONE`; with `WRONG_USAGE` where this one does, so that no launcher starts them again.

    An error that the loss of another process may have caused waits for the watch, which reports that loss instead.
    """
    if isinstance(error, jax.errors.JaxRuntimeError | ConnectionError):
      print(f"looking for a process that is gone, for {self._silence:g} s", file=sys.stderr, flush=True)
      self._thread.join(self._silence + 2 * self._interval)
    self._stopped.set()
    self._report(f"process {self.index} of {self._count} ended: {first_line(error)}", code)
    self._leave(code)

  def _watch(self) -> None:
    """Shows that this process is alive, and waits for the end; process 0 also checks that the others are alive."""
    heard: dict[int, str] = {}
    silent = dict.fromkeys(
      range(1, self._count), 0
    )  # rounds without news, not seconds: those would count a pause of this process
    while True:
      self._round += 1
      try:
        self._store.set(f"{_ALIVE}/{self.index}", str(self._round))
        reason = self._wait_for_end()
        if isinstance(self._store, KeyValueStore) and reason is None:
          now = {int(key.rpartition("/")[2]): value for key, value in self._store.list(_ALIVE).items()}
          silent = {i: rounds + 1 if now.get(i) == heard.get(i) != _DONE else 0 for i, rounds in silent.items()}
          heard = now
          gone = [str(i) for i, rounds in silent.items() if rounds * self._interval >= self._silence]
          if gone:
            reason = self._silent(", ".join(gone))
            self._report(reason)
      except ConnectionError as error:
        reason = f"process 0 of {self._count} is gone ({first_line(error)})"
      if self._stopped.is_set():
        return
      if reason is not None:
        self._end(reason)

  def _watch_answers(self) -> None:
    """Ends this process when process 0 has stopped answering, where a request would wait for long."""
    seen = waits = 0
    while not self._stopped.wait(self._interval):
      waits = waits + 1 if self._round == seen else 0
      seen = self._round
      if waits * self._interval >= self._silence:
        self._end(self._silent("0"))

  def _wait_for_end(self) -> str | None:
    """Waits for an interval; returns the reason if the run ends, as `_report` has set it."""
    try:
      # a request that is under way notices at once that process 0 is gone
      return self._store.get(_ENDED, self._interval)
    except TimeoutError:
      return None

  def _silent(self, who: str) -> str:
    silence = f"process {who} of {self._count} has been silent for {self._silence:g} s"
    return f"{silence}: it was killed or stopped, or has lost the network"

  def _end(self, reason: str) -> NoReturn:
    if reason.startswith(_USAGE_MARK):
      print_error(reason.removeprefix(_USAGE_MARK))
      self._leave(WRONG_USAGE)
    print_error(f"{reason}; the same command continues from the newest checkpoint")
    self._leave(PEER_GONE)

  def _report(self, reason: str, code: int = FAILED) -> None:
    reason = f"{_USAGE_MARK}{reason}" if code == WRONG_USAGE else reason
    try:
      self._store.set(_ENDED, reason, False)  # the first reason stays
    except ConnectionError as error:
      print(f"the other processes could not be reached: {first_line(error)}", file=sys.stderr, flush=True)

  def _leave(self, code: int) -> NoReturn:
    """Ends the process without JAX's own end, which waits for all the others."""
    if self.index == 0:
      time.sleep(1)  # the store ends with this process: leaves the others time to read the reason
    for child in multiprocessing.active_children():  # those that load data
      child.terminate()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

"""Checkpoints by Orbax: on a disk that all processes see, or at `gs://`."""

import asyncio
import concurrent.futures
import functools
import os
from collections.abc import Coroutine
from typing import Any, cast

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from fgclip_jax.storage import paths
from fgclip_jax.storage.errors import retry, storage_fault
from fgclip_jax.train.checkpoints.settings import Keep
from fgclip_jax.train.distributed import agree
from fgclip_jax.weights.checkpoint_files.shard_files import empty_array, is_here
from fgclip_jax.weights.native import DAMAGED, SoundCheckpoints


class OrbaxStore:
  """The checkpoints in a folder, saved asynchronously and atomically.

  Args:
    folder: where.
    keep: which of them are kept.
    log: prints a line.

  Attributes:
    latest: the step of the newest good checkpoint; None: there is none.
    wrong: after `open`, the steps of checkpoints with damaged metadata; until they are set aside, it is not open.
  """

  def __init__(self, folder: str, keep: Keep, log: Any):
    self._folder, self._keep, self._log = folder, keep, log
    self.latest: int | None = None
    self.wrong: list[int] = []
    self._checkpointer: Any = None

  def open(self) -> None:
    """Opens the folder, and removes what an earlier process left half written. Waits for no other process."""
    self.wrong = []
    open_folder = functools.partial(
      ocp.training.Checkpointer,
      self._folder,
      save_decision_policy=cast(Any, ocp.training.save_decision_policies.FixedIntervalPolicy(1)),
      preservation_policy=self._keep.policy(),
      cleanup_tmp_directories=True,
      step_name_format=SoundCheckpoints(self._folder) if paths.is_remote(self._folder) else None,
    )
    try:
      self._checkpointer = open_folder()
    except ValueError as error:  # Orbax opens no checkpoint of a folder in which one has damaged metadata
      if storage_fault(error):
        raise
      self.wrong = [step for step in _steps(self._folder) if not _describes_itself(self._folder, step)]
      if not self.wrong:
        raise
      return
    newest = self._checkpointer.latest
    self.latest = None if newest is None else newest.step

  def clean(self) -> None:
    """Does nothing: Orbax has removed what was half written."""

  def prepare(self, step: int) -> None:
    """Removes a checkpoint in a bucket that is marked as damaged, and its mark: its step is saved again."""
    mark = paths.join(self._folder, f"{DAMAGED}{step}")
    if paths.is_remote(self._folder) and jax.process_index() == 0 and paths.exists(mark):
      paths.remove(paths.join(self._folder, str(step)))
      paths.remove(mark)

  def begin(self, step: int, items: dict[str, Any], metadata: dict[str, Any], metrics: dict[str, float]) -> Any:
    """Begins to save, and returns once the arrays are copied.

    Returns:
      Orbax's response, whose `result(timeout)` waits for the end, and raises what has gone wrong.
    """
    return self._checkpointer.save_checkpointables_async(
      step, items, metrics=cast(Any, metrics), custom_metadata=metadata
    )

  def describe(self) -> tuple[dict[str, Any], dict[str, Any]]:
    """The items of the newest checkpoint, as trees of shapes and dtypes, and what was saved as its `metadata`."""
    described = self._checkpointer.checkpointables_metadata(None)
    return described.metadata, cast(dict[str, Any], described.custom_metadata)

  def load(self, wanted: dict[str, Any]) -> dict[str, Any]:
    """The newest checkpoint's items, laid out as wanted: trees of shapes with shardings. Waits for no other process.

    By the handler of the items, as Orbax's own functions wait: where one process cannot read, the others would do so
    for five minutes, and number later operations differently.
    """
    handler, folder = ocp.handlers.PyTreeHandler(), epath.Path(paths.join(self._folder, str(self.latest)))

    async def read(item: str) -> Any:
      # Orbax reads no array of which this process has no part
      asked = jax.tree.map(lambda leaf: leaf if is_here(leaf) else ocp.PLACEHOLDER, wanted[item])
      return await (await handler.load(folder / item, asked))

    with concurrent.futures.ThreadPoolExecutor(1) as pool:  # the caller's own thread may have a loop of events
      found = {item: pool.submit(_run, read(item)).result() for item in wanted}
    return jax.tree.map(lambda leaf, array: array if is_here(leaf) else empty_array(leaf), wanted, found)

  def set_aside(self, step: int, reason: str) -> None:
    """Renames a checkpoint so that no run takes it for a step, and logs that.

    In a bucket every byte would have to be copied for another name, so there an object of that name marks it.
    """
    name = f"{DAMAGED}{step}"
    if paths.is_remote(self._folder):
      mark_damaged(self._folder, step, reason, self._log)
      return
    while os.path.exists(os.path.join(self._folder, name)):
      name += "-again"
    if jax.process_index() == 0:
      os.rename(os.path.join(self._folder, str(step)), os.path.join(self._folder, name))
    agree(0)  # the other processes wait until it has its new name
    self._log(f"checkpoint {step} cannot be read, is now called {name!r} and not used: {reason}")

  def close(self) -> None:
    """Closes the folder; errors of a save that is under way come up here, too."""
    self._checkpointer.close()


def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
  # not by `asyncio.run`: at its end it looks at the tasks of all threads, which others change meanwhile
  loop = asyncio.new_event_loop()
  try:
    return loop.run_until_complete(coroutine)
  finally:
    loop.close()


def mark_damaged(folder: str, step: int, reason: str, log: Any) -> None:
  """Puts an object beside a checkpoint that says it is damaged, and logs that."""
  name = f"{DAMAGED}{step}"
  if jax.process_index() == 0:
    retry(lambda: paths.write(paths.join(folder, name), f"{reason}\n".encode()), folder, log)
  agree(0)  # the other processes wait until it is marked
  log(f"checkpoint {step} cannot be read, is marked by {name!r} and not used: {reason}")


def names_in(folder: str) -> list[str]:
  """The names in a folder; none where there is no folder, as in a bucket where nothing is saved."""
  try:
    return paths.list_folder(folder)
  except FileNotFoundError:
    return []


def _steps(folder: str) -> list[int]:
  steps = sorted(int(name) for name in names_in(folder) if name.isdigit())
  if not paths.is_remote(folder):
    return steps
  # in a bucket a checkpoint that is half written has its name already
  return [step for step in steps if paths.exists(paths.join(folder, str(step), "commit_success.txt"))]


def _describes_itself(folder: str, step: int) -> bool:
  try:
    ocp.checkpointables_metadata(paths.join(folder, str(step)))
  except ValueError:
    return False
  return True

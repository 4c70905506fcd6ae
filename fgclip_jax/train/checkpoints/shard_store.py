"""Checkpoints in storage that Orbax cannot write, such as `s3://`: finished on this machine's disk, then copied there.

Each process copies its part (see `weights/checkpoint_files/shard_files.py`). When the descriptions of all parts are
there, the first process writes the marker; without it, nobody takes the checkpoint. No disk has to be shared.
"""

import concurrent.futures
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax

from fgclip_jax.storage import paths
from fgclip_jax.storage.errors import back_off, retry
from fgclip_jax.train.checkpoints.orbax_store import mark_damaged, names_in
from fgclip_jax.train.checkpoints.settings import Keep
from fgclip_jax.train.checkpoints.wanted_state import by_item
from fgclip_jax.train.distributed import agree
from fgclip_jax.weights.checkpoint_files import shard_files
from fgclip_jax.weights.checkpoint_files.shard_files import HostArray, Parts
from fgclip_jax.weights.native import DAMAGED

_PATIENCE = 600.0  # seconds for which a save tries again when the network is down, and waits for other processes


class ShardStore:
  """The checkpoints in a folder of any storage; arguments and attributes as for `OrbaxStore`."""

  def __init__(self, folder: str, keep: Keep, log: Callable[[str], object], patience: float = _PATIENCE):
    self._folder, self._keep, self._log, self._patience = folder, keep, log, patience
    self.latest: int | None = None
    self.wrong: list[int] = []
    self._half: list[int] = []
    self._pool: concurrent.futures.ThreadPoolExecutor | None = None
    self._opened: tuple[int, dict[str, Any], Parts] | None = None

  def open(self) -> None:
    """Finds the checkpoints. Waits for no other process."""
    names = names_in(self._folder)
    steps = [int(name) for name in names if name.isdecimal()]
    complete = shard_files.complete_steps(self._folder, DAMAGED)
    foreign = [step for step in steps if step not in complete and _is_orbax(paths.join(self._folder, str(step)))]
    if foreign:
      raise ValueError(
        f"{self._folder!r} holds checkpoints that were written to a disk or to gs:// (e.g. {foreign[-1]}), and can "
        "go on there only; give another --workdir, with config.init_from to start from their weights"
      )
    self._half = [step for step in steps if step not in complete and f"{DAMAGED}{step}" not in names]
    self.latest = max(complete, default=None)
    self._opened = None

  def clean(self) -> None:
    """Removes what an earlier process left half written."""
    if jax.process_index() == 0:
      for step in self._half:
        paths.remove(paths.join(self._folder, str(step)))
    self._half = []

  def prepare(self, step: int) -> None:
    """Makes sure that nothing takes what is there of a step for complete while it is saved again."""
    if jax.process_index() == 0:
      folder = paths.join(self._folder, str(step))
      paths.remove(paths.join(folder, shard_files.MARKER))  # by its name: it may be in no listing yet
      paths.remove(folder)
      paths.remove(paths.join(self._folder, f"{DAMAGED}{step}"))

  def begin(self, step: int, items: dict[str, Any], metadata: dict[str, Any], metrics: dict[str, float]) -> Any:
    """Begins to save, and returns once the arrays are copied: a future, whose `result` raises what has gone wrong."""
    save = f"{agree(secrets.randbits(48), lambda values: values[0]):012x}"  # first: what follows may fail on one alone
    arrays = shard_files.to_host(items, every_replica=False)
    # the pieces' own checksums take the place of the arrays': they tell without the devices
    metadata = {name: value for name, value in metadata.items() if name != "checksums"}
    marker = {"format": shard_files.FORMAT, "save": save, "parts": jax.process_count(), "step": step, **metadata}
    marker["metrics"] = metrics
    if self._pool is None:
      self._pool = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
    return self._pool.submit(self._copy, step, arrays, marker)

  def _copy(self, step: int, arrays: Mapping[str, HostArray], marker: dict[str, Any]) -> None:
    folder = paths.join(self._folder, str(step))
    scratch = tempfile.mkdtemp(prefix="fgclip-save-")
    try:
      note = {"save": marker["save"], "step": step}
      for made in shard_files.write_part(scratch, jax.process_index(), arrays, note):  # the description last
        self._put(made, paths.join(folder, os.path.basename(made)))
    finally:
      shutil.rmtree(scratch, ignore_errors=True)
    if jax.process_index() == 0:
      self._wait_for_parts(folder, marker)
      content = json.dumps(marker).encode()
      retry(lambda: paths.write(paths.join(folder, shard_files.MARKER), content), folder, self._log, self._patience)
      retry(lambda: self._remove_old(step, marker["metrics"]), folder, self._log, self._patience)

  def _put(self, local: str, path: str) -> None:
    paths.make_folder(paths.parent(path))
    retry(lambda: paths.put(local, path), path, self._log, self._patience)
    there, here = retry(lambda: paths.size(path), path, self._log, self._patience), os.path.getsize(local)
    if there != here:
      raise OSError(f"of {path!r}, {there} bytes have arrived and {here} were sent")

  def _wait_for_parts(self, folder: str, marker: Mapping[str, Any]) -> None:
    """Waits until every process's part of this save is there; a listing may be late, so that each is asked for."""
    waits = back_off(self._patience, most=5.0)
    for number in range(marker["parts"]):
      while not self._has_part(folder, number, marker["save"]):
        if next(waits, None) is None:
          raise OSError(f"part {number} of {folder!r} has not come within {self._patience:.0f} s")

  def _has_part(self, folder: str, number: int, save: str) -> bool:
    try:
      return retry(lambda: shard_files.read_description(folder, number), folder, self._log)["save"] == save
    except (FileNotFoundError, ValueError):
      return False

  def _remove_old(self, step: int, metrics: Mapping[str, float]) -> None:
    """Removes the checkpoints that are not kept; first their markers."""
    found: dict[int, Mapping[str, float]] = {}
    for each in shard_files.complete_steps(self._folder, DAMAGED):
      marker = shard_files.read_marker(paths.join(self._folder, str(each)))
      found[each] = (marker or {}).get("metrics", {})
    found[step] = metrics  # its marker may be in no listing yet
    for each in set(found) - self._keep.choose(found):
      folder = paths.join(self._folder, str(each))
      paths.remove(paths.join(folder, shard_files.MARKER))
      paths.remove(folder)

  def describe(self) -> tuple[dict[str, Any], dict[str, Any]]:
    """The items of the newest checkpoint, as trees of shapes and dtypes, and what was saved as its `metadata`."""
    marker, parts = self._newest()
    return by_item(parts.shapes), marker

  def load(self, wanted: dict[str, Any]) -> dict[str, Any]:
    """The newest checkpoint's items, laid out as wanted: trees of shapes with shardings."""
    return self._newest()[1].read(wanted)

  def _newest(self) -> tuple[dict[str, Any], Parts]:
    assert self.latest is not None
    if self._opened is None or self._opened[0] != self.latest:
      self._opened = (self.latest, *shard_files.open_parts(paths.join(self._folder, str(self.latest))))
    return self._opened[1:]

  def set_aside(self, step: int, reason: str) -> None:
    """Marks a checkpoint as damaged, and logs that."""
    mark_damaged(self._folder, step, reason, self._log)

  def close(self) -> None:
    """Waits for the end of a save that is under way; its errors are in its response."""
    if self._pool is not None:
      self._pool.shutdown()
    self._pool = None


def _is_orbax(folder: str) -> bool:
  return paths.exists(paths.join(folder, "_CHECKPOINT_METADATA"))

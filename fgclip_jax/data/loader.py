"""Grain pipeline from record shards to batches.

The order of examples is one global sequence that depends on the seed alone. It is shuffled again every epoch and cut
into global batches, and these into data shards, of which each process takes its own. So batch `s` holds the same
examples in the same places whatever the number of processes and workers, and a run continues by starting at step `s`:
no state of the loader is saved.
"""

import dataclasses
import enum
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from fgclip_jax.data import decode
from fgclip_jax.data import record as records
from fgclip_jax.data.config import DataConfig
from fgclip_jax.data.examples import LoadExample, measure_patch_rows, measure_row_buckets
from fgclip_jax.data.mixture import Mixture
from fgclip_jax.data.packing import Layout, assemble
from fgclip_jax.models.pixel_spec import CLIP_PIXELS, PixelSpec
from fgclip_jax.storage import paths
from fgclip_jax.storage.skip_report import SkipReport
from fgclip_jax.storage.workers import count_processors


class _Batches(grain.MapDataset):
  """The examples of each global batch that belong to the data shards of one process, as this process's batch."""

  def __init__(
    self, order: grain.MapDataset, load: LoadExample, batch_size: int, seed: int, shards: int, local: Sequence[int]
  ):
    super().__init__(order)
    self._load, self._batch_size, self._seed, self._shards = load, batch_size, seed, len(local)
    images = batch_size // shards
    self._places = [shard * images + image for shard in local for image in range(images)]

  def __len__(self) -> int:
    return len(self._parent) // self._batch_size

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    load = self._load
    begin, end = index * self._batch_size, (index + 1) * self._batch_size
    places = [begin + place for place in self._places]
    numbers = [self._parent[place] for place in places]
    load.source.prefetch(numbers)
    assert load.image_size is not None  # only `measure_row_buckets` leaves images unread
    # images are decoded into the batch's own array: copying them together later would take as long as packing; patches
    # find their places in it only when their numbers are known
    images = None if load.layout.patches else np.empty((len(places), load.image_size, load.image_size, 3), np.uint8)
    loaded = load.load(numbers, [self._generator(place) for place in places], images, self._shards)
    replaced = any(one.bad for one in loaded)
    repeats = 0
    if replaced or load.source.spans_epochs(begin, end):  # else every record is another one
      of_batch = {place: self._parent[place] for place in range(begin, end)}
      of_batch |= {place: one.example.record for place, one in zip(places, loaded, strict=True)}
      repeats = len(of_batch) - len(set(of_batch.values()))
    return {
      "repeats": repeats,
      "replaced": replaced,
      "batch": assemble([one.example for one in loaded], self._shards, load.layout, images),
      "bad": [(load.source.which(one.example.record), skip) for one in loaded for skip in one.bad],
      "boxes_lost": sum(one.boxes_lost for one in loaded),
    }

  def _generator(self, place: int) -> np.random.Generator:
    """The random numbers of the example at this place of the order.

    Philox is counter-based: any key begins a stream of its own at once. With (seed, place) as the key, an example's
    crop and captions depend neither on the process or worker that makes it nor on the examples made before it.
    """
    return np.random.Generator(np.random.Philox(key=(self._seed, place)))


class Repeats(enum.IntEnum):
  """Whether a batch of the whole run holds a record more than once, as far as one process knows.

  The order of records is known to all processes, but not what each has put in place of bad records: two of them may
  have taken the same one, so `UNKNOWN` on two processes counts as `SOME`.
  """

  NONE = 0
  UNKNOWN = 1
  SOME = 2


class Loader:
  """Batches of one process; they never end.

  Args:
    config: what to load.
    layout: the static shapes of a batch; without row buckets, they are measured on samples.
    image_size: side of the square images, in pixels; of no account with `layout.patches`.
    seed: of the order and of every random choice.
    shards: G, the data shards of the whole run; divides the batch.
    local_shards: which of them this process feeds; all by default.
    start: the first step.
    pixels: the model's: how pictures become squares; squashed if its `resize` is None.

  Attributes:
    layout: the static shapes, row buckets included.
    records: of all data sets.
    epoch_steps: global batches in one pass over the data (a fraction); of a mixture, until the data set that takes
      longest has been passed once.
    sources: a line for each data set: its records, its share, and the batches in which it is passed.
    seen: images of this process so far.
    examples: the same by data set.
    skips: bad records met so far, by kind, with the first three of each.
    boxes_lost: boxes that examples have fewer for being cropped.
    waited: seconds spent waiting for batches.
    repeats: of the last batch, whether a record is in it more than once.
    repeated: examples so far whose record was in their batch already.

  Raises:
    FileNotFoundError, ValueError: no such data, sizes that do not divide, or fewer records than a batch holds.
  """

  def __init__(
    self,
    config: DataConfig,
    layout: Layout,
    image_size: int | None,
    *,
    seed: int,
    shards: int = 1,
    local_shards: Sequence[int] | None = None,
    start: int = 0,
    pixels: PixelSpec = CLIP_PIXELS,
  ):
    if config.batch_size % shards:
      raise ValueError(f"data.batch_size {config.batch_size} must divide over {shards} data shards")
    if (group := config.patch_group) and config.batch_size // shards % group:
      raise ValueError(f"data.patch_group {group} must divide the {config.batch_size // shards} images of a data shard")
    local_shards = range(shards) if local_shards is None else local_shards
    source = Mixture(config.sets(), config.batch_size if config.language_steps else 0)
    if not config.repeat_in_batch:
      _check_sizes(source, config)
    if not layout.row_buckets:
      layout = dataclasses.replace(layout, row_buckets=measure_row_buckets(source, config, layout, seed, shards))
    if (patches := layout.patches) and layout.packed and not patches.row_buckets:
      layout = dataclasses.replace(layout, patches=measure_patch_rows(source, config, layout, seed, shards))
    self.layout = layout
    self._source = source
    for line in source.damage:
      print(line, flush=True)
    if config.decode == "fast" and decode.cykooz_resizer is None:
      print("cykooz_resizer is not installed: Pillow resizes images, which takes several times as long", flush=True)
    epochs = source.epochs(config.batch_size)
    self.records, self.epoch_steps = len(source), max(epochs)
    self.sources = [
      f"{name}: {size} records{f' in {language}' if config.language_steps else ''}, {float(share):.1%} of the "
      f"examples, passed every {steps:.1f} steps"
      for name, language, size, share, steps in zip(
        source.names, source.languages, source.sizes, source.shares, epochs, strict=True
      )
    ]
    self.skips = SkipReport(limit=3)
    self.examples = dict.fromkeys(source.names, 0)
    self._bad_by_source = dict.fromkeys(source.names, 0)
    self.seen, self.boxes_lost, self.waited, self._config = 0, 0, 0.0, config
    self.repeats, self.repeated = Repeats.NONE, 0
    order = source.order(seed, config.shuffle)
    load = LoadExample(source, config, layout, patches.patch_size if patches else image_size, pixels)
    batches: Any = _Batches(order, load, config.batch_size, seed, shards, local_shards)[start:]
    workers, threads = choose_workers(config)
    pipeline = batches.to_iter_dataset(
      grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(config.prefetch, threads))
    )
    if workers:
      options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=config.prefetch)
      pipeline = pipeline.mp_prefetch(options, worker_init_fn=_warm_up)
    else:
      _warm_up()
    self._local = config.batch_size // shards * len(local_shards)
    self._workers, self._iterator = workers, iter(pipeline)

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    """The next batch.

    Raises:
      ValueError: more than `max_bad_share` of the records seen were bad.
      ChildProcessError: a worker process was killed.
    """
    begin = time.perf_counter()
    element = self._next()
    self.waited += time.perf_counter() - begin
    self.seen += self._local
    self.boxes_lost += element["boxes_lost"]
    self.repeated += element["repeats"]
    self.repeats = Repeats.SOME if element["repeats"] else Repeats.UNKNOWN if element["replaced"] else Repeats.NONE
    for name, count in zip(self._source.names, self._source.count(element["batch"]["record"]), strict=True):
      self.examples[name] += count
    for which, skip in element["bad"]:
      self._bad_by_source[self._source.names[which]] += 1
      if self.skips.add(skip):
        print(f"bad record ({skip.kind}), replaced by the next good one: {skip}", flush=True)
    count = len(self.skips)
    # a share means little over a handful of records
    if element["bad"] and count > self._config.max_bad_share * max(self.seen, 1000):
      by_source = f", by data set {self._bad_by_source}" if len(self._bad_by_source) > 1 else ""
      raise ValueError(
        f"{count} of {self.seen} records were bad ({self.bad}{by_source}), more than data.max_bad_share "
        f"{self._config.max_bad_share} allows; the last: {element['bad'][-1][1]}"
      )
    return element["batch"]

  @property
  def bad(self) -> dict[str, int]:
    """How many bad records of each kind were met so far."""
    return dict(self.skips.counts)

  def _next(self) -> dict[str, Any]:
    try:
      element = next(self._iterator)
    except RuntimeError as error:
      if "terminated unexpectedly" not in str(error):
        raise
      message = "a data worker process ended unexpectedly (killed for lack of memory?); set data.workers lower"
      raise ChildProcessError(f"{message}: {error}") from error
    if self._workers:
      # out of the memory shared with the workers, which leaks where an array outlives this process's interpreter
      element["batch"] = {key: np.array(value) for key, value in element["batch"].items()}
    return element

  def where(self, record: int) -> str:
    """A record's file and its number in it."""
    return self._source.where(record)

  def close(self) -> None:
    """Ends the worker processes."""
    close = getattr(self._iterator, "close", None)
    if close is not None:
      close()


def _check_sizes(source: Mixture, config: DataConfig) -> None:
  """Raises a ValueError where a data set has fewer records than each batch takes from it."""
  for name, size, share in zip(source.names, source.sizes, source.batch_shares, strict=True):
    wanted = share * config.batch_size
    if size < wanted:
      whose = f"data set {name!r}" if config.mixture else f"data.path {config.path!r}"
      raise ValueError(
        f"{whose} has {size} records, fewer than the {float(wanted):g} that a batch of data.batch_size "
        f"{config.batch_size} takes from it: set data.batch_size to at most {math.floor(size / share)}, or "
        "data.repeat_in_batch=True to have records more than once in a batch"
      )


def _warm_up(*_: int) -> None:
  """Imports what decoding needs, before several threads would do so at once."""
  records.features()


def choose_workers(config: DataConfig) -> tuple[int, int]:
  """Worker processes, and threads of each (or of this process): as the config says, or where it says -1 by the cores.

  Threads of this process on a small machine; on a large one, processes for a quarter of its cores. Two threads each:
  images are decoded outside Python's lock and the rest of an example within it, for about as long. Twice the threads
  for object storage: some wait for their batch's first records while the others decode.
  """
  cores = count_processors()
  workers = config.workers if config.workers >= 0 else 0 if cores < 8 else min(cores // 4, 32)
  threads = min(cores, 2)
  if any(paths.is_remote(entry.path) for entry in config.sets()):
    threads *= 2
  return workers, config.threads if config.threads >= 1 else threads

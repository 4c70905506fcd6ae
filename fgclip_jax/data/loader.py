"""Grain pipeline from record shards to batches.

The order of examples is one global sequence that depends on the seed alone: shuffled anew every
epoch, cut into global batches and these into data shards, of which each process takes its own. So batch `s`
holds the same examples in the same places whatever the number of processes and workers, and a run continues by
starting at step `s`.
"""

import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from fgclip_jax.data import record as records
from fgclip_jax.data.image import open_image, to_square
from fgclip_jax.data.packing import Caption, Example, Layout, assemble, measured_ladder
from fgclip_jax.data.record import Record, RecordError
from fgclip_jax.data.shards import Records
from fgclip_jax.data.tokenizer import Tokenizer

REGION_TEXTS = ("random", "short", "long")
_NO_IMAGE = np.zeros((1, 1, 3), np.uint8)
_TRIES = 100  # records in a row that may be bad before the loader gives up on finding a good one


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where examples come from and how they are made.

  Attributes:
    path: a folder made by `python -m fgclip_jax.prepare`.
    split: which of its splits.
    batch_size: images of a global batch, over all processes.
    boxes: K, regions taken per image: the first ones, as the published code does; 0 leaves regions out.
    region_text: which caption a region gets: `short`, `long` (where it has one), or `random`, either.
    short_prefix: put before short captions; the published stage 2 has "a photo of ".
    row_length: tokens per row of packed captions, which captions are cut to; 0 is 256, or the longest caption
      that the model takes if that is more.
    packed: False gives each caption a row of its own, as the published code does (slow).
    shuffle: False keeps the order of the shards.
    workers: processes that decode; 0 decodes in threads of this process; -1 chooses.
    threads: threads per worker (or of this process).
    prefetch: batches each worker makes ahead.
    max_bad_share: the share of records that may be bad before the run stops; a bad one is counted and
      replaced by the next good one.
  """

  path: str = ""
  split: str = "train"
  batch_size: int = 512
  boxes: int = 4
  region_text: str = "random"
  short_prefix: str = ""
  row_length: int = 0
  packed: bool = True
  shuffle: bool = True
  workers: int = -1
  threads: int = 2
  prefetch: int = 4
  max_bad_share: float = 0.01

  def __post_init__(self):
    if self.region_text not in REGION_TEXTS:
      raise ValueError(f"data.region_text must be one of {REGION_TEXTS}, got {self.region_text!r}")
    if self.batch_size < 1:
      raise ValueError(f"data.batch_size must be at least 1, got {self.batch_size}")
    for name in ("boxes", "threads", "prefetch"):
      if getattr(self, name) < (name != "boxes"):
        raise ValueError(f"data.{name} must be at least {int(name != 'boxes')}, got {getattr(self, name)}")
    if self.workers < -1:
      raise ValueError(f"data.workers must be -1 (choose), 0 (threads) or more, got {self.workers}")
    if not 0 <= self.max_bad_share <= 1:
      raise ValueError(f"data.max_bad_share must lie in 0..1, got {self.max_bad_share}")


@dataclasses.dataclass(frozen=True)
class Bad:
  """A record that was replaced: the class of the fault, and where and what it was."""

  kind: str
  message: str


class LoadExample(grain.transforms.RandomMap):
  """Record number to (example, bad records met); what is random is drawn from the generator alone.

  Without an `image_size` images are left unread, which is quick.
  """

  def __init__(self, source: Records, config: DataConfig, layout: Layout, image_size: int | None):
    self.source, self.config, self.layout, self.image_size = source, config, layout, image_size
    self._tokenizer = Tokenizer()

  def random_map(self, index: int, rng: np.random.Generator) -> tuple[Example, tuple[Bad, ...]]:
    """The example of this record, or of the next good one; in place of one that its shard has lost, of one far away.

    Raises:
      ValueError: none is good, or something else went wrong; of a kind that other processes can be told.
    """
    bad, number, total = [], int(index), len(self.source)
    while len(bad) < min(_TRIES, total):
      try:
        return self._example(records.decode(self.source[number]), number, rng), tuple(bad)
      except RecordError as error:
        bad.append(Bad(error.kind, f"{self.source.where(number)}: {error}"))
        # the neighbours of a lost record are lost, too
        number = (number + (int(0.618 * total) + 1 if error.kind == "shard_lost" else 1)) % total
      except Exception as error:  # a worker's exception that cannot be pickled would never arrive
        raise ValueError(f"{self.source.where(number)}: {type(error).__name__}: {error}") from error
    raise ValueError(f"{len(bad)} records in a row are bad; the last: {bad[-1].message}")

  def _example(self, record: Record, number: int, rng: np.random.Generator) -> Example:
    config, layout = self.config, self.layout
    image = _NO_IMAGE if self.image_size is None else to_square(open_image(record.image), self.image_size)
    regions = record.regions[: layout.boxes]
    texts = [config.short_prefix + record.short]
    texts += [self._region_text(region, rng) for region in regions]
    negatives = [(region.short, *region.negatives) if region.negatives else () for region in regions]
    texts += [text for group in negatives for text in group]
    captions = iter(
      [self._caption(ids, False) for ids in self._tokenizer.encode_batch(texts, layout.max_length(long=False))]
    )
    short = next(captions)
    region_captions = tuple(next(captions) for _ in regions)
    hard = [tuple(next(captions) for _ in group) for group in negatives]
    long = None
    if layout.long_length is not None:
      # a record without a long caption trains the long path on its short one
      long = self._caption(self._tokenizer.encode(record.long or record.short, layout.max_length(long=True)), True)
    return Example(
      image=image,
      short=short,
      long=long,
      boxes=np.asarray([region.box for region in regions], np.float32).reshape(-1, 4),
      regions=region_captions,
      negatives=tuple((group[0], group[1:]) if group else None for group in hard),
      record=number,
    )

  def _region_text(self, region: records.Region, rng: np.random.Generator) -> str:
    wanted = self.config.region_text
    if wanted == "random":
      wanted = ("short", "long")[rng.integers(2)]
    return region.long if wanted == "long" and region.long else region.short

  def _caption(self, ids: list[int], long: bool) -> Caption:
    end = ids.index(self._tokenizer.end_id)  # a text may itself hold an end-of-text token
    return Caption(tuple(ids[: end + 1]), long)


def measure_ladder(
  source: Records, config: DataConfig, layout: Layout, seed: int, shards: int, records_read: int = 2048
) -> tuple[int, ...]:
  """Row budgets that fit this data: quantiles of what random batches need, then coarser ones up to the worst case.

  Args:
    source, config, layout: the data and its shapes.
    seed: of which records are looked at; the same for all processes.
    shards: data shards of the whole run.
    records_read: the most records that are read for it.
  """
  rng = np.random.default_rng(seed)
  images = config.batch_size // shards
  load = LoadExample(source, config, layout, image_size=None)
  sample = rng.permutation(len(source))[:records_read]
  examples = [load.random_map(int(number), rng)[0] for number in sample]
  exact = dataclasses.replace(layout, ladder=())
  needed = []
  for _ in range(min(max(100_000 // images, 4), 24)):
    chosen = rng.choice(len(examples), images, replace=images > len(examples))
    needed.append(assemble([examples[i] for i in chosen], 1, exact)["tokens"].shape[1])
  return measured_ladder(layout, images, needed)


class _LocalShards(grain.MapDataset):
  """Of every global batch the data shards of one process."""

  def __init__(self, parent: grain.MapDataset, batch_size: int, shards: int, local_shards: Sequence[int]):
    super().__init__(parent)
    self._batch_size, self._images, self._shards = batch_size, batch_size // shards, tuple(local_shards)
    self._local = self._images * len(self._shards)

  def __len__(self) -> int:
    return len(self._parent) // self._batch_size * self._local

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    step, position = divmod(index, self._local)
    shard, image = divmod(position, self._images)
    return self._parent[step * self._batch_size + self._shards[shard] * self._images + image]


class _Assemble:
  """Examples of one process to its part of a batch."""

  def __init__(self, layout: Layout, shards: int):
    self._layout, self._shards = layout, shards

  def __call__(self, elements: Sequence[tuple[Example, tuple[Bad, ...]]]) -> dict[str, Any]:
    batch = assemble([example for example, _ in elements], self._shards, self._layout)
    return {"batch": batch, "bad": [bad for _, group in elements for bad in group]}


class Loader:
  """Batches of one process, without end.

  Args:
    config: what to load.
    layout: the static shapes of a batch; without a ladder of row budgets, one is measured.
    image_size: side of the square images, in pixels.
    seed: of the order and of every random choice.
    shards: G, the data shards of the whole run; divides the batch.
    local_shards: which of them this process feeds; all by default.
    start: the first step.

  Attributes:
    layout: the static shapes, ladder included.
    epoch_steps: global batches in one pass over the data (a fraction).
    bad: bad records met so far, by class.
    waited: seconds spent waiting for batches.

  Raises:
    FileNotFoundError, ValueError: no such data, or sizes that do not divide.
  """

  def __init__(
    self,
    config: DataConfig,
    layout: Layout,
    image_size: int,
    *,
    seed: int,
    shards: int = 1,
    local_shards: Sequence[int] | None = None,
    start: int = 0,
  ):
    if config.batch_size % shards:
      raise ValueError(f"data.batch_size {config.batch_size} must divide over {shards} data shards")
    local_shards = range(shards) if local_shards is None else local_shards
    source = Records(config.path, config.split)
    if not layout.ladder:
      layout = dataclasses.replace(layout, ladder=measure_ladder(source, config, layout, seed, shards))
    self.layout = layout
    self._source = source
    for line in source.damage:
      print(line, flush=True)
    self.records, self.epoch_steps = len(source), len(source) / config.batch_size
    self.bad: dict[str, int] = {}
    self.seen, self.waited, self._config = 0, 0.0, config
    order = grain.MapDataset.range(len(source)).seed(seed)
    if config.shuffle:
      order = order.shuffle()
    examples = order.repeat().random_map(LoadExample(source, config, layout, image_size))
    local = config.batch_size // shards * len(local_shards)
    parts = _LocalShards(examples, config.batch_size, shards, local_shards)
    batches = parts.batch(local, drop_remainder=True, batch_fn=_Assemble(layout, len(local_shards)))[start:]
    workers = default_workers() if config.workers < 0 else config.workers
    ahead = max(config.prefetch, config.threads)
    pipeline = batches.to_iter_dataset(grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=ahead))
    if workers:
      options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=config.prefetch)
      pipeline = pipeline.mp_prefetch(options, worker_init_fn=_warm_up)
    else:
      _warm_up()
    self._local, self._workers, self._iterator = local, workers, iter(pipeline)

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
    for bad in element["bad"]:
      self.bad[bad.kind] = self.bad.get(bad.kind, 0) + 1
      if self.bad[bad.kind] <= 3:
        print(f"bad record ({bad.kind}), replaced by the next good one: {bad.message}", flush=True)
    count = sum(self.bad.values())
    # a share means little over a handful of records
    if element["bad"] and count > self._config.max_bad_share * max(self.seen, 1000):
      raise ValueError(
        f"{count} of {self.seen} records were bad ({self.bad}), more than data.max_bad_share "
        f"{self._config.max_bad_share} allows; the last: {element['bad'][-1].message}"
      )
    return element["batch"]

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


def _warm_up(*_: int) -> None:
  """Imports what decoding needs, before several threads would do so at once."""
  records.features()


def default_workers() -> int:
  """Threads of this process on a small machine; on a large one, processes for a quarter of its cores."""
  # the cores that this process may use, which are fewer than the machine's in many containers
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
  return 0 if cores < 8 else min(cores // 4, 32)

"""Measures how quickly a data set is read and made into batches on this machine, and where the time goes."""

import concurrent.futures
import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fgclip_jax.data import record
from fgclip_jax.data.config import DataConfig
from fgclip_jax.data.dataset_folder import find_shards
from fgclip_jax.data.decode import MODES, decode_square
from fgclip_jax.data.examples import LoadExample, measure_row_buckets
from fgclip_jax.data.loader import Loader
from fgclip_jax.data.mixture import DataSet, Mixture
from fgclip_jax.data.packing import Layout, assemble
from fgclip_jax.data.tokenizers import get_tokenizer
from fgclip_jax.storage import paths

SAMPLE = 512  # records, drawn at random, on which stages are timed
READERS = 8  # threads that read while the disk is timed
_WARM_UP = 1.0  # seconds that a loader runs before its clock starts


@dataclasses.dataclass(frozen=True)
class Stages:
  """The time that one record takes in each stage from file to batch, in seconds.

  Attributes:
    disk: reading it from the disk, many at once; files are dropped from memory before, as far as the system does so.
    read: processor time of reading it; the following are processor times, too.
    fields: parsing its bytes into a record.
    image: decoding its image to pixels, for each mode of decoding.
    tokens: making token ids of its captions.
    captions: making an example of it; with stored ids, if there are any.
    batch: its share of packing captions and assembling a batch.
    stored_tokens: whether ids are stored.
    record_bytes: the mean size of a record.
    sides: the median of the images' longer sides, in pixels; 0 if sizes are unknown.
    jpegs: the share of images that are JPEGs.
  """

  disk: float
  read: float
  fields: float
  image: dict[str, float]
  tokens: float
  captions: float
  batch: float
  stored_tokens: bool
  record_bytes: float
  sides: float
  jpegs: float

  def total(self, mode: str) -> float:
    """Returns the processor time of a record from file to batch."""
    return self.read + self.fields + self.image[mode] + self.captions + self.batch


def measure_stages(config: DataConfig, size: int) -> Stages:
  """Times every stage from file to batch by itself, in this thread.

  Args:
    config: the data set, and how examples are made from it.
    size: the side of the model's images, in pixels.

  Raises:
    FileNotFoundError, ValueError: there is no such data, or a record cannot be used.
  """
  source = Mixture([DataSet(config.path, config.split)])
  if not paths.is_remote(config.path):
    _forget(find_shards(config.path, config.split))
  rng = np.random.default_rng(0)
  numbers = rng.permutation(len(source))[:SAMPLE].tolist()
  begin = time.perf_counter()
  source.prefetch(numbers)
  with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
    data = list(pool.map(source.__getitem__, numbers))
  disk = (time.perf_counter() - begin) / len(numbers)
  found = [record.decode(one) for one in data]
  layout, tokenizer = Layout(boxes=config.boxes), get_tokenizer()
  whole, blank = LoadExample(source, config, layout, size), LoadExample(source, config, layout, None)
  examples = [whole.random_map(number, rng).example for number in numbers]
  step = config.batch_size
  batches = [examples[start : start + step] for start in range(0, len(examples), step)]
  read = _clock(lambda number: source[number], numbers)
  fields = _clock(record.decode, data)
  without_image = _clock(lambda number: blank.random_map(number, rng), numbers)
  sides = [max(one.width, one.height) for one in found]
  return Stages(
    disk=disk,
    read=read,
    fields=fields,
    image={mode: _clock(lambda one, mode=mode: decode_square(one.image, size, mode), found) for mode in MODES},
    tokens=_clock(lambda one: record.tokenize(one, tokenizer), found),
    captions=max(without_image - read - fields, 0.0),
    batch=_clock(lambda batch: assemble(batch, 1, layout), batches) * len(batches) / len(examples),
    stored_tokens=source.tokenizers[0] == tokenizer.name,
    record_bytes=statistics.fmean(map(len, data)),
    sides=float(statistics.median(sides)) if all(sides) else 0.0,
    jpegs=statistics.fmean(one.image[:2] == b"\xff\xd8" for one in found),
  )


def make_layout(config: DataConfig) -> Layout:
  """Returns the shapes of batches of this data, measured once for all trials."""
  layout = Layout(boxes=config.boxes)
  source = Mixture([DataSet(config.path, config.split)])
  return dataclasses.replace(layout, row_buckets=measure_row_buckets(source, config, layout, seed=0, shards=1))


def measure_loader(config: DataConfig, layout: Layout, size: int, seconds: float) -> float:
  """Returns the images per second of the whole loader, measured over at least `seconds`."""
  # a small data set is read at the speed of a large one
  loader = Loader(dataclasses.replace(config, repeat_in_batch=True), layout, size, seed=0)
  try:
    begin = time.perf_counter()
    next(loader)
    while time.perf_counter() - begin < _WARM_UP:
      next(loader)
    begin, batches = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
      next(loader)
      batches += 1
    return batches * config.batch_size / (time.perf_counter() - begin)
  finally:
    loader.close()


def settings_to_try(cores: int) -> list[tuple[int, int]]:
  """Returns the pairs of worker processes and threads that are worth a trial on `cores` cores."""
  tried = [(0, 1), (0, 2), (0, min(cores, 4)), (1, 2), (cores // 4, 2), (cores // 2, 2), (cores, 1)]
  return sorted({(workers, threads) for workers, threads in tried if max(workers, 1) * threads <= max(cores, 2)})


def _clock(function: Callable[[Any], Any], items: Sequence[Any]) -> float:
  """Returns the processor time of this thread for one call: the lower of two passes, for the first warms caches up."""
  passes = []
  for _ in range(2):
    begin = time.thread_time()
    for item in items:
      function(item)
    passes.append((time.thread_time() - begin) / len(items))
  return min(passes)


def _forget(shards: Sequence[str]) -> None:
  """Asks the system to drop files from its memory, so that the next read comes from the disk."""
  if hasattr(os, "posix_fadvise"):
    for path in shards:
      with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

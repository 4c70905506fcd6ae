"""A small data set in every variety, loaders of it, and what their batches hold."""

import io
import itertools
import os

import chex
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from fgclip_jax.data import record as records
from fgclip_jax.data.dataset_folder import shard_path
from fgclip_jax.data.loader import DataConfig, Loader
from fgclip_jax.data.packing import NONE, Layout
from fgclip_jax.data.record import Record, Region

COUNT = 23  # records of the data set: no multiple of any batch
SIZE = 16  # side of the images that the loader makes
BOXES = 4


def picture(number: int) -> bytes:
  pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


def toy_record(number: int) -> Record:
  """Records with 0 to 6 boxes, with and without long captions, and with 0, 3 or 10 negatives."""
  negatives = (0, 3, 10)[number % 3]
  return Record(
    id=str(number),
    image=picture(number),
    short=f"picture {number}" if number != 5 else "five <|endoftext|> and what nobody reads",
    long="" if number % 5 == 2 else f"picture {number}, which has a long caption, {'very ' * number} long",
    regions=tuple(
      Region(
        box=(0.1 * k, 0.0, 1.0, 0.125 * number / COUNT),
        short=f"region {k} of {number}",
        long=f"region {k} of picture {number} at length" if k % 2 else "",
        negatives=tuple(f"wrong {n} for {k} of {number}" for n in range(negatives if k == 1 else 0)),
      )
      for k in range(number % 7)
    ),
  )


def write_shards(folder, examples: list[Record | bytes], shards: int = 1, split: str = "train") -> list[str]:
  """Writes records, or the bytes given instead of one, and returns the shards' paths."""
  os.makedirs(folder, exist_ok=True)
  paths = []
  for shard in range(shards):
    paths.append(shard_path(str(folder), "toy", split, shard, shards))
    writer = ArrayRecordWriter(paths[-1], "group_size:1")
    for example in examples[len(examples) * shard // shards : len(examples) * (shard + 1) // shards]:
      writer.write(example if isinstance(example, bytes) else records.encode(example))
    writer.close()
  return paths


RECORDS = [toy_record(number) for number in range(COUNT)]


def make_loader(path: str, batch_size: int = 8, layout: Layout | None = None, seed: int = 0, **changes) -> Loader:
  places = ("shards", "local_shards", "start")
  where = {key: changes.pop(key) for key in places if key in changes}
  config = DataConfig(path=path, batch_size=batch_size, boxes=BOXES, workers=changes.pop("workers", 0), **changes)
  return Loader(config, layout or Layout(boxes=BOXES), SIZE, seed=seed, **where)


def take(loader: Loader, count: int) -> list[dict[str, np.ndarray]]:
  batches = list(itertools.islice(loader, count))
  loader.close()
  return batches


def assert_same(one: list[dict[str, np.ndarray]], two: list[dict[str, np.ndarray]]):
  chex.assert_trees_all_equal(one, two)


def concatenate(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """The global batch of its parts, which may have different numbers of rows."""
  rows = max(part["tokens"].shape[1] for part in parts)

  def pad(key, value):
    return np.pad(value, [(0, 0), (0, rows - value.shape[1]), (0, 0)]) if key in TEXT_KEYS else value

  return {key: np.concatenate([pad(key, part[key]) for part in parts]) for key in parts[0]}


TEXT_KEYS = ("tokens", "segment", "position")


def read_ids(batch: dict[str, np.ndarray], shard: int, end: int) -> list[int] | None:
  """The caption that ends there, from its packed row."""
  if end == NONE:
    return None
  row, column = divmod(int(end), batch["tokens"].shape[-1])
  mine = batch["segment"][shard, row] == batch["segment"][shard, row, column]
  return batch["tokens"][shard, row][mine].tolist()


def examples(batch: dict[str, np.ndarray]):
  """Each image of a batch: its record's number, and its captions read back from the rows."""
  shards, images, boxes = batch["region_eot"].shape
  for g, b in itertools.product(range(shards), range(images)):
    hard = {}
    for slot, box in enumerate(batch["hard_box"][g]):
      if box != NONE and box // boxes == b:
        texts = [read_ids(batch, g, end) for end in batch["hard_eot"][g, slot]]
        hard[int(box) % boxes] = [ids for ids in texts if ids is not None]
    yield {
      "record": int(batch["record"][g, b]),
      "image": batch["image"][g, b],
      "boxes": batch["boxes"][g, b, : batch["box_count"][g, b]],
      "short": read_ids(batch, g, batch["short_eot"][g, b]),
      "long": read_ids(batch, g, batch["long_eot"][g, b]) if "long_eot" in batch else None,
      "regions": [read_ids(batch, g, end) for end in batch["region_eot"][g, b] if end != NONE],
      "hard": hard,
    }

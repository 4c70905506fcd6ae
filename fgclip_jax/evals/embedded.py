"""A split's images, regions and texts as embeddings, each encoded once, for all evaluators."""

import dataclasses
import itertools
import warnings
from collections.abc import Iterable

import numpy as np
import tqdm
from jaxtyping import Float32, Int

from fgclip_jax.api import CHUNKS, FGCLIP
from fgclip_jax.data.record import MAX_NEGATIVES, read_info
from fgclip_jax.evals.examples import Example, Examples

NONE = -1  # a text that is not there


@dataclasses.dataclass(frozen=True)
class Embedded:
  """Unit-length embeddings of N images, M regions, T distinct short or region texts and U distinct long ones.

  Attributes:
    image: of whole images.
    short, long: the row of `short_text` or `long_text` that is an image's caption; -1: it has none.
    region: of the regions that have a caption and a size.
    region_caption: the row of `short_text` that is a region's caption.
    negatives: the rows of `short_text` that are a region's hard negatives; -1: no more.
    classes: the rows of `short_text` that regions are classified into.
    short_text: of short captions, region captions, negatives and classes.
    long_text: of long captions; empty for a plain CLIP.
    records: how many records were read, used or not.
    skipped: how many of them could not be used, by kind of fault.
    notes: what a reader of the results should know.
  """

  image: Float32[np.ndarray, "N D"]
  short: Int[np.ndarray, "N"]
  long: Int[np.ndarray, "N"]
  region: Float32[np.ndarray, "M D"]
  region_caption: Int[np.ndarray, "M"]
  negatives: Int[np.ndarray, "M 10"]
  classes: Int[np.ndarray, "C"]
  short_text: Float32[np.ndarray, "T D"]
  long_text: Float32[np.ndarray, "U D"]
  records: int
  skipped: dict[str, int]
  notes: tuple[str, ...]


class _Texts:
  """Distinct texts, numbered as they come."""

  def __init__(self):
    self._number: dict[str, int] = {}

  def add(self, text: str) -> int:
    """The text's number; `NONE` for an empty one."""
    return self._number.setdefault(text, len(self._number)) if text.strip() else NONE

  def encode(self, model: FGCLIP, kind: str, progress: bool) -> tuple[np.ndarray, list[str]]:
    """The embeddings of all texts, and what was said about cut ones."""
    if not self._number:
      return np.zeros((0, model.config.embedding_width), np.float32), []
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter("always")
      embeddings = model.encode_text(list(self._number), kind, progress)
    return embeddings, [str(warning.message) for warning in caught]


def embed(model: FGCLIP, folder: str, split: str, limit: int | None = None, progress: bool = False) -> Embedded:
  """Reads and encodes a split of a record folder.

  Args:
    model: the model.
    folder, split: see `fgclip_jax.prepare`.
    limit: the number of records to read, from the first; None for all.
    progress: shows progress bars.

  Raises:
    FileNotFoundError, ValueError: the split is not there, or holds no usable record.
  """
  examples = Examples(folder, split, model.config.vision.image_size, limit)
  short_texts, long_texts = _Texts(), _Texts()
  images, regions = [], []
  captions = {"short": [], "long": [], "region": [], "negatives": []}
  unusable = 0
  with tqdm.tqdm(total=len(examples), desc="images", unit="image", disable=not progress) as bar:
    for batch in _batches(examples, CHUNKS[-1]):
      boxes = []
      for example in batch:
        record = example.record
        captions["short"].append(short_texts.add(record.short))
        captions["long"].append(long_texts.add(record.long) if model.config.fine_grained else NONE)
        usable = [r for r in record.regions if r.short.strip() and r.box[0] < r.box[2] and r.box[1] < r.box[3]]
        unusable += len(record.regions) - len(usable)
        boxes.append([region.box for region in usable])
        for region in usable:
          captions["region"].append(short_texts.add(region.short))
          wrong = [short_texts.add(text) for text in dict.fromkeys(region.negatives) if text != region.short]
          wrong = [number for number in wrong if number != NONE]
          captions["negatives"].append(wrong + [NONE] * (MAX_NEGATIVES - len(wrong)))
      # a last batch is filled up, so that it needs no program of its own
      size = CHUNKS[-1] if len(examples) >= CHUNKS[-1] else len(batch)
      image, region = _encode(model, [example.pixels for example in batch], boxes, size)
      images.append(image)
      regions.append(region)
      bar.update(batch[-1].number + 1 - bar.n)
    bar.update(len(examples) - bar.n)
  notes = _notes(examples, unusable)
  if not images:
    raise ValueError(f"no record of split {split!r} in {folder!r} can be used: {'; '.join(notes)}")
  declared = read_info(folder).get("region_classes")
  classes = [short_texts.add(text) for text in declared] if declared else captions["region"]
  short_text, short_notes = short_texts.encode(model, "short", progress)
  long_text, long_notes = (
    long_texts.encode(model, "long", progress) if model.config.fine_grained else (short_text[:0], [])
  )
  return Embedded(
    image=np.concatenate(images),
    short=np.asarray(captions["short"], np.int64),
    long=np.asarray(captions["long"], np.int64),
    region=np.concatenate(regions),
    region_caption=np.asarray(captions["region"], np.int64),
    negatives=np.asarray(captions["negatives"], np.int64).reshape(-1, MAX_NEGATIVES),
    classes=np.unique(np.asarray([number for number in classes if number != NONE], np.int64)),
    short_text=short_text,
    long_text=long_text,
    records=len(examples),
    skipped=dict(examples.skipped),
    notes=(*notes, *short_notes, *long_notes),
  )


def _batches(examples: Iterable[Example], size: int) -> Iterable[list[Example]]:
  iterator = iter(examples)
  while batch := list(itertools.islice(iterator, size)):
    yield batch


def _encode(model: FGCLIP, pixels: list[np.ndarray], boxes: list[list], size: int) -> tuple[np.ndarray, np.ndarray]:
  """Embeds a batch's images [n, D], and its regions [m, D] in the order of the images, as a batch of `size`."""
  count = len(pixels)
  pixels = np.stack(pixels + [pixels[-1]] * (size - count))
  if not any(boxes):
    return model.encode_image(pixels)[:count], np.zeros((0, model.config.embedding_width), np.float32)
  padded = np.zeros((len(pixels), max(len(each) for each in boxes), 4), np.float32)
  for row, each in zip(padded, boxes, strict=False):
    row[: len(each)] = np.asarray(each, np.float32).reshape(-1, 4)
  image, region = model.encode_image_and_regions(pixels, padded)
  return image[:count], np.concatenate([row[: len(each)] for row, each in zip(region, boxes, strict=False)])


def _notes(examples: Examples, unusable: int) -> list[str]:
  notes = []
  if examples.skipped:
    kinds = ", ".join(f"{kind} {count}" for kind, count in examples.skipped.most_common())
    total = sum(examples.skipped.values())
    notes.append(
      f"{total} of {len(examples)} records could not be used and were skipped ({kinds}); the first: "
      f"{examples.first_fault}"
    )
  if unusable:
    notes.append(f"{unusable} regions without a caption or without a size were left out")
  return notes

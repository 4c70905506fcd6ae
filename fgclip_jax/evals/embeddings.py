"""A data set's images, regions and texts as embeddings, each encoded once for all its metrics."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import tqdm
from jaxtyping import Float32, Int

from fgclip_jax.data.dataset_folder import read_info
from fgclip_jax.data.record import MAX_NEGATIVES, Record
from fgclip_jax.data.tokenizers import Tokenizer
from fgclip_jax.evals import guards
from fgclip_jax.evals.datasets.records import Example, Examples
from fgclip_jax.evals.evaluator import Metric, Prediction
from fgclip_jax.evals.ranking import NONE
from fgclip_jax.inference.model import FGCLIP


@dataclasses.dataclass(frozen=True)
class DatasetEmbeddings:
  """Unit-length embeddings of N images, M regions, T distinct short or region texts and U distinct long ones.

  Attributes:
    image: whole images.
    short, long: the row in `short_text` or `long_text` of each image's caption; -1: it has none.
    region: the regions with a caption and a size.
    region_caption: the row in `short_text` of each region's caption.
    negatives: the rows in `short_text` of each region's hard negatives; -1: no more.
    classes: the rows in `short_text` of the region classes.
    short_text: short captions, region captions, negatives and classes.
    region_text: the same rows as region captions, if the model has another path for those; of each of the two, only
      the rows that are used are filled. None: `short_text`.
    long_text: long captions; empty for a plain CLIP.
    ids: the images' ids.
    places: the image's id and the box of each region.
    short_words, long_words: the texts of `short_text` and `long_text`. Texts that differ only in case or spacing, which
      the tokenizer drops, are one.
    records: the number of records that were read, used or not.
    skipped: the number of records that could not be used, by kind.
    notes: see `Result`.
    read_dense: reads the images once more: their dense features, in order.
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
  ids: list[str]
  places: list[str]
  short_words: list[str]
  long_words: list[str]
  records: int
  skipped: dict[str, int]
  notes: tuple[str, ...]
  region_text: Float32[np.ndarray, "T D"] | None = None
  read_dense: Callable[[], Iterator[Float32[np.ndarray, "_ _ D"]]] | None = None

  @property
  def of_regions(self) -> Float32[np.ndarray, "T D"]:
    """The texts that regions are compared with."""
    return self.short_text if self.region_text is None else self.region_text


class _Texts:
  """Distinct texts, numbered as they come."""

  def __init__(self, tokenizer: Tokenizer):
    self._tokenizer = tokenizer
    self._number: dict[str, int] = {}
    self.words: list[str] = []

  def add(self, text: str) -> int:
    """The text's number; `NONE` for an empty one."""
    key = self._tokenizer.clean(text)
    if not key:
      return NONE
    number = self._number.setdefault(key, len(self.words))
    if number == len(self.words):
      self.words.append(text)
    return number

  def encode(
    self, model: FGCLIP, kind: str, progress: bool, rows: np.ndarray | None = None
  ) -> tuple[np.ndarray, list[str]]:
    """The embeddings of all texts, or of some rows and zeros elsewhere; notes. Long texts are cut as in training."""
    rows = np.arange(len(self.words)) if rows is None else rows[rows != NONE]
    features = np.zeros((len(self.words), model.config.embedding_width), np.float32)
    if not len(rows):
      return features, []
    words = [self.words[row] for row in rows]
    features[rows], notes = guards.encode_texts(model, words, kind, ("cut_texts",), progress)
    return features, notes


class _Labels:
  """The texts of records, as numbers of distinct texts."""

  def __init__(self, tokenizer: Tokenizer, read_long: bool):
    self._tokenizer = tokenizer
    self.short_texts, self.long_texts = _Texts(tokenizer), _Texts(tokenizer)
    self.short, self.long, self.region, self.negatives = [], [], [], []
    self.ids, self.places = [], []
    self.unusable = 0
    self._read_long = read_long

  def add(self, record: Record) -> list[tuple[float, float, float, float]]:
    """Takes a record's texts; returns the boxes of its usable regions."""
    self.ids.append(record.id)
    self.short.append(self.short_texts.add(record.short))
    self.long.append(self.long_texts.add(record.long) if self._read_long else NONE)
    clean = self._tokenizer.clean
    usable = [r for r in record.regions if clean(r.short) and r.box[0] < r.box[2] and r.box[1] < r.box[3]]
    self.unusable += len(record.regions) - len(usable)
    for region in usable:
      right = self.short_texts.add(region.short)
      self.region.append(right)
      self.places.append(f"{record.id} {[round(each, 4) for each in region.box]}")
      wrong = dict.fromkeys(self.short_texts.add(text) for text in region.negatives)
      wrong = [number for number in wrong if number not in (NONE, right)][:MAX_NEGATIVES]
      self.negatives.append(wrong + [NONE] * (MAX_NEGATIVES - len(wrong)))
    return [region.box for region in usable]

  def classes(self, declared: list[str] | None) -> np.ndarray:
    """The numbers of the declared classes, or else of all region captions."""
    numbers = [self.short_texts.add(text) for text in declared] if declared else self.region
    return np.unique(np.asarray([number for number in numbers if number != NONE], np.int64))


@runtime_checkable
class DatasetMetric(Protocol):
  """A metric of a record folder's embeddings."""

  @property
  def name(self) -> str:
    """The name in notes."""
    ...

  def run(self, model: FGCLIP, examples: DatasetEmbeddings) -> tuple[dict[str, Metric], list[Prediction]]:
    """Returns the numbers by name, and the prediction for each question.

    Raises:
      NothingToMeasureError: the records lack the labels, or the model the ability.
    """
    ...


def embed(
  model: FGCLIP, folder: str, split: str, limit: int | None = None, progress: bool = False
) -> DatasetEmbeddings:
  """Reads and encodes a split of a record folder.

  Args:
    model: the model.
    folder, split: see `fgclip_jax.prepare`.
    limit: the number of records to read, from the first; None for all.
    progress: shows progress bars.

  Raises:
    FileNotFoundError, ValueError: the split is missing, or holds no usable record; an embedding is not finite.
  """
  examples = Examples(folder, split, limit=limit, reader=model.reader("squash"))
  labels = _Labels(model.tokenizer, read_long="long" in model.config.text.kinds)
  # the last batch is filled up, so that no program is compiled for its size
  size = model.batch_size if len(examples) >= model.batch_size else None
  images, regions = [], []
  with tqdm.tqdm(total=len(examples), desc="images", unit="image", disable=not progress) as bar:
    for batch in _batches(examples, model.batch_size):
      boxes = [labels.add(example.record) for example in batch]
      image, region = _encode(model, [example.pixels for example in batch], boxes, size or len(batch))
      images.append(image)
      regions.append(region)
      bar.update(batch[-1].number + 1 - bar.n)
    bar.update(len(examples) - bar.n)

  def read_dense():
    for batch in _batches(Examples(folder, split, limit=limit, reader=model.reader("squash")), model.batch_size):
      filled = _fill(model, [example.pixels for example in batch], size or len(batch))
      yield from model.encode_dense(filled)[: len(batch)]

  notes = _notes(examples, labels.unusable)
  if not images:
    raise ValueError(f"no record of split {split!r} in {folder!r} can be used: {'; '.join(filter(None, notes))}")
  declared = read_info(folder).get("region_classes")
  if declared is not None and not (isinstance(declared, list) and all(isinstance(each, str) for each in declared)):
    raise ValueError(f"{folder!r}: `region_classes` of its description must be a list of texts, got {declared!r:.80}")
  classes = labels.classes(declared)
  kinds, region_text, region_notes = model.config.text.kinds, None, []
  if kinds["region"] == kinds["short"]:
    short_text, short_notes = labels.short_texts.encode(model, "short", progress)
  else:
    used = np.unique(np.concatenate([np.asarray(labels.region, int), np.ravel(labels.negatives).astype(int), classes]))
    region_text, region_notes = labels.short_texts.encode(model, "region", progress, used)
    short_text, short_notes = labels.short_texts.encode(model, "short", progress, np.unique(np.asarray(labels.short)))
  long_text, long_notes = labels.long_texts.encode(model, "long", progress)
  image, region = np.concatenate(images), np.concatenate(regions)
  guards.check_finite(image, "images")
  guards.check_finite(region, "regions")
  return DatasetEmbeddings(
    image=image,
    region=region,
    short_text=short_text,
    long_text=long_text,
    short=np.asarray(labels.short, np.int64),
    long=np.asarray(labels.long, np.int64),
    region_caption=np.asarray(labels.region, np.int64),
    negatives=np.asarray(labels.negatives, np.int64).reshape(-1, MAX_NEGATIVES),
    classes=classes,
    ids=labels.ids,
    places=labels.places,
    short_words=labels.short_texts.words,
    long_words=labels.long_texts.words,
    records=len(examples),
    skipped=dict(examples.skips.counts),
    notes=(*notes, *short_notes, *region_notes, *long_notes),
    region_text=region_text,
    read_dense=read_dense,
  )


def _batches(examples: Iterable[Example], size: int) -> Iterable[list[Example]]:
  iterator = iter(examples)
  while batch := list(itertools.islice(iterator, size)):
    yield batch


def _encode(model: FGCLIP, pixels: list, boxes: list[list], size: int) -> tuple[np.ndarray, np.ndarray]:
  """Embeds a batch's images [n, D], and its regions [m, D] in the order of the images; squares as a batch of `size`."""
  count, filled = len(pixels), _fill(model, pixels, size)
  if not any(boxes):
    return model.encode_image(filled)[:count], np.zeros((0, model.config.embedding_width), np.float32)
  padded = np.zeros((len(filled), max(len(each) for each in boxes), 4), np.float32)
  for row, each in zip(padded, boxes, strict=False):
    row[: len(each)] = np.asarray(each, np.float32).reshape(-1, 4)
  image, region = model.encode_image_and_regions(filled, padded)
  return image[:count], np.concatenate([row[: len(each)] for row, each in zip(region, boxes, strict=False)])


def _fill(model: FGCLIP, pixels: list, size: int) -> Any:
  """Squares as a batch of `size`; pictures of any shape as they are."""
  return pixels if model.config.vision.takes_patches else np.stack(pixels + [pixels[-1]] * (size - len(pixels)))


def _notes(examples: Examples, unusable: int) -> list[str]:
  notes = list(examples.damage)
  notes.append(examples.skips.summary(len(examples), "records"))
  if unusable:
    notes.append(f"{unusable} regions without a caption or without a size were left out")
  return notes

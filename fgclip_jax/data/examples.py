"""Records to examples: decoded, cropped, tokenised; bad ones replaced."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from fgclip_jax.data import record as records
from fgclip_jax.data.augment import Crop, choose_part, move_boxes
from fgclip_jax.data.config import DataConfig
from fgclip_jax.data.decode import Mode, decode_patches, decode_square
from fgclip_jax.data.image import read_size
from fgclip_jax.data.mixture import Mixture
from fgclip_jax.data.packing import Caption, Example, Layout, assemble, row_buckets_from_samples
from fgclip_jax.data.patch_rows import fit_rows
from fgclip_jax.data.patches import PatchLayout, fit_grid
from fgclip_jax.data.record import Ids, Inputs
from fgclip_jax.data.tokenizers import Tokenizer, get_tokenizer
from fgclip_jax.models.pixel_spec import CLIP_PIXELS, PixelSpec
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import Skip

_NO_IMAGE = np.zeros((1, 1, 3), np.uint8)
_TRIES = 100  # records in a row that may be bad before the loader gives up on finding a good one
_READ_AHEAD = 128  # records read before their pictures are decoded, which bounds the memory that they take


class Loaded(NamedTuple):
  """An example, the bad records of its data set that it replaces, and how many boxes fewer it has for being cropped."""

  example: Example
  bad: tuple[Skip, ...]
  boxes_lost: int


class LoadExample:
  """Record number to example; what is random is drawn from the generator alone.

  Without an `image_size` images are left unread, which is quick; with `layout.patches` it may be any number.
  """

  def __init__(
    self,
    source: Mixture,
    config: DataConfig,
    layout: Layout,
    image_size: int | None,
    pixels: PixelSpec = CLIP_PIXELS,
  ):
    self.source, self.config, self.layout, self.image_size = source, config, layout, image_size
    self._pixels = pixels
    self._tokenizer = get_tokenizer(layout.tokenizer)
    # ids that another tokenizer made are made again
    self._stored = [name == self._tokenizer.name for name in source.tokenizers]
    self._lengths = [layout.max_length(long) for long in (False, True)]
    self._prefix = Prefix(config.short_prefix, self._tokenizer)
    self._as_written: Tokenizer | None = None
    if config.hard_positive_as_written:
      if not hasattr(self._tokenizer, "as_written"):
        name = layout.tokenizer
        raise ValueError(f"data.hard_positive_as_written: the tokenizer {name!r} reads lower case only; leave it False")
      self._as_written = cast(Any, self._tokenizer).as_written()

  def load(
    self, numbers: Sequence[int], rngs: Sequence[np.random.Generator], images: np.ndarray | None, shards: int = 1
  ) -> list[Loaded]:
    """Many examples, as `random_map` makes each.

    Args:
      numbers: of the records.
      rngs: what is drawn from, for each.
      images: where the pictures are put, uint8 [n, S, S, 3]; None: patches stay in the examples.
      shards: data shards that they are for, evenly, one after the other; `dynamic` budgets of patches go by it.

    Many are read before any of their pictures is decoded: by turns, each would find the other's code and data in the
    processor's cache, and reading would take twice as long.
    """
    loaded = []
    for places in self._split(len(numbers), shards):
      found = [self._try_to_read(numbers[place]) for place in places]
      budgets = self._choose_budgets(found)
      for place, inputs, budget in zip(places, found, budgets, strict=True):
        image = None if images is None else images[place]
        loaded.append(self.random_map(numbers[place], rngs[place], image, inputs, budget))
    return loaded

  def _split(self, count: int, shards: int) -> list[range]:
    """Which of `count` examples are read at once: those whose pictures share a budget, or some."""
    patches, size = self.layout.patches, _READ_AHEAD
    if patches and patches.budget == "dynamic":
      size = patches.group or count // shards
    return [range(begin, min(begin + size, count)) for begin in range(0, count, size)]

  def _choose_budgets(self, found: Sequence[Inputs | None]) -> Sequence[int | None]:
    """The budget of each picture, where others decide it; None: it follows from the picture itself."""
    patches = self.layout.patches
    if not patches or patches.budget != "dynamic":
      return [None] * len(found)
    return patches.choose_budgets([read_size(inputs.image) if inputs else None for inputs in found])

  def size(self, number: int) -> tuple[int, int] | None:
    """Width and height of a record's picture; None: it has none that can be read."""
    inputs = self._try_to_read(number)
    return inputs and read_size(inputs.image)

  def random_map(
    self,
    index: int,
    rng: np.random.Generator,
    image: np.ndarray | None = None,
    inputs: Inputs | None = None,
    budget: int | None = None,
  ) -> Loaded:
    """The example of this record, or of the next good one; in place of one that its shard has lost, of one far away.

    Args:
      index: the record's number.
      rng: what is drawn from.
      image: where the picture is put, uint8 [S, S, 3]; None: into an array of its own.
      inputs: what has been read of the record, if anything has.
      budget: the most patches of the picture; None: as `layout.patches` gives it by itself.

    Raises:
      ValueError: none is good, or something else went wrong; of a kind that other processes can be told.
    """
    bad, number = [], int(index)
    total = self.source.sizes[self.source.which(number)]
    while len(bad) < min(_TRIES, total):
      try:
        example, lost = self._example(inputs or self._read(number), number, rng, image, budget)
        return Loaded(example, tuple(bad), lost)
      except RecordError as error:
        inputs = None
        bad.append(Skip.of(error, self.source.where(number)))
        # the neighbours of a lost record are lost, too
        number = self.source.step_from(number, int(0.618 * total) + 1 if error.kind == "shard_lost" else 1)
      except Exception as error:  # a worker's exception that cannot be pickled would never arrive
        raise ValueError(f"{self.source.where(number)}: {type(error).__name__}: {error}") from error
    raise ValueError(f"{len(bad)} records in a row are bad; the last: {bad[-1]}")

  def _try_to_read(self, number: int) -> Inputs | None:
    try:
      return self._read(number)
    except Exception:
      return None  # `random_map` reads it again and says what is wrong

  def _read(self, number: int) -> Inputs:
    data = self.source[number]
    stored = self._stored[self.source.which(number)]
    if stored and not self._as_written and (inputs := records.decode_inputs(data)):
      return inputs
    record = records.decode(data)
    tokens = record.tokens if stored and record.tokens else records.tokenize(record, self._tokenizer)
    boxes = np.asarray([region.box for region in record.regions], np.float32).reshape(-1, 4)
    truths: list[list[int]] = []
    if self._as_written and record.regions:
      truths = self._as_written.encode_batch([region.short for region in record.regions])
    return Inputs(record.image, record.short, boxes, tokens, record.language, tuple(map(tuple, truths)))

  def _example(
    self, inputs: Inputs, number: int, rng: np.random.Generator, image: np.ndarray | None, budget: int | None
  ) -> tuple[Example, int]:
    config, layout, tokens = self.config, self.layout, inputs.tokens
    language, grid = inputs.language or records.DEFAULT_LANGUAGE, (0, 0)
    english = language == records.DEFAULT_LANGUAGE
    reads_regions = not config.region_languages or language in config.region_languages
    boxes = inputs.boxes if reads_regions else inputs.boxes[:0]
    kept = range(len(boxes))
    if self.image_size is None:
      image = _NO_IMAGE
    else:
      choose = choose_part(cast(Crop, config.crop), config.crop_area, rng)
      mode = cast(Mode, config.decode)
      if layout.patches:
        pixels, grid, part = decode_patches(inputs.image, layout.patches, mode, budget, choose, self._pixels)
      else:
        pixels, part = decode_square(inputs.image, self.image_size, mode, choose, self._pixels)
      if image is None:
        image = pixels
      else:
        image[...] = pixels
      if choose or (not layout.patches and self._pixels.resize not in (None, "squash")):
        boxes, places = move_boxes(boxes, part, config.crop_keep)
        kept = places.tolist()
    lost = min(len(inputs.boxes) if reads_regions else 0, layout.boxes) - min(len(kept), layout.boxes)
    boxes, kept = boxes[: layout.boxes], kept[: layout.boxes]
    truths = inputs.truths or tokens.region_short
    long = None
    if layout.long_length is not None:
      # a record without a long caption trains the long path on its short one
      long = self._caption(tokens.long or tokens.short, long=True)
    return Example(
      image=image,
      # the prefix is English
      short=self._caption(self._prefix.before(inputs.short, tokens.short) if english else tokens.short),
      long=long,
      boxes=boxes,
      regions=tuple(self._caption(ids) for ids in self._region_ids(tokens, kept, rng)),
      negatives=tuple(
        (self._caption(truths[place]), tuple(map(self._caption, tokens.negatives[place])))
        if tokens.negatives[place]
        else None
        for place in kept
      ),
      record=number,
      grid=grid,
    ), lost

  def _region_ids(self, tokens: records.Tokens, kept: Sequence[int], rng: np.random.Generator) -> list[Ids]:
    """The ids of the caption that each of these regions is given."""
    wanted = self.config.region_text
    if wanted == "random":
      long = rng.integers(2, size=len(kept)).tolist()
    else:
      long = [wanted == "long"] * len(kept)
    return [
      (takes_long and tokens.region_long[place]) or tokens.region_short[place]
      for place, takes_long in zip(kept, long, strict=True)
    ]

  def _caption(self, ids: Ids, long: bool = False) -> Caption:
    end, length = self._tokenizer.end_id, self._lengths[long]
    if len(ids) > length:
      ids = (*ids[: length - 1], end)
    if self.layout.pad_id is not None:
      return Caption((*ids, *(self.layout.pad_id,) * (length - len(ids))), long)
    return Caption(ids[: ids.index(end) + 1], long)  # a text may itself hold an end-of-text token


class Prefix:
  """A text put before captions whose ids are known."""

  def __init__(self, text: str, tokenizer: Tokenizer):
    self._text, self._tokenizer = text, tokenizer
    self._ids = tuple(tokenizer.encode(text))[:-1]
    self._ends_a_word = tokenizer.joins_words and _is_plain(text[:-1]) and text[-1:] == " "

  def before(self, text: str, ids: Ids) -> Ids:
    """The ids of the prefix and a text as one, given those of the text."""
    if not self._text:
      return ids
    if self._ends_a_word and _is_plain(text):
      return self._ids + ids[1:]
    return tuple(self._tokenizer.encode(self._text + text))


def _is_plain(text: str) -> bool:
  """Whether the tokenizer has nothing to repair in a text, so that what stands before it does not matter."""
  return text.isascii() and text.isprintable() and "&" not in text


def measure_row_buckets(
  source: Mixture, config: DataConfig, layout: Layout, seed: int, shards: int, records_read: int = 2048
) -> tuple[int, ...]:
  """Row buckets that fit this data: quantiles of what random batches need, then coarser ones up to the worst case.

  Batches are drawn from a sample of records without their images, and packed. All processes draw the same, and so
  agree on the shapes without a message.

  Args:
    source, config, layout: the data and its shapes.
    seed: of which records are looked at, drawn as examples are; the same for all processes.
    shards: data shards of the whole run.
    records_read: the most records that are read for it.
  """
  rng = np.random.default_rng(seed)
  images = config.batch_size // shards
  load = LoadExample(source, config, layout, image_size=None)
  order: Any = source.order(seed, shuffle=True)
  sample = [order[index] for index in range(min(records_read, len(source)))]
  source.prefetch(sample)
  examples = [load.random_map(number, rng).example for number in sample]
  exact = dataclasses.replace(layout, row_buckets=(), patches=None)
  needed = []
  for _ in range(min(max(100_000 // images, 4), 24)):
    chosen = rng.choice(len(examples), images, replace=images > len(examples))
    needed.append(assemble([examples[i] for i in chosen], 1, exact)["tokens"].shape[1])
  return row_buckets_from_samples(layout, images, needed)


def measure_patch_rows(
  source: Mixture, config: DataConfig, layout: Layout, seed: int, shards: int, records_read: int = 2048
) -> PatchLayout:
  """The layout of this data's patches with rows that fit it, as `measure_row_buckets` finds those for captions."""
  patches = layout.patches
  assert patches is not None
  rng = np.random.default_rng(seed)
  images = config.batch_size // shards
  load = LoadExample(source, config, layout, image_size=None)
  order: Any = source.order(seed, shuffle=True)
  sample = [order[index] for index in range(min(records_read, len(source)))]
  source.prefetch(sample)
  sizes = [size for size in map(load.size, sample) if size] or [(1, 1)]
  samples = []
  for _ in range(min(max(20_000 // images, 4), 24)):
    chosen = [sizes[i] for i in rng.choice(len(sizes), images, replace=images > len(sizes))]
    group = patches.group or images
    budgets = [patches.choose_budgets(chosen[start : start + group]) for start in range(0, images, group)]
    samples.append(
      [
        fit_grid(*patches.sees(*size), budget, patches.patch_size)
        for size, budget in zip(chosen, itertools.chain.from_iterable(budgets), strict=True)
      ]
    )
  return fit_rows(samples, patches)

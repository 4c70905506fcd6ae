"""Records to examples: decoded, cropped, tokenised; bad ones replaced."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from fgclip_jax.data import caption_set
from fgclip_jax.data import record as records
from fgclip_jax.data.augment import Crop, choose_part, move_boxes
from fgclip_jax.data.caption_sampling import draw, draw_one, draw_set
from fgclip_jax.data.config import DataConfig
from fgclip_jax.data.decode import Mode, decode_patches, decode_square
from fgclip_jax.data.image import read_size
from fgclip_jax.data.mixture import Mixture
from fgclip_jax.data.packing import Caption, Example, Layout, assemble, row_buckets_from_samples
from fgclip_jax.data.patch_rows import fit_rows
from fgclip_jax.data.patches import PatchLayout, fit_grid
from fgclip_jax.data.record import MAX_NEGATIVES, Ids, Inputs
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
    self._vocabulary = self._tokenizer.vocab_size
    self._lengths = [layout.max_length(long) for long in (False, True)]
    self._prefix = Prefix(config.short_prefix, self._tokenizer)
    self._draws = config.captions.draw == "weighted"
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
    return Inputs(
      image=record.image,
      short=record.short,
      boxes=boxes,
      tokens=tokens,
      language=record.language,
      truths=tuple(map(tuple, truths)),
      long=record.long,
      captions=record.captions,
      region_captions=tuple(region.captions for region in record.regions),
    )

  def _example(
    self, inputs: Inputs, number: int, rng: np.random.Generator, image: np.ndarray | None, budget: int | None
  ) -> tuple[Example, int]:
    config, layout = self.config, self.layout
    language, grid = inputs.language or records.DEFAULT_LANGUAGE, (0, 0)
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
    # what is random is drawn in this order: without captions to draw, the same as without any choice of captions
    takes_long = self._choose_long_regions(len(kept), rng)
    short, long = self._choose_captions(inputs, rng)
    chosen = [self._choose_region(inputs, *each, rng) for each in zip(kept, takes_long, strict=True)]
    negatives = tuple(self._choose_negatives(inputs, place, rng) for place in kept)
    captions, weights = self._choose_set(inputs, rng)
    return Example(
      image=image,
      short=self._caption(short),
      long=self._caption(long, long=True) if layout.reads_long else None,
      boxes=boxes,
      regions=tuple(map(self._caption, chosen)),
      negatives=negatives,
      record=number,
      grid=grid,
      captions=captions,
      caption_weights=weights,
    ), lost

  def _choose_long_regions(self, count: int, rng: np.random.Generator) -> list[bool]:
    """Whether each of `count` regions is given a long caption, where it has one."""
    wanted = self.config.region_text
    return rng.integers(2, size=count).astype(bool).tolist() if wanted == "random" else [wanted == "long"] * count

  def _choose_captions(self, inputs: Inputs, rng: np.random.Generator) -> tuple[Ids, Ids]:
    """The ids of a picture's short and of its long caption."""
    tokens, captions, share = inputs.tokens, inputs.captions, self.config.captions.alt_text_share
    text, short, long, language = inputs.short, tokens.short, tokens.long, inputs.language
    if captions and self._draws:
      if (place := draw_one(captions, "short", share, rng)) is not None:
        text, short, language = captions[place].text, tokens.captions[place], captions[place].language or language
      if self.layout.reads_long and (place := draw_one(captions, "long", share, rng)) is not None:
        long = tokens.captions[place]
    # a record without a long caption trains the long path on its short one
    return self._with_prefix(text, short, language), long or short

  def _choose_region(self, inputs: Inputs, place: int, takes_long: bool, rng: np.random.Generator) -> Ids:
    """The ids of the caption that a region is given."""
    tokens = inputs.tokens
    captions = inputs.region_captions[place] if self._draws and inputs.region_captions else ()
    for kind in ("long", "short") if takes_long else ("short",):
      chosen = draw_one(captions, kind, self.config.captions.alt_text_share, rng)
      if chosen is not None:
        return tokens.region_captions[place][chosen]
    return (takes_long and tokens.region_long[place]) or tokens.region_short[place]

  def _choose_negatives(
    self, inputs: Inputs, place: int, rng: np.random.Generator
  ) -> tuple[Caption, tuple[Caption, ...]] | None:
    """A region's true caption and its hard negatives, as many as a batch has room for; None: it has none."""
    wrong = inputs.tokens.negatives[place]
    if not wrong:
      return None
    if self._draws:
      wrong = [wrong[index] for index in draw([1.0] * len(wrong), MAX_NEGATIVES, rng)[0]]
    truths = inputs.truths or inputs.tokens.region_short
    return self._caption(truths[place]), tuple(map(self._caption, wrong[:MAX_NEGATIVES]))

  def _choose_set(self, inputs: Inputs, rng: np.random.Generator) -> tuple[tuple[Caption, ...], tuple[float, ...]]:
    """The captions of a picture's set that are read, and how much each counts."""
    if not self.layout.set_size:
      return (), ()
    captions, ids = inputs.captions, inputs.tokens.captions
    if not captions:
      captions = caption_set.plain(inputs.short, inputs.long)
      ids = (inputs.tokens.short, inputs.tokens.long)[: len(captions)]
    drawn = draw_set(captions, ids, self.layout.set_size, self.config.captions, rng)
    parts = [each.caption.text for each in drawn if each.ids is None]
    of_parts = iter(self._tokenizer.encode_batch(parts) if parts else ())
    found = []
    for caption, known, _ in drawn:
      if known is None:
        known = tuple(next(of_parts))
        long = len(known) > self._lengths[False]  # a part of a long caption is a short one where it can be
      else:
        long = caption.kind == "long"
        known = known if long else self._with_prefix(caption.text, known, caption.language or inputs.language)
      found.append(self._caption(known, long and self.layout.long_length is not None))
    return tuple(found), tuple(each.weight for each in drawn)

  def _with_prefix(self, text: str, ids: Ids, language: str) -> Ids:
    """The ids of a short caption; the prefix is English."""
    return self._prefix.before(text, ids) if language in ("", records.DEFAULT_LANGUAGE) else ids

  def _caption(self, ids: Ids, long: bool = False) -> Caption:
    """A caption as a batch holds it; a `RecordError` where its ids, as they are stored, are none of the tokenizer's."""
    end, length = self._tokenizer.end_id, self._lengths[long]
    if end not in ids or min(ids) < 0 or max(ids) >= self._vocabulary:  # the model would read NaN for them
      message = f"ids {ids[:8]}... do not end with {end}, or are not in 0..{self._vocabulary - 1}; run `prepare` again"
      raise RecordError("tokens_wrong", "tokens", message)
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

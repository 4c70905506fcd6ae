"""The two mixes of examples that `step.py` measures, and batches of them as each engine takes them. Imports no JAX."""

import contextlib
import dataclasses
import glob
import io
import json
import os
from collections.abc import Callable, Sequence

import numpy as np

from fgclip_jax.data.image import normalize
from fgclip_jax.data.loader import DataConfig, LoadExample
from fgclip_jax.data.mixture import DataSet, Mixture
from fgclip_jax.data.packing import Caption, Example, Layout, assemble, row_buckets_from_samples
from fgclip_jax.data.record import MAX_NEGATIVES
from fgclip_jax.data.tokenizers.clip import Tokenizer

BOXES = 4
BOX_COUNTS = {4: 0.50, 3: 0.33, 2: 0.14, 1: 0.03}  # boxes per image on *paper*, with their share of images: mean 3.3
HARD_SHARE = 0.025  # of boxes on *paper* that have hard negatives
LONG, SHORT = (130, 35), (15, 4)  # mean and deviation of caption lengths in tokens, start and end included
ROW_BUCKET_TRIALS = 24  # batches that the row buckets are measured on, as the loader does


@dataclasses.dataclass(frozen=True)
class Mix:
  """A kind of training data.

  Attributes:
    name: as in the tables.
    about: what it is made of, in words.
    examples: (count, seed, image size or None for no pictures) to so many examples, the same for the same arguments.
  """

  name: str
  about: str
  examples: Callable[[int, int, int | None], list[Example]]


def paper_mix(fgovd: str) -> Mix:
  """The statistics that FG-CLIP's paper gives for its stage 2, with random words and noise for pictures.

  Args:
    fgovd: a folder of FG-OVD's `.jsonl` files, whose distinct positive expressions give the lengths of region
      captions; where it does not exist, they are drawn as 6 + an exponential variable of mean 8.6, at most 57.
  """
  files = sorted(glob.glob(os.path.join(fgovd, "*.jsonl")))
  if files:
    expressions = set()
    for path in files:
      with open(path, encoding="utf-8") as file:
        expressions.update(text for line in file for text in json.loads(line)["pos_expression"])
    lengths = np.asarray([len(ids) for ids in Tokenizer().encode_batch(sorted(expressions), 77)])
    source = f"{len(lengths):,} distinct expressions of FG-OVD"
  else:
    lengths = np.rint(np.minimum(6 + np.random.default_rng(0).exponential(8.6, 4096), 57)).astype(int)
    source = "a shifted exponential distribution"

  def examples(count: int, seed: int, image_size: int | None) -> list[Example]:
    return _paper_examples(count, np.random.default_rng(seed), image_size or 1, lengths)

  boxes = sum(n * share for n, share in BOX_COUNTS.items())
  about = (
    f"{boxes:.1f} boxes per image, {HARD_SHARE:.1%} of them with {MAX_NEGATIVES} negatives; long captions {LONG[0]} ± "
    f"{LONG[1]} tokens, short {SHORT[0]} ± {SHORT[1]}, regions as long as {source} (mean {lengths.mean():.1f})"
  )
  return Mix("paper", about, examples)


def _paper_examples(count: int, rng: np.random.Generator, image_size: int, lengths: np.ndarray) -> list[Example]:
  # shares are met as closely as whole numbers allow, so that few batches already have the stated mean
  ends = np.rint(np.cumsum(list(BOX_COUNTS.values())) * count).astype(int)
  counts = rng.permutation(np.repeat(list(BOX_COUNTS), np.diff(ends, prepend=0)))
  total = int(counts.sum())
  hard = set(rng.choice(total, round(HARD_SHARE * total), replace=False).tolist())

  def caption(length: float, long: bool = False) -> Caption:
    words = rng.integers(0, Tokenizer.start_id, int(np.clip(round(length), 4, 248 if long else 77)) - 2)
    return Caption((Tokenizer.start_id, *words.tolist(), Tokenizer.end_id), long)

  examples, box = [], 0
  for number, boxes in enumerate(counts.tolist()):
    corners = np.sort(rng.uniform(size=(boxes, 2, 2)), axis=1).reshape(boxes, 4)  # x1 y1 x2 y2
    regions = tuple(caption(rng.choice(lengths)) for _ in range(boxes))
    negatives = []
    for region in regions:
      if box in hard:
        # the true text is a box's short expression, which the region caption is every other time
        truth = region if rng.integers(2) else caption(rng.choice(lengths))
        negatives.append((truth, tuple(caption(len(truth.ids)) for _ in range(MAX_NEGATIVES))))
      else:
        negatives.append(None)
      box += 1
    examples.append(
      Example(
        image=rng.integers(0, 256, (image_size, image_size, 3), np.uint8),
        short=caption(rng.normal(*SHORT)),
        long=caption(rng.normal(*LONG), long=True),
        boxes=corners.astype(np.float32),
        regions=regions,
        negatives=tuple(negatives),
        record=number,
      )
    )
  return examples


def real_mix(prepared: str) -> Mix:
  """The records of a prepared data set, as stage 2 loads them.

  More examples than records take every record again, with other words of the same number in its captions, since
  equal captions would be encoded once.
  """
  source = Mixture([DataSet(prepared, "train")])

  def examples(count: int, seed: int, image_size: int | None) -> list[Example]:
    rng = np.random.default_rng(seed)
    load = loader(source, image_size)
    found = []
    while len(found) < count:
      lap = len(found) // len(source)
      found += [_other_words(load.random_map(number, rng)[0], lap) for number in rng.permutation(len(source))]
    return found[:count]

  return Mix("real", f"{len(source)} photographs with annotations as FineHARD's, as they are", examples)


def loader(source: Mixture, image_size: int | None) -> LoadExample:
  """What stage 2's loader makes of a record."""
  return LoadExample(source, DataConfig(boxes=BOXES, short_prefix="a photo of "), Layout(boxes=BOXES), image_size)


def _other_words(example: Example, lap: int) -> Example:
  """The example with every word replaced, differently in each lap; lap 0 is the example itself."""

  def change(caption: Caption) -> Caption:
    start, *words, end = caption.ids
    return Caption((start, *((word + 7919 * lap) % Tokenizer.start_id for word in words), end), caption.long)

  return dataclasses.replace(
    example,
    short=change(example.short),
    long=change(example.long),
    regions=tuple(map(change, example.regions)),
    negatives=tuple(group and (change(group[0]), tuple(map(change, group[1]))) for group in example.negatives),
  )


def prepare_real(folder: str, output: str) -> str:
  """Converts `jsonfiles/` and `images/` of a folder in FineHARD's form; returns where the data set is."""
  from fgclip_jax.prepare import __main__ as prepare

  source = ["--annotations", os.path.join(folder, "jsonfiles"), "--images", os.path.join(folder, "images")]
  said = io.StringIO()
  with contextlib.redirect_stdout(said):
    code = prepare.main(["finehard", *source, "--output", output, "--workers", "1"])
  if code:
    raise ValueError(f"{folder} could not be prepared:\n{said.getvalue()}")
  return output


def our_layout(mix: Mix, batch: int, packed: bool) -> Layout:
  """The static shapes of our batches: stage 2's, with row budgets measured on the mix as the loader does."""
  layout = Layout(boxes=BOXES, packed=packed)
  sample = split(mix.examples(batch * ROW_BUCKET_TRIALS, 1, None), batch)
  needed = [assemble(examples, 1, layout)["tokens"].shape[1] for examples in sample]
  return dataclasses.replace(layout, row_buckets=row_buckets_from_samples(layout, batch, needed))


def split(examples: Sequence[Example], batch: int) -> list[list[Example]]:
  """Consecutive examples in batches."""
  return [list(examples[i : i + batch]) for i in range(0, len(examples), batch)]


def collate(examples: Sequence[Example]) -> dict[str, np.ndarray]:
  """A batch as the published collator pads it.

  Every image has four boxes, the missing ones with a zero box and an empty caption. B images:

    pixels      [B, 3, S, S] float32, normalised
    short_ids   [B, 77] int64, long_ids [B, 248], filled up with the end-of-text id
    boxes       [B, 4, 4] float32, region_ids [B * 4, 77] int64, region_valid [B * 4] bool
    hard_box    [H] int64, numbers among the B * 4 boxes
    hard_ids    [H * 11, 77] int64: of each hard box the true text, then its negatives
  """
  layout = Layout()
  blank = Caption((Tokenizer.start_id, Tokenizer.end_id))
  boxes = np.zeros((len(examples), BOXES, 4), np.float32)
  valid = np.zeros((len(examples), BOXES), bool)
  regions, hard_box, hard = [], [], []
  for i, example in enumerate(examples):
    count = min(len(example.regions), BOXES)
    boxes[i, :count], valid[i, :count] = example.boxes[:count], True
    regions += [*example.regions[:count], *[blank] * (BOXES - count)]
    for k, group in enumerate(example.negatives[:count]):
      if group:
        if len(group[1]) != MAX_NEGATIVES:
          raise ValueError(
            f"record {example.record}, box {k}: the published code takes {MAX_NEGATIVES} negatives, got {len(group[1])}"
          )
        hard_box.append(i * BOXES + k)
        hard += [group[0], *group[1]]
  return {
    "pixels": np.ascontiguousarray(normalize(np.stack([e.image for e in examples])).transpose(0, 3, 1, 2)),
    "short_ids": _pad([e.short for e in examples], layout.short_length),
    "long_ids": _pad([e.long for e in examples], layout.long_length),
    "boxes": boxes,
    "region_ids": _pad(regions, layout.short_length),
    "region_valid": valid.reshape(-1),
    "hard_box": np.asarray(hard_box, np.int64),
    "hard_ids": _pad(hard, layout.short_length),
  }


def _pad(captions: Sequence[Caption], length: int) -> np.ndarray:
  padded = np.full((len(captions), length), Tokenizer.end_id, np.int64)
  for row, caption in zip(padded, captions, strict=True):
    row[: len(caption.ids)] = caption.ids
  return padded

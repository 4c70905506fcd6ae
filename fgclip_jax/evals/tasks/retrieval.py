"""Retrieval benchmarks: the captions of a picture, and the picture of a caption."""

import argparse
import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from fgclip_jax.data.image import Mode
from fgclip_jax.evals import guards, options, ranking, reranking
from fgclip_jax.evals.datasets import caption_sets
from fgclip_jax.evals.datasets.images import Source
from fgclip_jax.evals.encoding import encode_images, encode_patches
from fgclip_jax.evals.evaluator import Result
from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.prepare.cli import add_fields
from fgclip_jax.prepare.sources import caption_files, caption_folders
from fgclip_jax.storage import paths
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import SkipReport

SHORT = (
  "retrieval of pictures and captions, each way: COCO, Flickr30k, ShareGPT4V-1K, DCI, Chinese sets, your own pairs"
)
TEXT = """R@1, R@5 and R@10: a picture's captions among all captions, and a caption's picture among all pictures."""
EXAMPLE = "coco --model M --annotations captions_val2017.json --images coco/val2017 --output coco.json"


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the options of the command."""
  parser.add_argument("dataset", choices=tuple(caption_sets.READERS), help="the form of the annotations")
  parser.add_argument("--annotations", required=True, metavar="PATH", help="their file; of dci and urban1k the folder")
  parser.add_argument("--images", metavar="DIR", help="the folder of the pictures (default: that of the annotations)")
  parser.add_argument(
    "--kind", choices=("short", "long"), help="the model's path for captions (default: long for sets of long captions)"
  )
  parser.add_argument(
    "--split",
    help="of flickr30k and karpathy (default: test), and of pairs (default: all)",
  )
  add_fields(parser)
  options.add_rerank(parser)
  parser.add_argument(
    "--skip_empty", action="store_true", help="of dci: without the pictures whose caption is empty (203 of 7,805)"
  )
  options.add_mode(parser)
  options.add_limit(parser)


class _Pictures(Sequence[Source]):
  """The pictures of entries: paths, or bytes that are read from their records in order, by the thread that asks."""

  def __init__(self, entries: Sequence[caption_sets.Entry], files: Sequence[str]):
    self._entries, self._files = entries, files

  def __len__(self) -> int:
    return len(self._entries)

  def __getitem__(self, place):
    read_picture = self._entries[place].read_picture
    if read_picture is None:
      return self._files[place]
    try:
      return read_picture()
    except RecordError as error:
      return functools.partial(_raise, error)  # counted where the other pictures are


def _raise(error: RecordError) -> NoReturn:
  raise error


@dataclasses.dataclass(frozen=True)
class ImageTextRetrieval:
  """The evaluator.

  Each caption is a query for its picture, and each picture a query for any of its captions. Equal captions are one
  answer, right for all of their pictures; case and spacing, which the tokenizer drops, make no difference. Ties count
  against the model.

  Attributes:
    dataset: `coco`, `flickr30k`, `karpathy` (the same form), `sharegpt4v`, `dci`, `urban1k` or `pairs`; or one of
      FG-CLIP 2's Chinese sets, lines of a picture and a caption: `coco_cn`, `flickr30k_cna`, `lit_cn`, `dci_cn` and
      `docci_cn`. Of these all but `coco_cn` are read as they are written, without lower-casing, as published.
    annotations: its file, or its folder (`dci`, `urban1k`).
    images: the folder of the pictures; None: the annotations' folder, or for `urban1k` the folder `image` in it.
    kind: the model's path for the captions, `short` or `long`; None: `long` for the sets of long captions.
    split: for `flickr30k` and `karpathy`; None: `test`. For `pairs`; None: all records.
    image_field, short_field, long_field: for `pairs`, the names of the records' fields; None: by the file's form, see
      `prepare.sources.caption_files`. With `kind` "long" the long captions are taken where there are any.
    skip_empty: for `dci`, leaves out the pictures (203 of 7,805) whose caption is empty. FG-CLIP's published numbers
      count them among the questions and answers, where they are almost never found; some other papers do not.
    mode, limit, allow: see `Classification`; the limit is of pictures.
    rerank: how many of the answers that score highest are compared anew, by text-conditioned pooling of the whole
      picture, squashed or in its own shape: metrics `reranked_...` beside the others. None: none.
  """

  dataset: str
  annotations: str
  images: str | None = None
  kind: str | None = None
  split: str | None = None
  skip_empty: bool = False
  mode: Mode | None = None
  limit: int | None = None
  allow: tuple[str, ...] = ()
  image_field: str | None = None
  short_field: str | None = None
  long_field: str | None = None
  rerank: int | None = None

  def __post_init__(self):
    if self.dataset not in caption_sets.READERS or self.kind not in (None, "short", "long"):
      raise ValueError(
        f"dataset must be one of {', '.join(caption_sets.READERS)} and kind short or long, got {self.dataset!r} and "
        f"{self.kind!r}"
      )

  @property
  def name(self) -> str:
    return f"retrieve {self.dataset}"

  def settings(self) -> dict[str, Any]:
    values = dataclasses.asdict(self) | {"kind": self._kind, "images": self._images, "split": self._split}
    if self.dataset != "dci":
      del values["skip_empty"]
    optional = (
      "rerank",
      "split",
      "image_field",
      "short_field",
      "long_field",
    )  # left out where nothing is chosen by them
    return {key: value for key, value in values.items() if value is not None or key not in optional}

  @property
  def _kind(self) -> str:
    return self.kind or ("long" if self.dataset in caption_sets.LONG else "short")

  @property
  def _split(self) -> str | None:
    return self.split or ("test" if self.dataset in ("flickr30k", "karpathy") else None)

  @property
  def _images(self) -> str:
    if self.images is not None:
      return self.images
    if self.dataset == "urban1k":
      return paths.join(self.annotations, "image")
    if self.dataset == "dci":
      return self.annotations
    if self.dataset == "pairs" and paths.is_folder(self.annotations):
      return os.path.dirname(caption_folders.find(self.annotations, self._split, "evaluate")[0][0])
    return os.path.dirname(self.annotations)

  def files(self) -> list[str | tuple[str, str]]:
    return [self.annotations, self._images]

  def run(self, model: FGCLIP, progress: bool = False) -> Result:
    """Metrics `image_to_text_rK` and `text_to_image_rK` for K of 1, 5 and 10."""
    notes = guards.check_resolution(model, self.allow)
    if self.rerank:
      reranking.check(model)
    skips = SkipReport()
    skip_empty = self.skip_empty or self.dataset != "dci"
    read_notes: list[str] = []
    fields = caption_files.Fields(self.image_field, self.short_field, self.long_field)
    options = caption_sets.Options(self._split, fields, self._kind, read_notes)
    entries = caption_sets.read(self.dataset, self.annotations, options, self.limit, skips, skip_empty)
    records = len(entries) + len(skips)
    texts = [text for entry in entries for text in entry.captions]
    as_written = self.dataset in caption_sets.AS_WRITTEN
    embeddings, cut = guards.encode_texts(model, texts, self._kind, self.allow, progress, as_written)
    image, kept = encode_images(model, _Pictures(entries, self._files(entries)), skips, self.mode, progress)
    notes += [skips.summary(records, "pictures"), *cut, *read_notes]
    if not len(kept):
      raise ValueError(
        f"no picture of {self.annotations!r} under {self._images!r} can be used: {'; '.join(filter(None, notes))}"
      )
    where = {text: place for place, text in enumerate(texts)}
    distinct: dict[str | tuple[str, int], int] = {}
    words, owner, caption = [], [], []
    for row, number in enumerate(kept):
      for text in entries[number].captions:
        key = model.tokenizer.clean(text) or ("empty", row)  # an empty caption is no answer to another one's question
        if key not in distinct:
          words.append(text)
        owner.append(row)
        caption.append(distinct.setdefault(key, len(distinct)))
    text = embeddings[[where[each] for each in words]]
    empty = sum(isinstance(key, tuple) for key in distinct)
    if empty:
      notes.append(f"{empty:,} captions are empty, and asked for like others, as in published numbers")
    pairs = np.unique(np.stack([owner, caption], axis=1), axis=0)
    repeats = np.bincount(caption, minlength=len(distinct))
    found, answers = ranking.recalls(image, text, pairs, repeats=repeats)
    if self.rerank:
      again = [entries[number] for number in kept]
      dense = encode_patches(model, _Pictures(again, self._files(again)), SkipReport(), progress)
      found |= reranking.reranked_recalls(model, dense, image, text, pairs, self.rerank, repeats=repeats)
    names = [entries[number].image for number in kept]
    asked = np.repeat(np.arange(len(words)), repeats)
    there, back = answers["image_to_text"], answers["text_to_image"]
    examples = {
      "way": ["image_to_text"] * len(names) + ["text_to_image"] * len(asked),
      "query": [*names, *(words[number] for number in asked)],
      "predicted": [*(words[number] for number in there.first), *(names[number] for number in back.first)],
      "rank": np.concatenate([there.rank, back.rank]),
      "score": np.concatenate([there.score, back.score]),
    }
    return Result(found, examples, records, skips.counts, notes)

  def _files(self, entries: Sequence[caption_sets.Entry]) -> list[str]:
    """The pictures' paths; those of ShareGPT4V may be directly in the folder, without the folders of their names."""
    names = [entry.image for entry in entries]
    flat = os.path.basename(names[0])
    if self.dataset == "sharegpt4v" and not paths.exists(paths.join(self._images, names[0])):
      if paths.exists(paths.join(self._images, flat)):
        names = [os.path.basename(name) for name in names]
    return [paths.join(self._images, name) for name in names]

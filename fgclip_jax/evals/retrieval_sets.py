"""Retrieval benchmarks: pictures and captions of files, each way."""

import dataclasses
import os
from typing import Any

import numpy as np

from fgclip_jax.api import FGCLIP
from fgclip_jax.data import paths
from fgclip_jax.data.image import Mode
from fgclip_jax.evals import caption_sets, guards, pictures
from fgclip_jax.evals.evaluator import Result
from fgclip_jax.evals.retrieval import recalls


@dataclasses.dataclass(frozen=True)
class ImageTextRetrieval:
  """The evaluator.

  A picture is looked for by each of its captions, and any of its captions is right for it. Equal captions are one
  answer, right for all of their pictures. Ties count against the model.

  Attributes:
    dataset: `coco`, `flickr30k`, `sharegpt4v`, `dci`, `urban1k` or `pairs`.
    annotations: its file, or its folder (`dci`, `urban1k`).
    images: the folder under which the pictures lie; None: the annotations' folder, of `urban1k` the folder `image`
      in it.
    kind: the model's path for the captions, `short` or `long`; None: `long` for the sets of long captions.
    split: for `flickr30k`.
    mode, limit, allow: see `Classification`; the limit is of pictures.
  """

  dataset: str
  annotations: str
  images: str | None = None
  kind: str | None = None
  split: str = "test"
  mode: Mode | None = None
  limit: int | None = None
  allow: tuple[str, ...] = ()

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
    values = dataclasses.asdict(self) | {"kind": self._kind, "images": self._images}
    return values if self.dataset == "flickr30k" else {key: value for key, value in values.items() if key != "split"}

  @property
  def _kind(self) -> str:
    return self.kind or ("long" if self.dataset in caption_sets.LONG else "short")

  @property
  def _images(self) -> str:
    if self.images is not None:
      return self.images
    default = {"urban1k": paths.join(self.annotations, "image"), "dci": self.annotations}
    return default.get(self.dataset, os.path.dirname(self.annotations))

  def run(self, model: FGCLIP, progress: bool = False) -> Result:
    """Metrics `image_to_text_rK` and `text_to_image_rK` for K of 1, 5 and 10."""
    notes = guards.check_resolution(model, self.allow)
    faults = pictures.Faults()
    entries = caption_sets.read(self.dataset, self.annotations, self.split, self.limit, faults)
    records = len(entries) + sum(faults.skipped.values())
    texts = [text for entry in entries for text in entry.captions]
    embeddings, cut = guards.encode_texts(model, texts, self._kind, self.allow, progress)
    files = [paths.join(self._images, entry.image) for entry in entries]
    image, kept = pictures.encode_pictures(model, files, faults, self.mode, progress)
    notes += [*faults.notes(records, "pictures"), *cut]
    if not len(kept):
      raise ValueError(f"no picture of {self.annotations!r} under {self._images!r} can be used: {'; '.join(notes)}")
    distinct: dict[str, int] = {}
    owner, caption = [], []
    for row, number in enumerate(kept):
      for text in entries[number].captions:
        owner.append(row)
        caption.append(distinct.setdefault(text, len(distinct)))
    where = {text: place for place, text in enumerate(texts)}
    text = embeddings[[where[each] for each in distinct]]
    pairs = np.unique(np.stack([owner, caption], axis=1), axis=0)
    repeats = np.bincount(caption, minlength=len(distinct))
    found, answers = recalls(image, text, pairs, repeats=repeats)
    names, words = [entries[number].image for number in kept], list(distinct)
    asked = np.repeat(np.arange(len(words)), repeats)
    there, back = answers["image_to_text"], answers["text_to_image"]
    examples = {
      "way": ["image_to_text"] * len(names) + ["text_to_image"] * len(asked),
      "query": [*names, *(words[number] for number in asked)],
      "predicted": [*(words[number] for number in there.first), *(names[number] for number in back.first)],
      "rank": np.concatenate([there.rank, back.rank]),
      "score": np.concatenate([there.score, back.score]),
    }
    return Result(found, examples, records, dict(faults.skipped), tuple(notes))

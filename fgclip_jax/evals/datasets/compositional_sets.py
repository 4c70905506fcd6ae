"""Questions of compositional benchmarks: images with right and wrong captions.

- SugarCrepe (https://github.com/RAIVNLab/sugar-crepe): an image, its caption, a fluent wrong one.
- ARO (https://github.com/mertyg/vision-language-models-are-bows): relations and attributes in a box, order of words.
- Winoground (https://huggingface.co/datasets/facebook/winoground) and sets like it: two images, two captions.
"""

import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

from PIL import Image

from fgclip_jax.data import image as image_files
from fgclip_jax.evals.datasets.image_folders import SUFFIXES
from fgclip_jax.evals.datasets.images import Source, read_file
from fgclip_jax.evals.datasets.text_files import ERRORS, describe, need
from fgclip_jax.storage import paths, streams
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import Skip, SkipReport

ATTRIBUTES_LEAST = 25  # questions about a pair of attributes for it to count in the mean over pairs: the authors' rule

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
Picture = tuple[str, Box | None]  # a path below the folder of images, and the box that is cut out


@dataclasses.dataclass(frozen=True)
class Question:
  """One picture with a right caption and wrong ones; or two pictures with a caption each.

  Attributes:
    file: the stem of the annotation file, e.g. `swap_obj`.
    id: its place or name in the file.
    pictures: one or two.
    captions: for one picture, the right one first, then at least one wrong one; for two pictures, their own.
    group: the subject of the question, e.g. the relation; empty where the file does not say.
    least: the number of questions that a group needs to count in the mean over groups.
  """

  file: str
  id: str
  pictures: tuple[Picture, ...]
  captions: tuple[str, ...]
  group: str = ""
  least: int = 1


def read_questions(
  dataset: str, path: str, skips: SkipReport, limit: int | None = None
) -> tuple[list[Question], int, list[str]]:
  """Reads a file; returns the questions that can be used, the number of all questions, and notes.

  A wrong caption that equals the right one, as shuffling words can give, is left out of the question.

  Args:
    dataset: a key of `READERS`.
    path: a file of JSON or JSON lines.
    skips: counts the others: `question_broken` (not the expected fields), `box_without_size`, `negatives_missing` (no
      wrong caption).
    limit: the number to read, from the first; None for all.

  Raises:
    FileNotFoundError, ValueError: the file is missing, or broken.
  """
  if limit is not None and limit < 1:
    raise ValueError(f"limit must be at least 1, got {limit}")
  found: list[Question] = []
  read = equal = 0
  try:
    for number, raw in enumerate(itertools.islice(_rows(dataset, path), limit)):
      read += 1
      where = f"{path}, question {number}"
      try:
        question = READERS[dataset](streams.load(raw), name_of(path), str(number))
      except RecordError as error:
        skips.add(Skip.of(error, where))
        continue
      except ERRORS as error:
        skips.add(Skip("question_broken", describe(error), place=where))
        continue
      if len(question.pictures) == 1:
        right, *wrong = question.captions
        different = [caption for caption in wrong if caption != right]
        equal += len(wrong) - len(different)
        question = dataclasses.replace(question, captions=(right, *different))
      if len(set(question.captions)) < 2:
        message = f"has no caption that differs from {question.captions[0]!r}"
        skips.add(Skip("negatives_missing", message, place=where))
      else:
        found.append(question)
  except RecordError as error:
    raise ValueError(f"{path} is broken at {error}; download it again") from error
  notes = [f"{path}: {equal} wrong captions equal the right one and were left out"] if equal else []
  return found, read, notes


def _rows(dataset: str, path: str) -> Iterator[streams.Raw]:
  """The records of a file: SugarCrepe's is an object of objects, or a list; the others a list or lines."""
  if dataset == "sugarcrepe":
    return (raw for _, raw in streams.walk(path))
  return (raw for _, raw in streams.scan(path))


def _read_sugarcrepe(entry: Any, file: str, number: str) -> Question:
  captions = _texts(need(entry, "caption"), need(entry, "negative_caption"))
  return Question(file, number, ((_text(need(entry, "filename")), None),), captions)


def _read_aro(entry: Any, file: str, number: str) -> Question:
  """Relation and attribution: true and false caption, box; order: the right caption first in `caption_options`."""
  picture = _text(need(entry, "image_path" if "image_path" in entry else "image"))
  if "caption_options" in entry:
    if not isinstance(entry["caption_options"], list):
      raise ValueError("`caption_options` must be a list of texts")
    return Question(file, number, ((picture, None),), _texts(*entry["caption_options"]))
  box = None
  if "bbox_x" in entry:
    left, top, width, height = (float(need(entry, f"bbox_{key}")) for key in "xywh")
    if not (width > 0 and height > 0):
      raise RecordError("box_without_size", "bbox_w, bbox_h", f"the box is {width:g} x {height:g} pixels")
    box = (left, top, left + width, top + height)
    if not all(map(math.isfinite, box)):
      raise ValueError(f"the box must be of finite numbers, got {list(box)}")
  captions = _texts(need(entry, "true_caption"), need(entry, "false_caption"))
  if "attributes" in entry:
    if not isinstance(entry["attributes"], list):
      raise ValueError("`attributes` must be a list of texts")
    group = "_".join(_texts(*entry["attributes"]))
    return Question(file, number, ((picture, box),), captions, group, ATTRIBUTES_LEAST)
  relation = entry.get("relation_name", "")
  if not isinstance(relation, str):
    raise ValueError(f"`relation_name` must be text, got {relation!r:.40}")
  return Question(file, number, ((picture, box),), captions, relation)


def _read_winoground(entry: Any, file: str, number: str) -> Question:
  names = [_text(need(entry, key)) for key in ("image_0", "image_1")]
  files = [name if name.lower().endswith(SUFFIXES) else f"{name}.png" for name in names]  # the set has none
  captions = _texts(need(entry, "caption_0"), need(entry, "caption_1"))
  return Question(file, str(entry.get("id", number)), tuple((name, None) for name in files), captions)


READERS: dict[str, Callable[[Any, str, str], Question]] = {
  "sugarcrepe": _read_sugarcrepe,
  "aro": _read_aro,
  "winoground": _read_winoground,
}


def _texts(*values: object) -> tuple[str, ...]:
  return tuple(_text(value) for value in values)


def _text(value: object) -> str:
  if not isinstance(value, str) or not value.strip():
    raise ValueError(f"{value!r:.40} is empty or no text")
  return value


def name_of(path: str) -> str:
  """The name of an annotation file in results."""
  return os.path.basename(path).partition(".")[0]


def picture_source(folder: str, picture: Picture) -> Source:
  """A picture as `datasets.images` reads it."""
  name, box = picture
  path = paths.join(folder, name)
  return path if box is None else functools.partial(_crop, path, box)


def _crop(path: str, box: Box) -> Image.Image:
  """A part of a picture, to whole pixels; any part of the box outside the picture is black, as Pillow fills it."""
  data = read_file(path)
  try:
    picture = image_files.open_image(data)
  except image_files.ImageError as error:
    raise RecordError(error.kind, path, error.message) from error
  left, top, right, bottom = (round(edge) for edge in box)
  if right <= 0 or bottom <= 0 or left >= picture.width or top >= picture.height:
    raise RecordError("box_outside", path, f"the box {list(box)} is outside of its {picture.width} x {picture.height}")
  if (right - left) * (bottom - top) > image_files.MAX_PIXELS:
    raise RecordError(
      "box_outside", path, f"the box {list(box)} is far larger than its {picture.width} x {picture.height}"
    )
  return picture.crop((left, top, right, bottom))

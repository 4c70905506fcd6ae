"""Reads boxes with classes from files in the layout of COCO and LVIS (JSON) and of Open Images (CSV)."""

import collections
import csv
import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int

from fgclip_jax.data.annotation_fields import check_unicode
from fgclip_jax.evals.datasets.text_files import ERRORS, describe, lacks, need
from fgclip_jax.storage import text
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import Skip, SkipReport
from fgclip_jax.storage.streams import columns, get_size, load, read_entries, scan

FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}  # LVIS: in at most 10, at most 100, more training images
_COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax")  # of Open Images


@dataclasses.dataclass(frozen=True)
class Image:
  """An image.

  Attributes:
    identity: its id in the file.
    path: the path of the image file, below the folder of images.
    width, height: its size in the unit of its boxes: in pixels, or 1 where boxes are fractions.
    absent, incomplete: for LVIS, the ids of the classes known to be absent, and of those not annotated completely.
  """

  identity: int | str
  path: str
  width: float
  height: float
  absent: tuple[int | str, ...] = ()
  incomplete: tuple[int | str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Instances:
  """N images with M boxes of C classes.

  Attributes:
    names, categories, frequencies: the name and id of each class, and for LVIS `r`, `c` or `f` (else empty).
    images: the images.
    identity: the id of each box.
    image, label: the numbers of each box's image and class.
    box: left, top, width, height in the image's unit, as in the file.
    area: the area of each instance.
    crowd: whether a box contains a group of instances.
  """

  names: tuple[str, ...]
  categories: tuple[int | str, ...]
  frequencies: tuple[str, ...]
  images: tuple[Image, ...]
  identity: tuple[int | str, ...]
  image: Int[np.ndarray, "M"]
  label: Int[np.ndarray, "M"]
  box: Float64[np.ndarray, "M 4"]
  area: Float64[np.ndarray, "M"]
  crowd: Bool[np.ndarray, "M"]

  @functools.cached_property
  def class_number(self) -> "IdNumbers":
    """The number of each class, by its id."""
    return IdNumbers(self.categories)

  def limit(self, images: int | None) -> "Instances":
    """The first `images` images and their boxes; all for None."""
    if images is None or images >= len(self.images):
      return self
    kept = np.flatnonzero(self.image < images)
    return dataclasses.replace(
      self,
      images=self.images[:images],
      identity=tuple(self.identity[row] for row in kept),
      **{name: getattr(self, name)[kept] for name in ("image", "label", "box", "area", "crowd")},
    )

  def fractions(self) -> Float32[np.ndarray, "M 4"]:
    """The boxes as x1 y1 x2 y2, fractions of their images' width and height, cut at the edges."""
    sizes = np.asarray([(image.width, image.height) for image in self.images]).reshape(-1, 2)[self.image]
    return to_fractions(self.box, sizes)


def to_fractions(box: Float64[np.ndarray, "M 4"], size: Float64[np.ndarray, "M 2"]) -> Float32[np.ndarray, "M 4"]:
  """Converts boxes left, top, width, height to fractions x1 y1 x2 y2 of the image's width and height.

  Boxes are cut at the edges; a box outside the image, or with a side that is no positive number, has no size then.

  Args:
    box: boxes in any unit.
    size: width and height of each box's image in the same unit.
  """
  sides = np.where(box[:, 2:] > 0, box[:, 2:], 0)
  corners = np.concatenate([box[:, :2], box[:, :2] + sides], axis=1) / np.tile(size, 2)
  return np.clip(np.nan_to_num(corners), 0, 1).astype(np.float32)


def have_size(fractions: Float32[np.ndarray, "M 4"]) -> Bool[np.ndarray, "M"]:
  """Whether boxes have a width and a height."""
  return np.all(fractions[:, :2] < fractions[:, 2:], axis=1)


def group_by_image(
  image: Int[np.ndarray, "M"], rows: Int[np.ndarray, "m"]
) -> tuple[Int[np.ndarray, "N"], list[np.ndarray]]:
  """Groups rows by image; returns the numbers of the images, ascending, and the rows of each.

  Args:
    image: the number of the image that each of M rows belongs to.
    rows: some of the M.
  """
  rows = rows[np.argsort(image[rows], kind="stable")]
  numbers, first = np.unique(image[rows], return_index=True)
  return numbers, np.split(rows, first[1:])


def read(path: str, classes: str | None = None, skips: SkipReport | None = None) -> Instances:
  """Reads a file of instances.

  Ids may be numbers or text, and `7` is the same as `"7"` where a file has both forms.

  Args:
    path: `instances_val2017.json`, `lvis_v1_val.json` or another file in that layout; or a CSV file of Open Images'
      boxes, such as `validation-annotations-bbox.csv`.
    classes: for Open Images, the CSV file of classes and their names (`class-descriptions-boxable.csv`).
    skips: counts boxes and images that cannot be used: `box_broken` and `image_broken` (not the expected fields),
      `box_of_unknown_image`, `box_of_unknown_class`, `image_twice`, and the kinds of rows of a CSV file that cannot be
      read.

  Raises:
    OSError, ValueError: a file is missing or broken, no box or image of it can be used, or a class is not as expected,
      which would change every answer; the message names the file and the entry.
  """
  skips = SkipReport() if skips is None else skips
  if path.lower().removesuffix(".gz").endswith(".csv"):
    if not classes:
      raise ValueError(f"{path}: boxes of Open Images need the file with the names of classes, too (--classes)")
    return _read_open_images(path, classes, skips)
  return _read_coco(path, skips)


def _read_coco(path: str, skips: SkipReport) -> Instances:
  images: dict[Any, Image] = {}
  categories: dict[Any, tuple[str, str]] = {}
  boxes: list[tuple] = []
  numbers: collections.Counter[str] = collections.Counter()
  for name, entry in read_entries(path, ("images", "annotations", "categories")):
    numbers[name] += 1
    where = f"{path}, {name}[{numbers[name] - 1}]"
    try:
      if name == "images":
        image = _make_image(entry)
        if images.setdefault(image.identity, image) is not image:
          skips.add(Skip("image_twice", f"an image of id {image.identity!r} was there before", place=where))
      elif name == "categories":
        identity, label = _get_id(entry, "id"), need(entry, "name")
        if not isinstance(label, str) or not label.strip():
          raise ValueError(f"`name` must be text, got {label!r:.40}")
        check_unicode(label, "name", "name")
        if identity in categories:
          raise ValueError(f"id {identity!r} is that of another class, too")
        if not isinstance(frequency := entry.get("frequency", ""), str):
          raise ValueError(f"`frequency` must be text, got {frequency!r:.40}")
        categories[identity] = (label.replace("_", " "), frequency)
      else:
        boxes.append(_make_box(entry))
    except ERRORS as error:
      if name == "categories":
        raise ValueError(f"{where}: {describe(error)}") from error
      skips.add(Skip(f"{'image' if name == 'images' else 'box'}_broken", describe(error), place=where))
  order = sorted(categories, key=_order)
  return _make(
    path, [images[key] for key in sorted(images, key=_order)], {key: categories[key] for key in order}, boxes, skips
  )


def _make_image(entry: Any) -> Image:
  identity = _get_id(entry, "id")
  name = entry.get("file_name")
  if not name:  # LVIS: val2017/000000000139.jpg
    name = "/".join(need(entry, "coco_url" if "coco_url" in entry else "file_name").split("/")[-2:])
  if not isinstance(name, str):
    raise ValueError(f"`file_name` must be text, got {name!r:.40}")
  check_unicode(name, "file_name", "file_name")
  for side in ("width", "height"):
    need(entry, side)
  absent, incomplete = (tuple(entry.get(key) or ()) for key in ("neg_category_ids", "not_exhaustive_category_ids"))
  if not all(isinstance(each, int | str) for each in (*absent, *incomplete)):
    raise ValueError("the ids of classes that are absent or incomplete must be numbers or text")
  return Image(identity, name, *get_size(entry), absent, incomplete)


def _make_box(entry: Any) -> tuple:
  identity = need(entry, "id") if isinstance(entry, dict) and "id" in entry else ""
  left, top, width, height = map(float, need(entry, "bbox"))
  area = entry.get("area")
  area = width * height if area is None else float(area)
  if not all(map(math.isfinite, (left, top, width, height, area))):
    raise ValueError(f"`bbox` and `area` must be finite numbers, got {entry['bbox']} and {area}")
  crowd = bool(int(entry.get("iscrowd") or 0))
  return identity, _get_id(entry, "image_id"), _get_id(entry, "category_id"), (left, top, width, height), area, crowd


def _get_id(entry: Any, name: str) -> int | str:
  found = need(entry, name)
  if isinstance(found, float) and found.is_integer():  # as pandas writes them
    found = int(found)
  if isinstance(found, bool) or not isinstance(found, int | str):
    raise ValueError(f"`{name}` must be a number or text, got {found!r:.40}")
  return found


def _order(identity: int | str) -> tuple[bool, int | str]:
  """Numbers come first, then texts."""
  return isinstance(identity, str), identity


def _read_open_images(path: str, classes: str, skips: SkipReport) -> Instances:
  categories: dict[Any, tuple[str, str]] = {}
  try:
    for number, row in enumerate(csv.reader(text.lines(classes), strict=True), 1):
      if row and row != ["LabelName", "DisplayName"]:  # newer files have a heading
        if len(row) != 2 or not all(map(str.strip, row)):
          raise ValueError(f"{classes}, row {number}: needs an id and a name, got {','.join(row)!r:.80}")
        if row[0] in categories:
          raise ValueError(f"{classes}, row {number}: id {row[0]!r:.40} is that of another class, too")
        categories[row[0]] = (row[1], "")
  except csv.Error as error:
    raise ValueError(f"{classes} is no CSV file of classes: {error}") from error
  images: dict[Any, Image] = {}
  boxes: list[tuple] = []
  try:
    there = columns(path) or []
    for name in _COLUMNS:
      if name not in there:
        raise ValueError(f"{path} {lacks(name, there)}")
    for number, (_, raw) in enumerate(scan(path)):
      where = f"{path}, row {number}"
      try:
        row = load(raw)
        assert isinstance(row, dict)
        identity, label, *corners = (row[key] for key in _COLUMNS)
        left, right, top, bottom = map(float, corners)
        box = (left, top, right - left, bottom - top)
        if not identity or not all(map(math.isfinite, box)):
          raise ValueError(f"needs an ImageID and finite corners, got {identity!r:.40} and {corners}")
      except ERRORS as error:
        odd = (
          Skip.of(error, where) if isinstance(error, RecordError) else Skip("box_broken", describe(error), place=where)
        )
        skips.add(odd)
        continue
      images.setdefault(identity, Image(identity, f"{identity}.jpg", 1.0, 1.0))
      boxes.append((number, identity, label, box, box[2] * box[3], row.get("IsGroupOf", "0") == "1"))
  except RecordError as error:
    raise ValueError(f"{path} is broken at {error}; get it again") from error
  return _make(path, list(images.values()), categories, boxes, skips)


def _make(
  path: str,
  images: Sequence[Image],
  categories: dict[Any, tuple[str, str]],
  boxes: list[tuple],
  skips: SkipReport,
) -> Instances:
  """Joins the tables; numbers replace ids."""
  image_number = IdNumbers(image.identity for image in images)
  class_number = IdNumbers(categories)
  known = []
  for box in boxes:
    kind, missing = ("image", box[1]) if box[1] not in image_number else ("class", box[2])
    if kind == "image" or missing not in class_number:
      message = f"box {box[0]!r:.40} is of {kind} {missing!r:.40}, which is not listed; is the file whole?"
      skips.add(Skip(f"box_of_unknown_{kind}", message, place=path))
    else:
      known.append(box)
  if not known or not images:
    reason = skips.summary(len(skips) + len(known), "boxes and images") or "there are none"
    raise ValueError(f"{path}: no box can be used: {reason}")
  fields = list(zip(*known, strict=True))
  frequencies = tuple(frequency for _, frequency in categories.values())
  odd = [(name, each) for name, each in categories.values() if each not in FREQUENCIES]
  if odd and any(frequencies):
    raise ValueError(f"{path}: class {odd[0][0]!r:.40} has the frequency {odd[0][1]!r:.40}: needs r, c or f, as others")
  return Instances(
    names=tuple(name for name, _ in categories.values()),
    categories=tuple(categories),
    frequencies=frequencies if any(frequencies) else (),
    images=tuple(_keep_known_classes(image, class_number, path, skips) for image in images),
    identity=fields[0],
    image=np.asarray([image_number[key] for key in fields[1]], np.int64),
    label=np.asarray([class_number[key] for key in fields[2]], np.int64),
    box=np.asarray(fields[3], np.float64).reshape(-1, 4),
    area=np.asarray(fields[4], np.float64),
    crowd=np.asarray(fields[5], bool),
  )


def _keep_known_classes(image: Image, class_number: "IdNumbers", path: str, skips: SkipReport) -> Image:
  """An LVIS image with the ids of its absent and incomplete classes as the classes have them."""
  if not image.absent and not image.incomplete:
    return image
  lists = {name: getattr(image, name) for name in ("absent", "incomplete")}
  known = {name: tuple(class_number.spell(each) for each in ids if each in class_number) for name, ids in lists.items()}
  lost = sum(map(len, lists.values())) - sum(map(len, known.values()))
  if lost:
    message = f"image {image.identity!r:.40} says that classes are absent or incomplete which are not listed"
    skips.add(Skip("class_unknown", message, place=path, scope="note"), lost)
  return dataclasses.replace(image, **known)


class IdNumbers:
  """Numbers ids, which may be numbers in one place of a file and text in another."""

  def __init__(self, ids: Iterable[Any]):
    self._ids = list(ids)
    self._number = {identity: number for number, identity in enumerate(self._ids)}
    # the other form of each id, unless that is an id of its own
    other = {
      (str(each) if isinstance(each, int) else _to_number(each)): number for each, number in self._number.items()
    }
    self._number = other | self._number

  def __contains__(self, identity: Any) -> bool:
    try:
      return identity is not None and identity in self._number
    except TypeError:  # a list
      return False

  def __getitem__(self, identity: Any) -> int:
    return self._number[identity]

  def spell(self, identity: Any) -> Any:
    """An id in the form that it was numbered in."""
    return self._ids[self._number[identity]]


def _to_number(text: str) -> int | None:
  return int(text) if text.isascii() and text.isdecimal() and str(int(text[:20])) == text else None

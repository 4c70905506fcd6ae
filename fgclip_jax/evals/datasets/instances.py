"""Reads boxes with classes from files in the layout of COCO and LVIS (JSON) and of Open Images (CSV)."""

import csv
import dataclasses
import functools
import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int

from fgclip_jax.storage import paths
from fgclip_jax.storage.streams import get_size, named, read_entries

FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}  # LVIS: in at most 10, at most 100, more training images


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
  absent: tuple[int, ...] = ()
  incomplete: tuple[int, ...] = ()


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
  def class_number(self) -> dict[int | str, int]:
    """The number of each class, by its id."""
    return {identity: number for number, identity in enumerate(self.categories)}

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


def read(path: str, classes: str | None = None) -> Instances:
  """Reads a file of instances.

  Args:
    path: `instances_val2017.json`, `lvis_v1_val.json` or another file in that layout; or a CSV file of Open Images'
      boxes, such as `validation-annotations-bbox.csv`.
    classes: for Open Images, the CSV file of classes and their names (`class-descriptions-boxable.csv`).

  Raises:
    FileNotFoundError, ValueError: a file is missing or broken; the message names the file and the entry.
  """
  if path.endswith(".csv"):
    if not classes:
      raise ValueError(f"{path}: boxes of Open Images need the file with the names of classes, too (--classes)")
    return _read_open_images(path, classes)
  return _read_coco(path)


def _read_coco(path: str) -> Instances:
  images, categories, boxes = {}, {}, []
  for name, entry in read_entries(path, ("images", "annotations", "categories")):
    with named(path, entry):
      if name == "images":
        images[entry["id"]] = Image(
          entry["id"],
          entry.get("file_name") or "/".join(entry["coco_url"].split("/")[-2:]),  # LVIS: val2017/000000000139.jpg
          *get_size(entry),
          tuple(entry.get("neg_category_ids", ())),
          tuple(entry.get("not_exhaustive_category_ids", ())),
        )
      elif name == "categories":
        categories[entry["id"]] = (entry["name"].replace("_", " "), entry.get("frequency", ""))
      else:
        left, top, width, height = map(float, entry["bbox"])
        area = float(entry.get("area", width * height))
        crowd = bool(entry.get("iscrowd", 0))
        row = (entry["id"], entry["image_id"], entry["category_id"], (left, top, width, height), area, crowd)
        boxes.append(row)
  order = sorted(categories)
  return _make(path, [images[key] for key in sorted(images)], {key: categories[key] for key in order}, boxes)


def _read_open_images(path: str, classes: str) -> Instances:
  categories = {}
  for row in csv.reader(_text(classes)):
    with named(classes, row):
      identity, name = row
      categories[identity] = (name, "")
  categories.pop("LabelName", None)  # newer files have a heading
  images, boxes = {}, []
  for number, row in enumerate(csv.DictReader(_text(path))):
    with named(path, row):
      identity = row["ImageID"]
      images.setdefault(identity, Image(identity, f"{identity}.jpg", 1.0, 1.0))
      left, right, top, bottom = (float(row[key]) for key in ("XMin", "XMax", "YMin", "YMax"))
      box = (left, top, right - left, bottom - top)
      boxes.append((number, identity, row["LabelName"], box, box[2] * box[3], row.get("IsGroupOf", "0") == "1"))
  return _make(path, list(images.values()), categories, boxes)


def _make(path: str, images: Sequence[Image], categories: dict[Any, tuple[str, str]], boxes: list[tuple]) -> Instances:
  """Joins the tables; numbers replace ids."""
  image_number = {image.identity: number for number, image in enumerate(images)}
  class_number = {identity: number for number, identity in enumerate(categories)}
  for identity, image, category, *_ in boxes:
    if image not in image_number or category not in class_number:
      kind, missing = ("image", image) if image not in image_number else ("class", category)
      raise ValueError(f"{path}: box {identity} is of {kind} {missing!r}, which is not listed; is the file whole?")
  columns = list(zip(*boxes, strict=True)) if boxes else [()] * 6
  frequencies = tuple(frequency for _, frequency in categories.values())
  return Instances(
    names=tuple(name for name, _ in categories.values()),
    categories=tuple(categories),
    frequencies=frequencies if all(frequency in FREQUENCIES for frequency in frequencies) else (),
    images=tuple(images),
    identity=columns[0],
    image=np.asarray([image_number[key] for key in columns[1]], np.int64),
    label=np.asarray([class_number[key] for key in columns[2]], np.int64),
    box=np.asarray(columns[3], np.float64).reshape(-1, 4),
    area=np.asarray(columns[4], np.float64),
    crowd=np.asarray(columns[5], bool),
  )


def _text(path: str) -> io.StringIO:
  try:
    return io.StringIO(paths.read(os.fspath(path)).decode("utf-8"), newline="")
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not a CSV file in UTF-8: {error}") from error

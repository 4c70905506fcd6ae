"""Converts YOLO's labels: boxes with class names.

An image IMAGES/a/1.jpg has a text file LABELS/a/1.txt with a line `CLASS CENTRE_X CENTRE_Y WIDTH HEIGHT` for each box,
as fractions of the image; a line of a segmentation, `CLASS X1 Y1 X2 Y2 X3 Y3 ...`, gives the box around its polygon.
The names of the classes are those of data.yaml, classes.txt or obj.names.

Regions have the names of their classes as captions. Images have no captions of their own: the short caption is the
class of the largest box, and images without boxes are left out and counted. There are no long captions.
"""

import argparse
import functools
import math
import posixpath
from collections.abc import Iterator, Sequence
from typing import Any

from fgclip_jax.prepare import cli
from fgclip_jax.prepare.sources import image_store, joins
from fgclip_jax.storage import folders, paths, text
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import SkipReport
from fgclip_jax.storage.tars import IMAGE_SUFFIXES

SHORT = "YOLO's labels: boxes with class names"
TEXT = f"{__doc__}{cli.IMAGE_CHECK}"
EXAMPLE = "--images coco8/images/train --classes coco8.yaml --output data/coco8"

FORM = "yolo"
_NAMES = ("classes.txt", "obj.names", "labels.txt", "predefined_classes.txt")
_KEYPOINTS = "kpt_shape"  # in data.yaml: a label's numbers behind the box are points of a pose


def find_labels(images: str) -> str:
  """The folder of the labels of a folder of images, by YOLO's rule: `labels` for the last `images` in its path.

  Without such a folder the labels are beside the images.
  """
  parts = images.rstrip("/").split("/")
  for place in range(len(parts) - 1, -1, -1):
    if parts[place] == "images":
      candidate = "/".join([*parts[:place], "labels", *parts[place + 1 :]])
      if paths.is_folder(candidate):
        return candidate
  return images


def find_classes(images: str, labels: str) -> str:
  """Finds the file of class names above the folders of images and labels.

  Raises:
    ValueError: there is none, or there are several.
  """
  seen = []
  for start in (labels, images):
    folder = paths.absolute(start)
    for _ in range(3):
      if folder not in seen and paths.is_folder(folder):
        seen.append(folder)
        names = paths.list_folder(folder)
        found = [name for name in names if name in _NAMES or _is_yaml_of_names(paths.join(folder, name))]
        if len(found) > 1:
          raise ValueError(f"{folder} has {', '.join(found)}: say which holds the class names by --classes")
        if found:
          return paths.join(folder, found[0])
      folder = posixpath.dirname(folder)
  raise ValueError(f"no data.yaml, {', '.join(_NAMES)} near {images}: give the file of class names by --classes")


def _is_yaml_of_names(path: str) -> bool:
  return path.endswith((".yaml", ".yml")) and paths.is_file(path) and b"names:" in paths.read(path, 0, 1 << 16)


def read_classes(path: str) -> tuple[dict[int, str], bool]:
  """Reads class names by number from `data.yaml` (`names`, a list or an object) or from lines.

  Returns:
    The names, and whether labels have the points of a pose behind their box.

  Raises:
    ValueError: the file is not of this form.
  """
  data = text.read(path)
  if not path.lower().endswith((".yaml", ".yml")):
    lines = [line.strip() for line in text.lines(path)]
    return {number: line for number, line in enumerate(lines) if line}, False
  import yaml  # comes with Flax

  try:
    value: Any = yaml.safe_load(data)
    names: Any = value["names"]
    entries = dict(enumerate(names)) if isinstance(names, list) else {int(key): name for key, name in names.items()}
  except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
    raise ValueError(
      f"{path} has no list or object `names` of classes ({' '.join(str(error).split())[:200]})"
    ) from error
  for number, name in entries.items():
    if isinstance(name, bool) or not isinstance(name, str | int | float):
      raise ValueError(f"{path}: the name of class {number} must be text, got a {type(name).__name__}")
  return {number: str(name) for number, name in entries.items()}, _KEYPOINTS in value


def make(state: str, images: str, labels: str, classes: str, folder: image_store.Folder) -> joins.Joined:
  """Joins images, labels and class names; see `joins.make`.

  Args:
    state: the folder where the result is kept.
    images, labels: the folders.
    classes: the file of class names.
    folder: the images.

  Raises:
    ValueError: there is no label, or the class names cannot be read.
  """
  skips = SkipReport()
  found = [name for name in folders.walk(labels, skips, (".txt",)) if posixpath.basename(name) not in _NAMES]
  if not found:
    raise ValueError(f"no .txt file of labels under {labels} (--labels)")
  names, pose = read_classes(classes)
  pictures = list(folders.walk(images, skips, tuple(f".{suffix}" for suffix in IMAGE_SUFFIXES)))
  if note := skips.summary(len(found) + len(pictures) + len(skips), "files"):
    print(note)
  join = functools.partial(_join, labels, pictures, found, names, pose)
  return joins.make(state, FORM, join, [classes, images, *(paths.join(labels, name) for name in found)], folder)


def _join(
  labels: str, pictures: Sequence[str], found: Sequence[str], names: dict[int, str], pose: bool, files: Sequence[str]
) -> Iterator[dict]:
  del files
  left = dict.fromkeys(posixpath.splitext(name)[0] for name in found)
  for picture in pictures:
    stem = posixpath.splitext(picture)[0]
    if stem in left:
      yield _make_line(picture, paths.join(labels, f"{stem}.txt"), names, pose)
      del left[stem]
    else:
      yield {"image": picture, "short": None, joins.FOUND: []}
  yield from ({joins.NOT_LISTED: stem} for stem in left)


def _make_line(picture: str, path: str, names: dict[int, str], pose: bool) -> dict:
  regions, found, largest, short = [], [], -1.0, None
  try:
    lines = list(text.lines(path))
  except (RecordError, paths.NotRegularFileError) as error:
    lines = []
    found.append(["region", "label_unreadable", path, str(error)])
  for number, line in enumerate(lines):
    if not line.strip():
      continue
    place = f"{path}, line {number + 1}"
    try:
      label, box = _parse(line, pose)
    except ValueError as error:
      found.append(["region", "label_unreadable", place, f"{error}: {line.strip()[:80]!r}"])
      continue
    if label not in names:
      found.append(["region", "class_unknown", place, f"class {label} of {len(names)} has no name"])
      continue
    regions.append({"box": box, "short": names[label]})
    area = (box[2] - box[0]) * (box[3] - box[1])
    if area > largest:
      largest, short = area, names[label]
  return {"image": picture, "short": short, "regions": regions, joins.FOUND: found}


def _parse(line: str, pose: bool) -> tuple[int, list[float]]:
  """Returns the class and the box x1, y1, x2, y2 of a line; raises `ValueError` for what is none."""
  first, *rest = line.split()
  label, *values = (float(each) for each in (first, *rest))
  if not all(map(math.isfinite, (label, *values))) or label != int(label):
    raise ValueError("needs a whole number of a class and finite numbers")
  if len(values) in (4, 5) or (pose and len(values) > 4):  # a fifth number is a detector's score
    x, y, width, height = values[:4]
    return int(label), [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
  if len(values) < 6 or len(values) % 2:
    raise ValueError(f"needs 4 numbers of a box or the pairs of a polygon, got {len(values)}")
  xs, ys = values[::2], values[1::2]
  return int(label), [min(xs), min(ys), max(xs), max(ys)]


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the command's options."""
  cli.add_output(parser)
  cli.add_images(parser)
  parser.add_argument("--labels", metavar="DIR", help="the folder of the labels (default: `labels` for `images`)")
  parser.add_argument("--classes", metavar="FILE", help="data.yaml, classes.txt or obj.names (default: the one nearby)")
  cli.add_conversion(parser, name="yolo")


def run(options: argparse.Namespace) -> None:
  """Runs the command."""
  folder = image_store.Folder(options.images)
  labels = options.labels or find_labels(options.images)
  classes = options.classes or find_classes(options.images, labels)
  cli.convert(options, make(cli.tables_folder(options), options.images, labels, classes, folder))

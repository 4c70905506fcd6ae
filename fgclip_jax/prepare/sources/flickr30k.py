"""Converts Flickr30k Entities: captions with marked phrases, and boxes for the things that phrases name.

ENTITIES holds the folders Sentences and Annotations. An image's short caption is the first of its five, without marks;
all five are kept as its set of captions. A region is one thing that captions name: its caption is the first phrase for
it in any of the five, its set has all phrases that differ, and its box encloses all boxes of that thing (`three men`
may have three). Phrases without a box, such as scenes, are noted. There are no long captions.
"""

import argparse
import functools
import re
from collections.abc import Iterator, Sequence
from xml.etree import ElementTree

from fgclip_jax.prepare import cli
from fgclip_jax.prepare.sources import image_store, joins
from fgclip_jax.storage import folders, paths, text
from fgclip_jax.storage.errors import RecordError

SHORT = "Flickr30k Entities' captions and boxes"
TEXT = f"{__doc__}{cli.IMAGE_CHECK}"
EXAMPLE = (
  "--entities flickr30k_entities --ids flickr30k_entities/train.txt --images flickr30k-images --output data/f30k"
)

FORM = "flickr30k"
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_MARK = re.compile(r"\[/EN#(?P<thing>\d+)(?P<kinds>(?:/[^\s\]/]+)*) (?P<phrase>[^\]]*)\]")


def make(state: str, entities: str, ids: str | None, folder: image_store.Folder) -> joins.Joined:
  """Joins the folders `Sentences` and `Annotations` under `entities`; see `joins.make`.

  Args:
    state: the folder where the result is kept.
    entities: the folder of Flickr30k Entities.
    ids: a file with the numbers of the images to take, such as `train.txt`; None takes all.
    folder: the images.
  """
  both = [paths.join(entities, name) for name in ("Sentences", "Annotations")]
  for inner in both:
    if not paths.is_folder(inner):
      raise FileNotFoundError(f"no folder at {inner!r}: --entities is the one that holds Sentences and Annotations")
  return joins.make(state, FORM, functools.partial(_join, both), [ids or both[0], both[1]], folder)


def _join(both: Sequence[str], files: Sequence[str]) -> Iterator[dict]:
  if paths.is_folder(files[0]):
    names = [name.removesuffix(".txt") for name in folders.list_files(files[0]) if name.endswith(".txt")]
  else:
    names = text.read(files[0]).split()
  for name in names:
    sentences = paths.join(both[0], f"{name}.txt")
    annotation = paths.join(both[1], f"{name}.xml")
    for path in (sentences, annotation):
      if not paths.is_file(path):
        raise FileNotFoundError(f"image {name}: no file {path!r}")
    try:
      yield _make_line(name, sentences, annotation)
    except RecordError as error:
      yield {joins.FAULT: [error.kind, error.field, error.message]}


def _make_line(name: str, file: str, annotation: str) -> dict:
  lines = [line for line in text.lines(file) if line.strip()]
  sentences = "\n".join(lines)
  phrases: dict[str, dict[str, str]] = {}  # of each thing, by the phrase in lower case
  for mark in _MARK.finditer(sentences):
    if mark["thing"] != "0" and "/notvisual" not in mark["kinds"]:
      phrases.setdefault(mark["thing"], {}).setdefault(mark["phrase"].lower(), mark["phrase"])
  size, boxes, found = _read_boxes(annotation)
  regions = []
  for thing, named in phrases.items():
    if thing in boxes:
      x1, y1, x2, y2 = boxes[thing]
      try:
        box = joins.make_box((x1, y1, x2 - x1, y2 - y1), size)
        regions.append({"box": box, **joins.captions([*named.values()])})
      except RecordError as error:
        found.append(["region", error.kind, f"entity {thing}", error.message])
    else:
      found.append(["note", "phrase_without_box", f"entity {thing}", f"{next(iter(named.values()))!r} has no box"])
  texts = [_MARK.sub(lambda mark: mark["phrase"], line).strip() for line in lines]
  return {"image": f"{name}.jpg", **joins.captions(texts), "regions": regions, joins.FOUND: found}


def _read_boxes(path: str) -> tuple[tuple[float | None, float | None], dict[str, tuple[float, ...]], list[list[str]]]:
  """Returns the image's width and height, the box around all boxes of each thing, in pixels, and the boxes at fault."""
  try:
    root = ElementTree.fromstring(paths.read(path))
  except (ElementTree.ParseError, ValueError, LookupError) as error:  # the latter two of encodings
    raise RecordError("annotation_not_xml", path, f"is broken: {error}; get it again") from error
  boxes: dict[str, tuple[float, ...]] = {}
  found = []
  size = joins.get_image_size({side: root.findtext(f"size/{side}") for side in ("width", "height")})
  for number, item in enumerate(root.iter("object")):
    box = item.find("bndbox")
    if box is None:
      continue
    try:
      x1, y1, x2, y2 = joins.get_sides([box.findtext(side) for side in _SIDES], f"{path}, object {number}")
    except RecordError as error:
      found.append(["region", error.kind, error.field, f"needs {', '.join(_SIDES)}"])
      continue
    for thing in (name.text or "" for name in item.findall("name")):
      a1, b1, a2, b2 = boxes.get(thing, (x1, y1, x2, y2))
      boxes[thing] = (min(a1, x1), min(b1, y1), max(a2, x2), max(b2, y2))
  return size, boxes, found


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the command's options."""
  cli.add_output(parser)
  parser.add_argument("--entities", required=True, metavar="DIR", help="the folder with Sentences and Annotations")
  parser.add_argument("--ids", metavar="FILE", help="the images to take, by their numbers: train.txt (default: all)")
  cli.add_images(parser)
  cli.add_conversion(parser, name="flickr30k")


def run(options: argparse.Namespace) -> None:
  """Runs the command."""
  folder = image_store.Folder(options.images)
  cli.convert(options, make(cli.tables_folder(options), options.entities, options.ids, folder))

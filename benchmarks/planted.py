"""Trees of images and annotations with defects planted in known numbers: FineHARD's, and what img2dataset writes.

Every `PERIOD`-th record has the same defect, the others none, so that what a report must count follows from the number
of records. Images are small, and no two are alike but those that are meant to be.
"""

import collections
import dataclasses
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

RECORDS_PER_FILE = 1000
PERIOD = 60  # records between two of the same defect: FineHARD's 44 kinds fit in, and good ones between them


@dataclasses.dataclass
class Planted:
  """What was planted.

  Attributes:
    records: how many records there are.
    kept: the ids of those that can be used, in order.
    findings: how many of each class a report must count.
    duplicates: images that come twice, by class.
    copies: the numbers of the records whose images these are.
  """

  records: int = 0
  kept: list[str] = dataclasses.field(default_factory=list)
  findings: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  duplicates: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  copies: set[int] = dataclasses.field(default_factory=set)


@dataclasses.dataclass
class Item:
  """A record in the making: its annotation and its image, and what a report must say of it."""

  index: int
  annotation: object
  image: bytes | None
  lost: bool = False
  findings: tuple[str, ...] = ()
  duplicate: str = ""

  @property
  def region(self) -> dict:
    return self.annotation["bbox_info"][0]


def picture(index: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
  """A mosaic of 8 x 8 random squares, another one for each index."""
  squares = np.random.default_rng(index).integers(0, 256, (8, 8, 3), np.uint8)
  return Image.fromarray(squares).resize(size, Image.Resampling.NEAREST)


def encode(image: Image.Image, form: str = "JPEG") -> bytes:
  """The bytes of an image file."""
  file = io.BytesIO()
  image.save(file, form, **({"quality": 80} if form == "JPEG" else {}))
  return file.getvalue()


def _region(index: int, number: int) -> dict:
  return {
    "bbox": [0.1, 0.2, 0.5 + 0.1 * number, 0.9, 0.8],
    "short_expr": f"a red dog number {index} {number}",
    "long_expr": f"a red dog number {index} {number} that sits on the grass",
    "flag_short_neg": 1 - number,
    "short_expr_negs": {str(key): f"a {colour} dog number {index}" for key, colour in enumerate(_COLOURS)},
  }


_COLOURS = ("blue", "green", "white", "black", "brown", "grey", "pink", "violet", "orange", "yellow")


def _annotation(index: int) -> dict:
  return {
    "f_path": f"grit-20m/data-12m/{_path(index)}",
    "caption": f"A long text about dog number {index}, which sits on the grass in front of a house.",
    "short_caption": f"a dog number {index}",
    "bbox_info": [_region(index, 0), _region(index, 1)],
  }


def _path(index: int) -> str:
  return f"coyo_image_0/{index // RECORDS_PER_FILE:05d}/{index:09d}.jpg"


def _set(key: str, value: object, *findings: str, lost: bool = False) -> Callable[[Item], Item]:
  """A defect of the record's annotation; None takes the field away."""

  def plant(item: Item) -> Item:
    changed = {**item.annotation, key: value}
    if value is None:
      del changed[key]
    return dataclasses.replace(item, annotation=changed, lost=lost, findings=findings)

  return plant


def _set_region(key: str, value: object, *findings: str) -> Callable[[Item], Item]:
  """A defect of the first region; None takes the field away."""

  def plant(item: Item) -> Item:
    region = {**item.region, key: value}
    if value is None:
      del region[key]
    regions = [region, *item.annotation["bbox_info"][1:]]
    return dataclasses.replace(item, annotation={**item.annotation, "bbox_info": regions}, findings=findings)

  return plant


def _set_negative(key: str, value: Callable[[Item], object], *findings: str) -> Callable[[Item], Item]:
  """A defect of one of the first region's negatives."""
  return lambda item: _set_region("short_expr_negs", {**item.region["short_expr_negs"], key: value(item)}, *findings)(
    item
  )


def _set_image(make: Callable[[Item], bytes | None], finding: str) -> Callable[[Item], Item]:
  """An image that cannot be used."""
  return lambda item: dataclasses.replace(item, image=make(item), lost=True, findings=(finding,))


def _twice(item: Item) -> Item:
  regions = item.annotation["bbox_info"]
  changed = {
    **item.annotation,
    "bbox_info": [*regions, {**regions[0], "short_expr": f" {item.region['short_expr'].upper()}."}],
  }
  return dataclasses.replace(item, annotation=changed, findings=("region_twice",))


def _first_of_period(item: Item) -> int:
  return item.index - item.index % PERIOD


def _copy(item: Item) -> Item:
  return dataclasses.replace(item, image=encode(picture(_first_of_period(item))), duplicate="image_duplicate")


def _near_copy(item: Item) -> Item:
  again = Image.open(io.BytesIO(encode(picture(_first_of_period(item)))))
  return dataclasses.replace(item, image=encode(again, "PNG"), duplicate="image_near_duplicate")


_MORE = {"negatives_over_10": {str(key): f"a dog of kind {key}" for key in range(12)}}
_IMAGES = (
  _set_image(lambda item: None, "image_missing"),
  _set_image(lambda item: b"", "image_empty"),
  _set_image(lambda item: b"<html>404</html>" + str(item.index).encode(), "image_unreadable"),
  _set_image(lambda item: encode(picture(item.index))[:-200], "image_truncated"),
  _set_image(lambda item: encode(picture(item.index, (1, 40))), "image_too_thin"),
  _set_image(lambda item: encode(picture(item.index, (7, 40))), "image_tiny"),
  _set_image(lambda item: encode(picture(item.index, (8, 200))), "image_extreme"),
  _copy,
  _near_copy,
)
_FINEHARD = (
  *_IMAGES,
  lambda item: dataclasses.replace(item, annotation=[item.index], lost=True, findings=("record_not_object",)),
  _set("f_path", None, "f_path_missing", lost=True),
  _set("f_path", "", "f_path_empty", lost=True),
  _set("f_path", "../secret.jpg", "path_outside", lost=True),
  _set("caption", None, "caption_missing", lost=True),
  _set("caption", " ", "caption_empty", lost=True),
  _set("caption", 7, "caption_wrong_type", lost=True),
  _set("caption", "\ud800", "caption_not_unicode", lost=True),
  _set("short_caption", None, "short_caption_missing", lost=True),
  _set("short_caption", "...", "caption_without_words", lost=True),
  _set("short_caption", "https://example.com/a.jpg", "caption_is_url", lost=True),
  _set("short_caption", "DSC_0012.JPG", "caption_is_file_name", lost=True),
  _set("caption", "a dog in a hat in a hat in a hat in a hat in a hat", "caption_repeats", lost=True),
  _set("caption", " ".join(f"word{number}" for number in range(1001)), "caption_long"),
  _set("bbox_info", [], "regions_none"),
  _set("bbox_info", "none", "bbox_info_wrong_type", "regions_none"),
  _set("bbox_info", [_region(0, 1) | {"bbox": [0, 0, 1 / (n + 1), 1]} for n in range(5)], "regions_over_4"),
  _set_region("bbox", [0, 0, 1], "box_not_four_numbers"),
  _set_region("bbox", [0, 0, float("inf"), 1], "box_not_finite"),
  _set_region("bbox", [0.5, 0, 0.2, 1], "box_swapped"),
  _set_region("bbox", [0, 0, 2, 1], "box_outside"),
  _set_region("bbox", [0.5, 0, 0.5, 1], "box_without_area"),
  _set_region("short_expr", None, "short_expr_missing"),
  _set_region("long_expr", "", "long_expr_empty"),
  _set_region("short_expr", "dog dog dog dog dog", "region_caption_repeats"),
  _twice,
  _set_region("flag_short_neg", 3, "flag_short_neg_wrong"),
  _set_region("short_expr_negs", {}, "negatives_none"),
  _set_region("short_expr_negs", _MORE["negatives_over_10"], "negatives_over_10"),
  _set_negative("3", lambda item: 5, "negative_wrong_type", "negatives_under_10"),
  _set_negative("3", lambda item: "", "negative_empty", "negatives_under_10"),
  _set_negative("3", lambda item: item.region["short_expr"], "negative_equals_positive", "negatives_under_10"),
  _set_negative("3", lambda item: f"{item.region['short_expr'].upper()}.", "negative_equals_positive"),
  _set_negative("3", lambda item: f"A  blue dog number {item.index}", "negative_twice"),
)


def _set_side(*, lost: bool, finding: str, **changes: object) -> Callable[[Item], Item]:
  """A defect of what img2dataset says of a sample."""
  return lambda item: dataclasses.replace(item, annotation=item.annotation | changes, lost=lost, findings=(finding,))


def _failed(item: Item) -> Item:
  side = item.annotation | {"status": "failed_to_download", "error_message": "HTTP Error 404"}
  return dataclasses.replace(item, annotation=side, image=None, lost=True, findings=("image_not_downloaded",))


_WEB = (
  *_IMAGES,
  _failed,
  _set_side(caption="", lost=True, finding="short_empty"),
  _set_side(caption="?!", lost=True, finding="caption_without_words"),
  _set_side(caption="www.example.com", lost=True, finding="caption_is_url"),
  _set_side(caption="ha ha ha ha ha ha", lost=True, finding="caption_repeats"),
  _set_side(long="", lost=False, finding="long_caption_none"),
  _set_side(long="-----", lost=True, finding="caption_without_words"),
)


def finehard(folder: str, records: int, tars: bool = False) -> Planted:
  """Writes `folder/jsonfiles` and `folder/images`, images as files or in tars; two more annotation files are broken.

  The first of these ends in the middle of its only record, the second is no JSON.
  """
  os.makedirs(os.path.join(folder, "jsonfiles"))
  planted = Planted()
  write = _write_tar if tars else _write_files
  for number, items in enumerate(_files(records, _FINEHARD, _annotation, planted)):
    path = os.path.join(folder, "jsonfiles", f"results_{number:05d}.json")
    with open(path, "w", encoding="utf-8") as file:
      file.write("[" + ",\n".join(json.dumps(item.annotation).replace("Infinity", "1e999") for item in items) + "]")
    named = [(f"{item.index:09d}.jpg", item.image) for item in items if item.image is not None]
    write(os.path.join(folder, "images", "coyo_image_0", f"{number:05d}"), named)
    planted.kept += [_path(item.index) for item in items if not item.lost]
  for name, text in (("y_truncated", json.dumps([_annotation(0)])[:-40]), ("z_html", "<html>404</html>")):
    with open(os.path.join(folder, "jsonfiles", f"{name}.json"), "w", encoding="utf-8") as file:
      file.write(text)
  planted.findings.update(("annotation_truncated", "annotation_not_json"))
  return planted


def web(folder: str, records: int) -> Planted:
  """Writes tar files as img2dataset does, with long captions in their JSON; the last one ends inside a sample."""
  planted = Planted()
  for number, items in enumerate(_files(records, _WEB, _side, planted)):
    members = []
    for item in items:
      key = f"{item.index:09d}"
      files = {
        "jpg": item.image,
        "json": json.dumps(item.annotation).encode(),
        "txt": item.annotation["caption"].encode(),
      }
      members += [(f"{key}.{suffix}", data) for suffix, data in files.items() if data is not None]
    _write_tar(os.path.join(folder, f"{number:05d}"), members)
    planted.kept += [f"{number:05d}/{item.index:09d}" for item in items if not item.lost]
  _write_tar(os.path.join(folder, "99999"), [("000000000.jpg", encode(picture(records)))])
  with open(os.path.join(folder, "99999.tar"), "r+b") as file:
    file.truncate(700)
  planted.findings["tar_truncated"] += 1
  return planted


def number(name: str) -> int:
  """The number of a record by its id."""
  return int(os.path.basename(name).partition(".")[0])


def _side(index: int) -> dict:
  key = f"{index:09d}"
  caption, long = f"a dog number {index}", f"Dog number {index} sits on the grass in front of a house."
  return {"key": key, "url": f"http://example.com/{key}.jpg", "status": "success", "caption": caption, "long": long}


def _files(records: int, defects: tuple, annotate: Callable[[int], object], planted: Planted) -> Iterator[list[Item]]:
  """Yields the records of each file, and counts what is planted in them."""
  for begin in range(0, records, RECORDS_PER_FILE):
    items = []
    for index in range(begin, min(begin + RECORDS_PER_FILE, records)):
      place = index % PERIOD  # the first of a period is good: copies are made of its image
      item = Item(index, annotate(index), encode(picture(index)))
      if 1 <= place <= len(defects):
        item = defects[place - 1](item)
      planted.findings.update(item.findings)
      if item.duplicate:
        planted.duplicates[item.duplicate] += 1
        planted.copies.add(index)
      items.append(item)
    planted.records += len(items)
    yield items


def _write_files(folder: str, named: list[tuple[str, bytes]]) -> None:
  os.makedirs(folder)
  for name, data in named:
    with open(os.path.join(folder, name), "wb") as file:
      file.write(data)


def _write_tar(path: str, named: list[tuple[str, bytes]]) -> None:
  os.makedirs(os.path.dirname(path), exist_ok=True)
  with tarfile.open(f"{path}.tar", "w") as archive:
    for name, data in named:
      member = tarfile.TarInfo(name)
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))

"""The records that `loader.py` measures, in each engine's own form. Imports no JAX."""

import contextlib
import io
import itertools
import json
import os
import pathlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageFilter

from fgclip_jax.data.dataset_folder import shard_path
from fgclip_jax.data.tokenizers.clip import Tokenizer

BOXES = {4: 0.50, 3: 0.33, 2: 0.14, 1: 0.03}  # per image, with their share: mean 3.3
HARD_SHARE = 0.025  # of boxes that have hard negatives
QUALITY = 90  # of JPEGs
NEGATIVES = 10


def generate(real: pathlib.Path, folder: pathlib.Path, count: int, side: int) -> dict:
  """Writes annotations and pictures in FineHARD's form, a data set of ours, and tar files for WebDataset.

  Pictures are parts of the photographs of `real`, each other ones, scaled so that the longer side is `side`; without
  it, blurred noise. Captions are those of `real`, each with its record's number, since equal captions of a batch would
  be encoded once; without it, as many random words.

  Returns:
    What the records are like.
  """
  random = np.random.default_rng(0)
  boxes = random.permutation(np.repeat(list(BOXES), np.ceil(np.asarray(list(BOXES.values())) * count).astype(int)))
  images = folder / "images" / "coyo_image_0"
  os.makedirs(images)
  annotations, size = [], 0
  for number, (picture, annotation) in enumerate(itertools.islice(_scenes(real, side, random), count)):
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    size += file.tell()
    (images / f"{number:06d}.jpg").write_bytes(file.getvalue())
    annotations.append(_vary(annotation, number, int(boxes[number]), random))
  os.makedirs(folder / "json")
  (folder / "json" / "all.json").write_text(json.dumps(annotations))
  _prepare(folder)
  _write_tar(folder, annotations)
  Tokenizer().save_vocabulary(str(folder))  # for the engines that take transformers' tokenizer
  return {"records": count, "side": side, "kilobytes": size / count / 1e3, "real": real.is_dir()}


def _scenes(real: pathlib.Path, side: int, random: np.random.Generator) -> Iterator[tuple[Image.Image, dict]]:
  """Pictures with annotations, without end."""
  if not real.is_dir():
    while True:
      yield _noise(side, random), _words(random)
  annotations = [
    entry for path in sorted((real / "jsonfiles").glob("*.json")) for entry in json.loads(path.read_text())
  ]
  photographs = {}
  for annotation in itertools.cycle(annotations):
    path = annotation["f_path"].removeprefix("grit-20m/data-12m/")
    if path not in photographs:
      photographs[path] = Image.open(real / "images" / path).convert("RGB")
    yield _part(photographs[path], side, random), annotation


def _part(photograph: Image.Image, side: int, random: np.random.Generator) -> Image.Image:
  """Most of a photograph, scaled to the longer side `side`."""
  width, height = photograph.size
  share = random.uniform(0.8, 1.0)
  left, top = random.uniform(0, 1 - share, 2) * (width, height)
  scale = side / max(width, height)
  box = (left, top, left + share * width, top + share * height)
  return photograph.resize((round(scale * width), round(scale * height)), Image.Resampling.BICUBIC, box)


def _noise(side: int, random: np.random.Generator) -> Image.Image:
  coarse = Image.fromarray(random.integers(0, 256, (side // 8, side // 8, 3), np.uint8))
  return coarse.resize((side, side * 3 // 4), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1))


def _words(random: np.random.Generator) -> dict:
  """An annotation of random words, with four boxes and their negatives."""

  def say(count: int) -> str:
    return " ".join("".join(chr(97 + letter) for letter in random.integers(0, 26, 4)) for _ in range(count))

  regions = []
  for _ in range(4):
    x1, y1, x2, y2 = np.sort(random.uniform(size=(2, 2)), axis=0).reshape(-1).round(4).tolist()
    negatives = {str(index): say(3) for index in range(NEGATIVES)}
    regions.append({"bbox": [x1, y1, x2, y2], "short_expr": say(3), "long_expr": say(6), "flag_short_neg": 1})
    regions[-1]["short_expr_negs"] = negatives
  return {"caption": say(60), "short_caption": say(6), "bbox_info": regions}


def _vary(annotation: dict, number: int, boxes: int, random: np.random.Generator) -> dict:
  """The annotation with its record's number in every caption, so many boxes, and few of them with negatives."""
  regions = []
  usable = [region for region in annotation["bbox_info"] if len(region.get("short_expr_negs") or {}) == NEGATIVES]
  plain = [region for region in annotation["bbox_info"] if region not in usable]
  for region in (usable[:1] + plain + usable[1:])[:boxes]:
    changed = {key: f"{region[key]} {number}" for key in ("short_expr", "long_expr")} | {"bbox": region["bbox"]}
    # a photograph has few boxes with negatives: the first one of an image has them for all
    if region is usable[0] and random.uniform() < HARD_SHARE * sum(n * share for n, share in BOXES.items()):
      negatives = {key: f"{text} {number}" for key, text in region["short_expr_negs"].items()}
      changed |= {"flag_short_neg": 1, "short_expr_negs": negatives}
    regions.append(changed | {"flag_short_neg": changed.get("flag_short_neg", 0)})
  return {
    "f_path": f"grit-20m/data-12m/coyo_image_0/{number:06d}.jpg",
    "caption": f"{annotation['caption']} {number}",
    "short_caption": f"{annotation['short_caption']} {number}",
    "bbox_info": regions,
  }


def _prepare(folder: pathlib.Path) -> None:
  from fgclip_jax.prepare import __main__ as prepare

  said = io.StringIO()
  places = ["--annotations", str(folder / "json"), "--images", str(folder / "images"), "--output", str(folder / "ours")]
  with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
    code = prepare.main(["finehard", *places, "--workers", "1"])
  if code:
    raise ValueError(f"the data set could not be prepared:\n{said.getvalue()}")


def repeat_shard(folder: pathlib.Path, records: int, shards: int) -> None:
  """Writes one shard of tiny records, and a data set in which every shard is that file."""
  from array_record.python.array_record_module import ArrayRecordWriter

  from fgclip_jax.data import record

  random = np.random.default_rng(0)
  file = io.BytesIO()
  Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(file, "JPEG")
  os.makedirs(folder)
  first = shard_path(str(folder), "tiny", "train", 0, shards)
  writer = ArrayRecordWriter(first, "group_size:1")
  for number in range(records):
    region = record.Region(box=(0.1, 0.1, 0.9, 0.9), short=f"region {number % 977}")
    short, long = f"picture {number % 991}", f"a picture with the number {number % 983}"
    writer.write(record.encode(record.Record(str(number), file.getvalue(), short, long, (region,), 16, 16)))
  writer.close()
  for number in range(1, shards):
    os.symlink(first, shard_path(str(folder), "tiny", "train", number, shards))


def _write_tar(folder: pathlib.Path, annotations: list[dict]) -> None:
  import webdataset

  os.makedirs(folder / "tars")
  with contextlib.redirect_stdout(io.StringIO()):  # it prints the names of files
    with webdataset.ShardWriter(str(folder / "tars" / "%04d.tar"), maxcount=-(-len(annotations) // 8)) as writer:
      for number, annotation in enumerate(annotations):
        image = (folder / "images" / "coyo_image_0" / f"{number:06d}.jpg").read_bytes()
        writer.write({"__key__": f"{number:06d}", "jpg": image, "json": annotation})

"""The inputs of `fuzz.py`: small files of every form that the commands read."""

import collections
import gzip
import io
import json
import pathlib
import tarfile
from typing import Any

import jax
import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from fgclip_jax.annotate import __main__ as annotate
from fgclip_jax.models import params
from fgclip_jax.models.config import ModelConfig, preset
from fgclip_jax.prepare import __main__ as prepare
from fgclip_jax.weights import formats

FINE_GRAINED = preset("tiny").replace(text={"short_length": 20, "long_length": 40})
SMALL = FINE_GRAINED.replace(text={"end_id": 2, "vocab_size": 60})  # for files of weights
PLAIN = preset("tiny").replace(text={"long_length": None, "end_id": 2, "vocab_size": 60})
COUNT, SIDE = 4, 24  # pictures, and their shorter side
IMAGES = tuple(f"images/{number}{ending}" for number, ending in enumerate((".jpg", ".png", ".webp", ".gif")))


def make_params(config: ModelConfig) -> Any:
  """Random parameters."""
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), params.abstract_params(config))


def generate(base: pathlib.Path) -> None:
  """Writes the inputs of all targets."""
  rng = np.random.default_rng(0)
  pictures = [_draw(rng, name) for name in IMAGES]
  for folder in ("pairs", "finehard", "coco", "flickr30k", "visual_genome", "embed", "evaluate"):
    _write(base / folder, dict(zip(IMAGES, pictures, strict=True)))
  _write_pairs(base / "pairs")
  _write_finehard(base / "finehard", pictures)
  _write_web(base / "web", pictures)
  _write_joins(base, pictures)
  _write_embed(base / "embed")
  _write_evaluate(base / "evaluate", pictures)
  _write_records(base)
  _write_annotations(base)
  _write_models(base)


def _write(folder: pathlib.Path, files: dict[str, Any]) -> None:
  """Writes files: bytes, text, a list of JSON lines (.jsonl) or a JSON tree."""
  for name, content in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".jsonl") and isinstance(content, list):
      content = "".join(json.dumps(line) + "\n" for line in content)
    elif not isinstance(content, str | bytes):
      content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def _draw(rng: np.random.Generator, name: str) -> bytes:
  file, form = io.BytesIO(), {"jpg": "JPEG"}.get(name.rpartition(".")[2], name.rpartition(".")[2].upper())
  Image.fromarray(rng.integers(0, 256, (SIDE, SIDE + 4, 3), np.uint8)).save(file, form)
  return file.getvalue()


def _pairs() -> list[dict]:
  regions = [
    {"box": [0.1, 0.2, 0.6, 0.9], "short": "a dog", "long": "a brown dog", "negatives": ["a white dog", "cat"]}
  ]
  return [
    {"image": name, "short": f"picture {number}, a dog", "long": f"a long caption of {number}", "regions": regions}
    for number, name in enumerate(name.removeprefix("images/") for name in IMAGES)
  ]


def _write_pairs(folder: pathlib.Path) -> None:
  rows = [["image", "short", "long"], *([pair[key] for key in ("image", "short", "long")] for pair in _pairs())]
  lines = "".join(json.dumps(pair) + "\n" for pair in _pairs())
  _write(folder, {
    "captions.csv": "".join(",".join(f'"{cell}"' if "," in cell else cell for cell in row) + "\n" for row in rows),
    "captions.tsv": "".join("\t".join(row) + "\n" for row in rows),
    "captions.json": _pairs(),
    "captions.jsonl": _pairs(),
    "captions.jsonl.gz": gzip.compress(lines.encode()),
  })  # fmt: skip


def _tar(files: dict[str, bytes]) -> bytes:
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode="w") as archive:
    for name, data in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))
  return out.getvalue()


def _write_finehard(folder: pathlib.Path, pictures: list[bytes]) -> None:
  box = {
    "bbox": [0.1, 0.1, 0.5, 0.5, 0.9], "short_expr": "a dog", "long_expr": "a brown dog", "flag_short_neg": 1,
    "short_expr_negs": {str(number): f"a dog of kind {number}" for number in range(3)},
  }  # fmt: skip
  names = [name.removeprefix("images/") for name in IMAGES]
  lines = [
    {
      "f_path": f"grit-20m/data-12m/a/{name}",
      "caption": "a long one",
      "short_caption": "a short one",
      "bbox_info": [box],
    }
    for name in names
  ]
  _write(folder, {"annotations/a.jsonl": lines, "list.txt": "annotations/a.jsonl\n\n"})
  _write(folder, {f"images/a/{name}": data for name, data in zip(names, pictures, strict=True)})
  _write(folder, {"tars/a.tar": _tar(dict(zip(names, pictures, strict=True)))})


def _write_web(folder: pathlib.Path, pictures: list[bytes]) -> None:
  sides = [
    {"key": f"{number:09d}", "url": f"http://a.b/{number}.jpg", "caption": f"two dogs, {number} cats",
     "status": "success", "long": f"a long caption of {number}"}
    for number in range(COUNT)
  ]  # fmt: skip
  files = {}
  for side, data in zip(sides, pictures, strict=True):
    content = {"jpg": data, "json": json.dumps(side).encode(), "txt": side["caption"].encode()}
    files |= {f"{side['key']}.{ending}": each for ending, each in content.items()}
  table = io.BytesIO()
  rows = [{"jpg": data, **side} for side, data in zip(sides, pictures, strict=True)]
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table, row_group_size=2)
  long = [{"key": side["key"], "long": side["long"]} for side in sides]
  _write(folder, {"tars/00000.tar": _tar(files), "tables/00000.parquet": table.getvalue(), "long.jsonl": long})


def _coco(lvis: bool = False) -> dict[str, Any]:
  names = [name.removeprefix("images/") for name in IMAGES]
  images = [{"id": number, "file_name": name, "width": SIDE + 4, "height": SIDE} for number, name in enumerate(names)]
  more: dict = {"neg_category_ids": [2], "not_exhaustive_category_ids": []} if lvis else {}
  boxes = [
    {"id": 10 * number + each, "image_id": number, "category_id": 1 + each, "bbox": [1, 2, 9.5, 8], "area": 76,
     "iscrowd": 0}
    for number in range(COUNT) for each in range(2)
  ]  # fmt: skip
  classes = [
    {"id": 1 + each, "name": name} | ({"frequency": "rf"[each]} if lvis else {})
    for each, name in enumerate(("cat", "dog"))
  ]
  return {"images": [image | more for image in images], "annotations": boxes, "categories": classes}


def _captions() -> dict[str, Any]:
  captions = [{"id": number, "image_id": number // 2, "caption": f"caption {number}"} for number in range(2 * COUNT)]
  return {"images": _coco()["images"], "annotations": captions}


def _write_joins(base: pathlib.Path, pictures: list[bytes]) -> None:
  """COCO's, Visual Genome's and Flickr30k's files."""
  _write(base / "coco", {"captions.json": _captions(), "instances.json": _coco()})
  size = {"width": SIDE + 4, "height": SIDE}
  data = [{"image_id": number, "url": f"https://a.b/{name}", **size} for number, name in enumerate(IMAGES)]
  region = {"x": 1, "y": 2, "width": 9, "height": 8, "phrase": "a dog"}
  regions = [{"id": number, "regions": [region | {"image_id": number, "region_id": number}]} for number in range(COUNT)]
  _write(base / "visual_genome", {"image_data.json": data, "regions.json": regions})
  box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"
  sizes = f"<size><width>{SIDE + 4}</width><height>{SIDE}</height><depth>3</depth></size>"
  for number, picture in enumerate(pictures):
    _write(base / "flickr30k", {
      f"images/{number}.jpg": picture,
      f"Sentences/{number}.txt": "[/EN#7/animals A dog] on [/EN#8/scene the grass] .\n" * 2,
      f"Annotations/{number}.xml": f"<annotation>{sizes}<object><name>7</name>{box}</object></annotation>\n",
    })  # fmt: skip
  _write(base / "flickr30k", {"ids.txt": "".join(f"{number}\n" for number in range(COUNT))})


def _write_embed(folder: pathlib.Path) -> None:
  texts = [{"id": f"t{number}", "text": f"a text, number {number}"} for number in range(COUNT)]
  boxes = [{"image": name, "boxes": [[0.1, 0.1, 0.5, 0.5], [0, 0, 1, 1]]} for name in IMAGES]
  _write(folder, {
    "texts.txt": "".join(f"{entry['text']}\n" for entry in texts),
    "texts.jsonl": texts,
    "texts.json": texts,
    "texts.csv": "id,text\n" + "".join(f'{entry["id"]},"{entry["text"]}"\n' for entry in texts),
    "texts.tsv": "id\ttext\n" + "".join(f"{entry['id']}\t{entry['text']}\n" for entry in texts),
    "list.txt": "".join(f"{name}\n" for name in IMAGES),
    "regions.jsonl": boxes,
  })  # fmt: skip


def _write_evaluate(folder: pathlib.Path, pictures: list[bytes]) -> None:
  names = [name.removeprefix("images/") for name in IMAGES]
  sentences = [{"raw": f"caption {number}"} for number in range(2)]
  karpathy = [{"filename": name, "split": "test", "sentences": sentences} for name in names]
  turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a long caption"}]
  rows = "".join(f'{name},test,"[""caption a"", ""caption b""]"\n' for name in names)
  boxes = "".join(f"{number},xclick,/m/1,1,0.1,0.5,0.2,0.9,0,0,0,0,0\n" for number in range(COUNT))
  heading = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
  )
  row = {"bbox": [1, 2, 9, 8], "test_type": "1_attributes", "width": SIDE + 4, "height": SIDE}
  order = {"caption_options": ["a dog on grass", "grass on a dog"]}
  relation = {
    "bbox_x": 1,
    "bbox_y": 2,
    "bbox_w": 9,
    "bbox_h": 8,
    "true_caption": "a on b",
    "false_caption": "b on a",
    "relation_name": "on",
  }
  proposals = [{"image_id": number, "category_id": 1, "bbox": [1, 2, 9, 8], "score": 0.9} for number in range(COUNT)]
  _write(folder, {
    "classes.txt": "cat\ndog\n",
    "labels.txt": "".join(f"{name} {number % 2}\n" for number, name in enumerate(names)),
    "captions.json": _captions(),
    "karpathy.json": {"images": karpathy, "dataset": "flickr30k"},
    "karpathy.csv": f"filename,split,raw\n{rows}",
    "turns.json": [{"id": name, "image": name, "conversations": turns} for name in IMAGES],
    "pairs.jsonl": [{"image": name, "captions": [f"caption of {name}", "another"]} for name in IMAGES],
    "pairs.csv": "image,caption\n" + "".join(f"{name},caption of {name}\n" for name in IMAGES),
    "coco.json": _coco(),
    "lvis.json": _coco(lvis=True),
    "boxes.csv": heading + boxes,
    "names.csv": "/m/1,Cat\n/m/2,Dog\n",
    "1_attributes.jsonl": [
      row | {"img_path": name, "pos_expression": ["a red dog"], "neg_expression": ["a blue dog", "a green dog"]}
      for name in IMAGES
    ],
    "proposals.json": proposals,
    "split.txt": "".join(f"{number}\n" for number in range(COUNT)),
    "crepe.json": {name: {"filename": name, "caption": "a dog", "negative_caption": "a cat"} for name in names},
    "aro.json": [{"image_path": name, **(order if number % 2 else relation)} for number, name in enumerate(names)],
    "winoground.jsonl": [
      {"id": number, "image_0": names[0], "image_1": names[1], "caption_0": "a b", "caption_1": "b a"}
      for number in range(2)
    ],
  })  # fmt: skip
  for number, (name, data) in enumerate(zip(names, pictures, strict=True)):
    levels = io.BytesIO()
    Image.fromarray(np.full((SIDE, SIDE + 4), number % 2, np.uint8)).save(levels, "PNG")
    _write(folder, {
      f"images/{number}.jpg": data,
      f"classes/{'cat' if number % 2 else 'dog'}/{name}": data,
      f"dci/{number}.json": {"image": name, "extra_caption": "a long caption", "short_caption": "short"},
      f"urban/image/{name}": data,
      f"urban/caption/{number}.txt": "a long caption of this picture",
      f"maps/{number}.png": levels.getvalue(),
    })  # fmt: skip


def _write_records(base: pathlib.Path) -> None:
  """A data set, and results of evaluations."""
  pairs = base / "pairs"
  options = ["--split", "validation", "--output", str(base / "records"), "--workers", "1"]
  code = prepare.main(
    ["pairs", "--captions", str(pairs / "captions.jsonl"), "--images", str(pairs / "images"), *options]
  )
  if code:
    raise RuntimeError("the data set of all targets cannot be made")
  metric = {"value": 0.5, "chance": 0.25, "count": 8}
  result = {
    "format": 2, "benchmark": "records", "name": "a",
    "metrics": {"region_top1": metric, "short_image_to_text_r1": metric},
    "settings": {"data": "data", "split": "validation", "limit": None}, "records": 4, "skipped": {}, "notes": [],
    "model": {"fingerprint": "0", "config": {}}, "versions": {"jax": "0"}, "device": {"kind": "cpu", "count": 1},
    "seconds": 1.0, "finished": "2026-01-01T00:00:00Z",
  }  # fmt: skip
  _write(base / "results", {"a.json": result, "b.json": result | {"name": "b"}})


def _write_annotations(base: pathlib.Path) -> None:
  """Pictures, what is known of them, and a finished output of `annotate`, which the same command goes on with."""
  given = base / "annotate"
  _write(given, {f"images/{name}": (base / "pairs" / "images" / name).read_bytes() for name in _names()})
  region = {"box": [0, 0, 0.5, 0.5], "short": "a brown dog"}
  lines = [
    {"image": name, "long": f"A brown dog and a red car {number} on the grass.", "regions": [region]}
    for number, name in enumerate(_names())
  ]
  members = {}
  for number, name in enumerate(_names()):
    members[f"{number}.jpg"] = (given / "images" / name).read_bytes()
    members[f"{number}.txt"] = str(lines[number]["long"]).encode()
  archive = _tar(members)
  packed = gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode())
  _write(given, {"known.jsonl": lines, "known.jsonl.gz": packed, "tars/a.tar": archive})
  options = ["--images", str(given / "images"), "--known", str(given / "known.jsonl"), "--workers", "1"]
  if annotate.main([*options, "--output", str(given / "out")]):
    raise RuntimeError("the annotations of all targets cannot be made")


def _names() -> list[str]:
  return [name.removeprefix("images/") for name in IMAGES]


def _write_models(base: pathlib.Path) -> None:
  """Models in all formats that are read."""
  import safetensors.numpy
  import torch

  flat = params.flatten(make_params(SMALL))
  for folder, name in (("native", "jax"), ("pytorch", "pytorch")):
    formats.FORMATS[name].write(str(base / folder), SMALL, flat, None)
  plain = params.flatten(make_params(PLAIN))
  formats.FORMATS["open_clip"].write(str(base / "open_clip"), PLAIN, plain, None)
  tensors = safetensors.numpy.load_file(base / "open_clip" / "open_clip_model.safetensors")
  _write(base, {"bare/model.safetensors": safetensors.numpy.save(tensors)})
  whole = safetensors.numpy.load_file(base / "pytorch" / "model.safetensors")
  index = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(whole)}
  for file in set(index.values()):
    part = {name: whole[name] for name in whole if index[name] == file}
    _write(base / "sharded", {file: safetensors.numpy.save(part)})
  config = json.loads((base / "pytorch" / "config.json").read_bytes())
  size = sum(value.nbytes for value in whole.values())
  _write(base / "sharded", {
    "config.json": config, "model.safetensors.index.json": {"metadata": {"total_size": size}, "weight_map": index},
  })  # fmt: skip
  state = collections.OrderedDict((name, torch.tensor(value)) for name, value in tensors.items())
  for folder in ("archive", "pickle", "script"):
    (base / folder).mkdir()
  saved = {
    "epoch": 3,
    "state_dict": {f"module.{name}": each for name, each in state.items()},
    "optimizer": {"lr": 1e-3},
  }
  torch.save(saved, base / "archive" / "model.pt")
  torch.save(state, base / "pickle" / "model.pt", _use_new_zipfile_serialization=False)
  torch.jit.save(torch.jit.trace(_module(torch, state), torch.zeros(2)), base / "script" / "model.pt")


def _module(torch: Any, state: dict[str, Any]) -> Any:
  """A module of modules with the parameters of a state dict."""

  class Node(torch.nn.Module):
    def forward(self, x):
      return x

  root = Node()
  for name, value in state.items():
    *folders, last = name.split(".")
    place = root
    for folder in folders:
      if not hasattr(place, folder):
        place.add_module(folder, Node())
      place = getattr(place, folder)
    place.register_parameter(last, torch.nn.Parameter(value))
  return root

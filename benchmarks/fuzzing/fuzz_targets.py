"""The commands that `fuzz.py` runs, and the files of their inputs that it mutates."""

import dataclasses

from fgclip_jax.data.dataset_folder import CHECKSUMS, DATASET_INFO


@dataclasses.dataclass(frozen=True)
class Target:
  """A command that reads some files.

  Attributes:
    command: `prepare`, `annotate`, `embed`, `evaluate`, `convert`, `load`, or `training`: its batches.
    kind: the kind of file that is mutated.
    name: names the target in seeds.
    folder: the folder of its input, below that of all inputs.
    mutated: patterns of the files that are mutated.
    arguments: the command line; `{in}` and `{out}` stand for the folders of the input and the output.
    weight: its share of the mutations.
  """

  command: str
  kind: str
  name: str
  folder: str
  mutated: tuple[str, ...]
  arguments: str
  weight: int = 1


def _prepare(kind: str, folder: str, mutated: str, options: str, weight: int = 2, name: str = "") -> Target:
  source = options.split()[0]
  arguments = f"{options} --output {{out}}/data --workers 1"
  return Target("prepare", kind, name or f"prepare-{source}-{kind}", folder, tuple(mutated.split()), arguments, weight)


def _embed(kind: str, mutated: str, options: str, folder: str = "embed", weight: int = 1) -> Target:
  arguments = f"--model {{in}}/model --output {{out}}/rows.npy {options}"
  what = options.split()[0].strip("-")
  return Target("embed", kind, f"embed-{what}-{kind}", folder, tuple(mutated.split()), arguments, weight)


def _evaluate(kind: str, mutated: str, options: str, folder: str = "evaluate", weight: int = 1) -> Target:
  name, _, rest = options.partition(" ")
  form = f"-{rest.split()[0]}" if rest and not rest.startswith("-") else ""
  arguments = f"{name} --model {{in}}/model --output {{out}}/result.json {rest}"
  return Target("evaluate", kind, f"evaluate-{name}{form}-{kind}", folder, tuple(mutated.split()), arguments, weight)


def _annotate(kind: str, mutated: str, options: str, weight: int = 1) -> Target:
  arguments = f"{options} --workers 1"
  return Target("annotate", kind, f"annotate-{kind}", "annotate", tuple(mutated.split()), arguments, weight)


def _weights(kind: str, folder: str, mutated: str, options: str = "") -> list[Target]:
  file, _, rest = options.partition(" ")
  files = tuple(mutated.split())
  arguments = f"{{in}}/{file} {{out}}/model --to pytorch {rest}".strip()
  targets = [Target("convert", kind, f"convert-{folder}-{kind}", folder, files, arguments, 2)]
  if not rest:  # `load` cannot be told the heads of a bare file
    targets.append(Target("load", kind, f"load-{folder}-{kind}", folder, files, f"{{in}}/{file}"))
  return targets


_PICTURES = "images/*"
_OF_IMAGES = "--images {in}/images"
_RECORDS = f"{DATASET_INFO} {CHECKSUMS} info.json features.json"
_NAME = "--templates name"
TARGETS: tuple[Target, ...] = (
  *(
    _prepare(kind, "pairs", f"captions.{kind}", f"pairs --captions {{in}}/captions.{kind} {_OF_IMAGES}", 4)
    for kind in ("csv", "tsv", "json", "jsonl")
  ),
  _prepare("jsonl.gz", "pairs", "captions.jsonl.gz", f"pairs --captions {{in}}/captions.jsonl.gz {_OF_IMAGES}", 1),
  _prepare("pictures", "pairs", _PICTURES, f"pairs --captions {{in}}/captions.csv {_OF_IMAGES} --max_side 16", 4),
  _prepare(
    "pictures",
    "pairs",
    _PICTURES,
    f"pairs --captions {{in}}/captions.csv {_OF_IMAGES} --duplicates drop --near_duplicates 4",
    1,
    "prepare-duplicates",
  ),
  _prepare("jsonl", "finehard", "annotations/a.jsonl", f"finehard --annotations {{in}}/annotations {_OF_IMAGES}", 4),
  _prepare("txt", "finehard", "list.txt", f"finehard --annotations {{in}}/list.txt {_OF_IMAGES}", 1),
  _prepare("tar", "finehard", "tars/a.tar", "finehard --annotations {in}/annotations --images {in}/tars"),
  _prepare("tar", "web", "tars/*", "webdataset --input {in}/tars --long_field long", 6),
  _prepare("parquet", "web", "tables/*", "webdataset --input {in}/tables --long_field long", 6),
  _prepare("jsonl", "web", "long.jsonl", "webdataset --input {in}/tars --long_captions {in}/long.jsonl --by key", 1),
  _prepare(
    "json",
    "coco",
    "captions.json instances.json",
    f"coco --captions {{in}}/captions.json --instances {{in}}/instances.json {_OF_IMAGES}",
    6,
  ),
  _prepare(
    "json",
    "visual_genome",
    "image_data.json regions.json",
    "visual_genome --image_data {in}/image_data.json --regions {in}/regions.json --images {in}",
    4,
  ),
  _prepare("txt", "flickr30k", "Sentences/* ids.txt", f"flickr30k --entities {{in}} --ids {{in}}/ids.txt {_OF_IMAGES}"),
  _prepare("xml", "flickr30k", "Annotations/*", f"flickr30k --entities {{in}} {_OF_IMAGES}"),
  _prepare("dataset folder", "records", _RECORDS, "tfds --dataset {in} --from_split validation --caption_field short"),
  _prepare("shards", "records", "*.array_record*", "tfds --dataset {in} --from_split validation --caption_field short"),
  Target(
    "prepare",
    "dataset folder",
    "prepare-inspect",
    "records",
    tuple(_RECORDS.split()),
    "inspect {in} --split validation --workers 1 --output {out}/page.html",
    2,
  ),
  Target(
    "prepare",
    "shards",
    "prepare-inspect-shards",
    "records",
    ("*.array_record*",),
    "inspect {in} --split validation --workers 1 --output {out}/page.html",
    2,
  ),
  Target(
    "prepare",
    "dataset folder",
    "prepare-verify",
    "records",
    (*_RECORDS.split(), "*.array_record*"),
    "verify {in} --workers 1",
    2,
  ),
  *(
    _embed(kind, f"texts.{kind}", f"--texts {{in}}/texts.{kind}", weight=2)
    for kind in ("txt", "jsonl", "json", "csv", "tsv")
  ),
  _embed("pictures", _PICTURES, _OF_IMAGES, weight=3),
  _embed("txt", "list.txt", "--images {in}/list.txt --root {in}"),
  _embed("jsonl", "regions.jsonl", "--regions {in}/regions.jsonl --root {in}", weight=2),
  _embed("shards", "*.array_record*", "--regions {in} --split validation", "records"),
  _embed("dataset folder", _RECORDS, "--texts {in} --split validation", "records"),
  _evaluate("shards", "*.array_record*", "records --data {in}", "records", 6),
  _evaluate("dataset folder", _RECORDS, "records --data {in}", "records"),
  _evaluate("txt", "classes.txt", f"classify folder --images {{in}}/classes --classes {{in}}/classes.txt {_NAME}"),
  _evaluate("labels", "labels.txt", f"classify folder {_OF_IMAGES} --labels {{in}}/labels.txt {_NAME}"),
  _evaluate("pictures", "classes/*/*", f"classify folder --images {{in}}/classes {_NAME}"),
  _evaluate("json", "captions.json", f"retrieve coco --annotations {{in}}/captions.json {_OF_IMAGES}", weight=2),
  _evaluate("json", "karpathy.json", f"retrieve flickr30k --annotations {{in}}/karpathy.json {_OF_IMAGES}", weight=2),
  _evaluate("csv", "karpathy.csv", f"retrieve flickr30k --annotations {{in}}/karpathy.csv {_OF_IMAGES}"),
  _evaluate("json", "turns.json", "retrieve sharegpt4v --annotations {in}/turns.json --images {in}"),
  _evaluate("json", "dci/*", f"retrieve dci --annotations {{in}}/dci {_OF_IMAGES} --allow cut_texts"),
  _evaluate("txt", "urban/caption/*", "retrieve urban1k --annotations {in}/urban --allow cut_texts"),
  _evaluate("jsonl", "pairs.jsonl", "retrieve pairs --annotations {in}/pairs.jsonl --images {in}"),
  _evaluate("csv", "pairs.csv", "retrieve pairs --annotations {in}/pairs.csv --images {in}"),
  _evaluate("COCO", "coco.json", f"boxes --annotations {{in}}/coco.json {_OF_IMAGES} {_NAME}", weight=2),
  _evaluate("LVIS", "lvis.json", f"boxes --annotations {{in}}/lvis.json {_OF_IMAGES} {_NAME}"),
  _evaluate(
    "csv",
    "boxes.csv names.csv",
    f"boxes --annotations {{in}}/boxes.csv --classes {{in}}/names.csv {_OF_IMAGES} {_NAME}",
  ),
  _evaluate("jsonl", "1_attributes.jsonl", "fgovd --annotations {in}/1_attributes.jsonl --images {in}", weight=2),
  _evaluate(
    "COCO",
    "coco.json proposals.json",
    f"detect --annotations {{in}}/coco.json --proposals {{in}}/proposals.json {_OF_IMAGES} {_NAME}",
    weight=2,
  ),
  _evaluate(
    "LVIS",
    "lvis.json proposals.json",
    f"detect --annotations {{in}}/lvis.json --proposals {{in}}/proposals.json {_OF_IMAGES} {_NAME}",
  ),
  _evaluate(
    "label maps",
    "maps/* classes.txt split.txt",
    f"segment {_OF_IMAGES} --labels {{in}}/maps --classes {{in}}/classes.txt --split {{in}}/split.txt {_NAME}",
    weight=2,
  ),
  _evaluate("json", "crepe.json", f"compositional sugarcrepe --annotations {{in}}/crepe.json {_OF_IMAGES}"),
  _evaluate("json", "aro.json", f"compositional aro --annotations {{in}}/aro.json {_OF_IMAGES}"),
  _evaluate(
    "jsonl", "winoground.jsonl", f"compositional winoground --annotations {{in}}/winoground.jsonl {_OF_IMAGES}"
  ),
  _evaluate(
    "pictures", "classes/*/*", "probe folder --train {in}/classes --test {in}/classes --validation {in}/classes"
  ),
  Target(
    "evaluate", "results", "evaluate-compare", "results", ("a.json", "b.json"), "--compare {in}/a.json {in}/b.json", 6
  ),
  *(
    Target("training", kind, f"training-{kind.replace(' ', '-')}", "records", mutated, "{in}", weight)
    for kind, mutated, weight in (("shards", ("*.array_record*",), 12), ("dataset folder", tuple(_RECORDS.split()), 2))
  ),
  _annotate("jsonl", "known.jsonl", "--images {in}/images --known {in}/known.jsonl --output {out}/a", 3),
  _annotate("jsonl.gz", "known.jsonl.gz", "--images {in}/images --known {in}/known.jsonl.gz --output {out}/a"),
  _annotate("pictures", _PICTURES, "--images {in}/images --known {in}/known.jsonl --output {out}/a", 2),
  _annotate("tar", "tars/*", "--images {in}/tars/a.tar --output {out}/a", 2),
  _annotate(
    "state",
    "out/.annotate/**/* out/annotations/*",
    "--images {in}/images --known {in}/known.jsonl --output {in}/out",
    4,
  ),
  *_weights("model.json", "native", "model.json"),
  *_weights("arrays", "native", "params/**/*"),
  *_weights("safetensors", "pytorch", "model.safetensors"),
  *_weights("config.json", "pytorch", "config.json preprocessor_config.json"),
  *_weights("index", "sharded", "model.safetensors.index.json"),
  *_weights("safetensors", "open_clip", "open_clip_model.safetensors"),
  *_weights("open_clip_config.json", "open_clip", "open_clip_config.json"),
  *_weights("safetensors", "bare", "model.safetensors", "model.safetensors --heads 2 2"),
  *_weights("archive", "archive", "model.pt", "model.pt --heads 2 2 --allow_pickle"),
  *_weights("pickle", "pickle", "model.pt", "model.pt --heads 2 2 --allow_pickle"),
  *_weights("TorchScript", "script", "model.pt", "model.pt --heads 2 2"),
)

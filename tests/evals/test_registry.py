"""Command lines: what those of the documentation measure, every example, and every option reaching its setting."""

import ast
import dataclasses
import re
import shlex

import pytest

from fgclip_jax import evals, evaluate
from fgclip_jax.evals import registry

PROGRAM = "python -m fgclip_jax.evaluate "
IMAGENET = evals.Classification("imagenet", "ILSVRC2012/val")
SHAREGPT4V = "share-captioner_coco_lcs_sam_1246k_1107.json"
OPEN_IMAGES = "validation-annotations-bbox.csv"
VOC = {"classes": "voc21", "split": "VOC2012/ImageSets/Segmentation/val.txt"}

# what the lines of each document measure, in their order; settings that are not named have their defaults
DOCUMENTED = {
  "README.md": [
    evals.Records("data/mine", "train"),
    evals.FgOvd(("fgovd/*.jsonl",), "coco"),
  ],
  "docs/evaluate.md": [
    evals.Records("data/scenes", "validation"),
    IMAGENET,
    dataclasses.replace(IMAGENET, images="FOLDER_OF_50000_FILES", labels="LOC_val_solution.csv"),
    evals.Classification("imagenetv2", "imagenetv2-matched-frequency-format-val"),
    evals.Classification("folder", "DIR", classes="names.txt"),
    evals.Classification("tfds", "cifar10", split="test"),
    evals.ImageTextRetrieval("coco", "captions_val2017.json", "coco/val2017"),
    evals.ImageTextRetrieval("flickr30k", "dataset_flickr30k.json", "flickr30k-images"),
    evals.ImageTextRetrieval("sharegpt4v", SHAREGPT4V, "DATA", allow=("cut_texts",)),
    evals.ImageTextRetrieval("dci", "DCI/annotations", "DCI/photos", allow=("cut_texts",)),
    evals.ImageTextRetrieval("urban1k", "Urban1k", allow=("cut_texts",)),
    evals.ImageTextRetrieval("pairs", "mine.jsonl", "DIR", kind="long"),
    evals.BoxClassification("instances_val2017.json", "coco/val2017"),
    evals.BoxClassification("lvis_v1_val.json", "coco"),
    evals.BoxClassification(OPEN_IMAGES, "open_images/validation", "class-descriptions-boxable.csv"),
    evals.FgOvd(("fgovd/*.jsonl",), "coco"),
    evals.Detection("lvis_v1_val.json", "coco", "boxes.json"),
    evals.Segmentation("ADE/images/validation", "ADE/annotations/validation", "ade150"),
    evals.Segmentation("VOC2012/JPEGImages", "VOC2012/SegmentationClass", **VOC),
    evals.Compositional("sugarcrepe", ("sugar-crepe/data/*.json",), "coco/val2017"),
    evals.Compositional("aro", ("visual_genome_relation.json",), "vg/images"),
    evals.Compositional("winoground", ("winoground/examples.jsonl",), "winoground/images"),
    evals.LinearProbe("folder", "food101/train", "food101/test"),
    evals.LinearProbe("tfds", "train", "test", images="cifar10", shots=(1, 2, 4, 8, 16)),
    evals.LinearProbe("npz", "train.npz", "test.npz", "validation.npz"),
  ],
}

EXAMPLES = {
  "records": evals.Records("data/scenes"),
  "classify": evals.Classification("imagenet", "imagenet/val"),
  "retrieve": evals.ImageTextRetrieval("coco", "captions_val2017.json", "coco/val2017"),
  "boxes": evals.BoxClassification("lvis_v1_val.json", "coco"),
  "fgovd": evals.FgOvd(("fgovd/*.jsonl",), "coco"),
  "detect": evals.Detection("lvis_v1_val.json", "coco", "boxes.json"),
  "segment": evals.Segmentation("ade/images/validation", "ade/annotations/validation", "ade150"),
  "compositional": evals.Compositional("sugarcrepe", ("sugarcrepe/*.json",), "coco/val2017"),
  "probe": evals.LinearProbe("folder", "food/train", "food/test"),
}

# lines with every option of a command, and what they must make: no setting has its default
BOTH = "--limit 3 --allow resolution,cut_texts"
GUARDS = {"limit": 3, "allow": ("resolution", "cut_texts")}
EVERY_OPTION = {
  "records": (f"--data D --split train --rerank 9 {BOTH}", evals.Records("D", split="train", rerank=9, **GUARDS)),
  "classify": (
    f"tfds --images N --split validation --data_dir D --templates name --mode center_crop {BOTH}",
    evals.Classification("tfds", "N", split="validation", data_dir="D", templates="name", mode="center_crop", **GUARDS),
  ),
  "retrieve": (
    "flickr30k --annotations A --images I --kind long --split val --skip_empty --mode center_crop "
    f"--image_field a --short_field b --long_field c --rerank 9 {BOTH}",
    evals.ImageTextRetrieval(
      "flickr30k",
      "A",
      "I",
      kind="long",
      split="val",
      skip_empty=True,
      mode="center_crop",
      image_field="a",
      short_field="b",
      long_field="c",
      rerank=9,
      **GUARDS,
    ),
  ),
  "boxes": (
    f"--annotations A --images I --classes C --templates openai7 --as_written {BOTH}",
    evals.BoxClassification("A", "I", classes="C", templates="openai7", as_written=True, **GUARDS),
  ),
  "fgovd": (f"--annotations A B --images I {BOTH}", evals.FgOvd(("A", "B"), "I", **GUARDS)),
  "detect": (
    "--annotations A --images I --proposals P --max_proposals 7 --keep_classes --templates photo --scale 20.5 "
    f"--nms 0.7 --fixed_ap {BOTH}",
    evals.Detection(
      "A",
      "I",
      "P",
      max_proposals=7,
      keep_classes=True,
      templates="photo",
      scale=20.5,
      nms=0.7,
      fixed_ap=True,
      **GUARDS,
    ),
  ),
  "segment": (
    "--images I --labels L --classes C --split S --reduce_zero_label --ignore_label 7 --label_suffix _ids.png "
    f"--pooling --templates name {BOTH}",
    evals.Segmentation(
      "I",
      "L",
      "C",
      split="S",
      reduce_zero_label=True,
      ignore_label=7,
      label_suffix="_ids.png",
      templates="name",
      pooling=True,
      **GUARDS,
    ),
  ),
  "compositional": (
    f"winoground --annotations A B --images I --mode center_crop {BOTH}",
    evals.Compositional("winoground", ("A", "B"), "I", mode="center_crop", **GUARDS),
  ),
  "probe": (
    "tfds --train A --test B --validation C --images N --data_dir D --layer embedding --shots 1 4 --seeds 5 "
    "--mode center_crop --allow resolution",
    evals.LinearProbe(
      "tfds",
      "A",
      "B",
      validation="C",
      images="N",
      data_dir="D",
      layer="embedding",
      shots=(1, 4),
      seeds=5,
      mode="center_crop",
      allow=("resolution",),
    ),
  ),
}
# of the benchmark, but not of the command; or of other data sets than that of the line above
ELSEWHERE = {"records": {"parts"}, "boxes": {"ks"}, "classify": {"classes", "labels"}}


# what the evaluators of these lines read
FILES = {
  "records": [("D", "train")],
  "classify": [],  # of TensorFlow Datasets
  "retrieve": ["A", "I"],
  "boxes": ["A", "C", "I"],
  "fgovd": ["A", "B", "I"],
  "detect": ["A", "P", "I"],
  "segment": ["L", "C", "I", "S"],
  "compositional": ["A", "B", "I"],
  "probe": [],  # of TensorFlow Datasets
}


def make(arguments):
  """The evaluator that the command makes of its arguments."""
  args = evaluate._parse(shlex.split(arguments))
  assert args.model in ("M", "DIR", "runs/stage2")
  return args.make(args)


def lines(text):
  """The arguments of the document's command lines that measure; optional ones are taken."""
  joined = text.replace("\\\n", " ").splitlines()
  found = [line.removeprefix(PROGRAM) for line in joined if line.startswith(PROGRAM)]
  found = [line for line in found if not line.startswith(("COMMAND", "--compare", "--published"))]
  return [line.replace("[", "").replace("]", "") for line in found]


@pytest.mark.parametrize("document", DOCUMENTED)
def test_documented_lines(root, document):
  found = lines((root / document).read_text())
  expected = DOCUMENTED[document]
  assert len(found) == len(expected), f"the table above must have what each of these lines measures: {found}"
  for line, evaluator in zip(found, expected, strict=True):
    assert make(line) == evaluator, line


def test_documented_lines_of_a_run(root):
  (values,) = re.findall(r'--config\.evals="(.*)"', (root / "docs" / "evaluate.md").read_text())
  found = [registry.parse(line) for line in ast.literal_eval(values)]
  assert found == [evals.Records("data/mine", limit=1000), evals.Classification("imagenet", "imagenet/val")]


@pytest.mark.parametrize("command", registry.EVALUATORS)
def test_examples(command):
  example = registry.get_module(command).EXAMPLE
  assert make(f"{command} {example}") == EXAMPLES[command]


@pytest.mark.parametrize("command", registry.EVALUATORS)
def test_every_option_reaches_its_setting(command):
  line, expected = EVERY_OPTION[command]
  assert make(f"{command} --model M {line}") == expected == registry.parse(f"{command} {line}")
  fields = dataclasses.fields(expected)
  default = {field.name for field in fields if getattr(expected, field.name) == field.default}
  assert default == ELSEWHERE.get(command, set())


@pytest.mark.parametrize("command", registry.EVALUATORS)
def test_the_files_that_are_read(command):
  assert EVERY_OPTION[command][1].files() == FILES[command]


@pytest.mark.parametrize(
  ("evaluator", "files"),
  [
    (IMAGENET, ["ILSVRC2012/val"]),
    (evals.Classification("folder", "I", "C", "L"), ["L", "C", "I"]),
    (evals.ImageTextRetrieval("urban1k", "U"), ["U", "U/image"]),
    (evals.Segmentation("I", "L", "voc21"), ["L", "I"]),
    (evals.LinearProbe("npz", "A", "B", "C"), ["A", "B", "C"]),
    (evals.LinearProbe("folder", "A", "B"), ["A", "B"]),
  ],
)
def test_the_files_that_are_read_by_kind_of_data_set(evaluator, files):
  assert evaluator.files() == files


def test_one_line_registers_an_evaluator(root):
  modules = {path.stem for path in (root / "fgclip_jax" / "evals" / "tasks").glob("*.py")} - {"__init__"}
  assert {place.partition(":")[0] for place in registry.EVALUATORS.values()} == modules
  for command in registry.EVALUATORS:
    found = registry.get_class(command)
    assert getattr(evals, found.__name__) is found and found.__name__ in dir(evals)
  with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
    _ = evals.Nothing


def test_without_a_command_the_options_are_those_of_records():
  line, expected = EVERY_OPTION["records"]
  assert make(f"--model M {line}") == expected


def test_values_that_are_said_in_words():
  assert make("detect --model M --annotations A --images I --scale model").scale is None
  assert make("segment --model M --images I --labels L --classes C --no-reduce_zero_label").reduce_zero_label is False


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("classify imagenet --model M", "--images"),
    ("fgovd --model M --annotations --images I", "--annotations"),
    ("probe folder --model M --train A --test B --shots 0", "--shots"),
    ("boxes --model M --annotations A --images I --allow all", "--allow"),
    ("measure --model M", "no command 'measure'"),
  ],
)
def test_wrong_lines_are_refused(line, message, capsys):
  with pytest.raises(SystemExit):
    evaluate._parse(shlex.split(line))
  assert message in capsys.readouterr().err

"""Result files, published numbers, comparison, and the commands on photographs."""

import errno
import json
import os
import re

import jax
import numpy as np
import pytest

from fgclip_jax import evaluate
from fgclip_jax.evals import Classification, ImageTextRetrieval, results
from fgclip_jax.evals.evaluator import Evaluator, Metric, Result
from fgclip_jax.evals.registry import EVALUATORS, parse
from fgclip_jax.inference import model as api
from fgclip_jax.models import params
from fgclip_jax.weights import native


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model):
  """The model on disk."""
  folder = str(tmp_path_factory.mktemp("models") / "tiny")
  native.write(folder, model.config, params.flatten(jax.device_get(model.params)))
  return folder


@pytest.fixture
def photographs(shared, tmp_path):
  """Pairs of the photographs with their short captions, and folders of them by class."""
  top = shared / "data" / "real_mini"
  pairs = []
  for file in sorted(top.glob("jsonfiles/*.json")):
    for entry in json.loads(file.read_text()):
      path = top / "images" / entry["f_path"].split("data-12m/")[1]
      pairs.append({"image": str(path), "caption": entry["short_caption"]})
      (tmp_path / "folders" / path.parent.name).mkdir(parents=True, exist_ok=True)
      (tmp_path / "folders" / path.parent.name / path.name).symlink_to(path)
  (tmp_path / "pairs.json").write_text(json.dumps(pairs))
  return tmp_path


def test_photographs_give_the_same_numbers_on_one_device_and_on_eight(model, spread_model, photographs):
  for evaluator in (
    ImageTextRetrieval("pairs", str(photographs / "pairs.json")),
    Classification("folder", str(photographs / "folders"), templates="openai7"),
  ):
    one, eight = evaluator.run(model), evaluator.run(spread_model)
    assert one.metrics == eight.metrics and one.records == 48 and not one.skipped
    np.testing.assert_array_equal(one.examples["rank"], eight.examples["rank"])
    print(f"{evaluator.name}\n{results.table({'1': results.as_json(one), '8': results.as_json(eight)})}")


def test_commands_write_results_and_compare_them_with_published_numbers(folder, tmp_path, draw, capsys, model):
  for number, name in enumerate(("n01440764/a.jpg", "n01443537/b.jpg", "n15075141/c.jpg")):
    draw(tmp_path / "val" / name, number)
  output, rows = str(tmp_path / "a" / "in.json"), tmp_path / "rows.jsonl"
  command = ["classify", "imagenet", "--model", folder, "--images", str(tmp_path / "val"), "--templates", "name"]
  more = ["--output", output, "--examples", str(rows), "--published", "FG-CLIP B/16", "--name", "mine"]
  assert evaluate.main([*command, *more]) == 0
  out = capsys.readouterr().out
  assert "Evaluating classify imagenet on 8 x cpu" in out and f"wrote {rows} (3 questions)" in out
  assert re.search(r"\(as published\) +0.10 +\S+ +69.0 +3\n", out) and re.search(r"\ntop1 +0.10 +\S+ +- +3\n", out), out
  assert "note: FG-CLIP B/16: arXiv 2510.10921, table 4" in out
  result = results.read(output)
  assert result["benchmark"] == "classify imagenet" and result["device"] == {"kind": "cpu", "count": 8}
  assert result["settings"]["templates"] == "name" and result["settings"]["image_size"] == 32
  assert result["model"]["fingerprint"] == results.fingerprint(model)
  lines = [json.loads(line) for line in rows.read_text().splitlines()]
  assert [line["id"] for line in lines] == ["n01440764/a.jpg", "n01443537/b.jpg", "n15075141/c.jpg"]
  assert lines[2]["class"] == "toilet paper" and {"predicted", "rank", "score"} <= set(lines[0])

  (tmp_path / "p.jsonl").write_text('{"image": "val/n01440764/a.jpg", "caption": "x"}\n')
  other = str(tmp_path / "r.json")
  assert (
    evaluate.main(
      ["retrieve", "pairs", "--model", folder, "--annotations", str(tmp_path / "p.jsonl"), "--output", other]
    )
    == 0
  )
  capsys.readouterr()
  assert evaluate.main(["--compare", output, other, "--published", "CLIP B/16", "--published", "CLIP L/14"]) == 0
  out = capsys.readouterr().out
  first, second = out.split("\n\n")
  assert first.startswith(f"classify imagenet ({output})\n") and second.startswith(f"retrieve pairs ({other})\n")
  assert re.search(r"\(as published\) +0.10 +\S+ +68.4 +76.6 +3\n", first), first
  assert "note: CLIP L/14: nothing published of 'retrieve pairs'" in second
  for beside in (["--compare", output], []):
    assert evaluate.main([*beside, "--published", "CLIP"]) == 1
    assert "nothing is published of 'CLIP'; there are CLIP B/16" in capsys.readouterr().err
  assert evaluate.main([f"--compare={output}", "--published=CLIP B/16"]) == 0
  assert "(as published)" in capsys.readouterr().out
  assert evaluate.main(["--published=FG-CLIP B/16"]) == 0
  out = capsys.readouterr().out
  assert re.search(r"\nfgovd: fgovd_hard_top1 +46.1  arXiv 2510.10921, table 1\n", out)
  assert re.search(r"\nbox classification annotations=lvis_v1_val: box_top1 +28.6  arXiv", out)


def test_the_command_refuses_another_image_size_unless_allowed(folder, tmp_path, draw, capsys):
  draw(tmp_path / "val" / "a" / "x.png", 0)
  command = ["classify", "folder", "--model", folder, "--images", str(tmp_path / "val"), "--image_size", "64"]
  assert evaluate.main(command) == 1
  assert "trained on 32 x 32: leave the size as it is, or ask for it with --allow resolution" in capsys.readouterr().err
  assert evaluate.main([*command, "--allow", "resolution"]) == 0
  assert "note: images are 64 x 64" in capsys.readouterr().out
  with pytest.raises(SystemExit):
    evaluate.main([*command, "--allow", "everything"])
  assert "allow takes resolution, cut_texts" in capsys.readouterr().err


def test_fingerprints_tell_models_apart(model, spread_model):
  assert results.fingerprint(model) == results.fingerprint(spread_model)
  flat = params.flatten(jax.device_get(model.params))
  flat["short_projection/kernel"] = flat["short_projection/kernel"] + np.float32(1e-6)
  assert results.fingerprint(api.FGCLIP(model.config, params.unflatten(flat))) != results.fingerprint(model)
  assert results.fingerprint(model.with_image_size(64)) != results.fingerprint(model)


def test_published_tables_hold_together():
  for table in results.published_tables():
    assert set(table) == {"benchmark", "settings", "metrics", "source", "rows"} and table["source"] and table["rows"]
    for model, numbers in table["rows"].items():
      assert len(numbers) == len(table["metrics"]), (table["benchmark"], model)
      assert all(number is None or 0 < number < 100 for number in numbers)
  kinds = {table["benchmark"] for table in results.published_tables()}
  assert {"classify imagenet", "classify imagenetv2", "retrieve coco", "retrieve dci", "fgovd"} <= kinds


DETECTION = {"annotations": "lvis_v1_val.json", "proposals": "boxes.json", "fixed_ap": True}


@pytest.mark.parametrize(
  "model, benchmark, settings, metric, value",
  [
    ("FG-CLIP B/16", "fgovd", {}, "fgovd_hard_top1", 46.1),
    ("FG-CLIP L/14", "retrieve dci", {"skip_empty": False}, "text_to_image_r1", 66.1),
    ("FG-CLIP B/16", "box classification", {"annotations": "x/instances_val2017.json"}, "box_top1", 52.3),
    ("FG-CLIP B/16", "box classification", {"annotations": "lvis_v1_val.json"}, "box_top1", 28.6),
    ("FG-CLIP 2 B/16", "box classification", {"annotations": "instances_val2017.json"}, "box_top5", 95.7),
    ("FG-CLIP B/16", "detection", DETECTION, "detection_ap", 41.0),
    ("FG-CLIP B/16, stage 1 only", "fgovd", {}, "fgovd_easy_top1", 36.2),
    ("CLOC L/14", "classify imagenetv2", {}, "top1_argmax", 73.2),
  ],
)
def test_published_numbers_are_found(model, benchmark, settings, metric, value):
  found, sources = results.find_published(model, benchmark, settings, [metric])
  assert found == {metric: {"value": pytest.approx(value / 100), "chance": None, "count": None}}
  assert len(sources) == 1 and "arXiv" in sources[0]


def test_published_numbers_of_another_data_set_are_not_shown():
  for settings in (DETECTION | {"fixed_ap": False}, DETECTION | {"proposals": None}):
    assert results.find_published("FG-CLIP B/16", "detection", settings, ["detection_ap"]) == ({}, [])
  assert results.find_published("FG-CLIP B/16", "box classification", {"annotations": "mine.json"}, ["box_top1"]) == (
    {},
    [],
  )
  assert results.find_published("CLOC L/14", "retrieve dci", {"skip_empty": False}, ["image_to_text_r1"]) == ({}, [])
  for name in (
    "lvis/instances_val2017.json",
    "lvis_v1_train.json",
  ):  # a folder's name is no data set, nor is training's
    found, _ = results.find_published("FG-CLIP B/16", "box classification", {"annotations": name}, ["box_top1"])
    assert [number["value"] for number in found.values()] == ([0.523] if "val" in name else [])


def test_comparisons_say_what_is_not_the_same(tmp_path):
  def write(name, benchmark="box classification", skipped=None, **settings):
    metrics = {"box_top1": {"value": 0.5, "chance": None, "count": 3}}
    result = {"format": results.FORMAT, "benchmark": benchmark, "name": name, "metrics": metrics}
    results.write(str(tmp_path / f"{name}.json"), result | {"settings": settings, "skipped": skipped or {}})
    return str(tmp_path / f"{name}.json")

  coco, lvis = "coco/instances_val2017.json", "lvis_v1_val.json"
  files = [
    write("a", annotations=coco, nms=0.5, limit=None, model="x"),
    write("b", annotations=coco, nms=0.7, limit=1000, model="y", skipped={"image_missing": 2}),
    write("c", annotations=lvis, nms=0.5, limit=None, model="x"),
  ]
  first, second = results.compare(files, ["FG-CLIP B/16"]).split("\n\n")
  assert re.search(r"box_top1 +- +50.0 +50.0 +52.3 +3\n", first) and re.search(r"box_top1 +- +50.0 +28.6 +3\n", second)
  notes = [line for line in first.splitlines() if line.startswith("note: ")]
  assert notes[:4] == [
    "note: b: not all of the data could be used (image_missing 2)",
    "note: b: measured on the first 1,000 alone",
    "note: not the same nms: 0.5, 0.7",
    "note: not the same limit: None, 1000",
  ]
  assert not any("model" in note for note in notes)


COLUMNS = {  # of the tables in the collected facts, with the place in `I->T/T->I`
  ("fgovd", ""): {f"fgovd_{level}_top1": (level, 0) for level in ("hard", "medium", "easy", "trivial")},
  ("box classification", "instances_val2017"): {"box_top1": ("COCO-80", 0)},
  ("box classification", "lvis_v1_val"): {"box_top1": ("LVIS-1203", 0)},
  ("box classification", "boxclass"): {"box_top1": ("BoxClass-CN-566", 0)},
  ("classify imagenet", ""): {"top1_argmax": ("IN-1K", 0)},
  ("classify imagenetv2", ""): {"top1_argmax": ("IN-v2", 0)},
  **{
    (f"retrieve {name}", settings): {
      f"{way}_r1": (column, place) for place, way in enumerate(("image_to_text", "text_to_image"))
    }
    for name, column, settings in (
      ("sharegpt4v", "ShareGPT4V-1K", ""),
      ("dci", "DCI", "False"),
      ("coco", "MSCOCO 5K", ""),
      ("flickr30k", "Flickr30k 1K", ""),
    )
  },
}


def test_published_numbers_stand_in_the_rows_and_columns_of_the_notes(shared):
  known, heading = {}, []
  for line in (shared / "reference" / "facts.md").read_text().splitlines():
    cells = [cell.strip(" *") for cell in line.strip("|").split("|")] if line.startswith("|") else []
    heading = heading if cells else []
    if cells and not heading:
      heading = cells
    elif heading[:2] == ["method", "backbone"]:
      known |= {(f"{cells[0]} {cells[1]}", name): cell for name, cell in zip(heading[2:], cells[2:], strict=True)}
  checked = 0
  for table in results.published_tables():
    columns = COLUMNS.get((table["benchmark"], "".join(table["settings"].values())), {})
    if table["source"].startswith("arXiv 2510.10921, table ") and table["source"][-1] in "124":
      for model, numbers in table["rows"].items():
        for metric, number in zip(table["metrics"], numbers, strict=True):
          column, place = columns[metric]
          found = known[model, column].split("/")
          assert number is None or float(found[place]) == number, (table["benchmark"], model, metric)
          checked += 1
  assert checked > 250


def test_published_numbers_are_those_of_the_notes(shared):
  """Every number in the rows stands in the collected facts."""
  facts = (shared / "reference" / "facts.md").read_text()
  for table in results.published_tables():
    for model, numbers in table["rows"].items():
      for number in numbers:
        assert number is None or re.search(rf"(?<![\d.]){number}(?!\d)", facts), (table["benchmark"], model, number)


def test_tables_of_metrics_without_chance():
  table = results.table({"a": {"miou": {"value": 0.5, "chance": None, "count": 3}}, "b": {}})
  assert table.splitlines()[2].split() == ["miou", "-", "50.0", "-", "3"]


def test_columns_of_examples_are_equally_long():
  with pytest.raises(ValueError, match="differ in length: {'a': 1, 'b': 2}"):
    Result({}, {"a": [1], "b": [1, 2]}, 2)
  assert Result({"x": Metric(1.0, None, 1)}, {}, 1).skipped == {}


def test_every_command_makes_an_evaluator_and_shows_help(capsys):
  assert isinstance(parse("records --data d"), Evaluator)
  for name in EVALUATORS:
    with pytest.raises(SystemExit) as ended:
      evaluate.main([name, "--help"])
    out = capsys.readouterr().out
    assert ended.value.code == 0 and f"python -m fgclip_jax.evaluate {name}" in out and "--output" in out
  with pytest.raises(SystemExit):
    evaluate.main(["--help"])
  out = capsys.readouterr().out
  assert all(f"\n  {name} " in out for name in EVALUATORS)


def good_result():
  metrics = {"top1": {"value": 0.5, "chance": None, "count": 4}}
  more = {"settings": {"images": "a"}, "skipped": {}, "records": 4, "notes": []}
  return {"format": results.FORMAT, "benchmark": "classify folder", "name": "mine", "metrics": metrics, **more}


@pytest.mark.parametrize("data", [b"\xef\xbb\xbf%s", "utf-16", b"%s\r\n"])
def test_result_files_that_other_programs_saved_are_read(tmp_path, data):
  text = json.dumps(good_result())
  (tmp_path / "r.json").write_bytes(text.encode("utf-16") if isinstance(data, str) else data % text.encode())
  assert "top1" in results.compare([str(tmp_path / "r.json")])


@pytest.mark.parametrize(
  "change, message",
  [
    ({"metrics": {"top1": {"value": float("nan"), "chance": None, "count": 1}}}, "'value' must be a share.*nan"),
    ({"metrics": {"top1": {"value": "0.5", "chance": None, "count": 1}}}, "'value' must be a share"),
    (
      {"metrics": {"top1": {"value": 87.5, "chance": None, "count": 1}}},
      "'value' must be a share from 0 to 1, got 87.5",
    ),
    ({"metrics": {"top1": {"value": None, "chance": None, "count": 1}}}, "'value' must be a share"),
    ({"metrics": {"top1": {"value": 0.5, "chance": True, "count": 1}}}, "'chance' must be a share"),
    ({"metrics": {"top1": {"value": 0.5, "chance": None, "count": -1}}}, "'count' must be a count"),
    ({"metrics": {"top1": {"value": 0.5, "count": 1}}}, "has no 'chance'"),
    ({"metrics": {"top1": 0.5}}, "must be an object"),
    ({"metrics": ["top1"]}, "`metrics` must be an object"),
    ({"settings": None}, "`settings` must be an object, got None: run it again"),
    ({"settings": {"limit": "all"}}, "`settings.limit` must be a count"),
    ({"skipped": {"a": "many"}}, "`skipped.a` must be a count"),
    ({"name": ["a"]}, "`name` must be text"),
    ({"format": 1}, r"is not a result file of .* \(format 2\): run it again"),
  ],
)
def test_hostile_values_of_result_files_are_named(tmp_path, change, message):
  (tmp_path / "r.json").write_text(json.dumps(good_result() | change))
  with pytest.raises(ValueError, match=f"r.json.*{message}"):
    results.compare([str(tmp_path / "r.json")])


def test_what_is_no_result_file_is_one_line(tmp_path, capsys):
  (tmp_path / "cut.json").write_text(json.dumps(good_result())[:40])
  (tmp_path / "deep.json").write_text("[" * 100_000)
  (tmp_path / "twice.json").write_text('{"format": 2, "format": 2}')
  (tmp_path / "list.json").write_text("[]")
  (tmp_path / "empty.json").write_text("")
  (tmp_path / "folder.json").mkdir()
  os.mkfifo(tmp_path / "pipe.json")
  for name in ("cut", "deep", "twice", "list", "empty", "folder", "pipe", "none"):
    assert evaluate.main(["--compare", str(tmp_path / f"{name}.json")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and f"{name}.json" in said


def test_names_in_result_files_cannot_rewrite_a_terminal(tmp_path):
  odd = good_result() | {"name": "a\x1b[2Jb" + "x" * 999, "settings": {"images": "\x1b]0;b"}, "skipped": {"\x07": 1}}
  paths = []
  for number, content in enumerate((odd, good_result() | {"name": odd["name"]})):
    (tmp_path / f"{number}.json").write_text(json.dumps(content))
    paths.append(str(tmp_path / f"{number}.json"))
  text = results.compare([*paths, *paths, paths[0]])
  assert "\x1b" not in text and "\x07" not in text and "\\x1b[2Jb" in text
  assert text.splitlines()[0].count("...") == 5  # a column for each file, also where one is given again
  assert max(map(len, text.splitlines()[:4])) < 1200


def test_outputs_are_looked_at_before_anything_is_computed(folder, tmp_path, draw, capsys):
  draw(tmp_path / "val" / "cat" / "a.jpg", 0)
  labels = tmp_path / "labels.csv"
  labels.write_text("cat/a.jpg,cat\n")
  (tmp_path / "file").write_text("")
  command = ["classify", "folder", "--model", folder, "--images", str(tmp_path / "val"), "--labels", str(labels)]
  for more, message in (
    (["--output", str(labels)], "would replace .*labels.csv"),
    (["--examples", str(tmp_path / "val" / ".." / "labels.csv")], "would replace"),
    (["--output", str(tmp_path / "val")], "would replace|is a folder"),
    (["--output", str(tmp_path)], "is a folder"),
    (["--output", str(tmp_path / "o.json"), "--examples", str(tmp_path / "o.json")], "would replace"),
    (["--output", str(tmp_path / "file" / "o.json")], "Not a directory|File exists"),
  ):
    assert evaluate.main([*command, *more]) == 1
    out, err = capsys.readouterr()
    assert re.search(f"error: .*{message}", err) and "Evaluating" not in out
  assert labels.read_text() == "cat/a.jpg,cat\n"


def test_a_full_disk_leaves_the_older_results_whole(tmp_path, monkeypatch):
  path = tmp_path / "r.json"
  results.write(str(path), good_result())
  before = path.read_bytes()

  def full(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(results.json, "dump", full)
  with pytest.raises(OSError, match="No space left on device.*r.json"):
    results.write(str(path), good_result())
  assert path.read_bytes() == before and os.listdir(tmp_path) == ["r.json"]

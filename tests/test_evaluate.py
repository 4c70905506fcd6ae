"""Evaluation of a model on a record folder: the numbers, the faults, the command, the tables."""

import dataclasses
import io
import json
import os
import pathlib
import re

import jax
import numpy as np
import pytest
from array_record.python import array_record_module
from PIL import Image

from fgclip_jax import evaluate
from fgclip_jax.data import dataset_folder, record, shards
from fgclip_jax.data import image as images
from fgclip_jax.data.dataset_folder import find_shards, shard_path
from fgclip_jax.evals.datasets.records import Examples
from fgclip_jax.evals.tasks.dataset import Records
from fgclip_jax.inference import model as api
from fgclip_jax.models import config
from fgclip_jax.models import params as parameters
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.weights import native
from tests.helpers import standin  # noqa: F401, for its file system
from tests.helpers.toy_models import init

TINY = config.preset("tiny")
PLAIN = TINY.replace(text={"long_length": None})
COLOURS = ("red", "green", "blue", "white", "black", "pink")


@pytest.fixture(scope="module")
def model():
  return api.FGCLIP(TINY, init(TINY, 0))


def picture(rng, side=32):
  file = io.BytesIO()
  Image.fromarray(rng.integers(0, 256, (side, side + 6, 3), dtype=np.uint8)).save(file, "PNG")
  return file.getvalue()


def make_record(i, rng):
  """Some records lack a caption, or regions; the box of one region has no size."""
  regions = []
  for k in range(i % 4):
    colour = COLOURS[(i + k) % len(COLOURS)]
    x, y = rng.uniform(0, 0.4, 2)
    negatives = tuple(f"a {other} ball" for other in COLOURS if other != colour)[: (i * k) % 6]
    size = 0 if i == 5 and k == 0 else 0.5
    regions.append(record.Region((x, y, x + size, y + size), f"a {colour} ball", negatives=negatives))
  return record.Record(
    id=str(i),
    image=picture(rng),
    short=f"picture {i % 9}",
    long="" if i % 5 == 4 else f"a long text about picture {i} " * 3,
    regions=tuple(regions),
  )


def write(folder, records, info=None, split="validation", shards=2):
  folder = str(folder)
  os.makedirs(folder, exist_ok=True)
  for shard in range(shards):
    writer = array_record_module.ArrayRecordWriter(shard_path(folder, "test", split, shard, shards), "group_size:1")
    for data in records[shard::shards]:
      writer.write(data if isinstance(data, bytes) else record.encode(data))
    writer.close()
  dataset_folder.write_info(folder, info or {})
  return folder


@pytest.fixture(scope="module")
def records():
  rng = np.random.default_rng(0)
  return [make_record(i, rng) for i in range(12)]


@pytest.fixture(scope="module")
def data(tmp_path_factory, records):
  return write(tmp_path_factory.mktemp("data"), records)


@pytest.fixture(scope="module")
def results(model, data):
  with pytest.warns(UserWarning, match="1 regions without a caption or without a size were left out"):
    return evaluate.evaluate(model, data)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, model):
  """The model on disk."""
  folder = tmp_path_factory.mktemp("models") / "tiny"
  native.write(str(folder), TINY, parameters.flatten(jax.device_get(model.params)))
  return str(folder)


def in_order(records):
  return records[0::2] + records[1::2]


def test_every_metric_equals_the_definition(model, records, results):
  """Everything encoded on its own, every question asked on its own."""
  records = in_order(records)
  image = model.encode_image(model.preprocess([r.image for r in records]))
  expected = {}
  for kind, texts in (("short", [r.short for r in records]), ("long", [r.long for r in records])):
    has = [i for i, text in enumerate(texts) if text]
    distinct = sorted({texts[i] for i in has})
    scores = image[has] @ model.encode_text(distinct, kind).T
    for k in (1, 5, 10):
      found = [texts[i] in [distinct[a] for a in np.argsort(-row)[:k]] for i, row in zip(has, scores, strict=True)]
      expected[f"{kind}_image_to_text_r{k}"] = (np.mean(found), len(has))
      found = [
        text in [texts[has[a]] for a in np.argsort(-row)[:k]] for text, row in zip(distinct, scores.T, strict=True)
      ]
      expected[f"{kind}_text_to_image_r{k}"] = (np.mean(found), len(distinct))
  pairs = [(r, region) for r in records for region in r.regions if region.box[0] < region.box[2]]
  feature = np.concatenate([model.encode_regions(model.preprocess(r.image), [[region.box]])[0] for r, region in pairs])
  classes = sorted({region.short for _, region in pairs})
  text = dict(zip(classes, model.encode_text(classes, "region"), strict=True))
  order = np.argsort(-(feature @ np.stack([text[name] for name in classes]).T), axis=1)
  for k in (1, 5):
    found = [region.short in [classes[a] for a in row[:k]] for (_, region), row in zip(pairs, order, strict=True)]
    expected[f"region_top{k}"] = (np.mean(found), len(pairs))
  found = [
    all(x @ text[region.short] > x @ text[wrong] for wrong in region.negatives)
    for x, (_, region) in zip(feature, pairs, strict=True)
    if region.negatives
  ]
  expected["fine_grained_top1"] = (np.mean(found), len(found))
  assert {name: metric["count"] for name, metric in results.items()} == {n: count for n, (_, count) in expected.items()}
  assert {n: metric["value"] for n, metric in results.items()} == pytest.approx(
    {n: v for n, (v, _) in expected.items()}
  )
  assert results["region_top1"]["chance"] == pytest.approx(1 / len(classes))


def test_each_question_is_told(model, records, data, results):
  """Metrics are the shares of the questions' ranks; what was predicted is the best answer."""
  report = Records(data).run(model)
  rows = [dict(zip(report.examples, row, strict=True)) for row in zip(*report.examples.values(), strict=True)]
  by_task = {task: [row for row in rows if row["task"] == task] for task in dict.fromkeys(row["task"] for row in rows)}
  for name, metric in results.items():
    task, _, k = name.rpartition("_")
    asked = by_task[task]
    assert len(asked) == metric["count"]
    assert np.mean([row["rank"] < int(k.strip("rtop")) for row in asked]) == pytest.approx(metric["value"])
    assert all(row["predicted"] == row["right"] for row in asked if row["rank"] == 0)
  images = {r.id: r for r in records}
  for row in by_task["long_image_to_text"]:
    assert row["right"] == images[row["query"]].long
    score = model.encode_image(images[row["query"]].image) @ model.encode_text(row["predicted"], "long").T
    assert row["score"] == pytest.approx(float(score[0, 0]), abs=1e-5)
  for row in by_task["short_text_to_image"]:
    assert images[row["right"]].short == row["query"] and row["predicted"] in images
  for row in by_task["fine_grained"]:
    name, box = row["query"].split(" ", 1)
    (region,) = [each for each in images[name].regions if np.allclose(each.box, json.loads(box), atol=1e-4)]
    assert region.short == row["right"] and row["predicted"] in (region.short, *region.negatives)


def test_texts_that_the_tokenizer_reads_alike_are_one(model, tmp_path):
  rng = np.random.default_rng(0)
  region = record.Region((0.0, 0.0, 0.5, 0.5), "a  Red ball", negatives=("a red ball", "A RED BALL", "a blue ball"))
  regions = (region, dataclasses.replace(region, short="&nbsp;"))
  two = [record.Record(str(i), picture(rng), f"{word} day", regions=regions) for i, word in enumerate(("a", "A"))]
  report = Records(write(tmp_path, two, shards=1)).run(model)
  assert "2 regions without a caption or without a size were left out" in report.notes
  assert report.metrics["fine_grained_top1"].chance == 1 / 2
  assert report.metrics["short_text_to_image_r1"].count == 1 and report.metrics["short_image_to_text_r1"].value == 1


def test_every_text_is_encoded_once_and_every_image_once(model, data, monkeypatch):
  calls = []

  def spy(name):
    original = getattr(api.FGCLIP, name)
    call = lambda self, *args, **options: (calls.append((name, args)), original(self, *args, **options))[1]  # noqa: E731
    monkeypatch.setattr(api.FGCLIP, name, call)

  for name in ("encode_text", "encode_image", "encode_image_and_regions"):
    spy(name)
  Records(data).run(model)
  assert [name for name, _ in calls] == ["encode_image_and_regions", "encode_text", "encode_text"]
  (_, (pixels, _)), (_, (short, kind, *_)), (_, (long, *_)) = calls
  assert len(pixels) == 12 and pixels.dtype == np.uint8 and kind == "short"
  assert len(set(short)) == len(short) == 9 + len(COLOURS) and len(set(long)) == len(long) == 10


def test_batches_change_nothing(model, data, results, monkeypatch):
  """A last batch that is not full, and batches without any region."""
  monkeypatch.setattr("fgclip_jax.inference.programs.CHUNKS", (1, 5))
  again = Records(data).run(model)
  assert {name: (m.value, m.chance, m.count) for name, m in again.metrics.items()} == {
    name: (m["value"], m["chance"], m["count"]) for name, m in results.items()
  }


def test_limit_reads_the_first_records(model, data):
  report = Records(data, limit=8).run(model)
  assert report.records == 8 and report.metrics["long_image_to_text_r1"].count == 7
  assert Records(data, limit=99).run(model).records == 12
  with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
    Records(data, limit=0).run(model)


def test_declared_region_classes_are_used(model, records, tmp_path):
  classes = [f"a {colour} ball" for colour in (*COLOURS[:4], "gold", "silver")]
  report = Records(write(tmp_path, records, {"region_classes": classes})).run(model)
  known = [region for r in records for region in r.regions if region.short in classes and region.box[0] < region.box[2]]
  assert report.metrics["region_top1"].chance == pytest.approx(1 / 6)
  assert report.metrics["region_top1"].count == len(known) > 0


def test_records_without_labels_leave_metrics_out_and_say_so(model, tmp_path):
  rng = np.random.default_rng(1)
  data = write(tmp_path, [record.Record(str(i), picture(rng), f"picture {i}") for i in range(3)])
  with pytest.warns(UserWarning) as caught:
    found = evaluate.evaluate(model, data)
  assert list(found) == [f"short_{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
  assert found["short_image_to_text_r5"] == {"value": 1.0, "chance": 1.0, "count": 3}
  said = "\n".join(str(warning.message) for warning in caught)
  for note in (
    "retrieval with long captions left out: no record has a long caption",
    "region classification left out: no record has a region",
    "fine-grained matching left out: no region has hard negatives",
  ):
    assert note in said


def test_a_plain_clip_is_measured_without_long_captions(data):
  report = Records(data).run(api.FGCLIP(PLAIN, init(PLAIN, 0)))
  assert not any(name.startswith("long") for name in report.metrics) and "region_top1" in report.metrics
  assert any("plain CLIP" in note for note in report.notes)


def test_records_that_cannot_be_used_are_counted(model, records, tmp_path):
  broken = [
    b"no record",
    record.encode(record.Record("x", b"no image", "a")),
    record.encode(record.Record("y", records[0].image[:200], "a")),
    record.encode(record.Record("z", b"", "a")),
  ]
  data = write(tmp_path, [*records[:6], *broken], shards=1)
  report = Records(data).run(model)
  assert report.skipped == {"record_unreadable": 1, "image_unreadable": 1, "image_truncated": 1, "image_empty": 1}
  assert report.records == 10 and report.metrics["short_image_to_text_r1"].count == 6
  assert report.notes[0].startswith("4 of 10 records could not be used and were skipped")
  assert "record 6 of split 'validation': record: is not a serialized record" in report.notes[0]
  only = write(tmp_path / "only", broken, shards=1)
  with pytest.raises(ValueError, match="no record of split 'validation' .* can be used: 4 of 4"):
    Records(only).run(model)


def test_a_damaged_chunk_of_a_shard_is_counted(model, records, tmp_path):
  data = write(tmp_path, records, shards=1)
  (path,) = find_shards(data, "validation")
  path = pathlib.Path(path)
  content = bytearray(path.read_bytes())
  at = content.find(records[4].image[200:240])
  assert at > 0, "the image lies uncompressed in the shard"
  content[at : at + 40] = bytes(40)
  path.write_bytes(content)
  examples = Examples(data, "validation", 32)
  assert [example.number for example in examples] == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]
  assert examples.skips.counts == {"record_corrupt": 1} and "record 4 of split 'validation'" in examples.skips.summary(
    12
  )
  assert len(list(examples)) == 11 and examples.skips.counts == {"record_corrupt": 1}, "a second pass counts anew"


def test_examples_are_the_records_in_order(records, data):
  examples = Examples(data, "validation", 16)
  found = list(examples)
  assert [example.record.id for example in found] == [r.id for r in in_order(records)]
  one = found[3]
  assert one.number == 3 and examples.read(3).image == in_order(records)[3].image
  expected = images.to_square(images.open_image(in_order(records)[3].image), 16)
  np.testing.assert_array_equal(one.pixels, expected)
  with pytest.raises(IndexError, match="no record 12 in split 'validation' of .*: it has 12"):
    examples.read(12)
  (pathlib.Path(data) / "x-broken.array_record-00000-of-00001").write_bytes(b"nothing")
  with pytest.raises(ValueError, match="split 'broken' .* has no record that can be read"):
    Examples(data, "broken", 16)


def test_a_fault_of_the_network_is_no_fault_of_a_record(model, data, monkeypatch):
  def lost(self, index):
    raise RecordError("shard_lost", "record", "its shard cannot be read (timed out)") from OSError("timed out")

  monkeypatch.setattr(shards.Records, "__getitem__", lost)
  with pytest.raises(OSError, match="record 0: .*timed out"):
    Records(data).run(model)


def test_examples_come_from_object_storage_and_from_damaged_shards(model, records, tmp_path):
  data = write(tmp_path, records)
  expected = Records(data).run(model)
  assert Records(f"stand-in://{data}").run(model).metrics == expected.metrics
  last = pathlib.Path(find_shards(data, "validation")[1])
  last.write_bytes(last.read_bytes()[:-100])
  report = Records(data).run(model)
  assert report.notes[0].startswith(f"damaged shard {last}") and report.records <= len(records)


def test_a_broken_model_is_said_to_be(model, data):
  params = parameters.flatten(model.params)
  params["vision_projection/kernel"] = params["vision_projection/kernel"] * np.float32("nan")
  with pytest.raises(ValueError, match="embeddings of 12 of 12 images are not finite: the model is broken"):
    Records(data).run(api.FGCLIP(TINY, parameters.unflatten(params)))
  params = parameters.flatten(model.params)
  params["short_projection/kernel"] = params["short_projection/kernel"] * np.float32("nan")
  with pytest.raises(ValueError, match="embeddings of 15 of 15 texts are not finite: the model is broken"):
    Records(data).run(api.FGCLIP(TINY, parameters.unflatten(params)))


def test_the_command_prints_a_table_and_writes_json(folders, data, results, tmp_path, capsys):
  output = tmp_path / "new" / "a.json"
  assert evaluate.main(["--model", folders, "--data", data, "--output", str(output), "--name", "first"]) == 0
  out = capsys.readouterr().out
  metric = results["fine_grained_top1"]
  row = next(line for line in out.splitlines() if line.startswith("region: own caption among its hard negatives"))
  assert row.split()[-3:] == [f"{100 * metric['chance']:.2f}", f"{100 * metric['value']:.1f}", str(metric["count"])]
  assert f"wrote {output}" in out and "note: 1 regions without" in out and "next: python -m fgclip_jax.show" in out
  result = json.loads(output.read_text())
  assert result["metrics"] == results and result["name"] == "first" and result["records"] == 12
  assert result["settings"] == {
    "model": folders, "data": data, "split": "validation", "limit": None, "dtype": "float32", "raw_weights": False,
    "image_size": 32, "allow": [],
  }  # fmt: skip
  assert result["benchmark"] == "records" and len(result["model"]["fingerprint"]) == 16
  assert {"fgclip_jax", "jax", "python"} <= set(result["versions"]) and result["seconds"] > 0

  result["name"], result["settings"]["limit"] = "second", 5
  del result["metrics"]["region_top1"]
  (tmp_path / "b.json").write_text(json.dumps(result))
  assert evaluate.main(["--compare", str(output), str(tmp_path / "b.json"), str(output)]) == 0
  out = capsys.readouterr().out
  head = re.split(r"  +", out.splitlines()[0].strip())
  assert head == ["chance", "first", "second", f"first ({output})", "count"]
  row = next(line for line in out.splitlines() if line.startswith("region: own caption among all classes, top 1"))
  assert row.split()[-3] == "-" and row.split()[-4] == row.split()[-2]
  assert "note: not the same limit: None, 5, None" in out


def test_the_command_says_what_is_wrong(folders, data, tmp_path, capsys):
  (tmp_path / "x.json").write_text("{")
  (tmp_path / "y.json").write_text("{}")
  for argv, message in (
    (["--model", str(tmp_path / "none"), "--data", data], "no model folder at"),
    (["--model", folders, "--data", str(tmp_path / "none")], "no data set folder at"),
    (["--model", folders, "--data", data, "--split", "test"], "no shard of split 'test' in .*'validation'"),
    (["--compare", str(tmp_path / "none.json")], "No such file"),
    (["--compare", str(tmp_path / "x.json")], "x.json' is not JSON"),
    (["--compare", str(tmp_path / "y.json")], "y.json' is not a result file"),
  ):
    assert evaluate.main(argv) == 1
    assert re.search(f"error: .*{message}", capsys.readouterr().err)
  for argv, message in (
    (["--model", folders], "the following arguments are required: --data"),
    (["--compare", "a.json", "--data", data], "--compare reads result files alone"),
    (["classfy", "imagenet"], "no command 'classfy': there are records, classify"),
  ):
    with pytest.raises(SystemExit):
      evaluate.main(argv)
    assert message in capsys.readouterr().err

"""The page, the contact sheet, and `prepare inspect`: what they show is what the data set holds."""

import dataclasses
import html.parser
import io
import itertools
import json
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from fgclip_jax.data import dataset_folder, record
from fgclip_jax.data.dataset_folder import shard_path
from fgclip_jax.data.record import Record, Region
from fgclip_jax.data.shards import Records
from fgclip_jax.data.tokenizers.clip import Tokenizer
from fgclip_jax.prepare import __main__ as prepare
from fgclip_jax.prepare import report, shard_writer
from fgclip_jax.prepare.stats import DatasetStats
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.viz import contact_sheet
from fgclip_jax.viz.contact_sheet import Sample


def make_image(size=(60, 40), colour="white"):
  file = io.BytesIO()
  Image.new("RGB", size, colour).save(file, "PNG")
  return file.getvalue()


def make_record(index=0, image=None, regions=1):
  region = Region((0.25, 0.5, 0.75, 1.0), f"a <b>dog</b> {index}", "", ("a cat",))
  made = Record(f"{index}.png", image or make_image(), f"dog & cat {index}", "", (region,) * regions, 60, 40)
  return dataclasses.replace(made, tokens=record.tokenize(made, Tokenizer()))


def write_set(folder, items, shards=2):
  """A data set of serialized or plain records."""
  cuts = [len(items) * shard // shards for shard in range(shards + 1)]
  done = []
  for shard, (begin, end) in enumerate(itertools.pairwise(cuts)):
    path = shard_path(str(folder), "toy", "train", shard, shards)
    data = [item if isinstance(item, bytes) else record.encode(item) for item in items[begin:end]]
    done.append(shard_writer.write(path, data))
  dataset_folder.add_splits(str(folder), "toy", {"train": done})
  return Records(str(folder), "train")


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (300, 10), (4, 4), (2, 500)])
def test_boxes_are_drawn_where_they_lie(size):
  box = (0.25, 0.5, 0.75, 1.0)
  drawn = np.asarray(contact_sheet.draw_boxes(Image.new("RGB", size, "white"), [Region(box, "a dog")], side=400))
  height, width = drawn.shape[:2]
  assert max(height, width) == 400
  rows, columns = np.nonzero((drawn != 255).any(axis=2))
  expected = [round(value * (side - 1)) for value, side in zip(box, (width, height) * 2, strict=True)]
  assert rows.max() == expected[3]
  assert columns.min() == min(expected[0], width - 20) or width < 60  # a narrow picture has the number beside the box
  inside = drawn[expected[1] + 20 : expected[3] - 4, expected[0] + 4 : expected[2] - 4]
  assert (inside == 255).all() or width < 60


def test_a_sheet_shows_records_that_cannot_be_shown_too():
  picture = Image.new("RGB", (60, 40))
  long = dataclasses.replace(make_record(regions=20), long="word " * 500, id="x" * 300)
  samples = [
    Sample("a, record 1", make_record(), picture),
    Sample("a, record 2", None, None, "record: cannot be read"),
    Sample("a, record 3", make_record(), None, "image: is empty"),
    Sample("a, record 4", long, picture),
    Sample("a, record 5", dataclasses.replace(make_record(), short="一只猫"), picture),
  ]
  sheets = [contact_sheet.draw(samples[:count]) for count in (1, 4, 5)]
  assert sheets[0].width < sheets[1].width == sheets[2].width
  assert sheets[1].height < sheets[2].height < 2000


class Page(html.parser.HTMLParser):
  """Checks that tags are closed in order; keeps texts and pictures."""

  def __init__(self, text):
    super().__init__()
    self.open, self.texts, self.images = [], [], []
    self.feed(text)
    assert self.open == []

  def handle_starttag(self, tag, attributes):
    if tag == "img":
      self.images.append(dict(attributes)["src"])
    elif tag not in ("meta", "rect"):
      self.open.append(tag)

  def handle_endtag(self, tag):
    if tag != "rect":
      assert self.open.pop() == tag

  def handle_data(self, data):
    self.texts.append(data)


def test_the_page_holds_counts_findings_histograms_and_samples():
  stats = DatasetStats(read=3)
  stats.add_record(make_record())
  stats.add_record(make_record(1))
  stats.add_finding("record", RecordError("image_missing", "image", "no file '<x>'"), "a.json", 7)
  stats.add_duplicates(5, RecordError("image_duplicate", "image", "is that of b"), "a.json", 8)
  samples = [Sample("a, record 1", make_record(), Image.new("RGB", (8, 8))), Sample("b", None, None, "broken & lost")]
  text = report.format_page("toy", "train", stats, samples, {"images": "/a&b"})
  page = Page(text)
  assert len(page.images) == 1
  assert page.images[0].startswith("data:image/jpeg;base64,")
  assert not re.search(r"(src|href)=.(?!data:)", text)  # nothing is loaded from elsewhere
  for expected in ("image_missing", "a.json, record 7: image no file '<x>'", "image_duplicate", "5", "dog & cat 0"):
    assert expected in page.texts
  assert {"a <b>dog</b> 0", "broken & lost", "/a&b", "boxes of an image"} <= set(page.texts)
  empty = Page(report.format_page("toy", "train", DatasetStats(), [], {}))
  assert "Nothing was left out, and there is nothing to note." in empty.texts


def test_bars_are_as_long_as_counts():
  stats = DatasetStats()
  for regions in (0, 1, 1, 1, 1, 3):
    stats.add_record(make_record(regions=regions))
  lines = report.format_histograms(stats.histograms).split("\n\n")
  chart = next(entry for entry in lines if entry.startswith("boxes of an image")).splitlines()
  assert chart[1] == "  6 in all, 0 to 3, mean 1.167"
  assert [line.split() for line in chart[2:]] == [
    ["0", "1", "16.7%", "█" * 10],
    ["1", "4", "66.7%", "█" * 40],
    ["2", "0", "0.0%"],
    ["3", "1", "16.7%", "█" * 10],
  ]


def test_every_record_is_counted_and_the_unreadable_are_named(tmp_path, monkeypatch):
  monkeypatch.setattr(report, "_RECORDS_PER_TASK", 3)
  items = [make_record(index, regions=index % 4) for index in range(9)]
  records = write_set(tmp_path, [*items[:5], b"no record", *items[5:]])
  alone = report.count_split(records, 1)
  assert alone == report.count_split(records, 2)
  assert (alone.read, alone.records, alone.regions) == (10, 9, 12)
  ((finding, count),) = alone.findings.firsts()
  assert (finding.kind, finding.scope, count) == ("record_unreadable", "record", 1)
  assert finding.place == f"{records.paths[1]}, record 0"
  written = alone.to_json()["findings"]["record_unreadable"]
  assert (written["file"], written["record"], written["loss"]) == (records.paths[1], 0, "record")
  expected = DatasetStats(read=9)
  for item in items:
    expected.add_record(item)
  assert alone.histograms == expected.histograms


def test_samples_are_the_same_for_the_same_seed(tmp_path):
  records = write_set(tmp_path, [*(make_record(index) for index in range(20)), make_record(20, b"no image")])
  places = [[sample.place for sample in contact_sheet.take(records, 5, seed)] for seed in (0, 0, 1)]
  assert places[0] == places[1] != places[2]
  everything = contact_sheet.take(records, 50)
  assert [sample.record.id for sample in everything] == [f"{index}.png" for index in range(21)]
  assert [bool(sample.fault) for sample in everything] == [False] * 20 + [True]


def test_inspect_prints_counts_and_writes_a_page(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  rows = [{"image": f"{index}.png", "short": f"dog {index}"} for index in range(5)]
  (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
  for index in range(4):
    (tmp_path / f"{index}.png").write_bytes(make_image(colour=("red", "blue", "red", "green")[index]))
  paths = ["--captions", "a.jsonl", "--images", ".", "--output", "set", "--workers", "1"]
  assert prepare.main(["pairs", *paths]) == 0
  assert "image_duplicate" in capsys.readouterr().out
  made = Page(pathlib.Path("set/report-train.html").read_text())
  assert len(made.images) == 4
  assert {"image_missing", "image_duplicate"} <= set(made.texts)
  assert prepare.main(["inspect", "set", "--workers", "1", "--samples", "2"]) == 0
  out = capsys.readouterr().out
  assert "Reading 4 records of split 'train' of set" in out
  assert "boxes of an image\n  4 in all" in out
  assert re.search(r"image_missing +record +1 ", out)
  assert "configs/clip.py" in out
  page = Page(pathlib.Path("inspect-train.html").read_text())
  assert len(page.images) == 2
  assert {"image_missing", "image_duplicate"} <= set(page.texts)
  with Image.open("inspect-train.jpg") as sheet:
    assert sheet.format == "JPEG"


def test_inspecting_what_is_not_there_is_an_error(tmp_path, capsys):
  assert prepare.main(["inspect", str(tmp_path / "nowhere")]) == 1
  assert "no data set folder" in capsys.readouterr().err


def test_duplicates_may_be_dropped(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  colours = ("red", "blue", "red", "green", "red")
  rows = [{"image": f"{index}.png", "short": f"dog {index}" if index else "..."} for index in range(5)]
  (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
  for index, colour in enumerate(colours):
    (tmp_path / f"{index}.png").write_bytes(make_image(colour=colour))
  found = []
  for workers in ("1", "2"):
    paths = ["--captions", "a.jsonl", "--images", ".", "--output", f"set{workers}", "--workers", workers]
    for _ in range(2):  # the second run finds all finished
      assert prepare.main(["pairs", *paths, "--shards", "3", "--duplicates", "drop"]) == 0
    found.append(json.loads(pathlib.Path(f"set{workers}/report-train.json").read_text()))
  assert found[0] == found[1]
  findings = {kind: (item["loss"], item["count"], item["record"]) for kind, item in found[0]["findings"].items()}
  # the first of the red ones cannot be used, so the second is the one that stays
  assert findings == {"caption_without_words": ("record", 1, 0), "image_duplicate": ("record", 1, 4)}
  assert found[0]["findings"]["image_duplicate"]["message"] == "is byte for byte that of a.jsonl, record 2"
  records = Records("set1", "train")
  assert [record.decode(records[index]).id for index in range(len(records))] == ["1.png", "2.png", "3.png"]
  assert "3 of 3 shards are finished already" in capsys.readouterr().out


def test_sets_of_captions_are_counted_and_shown(tmp_path, capsys):
  rows = [
    {
      "image": f"{number}.png",
      "short": ["a dog", "a brown dog"],
      "captions": [{"text": "dog <7>", "source": "alt_text"}],
    }
    for number in range(2)
  ]
  (tmp_path / "captions.json").write_text(json.dumps(rows))
  for number in range(2):
    Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / f"{number}.png")
  folder, page = tmp_path / "out", tmp_path / "page.html"
  captions = ("--captions", str(tmp_path / "captions.json"), "--output", str(folder))
  assert prepare.main(["pairs", *captions, "--name", "p", "--workers", "1"]) == 0
  assert "6 captions in sets" in capsys.readouterr().out
  assert prepare.main(["inspect", str(folder), "--output", str(page), "--workers", "1"]) == 0
  out = capsys.readouterr().out
  assert "sets of captions: captions of an image\n  2 in all, 3 to 3" in out
  assert "6 captions" in out and "Captions by source: alt_text 2" in out
  text = page.read_text()
  assert "<summary>3 captions</summary>" in text and "captions of source alt_text" in text
  assert '<li>dog &lt;7&gt; <span class="note">short, alt_text</span></li>' in text
  assert prepare.main(["verify", str(folder), "--workers", "1"]) == 0
  expected = "Records are of version 2: they may hold sets of captions. train has 6 captions of images and 0 of regions"
  assert expected in capsys.readouterr().out

"""Retrieval of files against numpy by hand, for every form of annotations."""

import csv
import json
import pathlib

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from fgclip_jax.evals import ImageTextRetrieval, ranking
from fgclip_jax.storage import paths

# captions of six pictures: equal ones of two pictures, one twice of the same picture, a picture without any
CAPTIONS = {
  "a/0.jpg": ["zero", "nought"],
  "a/1.jpg": ["one", "shared"],
  "2.jpg": ["shared"],
  "3.jpg": ["three", "three", "drei"],
  "4.jpg": [],
  "5.jpg": ["five"],
}


@pytest.fixture
def pairs(tmp_path, draw):
  """JSON lines, with a line that is no JSON, a picture that is missing and one that is broken."""
  for place, name in enumerate(CAPTIONS):
    draw(tmp_path / name, place)
  (tmp_path / "6.jpg").write_bytes(b"no picture")
  rows = [{"image": name, "captions": captions} for name, captions in CAPTIONS.items()]
  rows += [{"image": "6.jpg", "caption": "six"}, {"image": "none.jpg", "caption": "seven"}, {"picture": "x"}]
  lines = [json.dumps(row) for row in rows] + ["{"]
  (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
  return str(tmp_path / "pairs.jsonl")


def test_metrics_are_those_of_the_definition(model, pairs, tmp_path):
  result = ImageTextRetrieval("pairs", pairs).run(model, progress=True)
  names = [name for name in CAPTIONS if CAPTIONS[name]]
  image = model.encode_image([str(tmp_path / name) for name in names])
  texts = sorted({text for captions in CAPTIONS.values() for text in captions})
  scores = image @ model.encode_text(texts).T
  ranks = {"image_to_text": [], "text_to_image": []}
  for name, row in zip(names, scores, strict=True):
    right = max(row[texts.index(text)] for text in CAPTIONS[name])
    ranks["image_to_text"].append(sum(row[i] >= right for i, text in enumerate(texts) if text not in CAPTIONS[name]))
  for name in names:
    for text in CAPTIONS[name]:  # asked as often as it stands there
      row = scores[:, texts.index(text)]
      right = max(row[i] for i, other in enumerate(names) if text in CAPTIONS[other])
      ranks["text_to_image"].append(
        sum(row[i] >= right for i, other in enumerate(names) if text not in CAPTIONS[other])
      )
  assert [len(each) for each in ranks.values()] == [5, 9]
  for way, each in ranks.items():
    for k in (1, 5, 10):
      metric = result.metrics[f"{way}_r{k}"]
      assert (metric.value, metric.count) == (np.mean(np.asarray(each) < k), len(each))
  chance = np.mean([len(set(CAPTIONS[name])) / len(texts) for name in names])
  assert result.metrics["image_to_text_r1"].chance == pytest.approx(chance)
  assert result.metrics["text_to_image_r1"].chance == pytest.approx((7 * 1 / 5 + 2 * 2 / 5) / 9)
  assert result.skipped == {
    "caption_missing": 1, "image_unreadable": 1, "image_missing": 1, "record_wrong_form": 1, "record_not_json": 1,
  }  # fmt: skip
  assert result.records == 10 and "5 of 10 pictures could not be used" in result.notes[0]
  columns = result.examples
  assert len(columns["way"]) == 14 and columns["query"][:5] == names
  assert sorted(columns["rank"][5:].tolist()) == sorted(ranks["text_to_image"])
  for query, predicted, score in zip(columns["query"][:5], columns["predicted"], columns["score"], strict=False):
    row = scores[names.index(query)]
    assert texts[row.argmax()] == predicted and score == pytest.approx(row.max(), abs=1e-6)


def test_batches_devices_blocks_and_order_change_nothing(model, spread_model, pairs, monkeypatch):
  expected = ImageTextRetrieval("pairs", pairs).run(model).metrics
  monkeypatch.setattr("fgclip_jax.inference.programs.CHUNKS", (1, 4))
  monkeypatch.setattr(ranking.search, "__defaults__", (2,))
  for other in (model, spread_model):
    assert ImageTextRetrieval("pairs", pairs).run(other).metrics == expected
  lines = pathlib.Path(pairs).read_text().splitlines()
  pathlib.Path(pairs).write_text("\n".join([*lines[4:9], *lines[:4]]))
  assert ImageTextRetrieval("pairs", pairs).run(model).metrics == pytest.approx(expected)


def write_coco(folder):
  images = [{"id": 7 + i, "file_name": f"{i}.jpg"} for i in range(3)]
  annotations = [{"id": k, "image_id": 7 + k % 3, "caption": f"caption {k} "} for k in range(20)]
  (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
  return "captions.json", {f"{i}.jpg": [f"caption {k}" for k in range(i, 15, 3)] for i in range(3)}


def write_karpathy(folder):
  images = [
    {"filename": f"{i}.jpg", "split": "test" if i < 3 else "val", "sentences": [{"raw": f"{i} {k}"} for k in range(5)]}
    for i in range(5)
  ]
  (folder / "dataset.json").write_text(json.dumps({"images": images}))
  return "dataset.json", {f"{i}.jpg": [f"{i} {k}" for k in range(5)] for i in range(3)}


def write_karpathy_csv(folder):
  with open(folder / "flickr.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["raw", "sentids", "split", "filename", "img_id"])
    for i in range(5):
      raw = json.dumps([f'{i} "{k}"' for k in range(5)])
      writer.writerow([raw, "[0]", "test" if i < 3 else "train", f"{i}.jpg", i])
  return "flickr.csv", {f"{i}.jpg": [f'{i} "{k}"' for k in range(5)] for i in range(3)}


def write_sharegpt4v(folder):
  entries = [
    {
      "id": i,
      "image": f"{i}.jpg",
      "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": f"text {i}"}],
    }
    for i in range(3)
  ]
  (folder / "share.json").write_text(json.dumps(entries))
  return "share.json", {f"{i}.jpg": [f"text {i}"] for i in range(3)}


def write_dci(folder):
  (folder / "annotations").mkdir()
  for i in range(3):
    value = {"image": f"{i}.jpg", "short_caption": "short", "extra_caption": f"a long text {i}\n"}
    (folder / "annotations" / f"x{i}.json").write_text(json.dumps(value))
  return "annotations", {f"{i}.jpg": [f"a long text {i}"] for i in range(3)}


def write_urban1k(folder):
  (folder / "caption").mkdir()
  for i in range(3):
    (folder / "caption" / f"{i}.txt").write_text(f"street {i}\n")
  (folder / "image").symlink_to(folder)
  return ".", {f"{i}.jpg": [f"street {i}"] for i in range(3)}


def write_lines(folder):
  lines = [f"{i}.jpg#{k}\t第{i}张图片 {k}" for k in range(2) for i in range(3)]
  (folder / "pair.txt").write_text("\n".join([*lines, ""]), encoding="utf-8")
  return "pair.txt", {f"{i}.jpg": [f"第{i}张图片 {k}" for k in range(2)] for i in range(3)}


@pytest.mark.parametrize(
  "dataset, write, kind",
  [
    ("coco_cn", write_lines, "short"),
    ("flickr30k_cna", write_lines, "short"),
    ("lit_cn", write_lines, "long"),
    ("dci_cn", write_lines, "long"),
    ("docci_cn", write_lines, "long"),
    ("coco", write_coco, "short"),
    ("flickr30k", write_karpathy, "short"),
    ("flickr30k", write_karpathy_csv, "short"),
    ("sharegpt4v", write_sharegpt4v, "long"),
    ("dci", write_dci, "long"),
    ("urban1k", write_urban1k, "long"),
  ],
)
def test_every_form_of_annotations(model, tmp_path, draw, dataset, write, kind):
  for i in range(3):
    draw(tmp_path / f"{i}.jpg", i)
  name, captions = write(tmp_path)
  images = None if dataset == "urban1k" else str(tmp_path)
  evaluator = ImageTextRetrieval(dataset, str(tmp_path / name), images)
  result = evaluator.run(model)
  texts = [text for each in captions.values() for text in each]
  assert result.examples["query"] == [*captions, *texts] and result.skipped == {} and result.records == 3
  assert evaluator.settings()["kind"] == kind and evaluator.name == f"retrieve {dataset}"
  scores = model.encode_image([str(tmp_path / each) for each in captions]) @ model.encode_text(texts, kind).T
  owner = np.repeat(np.arange(3), [len(each) for each in captions.values()])
  assert result.metrics["text_to_image_r1"].value == np.mean(scores.argmax(0) == owner)
  assert result.metrics["image_to_text_r1"].value == np.mean(owner[scores.argmax(1)] == np.arange(3))
  limited = ImageTextRetrieval(dataset, str(tmp_path / name), images, limit=2).run(model)
  assert limited.metrics["image_to_text_r1"].count == 2


def test_empty_captions_of_dci_are_misses_as_in_published_numbers_or_left_out(model, tmp_path, draw):
  (tmp_path / "json").mkdir()
  for i, caption in enumerate(("a long text", "", "another one", " ", "a third")):
    draw(tmp_path / f"{i}.jpg", i)
    (tmp_path / "json" / f"{i}.json").write_text(json.dumps({"image": f"{i}.jpg", "extra_caption": caption}))
  evaluator = ImageTextRetrieval("dci", str(tmp_path / "json"), str(tmp_path))
  result = evaluator.run(model)
  assert result.metrics["text_to_image_r1"].count == result.metrics["image_to_text_r1"].count == 5
  assert evaluator.settings()["skip_empty"] is False and any("2 captions are empty" in note for note in result.notes)
  for query, rank in zip(result.examples["query"][:5], result.examples["rank"], strict=False):
    assert query not in ("1.jpg", "3.jpg") or rank >= 1  # the two are equal
  (tmp_path / "empty").mkdir()
  (tmp_path / "empty" / "0.json").write_text(json.dumps({"image": "0.jpg", "extra_caption": None}))
  with pytest.raises(ValueError, match="holds no picture with a caption"):
    ImageTextRetrieval("dci", str(tmp_path / "empty"), str(tmp_path)).run(model)
  (tmp_path / "empty" / "1.json").write_text(json.dumps({"image": "1.jpg", "caption": "x"}))
  with pytest.raises(ValueError, match="1.json: needs the key 'extra_caption', and has image, caption"):
    ImageTextRetrieval("dci", str(tmp_path / "empty"), str(tmp_path)).run(model)
  skipping = ImageTextRetrieval("dci", str(tmp_path / "json"), str(tmp_path), skip_empty=True).run(model)
  assert skipping.metrics["text_to_image_r1"].count == 3 and skipping.skipped == {"caption_missing": 2}


def test_captions_that_the_tokenizer_reads_alike_are_one(model, tmp_path, draw):
  rows = [{"image": "0.jpg", "caption": "A man  surfing."}, {"image": "1.jpg", "caption": "a man surfing."}]
  (tmp_path / "p.json").write_text(json.dumps(rows))
  for place, row in enumerate(rows):
    draw(tmp_path / row["image"], place)
  result = ImageTextRetrieval("pairs", str(tmp_path / "p.json")).run(model)
  assert result.metrics["image_to_text_r1"].value == result.metrics["text_to_image_r1"].value == 1
  assert result.metrics["text_to_image_r1"].count == 2


def test_pictures_of_sharegpt4v_may_lie_flat(model, tmp_path, draw):
  turns = [{"value": "?"}, {"value": "text"}]
  entries = [{"image": f"sam/images/{i}.jpg", "conversations": turns} for i in range(2)]
  (tmp_path / "share.json").write_text(json.dumps(entries))
  for i in range(2):
    draw(tmp_path / f"{i}.jpg", i)
  result = ImageTextRetrieval("sharegpt4v", str(tmp_path / "share.json"), str(tmp_path)).run(model)
  assert not result.skipped and result.examples["query"][:2] == ["sam/images/0.jpg", "sam/images/1.jpg"]


def test_long_captions_take_the_long_path_or_are_cut_if_asked_for(model, plain_model, tmp_path, draw):
  rows = [{"image": "0.jpg", "caption": "many words " * 60}, {"image": "1.jpg", "caption": "few words"}]
  (tmp_path / "p.json").write_text(json.dumps(rows))
  for place, row in enumerate(rows):
    draw(tmp_path / row["image"], place)
  path = str(tmp_path / "p.json")
  with pytest.raises(ValueError, match="1 of 2 texts are longer than the 77 tokens of kind='short'.*--allow cut_texts"):
    ImageTextRetrieval("pairs", path).run(model)
  assert not ImageTextRetrieval("pairs", path, kind="long").run(model).notes
  for other in (model, plain_model):
    assert "tokens were cut" in ImageTextRetrieval("pairs", path, allow=("cut_texts",)).run(other).notes[0]
  with pytest.raises(ValueError, match="77 tokens"):
    ImageTextRetrieval("pairs", path, kind="long").run(plain_model)


def test_what_is_wrong_is_said(model, tmp_path):
  for dataset, content, message in (
    ("coco", "{", "is not JSON"),
    ("coco", "{}", "needs the key 'images', and has "),
    ("coco", '{"images": [], "annotations": [{"image_id": 4}]}', "is of image 4, not listed"),
    ("coco", '{"images": [{"id": 1}], "annotations": []}', "needs the key 'file_name'"),
    (
      "coco",
      '{"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1, "id": 2}]}',
      "needs the key 'caption'",
    ),
    ("flickr30k", '{"images": [{"filename": "x"}]}', "needs the key 'split'"),
    ("flickr30k", '{"images": []}', "holds no picture with a caption of split 'test'"),
    ("sharegpt4v", '[{"image": "x"}]', "entry 0: needs the key 'conversations'"),
    (
      "pairs",
      '[{"image": "x", "caption": 3}]',
      "caption: must be text, a list of texts, or objects with `text`, got 3; the fields are",
    ),
    ("pairs", '[{"image": "none.jpg", "caption": "x"}]', "can be used: 1 of 1 pictures"),
  ):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=message):
      ImageTextRetrieval(dataset, str(tmp_path / "a.json")).run(model)
  with pytest.raises(FileNotFoundError):
    ImageTextRetrieval("dci", str(tmp_path / "none")).run(model)
  with pytest.raises(ValueError, match="dataset must be one of coco"):
    ImageTextRetrieval("flickr", "x")


def test_pictures_in_rows_and_folders_are_those_of_files(model, tmp_path, draw):
  for split in ("train", "test"):
    (tmp_path / "set" / split).mkdir(parents=True)
    for place in range(3):
      draw(tmp_path / "set" / split / f"{place}.jpg", place + (split == "train"))
    rows = [{"file_name": f"{place}.jpg", "text": f"caption {place}"} for place in range(3)]
    (tmp_path / "set" / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
  rows = [
    {
      "image": {"bytes": (tmp_path / "set" / "test" / f"{place}.jpg").read_bytes(), "path": None},
      "short": [f"caption {place}"],
    }
    for place in range(3)
  ]
  pyarrow.parquet.write_table(
    pyarrow.Table.from_pylist([*rows, {"image": {"bytes": b"", "path": None}}]), tmp_path / "a.parquet"
  )
  folder = ImageTextRetrieval("pairs", str(tmp_path / "set"), split="test").run(model)
  inside = ImageTextRetrieval("pairs", str(tmp_path / "a.parquet")).run(model)
  assert folder.metrics == inside.metrics and folder.metrics["image_to_text_r1"].count == 3
  assert folder.examples["score"].tolist() == inside.examples["score"].tolist()
  assert inside.skipped == {"record_wrong_form": 1}


def test_settings_name_only_what_is_chosen(tmp_path):
  plain = ImageTextRetrieval("pairs", "a.jsonl").settings()
  assert not {"split", "skip_empty", "image_field", "short_field", "long_field"} & set(plain)
  chosen = ImageTextRetrieval("pairs", "a.jsonl", split="val", short_field="words").settings()
  assert chosen == plain | {"split": "val", "short_field": "words"}
  assert ImageTextRetrieval("flickr30k", "a.json").settings()["split"] == "test"


def test_an_odd_line_of_a_chinese_set_is_named_with_its_file(model, tmp_path, draw):
  draw(tmp_path / "0.jpg", 0)
  path = tmp_path / "pair.txt"
  path.write_text("0.jpg\t猫\nno tab\n\tno picture\n", encoding="utf-8")
  result = ImageTextRetrieval("coco_cn", str(path), str(tmp_path)).run(model)
  assert result.skipped == {"line_wrong_form": 2} and result.records == 3
  assert any(f"{path}, line 2: needs a picture and its caption, parted by a tab" in note for note in result.notes)


@pytest.mark.parametrize(
  ("dataset", "good", "odd"),
  [
    ("flickr30k", {"split": "test", "filename": "0.jpg", "sentences": [{"raw": "a"}]}, [7, {}, {"split": "test"}]),
    (
      "karpathy",
      {"split": "test", "filename": "0.jpg", "filepath": "", "sentences": [{"raw": "a"}]},
      [
        {"split": "test", "filename": "1.jpg", "sentences": "a"},
        {"split": "test", "filename": "1.jpg", "sentences": [{"tokens": []}]},
        {"split": "test", "filename": 7, "sentences": [{"raw": "a"}]},
      ],
    ),
    (
      "sharegpt4v",
      {"image": "0.jpg", "conversations": [{"value": "?"}, {"value": "a"}]},
      [None, {"image": "1.jpg"}, {"image": "1.jpg", "conversations": [{}, {}]}],
    ),
  ],
)
def test_an_odd_entry_is_counted_and_the_rest_measured(model, tmp_path, draw, dataset, good, odd):
  entries = [odd[0], good, *odd[1:]]
  (tmp_path / "a.json").write_text(json.dumps(entries if dataset == "sharegpt4v" else {"images": entries}))
  draw(tmp_path / "0.jpg", 0)
  result = ImageTextRetrieval(dataset, str(tmp_path / "a.json"), str(tmp_path)).run(model)
  assert result.metrics["text_to_image_r1"].count == 1 and sum(result.skipped.values()) == 3 and result.records == 4


def test_odd_annotations_of_coco_are_noted_and_the_rest_measured(model, tmp_path, draw):
  """Ids of every kind; captions of no image, of none that is listed, without text, of bytes that are not UTF-8."""
  images = [{"id": 0, "file_name": "0.jpg"}, {"id": "x", "file_name": "1.jpg"}, {"id": 0, "file_name": "2.jpg"}, {}]
  captions = [(0.0, "a"), ("0", "b"), ("x", "c"), (9, "d"), (None, "e"), ([], "f"), ("x", None)]
  annotations = [{"image_id": image, "caption": caption} for image, caption in captions]
  content = json.dumps({"images": images, "annotations": [*annotations, {"image_id": 0}, 7]})
  (tmp_path / "a.json").write_bytes(content.replace('"c"', '"caf\xe9"').encode("latin-1"))
  for place in range(2):
    draw(tmp_path / f"{place}.jpg", place)
  result = ImageTextRetrieval("coco", str(tmp_path / "a.json")).run(model)
  assert result.metrics["text_to_image_r1"].count == 2 and result.records == 4
  assert result.skipped == {"image_id_twice": 1, "id_missing": 1, "caption_missing": 1}
  assert any("5 of 9 annotations could not be used" in note for note in result.notes)


def test_a_picture_whose_name_is_a_url_is_not_fetched(model, tmp_path, monkeypatch, draw):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(paths, "_resolve", None)
  draw(tmp_path / "0.jpg", 0)
  (tmp_path / "a.json").write_text(json.dumps([{"image": n, "caption": "x"} for n in ("0.jpg", "http://a.b/1.jpg")]))
  result = ImageTextRetrieval("pairs", "a.json").run(model)
  assert result.metrics["text_to_image_r1"].count == 1 and sum(result.skipped.values()) == 1

"""Compositional sets: each form against numpy by hand; ties, faults, parts of pictures."""

import json

import numpy as np
import pytest
from PIL import Image

from fgclip_jax.evals.tasks.compositional import Compositional

CAPTIONS = [
  "a dog on a mat",
  "a mat on a dog",
  "two red cats",
  "a small white horse",
  "the man eats grass",
  "a blue cup",
]


def write(path, value):
  path.write_text(json.dumps(value))
  return str(path)


@pytest.fixture
def sugarcrepe(tmp_path, draw):
  """Two categories: an object of objects as published, and a list; seven questions about four pictures."""
  for number in range(4):
    draw(tmp_path / "images" / f"{number}.png", number)
  rows = [
    {"filename": f"{n % 4}.png", "caption": CAPTIONS[n % 6], "negative_caption": CAPTIONS[(n + 1) % 6]}
    for n in range(7)
  ]
  first = write(tmp_path / "swap_obj.json", {str(n): row for n, row in enumerate(rows[:4])})
  return (first, write(tmp_path / "add_att.json", rows[4:])), str(tmp_path / "images"), rows


def check(metric, value, chance, count):
  assert (metric.value, metric.chance, metric.count) == (pytest.approx(value), pytest.approx(chance), count)


def by_hand(model, picture, captions):
  return model.encode_text(list(captions)) @ model.encode_image(picture)[0]


def test_sugarcrepe(model, sugarcrepe):
  files, images, rows = sugarcrepe
  result = Compositional("sugarcrepe", files, images).run(model, progress=True)
  tables = [by_hand(model, f"{images}/{row['filename']}", (row["caption"], row["negative_caption"])) for row in rows]
  hits = [bool(right > wrong) for right, wrong in tables]
  assert result.examples["right"].tolist() == hits
  np.testing.assert_allclose(result.examples["score"], [table[0] for table in tables], atol=1e-6)
  np.testing.assert_allclose(result.examples["best_wrong_score"], [table[1] for table in tables], atol=1e-6)
  predicted = [row["caption" if hit else "negative_caption"] for row, hit in zip(rows, hits, strict=True)]
  assert result.examples["predicted"] == predicted
  first, second = np.mean(hits[:4]), np.mean(hits[4:])
  assert list(result.metrics) == ["swap_obj_top1", "add_att_top1", "mean_of_files"]
  check(result.metrics["swap_obj_top1"], first, 0.5, 4)
  check(result.metrics["add_att_top1"], second, 0.5, 3)
  check(result.metrics["mean_of_files"], (first + second) / 2, 0.5, 2)
  assert result.records == 7 and result.skipped == {} and result.notes == ()


def test_aro_cuts_the_box_out_and_averages_over_relations(model, tmp_path, draw):
  picture = draw(tmp_path / "0.png", 0)
  boxes = [(0, 0, 10, 12), (3, 4, 12, 10), (10, 5, 40, 10)]  # the last one reaches out of the picture
  rows = [
    {
      "image_path": "0.png",
      **dict(zip(("bbox_x", "bbox_y", "bbox_w", "bbox_h"), box, strict=True)),
      "true_caption": CAPTIONS[n],
      "false_caption": CAPTIONS[n + 1],
      "relation_name": ("on", "on", "near")[n],
    }
    for n, box in enumerate(boxes)
  ]
  result = Compositional("aro", (write(tmp_path / "relation.json", rows),), str(tmp_path)).run(model)
  hits = []
  for row, (x, y, w, h) in zip(rows, boxes, strict=True):
    part = Image.open(picture).crop((x, y, x + w, y + h))
    right, wrong = by_hand(model, part, (row["true_caption"], row["false_caption"]))
    hits.append(right > wrong)
  assert result.examples["right"].tolist() == hits
  check(result.metrics["relation_top1"], np.mean(hits), 0.5, 3)
  check(result.metrics["relation_mean_per_group"], (np.mean(hits[:2]) + hits[2]) / 2, 0.5, 2)


def test_pairs_of_attributes_count_from_25_questions_on(model, tmp_path, draw):
  draw(tmp_path / "0.png", 0)
  row = {"image_path": "0.png", "true_caption": CAPTIONS[0], "false_caption": CAPTIONS[1]}
  rows = [row | {"attributes": ["red", "old"]}] * 25 + [row | {"attributes": ["new", "dry"]}] * 24
  result = Compositional("aro", (write(tmp_path / "attribution.json", rows),), str(tmp_path)).run(model)
  assert result.metrics["attribution_top1"].count == 49
  assert result.metrics["attribution_mean_per_group"].count == 1


def test_order_has_any_number_of_captions_and_leaves_equal_ones_out(model, tmp_path, draw):
  picture = draw(tmp_path / "0.png", 0)
  rows = [
    {"image": "0.png", "caption_options": [CAPTIONS[0], *CAPTIONS[2:]]},
    {"image": "0.png", "caption_options": [CAPTIONS[0], CAPTIONS[0], CAPTIONS[1]]},
    {"image": "0.png", "caption_options": [CAPTIONS[0], CAPTIONS[0]]},
  ]
  result = Compositional("aro", (write(tmp_path / "order.json", rows),), str(tmp_path)).run(model)
  scores = by_hand(model, picture, CAPTIONS)
  hits = [scores[0] > max(scores[2:]), scores[0] > scores[1]]
  assert list(result.metrics) == ["order_top1"]
  check(result.metrics["order_top1"], np.mean(hits), (1 / 5 + 1 / 2) / 2, 2)
  assert result.skipped == {"negatives_missing": 1} and result.records == 3
  assert "2 wrong captions equal the right one" in " ".join(result.notes)


def test_winoground(model, tmp_path, draw):
  for number in range(6):
    draw(tmp_path / f"p{number}.png", number)
  rows = [
    {"id": 7 + n, "image_0": f"p{2 * n}", "image_1": f"p{2 * n + 1}.png"}
    | {"caption_0": CAPTIONS[2 * n], "caption_1": CAPTIONS[2 * n + 1]}
    for n in range(3)
  ]
  path = tmp_path / "examples.jsonl"
  path.write_text("\n".join(map(json.dumps, rows)))
  result = Compositional("winoground", (str(path),), str(tmp_path)).run(model)
  text, image = [], []
  for n, row in enumerate(rows):
    captions = (row["caption_0"], row["caption_1"])
    table = np.stack([by_hand(model, str(tmp_path / f"p{2 * n + k}.png"), captions) for k in (0, 1)])
    text.append(table[0, 0] > table[0, 1] and table[1, 1] > table[1, 0])
    image.append(table[0, 0] > table[1, 0] and table[1, 1] > table[0, 1])
  group = np.logical_and(text, image)
  for kind, hits, chance in (("text", text, 1 / 4), ("image", image, 1 / 4), ("group", group, 1 / 6)):
    check(result.metrics[f"examples_{kind}"], np.mean(hits), chance, 3)
    assert result.examples[kind].tolist() == list(hits)
  assert result.examples["id"] == ["7", "8", "9"]


def test_chance_of_pairs_is_that_of_random_scores():
  scores = np.random.default_rng(0).normal(size=(200_000, 2, 2))
  text = (scores[:, 0, 0] > scores[:, 0, 1]) & (scores[:, 1, 1] > scores[:, 1, 0])
  image = (scores[:, 0, 0] > scores[:, 1, 0]) & (scores[:, 1, 1] > scores[:, 0, 1])
  assert np.mean(text) == pytest.approx(1 / 4, abs=0.005)
  assert np.mean(text & image) == pytest.approx(1 / 6, abs=0.005)


def test_a_model_that_gives_the_same_for_everything_scores_nothing(model, tmp_path, draw, monkeypatch):
  for number in range(2):
    draw(tmp_path / f"{number}.png", number)
  same = np.ones((1, model.config.embedding_width), np.float32) / model.config.embedding_width**0.5
  monkeypatch.setattr(type(model), "encode_text", lambda self, texts, *args, **options: same.repeat(len(texts), 0))
  pair = {"image_0": "0.png", "image_1": "1.png", "caption_0": "a", "caption_1": "b"}
  crepe = {"filename": "0.png", "caption": "a", "negative_caption": "b"}
  for dataset, row in (("winoground", pair), ("sugarcrepe", crepe)):
    path = write(tmp_path / f"{dataset}.json", [row])
    found = Compositional(dataset, (path,), str(tmp_path)).run(model).metrics
    scored = {name: metric.value for name, metric in found.items() if not name.endswith("image")}
    assert scored and not any(scored.values())


def test_what_cannot_be_used_is_counted(model, tmp_path, draw):
  draw(tmp_path / "0.png", 0)
  (tmp_path / "broken.png").write_bytes(b"broken")
  row = {"image_path": "0.png", "true_caption": "a dog", "false_caption": "a cat"}
  box = {"bbox_x": 1, "bbox_y": 1, "bbox_w": 5, "bbox_h": 5}
  rows = [
    row | box,
    row | {"image_path": "missing.png"},
    row | box | {"image_path": "missing.png"},
    row | box | {"image_path": "broken.png"},
    row | box | {"bbox_w": 0},
    row | box | {"bbox_x": 500},
    row | {"true_caption": " "},
    {"image_path": "0.png"},
    "no object",
  ]
  result = Compositional("aro", (write(tmp_path / "aro.json", rows),), str(tmp_path)).run(model)
  assert result.metrics["aro_top1"].count == 1 and result.records == 9
  assert result.skipped == {"box_without_size": 1, "question_broken": 3, "question_without_picture": 4}
  said = " ".join(result.notes)
  assert "missing.png" in said and "broken.png" in said and "aro.json, question 4" in said
  assert "4 of 5 pictures" in said and "box_outside 1" in said


def test_errors(model, tmp_path, draw):
  draw(tmp_path / "0.png", 0)
  path = write(tmp_path / "a.json", [{"filename": "0.png", "caption": "a", "negative_caption": "word " * 90}])
  with pytest.raises(ValueError, match="--allow cut_texts"):
    Compositional("sugarcrepe", (path,), str(tmp_path)).run(model)
  assert Compositional("sugarcrepe", (path,), str(tmp_path), allow=("cut_texts",)).run(model).notes
  with pytest.raises(ValueError, match="no picture of .* can be used"):
    Compositional("sugarcrepe", (path,), str(tmp_path / "none"), allow=("cut_texts",)).run(model)
  with pytest.raises(ValueError, match="no question of .* not the expected fields"):
    Compositional("winoground", (path,), str(tmp_path)).run(model)
  (tmp_path / "b.json").write_text('{"0": {"filename": "0.png", "capt')
  with pytest.raises(ValueError, match="b.json is broken"):
    Compositional("sugarcrepe", (str(tmp_path / "b.json"),), str(tmp_path)).run(model)
  with pytest.raises(ValueError, match="two files are called 'a'"):
    Compositional("sugarcrepe", (path, "other/a.json"), str(tmp_path))
  with pytest.raises(ValueError, match="dataset must be one of sugarcrepe, aro, winoground"):
    Compositional("crepe", (path,), str(tmp_path))
  with pytest.raises(ValueError, match="limit must be at least 1"):
    Compositional("sugarcrepe", (path,), str(tmp_path), limit=0).run(model)


def test_odd_questions_are_counted_and_the_others_asked(model, tmp_path, draw):
  """Texts where lists are meant, boxes of no size or of any size, names that no file can have."""
  draw(tmp_path / "0.png", 0)
  good = {"image_path": "0.png", "true_caption": "a b", "false_caption": "b a", "relation_name": "on"}
  box = {"bbox_x": 0, "bbox_y": 0, "bbox_w": 9, "bbox_h": 9}
  odd = [
    good | {"attributes": "red"}, good | {"relation_name": 3}, good | {"true_caption": None}, good | {"image_path": 7},
    good | box | {"bbox_w": float("inf")}, good | box | {"bbox_x": float("nan")}, good | {"bbox_x": 1},
    {"image_path": "0.png", "caption_options": "ab"}, {"filename": "0.png"}, None, [1], "question",
  ]  # fmt: skip
  lost = [good | {"image_path": "a\0b.png"}, good | box | {"bbox_w": 1e9, "bbox_h": 1e9}, good | {"image_path": "."}]
  path = write(tmp_path / "a.json", [good, *odd, good | box | {"bbox_h": 0}, *lost])
  result = Compositional("aro", (path,), str(tmp_path)).run(model)
  assert result.records == 17 and result.metrics["a_top1"].count == 1
  assert result.skipped == {"question_broken": 12, "box_without_size": 1, "question_without_picture": 3}

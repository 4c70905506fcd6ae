"""FG-OVD: scores against brute force and the recorded features, and every row of the published files."""

import json
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import fgclip_jax
from fgclip_jax.evals import guards, ranking
from fgclip_jax.evals.tasks import fgovd
from fgclip_jax.storage.skip_report import SkipReport
from tests.helpers.region_sets import model, write_pictures

# rows, and those with fewer than ten different wrong texts
FILES = {
  "h_attributes_llava": ("hard", 3545, 37),
  "m_attributes_llava": ("medium", 2968, 4),
  "e_attributes_llava": ("easy", 1299, 0),
  "shuffle_negatives_llava": ("trivial", 3545, 37),
}


def unit(x):
  return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def write_rows(path, rows):
  common = {"bbox": [4, 3, 20, 15], "width": 40, "height": 30, "test_type": "1_attributes", "img_path": "a.png"}
  path.write_text("".join(json.dumps(common | row) + "\n" for row in rows))
  return str(path)


def row(positive, *negatives, **more):
  return {"pos_expression": [positive], "neg_expression": list(negatives), **more}


@pytest.mark.parametrize(
  ("positive", "negative", "kind"),
  [
    ("A red cup.", "A dark blue cup.", "colour"),
    ("A light blue cup.", "A dark blue cup.", "colour"),
    ("A blue cup.", "A dark blue cup.", "colour"),
    ("A cup made of wood.", "A cup made of text.", "material"),
    ("A striped cup.", "A dotted cup.", "pattern"),
    ("An opaque cup.", "A transparent cup.", "transparency"),
    ("A red cup made of wood.", "A blue cup made of stone.", "several"),
    ("A hat of newspaper.", "A hat of newsplastic.", "material"),
    ("A cup.", "A dog.", "other"),
    ("A cup.", "a  cup", "other"),
  ],
)
def test_kinds_of_attributes(positive, negative, kind):
  assert fgovd.attribute_kind(positive, negative) == kind


@given(seed=st.integers(0, 1000), rows=st.integers(1, 9), width=st.integers(1, 5), block=st.integers(1, 10))
def test_who_is_beaten(seed, rows, width, block):
  rng = np.random.default_rng(seed)
  text = unit(rng.normal(size=(6, 4)))
  text[5] = text[0]  # equal texts tie
  region = unit(rng.normal(size=(rows, 4)))
  region[0] = np.nan if seed % 3 == 0 else region[0]
  positive, negatives = rng.integers(0, 6, rows), rng.integers(-1, 6, (rows, width))
  beaten, score, predicted = ranking.beaten_by(region, text, positive, negatives, block)
  for at in range(rows):
    true = text[positive[at]] @ region[at]
    np.testing.assert_allclose(score[at], true, atol=1e-6)
    for column, negative in enumerate(negatives[at]):
      wins = negative >= 0 and not text[negative] @ region[at] < true - ranking.TIE
      assert beaten[at, column] == wins
    if not beaten[at].any():
      assert predicted[at] == positive[at]
    elif np.isfinite(true):
      valid = [negative for negative in negatives[at] if negative >= 0]
      assert text[predicted[at]] @ region[at] == pytest.approx(max(text[valid] @ region[at]), abs=1e-6)


def test_predictions_are_those_of_the_recorded_features(oracle):
  for name in ("fgclip_p16", "fgclip_p14"):
    folder = oracle / name
    found = fgclip_jax.load(folder / "checkpoint")
    inputs, outputs = (np.load(folder / f"{part}.npz") for part in ("inputs", "outputs"))
    images = inputs["image"].transpose(0, 2, 3, 1)
    counts = inputs["hard_nums"].reshape(-1)
    hard = inputs["hard_infos"].reshape(len(images), -1, 4)
    regions = found.encode_regions(images, [list(each[:count]) for each, count in zip(hard, counts, strict=True)])
    texts = found.encode_text(inputs["hard_texts"], "region")
    every = inputs["box_infos"].reshape(len(images), -1, 4)
    roi = outputs["roi_features"].reshape(*every.shape[:2], -1)
    recorded = np.concatenate(
      [
        [roi[image][np.flatnonzero((every[image] == box).all(1))[0]] for box in hard[image, :count]]
        for image, count in enumerate(counts)
        if count
      ]
    )
    theirs = np.einsum("nd,nkd->nk", unit(recorded), unit(outputs["hard_text_features"]).reshape(len(recorded), 11, -1))
    places = np.arange(theirs.size).reshape(theirs.shape)
    beaten, score, predicted = ranking.beaten_by(np.concatenate(regions), texts, places[:, 0], places[:, 1:])
    assert len(recorded) == counts.sum() > 1
    np.testing.assert_array_equal(predicted, places[np.arange(len(places)), theirs.argmax(1)])
    np.testing.assert_array_equal(beaten, theirs[:, 1:] >= theirs[:, :1])
    np.testing.assert_allclose(score, theirs[:, 0], atol=1e-5)


@pytest.mark.parametrize("name", FILES)
def test_every_row_of_the_published_files_can_be_asked(shared, name):
  level, count, fewer = FILES[name]
  skips = SkipReport()
  rows, read = fgovd.read_rows(str(shared / "data" / "fgovd" / f"{name}.jsonl"), skips)
  assert len(rows) == read == count and not skips.counts and {each.level for each in rows} == {level}
  assert sum(len(each.negatives) < 10 for each in rows) == fewer


@pytest.mark.slow
def test_every_row_is_scored(shared, tmp_path, monkeypatch):
  """Of all four files, with small noise for pictures, and random vectors for texts: there are 68,000."""
  files = [str(shared / "data" / "fgovd" / f"{name}.jsonl") for name in FILES]
  rows = [json.loads(line) for file in files for line in pathlib.Path(file).read_text().splitlines()]
  noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8))
  for path in {each["img_path"] for each in rows}:
    (tmp_path / path).parent.mkdir(exist_ok=True)
    noise.save(tmp_path / path, format="BMP")
  given_texts = []

  def encode_texts(model, texts, *_):
    given_texts.extend(texts)
    return unit(np.random.default_rng(1).normal(size=(len(texts), model.config.embedding_width))), []

  monkeypatch.setattr(guards, "encode_texts", encode_texts)
  result = fgovd.FgOvd(tuple(files), str(tmp_path)).run(model())
  assert result.records == len(rows) == len(result.examples["row"]) and result.skipped == {}
  assert len(given_texts) == len(set(given_texts))
  assert {f"fgovd_{level}_top1": count for level, count, _ in FILES.values()} == {
    name: metric.count for name, metric in result.metrics.items() if name.count("_") == 2
  }
  place = {text: number for number, text in enumerate(given_texts)}
  text = encode_texts(model(), list(given_texts))[0]
  some = np.random.default_rng(2).choice(len(rows), 40, replace=False)
  for number in some:
    given_row = rows[number]
    left, top, width, height = given_row["bbox"]
    size = [given_row["width"], given_row["height"]] * 2
    box = np.clip(np.asarray([left, top, left + width, top + height]) / size, 0, 1)
    region = model().encode_regions(noise, [[box]])[0][0]
    names = [given_row["pos_expression"][0], *given_row["neg_expression"]]
    scores = text[[place[name] for name in names]] @ region
    assert result.examples["predicted"][number] == names[scores.argmax()]


def test_rows_that_cannot_be_scored_are_counted(tmp_path):
  write_pictures(tmp_path, ["a.png", "b.png"])
  good = row(
    "A red wooden cup.", "A blue wooden cup.", "A red wooden cup.", "A red stone cup."
  )  # one wrong text is the right one
  rows = [
    good,
    good | {"img_path": "gone.png"},
    row("A red cup.", "A red cup."),
    row("A red cup.", "A blue cup.", bbox=[50, 3, 20, 15]),
    row("A red cup.", ""),
    {"bbox": [1, 2, 3]},
    good | {"img_path": "b.png", "test_type": "3_attributes"},
  ]
  path = write_rows(tmp_path / "rows.jsonl", rows)
  evaluator = fgovd.FgOvd((path,), str(tmp_path))
  result = evaluator.run(model())
  assert result.records == 7 and result.examples["row"] == [0, 6]
  expected = {"row_without_negatives": 1, "box_without_size": 1, "row_broken": 2, "row_without_image": 1}
  assert result.skipped == expected
  assert any("rows.jsonl, row 2" in note for note in result.notes) and any("gone.png" in note for note in result.notes)
  assert result.metrics["fgovd_hard_top1"].chance == pytest.approx(1 / 3)
  assert result.metrics["fgovd_hard_colour_top1"].chance == 0.5 and result.metrics["fgovd_easy_top1"].count == 1
  assert fgovd.FgOvd((path,), str(tmp_path), limit=1).run(model()).records == 1
  with pytest.raises(ValueError, match="none of 1 images could be used"):
    fgovd.FgOvd((path,), str(tmp_path / "elsewhere"), limit=1).run(model())
  bad = write_rows(tmp_path / "bad.jsonl", rows[2:3])
  with pytest.raises(ValueError, match=r"no row of .*bad\.jsonl can be used: 1 of 1 rows"):
    fgovd.FgOvd((bad,), str(tmp_path)).run(model())


def test_a_text_that_is_too_long_is_refused(tmp_path):
  write_pictures(tmp_path, ["a.png"])
  path = write_rows(tmp_path / "rows.jsonl", [row("A red cup. " * 40, "A blue cup.")])
  with pytest.raises(ValueError, match="--allow cut_texts"):
    fgovd.FgOvd((path,), str(tmp_path)).run(model())
  result = fgovd.FgOvd((path,), str(tmp_path), allow=("cut_texts",)).run(model())
  assert result.metrics["fgovd_hard_top1"].count == 1 and any("were cut" in note for note in result.notes)


def test_odd_rows_are_counted_by_kind_and_the_others_measured(tmp_path):
  """Among them texts where lists are meant, whose letters would pass for wrong texts without a word."""
  good = row("a red cup", "a blue cup")
  odd = [
    row("a red cup", "b") | {"neg_expression": "a blue cup"}, row("x", "b") | {"pos_expression": "x"},
    row("a", None), row("a", "b", bbox=[1, 2]), row("a", "b", bbox=None), row("a", "b", width=0),
    row("a", "b", height="x"), row("a", "b", test_type=["hard"]),
    row("a", "b", img_path=None), row("a", "b", width=float("inf")),
    row("a", {"text": "b"}),
  ]  # fmt: skip
  path = write_rows(tmp_path / "h.jsonl", [good, *odd])
  with open(path, "ab") as file:
    file.write(b'\n[1]\nnull\n7\n{"pos": 1}\n{broken\n\xff\xfe\n')
  skips = SkipReport()
  found, read = fgovd.read_rows(path, skips)
  assert [each.positive for each in found] == ["a red cup"] and read == 18
  assert skips.counts == {"row_broken": 15, "record_not_json": 1, "record_not_utf8": 1}
  (tmp_path / "i.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
  with pytest.raises(ValueError, match="row 0: .*has no 'width', but images, annotations, categories"):
    fgovd.FgOvd((str(tmp_path / "i.json"),), str(tmp_path)).run(model())

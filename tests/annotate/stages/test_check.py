"""Hard negatives compared with their regions by a model of this project."""

import collections
import json

import numpy as np
import pytest
from PIL import Image

from fgclip_jax.annotate import __main__ as annotate
from fgclip_jax.annotate.boxes.own import Own
from fgclip_jax.annotate.draft import Draft, Region
from fgclip_jax.annotate.items import Item
from fgclip_jax.annotate.journal import Outcome
from fgclip_jax.annotate.stages import check
from fgclip_jax.annotate.stages.check import Check
from fgclip_jax.models.config import preset
from fgclip_jax.models.params import flatten
from fgclip_jax.weights import formats
from tests.helpers.toy_models import init

TINY = preset("tiny")
PHRASES = ("a red leather sofa", "a small wooden box")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
  folder = str(tmp_path_factory.mktemp("check") / "model")
  formats.write(folder, "jax", TINY, {name: np.asarray(value) for name, value in flatten(init(TINY, 0)).items()})
  return folder


@pytest.fixture
def photos(tmp_path):
  """Three pictures, the last without a region."""
  folder = tmp_path / "photos"
  folder.mkdir()
  lines = []
  for number in range(3):
    Image.new("RGB", (96, 64), (80 * number, 90, 30)).save(folder / f"{number}.png")
    regions = [{"box": [0.1, 0.1, 0.6, 0.9], "short": text} for text in PHRASES[: 2 - number]]
    lines.append({"image": f"{number}.png", "long": "A room with a sofa.", "regions": regions})
  (tmp_path / "known.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return folder


def run(photos, output: str, *options: str) -> dict:
  base = photos.parent
  given = ["--images", photos, "--known", base / "known.jsonl", "--output", base / output, "--workers", "1", *options]
  assert annotate.main([str(each) for each in given]) == 0
  return json.loads((base / output / "report-annotate.json").read_text())


def written(photos, output: str) -> list[str]:
  files = sorted((photos.parent / output / "annotations").iterdir())
  lines = [json.loads(line) for path in files for line in path.read_text().splitlines()]
  return [text for line in lines for region in line.get("regions", ()) for text in region.get("negatives", ())]


def test_the_counts_add_up_and_nothing_is_compared_twice(photos, model, monkeypatch):
  options = ("--check", f"own:{model}")
  report = run(photos, "out", *options, "--check_margin", "0")
  counts, negatives = report["counts"], written(photos, "out")
  assert counts["check.negatives"] == len(negatives) == 30
  assert counts["check.not_higher"] + counts["check.noted"] == 30 and counts["check.noted"] > 0
  histogram = report["histograms"]["negative_less_positive_cosine"]
  assert sum(histogram["counts"]) == 30
  listed = report["scores_higher"]
  assert len(listed) == counts["check.noted"] and listed[0]["difference"] == max(each["difference"] for each in listed)
  assert {each["negative"] for each in listed} <= set(negatives)

  def compare(*_):
    raise AssertionError("all is answered")

  monkeypatch.setattr(check, "compare_regions", compare)
  again = run(photos, "out", *options, "--check_margin", "0", "--check_reject")
  left = written(photos, "out")
  assert again["counts"]["check.rejected"] == counts["check.noted"]
  assert len(left) == 30 - counts["check.noted"]
  assert sorted([*left, *(each["negative"] for each in listed)]) == sorted(negatives)
  assert again["scores_higher"] == listed and again["histograms"]["negative_less_positive_cosine"] == histogram


def test_cosines_are_those_of_the_region_and_the_texts(photos, model):
  import fgclip_jax

  draft = Draft(Item("0.png", str(photos)), "digest", 96, 64)
  draft.regions = [Region((0.0, 0.0, 0.5, 1.0), "a red sofa", negatives=["a blue sofa", "a green sofa"])]
  stage = Check(Own(model))
  (task,) = stage.tasks(draft)
  (outcome,) = stage.run([task], 0)
  loaded = fgclip_jax.load(model)
  (features,) = loaded.encode_regions([(photos / "0.png").read_bytes()], [np.asarray([[0, 0, 0.5, 1]], np.float32)])
  texts = loaded.encode_text(["a red sofa", "a blue sofa", "a green sofa"], kind="region")
  np.testing.assert_allclose(outcome.value["cosines"], features @ texts.T, atol=1e-5)


@pytest.mark.parametrize(("reject", "left"), [(False, ["b", "c", "b"]), (True, ["c"])])
def test_a_negative_above_the_margin_scores_higher(reject, left):
  draft, tally = Draft(Item("0.png", "photos")), collections.Counter()
  draft.regions = [Region((0.0, 0.0, 1.0, 1.0), "a"), Region((0.0, 0.0, 1.0, 1.0), "a", negatives=["b", "c", "b"])]
  stage = Check(Own("model"), 0.1, reject)
  stage.apply(draft, {"key": Outcome("key", {"cosines": [[0.25, 0.5, 0.35, 0.5]]})}, tally)
  assert draft.regions[1].negatives == left and draft.regions[1].higher == {"b": 0.25}
  kind = "rejected" if reject else "noted"
  assert tally == {"check.negatives": 3, "check.not_higher": 1, f"check.{kind}": 2}


def test_a_picture_that_cannot_be_read_fails_alone(photos, model):
  (photos / "broken.png").write_bytes(b"no picture")
  drafts = []
  for name in ("0.png", "broken.png"):
    draft = Draft(Item(name, str(photos)), name, 96, 64)
    draft.regions = [Region((0.0, 0.0, 0.5, 1.0), "a red sofa", negatives=["a blue sofa"])]
    drafts.append(draft)
  stage = Check(Own(model))
  tasks = [task for draft in drafts for task in stage.tasks(draft)]
  outcomes = {outcome.key: outcome for outcome in stage.run(tasks, 0)}
  assert len(outcomes[tasks[0].key].value["cosines"][0]) == 2
  assert outcomes[tasks[1].key].failure == "image_unreadable"
  tally = collections.Counter()
  stage.apply(drafts[1], {tasks[1].key: outcomes[tasks[1].key]}, tally)
  assert tally["check.negatives"] == tally["check.failed_negatives"] == 1 and drafts[1].regions[0].negatives


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--check", "other:model"], "--check must be own:MODEL"),
    (["--check", "own:nowhere/model"], "--check own: no model at"),
    (["--check_reject"], "--check_reject needs --check"),
    (["--check", "own:model", "--check_margin", "nan"], "--check_margin must be a number"),
  ],
)
def test_wrong_options(photos, capsys, options, message):
  base = photos.parent
  assert annotate.main(["--images", str(photos), "--output", str(base / "out"), *options]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1

"""Batch size, number of devices and order of the data change no result: the benchmarks of boxes, compositional sets and
the linear probe."""

import json

import numpy as np
import pytest

from fgclip_jax.evals import BoxClassification, Compositional, FgOvd, LinearProbe
from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.models import config
from tests.helpers.region_sets import write_coco
from tests.helpers.toy_models import init

COUNT = 7  # of pictures: with batches of four, the last batch is filled up
COLOURS, THINGS = ("red", "dark blue"), ("cup", "dog on a mat", "horse", "hat")
CAPTIONS = [f"a {colour} {thing}" for colour in COLOURS for thing in THINGS]


def draw_pictures(folder, draw, turned, seed=0):
  """Pictures whose names end with their numbers, and sort in their order or the other way round; returns the names."""
  names = [f"{COUNT - number if turned else number}_{number}.png" for number in range(COUNT)]
  for number, name in enumerate(names):
    draw(folder / name, seed + number)
  return names


def write(path, rows, turned):
  path.write_text(json.dumps(rows[::-1] if turned else rows))
  return str(path)


def boxes(folder, draw, turned):
  names = draw_pictures(folder, draw, turned)
  rng = np.random.default_rng(0)
  images = [(COUNT - number if turned else number, name) for number, name in enumerate(names)]
  rows = []
  for number, (image, _) in enumerate(images):
    for place in range(1 + number % 3):
      box = [*rng.uniform(0, 200, 2), *rng.uniform(50, 200, 2)]
      rows.append((10 * number + place, image, int(rng.integers(1, 5)), box, {}))
  path = write_coco(folder / "a.json", images, rows[::-1] if turned else rows, ["cat", "dog", "cup", "hat"], "rcff")
  return BoxClassification(path, str(folder), templates="openai7")


def fgovd(folder, draw, turned):
  rows = [
    {"bbox": [4, 3, 20 - number, 15], "width": 40, "height": 30, "test_type": "1_attributes", "img_path": name}
    | {"pos_expression": CAPTIONS[number : number + 1], "neg_expression": wrong(number, turned)}
    for number, name in enumerate(draw_pictures(folder, draw, turned))
  ]
  lines = [json.dumps(row) + "\n" for row in rows]
  (folder / "rows.jsonl").write_text("".join(lines[::-1] if turned else lines))
  return FgOvd((str(folder / "rows.jsonl"),), str(folder))


def aro(folder, draw, turned):
  rows = [
    {"image": name, "caption_options": [CAPTIONS[number], *wrong(number, turned)]}
    for number, name in enumerate(draw_pictures(folder, draw, turned))
  ]
  return Compositional("aro", (write(folder / "order.json", rows, turned),), str(folder))


def winoground(folder, draw, turned):
  names = draw_pictures(folder, draw, turned)
  rows = [
    {"id": number, "image_0": name, "image_1": names[number - 1]}
    | {"caption_0": CAPTIONS[number], "caption_1": CAPTIONS[number + 1]}
    for number, name in enumerate(names)
  ]
  return Compositional("winoground", (write(folder / "rows.json", rows, turned),), str(folder))


def probe(folder, draw, turned):
  """With a validation split: without one, which pictures are held out is drawn by their places."""
  for seed, split in enumerate(("train", "validation", "test")):
    for label in (0, 1):
      draw_pictures(folder / split / f"class {label}", draw, turned, 100 * seed + 20 * label)
  return LinearProbe("folder", str(folder / "train"), str(folder / "test"), str(folder / "validation"))


def wrong(number, turned):
  others = CAPTIONS[number + 1 :] + CAPTIONS[: number // 2]
  return others[::-1] if turned else others


# what makes it, the columns of examples that name a question, and those that answer it
CASES = {
  "boxes": (boxes, ("box",), ("predicted", "rank")),
  "fgovd": (fgovd, ("text",), ("predicted", "rank")),
  "aro": (aro, ("caption",), ("predicted", "right")),
  "winoground": (winoground, ("id",), ("text", "image", "group")),
  "probe": (probe, ("class", "id"), ("predicted", "right")),
}


def answers(result, keys, columns):
  names = zip(*([str(value).rpartition("_")[2] for value in result.examples[key]] for key in keys), strict=True)
  rows = zip(*(result.examples[column] for column in columns), strict=True)
  return dict(zip(names, rows, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_batches_and_devices_and_order_change_nothing(name, model, spread_model, tmp_path, draw, monkeypatch):
  make, keys, columns = CASES[name]
  evaluator, turned = make(tmp_path / "there", draw, False), make(tmp_path / "back", draw, True)
  expected = evaluator.run(model)
  results = [turned.run(model), evaluator.run(spread_model)]
  monkeypatch.setattr("fgclip_jax.inference.programs.CHUNKS", (1, 4))
  assert model.batch_size == 4
  results.append(evaluator.run(model))
  found = answers(expected, keys, columns)
  assert len(found) == len(expected.examples[columns[0]]) >= COUNT and len(set(found.values())) > 1
  for result in results:
    assert answers(result, keys, columns) == found
    assert result.metrics.keys() == expected.metrics.keys()
    for key, metric in expected.metrics.items():
      assert result.metrics[key].count == metric.count
      assert result.metrics[key].value == pytest.approx(metric.value)
      assert result.metrics[key].chance == pytest.approx(metric.chance)


@pytest.fixture(scope="module")
def fgclip2():
  size = config.preset("tiny_fgclip2")
  return FGCLIP(size, init(size, 0))


@pytest.mark.parametrize("name", CASES)
def test_models_for_pictures_of_any_shape_run_all_of_them(name, fgclip2, tmp_path, draw):
  make, keys, columns = CASES[name]
  evaluator, turned = make(tmp_path / "there", draw, False), make(tmp_path / "back", draw, True)
  expected = evaluator.run(fgclip2)
  assert len(expected.examples[columns[0]]) >= COUNT
  assert answers(turned.run(fgclip2), keys, columns) == answers(expected, keys, columns)

"""Boxes by a model of this project."""

import io
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from fgclip_jax.annotate.boxes import own
from fgclip_jax.annotate.boxes.backend import Question
from fgclip_jax.models.config import preset
from fgclip_jax.models.params import flatten
from fgclip_jax.weights import formats
from tests.helpers.toy_models import init

TINY = preset("tiny")


def picture(colour: str) -> bytes:
  file = io.BytesIO()
  Image.new("RGB", (40, 20), colour).save(file, "PNG")
  return file.getvalue()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
  folder = str(tmp_path_factory.mktemp("own") / "model")
  formats.write(folder, "jax", TINY, params())
  return folder


def params() -> dict[str, np.ndarray]:
  return {name: np.asarray(value) for name, value in flatten(init(TINY, 0)).items()}


@given(arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.floats(0, 1)))
def test_the_best_rectangle_is_that_of_all(chance):
  rows, columns = chance.shape
  box, mean = own.best_rectangle(chance)
  excess = chance - (chance.min() + own.SHARE * (chance.max() - chance.min()))
  sums = {
    (left, top, right, bottom): excess[top:bottom, left:right].sum()
    for top, bottom in itertools.combinations(range(rows + 1), 2)
    for left, right in itertools.combinations(range(columns + 1), 2)
  }
  left, top, right, bottom = (round(value * side) for value, side in zip(box, (columns, rows) * 2, strict=True))
  assert sums[left, top, right, bottom] == pytest.approx(max(sums.values()), abs=1e-9)
  assert mean == pytest.approx(chance[top:bottom, left:right].mean())


def test_a_bright_place_is_found():
  chance = np.full((8, 10), 0.05)
  chance[2:5, 6:9] = 0.9
  box, mean = own.best_rectangle(chance)
  assert box == (0.6, 0.25, 0.9, 0.625) and mean == pytest.approx(0.9)


def test_each_phrase_has_its_best_box(model):
  detector = own.Own(model)
  questions = [
    Question("one", picture("red"), (40, 20), ("a dog", "a cat", "a car")),
    Question("two", picture("blue"), (40, 20), ("a tree",)),
    Question("broken", b"no picture", (40, 20), ("a tree",)),
  ]
  found = {each.key: each for each in detector.locate(questions)}
  assert [each.phrase for each in found["one"].found] == [0, 1, 2] and len(found["two"].found) == 1
  for each in (*found["one"].found, *found["two"].found):
    x, y, u, v = each.box
    assert 0 <= x < u <= 1 and 0 <= y < v <= 1 and 0 < each.score < 1
  assert found["broken"].failure == "image_unreadable"
  alone = next(iter(detector.locate(questions[1:2])))
  np.testing.assert_allclose(alone.found[0].box, found["two"].found[0].box, atol=1e-5)


def test_a_signature_is_that_of_the_weights(model, tmp_path):
  other = str(tmp_path / "other")
  flat = params()
  name = next(iter(flat))
  formats.write(other, "jax", TINY, flat | {name: flat[name] + 1})
  assert own.Own(model).signature()["weights"] != own.Own(other).signature()["weights"]

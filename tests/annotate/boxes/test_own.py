"""Boxes by a model of this project."""

import io

import numpy as np
import pytest
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


def test_windows_cover_a_picture_in_several_sizes_and_shapes():
  windows = own.windows()
  assert windows.min() == 0 and windows.max() == 1 and (windows[:, :2] < windows[:, 2:]).all()
  assert 100 < len(windows) == len({tuple(box) for box in windows.tolist()}) < 1000
  centres = (windows[:, :2] + windows[:, 2:]) / 2
  for place in np.random.default_rng(0).uniform(0.1, 0.9, (50, 2)):
    assert np.abs(centres - place).max(1).min() < 0.1
  around = own.around(windows[len(windows) // 2])
  assert len(around) == len(own._FINER) and (around[:, :2] < around[:, 2:]).all()


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

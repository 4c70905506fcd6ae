"""A real detector, of others, by `command:` on real photographs: `tests/helpers/ssd_detector.py` says what it is.

Skipped unless `FGCLIP_OBJECTRON` names the folder of the npm package `@mediapipe/objectron@0.4.1675468480`, unpacked,
and `FGCLIP_LITERT_PYTHON` a Python that has `ai-edge-litert`, numpy and Pillow:

  npm pack @mediapipe/objectron@0.4.1675468480 && tar xf mediapipe-objectron-*.tgz
  python -m venv litert && litert/bin/pip install ai-edge-litert numpy pillow
  FGCLIP_OBJECTRON=package FGCLIP_LITERT_PYTHON=litert/bin/python pytest tests/annotate/boxes/test_ssd_detector.py
"""

import os
import pathlib
import shlex

import pytest

from fgclip_jax.annotate.boxes.backend import Question
from fgclip_jax.annotate.boxes.command import Command
from fgclip_jax.annotate.boxes.conventions import Convention
from fgclip_jax.annotate.boxes.suppress import select
from fgclip_jax.data import image as images
from tests.helpers import ssd_detector

PHOTOS = pathlib.Path(__file__).resolve().parents[4] / "shared/data/real_mini/images"
PHRASES = tuple(f"a {label.lower()}" for label in ssd_detector.WORDS)


@pytest.fixture(scope="module")
def detector() -> Command:
  folder, python = os.environ.get("FGCLIP_OBJECTRON"), os.environ.get("FGCLIP_LITERT_PYTHON")
  if not folder or not python:
    pytest.skip("FGCLIP_OBJECTRON and FGCLIP_LITERT_PYTHON do not name the detector and its Python")
  program = shlex.join([python, str(pathlib.Path(ssd_detector.__file__)), folder])
  return Command(program, Convention("yxyx", "fraction"))


def test_boxes_on_real_photographs(detector):
  paths = sorted(PHOTOS.rglob("*.jpg"))
  if not paths:
    pytest.skip("../shared/data is absent")
  files = {path.name: path.read_bytes() for path in paths}
  sizes = {name: images.open_image(data).size for name, data in files.items()}
  located = list(detector.locate(Question(name, data, sizes[name], PHRASES) for name, data in files.items()))
  assert sorted(each.key for each in located) == sorted(files) and len(files) == 48
  assert not any(each.failure for each in located)
  boxes = [found.box for each in located for found in each.found]
  assert len(boxes) > 500
  assert all(0 <= x < u <= 1 and 0 <= y < v <= 1 for x, y, u, v in boxes)
  assert not any(each.bad for each in located)
  assert any(min(box) == 0 for box in boxes) and any(
    max(box) == 1 for box in boxes
  )  # those that ended a little outside
  kept = {each.key: select(each.found, sizes[each.key], detector.threshold)[0] for each in located}
  assert sum(map(bool, kept.values())) == 15
  best = {name: max(found, key=lambda one: one.score) for name, found in kept.items() if found}
  assert PHRASES[best["000000024.jpg"].phrase] == "a car" and best["000000024.jpg"].score > 0.8

"""Heat maps: the numbers behind them, the colours, and where things are drawn."""

import jax
import numpy as np
import pytest
from PIL import Image, ImageFont

from fgclip_jax.inference import model as api
from fgclip_jax.models import config
from fgclip_jax.models import params as parameters
from fgclip_jax.viz import box_scores, drawing, heatmap
from tests.helpers.toy_models import init

TINY = config.preset("tiny")
FONT = ImageFont.load_default(drawing.FONT_SIZE)


@pytest.fixture(scope="module")
def model():
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), parameters.abstract_params(TINY)
  )
  return api.FGCLIP(TINY, params)


def photo(width, height):
  return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_the_map_is_the_similarity_of_patches_and_boxes(model):
  texts = ["a cat", "two dogs", "nothing"]
  boxes = [[(0.0, 0.0, 0.5, 0.5)], [], [(0.2, 0.1, 0.9, 1.0), (0.0, 0.0, 0.5, 0.5)]]
  heats = heatmap.measure(model, photo(50, 40), texts, boxes)
  pixels = model.preprocess(photo(50, 40))
  text, dense = model.encode_text(texts), model.encode_dense(pixels)[0]
  assert [heat.text for heat in heats] == texts
  for i, heat in enumerate(heats):
    np.testing.assert_allclose(heat.similarity, dense @ text[i], atol=1e-5)
    assert [box for box, _ in heat.boxes] == boxes[i]
    for box, score in heat.boxes:
      assert score == pytest.approx(float(model.encode_regions(pixels, [[box]])[0][0] @ text[i]), abs=1e-5)


def test_the_map_of_a_picture_of_any_shape_has_its_own_grid():
  size = config.preset("tiny_fgclip2")
  model = api.FGCLIP(size, init(size, 0))
  wide = photo(90, 20)
  (heat,) = heatmap.measure(model, wide, ["a cat"], [[(0.0, 0.0, 0.5, 0.5)]])
  assert heat.similarity.shape == model.preprocess(wide)[0].grid == (2, 8)
  text = model.encode_text("a cat", "region")
  np.testing.assert_allclose(heat.similarity, model.encode_dense(wide)[0] @ text[0], atol=1e-5)
  assert heatmap.draw(wide, [heat], FONT).width > 2 * 220 and len(heat.boxes) == 1


def test_the_map_may_be_where_a_text_looks():
  size = TINY.replace(text_pooling={"heads": 2})
  model = api.FGCLIP(size, init(size, 0))
  texts, picture = ["a cat", "two dogs"], photo(50, 40)
  heats = heatmap.measure(model, picture, texts, [[], [(0.0, 0.0, 0.5, 0.5)]], attention=True)
  expected = model.text_attention(model.encode_dense(picture), model.encode_text(texts, "region"))[0]
  np.testing.assert_allclose(np.stack([heat.similarity for heat in heats]), expected, atol=1e-6)
  assert {heat.unit for heat in heats} == {"attention"} and len(heats[1].boxes) == 1
  assert heatmap.draw(picture, heats, FONT).width > 2 * 220


def test_the_warmest_place_of_the_overlay_is_that_of_the_map():
  similarity = np.zeros((4, 4), np.float32)
  similarity[1, 3] = 0.3
  picture = heatmap.overlay(Image.new("RGB", (80, 40), (90, 90, 90)), similarity)
  assert picture.size == (80, 40)
  light = np.asarray(picture).sum(-1)
  y, x = np.unravel_index(light.argmax(), light.shape)
  assert 10 <= y < 20 and 60 <= x < 80
  assert heatmap.overlay(picture, np.full((4, 4), 0.2, np.float32)).size == (80, 40), (
    "a map that is the same everywhere"
  )


@pytest.mark.parametrize("size", [(64, 64), (900, 300), (30, 2000)])
def test_the_sheet_has_a_panel_for_the_picture_and_one_for_each_text(size):
  similarity = np.linspace(-0.1, 0.3, 16, dtype=np.float32).reshape(4, 4)
  box = ((0.25, 0.5, 0.75, 1.0), 0.21)
  heats = [heatmap.Heat("a big red striped circle " * words, similarity, (box,)) for words in (1, 5)]
  sheet = heatmap.draw(Image.new("RGB", size, (0, 0, 0)), heats, FONT)
  columns = 3
  width = (sheet.width - 2 * 16 - 20 * (columns - 1)) / columns
  assert width == int(width) and 220 <= width <= 340
  pixels = np.asarray(sheet).astype(int)
  framed = np.abs(pixels - drawing.FRAME).sum(-1) == 0
  for column in range(columns):
    left = 16 + int(column * (width + 20))
    assert framed[:, left : left + int(width)].any(), f"the box is drawn in panel {column}"
  assert (pixels[-16:] == 255).all(), "nothing runs over the edge"
  alone = heatmap.draw(Image.new("RGB", size), heats[:1], FONT)
  assert alone.width < sheet.width and alone.height < sheet.height, "a long text takes more lines"


def test_scores_are_the_cosines_of_boxes_and_texts(model):
  picture, texts = photo(60, 40), ["a cat", "two dogs and a cat on a mat in the sun"]
  boxes = box_scores.grid(3, 2)
  assert boxes[0] == (0, 0, 1 / 3, 1 / 2) and boxes[-1] == (2 / 3, 1 / 2, 1, 1) and len(boxes) == 6
  found = box_scores.measure(model, picture, texts, boxes)
  expected = model.encode_regions(picture, [boxes])[0] @ model.encode_text(texts).T
  np.testing.assert_allclose(found.cosines, expected, atol=1e-5)
  head, _, *rows = box_scores.table(found).splitlines()
  assert head.split()[-1].endswith("...") and len(rows) == 6
  for row, cosines in zip(rows, expected, strict=True):
    cells = row.split()[-2:]
    assert [float(cell.rstrip("*")) for cell in cells] == pytest.approx(cosines.tolist(), abs=1e-3)
    assert cells[cosines.argmax()].endswith("*") and not cells[cosines.argmin()].endswith("*")
  drawn = np.asarray(box_scores.draw(picture, found, FONT)).astype(int)
  frames = (np.abs(drawn - drawing.FRAME).sum(-1) == 0)[:, 420 + drawing.GAP :]
  assert frames.any() and frames[:, : 40 + 130].any() == bool((expected.argmax(1) == 0).any())

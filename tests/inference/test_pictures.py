"""Pictures in the form of the model: the published patches, budgets, and what is refused."""

import numpy as np
import pytest
from PIL import Image

import fgclip_jax
from fgclip_jax.data.image import ImageError
from fgclip_jax.inference import pictures
from fgclip_jax.models import config as presets

FGCLIP2, NAFLEX, SQUARES = (presets.preset(name) for name in ("fgclip2_b16", "siglip2_naflex_b16", "siglip2_b16"))


@pytest.mark.parametrize("budget", ["dynamic", 256])
def test_patches_of_files_are_the_published_ones(shared, budget):
  recorded = np.load(shared / "oracle_fgclip2" / "common" / "preprocess.npz")
  files = [shared / "data" / "pictures" / name for name in ("cat_dfclor.jpg", "df_cups.png")]
  for name, found in zip(("cat", "cups"), fgclip_jax.preprocess(files, FGCLIP2, max_patches=budget), strict=True):
    patches = recorded[f"{name}_{budget}_patches_uint8"][0][recorded[f"{name}_{budget}_mask"][0] > 0]
    np.testing.assert_array_equal(found.patches, patches)
    assert list(found.grid) == recorded[f"{name}_{budget}_shape"][0].tolist()


def test_the_budget_is_as_published_unless_another_is_asked_for():
  assert pictures.choose_budget(FGCLIP2) == "dynamic" and pictures.choose_budget(NAFLEX) == 256
  assert pictures.choose_budget(FGCLIP2, 300) == 300 and pictures.choose_budget(NAFLEX, "dynamic") == "dynamic"
  assert pictures.choose_budget(presets.preset("tiny_fgclip2")) == 16  # made for less than any of the published ones
  for wrong in (0, -1, True, "dynamik", 1 << 20):
    with pytest.raises(ValueError, match="max_patches must be a number of patches in 1..65,536 or 'dynamic', got"):
      pictures.choose_budget(FGCLIP2, wrong)
  with pytest.raises(ValueError, match="this one reads squares of 224 px: leave it out"):
    fgclip_jax.preprocess(Image.new("RGB", (9, 9)), SQUARES, max_patches=256)


def test_thin_pictures_and_a_budget_of_one():
  read = pictures.make_reader(FGCLIP2).read
  with pytest.raises(ImageError, match="^thin.jpg: has 5000 x 1 pixels; each side needs 2"):
    read(Image.new("RGB", (5000, 1)), "thin.jpg")
  assert read(Image.new("RGB", (5000, 2)), "a").grid == (1, 128)  # as published: its budget in a row
  assert read(Image.new("RGB", (40, 30)), "a").grid == (9, 12)  # scaled up to the smallest budget
  assert pictures.make_reader(FGCLIP2, max_patches=1).read(Image.new("RGB", (640, 480)), "a").grid == (1, 1)


def test_patches_must_be_those_of_their_grid():
  with pytest.raises(ValueError, match=r"a grid of 2 x 3 must be uint8 \[6, X\], got uint8 \[5, 12\]"):
    pictures.PatchedImage(np.zeros((5, 12), np.uint8), (2, 3))


@pytest.mark.parametrize("folder", ["fgclip2", "siglip2_naflex"])
def test_embeddings_are_those_of_the_published_implementation(shared, folder):
  where = shared / "oracle_fgclip2" / folder
  model = fgclip_jax.load(where / "checkpoint")
  inputs, outputs = (
    np.load(where / name) for name in (("inputs.npz", "outputs.npz") if folder == "fgclip2" else ("io.npz",) * 2)
  )
  shapes = inputs["spatial_shapes"].tolist()
  levels = np.round((inputs["pixel_values"] + 1) * 127.5).astype(np.uint8)
  given = [pictures.PatchedImage(each[: h * w], (h, w)) for each, (h, w) in zip(levels, shapes, strict=True)]

  def close(found, expected):
    unit = expected / np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(found, unit, atol=3e-6)

  close(model.encode_image(given), outputs["image_features"])
  if folder == "siglip2_naflex":
    close(model.encode_text(inputs["input_ids"], as_is=True), outputs["text_features"])
    logits = model.probabilities(model.encode_image(given), model.encode_text(inputs["input_ids"], as_is=True))
    np.testing.assert_allclose(logits, 1 / (1 + np.exp(-outputs["logits_per_image"])), atol=1e-5)
    return
  for found, expected, (height, width) in zip(
    model.encode_dense(given), outputs["dense_features"], shapes, strict=True
  ):
    close(found.reshape(height * width, -1), expected[: height * width])
  boxes = [each[:count] for each, count in zip(inputs["box_infos"].reshape(5, 4, 4), inputs["box_nums"], strict=True)]
  close(np.concatenate(model.encode_regions(given, boxes)), outputs["region_features"])
  for kind, name in (("short", "short"), ("long", "long"), ("region", "box")):
    ids = inputs[{"short": "text_short", "long": "text_long", "region": "box_texts"}[kind]]
    close(model.encode_text(ids, kind, as_is=True), outputs[f"{name}_text_features"])

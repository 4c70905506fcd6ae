"""Pictures of any shape: alone, together and packed they give the same embeddings, with few compiled sizes."""

import jax
import numpy as np
import pytest
from PIL import Image

from fgclip_jax.inference import image_chunks, programs
from fgclip_jax.inference import model as api
from fgclip_jax.models import config as presets
from tests.helpers.toy_models import init

FGCLIP2 = presets.preset("tiny_fgclip2")
SHAPES = ((30, 40), (80, 20), (33, 33), (10, 90), (8, 8), (64, 60))  # heights and widths


@pytest.fixture(scope="module")
def model():
  return api.FGCLIP(FGCLIP2, init(FGCLIP2, 0))


@pytest.fixture(scope="module")
def pictures():
  rng = np.random.default_rng(3)
  return [Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in SHAPES]


def test_pictures_alone_and_together_give_the_same_embeddings(model, pictures):
  boxes = [np.asarray([[0, 0, 1, 1], [0.2, 0.1, 0.5, 0.9]][: 1 + number % 2]) for number in range(len(pictures))]
  image, regions = model.encode_image_and_regions(pictures, boxes)
  dense = model.encode_dense(pictures)
  assert [each.shape[:2] for each in dense][:4] == [(3, 4), (8, 2), (4, 4), (1, 9)]
  for number, picture in enumerate(pictures):
    np.testing.assert_allclose(model.encode_image(picture)[0], image[number], atol=1e-6)
    np.testing.assert_allclose(model.encode_dense(picture)[0], dense[number], atol=1e-6)
    (alone,) = model.encode_regions(picture, [boxes[number]])
    np.testing.assert_allclose(alone, regions[number], atol=1e-6)
    assert len(alone) == 1 + number % 2
  same = model.encode_dense([pictures[0]] * 2)
  assert isinstance(same, np.ndarray) and same.shape == (2, 3, 4, 32)
  np.testing.assert_allclose(model.encode_image(model.preprocess(pictures)), image, atol=1e-6)
  np.testing.assert_allclose(model.encode_image(np.asarray(pictures[0])[None]), image[:1], atol=1e-6)


def test_small_pictures_share_rows_with_large_ones(model, pictures):
  small = model.preprocess(pictures, max_patches=4)
  large = model.preprocess(pictures[:1], max_patches=16)
  expected = np.concatenate([model.encode_image(each) for each in (*small, *large)])
  np.testing.assert_allclose(model.encode_image([*small, *large]), expected, atol=1e-6)
  (chunk, *others) = image_chunks.make_chunks(FGCLIP2, [*small, *large], None, 16, programs.CHUNKS)
  assert chunk.arrays[0].shape == (2, 16, 192) and chunk.arrays[3].shape == (8, 16)
  assert sum(len(each.numbers) for each in (chunk, *others)) == 7 and len(chunk.numbers) >= 4


def test_sizes_are_few_and_long_rows_make_smaller_chunks(model):
  rng = np.random.default_rng(0)

  def made(count, patches):
    return [
      api.PatchedImage(rng.integers(0, 256, (each, 192), dtype=np.uint8), (1, int(each)))
      for each in np.clip(rng.normal(patches, 9, count).astype(int), 1, patches)
    ]

  shapes = set()
  for count in (1, 2, 5, 63, 130):
    chunks = list(image_chunks.make_chunks(FGCLIP2, made(count, 256), None, 256, programs.CHUNKS))
    assert sorted(number for chunk in chunks for number in chunk.numbers) == list(range(count))
    shapes |= {tuple(array.shape for array in chunk.arrays) for chunk in chunks}
  assert len(shapes) <= 4 * len(programs.CHUNKS)
  chunks = list(image_chunks.make_chunks(FGCLIP2, made(20, 1024), None, "dynamic", programs.CHUNKS))
  assert [chunk.arrays[0].shape[:2] for chunk in chunks] == [(16, 1024), (4, 1024)]
  assert image_chunks.count_slots(1500, 256) == 2048 and image_chunks.count_slots(300, "dynamic") == 576


def test_patches_of_another_model_and_float_pixels_are_refused(model):
  other = api.PatchedImage(np.zeros((4, 768), np.uint8), (2, 2))
  with pytest.raises(ValueError, match=r"images\[0\] has patches of 768 values, and the model reads 192 \(8 x 8 x 3\)"):
    model.encode_image(other)
  with pytest.raises(ValueError, match=r"images\[0\]: an array must be uint8 \[H, W, 3\], got float32"):
    model.encode_image(np.zeros((2, 32, 32, 3), np.float32))
  with pytest.raises(ValueError, match="choose its patch budget instead of an image size"):
    model.with_image_size(64)


def test_a_mesh_gives_the_same_numbers(model, pictures):
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:2]), ("data",))
  spread = api.FGCLIP(FGCLIP2, programs.place(model.params, mesh))
  np.testing.assert_allclose(spread.encode_image(pictures[:3]), model.encode_image(pictures[:3]), atol=1e-6)


def test_repr_and_probabilities_tell_the_family(model):
  assert repr(model).startswith("FGCLIP (FG-CLIP 2)(image of 16 patches, patch 8, ")
  assert "image of dynamic patches" not in repr(model.with_max_patches(9)) and "of 9 patches" in repr(
    model.with_max_patches(9)
  )
  for name, family in (("tiny_naflex", "SigLIP 2 NaFlex"), ("tiny_siglip", "SigLIP"), ("tiny", "FG-CLIP")):
    other = api.FGCLIP(presets.preset(name), init(presets.preset(name), 0))
    assert repr(other).startswith(f"FGCLIP ({family})(" if family != "FG-CLIP" else "FGCLIP(image 32 px")
  cosine = np.asarray([[0.5, -0.25]], np.float32)
  text = np.eye(2, dtype=np.float32)
  scale, bias = (float(model.params["temperature"][name]) for name in ("global", "bias"))
  expected = 1 / (1 + np.exp(-(np.exp(scale) * cosine + bias)))
  np.testing.assert_allclose(model.probabilities(cosine, text), expected, atol=1e-6)
  with pytest.raises(ValueError, match="a FG-CLIP has no sigmoid probabilities: compare texts by similarity"):
    other.probabilities(cosine, text)

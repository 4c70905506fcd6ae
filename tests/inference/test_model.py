"""The public model: embeddings against the recorded reference, packing, chunks, caching, and clear errors."""

import functools
import subprocess
import sys
import tomllib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import fgclip_jax
from fgclip_jax.data import image as images
from fgclip_jax.inference import model as api
from fgclip_jax.models import config as presets
from fgclip_jax.models import params
from fgclip_jax.weights import native
from tests.helpers.toy_models import init

TINY = presets.preset("tiny")
PLAIN = TINY.replace(text={"long_length": None})


@pytest.fixture(scope="module")
def model():
  return api.FGCLIP(TINY, init(TINY, 0))


@pytest.fixture(scope="module")
def plain():
  return api.FGCLIP(PLAIN, init(PLAIN, 1))


def pictures(count, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.slow
def test_importing_the_package_or_its_data_does_not_load_jax():
  code = "import sys, fgclip_jax, fgclip_jax.data.packing; assert 'jax' not in sys.modules; print(fgclip_jax.Tokenizer)"
  code += "; assert 'jax' not in sys.modules, 'tokenizer'"
  subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_public_names(root):
  assert {"FGCLIP", "PatchedImage", "Tokenizer", "load", "preprocess"} <= set(dir(fgclip_jax))
  assert fgclip_jax.load is api.load and fgclip_jax.FGCLIP is api.FGCLIP
  project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
  assert project.get("version", fgclip_jax.__version__) == fgclip_jax.__version__
  with pytest.raises(AttributeError, match="no attribute 'nothing'"):
    fgclip_jax.nothing  # noqa: B018


def test_embeddings_are_those_of_the_published_implementation(oracle):
  folder = oracle / "fgclip_p16"
  model = fgclip_jax.load(folder / "checkpoint")
  inputs, outputs = (np.load(folder / f"{part}.npz") for part in ("inputs", "outputs"))
  pixels = inputs["image"].transpose(0, 2, 3, 1)
  boxes = inputs["box_infos"].reshape(len(pixels), -1, 4)
  # the reference adds padding boxes and pads texts: zero boxes have no direction, so they are not compared
  kept = (boxes[..., 2:] > boxes[..., :2]).all(-1)

  def expected(name):
    return outputs[f"{name}_features"]

  def close(found, name):
    width = found.shape[-1]
    np.testing.assert_allclose(found.reshape(-1, width), unit(expected(name)).reshape(-1, width), atol=2e-6)

  close(model.encode_image(pixels), "image")
  close(model.encode_dense(pixels), "dense")
  regions = model.encode_regions(pixels, boxes)
  np.testing.assert_allclose(regions[kept], unit(expected("roi").reshape(regions.shape)[kept]), atol=2e-6)
  close(model.encode_text(inputs["text_short"]), "short_text")
  close(model.encode_text(inputs["text_long"], "long"), "long_text")
  close(model.encode_text(inputs["hard_texts"], "region"), "hard_text")


def test_a_plain_clip_folder_gives_transformers_embeddings(oracle):
  folder = oracle / "common" / "clip_quick_gelu"  # with the old rule of where a text ends
  model, recorded = fgclip_jax.load(folder / "checkpoint"), np.load(folder / "io.npz")
  image = model.encode_image(recorded["pixel_values"].transpose(0, 2, 3, 1))
  text = model.encode_text(recorded["input_ids"])
  np.testing.assert_allclose(image, unit(recorded["image_embeds"]), atol=2e-6)
  np.testing.assert_allclose(text, unit(recorded["text_embeds"]), atol=2e-6)
  assert "plain CLIP" in repr(model)


def test_load_reads_a_model_folder_and_computes_in_the_dtype_asked_for(tmp_path, model):
  native.write(str(tmp_path / "m"), TINY, params.flatten(jax.device_get(model.params)))
  again, half = fgclip_jax.load(tmp_path / "m"), fgclip_jax.load(str(tmp_path / "m"), dtype="bfloat16")
  pixels = pictures(2)
  np.testing.assert_array_equal(again.encode_image(pixels), model.encode_image(pixels))
  found = half.encode_image(pixels)
  assert found.dtype == np.float32 and half.params["vision"]["positions"].dtype == jnp.float32
  difference = np.abs(found - model.encode_image(pixels)).max()
  assert 1e-6 < difference < 0.05
  with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, got 'int8'"):
    fgclip_jax.load(tmp_path / "m", dtype="int8")
  with pytest.raises(FileNotFoundError, match="no model folder at"):
    fgclip_jax.load(tmp_path / "none")


def test_repr_says_what_the_model_is(model):
  assert "image 32 px, patch 8" in repr(model) and "77/248 tokens" in repr(model)
  assert f"{params.count(model.params) / 1e6:.1f} M parameters, float32" in repr(model)


def test_preprocess_and_uint8_give_the_same_embedding(model, tmp_path):
  picture = Image.fromarray(np.random.default_rng(3).integers(0, 256, (50, 40, 3), dtype=np.uint8))
  picture.save(tmp_path / "a.png")
  pixels = model.preprocess([picture, tmp_path / "a.png"])
  assert pixels.shape == (2, 32, 32, 3) and pixels.dtype == np.float32
  np.testing.assert_array_equal(pixels, fgclip_jax.preprocess([picture, picture], model.config))
  levels = np.stack([images.to_square(picture, 32)] * 2)
  np.testing.assert_allclose(model.encode_image(levels), model.encode_image(pixels), atol=1e-5)


def test_regions_pool_the_dense_features_before_normalising(model):
  pixels = pictures(1)
  boxes = np.asarray([[[0.0, 0.0, 0.5, 0.5], [0.75, 0.25, 1.0, 0.5]]], np.float32)
  dense = np.asarray(model.encode_dense(pixels, normalize=False))[0]  # 4 x 4 cells, of any length
  image, regions = model.encode_image_and_regions(pixels, boxes)
  expected = unit(np.stack([dense[:2, :2].mean((0, 1)), dense[1, 3]]))
  np.testing.assert_allclose(regions[0], expected, atol=1e-5)
  np.testing.assert_allclose(model.encode_dense(pixels)[0], unit(dense), atol=1e-5)
  np.testing.assert_allclose(image, model.encode_image(pixels), atol=1e-5)


def test_a_text_that_is_too_long_is_cut_and_said(model):
  long = "word " * 100
  with pytest.warns(
    UserWarning, match="1 of 2 texts are longer than the 77 tokens of kind='short': 25 tokens were cut"
  ):
    found = model.encode_text([long, "a"])
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    cut = model.encode_text(["word " * 75, "a"])
    model.encode_text(long, "long")
  np.testing.assert_allclose(found, cut, atol=1e-6)
  wide = np.full((1, 90), 49407, np.int32)
  wide[0, :80] = 300
  with pytest.warns(UserWarning, match="4 tokens were cut"):
    model.encode_text(wide)


def test_similarity_is_the_cosine(model):
  dense, text = model.encode_dense(pictures(2)), model.encode_text(["a cat", "a dog", "a bus"])
  found = model.similarity(dense, text)
  assert found.shape == (2, 4, 4, 3)
  np.testing.assert_allclose(found, np.einsum("bhwd,nd->bhwn", dense, text), atol=1e-6)
  with pytest.raises(ValueError, match=r"needs embeddings \[..., D\] and \[N, D\], got \[2, 4, 4, 16\] and \[16\]"):
    model.similarity(dense, text[0])


@pytest.mark.parametrize(
  ("pixels", "message"),
  [
    (np.zeros((32, 32, 3), np.float32), "got one image \\[32, 32, 3\\]: use pixels\\[None\\]"),
    (np.zeros((1, 3, 32, 32), np.float32), "pixels must be \\[B, 32, 32, 3\\], got \\[1, 3, 32, 32\\]"),
    (np.zeros((1, 64, 64, 3), np.float32), "pixels must be \\[B, 32, 32, 3\\].*use model.preprocess"),
    (np.zeros((0, 32, 32, 3), np.uint8), "hold no image"),
    (np.zeros((1, 32, 32, 3), np.int64), "must be normalised floats or uint8, got int64"),
    (np.full((1, 32, 32, 3), 255.0), "must be normalised .*got values up to 255"),
    ([], "there are no images"),
    ([np.zeros((64, 64, 3), np.float32)], "pixels must be \\[B, 32, 32, 3\\]"),
    ([np.zeros((4, 32, 32, 3), np.float32)], "images\\[0\\] must be \\[32, 32, 3\\]"),
    ([b"no picture"], "images\\[0\\]: is no image"),
  ],
)
def test_wrong_pixels_are_clear_errors(model, pixels, message):
  for encode in (model.encode_image, model.encode_dense, lambda p: model.encode_regions(p, np.zeros((1, 1, 4)))):
    with pytest.raises(ValueError, match=message):
      encode(pixels)


@pytest.mark.parametrize(
  ("boxes", "message"),
  [
    (np.zeros((1, 4)), "boxes must be \\[B, K, 4\\] with B = 2, .*got \\[1, 4\\]"),
    (np.zeros((1, 3, 4)), "with B = 2"),
    (np.zeros((2, 3, 5)), "boxes must be"),
    ([[[0, 0, 1, 1]], [[0, 0, 32, 32]]], "box 0 of image 1 is .*fractions"),
    ([[[0, 0, 1, 1], [0.5, 0, 0.4, 1]]] * 2, "box 1 of image 0"),
    ([[[0, 0, float("nan"), 1]]] * 2, "box 0 of image 0"),
  ],
)
def test_wrong_boxes_are_clear_errors(model, boxes, message):
  with pytest.raises(ValueError, match=message):
    model.encode_regions(pictures(2), boxes)


@pytest.mark.parametrize(
  ("texts", "error", "message"),
  [
    ([], ValueError, "there are no texts"),
    (["a", 3], TypeError, "entry 1 is int"),
    ([[49406, 5, 49407], "a"], TypeError, "all strings or all lists of token ids, but entry 1"),
    ([[49406, 5, 49407], [49406, 5]], ValueError, "row 1 of the token ids has no end-of-text id"),
    ([[]], TypeError, "but entry 0 is list"),
    (3, TypeError, "texts must be str, a list of str, or token ids, got int 3"),
    (np.zeros(77, np.int32), ValueError, "shape \\[B, L\\], got \\[77\\]"),
    (np.zeros((2, 77), np.int32), ValueError, "row 0 of the token ids has no end-of-text id"),
    (np.full((2, 77), 49408, np.int32), ValueError, "must lie in 0..49407, got 49408..49408"),
  ],
)
def test_wrong_texts_are_clear_errors(model, unchecked, texts, error, message):
  with pytest.raises(error, match=message):
    model.encode_text(texts)


def test_kinds(model, plain):
  np.testing.assert_array_equal(model.encode_text("a cat", "region"), model.encode_text("a cat", "short"))
  with pytest.raises(ValueError, match="kind must be one of short, long, region, got 'caption'"):
    model.encode_text("a", "caption")
  with pytest.raises(ValueError, match="plain CLIP, which reads no long texts"):
    plain.encode_text("a", "long")
  assert plain.encode_text("a").shape == (1, 16)


def test_a_foreign_vocabulary_takes_ids_alone():
  config = TINY.replace(text={"vocab_size": 100, "end_id": 99})
  model = api.FGCLIP(config, init(config, 0))
  with pytest.raises(ValueError, match="vocabulary of 100 tokens .*give token ids"):
    model.encode_text("a cat")
  ids = np.asarray([[98, 5, 99, 0], [98, 7, 8, 99]])
  alone = [model.encode_text(ids[:1, :3]), model.encode_text(ids[1:])]
  np.testing.assert_allclose(model.encode_text(ids), np.concatenate(alone), atol=1e-6)


def test_pictures_in_any_form_give_the_same(model, photo):
  picture, path = photo
  levels = images.to_square(picture, 32)
  expected = model.encode_image(levels[None])
  forms = [
    picture,
    path,
    str(path),
    path.read_bytes(),
    np.asarray(picture),
    levels,
    jnp.asarray(levels),
    images.normalize(levels),
  ]
  for form in forms[:-1]:
    np.testing.assert_allclose(model.encode_image(form), expected, atol=1e-5)
  for several in (
    forms,
    tuple(forms),
    iter(forms),
    np.asarray([str(path)] * 2),
    [levels] * 3,
    images.normalize(np.stack([levels] * 2)),
  ):
    found = model.encode_image(several)
    np.testing.assert_allclose(found, np.repeat(expected, len(found), 0), atol=1e-5)
  np.testing.assert_allclose(model.encode_dense(path), model.encode_dense(levels[None]), atol=1e-5)


def test_an_iterator_without_a_picture_is_an_error(model):
  with pytest.raises(ValueError, match="there are no images"):
    model.encode_image(iter([]))


def test_a_plain_clip_sees_the_middle_and_an_fg_clip_all_of_a_picture(model, plain, photo):
  picture, path = photo
  np.testing.assert_allclose(
    plain.encode_image(path), plain.encode_image(images.center_crop(picture, 32)[None]), atol=1e-5
  )
  np.testing.assert_array_equal(plain.preprocess(path), plain.preprocess(path, "center_crop"))
  np.testing.assert_allclose(
    plain.encode_dense(path), plain.encode_dense(images.to_square(picture, 32)[None]), atol=1e-5
  )
  np.testing.assert_array_equal(model.preprocess(path), model.preprocess(path, "squash"))


def test_a_resnet_is_encoded_too():
  config = presets.preset("tiny_resnet")
  model = api.FGCLIP(config, jax.tree.map(np.abs, init(config, 0)))  # a variance is not negative
  levels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
  assert "image 64 px, ResNet" in repr(model) and np.isfinite(model.encode_image(levels)).all()
  assert model.encode_regions(levels, [[], [[0, 0, 1, 1]]])[1].shape == (1, 16)
  assert model.with_image_size(96).encode_dense(levels.repeat(2, 1).repeat(2, 2)[:, :96, :96]).shape == (2, 3, 3, 16)


def test_raw_features(model):
  pixels, boxes = pictures(2), np.tile(np.asarray([0.1, 0.1, 0.8, 0.7], np.float32), (2, 1, 1))
  for encode in (
    model.encode_image,
    model.encode_dense,
    functools.partial(model.encode_regions, boxes=boxes),
    lambda _, normalize=True: model.encode_text(["a cat", "two dogs"], "long", normalize=normalize),
  ):
    raw, found = encode(pixels, normalize=False), encode(pixels)
    np.testing.assert_allclose(unit(raw), found, atol=1e-5)
    assert np.abs(np.linalg.norm(raw, axis=-1) - 1).min() > 1e-3


def test_lists_of_boxes_may_differ_in_length(model):
  pixels = pictures(3)
  boxes = [[[0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9], [0, 0.5, 0.5, 1]], [], np.asarray([[0.2, 0.2, 0.9, 0.9]])]
  found = model.encode_regions(pixels, boxes)
  assert [each.shape for each in found] == [(3, 16), (0, 16), (1, 16)]
  for number, each in enumerate(boxes):
    alone = model.encode_regions(pixels[number : number + 1], np.asarray(each, np.float32).reshape(1, -1, 4))
    np.testing.assert_allclose(found[number], alone[0], atol=1e-5)
  np.testing.assert_array_equal(np.concatenate(model.encode_regions(iter(pixels), iter(boxes))), np.concatenate(found))
  for wrong in (boxes[:2], [*boxes, []]):
    with pytest.raises(ValueError, match="there must be boxes for each image"):
      model.encode_regions(iter(pixels), iter(wrong))
    with pytest.raises(ValueError, match=f"with B = 3, one list for each image, got {len(wrong)} lists"):
      model.encode_regions(pixels, wrong)


def test_lists_of_ids(model):
  text = ["a cat", "two dogs and a cat"]
  ids = model.tokenizer.encode_batch(text)
  for form in (ids, [np.asarray(row) for row in ids], model.tokenizer(text)):
    np.testing.assert_allclose(model.encode_text(form), model.encode_text(text), atol=1e-6)


def test_a_text_that_is_too_long_may_be_an_error(model, plain):
  with pytest.raises(ValueError, match="1 of 2 texts are longer .* text 1 with 102: .*kind='long' reads 248"):
    model.encode_text(["a", "word " * 100], truncate=False)
  with pytest.warns(UserWarning, match="kind='long' reads 248"):
    model.encode_text("word " * 100)
  with pytest.warns(UserWarning, match="23 tokens were cut$"):
    plain.encode_text("word " * 98)


def test_another_image_size(model):
  large = model.with_image_size(48)
  assert "image 48 px" in repr(large) and large.encode_dense(np.zeros((1, 48, 48, 3), np.uint8)).shape == (1, 6, 6, 16)
  assert model.with_image_size(32).params["vision"]["positions"] is model.params["vision"]["positions"]
  with pytest.raises(ValueError, match="multiple of"):
    model.with_image_size(30)
  with pytest.raises(ValueError, match=r"use model.preprocess, or model.with_image_size\(48\)"):
    model.encode_image(np.zeros((1, 48, 48, 3), np.float32))
  with pytest.warns(UserWarning, match=r"reads images of 32 x 32, and these are 48 x 48: .*with_image_size\(48\)"):
    found = model.encode_image(np.zeros((1, 48, 48, 3), np.uint8))
  assert found.shape == (1, 16)


def test_kernels_are_imported_before_a_program_is_traced(model, monkeypatch):
  """From JAX 0.12 on, a program whose own trace imports Pallas is compiled again at its second call."""
  imported = []
  monkeypatch.setattr(api, "load_kernels", lambda: imported.append(None))
  api.FGCLIP(model.config, model.params)
  assert imported

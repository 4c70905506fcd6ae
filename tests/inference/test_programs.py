"""How the public model computes: chunks, rows, threads, devices, compiling once, and where it finds models."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fgclip_jax
from fgclip_jax.inference import model as api
from fgclip_jax.inference import programs
from fgclip_jax.models import config
from fgclip_jax.models import params as parameters
from fgclip_jax.storage.threads import LOOK_AHEAD
from fgclip_jax.weights import native
from tests.helpers.toy_models import init

TINY = config.preset("tiny")


@pytest.fixture(scope="module")
def model():
  return api.FGCLIP(TINY, init(TINY, 0))


def pictures(count, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_chunks_and_padding_change_nothing(model, monkeypatch):
  pixels, text = pictures(11), [f"number {i} " + "very " * (9 * i % 70) for i in range(29)]
  boxes = np.tile(np.asarray([[0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9], [0.5, 0.5, 0.5, 0.5]], np.float32), (11, 1, 1))

  def encode_all(pixels, boxes, text):
    image, regions = model.encode_image_and_regions(pixels, boxes)
    return image, model.encode_dense(pixels), regions, model.encode_text(text), model.encode_text(text, "long")

  whole = encode_all(pixels, boxes, text)
  monkeypatch.setattr(programs, "CHUNKS", (1,))
  single = encode_all(pixels, boxes, text)
  for one, other in zip(whole, single, strict=True):
    assert one.dtype == np.float32
    np.testing.assert_allclose(one, other, atol=1e-5)
  assert [part.shape for part in whole] == [(11, 16), (11, 4, 4, 16), (11, 3, 16), (29, 16), (29, 16)]
  image, dense, regions = whole[:3]
  np.testing.assert_allclose(np.linalg.norm(image, axis=-1), 1, atol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(dense, axis=-1), 1, atol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(regions[:, :2], axis=-1), 1, atol=1e-5)
  assert (regions[:, 2] == 0).all(), "a box of no size gives zero"


def test_packed_texts_equal_padded_ones(model):
  """Every text alone in a padded row, as the reference computes it."""
  text = ["a", "", "a photograph of a red bicycle, leaning on a wall", "word " * 60, "😀 猫", "a"]

  @functools.partial(jax.jit, static_argnames="kind")
  def encode(params, *rows, kind):
    return parameters.build(TINY, params).text_features(*rows, kind)

  for kind, length in (("short", 77), ("long", 248)):
    tokens = jnp.asarray(model.tokenizer(text, length))
    first = 77 if kind == "long" else 0
    position = jnp.broadcast_to(jnp.arange(first, first + length), tokens.shape)
    end = jnp.argmax(tokens == 49407, axis=1)
    rows = tokens, jnp.ones_like(tokens), position, jnp.arange(len(text)), end
    features = encode(model.params, *rows, kind=kind)
    np.testing.assert_allclose(model.encode_text(text, kind), unit(np.asarray(features)), atol=1e-5)
    np.testing.assert_allclose(model.encode_text(np.asarray(tokens), kind), unit(np.asarray(features)), atol=1e-5)
  assert not np.allclose(model.encode_text("a", "long"), model.encode_text("a", "short"), atol=1e-2)


def test_new_parameters_compile_nothing_and_are_used(model):
  model.encode_image(pictures(1)), model.encode_text("a")
  compiled = programs.encode_pixels._cache_size(), programs.encode_rows._cache_size()
  other = api.FGCLIP(TINY, jax.tree.map(lambda leaf: leaf + 0.01 * jnp.ones_like(leaf), model.params))
  assert not np.allclose(other.encode_image(pictures(1)), model.encode_image(pictures(1)), atol=1e-4)
  assert not np.allclose(other.encode_text("a"), model.encode_text("a"), atol=1e-4)
  assert compiled == (programs.encode_pixels._cache_size(), programs.encode_rows._cache_size())


def test_parameters_on_a_mesh_are_used_where_they_are(model):
  mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  whole = jax.sharding.NamedSharding(mesh, jax.P())
  split = jax.sharding.NamedSharding(mesh, jax.P("fsdp"))
  params = jax.tree.map(lambda x: jax.device_put(x, split if x.ndim and x.shape[0] % 4 == 0 else whole), model.params)
  spread = api.FGCLIP(TINY, params)
  assert spread.params["text"]["token_embedding"] is params["text"]["token_embedding"]
  pixels, boxes = pictures(5), np.tile(np.asarray([0.1, 0.1, 0.8, 0.7], np.float32), (5, 1, 1))
  for one, other in zip(
    spread.encode_image_and_regions(pixels, boxes), model.encode_image_and_regions(pixels, boxes), strict=True
  ):
    np.testing.assert_allclose(one, other, atol=1e-5)
  text = ["a cat", "two dogs"]
  np.testing.assert_allclose(spread.encode_text(text), model.encode_text(text), atol=1e-5)


def test_many_pictures_are_decoded_ahead_and_stay_in_order(model):
  """Of an iterator no more is held than is decoded ahead and under way."""
  levels, taken, most = pictures(300, seed=7), [], [0]

  def several():
    for number, each in enumerate(levels):
      taken.append(number)
      yield each

  encode = programs.encode_pixels

  def spy(params, pixels, **options):
    spy.encoded += len(pixels)
    most[0] = max(most[0], len(taken) - spy.encoded)
    return encode(params, pixels, **options)

  spy.encoded = 0
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(programs, "encode_pixels", spy)
    found = model.encode_image(several())
  np.testing.assert_allclose(found, model.encode_image(levels), atol=1e-5)
  assert len(taken) == 300 and most[0] <= LOOK_AHEAD + 1


@hypothesis.given(st.integers(1, 2000), st.sampled_from([(1, 4, 16, 64), (8, 32, 128, 512), (1,), (6, 12)]))
def test_chunks_hold_every_row_and_waste_less_than_half(count, sizes):
  chunks = programs.split(count, sizes)
  assert set(chunks) <= set(sizes) and sum(chunks[:-1]) < count <= sum(chunks)
  assert sum(chunks) < 2 * count or chunks == [sizes[0]]


def test_short_texts_are_computed_in_short_rows(model, monkeypatch):
  shapes, encode = [], programs.encode_rows

  def spy(params, tokens, *arrays, **options):
    shapes.append(tokens.shape)
    return encode(params, tokens, *arrays, **options)

  monkeypatch.setattr(programs, "encode_rows", spy)
  texts = ["a photo of a cat", "word " * 12, "word " * 40, "word " * 75]
  found = np.concatenate([model.encode_text(text) for text in texts])
  assert shapes == [(1, 8), (1, 16), (1, 77), (1, 77)]
  monkeypatch.setattr(programs, "ROW_LENGTHS", ())
  np.testing.assert_allclose(found, model.encode_text(texts), atol=1e-5)


def test_devices(model, tmp_path):
  native.write(str(tmp_path / "m"), TINY, parameters.flatten(jax.device_get(model.params)))
  for device, expected in ((jax.devices()[2], {jax.devices()[2]}), (programs.all_devices(), {*jax.devices()})):
    placed = fgclip_jax.load(tmp_path / "m", device=device)
    assert all(leaf.devices() == expected for leaf in jax.tree.leaves(placed.params))
  placed, text, boxes = fgclip_jax.load(tmp_path / "m", device="cpu:3"), ["a cat", "two dogs"], [[[0, 0, 1, 1]]]
  assert all(leaf.devices() == {jax.devices()[3]} for leaf in jax.tree.leaves(placed.params))
  np.testing.assert_allclose(placed.encode_text(text), model.encode_text(text), atol=1e-5)
  regions = (each.encode_regions(pictures(1), boxes)[0] for each in (placed, model))
  np.testing.assert_allclose(*regions, atol=1e-5)
  for wrong in ("cpu:8", "tpu:0", "cpu:x"):
    with pytest.raises(ValueError, match=f"no device '{wrong}': there are cpu:0, .*cpu:7"):
      fgclip_jax.load(tmp_path / "m", device=wrong)


def test_models_by_name(model, tmp_path, monkeypatch):
  """One of the hub's is taken from its cache; nothing is asked from the network."""
  huggingface_hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub, see requirements.txt")
  native.write(str(tmp_path / "cached"), TINY, parameters.flatten(jax.device_get(model.params)))
  monkeypatch.chdir(tmp_path)

  def download(name, allow_patterns):
    assert "*.bin" not in allow_patterns
    if name != "someone/tiny-clip":
      raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")
    return str(tmp_path / "cached")

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  assert fgclip_jax.load("someone/tiny-clip").config == TINY
  with pytest.raises(FileNotFoundError, match="no model folder at 'someone/else'.* hub: not in the cache"):
    fgclip_jax.load("someone/else")
  (tmp_path / "runs").mkdir()
  with pytest.raises(FileNotFoundError, match="no model folder at 'runs/none'$"):
    fgclip_jax.load("runs/none")
  assert {"vit_b16", "rn50"} <= set(fgclip_jax.list_presets())
  with pytest.raises(FileNotFoundError, match="'vit_b16' is a preset, a size without weights"):
    fgclip_jax.load("vit_b16")


@pytest.mark.parametrize("place", ["file/cache", "file", "/proc/no/cache", "~/cache"])
def test_a_cache_that_cannot_be_written_is_said_and_not_used(tmp_path, monkeypatch, capsys, place):
  (tmp_path / "file").touch()
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path / "file"))  # a home folder that holds nothing
  before = jax.config.values["jax_compilation_cache_dir"]
  programs.use_compilation_cache(place)
  assert jax.config.values["jax_compilation_cache_dir"] == before
  out = capsys.readouterr().out
  assert out.startswith("compiled programs are not kept for the next run: ") and out.count("\n") == 1


def test_a_cache_that_can_be_written(tmp_path, capsys):
  before = jax.config.values["jax_compilation_cache_dir"]
  try:
    programs.use_compilation_cache(str(tmp_path / "a" / "b"))
    assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "a" / "b")
    programs.use_compilation_cache("")
    assert not capsys.readouterr().out
  finally:
    jax.config.update("jax_compilation_cache_dir", before)

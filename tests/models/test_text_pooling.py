"""Text-conditioned pooling against plain loops in float64, and in the whole model on pictures of both kinds."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from fgclip_jax.data.packing import Caption, Example, Layout, assemble
from fgclip_jax.data.patches import PatchLayout, cut_patches
from fgclip_jax.models.config import ModelConfig, TextPoolingConfig, preset
from fgclip_jax.models.fgclip import unit_length
from fgclip_jax.models.params import abstract_params, build, flatten, unflatten
from fgclip_jax.models.siglip import PatchRows
from fgclip_jax.models.text_pooling import TextPooling, ask_texts
from fgclip_jax.models.transformer import Runtime

WIDTH, HEADS = 8, 2


def unit(rng, *shape):
  x = rng.normal(size=shape)
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def random_params(config: ModelConfig):
  rng = np.random.default_rng(0)
  shapes = flatten(abstract_params(config))
  params = {name: rng.normal(0, 0.3, leaf.shape) + name.endswith("scale") for name, leaf in shapes.items()}
  return unflatten({name: jnp.asarray(value, jnp.float32) for name, value in params.items()})


def pool_in_a_loop(params, patches, text):
  """One picture's embedding for one text; patches [P, D] and text [D] in float64. Also the weights of each head."""

  def norm(x, name):
    x = (x - x.mean()) / math.sqrt(x.var() + 1e-5)
    return x * params[f"{name}/scale"] + params[f"{name}/bias"]

  def project(x, name):
    return x @ params[f"{name}/kernel"] + params[f"{name}/bias"]

  query = project(norm(text, "text_norm"), "query").reshape(HEADS, -1)
  normed = [norm(patch, "patch_norm") for patch in patches]
  keys = [project(patch, "key").reshape(HEADS, -1) for patch in normed]
  values = [project(patch, "value").reshape(HEADS, -1) for patch in normed]
  mixed, looks = [], []
  for head in range(HEADS):
    parts = [math.exp(float(query[head] @ key[head]) / math.sqrt(WIDTH // HEADS)) for key in keys]
    total = sum(parts) + 1.0  # exp(0), the empty token's
    mixed.append(sum(part / total * value[head] for part, value in zip(parts, values, strict=True)))
    looks.append([part / total for part in parts])
  return project(np.concatenate(mixed), "out"), np.asarray(looks)


def test_pooling_is_the_loop_and_does_not_see_what_is_not_valid():
  module = TextPooling(WIDTH, TextPoolingConfig(HEADS), Runtime(), rngs=nnx.Rngs(0))
  rng = np.random.default_rng(0)
  state = nnx.to_pure_dict(nnx.state(module, nnx.Param))
  params = {name: np.asarray(rng.normal(0, 0.5, leaf.shape)) for name, leaf in flatten(state).items()}
  nnx.update(module, nnx.State(unflatten({name: jnp.asarray(x, jnp.float32) for name, x in params.items()})))
  count = [5, 3, 1]
  patches, text = (jnp.asarray(unit(rng, 3, number, WIDTH), jnp.float32) for number in (5, 4))
  valid = jnp.arange(5) < jnp.asarray(count)[:, None]
  found, looks = module(patches, text, valid), module.weights(patches, text, valid)
  for picture, number in enumerate(count):
    for asked in range(4):
      expected, weights = pool_in_a_loop(
        params, *(np.asarray(x, float) for x in (patches[picture, :number], text[picture, asked]))
      )
      np.testing.assert_allclose(found[picture, asked], expected, atol=1e-5)
      np.testing.assert_allclose(looks[picture, :, asked, :number], weights, atol=1e-6)
    assert not looks[picture, :, :, number:].any()
  alone = module.values(patches[:, :1])[:, 0]
  mixed = module(patches[:, :1], text)[:, 0] - params["out/bias"]
  # of one patch alone, each head has its share of the value; with weights of 1 that would be all of it
  share = np.repeat(module.weights(patches[:, :1], text)[:, :, 0, 0], WIDTH // HEADS, axis=1)
  value = (alone - params["out/bias"]) @ np.linalg.inv(params["out/kernel"])
  np.testing.assert_allclose((share * value) @ params["out/kernel"], mixed, atol=1e-4)


def test_each_picture_is_asked_its_own_texts_and_those_at_even_distances():
  rng = np.random.default_rng(1)
  own, weight = unit(rng, 6, 3, WIDTH), rng.uniform(0.5, 2, (6, 3))
  weight[1, 0] = weight[2, 1:] = weight[4] = 0.0  # a gap at the start, one caption alone, and none
  record = np.asarray([0, 1, 2, 0, 4, 5])
  number = np.arange(18).reshape(6, 3)
  number[0, 1], number[2, 0] = 99, 99  # pictures 0 and 2 have a caption in common
  negatives = 4
  found = ask_texts(*map(jnp.asarray, (own, weight)), negatives, jnp.asarray(record), jnp.asarray(number))
  np.testing.assert_allclose(found.text[:, :3], own, atol=1e-6)
  np.testing.assert_allclose(found.weight, weight, rtol=1e-6)
  seen = set()
  for picture in range(6):
    for place in range(negatives):
      other = (picture + (place + 1) * 6 // (negatives + 1)) % 6
      captions = [caption for caption in range(3) if weight[other, caption] > 0]
      counts = bool(captions) and record[other] != record[picture]
      if captions:
        caption = captions[place % len(captions)]
        np.testing.assert_allclose(found.text[picture, 3 + place], own[other, caption], atol=1e-6)
        mine = [number[picture, each] for each in range(3) if weight[picture, each] > 0]
        counts &= number[other, caption] not in mine
      assert bool(found.valid[picture, place]) == counts
      seen.add((counts, other - picture))
  assert {counts for counts, _ in seen} == {True, False}
  everything = ask_texts(jnp.asarray(own[:, :1]), jnp.ones((6, 1)), 5)
  for picture in range(6):  # as many as there are: each other picture once
    others = [other for other in range(6) if other != picture]
    chosen = np.asarray(everything.text[picture, 1:])
    assert sorted(map(tuple, chosen.round(4))) == sorted(map(tuple, own[others, 0].astype(np.float32).round(4)))
  with pytest.raises(ValueError, match=r"must be in 1\.\.5, since the batch has 6 pictures, got 6"):
    ask_texts(jnp.asarray(own), jnp.asarray(weight), 6)


# ------------------------------------------------------------------------------ in the whole model

PICTURES, NEGATIVES = 4, 2
TEXT = {"vocab_size": 60, "short_length": 10, "end_id": 59}
MODELS = {
  "squares": preset("tiny").replace(text={**TEXT, "long_length": 14}, text_pooling={"heads": 2}),
  "plain": preset("tiny").replace(text={**TEXT, "long_length": None}, text_pooling={"heads": 2}),
  "siglip": preset("tiny_siglip").replace(text=TEXT, text_pooling={"heads": 2}),
  "patches": preset("tiny_fgclip2").replace(text={**TEXT, "long_length": 14}, text_pooling={"heads": 2}),
}


def make_batch(config: ModelConfig, shards: int, boxes: int):
  """A batch as the model takes it, pictures already normalised."""
  rng = np.random.default_rng(2)
  text, vision = config.text, config.vision
  pad = text.pad_id if text.reads_padding else None

  def caption(long=False):
    words = (57, *rng.integers(1, 57, rng.integers(1, 8)).tolist(), 59)
    most = text.long_length if long else text.short_length
    return Caption(words if pad is None else words + (pad,) * (most - len(words)), long)

  layout = Layout(
    boxes=boxes,
    row_length=text.long_length or text.short_length,
    short_length=text.short_length,
    long_length=text.long_length,
    pad_id=pad,
    patches=PatchLayout(vision.max_patches, 8) if vision.takes_patches else None,
  )
  examples = []
  for number in range(PICTURES):
    count = number % (boxes + 1)
    image = rng.integers(0, 256, (16, 24 + 8 * (number % 2), 3) if vision.takes_patches else (32, 32, 3), np.uint8)
    grid = (image.shape[0] // 8, image.shape[1] // 8)
    corners = np.sort(rng.random((count, 2, 2)), axis=1).reshape(count, 4).astype(np.float32)
    examples.append(
      Example(
        image=cut_patches(image, 8) if vision.takes_patches else image,
        short=caption(),
        long=caption(True) if text.long_length else None,
        boxes=corners,
        regions=tuple(caption() for _ in range(count)),
        negatives=(None,) * count,
        grid=grid,
      )
    )
  batch = assemble(examples, shards, layout)
  pixels = "patches" if vision.takes_patches else "image"
  batch[pixels] = batch[pixels].astype(np.float32) / 127.5 - 1
  return {key: jnp.asarray(value) for key, value in batch.items() if key != "record"}


def embed(config: ModelConfig, batch, negatives=NEGATIVES, **runtime):
  return jax.jit(lambda params: build(config, params, Runtime(**runtime))(batch, conditioned_negatives=negatives))(
    random_params(config)
  )


@pytest.mark.parametrize(
  ("name", "boxes"), [("squares", 2), ("squares", 0), ("plain", 0), ("siglip", 0), ("patches", 2), ("patches", 0)]
)
def test_a_batch_has_the_cosines_of_each_picture_by_itself(name, boxes):
  config = MODELS[name]
  batch = make_batch(config, 2, boxes)
  found = embed(config, batch)

  @jax.jit
  def by_itself(params, batch):
    module, expected = build(config, params), []
    for number in range(PICTURES):
      shard, place = divmod(number, PICTURES // 2)
      if config.vision.takes_patches:
        rows = PatchRows(*(batch[key][shard] for key in ("patches", "patch_segment", "patch_place")))
        slot = batch["patch_slot"][shard, place, : 6 + 2 * (number % 2)]  # without those beyond its patches
        patches = module.patch_features(rows, slot[None])[1]
      else:
        patches = module.image_features(batch["image"][shard, place : place + 1])[1].reshape(1, 16, -1)
      others = [found.short[(number + offset) % PICTURES] for offset in (1, 2)]  # 4 // 3 and 8 // 3
      text = jnp.stack([found.short[number], *others])[None]
      expected.append(jnp.sum(unit_length(module.text_pooling(unit_length(patches), text)) * text, axis=-1)[0])
    return jnp.stack(expected)

  expected = by_itself(random_params(config), batch)
  np.testing.assert_allclose(found.conditioned_own, expected[:, :1], atol=2e-5)
  np.testing.assert_allclose(found.conditioned_other, expected[:, 1:], atol=2e-5)
  assert found.conditioned_valid.all() and (found.conditioned_weight == 1).all()
  without = embed(config, batch, None)
  assert without.conditioned_own is without.conditioned_other is None
  np.testing.assert_array_equal(without.image, found.image)
  if boxes:  # the last has the most to keep apart
    parts = embed(config, batch, micro_batches=2, remat="full")
    np.testing.assert_allclose(parts.conditioned_other, found.conditioned_other, atol=2e-5)
    np.testing.assert_allclose(parts.region_image, found.region_image, atol=2e-5)


def test_sets_of_captions_are_asked_and_repeated_records_and_captions_are_no_negatives():
  config = MODELS["plain"]
  batch = make_batch(config, 2, 0)
  short = batch["short_eot"]
  sets = {
    "caption_eot": jnp.stack([short, jnp.roll(short, 1, axis=1), jnp.full_like(short, -1)], axis=-1),
    "caption_weight": jnp.broadcast_to(jnp.asarray([1.0, 0.5, 0.0]), (2, 2, 3)),
    "caption_id": jnp.arange(12).reshape(2, 2, 3),
    "caption_long": jnp.zeros((2, 2, 3), bool),
  }
  alone, found = embed(config, batch), embed(config, batch | sets)
  np.testing.assert_array_equal(found.conditioned_weight, sets["caption_weight"].reshape(4, 3))
  np.testing.assert_allclose(found.conditioned_own[:, :1], alone.conditioned_own, atol=1e-5)
  np.testing.assert_allclose(found.conditioned_other[:, 0], alone.conditioned_other[:, 0], atol=1e-5)
  assert found.conditioned_valid.all()
  same = {"repeated_record": jnp.asarray([[5, 5], [1, 2]])}  # pictures 0 and 1
  expected = np.ones((4, 2), bool)
  expected[0, 0] = False  # picture 1 is at distance 1 of picture 0, but picture 0 is at distance 3 of picture 1
  np.testing.assert_array_equal(embed(config, batch | same).conditioned_valid, expected)
  same = {"short_caption": jnp.asarray([[5, 1], [5, 2]])}  # pictures 0 and 2
  expected = np.ones((4, 2), bool)
  expected[0, 1] = expected[2, 1] = False
  np.testing.assert_array_equal(embed(config, batch | same).conditioned_valid, expected)


def shapes_of(jaxpr) -> set[tuple[int, ...]]:
  """The shapes of all arrays of a program and of those in it."""
  found = set()
  for equation in jaxpr.eqns:
    found |= {each.aval.shape for each in equation.outvars}
    for inner in jaxprs_in_params(equation.params):
      found |= shapes_of(inner)
  return found


def test_no_array_has_a_patch_of_every_pair():
  config = MODELS["squares"].replace(vision={"image_size": 24})  # 9 patches
  rng = np.random.default_rng(0)
  pictures, patches = 31, 9
  text = jnp.asarray(unit(rng, pictures, 16), jnp.float32)
  dense = jnp.asarray(rng.normal(size=(pictures, patches, 16)), jnp.float32)

  def total(params, dense, text):
    asked = ask_texts(text[:, None], jnp.ones((pictures, 1)), NEGATIVES)
    return jnp.sum(build(config, params).text_cosines(dense, asked.text))

  program = jax.make_jaxpr(jax.grad(total, argnums=(0, 1, 2)))(abstract_params(config), dense, text)
  shapes = shapes_of(program.jaxpr)
  assert any(math.prod(shape) == pictures * 2 * (1 + NEGATIVES) * patches for shape in shapes)  # the weights of heads
  assert not any(math.prod(shape) >= pictures * pictures * patches for shape in shapes)


def test_the_config_goes_through_json_and_is_checked():
  config = MODELS["plain"]
  assert ModelConfig.from_dict(config.to_dict()) == config and config.to_dict()["text_pooling"]["heads"] == 2
  assert "text_pooling" not in preset("tiny").to_dict() and preset("tiny").text_pooling is None
  assert config.replace(text_pooling={}) == config == config.replace(text_pooling={"heads": 2})
  with pytest.raises(ValueError, match="text_pooling.heads 3 must divide embedding_width 16"):
    config.replace(text_pooling={"heads": 3})
  with pytest.raises(ValueError, match="heads must be a whole number from 1"):
    TextPoolingConfig(0)
  plain = flatten(abstract_params(dataclasses.replace(config, text_pooling=None)))
  added = set(flatten(abstract_params(config))) - set(plain)
  assert len(added) == 12 and all(name.startswith("text_pooling/") for name in added)

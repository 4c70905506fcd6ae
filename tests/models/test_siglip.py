"""SigLIP's towers: rows of packed patches give what each picture gives alone, and what the published code recorded."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np

from fgclip_jax.models.config import preset
from fgclip_jax.models.fgclip import DualEncoder
from fgclip_jax.models.params import build, flatten, unflatten
from fgclip_jax.models.roi_align import roi_align, roi_align_patches
from fgclip_jax.models.siglip import AttentionHead, PatchRows, grid_weights
from fgclip_jax.models.transformer import Runtime
from tests.helpers.toy_models import init

GRIDS = np.asarray([(2, 3), (4, 4), (1, 9), (5, 2)])


def model(name: str = "tiny_fgclip2", runtime: Runtime = Runtime()) -> DualEncoder:
  """A model whose every parameter is away from its initial value."""
  flat = flatten(init(preset(name), seed=0))
  return build(preset(name), unflatten({key: x + key.endswith("scale") for key, x in flat.items()}), runtime)


def lay_out(images: list[np.ndarray], starts: list[tuple[int, int]], rows: int, slots: int, budget: int):
  """Patches of images, [h, w, X] each, put into rows at (row, offset)."""
  width = images[0].shape[-1]
  patches, segment = np.zeros((rows, slots, width), np.float32), np.zeros((rows, slots), np.int32)
  place = np.zeros((rows, slots, 4), np.int32) + np.asarray([0, 0, 1, 1], np.int32)
  slot = np.full((len(images), budget), -1, np.int32)
  for number, (image, (row, offset)) in enumerate(zip(images, starts, strict=True)):
    height, breadth = image.shape[:2]
    part = slice(offset, offset + height * breadth)
    patches[row, part], segment[row, part] = image.reshape(-1, width), number + 1
    at = np.arange(height * breadth)
    place[row, part] = np.stack([at // breadth, at % breadth, 0 * at + height, 0 * at + breadth], -1)
    slot[number, : height * breadth] = row * slots + offset + at
  return PatchRows(*map(jnp.asarray, (patches, segment, place))), jnp.asarray(slot)


def pictures() -> list[np.ndarray]:
  rng = np.random.default_rng(0)
  return [rng.normal(size=(height, width, 192)).astype(np.float32) for height, width in GRIDS]


def test_packed_rows_give_what_each_picture_gives_alone():
  tiny, images, encode = model(), pictures(), jax.jit(DualEncoder.patch_features)
  packed, slot = lay_out(images, [(0, 0), (1, 0), (0, 6), (1, 16)], rows=2, slots=28, budget=16)
  pooled, dense = encode(tiny, packed, slot)
  padded, own_slot = lay_out(images, [(i, 0) for i in range(4)], rows=4, slots=16, budget=16)
  chex.assert_trees_all_close(encode(tiny, padded, own_slot)[0], pooled, rtol=1e-4, atol=1e-5)
  for number, image in enumerate(images):
    count = image.shape[0] * image.shape[1]
    alone, alone_slot = lay_out([image], [(0, 0)], rows=1, slots=16, budget=16)
    whole, patches = encode(tiny, alone, alone_slot)
    chex.assert_trees_all_close(whole[0], pooled[number], rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(patches[0, :count], dense[number, :count], rtol=1e-4, atol=1e-5)


def test_a_batch_of_packed_patches_is_embedded_as_its_padded_form_and_in_micro_batches():
  images, boxes = pictures(), np.random.default_rng(1).uniform(size=(1, 4, 2, 4)).astype(np.float32)
  boxes = np.concatenate([np.minimum(boxes[..., :2], boxes[..., 2:]), np.maximum(boxes[..., :2], boxes[..., 2:])], -1)
  text = {key: jnp.ones((1, 4, 48), jnp.int32) for key in ("tokens", "segment")}
  text["position"] = jnp.broadcast_to(jnp.arange(48), (1, 4, 48))
  ends = {"short_eot": (4,), "long_eot": (4,), "region_eot": (4, 2), "hard_eot": (8, 11)}
  text |= {key: jnp.full((1, *shape), 5, jnp.int32) for key, shape in ends.items()}
  text |= {"region_caption": jnp.zeros((1, 4, 2), jnp.int32), "hard_box": jnp.zeros((1, 8), jnp.int32)}
  forms = {"packed": ([(0, 0), (1, 0), (0, 6), (1, 16)], 2, 28), "padded": ([(i, 0) for i in range(4)], 4, 16)}
  found = []
  for (starts, rows, slots), parts in ((forms["packed"], 1), (forms["padded"], 1), (forms["packed"], 3)):
    tiny = model(runtime=Runtime(micro_batches=parts))
    packed, slot = lay_out(images, starts, rows, slots, budget=16)
    batch = {"patches": packed.patches, "patch_segment": packed.segment, "patch_place": packed.place}
    batch = {key: value[None] for key, value in {**batch, "patch_slot": slot}.items()}
    batch |= {"image_grid": jnp.asarray(GRIDS, jnp.int32)[None], "boxes": jnp.asarray(boxes), **text}
    embeddings = jax.jit(DualEncoder.__call__)(tiny, batch)
    found.append((embeddings.image, embeddings.region_image, embeddings.hard_image))
  chex.assert_tree_all_finite(found)
  for other in found[1:]:
    chex.assert_trees_all_close(other, found[0], rtol=1e-4, atol=1e-5)


def test_the_square_tower_is_the_one_over_patches_where_its_grid_is_the_tables():
  params = init(preset("tiny_siglip"), seed=2)
  square, naflex = build(preset("tiny_siglip"), params), build(preset("tiny_naflex"), params)
  image = np.random.default_rng(3).normal(size=(2, 32, 32, 3)).astype(np.float32)
  patches = image.reshape(2, 4, 8, 4, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 4, 192)
  rows, slot = lay_out(list(patches), [(0, 0), (1, 0)], rows=2, slots=16, budget=16)
  pooled, dense = jax.jit(DualEncoder.patch_features)(naflex, rows, slot)
  expected, expected_dense = jax.jit(DualEncoder.image_features)(square, image)
  chex.assert_trees_all_close(pooled, expected, rtol=1e-4, atol=1e-5)
  chex.assert_trees_all_close(dense.reshape(expected_dense.shape), expected_dense, rtol=1e-4, atol=1e-5)


def test_pooling_is_attention_of_one_query_over_keys_and_values():
  config = preset("tiny_naflex").vision
  head: AttentionHead = model("tiny_naflex").vision.pooling_head
  x = jax.random.normal(jax.random.key(4), (3, 7, config.width))
  valid = jnp.arange(7) < jnp.asarray([7, 1, 4])[:, None]

  def heads(y):
    return y.reshape(*y.shape[:-1], config.heads, -1)

  query, key, value = heads(head.query(head.probe[...])), heads(head.key(x)), heads(head.value(x))
  scores = jnp.einsum("hc,bphc->bhp", query, key) / jnp.sqrt(config.width / config.heads)
  weights = jax.nn.softmax(jnp.where(valid[:, None], scores, -jnp.inf), axis=-1)
  y = head.out(jnp.einsum("bhp,bphc->bhc", weights, value).reshape(3, -1))
  chex.assert_trees_all_close(head.pool(x, valid), y + head.mlp(head.norm(y)), rtol=1e-4, atol=1e-5)


def test_roi_align_of_patches_is_that_of_maps():
  rng = np.random.default_rng(5)
  corners = np.sort(rng.uniform(-0.1, 1.1, size=(4, 6, 2, 2)), axis=2)
  boxes = corners.reshape(4, 6, 4)
  boxes[:, 0], boxes[:, 1], boxes[:, 2, 2] = (0, 0, 1, 1), (0.4, 0.2, 0.4, 0.7), boxes[:, 2, 0] + 0.01
  features = rng.normal(size=(4, 16, 5)).astype(np.float32)
  found = jax.jit(roi_align_patches)(*map(jnp.asarray, (features, GRIDS, boxes.astype(np.float32))))
  align = jax.jit(roi_align)
  for number, (height, width) in enumerate(GRIDS):
    one = jnp.asarray(features[number, : height * width].reshape(1, height, width, 5))
    expected = align(one, jnp.asarray(boxes[None, number], jnp.float32))[0]
    chex.assert_trees_all_close(found[number], expected, rtol=1e-5, atol=1e-6)
  assert np.all(np.asarray(found[:, 1]) == 0)  # a box of no width


def test_positions_are_resized_as_recorded(shared):
  recorded = np.load(shared / "oracle_fgclip2/common/position_resize.npz")
  weights = jax.jit(grid_weights, static_argnums=2)
  for side in sorted({int(key.split("_")[1]) for key in recorded if key.startswith("table_")}):
    table = recorded[f"table_{side}"].reshape(side * side, -1)
    for (height, width), expected in zip(recorded[f"shapes_{side}"], recorded[f"resized_{side}"], strict=True):
      at = np.arange(len(expected))  # beyond the grid's places any, so that one program computes all grids
      rows, columns = (
        np.asarray(weights(jnp.asarray(place), jnp.full(len(at), int(length)), side))
        for place, length in ((at // width, height), (at % width, width))
      )
      found = (rows[:, :, None] * columns[:, None, :]).reshape(len(at), -1)[: height * width] @ table
      chex.assert_trees_all_close(found, expected[: height * width], atol=2e-5)


def test_bfloat16_is_near():
  tiny, half = model(), model(runtime=dataclasses.replace(Runtime(), dtype=jnp.bfloat16))
  rows, slot = lay_out(pictures(), [(0, 0), (1, 0), (0, 6), (1, 16)], rows=2, slots=28, budget=16)
  encode = jax.jit(DualEncoder.patch_features)
  expected, found = (np.asarray(encode(each, rows, slot)[0], np.float32) for each in (tiny, half))
  cosine = np.sum(expected * found, -1) / np.linalg.norm(expected, axis=-1) / np.linalg.norm(found, axis=-1)
  assert cosine.min() > 0.99

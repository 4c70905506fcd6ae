"""The name table is a bijection, and positions stretch as Long-CLIP's do."""

import numpy as np
import pytest

from fgclip_jax.models.config import preset
from fgclip_jax.weights.huggingface_names import from_theirs, stretch_positions, table, to_theirs

TINY = preset("tiny").replace(text={"vocab_size": 60})


def test_the_table_names_every_parameter_once(random_params):
  flat = random_params(TINY)
  ours = [name for row in table(TINY) for name in row.ours]
  assert sorted(ours) == sorted(flat)
  theirs = [name for row in table(TINY) for layer in row.names() for name in layer]
  assert len(theirs) == len(set(theirs)) == len(to_theirs(flat, TINY))


def test_there_and_back_is_the_identity(random_params):
  flat = random_params(TINY)
  back = from_theirs(to_theirs(flat, TINY), TINY, {name: value.shape for name, value in flat.items()})
  assert back.keys() == flat.keys()
  assert all(np.array_equal(back[name], value) for name, value in flat.items())


def test_kernels_are_laid_out_as_theirs(random_params):
  flat, p = random_params(TINY), TINY.vision.patch_size
  theirs = to_theirs(flat, TINY)
  patches = theirs["vision_model.embeddings.patch_embedding.weight"]
  assert patches.shape == (32, 3, p, p)
  assert patches[5, 2, 1, 3] == flat["vision/patch_embedding/kernel"][(1 * p + 3) * 3 + 2, 5]
  query = flat["text/transformer/blocks/attention/query/kernel"]
  np.testing.assert_array_equal(theirs["text_model.encoder.layers.1.self_attn.q_proj.weight"], query[1].T)


def test_stretched_positions_keep_twenty_and_interpolate_the_rest_fourfold():
  short = np.random.default_rng(0).normal(size=(77, 3)).astype(np.float32)
  stretched = stretch_positions(short)
  assert stretched.shape == (248, 3) and stretched.dtype == np.float32
  np.testing.assert_array_equal(stretched[:20], short[:20])
  beyond = np.concatenate([short, [2 * short[76] - short[75]]])
  for row in range(20, 248):
    at = 20 + (row - 20) / 4
    low = int(at)
    expected = beyond[low] + (at - low) * (beyond[low + 1] - beyond[low])
    np.testing.assert_allclose(stretched[row], expected, rtol=1e-6, atol=1e-6)


def test_stretched_positions_equal_the_recorded_ones(oracle):
  for name in ("fgclip_p14", "fgclip_p16"):
    path = oracle / name / "position_stretch.npz"
    if not path.exists():
      pytest.skip(f"no {path}")
    with np.load(path) as file:
      recorded = dict(file)
    stretched = stretch_positions(recorded.pop("clip_77"))
    assert recorded
    for key, value in recorded.items():
      np.testing.assert_allclose(stretched, value, rtol=0, atol=1e-6 * np.abs(value).max(), err_msg=key)


def test_too_few_positions_to_stretch():
  with pytest.raises(ValueError, match="21 positions cannot be stretched"):
    stretch_positions(np.zeros((21, 4), np.float32))

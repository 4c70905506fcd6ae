"""FG-CLIP made of plain CLIP and of Long-CLIP, and plain CLIP cut from FG-CLIP."""

import dataclasses

import chex
import numpy as np

from fgclip_jax.models.config import preset
from fgclip_jax.weights.clip_to_fgclip import to_clip, to_fgclip

FGCLIP = preset("tiny").replace(text={"vocab_size": 60})
CLIP = FGCLIP.replace(text={"long_length": None})


def test_plain_clip_becomes_fgclip(random_params):
  flat = random_params(CLIP)
  config, made = to_fgclip(CLIP.replace(text={"end_id": 2}), flat)
  assert config == FGCLIP
  assert made.keys() == random_params(FGCLIP).keys()
  assert all(np.array_equal(made[name], flat[name]) for name in flat)
  np.testing.assert_array_equal(made["long_projection/kernel"], flat["short_projection/kernel"])
  for name in ("regional", "hard_negative"):
    assert made[f"temperature/{name}"] == flat["temperature/global"]
  assert made["text/long_positions"].shape == (248, 32)


def test_long_clips_positions_become_the_long_table_as_they_are(random_params):
  longclip = CLIP.replace(text={"short_length": 248})
  flat = random_params(longclip)
  config, made = to_fgclip(longclip, flat)
  assert config == FGCLIP
  np.testing.assert_array_equal(made["text/long_positions"], flat["text/short_positions"])
  np.testing.assert_array_equal(made["text/short_positions"], flat["text/short_positions"][:77])
  chex.assert_trees_all_equal_shapes(made, random_params(FGCLIP))


def test_the_path_for_short_texts_is_cut_from_fgclip(random_params):
  flat = random_params(FGCLIP)
  config, cut = to_clip(FGCLIP, flat)
  pixels = dataclasses.replace(CLIP.vision.pixels, resize="squash")  # as FG-CLIP takes pictures, not as a plain CLIP
  assert config == CLIP.replace(vision={"pixels": pixels})
  assert cut.keys() == random_params(CLIP).keys()
  assert all(cut[name] is flat[name] for name in cut)
  assert to_clip(config, cut) == (config, cut)

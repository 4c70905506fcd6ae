"""FG-CLIP made of plain CLIP and of Long-CLIP, and plain CLIP cut from FG-CLIP."""

import dataclasses
import json

import chex
import numpy as np
import pytest

from fgclip_jax.models.config import preset
from fgclip_jax.weights import formats
from fgclip_jax.weights.clip_to_fgclip import REGION_TEMPERATURE, to_clip, to_fgclip
from fgclip_jax.weights.huggingface_names import stretch_positions, table
from fgclip_jax.weights.name_map import write_rows

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


# ---- SigLIP 2 and FG-CLIP 2

NAFLEX = preset("tiny_naflex").replace(text={"short_length": 64})
FGCLIP2 = NAFLEX.replace(
  vision={"dense_head": True}, text={"long_length": 196}, region_temperature_init=REGION_TEMPERATURE
)


def test_siglip_becomes_fgclip2(random_params):
  flat = random_params(NAFLEX)
  config, made = to_fgclip(NAFLEX, flat)
  assert config == FGCLIP2
  chex.assert_trees_all_equal_shapes(made, random_params(FGCLIP2))
  assert all(np.array_equal(made[name], flat[name]) for name in flat)
  for kind in ("region", "long"):
    np.testing.assert_array_equal(made[f"{kind}_projection/bias"], flat["short_projection/bias"])
  np.testing.assert_array_equal(made["vision/dense_head/query/kernel"], flat["vision/pooling_head/query/kernel"])
  np.testing.assert_array_equal(made["text/long_positions"][:20], flat["text/short_positions"][:20])
  assert made["temperature/regional"] == made["temperature/hard_negative"] == np.float32(np.log(100))
  plain, cut = to_clip(config, made)
  assert plain == NAFLEX
  chex.assert_trees_all_equal(cut, flat)


def test_a_siglip_without_a_text_head_gets_heads_that_change_nothing(random_params):
  config = NAFLEX.replace(text={"head": False})
  made_config, made = to_fgclip(config, random_params(config))
  assert made_config == FGCLIP2
  for kind in ("short", "region", "long"):
    np.testing.assert_array_equal(made[f"{kind}_projection/kernel"], np.eye(32))


def test_the_recorded_start_of_fgclip2(shared):
  folder = shared / "oracle_fgclip2" / "siglip2_naflex"
  if not folder.is_dir():
    pytest.skip(f"needs {folder}")
  config, flat, _ = formats.read(str(folder / "checkpoint"))
  made = to_fgclip(config, flat)
  new = set(write_rows(table(made[0]), made[1])) - set(write_rows(table(config), flat))
  recorded = set(json.loads((folder / "as_fgclip2.json").read_text())["new_parameters"])
  assert new == recorded | {"logit_scale_finegraind", "logit_scale_hardneg"}
  with np.load(shared / "oracle_fgclip2" / "common" / "position_stretch.npz") as stretch:
    for name in ("ori", "res"):
      np.testing.assert_allclose(stretch_positions(stretch["short"]), stretch[name], rtol=0, atol=1e-6)

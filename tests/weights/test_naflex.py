"""SigLIP for squares made one for pictures of any shape, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgclip_jax import convert
from fgclip_jax.models.config import preset
from fgclip_jax.models.params import build, unflatten
from fgclip_jax.models.siglip import PatchRows
from fgclip_jax.models.vit import patchify
from fgclip_jax.weights import formats, native
from fgclip_jax.weights.naflex import to_naflex, to_squares
from tests.helpers.features import assert_close

SIGLIP, NAFLEX = (preset(name) for name in ("tiny_siglip", "tiny_naflex"))


def _features(config, flat, image):
  """Features of square images [B, S, S, 3] by either tower."""
  model = build(config, unflatten({name: jnp.asarray(value) for name, value in flat.items()}))
  if not config.vision.takes_patches:
    return np.asarray(jax.jit(type(model).image_features)(model, image)[0])
  side = image.shape[1] // config.vision.patch_size
  count = side * side
  patches = patchify(image, config.vision.patch_size)
  place = np.array([(row, column, side, side) for row in range(side) for column in range(side)], np.int32)
  shape = (len(image), count)
  rows = PatchRows(patches, jnp.ones(shape, jnp.int32), jnp.broadcast_to(place, (*shape, 4)))
  slot = jnp.arange(shape[0] * count, dtype=jnp.int32).reshape(shape)
  return np.asarray(jax.jit(type(model).patch_features)(model, rows, slot)[0])


@pytest.mark.parametrize("scale", [1, 1.5], ids=["the grids fit", "positions are resized"])
def test_squares_have_the_same_features_either_way(scale, random_params):
  flat = random_params(NAFLEX)
  size = int(scale * NAFLEX.vision.image_size)
  image = jnp.asarray(np.random.default_rng(0).normal(size=(2, size, size, 3)), jnp.float32)
  config, made = to_squares(NAFLEX, flat, size)
  assert config == SIGLIP.replace(vision={"image_size": size})
  expected = _features(NAFLEX, flat, image)
  assert_close(_features(config, made, image), expected)
  if scale == 1:
    assert all(made[name] is value or np.array_equal(made[name], value) for name, value in flat.items())
    again, back = to_naflex(config, made)
    assert again == NAFLEX
    assert_close(_features(again, back, image), expected)


def test_a_model_that_is_so_already_and_one_that_cannot_be(random_params):
  for config, change in ((NAFLEX, to_naflex), (SIGLIP, to_squares)):
    assert change(config, random_params(config))[0] == config
  for change in (to_naflex, to_squares):
    with pytest.raises(ValueError, match="are for SigLIP's towers, and the model has a Vision Transformer"):
      change(preset("tiny"), {})


def test_convert_says_what_it_does(random_params, tmp_path, capsys):
  flat = random_params(NAFLEX)
  native.write(str(tmp_path / "naflex"), NAFLEX, flat)

  def run(source, output, *options):
    code = convert.main([str(tmp_path / source), str(tmp_path / output), "--to", "jax", *options])
    return code, "".join(capsys.readouterr())

  assert "made for squares of 32 px: the 4 x 4 positions fit as they are" in run("naflex", "a", "--as", "squares")[1]
  code, said = run("naflex", "b", "--as", "squares", "--image_size", "48")
  assert code == 0 and "the 6 x 6 positions are resized from 4 x 4" in said
  assert formats.read_config(str(tmp_path / "b")).vision.image_size == 48
  assert "squares of 32 px have the same features" in run("a", "c", "--as", "naflex")[1]
  assert "is SigLIP for pictures of any shape already" in run("naflex", "d", "--as", "naflex")[1]
  config, read, _ = formats.read(str(tmp_path / "c"))
  assert config == NAFLEX and all(np.array_equal(read[name], value) for name, value in flat.items())
  code, said = run("naflex", "e", "--as", "naflex", "--as", "squares")
  assert code == 1 and "not for both" in said
  code, said = run("naflex", "f", "--image_size", "64")
  assert code == 1 and "choose its patch budget" in said

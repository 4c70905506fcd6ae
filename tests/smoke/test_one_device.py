"""Every config at tiny size, two steps on one device; what it leaves can be carried to PyTorch's format and back."""

import chex
import jax
import pytest

from fgclip_jax.convert import convert
from fgclip_jax.models.params import abstract_params, unflatten
from fgclip_jax.weights import formats
from tests.helpers.tiny_runs import FORMS, tiny_run


@pytest.mark.parametrize("form", FORMS)
def test_two_steps(train_on, toy, weights, tmp_path, form):
  run = tiny_run(form, toy, weights[form])
  state = train_on(run, tmp_path / "run", devices=1)
  convert(str(tmp_path / "run"), str(tmp_path / "theirs"), to="open_clip" if "rn50" in form else "pytorch")
  model, converted, _ = formats.read(str(tmp_path / "theirs"))
  assert (model.vision, model.text) == (run.model.vision, run.model.text)
  params = jax.tree.map(jax.device_get, state.params)
  chex.assert_tree_has_only_ndarrays(unflatten(converted))
  chex.assert_trees_all_equal_shapes_and_dtypes(abstract_params(run.model), params, unflatten(converted))
  chex.assert_trees_all_equal(params, unflatten(converted))

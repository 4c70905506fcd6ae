"""Configs at tiny size, two steps on one device; what they leave can be carried to other formats and back."""

import chex
import jax
import pytest

from fgclip_jax.convert import convert
from fgclip_jax.models.params import abstract_params, unflatten
from fgclip_jax.weights import formats
from tests.helpers import tiny_runs
from tests.helpers.tiny_runs import count_shapes, tiny_run


# all of them run on eight devices; a ResNet's blocks are not scanned, and take XLA long
@pytest.mark.parametrize("form", ["stage2", "clip", pytest.param("clip:rn50", marks=pytest.mark.slow)])
def test_two_steps(train_on, toy, weights, tmp_path, form):
  run = tiny_run(form, toy, weights[form])
  state = train_on(run, tmp_path / "run", devices=1)
  convert(str(tmp_path / "run"), str(tmp_path / "theirs"), to="open_clip" if "rn50" in form else "pytorch")
  model, converted, _ = formats.read(str(tmp_path / "theirs"))
  assert (model.vision, model.text) == (run.model.vision, run.model.text)
  params = jax.device_get(state.params)
  chex.assert_tree_has_only_ndarrays(unflatten(converted))
  chex.assert_trees_all_equal_shapes_and_dtypes(abstract_params(run.model), params, unflatten(converted))
  chex.assert_trees_all_equal(params, unflatten(converted))


@pytest.mark.slow
def test_one_trace_for_each_row_bucket(train_on, toy, weights, tmp_path):
  run = tiny_run("quickstart:stage1", toy, weights["stage2"], steps=4)
  assert 1 < count_shapes(run, 1) < run.steps
  train_on(run, tmp_path, devices=1)


@pytest.mark.slow
def test_one_trace_for_each_image_size(train_on, toy, weights, tmp_path):
  run = tiny_run("stage1", toy, weights["stage1"], steps=4, progressive=((0, 16), (2, 32)))
  assert count_shapes(run, 1) == 2
  train_on(run, tmp_path, devices=1)


def test_a_step_that_is_traced_again_is_found(train_on, toy, weights, tmp_path, monkeypatch):
  """With fewer traces allowed than there are shapes, the check fails."""
  monkeypatch.setattr(tiny_runs, "count_shapes", lambda *_: 0)
  with pytest.raises(AssertionError, match="is traced > 0 times"):
    train_on(tiny_run("stage1", toy, weights["stage1"]), tmp_path, devices=1)

"""Every config at tiny size, two steps on eight simulated devices; and runs whose batches have several shapes."""

import pytest

from tests.helpers.tiny_runs import FORMS, count_shapes, tiny_run


@pytest.mark.parametrize("form", FORMS)
def test_two_steps(train_on, toy, weights, tmp_path, form):
  train_on(tiny_run(form, toy, weights[form]), tmp_path, devices=8)


def test_one_trace_for_each_row_bucket(train_on, toy, weights, tmp_path):
  run = tiny_run("quickstart:stage1", toy, weights["stage2"], **{"steps": 6, "data.row_length": 32})
  assert 1 < count_shapes(run, 8) < run.steps
  train_on(run, tmp_path, devices=8)


def test_one_trace_for_each_image_size(train_on, toy, weights, tmp_path):
  run = tiny_run("stage1", toy, weights["stage1"], **{"steps": 4, "progressive": ((0, 16), (2, 32)), "mesh": "fsdp=2"})
  train_on(run, tmp_path, devices=8)


def test_a_step_that_is_traced_again_is_found(train_on, toy, weights, tmp_path, monkeypatch):
  """The check itself: with fewer traces allowed than there are shapes, it fails."""
  run = tiny_run("stage1", toy, weights["stage1"])
  monkeypatch.setattr("tests.helpers.tiny_runs.count_shapes", lambda *_: 0)
  with pytest.raises(AssertionError, match="is traced > 0 times"):
    train_on(run, tmp_path, devices=8)

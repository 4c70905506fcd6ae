"""Every config at tiny size, two steps on eight simulated devices."""

import pytest

from tests.helpers.tiny_runs import FORMS, tiny_run

QUICK = ("stage2", "quickstart:stage1")  # one with weights to begin with and one without


@pytest.mark.parametrize("form", [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in FORMS])
def test_two_steps(train_on, toy, weights, tmp_path, form):
  train_on(tiny_run(form, toy, weights[form]), tmp_path, devices=8)

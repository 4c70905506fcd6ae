"""Every config at tiny size, two steps on eight simulated devices."""

import pytest

from tests.helpers.tiny_runs import FORMS, tiny_run

SLOW = ("clip:rn50",)  # a ResNet's blocks are not scanned, and take XLA long


@pytest.mark.parametrize("form", [pytest.param(f, marks=pytest.mark.slow) if f in SLOW else f for f in FORMS])
def test_two_steps(train_on, toy, weights, tmp_path, form):
  train_on(tiny_run(form, toy, weights[form]), tmp_path, devices=8)

"""Sick numbers are reported with the records they came with, and end a run only when they stay."""

import json
import math

import numpy as np
import pytest

from fgclip_jax.train.guard import Guard, GuardConfig, NonFiniteError

RECORDS = np.asarray([[3, 1], [4, 1]])


def make(folder, said, **config) -> Guard:
  return Guard(GuardConfig(**config), str(folder), lambda number: f"shard, record {number}", said.append)


def values(loss: float, in_a_row: int = 0) -> dict[str, float]:
  norm = 1.0 if math.isfinite(loss) else math.nan
  return {"loss": loss, "gradient_norm": norm, "skipped_updates": float(in_a_row), "skipped_in_a_row": float(in_a_row)}


def test_steps_that_change_nothing(tmp_path):
  said = []
  guard = make(tmp_path, said, max_skipped=3)
  guard.look(7, values(math.nan, 1), RECORDS)
  assert said[0].startswith(
    "step 7: the loss is nan, the gradient's norm nan; nothing was changed (1 in a row, 1 in all)"
  )
  content = json.loads((tmp_path / "bad_steps" / "step-7.json").read_text())
  assert content["step"] == 7 and "nan" in content["reason"]
  assert content["records"] == {str(number): f"shard, record {number}" for number in (3, 1, 4)}
  guard.look(8, values(1.0), RECORDS)
  guard.look(9, values(math.inf, 2), RECORDS)
  with pytest.raises(NonFiniteError, match=r"step 10: .*\(3 in a row.* The weights are still those"):
    guard.look(10, values(math.nan, 3), RECORDS)
  assert sorted(path.name for path in (tmp_path / "bad_steps").iterdir()) == [
    "step-10.json",
    "step-7.json",
    "step-9.json",
  ]


def test_a_loss_that_jumps(tmp_path):
  said = []
  guard = make(tmp_path, said, spike_deviations=6.0)
  losses = 2.0 + np.random.default_rng(0).normal(0, 0.1, 300) - np.linspace(0, 1, 300)
  for step, loss in enumerate(losses):
    guard.look(step, values(float(loss)), RECORDS)
  assert said == []
  guard.look(300, values(4.0), RECORDS)
  guard.look(301, values(1.0), RECORDS)  # and it is as before
  assert len(said) == 1 and said[0].startswith("step 300: the loss jumped to 4.0000 from about 1.")
  assert (tmp_path / "bad_steps" / "step-300.json").exists()


def test_jumps_can_be_left_unreported(tmp_path):
  said = []
  guard = make(tmp_path, said, spike_deviations=0.0)
  for step in range(100):
    guard.look(step, values(1.0 if step != 80 else 1e6), RECORDS)
  assert said == [] and not (tmp_path / "bad_steps").exists()


@pytest.mark.parametrize(
  "change", [{"max_skipped": 0}, {"max_failed_saves": 0}, {"spike_deviations": -1.0}, {"grace_seconds": 0.0}]
)
def test_impossible_settings(change):
  with pytest.raises(ValueError, match=f"guard.{next(iter(change))} must"):
    GuardConfig(**change)

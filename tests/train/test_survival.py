"""A run that goes on elsewhere: on another mesh, with another number of data workers, nothing but rounding changes."""

import os
import shutil

import jax
import numpy as np
import pytest

from fgclip_jax.prepare.sources import scenes
from fgclip_jax.train import loop
from fgclip_jax.train.loop import train
from fgclip_jax.train.step import make_step
from fgclip_jax.weights.native import FOLDER
from tests.train.test_loop import assert_close, assert_same, make_run, read_metrics

pytestmark = pytest.mark.slow

EVERY, STEPS = 2, 6


class Stopped(Exception):
  """The machine is gone."""


class Journey:
  """Trains on some of the devices, and keeps what it saved, what it restored, and which records it saw.

  Attributes:
    saved: the states that were saved, by step; on the host.
    restored: the state that the last part of the journey began with.
    records: the records of every batch, in order, by step.
  """

  def __init__(self, monkeypatch, quick, data: str, workdir: str):
    self.saved, self.restored, self.records = {}, None, {}
    self._patch, self._data, self._workdir = monkeypatch, data, workdir
    journey, to_devices = self, loop.to_devices

    class Checkpoints(loop.Checkpoints):
      def save(self, step, state, *arguments, **options):
        journey.saved[step] = jax.device_get(state)
        super().save(step, state, *arguments, **options)

      def restore(self, *arguments):
        state = super().restore(*arguments)
        journey.restored, journey.step = jax.device_get(state), self.latest or 0
        return state

    def place(batch, mesh, repeats):
      if journey.step == journey.end:
        raise Stopped
      journey.step += 1
      journey.records[journey.step] = batch["record"].ravel().tolist()
      return to_devices(batch, mesh, repeats)

    monkeypatch.setattr(loop, "Checkpoints", Checkpoints)
    monkeypatch.setattr(loop, "to_devices", place)
    monkeypatch.setattr(loop, "make_step", lambda *settings, **savings: quick(make_step(*settings, **savings)))

  def train(self, mesh: str, devices: int, end: int | None = None, **data):
    """Trains; is stopped when the batch after step `end` is to be placed. Returns the last state, if there is one."""
    self.end, every = end, jax.devices()
    changes = {"steps": STEPS, "checkpoint_every": EVERY, "log_every": 1, "keep": {"newest": 9}}
    # a row holds the whole batch, so that one program runs every step
    run = make_run(
      self._data, "", mesh=mesh, data={"row_length": 1024, **data}, objective={"hard_negative": 0.0}, **changes
    )
    with self._patch.context() as patch:
      patch.setattr(jax, "devices", lambda: every[:devices])
      return train(run, self._workdir)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
  folder = str(tmp_path_factory.mktemp("scenes"))
  scenes.write(folder, train=40, validation=1, workers=1)
  return folder


def test_one_then_eight_then_four_devices(data, tmp_path, monkeypatch, quick):
  still, moved = str(tmp_path / "still"), str(tmp_path / "moved")
  undisturbed = Journey(monkeypatch, quick, data, still)
  last = undisturbed.train("data=1", 1)

  # the first part is the same: what it had saved before it was stopped
  shutil.copytree(still, moved, ignore=lambda folder, names: {"4", "6"} if folder.endswith(FOLDER) else set())
  journey = Journey(monkeypatch, quick, data, moved)
  with pytest.raises(Stopped):  # step 5 is under way, step 4 is saved; two processes have made batches ahead
    journey.train("data=2,fsdp=2,tensor=2", 8, end=5, workers=2)
  assert_same(journey.restored, undisturbed.saved[2])
  assert sorted(os.listdir(os.path.join(moved, FOLDER))) == ["2", "4"]
  on_four = journey.train("data=2,fsdp=2", 4)
  assert_same(journey.restored, journey.saved[4])

  assert journey.records == {step: undisturbed.records[step] for step in range(3, STEPS + 1)}
  assert_close(on_four, last)
  for one, two in zip(read_metrics(still), read_metrics(moved), strict=True):
    assert one["step"] == two["step"] and one["loss"] == pytest.approx(two["loss"], rel=1e-5)
    assert one["gradient_norm"] == pytest.approx(two["gradient_norm"], rel=1e-4)
  assert len(np.unique([line["loss"] for line in read_metrics(still)])) == STEPS

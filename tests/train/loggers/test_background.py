"""Loggers that fail, that are slow, and that do not come back: the run never notices more than a line."""

import threading
import time

import pytest
from PIL import Image

from fgclip_jax.train.loggers import background
from fgclip_jax.train.loggers.background import BackgroundLogger

PAUSES = (0.001, 0.002)


class Service:
  """Notes what it is given; the first `down` calls fail."""

  def __init__(self, down: int = 0, refused: str = ""):
    self.down, self.refused, self.got, self.opened = down, refused, [], 0

  def open(self) -> "Service":
    self.opened += 1
    self._fail()
    return self

  def log_scalars(self, step, values, seconds):
    self._fail()
    self.got.append((step, values))

  def log_image(self, step, name, image, caption):
    self._fail()
    if name == self.refused:
      raise TypeError("no such picture")
    self.got.append((step, name))

  def log_table(self, step, name, columns, rows):
    self.got.append((step, name, columns, rows))

  def close(self, failed):
    self.got.append(("closed", failed))

  def _fail(self):
    if self.down:
      self.down -= 1
      raise ConnectionError("quota exceeded")


def test_calls_arrive_in_order():
  service, lines = Service(), []
  logger = BackgroundLogger("toy", service.open, lines.append)
  for step in range(5):
    logger.log_scalars(step, {"loss": 1.0}, 0.0)
  logger.log_table(5, "texts", ["a"], [["b"]])
  logger.close(failed=True)
  assert service.got == [*((step, {"loss": 1.0}) for step in range(5)), (5, "texts", ["a"], [["b"]]), ("closed", True)]
  assert service.opened == 1 and lines == []


def test_an_outage_is_said_once_and_nothing_is_lost():
  service, lines = Service(down=7), []
  logger = BackgroundLogger("toy", service.open, lines.append, PAUSES)
  for step in range(3):
    logger.log_scalars(step, {"loss": 1.0}, 0.0)
  while len(service.got) < 3:
    time.sleep(0.01)
  logger.close(failed=False)
  assert sorted(step for step, _ in service.got[:3]) == [0, 1, 2]
  assert lines == [
    "toy: ConnectionError: quota exceeded; training goes on, and what is missing is sent when it can be",
    "toy: works again after 7 failures",
  ] or lines[0].startswith("toy: quota exceeded")
  assert logger.failures == 7 and logger.dropped == 0


def test_what_a_service_refuses_holds_nothing_else_up():
  service, lines = Service(refused="bad"), []
  logger = BackgroundLogger("toy", service.open, lines.append, PAUSES)
  logger.log_image(1, "bad", Image.new("RGB", (2, 2)), "")
  logger.log_scalars(2, {"loss": 1.0}, 0.0)
  while logger.dropped == 0:
    time.sleep(0.01)
  logger.close(failed=False)
  assert service.got == [(2, {"loss": 1.0}), ("closed", False)]
  assert "1 entries were not sent" in lines[-1]


@pytest.mark.parametrize("hangs", [False, True], ids=["fails", "hangs"])
def test_the_end_of_a_run_does_not_wait_for_a_service_that_is_gone(hangs):
  lines, release = [], threading.Event()

  def open_service():
    if hangs:
      release.wait(30)
    raise ConnectionError("no route to host")

  logger = BackgroundLogger("toy", open_service, lines.append, (300.0, 300.0))
  logger.log_scalars(1, {"loss": 1.0}, 0.0)
  begin = time.monotonic()
  logger.close(failed=False, seconds=0.2)
  assert time.monotonic() - begin < 5
  release.set()
  assert "not sent" in lines[-1] or "not finished" in lines[-1]


def test_memory_is_bounded(monkeypatch):
  monkeypatch.setattr(background, "_MOST_CALLS", 10)
  monkeypatch.setattr(background, "_MOST_IMAGES", 2)
  logger = BackgroundLogger("toy", Service(down=1).open, [].append, (300.0, 300.0))
  for step in range(4):
    logger.log_image(step, "samples", Image.new("RGB", (2, 2)), "")
  for step in range(20):
    logger.log_scalars(step, {"loss": 1.0}, 0.0)
  assert len(logger._calls) <= 11
  logger.close(failed=False, seconds=5.0)
  assert logger.dropped > 0

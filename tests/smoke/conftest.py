"""What the smoke tests share."""

import pytest

from fgclip_jax.models.config import preset
from fgclip_jax.weights import huggingface, open_clip
from tests.helpers.tiny_runs import random_weights, train_checked


@pytest.fixture
def train_on(monkeypatch):
  """Trains a run in a folder on the first so many devices, with every step checked; returns the last state."""
  return lambda run, workdir, devices: train_checked(run, workdir, devices, monkeypatch)


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> dict[str, str]:
  """By config, what it starts from: weights that others would have written; the quickstart's stage 1 has none."""
  vit, resnet = (preset(name).replace(text={"long_length": None}) for name in ("tiny", "tiny_resnet"))
  folders = {name: str(tmp_path_factory.mktemp(name)) for name in ("clip", "fgclip", "resnet")}
  huggingface.write(folders["clip"], vit, random_weights(vit))
  huggingface.write(folders["fgclip"], preset("tiny"), random_weights(preset("tiny")))
  open_clip.write(folders["resnet"], resnet, random_weights(resnet))
  starts = {"stage1": "clip", "stage2": "fgclip", "clip": "clip", "clip:rn50": "resnet", "quickstart:stage2": "fgclip"}
  return {form: folders[name] for form, name in starts.items()} | {"quickstart:stage1": ""}

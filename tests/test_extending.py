"""docs/extending.md: its code blocks are executed, each part in an empty folder and with fresh registries."""

import dataclasses
import importlib
import pathlib
import re
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import fgclip_jax
from fgclip_jax import convert, losses
from fgclip_jax.data import dataset_folder
from fgclip_jax.evals import registry
from fgclip_jax.losses import objective, terms
from fgclip_jax.models import config, fgclip, params, towers
from fgclip_jax.prepare import __main__ as prepare
from fgclip_jax.train import flops
from fgclip_jax.train.loggers import protocol
from fgclip_jax.train.loggers import registry as loggers
from fgclip_jax.weights import formats
from tests.helpers.toy_models import init

PAGE = (pathlib.Path(__file__).resolve().parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
PARTS = {
  part.splitlines()[0]: re.findall(r"^```python\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)
  for part in PAGE.split("\n## ")[1:]
}
REGISTRIES = (
  config.IMAGE_CONFIGS, config.TEXT_CONFIGS, towers.IMAGE_TOWERS, towers.TEXT_TOWERS, flops.IMAGE_FLOPS,
  registry.EVALUATORS, registry.CLASSES, terms.LOSS_TERMS, formats.FORMATS, loggers.LOGGERS,
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> fgclip_jax.FGCLIP:
  tiny = config.preset("tiny")
  return fgclip_jax.FGCLIP(tiny, init(tiny, 0))


def test_every_extension_point_has_its_part():
  assert list(PARTS) == [
    "A tower", "A text tower", "A loss term", "A data source", "An evaluator", "A weight format", "A logger"
  ]  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_short(part):
  lines = [line for block in PARTS[part] for line in block.splitlines() if line.strip()]
  assert 0 < len(lines) <= 30


@pytest.mark.parametrize("part", PARTS)
def test_the_code_of_a_part_works(part, tmp_path, monkeypatch, model):
  monkeypatch.chdir(tmp_path)
  for entries in REGISTRIES:
    for key in entries:
      monkeypatch.setitem(entries, key, entries[key])
  # `objective` is imported anew where a part imports it, and put back: its classes follow from the registry of terms
  monkeypatch.delitem(sys.modules, objective.__name__)
  monkeypatch.setattr(losses, "objective", objective)
  before = [set(entries) for entries in REGISTRIES]
  names = {
    "Image": Image, "convert": convert, "dataclasses": dataclasses, "fgclip_jax": fgclip_jax,
    "jax": jax, "model": model, "np": np, "pathlib": pathlib, "prepare": prepare,
    "read_splits": dataset_folder.read_splits, "registry": registry,
  }  # fmt: skip
  for module in (config, params, fgclip, towers, flops, registry, terms, formats, protocol, loggers):
    names |= {name: value for name, value in vars(module).items() if not name.startswith("_")}
  modules = []
  try:
    for block in PARTS[part]:
      path = re.match(r"# (fgclip_jax/\S+)\.py\n", block)
      if not path:
        exec(compile(block, f"docs/extending.md, {part}", "exec"), names)
        continue
      package, _, name = path[1].replace("/", ".").rpartition(".")
      folder = tmp_path / package
      folder.mkdir()
      (folder / f"{name}.py").write_text(block, encoding="utf-8")
      home = importlib.import_module(package)
      monkeypatch.setattr(home, "__path__", [*home.__path__, str(folder)])
      modules.append((home, name))
      names |= vars(importlib.import_module(f"{package}.{name}"))
  finally:
    for entries, keys in zip(REGISTRIES, before, strict=True):
      for key in set(entries) - keys:
        del entries[key]
    for home, name in modules:
      sys.modules.pop(f"{home.__name__}.{name}", None)
      vars(home).pop(name, None)

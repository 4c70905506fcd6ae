"""The ablations in miniature: its configs, tables and plot from made-up results; one tiny pass, continued and kept."""

import argparse
import dataclasses
import json

import jax
import numpy as np
import pytest

from benchmarks import ablation
from fgclip_jax.prepare.sources import scenes

pytestmark = pytest.mark.slow

FGCLIP, FGCLIP2 = ablation.STUDIES["fgclip"], ablation.STUDIES["fgclip2"]
OPTIONS = argparse.Namespace(model="fgclip", workdir="runs", data="data/scenes", stage1_steps=20, steps=10, batch=64)


def made_up(study=FGCLIP, seeds=3):
  """Results in which every step adds ten points to each measure, and each seed one."""
  results = {}
  for seed in range(seeds):
    for place, setting in enumerate(study.settings):
      metric = {"value": (10 * place + seed) / 100, "chance": 0.02, "count": 50}
      names = [name for names in study.measures.values() for name in names]
      metrics = dict.fromkeys(names, metric)
      results[seed, setting] = {"metrics": metrics, "batch": 64, "seconds": 60.0, "processor_seconds": 90.0}
  return results


def test_tables():
  lines = ablation.report(made_up(), FGCLIP, 20, 10).splitlines()
  assert "| chance | 2.00 | 2.00 | 2.00 |" in lines
  assert "| stage 1 only | 1.0 ± 1.0 (57.9) | 1.0 ± 1.0 (47.2) | 1.0 ± 1.0 (21.8) |" in lines
  assert "| stage 1 continued (control) | 11.0 ± 1.0 | 11.0 ± 1.0 | 11.0 ± 1.0 |" in lines
  change = "+10.0 ± 0.0 (-0.5) | +10.0 ± 0.0 (-1.4) | +10.0 ± 0.0 (+21.6)"
  assert f"| + regional loss → + hard negatives (full) | {change} |" in lines
  assert lines[-1] == "All runs together took 15 minutes, and 22 minutes of processor time."
  assert "| stage 1 only | 0.0 (57.9) |" in ablation.report(made_up(seeds=1), FGCLIP, 20, 10)


def test_tables_of_fgclip2():
  lines = ablation.report(made_up(FGCLIP2), FGCLIP2, 20, 10).splitlines()
  assert "| stage 1 only | 1.0 ± 1.0 | 1.0 ± 1.0 | 1.0 ± 1.0 |" in lines
  assert "| without TIC | 31.0 ± 1.0 (87.8) | 31.0 ± 1.0 (70.1) | 31.0 ± 1.0 (51.6) |" in lines
  change = "+30.0 ± 0.0 (-0.5) | +30.0 ± 0.0 (-12.2) | +30.0 ± 0.0 (-0.6)"
  assert f"| stage 2, all losses → without both | {change} |" in lines


def test_plot_is_the_same_for_the_same_numbers(tmp_path):
  pytest.importorskip("matplotlib", reason="needs matplotlib, see requirements-dev.txt")
  plots = []
  for name in ("a.svg", "b.svg"):
    ablation.draw(made_up(), FGCLIP, str(tmp_path / name))
    plots.append((tmp_path / name).read_bytes())
  assert plots[0] == plots[1] and b"<svg" in plots[0]


def test_settings_differ_in_what_they_are_about_alone():
  configs = {setting: ablation.make_config(2, setting, OPTIONS) for setting in FGCLIP.settings}
  weights = {name: (each.objective.regional, each.objective.hard_negative) for name, each in configs.items()}
  full = weights["full"]
  assert min(full) > 0
  assert weights == {
    "stage1": (0.0, 0.0),
    "control": (0.0, 0.0),
    "global": (0.0, 0.0),
    "regional": (full[0], 0.0),
    "full": full,
  }
  assert [each.steps for each in configs.values()] == [20, 30, 10, 10, 10]
  assert [each.seed for each in configs.values()] == [2, 2, 102, 102, 102]
  assert all(configs[name].init_from == "runs/seed2/stage1" for name in ("global", "regional", "full"))
  for name in ("global", "regional"):
    same = configs[name].copy_and_resolve_references()
    same.objective = configs["full"].objective
    assert same == configs["full"]


def test_settings_of_fgclip2_differ_in_two_weights_alone():
  options = argparse.Namespace(**{**vars(OPTIONS), "model": "fgclip2"})
  configs = {setting: ablation.make_config(0, setting, options) for setting in FGCLIP2.settings}
  weights = {name: (each.objective.hard_rank, each.objective.text_intra_modal) for name, each in configs.items()}
  rank, intra = weights["full"]
  assert min(rank, intra) > 0
  assert weights == {
    "stage1": (0.0, 0.0),
    "full": (rank, intra),
    "no_rank": (0.0, intra),
    "no_intra": (rank, 0.0),
    "neither": (0.0, 0.0),
  }
  for name in ("no_rank", "no_intra", "neither"):
    configs[name].objective.update({"hard_rank": rank, "text_intra_modal": intra})
    assert configs[name] == configs["full"]


@pytest.mark.slow
def test_a_tiny_pass(tmp_path, capsys, monkeypatch):
  make_config = ablation.make_config

  def make_tiny(*arguments):
    config = make_config(*arguments)
    config.model = "tiny"
    return config

  monkeypatch.setattr(ablation, "make_config", make_tiny)
  # the settings left out differ from the others' programs in weights of losses alone
  settings = {name: label for name, label in FGCLIP.settings.items() if name in ("stage1", "control", "full")}
  steps_between = (("stage1", "control"), ("stage1", "full"))
  study = dataclasses.replace(FGCLIP, settings=settings, steps_between=steps_between)
  monkeypatch.setitem(ablation.STUDIES, "fgclip", study)
  data = str(tmp_path / "scenes")
  scenes.write(data, train=32, validation=8, workers=1)
  arguments = ["--workdir", str(tmp_path), "--data", data, "--seeds", "1", "--stage1_steps", "2", "--steps", "2"]
  arguments += ["--batch", "8"]
  with jax.numpy_dtype_promotion("standard"):  # Optax's own code needs it
    assert ablation.main(arguments) == 0
  told = capsys.readouterr().out
  assert "continuing" in told and "from step 2" in told  # the control goes on where stage 1 ended
  results = {}
  for setting in settings:
    path = tmp_path / "seed0" / setting / ablation.RESULT
    results[setting] = json.loads(path.read_text())
    assert np.isfinite(results[setting]["metrics"]["region_top1"]["value"])
  assert [result["steps"] for result in results.values()] == [2, 4, 2]
  assert ablation.main(arguments) == 0
  again = capsys.readouterr().out
  assert again.count("kept ") == len(settings)
  assert told[told.index("| |") :] == again[again.index("| |") :]
  with pytest.raises(ValueError, match="give another --workdir"):
    ablation.main([*arguments, "--batch", "16"])
  with pytest.raises(ValueError, match="'data': '.*other'"):
    ablation.main([*arguments, "--data", str(tmp_path / "other")])

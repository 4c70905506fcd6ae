"""What a run shows: samples of its batch, heat maps and scores of a fixed picture, in what its loggers write."""

import importlib.util
import io

import numpy as np
import pytest
from PIL import Image

from configs import common
from fgclip_jax.data.config import DataConfig
from fgclip_jax.data.loader import Loader
from fgclip_jax.data.packing import Layout
from fgclip_jax.data.patch_rows import pack_patches
from fgclip_jax.data.patches import PatchLayout, cut_patches
from fgclip_jax.data.tokenizers import get_tokenizer
from fgclip_jax.models.params import unflatten
from fgclip_jax.prepare.sources import scenes
from fgclip_jax.train.config import read_config
from fgclip_jax.train.logger import open_metrics
from fgclip_jax.train.loggers import samples
from tests.helpers.tiny_runs import random_weights
from tests.helpers.toy import BOXES, RECORDS, make_loader
from tests.train.test_logger import read_events


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
  folder = str(tmp_path_factory.mktemp("scenes"))
  scenes.write(folder, train=16, validation=2, workers=1)
  return folder


def test_what_is_shown_of_a_step(data, tmp_path, capsys, monkeypatch):
  """At step 2 all is shown, in every service that is installed; at step 4 the maps fail."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
  monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
  services = [name for name in ("wandb", "mlflow") if importlib.util.find_spec(name)]
  config = common.get_config()
  config.model, config.image_every, config.loggers = "tiny", 2, tuple(services)
  config.data.update({"path": data, "batch_size": 8, "boxes": 2, "workers": 0})
  run, folder = read_config(config), tmp_path / "run"
  folder.mkdir()
  metrics = open_metrics(run, str(folder), 0)
  loader = Loader(run.data, run.layout(), 32, seed=0)
  gallery = samples.Gallery(run, loader.where, metrics, print)
  assert [step for step in range(1, 6) if gallery.is_due(step)] == [2, 4] and gallery.take(1, {}) == []
  taken = gallery.take(2, next(loader))
  loader.close()
  params, heard = unflatten(random_weights(run.model)), []
  gallery.show(2, params, taken, heard.append)
  monkeypatch.setattr(samples, "look", lambda *_: 1 / 0)
  gallery.show(4, params, taken, heard.append)
  metrics.close()

  values = [(event.step, value) for event in read_events(folder) for value in event.summary.value]
  shown = {(step, value.tag): value for step, value in values}
  assert {step for step, _ in shown} == {2, 4} and (4, "samples/batch") in shown
  assert (4, "samples/heat_maps") not in shown and heard[0] == "the pictures of step 2"
  for name in ("samples/batch", "samples/heat_maps"):
    picture = Image.open(io.BytesIO(shown[2, name].image.encoded_image_string))
    assert picture.size == (shown[2, name].image.width, shown[2, name].image.height) and min(picture.size) > 200
  (table,) = shown[2, "samples/scores/text_summary"].tensor.string_val
  header, _, *rows = table.decode().splitlines()
  assert header == "| caption | compared with | score |" and len(rows) >= 3
  _, compared, scores = zip(*(row.strip("| ").split(" | ") for row in rows), strict=True)
  assert compared[0] == "box 1" and compared[-2:] == ("picture", "picture")
  assert all(-1 <= float(score) <= 1 for score in scores)
  out = capsys.readouterr().out
  assert "heat maps are drawn of validation " in out
  assert "step 4: its pictures could not be measured: division by zero" in out
  pictures = {"wandb": "wandb/*/files/media/images/samples/heat_maps*.png", "mlflow": "mlruns/*/*/artifacts/images/*"}
  assert all(list(tmp_path.rglob(pictures[name])) for name in services)


@pytest.mark.parametrize("packed", [True, False])
def test_samples_are_what_the_step_gets(toy, packed):
  tokenizer = get_tokenizer()
  loader = make_loader(toy, layout=Layout(boxes=BOXES, packed=packed), shuffle=False, shards=2)
  batch = next(loader)
  found = samples.take(batch, count=6)
  loader.close()
  assert [sample.record for sample in found] == list(range(6))
  for sample, of in zip(found, RECORDS, strict=False):
    np.testing.assert_array_equal(sample.pixels, batch["image"].reshape(-1, *sample.pixels.shape)[sample.record])
    assert tokenizer.decode(sample.short) == ("five" if sample.record == 5 else of.short)
    assert tokenizer.decode(sample.long).split() == (of.long or of.short).replace(",", " ,").split()
    wanted = of.regions[:BOXES]
    for ids, region in zip(sample.regions, wanted, strict=True):
      assert tokenizer.decode(ids) in (region.short, region.long)
    np.testing.assert_allclose(sample.boxes, np.reshape([region.box for region in wanted], (-1, 4)), atol=1e-6)
  sheet = samples.draw_batch(found, tokenizer, loader.where)
  assert sheet.width > sheet.height > 200


def test_the_fixed_picture(toy, data, tmp_path, capsys):
  fixed = samples.find_fixed(DataConfig(path=toy), print)  # no split `validation`; record 0 has no regions
  assert fixed and fixed.name == "train 1" and fixed.record.regions
  fixed = samples.find_fixed(DataConfig(path=data), print)
  assert fixed and fixed.name.startswith("validation ")
  assert samples.find_fixed(DataConfig(path=str(tmp_path)), print) is None
  assert "no heat maps are drawn: no shard of split 'validation' in" in capsys.readouterr().out.splitlines()[-1]


def test_pictures_are_put_together_from_packed_patches():
  rng = np.random.default_rng(0)
  grids = [(2, 3), (1, 5), (4, 2), (3, 3)]
  whole = [rng.integers(0, 256, (8 * height, 8 * width, 3), dtype=np.uint8) for height, width in grids]
  batch = pack_patches([cut_patches(each, 8) for each in whole], grids, 2, PatchLayout(10, 8))
  for number, expected in enumerate(whole):
    np.testing.assert_array_equal(samples.join_patches(batch, divmod(number, 2)), expected)

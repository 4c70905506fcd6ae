"""The configs that come with the project: each resolves, with each of its arguments."""

import dataclasses
import importlib
import io
import json
import math
import pathlib

import ml_collections
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from fgclip_jax.data import record as records
from fgclip_jax.data.config import DataConfig
from fgclip_jax.data.dataset_folder import shard_path
from fgclip_jax.losses.objective import Objective
from fgclip_jax.models.config import preset
from fgclip_jax.models.params import abstract_params, flatten
from fgclip_jax.models.transformer import Runtime
from fgclip_jax.train.checkpoints.settings import Keep
from fgclip_jax.train.config import read_config
from fgclip_jax.train.guard import GuardConfig
from fgclip_jax.train.optimizer import OptimizerConfig, rule_value
from fgclip_jax.weights import native

MODELS = ("vit_b32", "vit_b16", "vit_l14", "vit_l14_336", "rn50", "rn50x64", "tiny", "tiny_resnet", "scenes")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
  """A data set of one record."""
  folder = str(tmp_path_factory.mktemp("data"))
  file = io.BytesIO()
  Image.new("RGB", (8, 8)).save(file, "PNG")
  writer = ArrayRecordWriter(shard_path(folder, "toy", "train", 0, 1), "group_size:1")
  writer.write(records.encode(records.Record(id="0", image=file.getvalue(), short="black")))
  writer.close()
  return folder


def get(name: str, *argument: str):
  return importlib.import_module(f"configs.{name}").get_config(*argument)


RECORDED = json.loads(pathlib.Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def flat(section: ml_collections.ConfigDict, prefix: str = "") -> dict[str, list]:
  """Every key with its type and its value, as JSON has them."""
  found = {}
  for key, value in section.items():
    if isinstance(value, ml_collections.ConfigDict):
      found |= flat(value, f"{prefix}{key}.")
    else:
      found[prefix + key] = [section.get_type(key).__name__, as_json(value)]
  return found


def as_json(value):
  return {"tuple": [as_json(item) for item in value]} if isinstance(value, tuple) else value


@pytest.mark.parametrize("config", RECORDED)
def test_values_are_as_recorded(config):
  """A default that changes in a dataclass changes what runs do: then record it here, too."""
  name, *argument = config.split(":")
  expected = RECORDED["common"] | RECORDED[config]
  found = flat(get(name, *argument))
  assert found == expected and list(found) == list(expected)


@pytest.mark.parametrize(
  ("section", "kind", "set_elsewhere"),
  [
    ("objective", Objective, set()),
    ("data", DataConfig, set()),
    ("optimizer", OptimizerConfig, {"total_steps"}),
    ("runtime", Runtime, {"sharding", "dtype", "remat"}),
    ("keep", Keep, set()),
    ("guard", GuardConfig, set()),
  ],
)
def test_a_section_is_its_dataclass(section, kind, set_elsewhere):
  values = get("common")[section]
  for field in dataclasses.fields(kind):
    if field.name not in set_elsewhere:
      value = values[field.name]
      found = type(field.default)(**value) if isinstance(value, ml_collections.ConfigDict) else value
      assert found == field.default, field.name


def test_none_is_left_out(root: pathlib.Path):
  names = {path.stem for path in (root / "configs").glob("*.py")} - {"__init__"}
  assert names == {"common", "stage1", "stage2", "fgclip2", "clip", "quickstart"}


@pytest.mark.parametrize("name", ["common", "stage1", "stage2", "clip"])
def test_data_is_all_that_a_config_needs(data, name):
  config = get(name)
  with pytest.raises(ValueError, match="config.data.path is empty"):
    read_config(config)
  config.data.path = data
  run = read_config(config)
  assert run.steps == config.steps and run.data.path == data


@pytest.mark.parametrize("name", ["stage1", "stage2", "clip"])
@pytest.mark.parametrize("model", MODELS)
def test_the_argument_picks_the_model(data, name, model):
  config = get(name, model)
  config.data.path = data
  run = read_config(config)
  assert run.model.vision == preset(model).vision
  assert run.model.fine_grained == (name != "clip")


PUBLISHED = [("vit_b16", 224, 16, 768, 512), ("vit_l14_336", 336, 14, 1024, 768)]


@pytest.mark.parametrize("name", ["stage1", "stage2"])
@pytest.mark.parametrize(("model", "image_size", "patch_size", "width", "embedding_width"), PUBLISHED)
def test_the_published_models(data, name, model, image_size, patch_size, width, embedding_width):
  config = get(name, model)
  config.data.path = data
  size = read_config(config).model
  assert (size.vision.image_size, size.vision.patch_size, size.vision.width) == (image_size, patch_size, width)
  assert (size.text.short_length, size.text.long_length, size.embedding_width) == (77, 248, embedding_width)


@pytest.mark.parametrize("model", [model for model, *_ in PUBLISHED])
def test_stage1_is_the_published_one(data, model):
  config = get("stage1", model)
  config.data.path = data
  run = read_config(config)
  assert not run.objective.needs_regions and run.layout().boxes == 0
  assert run.objective.global_long == run.objective.global_short == 1.0
  assert run.data.batch_size == 160 * 384
  assert run.steps == 1_600_000_000 // run.data.batch_size  # one epoch
  optimizer = run.optimizer
  assert (optimizer.name, optimizer.learning_rate, optimizer.temperature_max) == ("adamw", 1e-4, None)
  assert config.runtime.dtype == "bfloat16"


@pytest.mark.parametrize("model", [model for model, *_ in PUBLISHED])
def test_stage2_is_the_published_one(data, model):
  config = get("stage2", model)
  config.data.path = data
  run = read_config(config)
  weights = run.objective.global_long, run.objective.global_short, run.objective.regional, run.objective.hard_negative
  assert weights == (1.0, 1.0, 0.1, 0.5)
  assert run.objective.regional_group == 512 and run.data.batch_size == 8 * 512
  assert run.steps == round(12_000_000 / run.data.batch_size)  # one epoch
  optimizer = run.optimizer
  assert (optimizer.name, optimizer.learning_rate, optimizer.weight_decay) == ("adamw", 1e-6, 0.001)
  assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.9, 0.999, 1e-8)
  assert (optimizer.warmup_steps, optimizer.end_fraction) == (200, 0.0)
  assert optimizer.clip_norm is None and optimizer.temperature_max is None
  assert (config.runtime.dtype, config.runtime.remat) == ("bfloat16", "full")
  assert run.data.short_prefix == "a photo of " and run.data.region_text == "random" and run.layout().boxes == 4


def test_fgclip2_is_the_published_one():
  run = read_config(get("fgclip2"), check_data=False)
  weights = run.objective.weights
  assert {name: weight for name, weight in weights.items() if weight} == {
    "global_long": 1.0, "global_short": 1.0, "regional": 0.2, "text_intra_modal": 0.1, "hard_contrast": 0.3,
    "hard_negative": 1.5, "hard_rank": 0.2,
  }  # fmt: skip
  assert (run.objective.contrast, run.objective.regional_contrast) == ("sigmoid", "softmax")
  assert run.objective.regional_group == 512 and run.data.batch_size == 8 * 512
  assert run.steps == pytest.approx(6 * 24e6 / run.data.batch_size, rel=0.01)  # six epochs
  optimizer = run.optimizer
  assert (optimizer.name, optimizer.learning_rate, optimizer.weight_decay) == ("adamw", 1e-6, 0.001)
  assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.9, 0.98, 1e-6)
  assert (optimizer.warmup, optimizer.end_fraction) == (1_050, 0.0)
  assert optimizer.clip_norm is None and optimizer.temperature_max is None
  names = flatten(abstract_params(run.model))
  decayed = {name for name in names if rule_value(optimizer.rules, "weight_decay", name)}
  assert names.keys() - decayed == {name for name in names if "norm" in name or "bias" in name}
  assert {"temperature/global", "vision/pooling_head/probe", "text/long_positions"} <= decayed
  assert run.data.language_steps and run.data.patch_budget == "dynamic" and run.layout().row_length == 260
  assert run.layout().patches.budgets[-1] == 1024 and run.layout().boxes == 4


@pytest.mark.parametrize("model", ["fgclip2_b16", "fgclip2_l16", "fgclip2_so400m16"])
def test_stage1_of_fgclip2_has_the_global_losses_alone(model):
  run = read_config(get("fgclip2", f"stage1,{model}"), check_data=False)
  assert {name for name, weight in run.objective.weights.items() if weight} == {"global_long", "global_short"}
  assert run.model.vision == preset(model).vision and run.layout().boxes == 0


@pytest.mark.parametrize("argument", ["stage3", "fgclip2_b16", "stage1,vit_b16"])
def test_fgclip2_takes_a_stage_and_a_model(argument):
  with pytest.raises(ValueError, match="takes stage1 or stage2 after the colon"):
    get("fgclip2", argument)


CLIP_RATES = {
  "rn50": 5e-4, "rn101": 5e-4, "rn50x4": 5e-4, "rn50x16": 4e-4, "rn50x64": 3.6e-4,
  "vit_b32": 5e-4, "vit_b16": 5e-4, "vit_l14": 4e-4, "vit_l14_336": 2e-5,
}  # fmt: skip


@pytest.mark.parametrize("model", CLIP_RATES)
def test_clip_is_the_published_one(data, model):
  config = get("clip", model)
  config.data.path = data
  run = read_config(config)
  optimizer, epochs = run.optimizer, 1 if model.endswith("336") else 32
  assert run.steps * run.data.batch_size == pytest.approx(epochs * 400e6, rel=1e-4) and run.data.batch_size == 32_768
  assert (optimizer.name, optimizer.weight_decay, optimizer.warmup_steps) == ("adamw", 0.2, 2000)
  assert optimizer.learning_rate == CLIP_RATES[model]
  betas = (0.9, 0.999, 1e-8) if model.startswith("rn") else (0.9, 0.98, 1e-6)
  assert (optimizer.b1, optimizer.b2, optimizer.eps) == betas
  assert (optimizer.moment_dtype, config.runtime.dtype, config.runtime.remat) == ("bfloat16", "bfloat16", "full")
  assert math.exp(optimizer.temperature_max) == pytest.approx(100)
  assert math.exp(-run.model.temperature_init) == pytest.approx(0.07, rel=1e-4)
  assert config.data.crop == "random_square"
  decayed = {name for name in flatten(abstract_params(run.model)) if rule_value(optimizer.rules, "weight_decay", name)}
  assert not any(name.endswith(("bias", "scale")) for name in decayed) and "temperature/global" not in decayed
  kernels = {name for name in flatten(abstract_params(run.model)) if name.endswith("kernel")}
  assert kernels | {"text/token_embedding", "vision/positions", "text/short_positions"} <= decayed


def test_clip_has_neither_long_text_nor_regions(data):
  config = get("clip")
  config.data.path = data
  run = read_config(config)
  assert run.layout().long_length is None and run.layout().boxes == 0
  assert run.optimizer.temperature_max == pytest.approx(4.6052, abs=1e-4)


@pytest.mark.parametrize(
  ("prefix", "model", "folder"), [("", "scenes", "data/scenes"), ("fgclip2_", "scenes2", "data/scenes_mixed")]
)
def test_quickstart(data, tmp_path, prefix, model, folder):
  one, two = get("quickstart", f"{prefix}stage1"), get("quickstart", f"{prefix}stage2")
  assert (one.init_from, two.init_from) == ("", f"runs/quickstart/{prefix}stage1")
  native.write_model_file(str(tmp_path), preset(model))
  two.init_from = str(tmp_path)
  for config in (one, two):
    assert config.data.path == folder
    config.data.path = data
  assert not read_config(one).objective.needs_regions
  assert read_config(two).objective.needs_regions and read_config(two).layout().boxes == 3
  with pytest.raises(ValueError, match="takes stage1 or stage2 or fgclip2_stage1 .* after the colon, got 'stage3'"):
    get("quickstart", "stage3")

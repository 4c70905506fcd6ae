"""Configs: every value is checked before anything is compiled, and an error names the key."""

import dataclasses
import enum
import io
import math

import ml_collections
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from fgclip_jax.data import record as records
from fgclip_jax.data.dataset_folder import shard_path
from fgclip_jax.models.config import PRESETS, preset
from fgclip_jax.models.params import abstract_params, flatten
from fgclip_jax.train.config import RunConfig, read_config
from fgclip_jax.weights import huggingface, native


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


def make_config(path: str, /, **changes) -> ml_collections.ConfigDict:
  """The base config of a tiny model; `optimizer__b1=0` changes `optimizer.b1`, and a value of DELETE removes a key."""
  from configs import common

  config = common.get_config()
  config.model, config.data.path = "tiny", path
  with config.unlocked(), config.ignore_type():
    for key, value in changes.items():
      *sections, name = key.split("__")
      section = config
      for part in sections:
        section = section[part]
      if value is DELETE:
        del section[name]
      else:
        section[name] = value
  return config


DELETE = enum.Enum("Left", "OUT").OUT  # its name is the same in every process, unlike an object()'s


def read(path: str, /, **changes) -> RunConfig:
  return read_config(make_config(path, **changes))


def test_the_base_config(data):
  run = read(data)
  assert run.model == preset("tiny") and run.model.fine_grained
  assert run.optimizer.total_steps == run.steps == 1000
  assert run.runtime.dtype == np.dtype("bfloat16")
  assert run.mesh is None
  assert run.values["optimizer"]["learning_rate"] == 1e-6
  layout = run.layout()
  assert (layout.boxes, layout.row_length, layout.short_length, layout.long_length) == (4, 256, 77, 248)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("kind", ["fgclip", "clip"])
def test_every_preset(data, name, kind):
  changes = {"objective__global_long": 0.0, "objective__regional": 0.0, "objective__hard_negative": 0.0}
  config = make_config(data, model=name, kind=kind, **(changes if kind == "clip" else {}))
  # the tokenizers of these are read from a model's own files
  run = read_config(config, check_data=preset(name).text.tokenizer not in ("gemma", "siglip"))
  assert run.model.fine_grained == (kind == "fgclip")
  expected = preset(name).vision
  if run.model.text.type == "siglip":  # the dense head comes and goes with the other paths of FG-CLIP 2
    expected = dataclasses.replace(expected, dense_head=kind == "fgclip")
  assert run.model.vision == expected


def test_stages_without_regions_or_long_text_leave_them_out_of_the_batch(data):
  stage1 = read(data, objective__regional=0.0, objective__hard_negative=0.0, data__boxes=0)
  assert stage1.layout().boxes == 0 and stage1.layout().long_length == 248
  plain = read(data, kind="clip", objective__global_long=0.0, objective__regional=0.0, objective__hard_negative=0.0)
  assert plain.layout().long_length is None


def test_captions_of_sets_are_in_the_batch(data):
  run = read(data, data__captions__set_size=3, data__captions__draw="weighted", objective__caption_set=0.5)
  assert (run.data.captions.draw, run.data.captions.set_size, run.data.captions.alt_text_share) == ("weighted", 3, None)
  layout = run.layout()
  assert layout.set_size == 3 and layout.reads_long and not layout.caption_ids
  only = {"objective__global_long": 0.0, "objective__mask_identical": True}
  layout = read(data, data__captions__set_size=3, objective__caption_set=0.5, **only).layout()
  assert layout.long_length == 248 and not layout.reads_long and layout.caption_ids
  fine = {"objective__regional": 0.0, "objective__hard_negative": 0.0}
  plain = read(data, kind="clip", data__captions__set_size=3, objective__caption_set=0.5, **only, **fine).layout()
  assert plain.set_size == 3 and plain.long_length is None


def test_model_changes(data):
  run = read(
    data, model_changes__vision__image_size=64, model_changes__vision__depth=1, model_changes__embedding_width=8
  )
  assert run.model == preset("tiny").replace(vision={"image_size": 64, "depth": 1}, embedding_width=8)


def test_whole_numbers_stand_for_floats(data):
  run = read(data, optimizer__clip_norm=1, objective__regional=1, patch_dropout=0)
  assert type(run.optimizer.clip_norm) is float and type(run.objective.regional) is float


def test_rules_are_read_in_their_types(data):
  run = read(data, optimizer__rules=[["^vision", "frozen", 1], ("norm", "weight_decay", 0)], ema_decay=0.5)
  assert run.optimizer.rules == (("^vision", "frozen", 1.0), ("norm", "weight_decay", 0.0))
  assert all(type(value) is float for _, _, value in run.optimizer.rules)
  assert run.ema_decay == 0.5 and read(data).ema_decay is None


@pytest.mark.parametrize("plain", [True, False])
def test_the_model_of_the_weights(data, tmp_path, plain):
  model = preset("tiny").replace(vision={"depth": 3}, text={"vocab_size": 64})
  if plain:
    model = model.replace(text={"long_length": None})
  flat = {name: np.zeros(leaf.shape, np.float32) for name, leaf in flatten(abstract_params(model)).items()}
  huggingface.write(str(tmp_path / "theirs"), model, flat)
  native.write_model_file(str(tmp_path), model)
  for folder in (tmp_path / "theirs", tmp_path):
    run = read(data, model="from_weights", init_from=str(folder))
    assert run.model.vision.depth == 3 and run.model.text.vocab_size == 64
    assert run.model.text.long_length == 248  # a plain CLIP becomes FG-CLIP


def test_the_sigmoid_contrast_brings_its_bias(data, tmp_path):
  run = read(data, objective__contrast="sigmoid")
  assert run.model == preset("tiny").replace(temperature_init=np.log(10), logit_bias=-10.0)
  assert flatten(abstract_params(run.model))["temperature/bias"].shape == ()
  native.write_model_file(str(tmp_path), run.model)
  again = {"model": "from_weights", "init_from": str(tmp_path)}
  assert read(data, objective__contrast="sigmoid", **again).model == run.model
  native.write_model_file(str(tmp_path), preset("tiny"))
  with pytest.raises(ValueError, match="config.objective.contrast is 'sigmoid', but the weights in .* no logit bias"):
    read(data, objective__contrast="sigmoid", **again)


IMPOSSIBLE = [
  # keys
  ({"foo": 1}, r"unknown keys \['foo'\] in the config"),
  ({"data__foo": 1}, r"unknown keys \['foo'\] in config.data; it takes \['batch_size'"),
  ({"optimizer__total_steps": 1}, r"unknown keys \['total_steps'\] in config.optimizer"),
  ({"runtime__foo": 1}, r"unknown keys \['foo'\] in config.runtime"),
  ({"model_changes__vision__foo": 1}, "config.model_changes: .*'foo'"),
  ({"steps": DELETE}, "config.steps is missing"),
  ({"optimizer": DELETE}, "config.optimizer is missing"),
  ({"runtime": DELETE}, "config.runtime is missing"),
  ({"data": 3}, "config.data must be a section"),
  ({"mesh": (1, 1, 1)}, "config.mesh must be str"),
  ({"data__captions": "weighted"}, "config.data.captions must be a section"),
  (
    {"data__captions__size": 4},
    r"unknown keys \['size'\] in config.data.captions; it takes \['alt_text_share', 'draw'",
  ),
  ({"data__captions__set_size": "4"}, "config.data.captions.set_size must be int, got '4'"),
  ({"data__captions__draw": "all"}, "config.data.captions.draw must be one of"),
  ({"data__captions__sentences": 2}, "config.data.captions.sentences=2 is for captions of the set"),
  (
    {"objective__caption_set": 1.0},
    "config.objective.caption_set compares captions of sets, .*set_size takes none",
  ),
  ({"data__captions__set_size": 4}, "config.data.captions.set_size=4 is for captions that no term compares"),
  # types
  ({"optimizer__learning_rate": "1e-3"}, "config.optimizer.learning_rate must be float, got '1e-3'"),
  ({"optimizer__warmup_steps": 1.5}, "config.optimizer.warmup_steps must be int, got 1.5"),
  ({"optimizer__clip_norm": "one"}, r"config.optimizer.clip_norm must be float \| None"),
  ({"optimizer__rules": "norm"}, "config.optimizer.rules must be tuple"),
  (
    {"optimizer__rules": (("norm", "frozen"),)},
    r"config.optimizer.rules must be tuple\[tuple\[str, str, float\], ...\]",
  ),
  ({"optimizer__rules": ((3, "frozen", 1.0),)}, r"config.optimizer.rules must be .* got \(\(3, 'frozen', 1.0\),\)"),
  ({"optimizer__rules": (("norm", "frozen", float("inf")),)}, "config.optimizer.rules must be finite"),
  ({"ema_decay": "0.9"}, r"config.ema_decay must be float \| None"),
  ({"data__packed": 1}, "config.data.packed must be bool"),
  ({"data__batch_size": True}, "config.data.batch_size must be int"),
  ({"data__path": None}, "config.data.path must be str"),
  ({"objective__regional": float("nan")}, "config.objective.regional must be finite"),
  ({"model": 16}, "config.model must be str"),
  ({"init_from": None}, "config.init_from must be str"),
  ({"profile": 5}, "config.profile must be tuple"),
  ({"progressive": 112}, "config.progressive must be tuple"),
  ({"patch_dropout": "half"}, "config.patch_dropout must be float"),
  ({"compilation_cache": None}, "config.compilation_cache must be str"),
  # ranges
  ({"steps": 0}, "config.steps must be a whole number in 1..2147483647, got 0"),
  ({"steps": 1.5}, "config.steps must be a whole number"),
  ({"seed": -1}, "config.seed must be a whole number in 0..4294967295"),
  ({"log_every": 0}, "config.log_every must be"),
  ({"checkpoint_every": 0}, "config.checkpoint_every must be"),
  ({"keep__newest": 0}, "config.keep.newest must be"),
  ({"keep__every": -1}, "config.keep.every must be a whole number of at least 0"),
  ({"in_flight": 0}, "config.in_flight must be"),
  ({"keep__mode": "least"}, "keep.mode must be .min. or .max."),
  ({"guard__max_skipped": 0}, "guard.max_skipped must be at least 1"),
  ({"mesh": "fsdp=1.0"}, "config.mesh must be 'auto', or sizes of the axes data, fsdp, tensor as in"),
  ({"runtime__dtype": "float16"}, r"config.runtime.dtype must be one of \['float32', 'bfloat16'\], got 'float16'"),
  ({"runtime__remat": "some"}, "remat must be 'none', 'dots', 'full'"),
  ({"runtime__unroll": -1}, "config.runtime.unroll must be"),
  # the model
  ({"model": "vit_h14"}, "config.model: no model preset 'vit_h14'; there are vit_b32.*from_weights"),
  ({"model": "from_weights"}, "config.model is 'from_weights', but config.init_from is empty"),
  ({"kind": "siglip"}, "config.kind must be 'fgclip' or 'clip'"),
  ({"model_changes__vision__heads": 0}, "config.model_changes.vision.heads must be a whole number of at least 1"),
  ({"model_changes__vision__heads": 3}, "config.model_changes: width 32 must be divisible by heads 3"),
  ({"model_changes__vision__patch_size": 7}, "config.model_changes: image_size 32 must be a multiple of patch_size 7"),
  ({"model_changes__vision__layer_norm_eps": math.nan}, "vision.layer_norm_eps must be positive and finite, got nan"),
  ({"model_changes__text__layer_norm_eps": -1.0}, "text.layer_norm_eps must be positive and finite, got -1.0"),
  ({"steps": 10**12}, r"config.steps must be a whole number in 1..2147483647, got 1000000000000"),
  ({"data__batch_size": 10**12}, r"config.data.batch_size must be a whole number in 1..2147483647"),
  ({"data__row_length": 10**10}, r"config.data.row_length must be a whole number in 0..1048576"),
  ({"data__boxes": 10**9}, r"config.data.boxes must be a whole number in 0..1024"),
  ({"model_changes__text__depth": -2}, "config.model_changes.text.depth must be"),
  # the optimizer
  ({"optimizer__learning_rate": 0.0}, "config.optimizer.learning_rate must be positive"),
  ({"optimizer__warmup_steps": 1001}, r"config.optimizer.warmup_steps must lie in 0..steps \(1000\)"),
  ({"optimizer__b2": 1.0}, "config.optimizer.b2 must lie in 0..1"),
  ({"optimizer__weight_decay": -0.1}, "config.optimizer.weight_decay must not be negative"),
  ({"optimizer__eps": 0.0}, "config.optimizer.eps must be positive"),
  ({"optimizer__end_fraction": 1.5}, "config.optimizer.end_fraction must lie in 0..1"),
  ({"optimizer__clip_norm": 0.0}, "config.optimizer.clip_norm must be positive"),
  ({"optimizer__name": "sgd"}, r"config.optimizer.name must be one of \('adamw', 'adafactor', 'lion', 'muon'\)"),
  ({"optimizer__moment_dtype": "float16"}, r"config.optimizer.moment_dtype must be one of \('float32', 'bfloat16'\)"),
  ({"optimizer__layer_decay": 0.0}, "config.optimizer.layer_decay must lie in 0..1"),
  ({"optimizer__layer_decay": 1.1}, "config.optimizer.layer_decay must lie in 0..1"),
  ({"optimizer__rules": (("(", "frozen", 1.0),)}, "config.optimizer.rules holds .*'\\(' is no regular expression"),
  (
    {"optimizer__rules": (("norm", "rate", 1.0),)},
    "'rate' is not a setting; there are weight_decay, learning_rate, froz",
  ),
  ({"optimizer__rules": (("norm", "frozen", 0.5),)}, "frozen is 1 or 0"),
  ({"optimizer__rules": (("norm", "weight_decay", -1),)}, "the factor must not be negative"),
  ({"optimizer__rules": (("norm", "learning_rate", 0),)}, "the factor must be positive; `frozen` leaves"),
  ({"optimizer__rules": (("^vison", "frozen", 1.0),)}, "'\\^vison' is in no parameter's name, such as long_proj"),
  ({"optimizer__rules": (("", "frozen", 1.0),)}, "config.optimizer.rules freeze every parameter"),
  ({"ema_decay": 1.0}, "config.ema_decay must lie between 0 and 1"),
  ({"ema_decay": 0.0}, "config.ema_decay must lie between 0 and 1"),
  # the objective
  ({"objective__regional": -1.0}, "config.objective: weights must not be negative"),
  (
    dict.fromkeys(("objective__global_long", "objective__global_short", "objective__regional"), 0.0)
    | {"objective__hard_negative": 0.0},
    "config.objective: .* not all zero",
  ),
  ({"kind": "clip"}, r"config.objective: \['global_long', 'regional', 'hard_negative'\] need FG-CLIP"),
  ({"objective__regional_group": 3}, "config.objective.regional_group 3 must divide data.batch_size 4096"),
  ({"objective__regional_group": 0}, "config.objective.regional_group 0 must divide"),
  ({"objective__form": "blocks"}, "objective.form must be one of .*'chunked', 'ring'.*, got 'blocks'"),
  ({"objective__chunk": 0}, "objective.chunk must be at least 1, got 0"),
  ({"objective__contrast": "hinge"}, "objective.contrast must be one of"),
  ({"data__boxes": 0}, "config.data.boxes must be at least 1: the objective has region terms"),
  # the data
  ({"data__batch_size": 0}, "data.batch_size must be at least 1"),
  ({"data__region_text": "both"}, "data.region_text must be one of"),
  ({"data__row_length": 1}, "row_length must be at least 2"),
  ({"data__path": ""}, "config.data.path is empty: name a folder made by `python -m fgclip_jax.prepare`"),
  # savings
  ({"patch_dropout": 1.0}, "config.patch_dropout must lie in 0..1"),
  ({"patch_dropout": 0.5}, "config.patch_dropout: region terms need every patch"),
  ({"progressive": ((0, 16, 3), (9, 32))}, "config.progressive must hold pairs"),
  ({"progressive": (0, 32)}, r"config.progressive must be tuple\[int, ...\], got 0"),
  ({"progressive": ((0, 12), (5, 32))}, "image size 12 is no multiple of the patch size 8"),
  ({"progressive": ((5, 16), (9, 32))}, "config.progressive: steps must begin with 0 and ascend"),
  ({"progressive": ((0, 16), (9, 24))}, "config.progressive must end with the model's image size, 32"),
  ({"profile": ("3", "4")}, r"config.profile must be tuple\[int, ...\]"),
  ({"profile": (3,)}, "config.profile must be two steps"),
  ({"profile": (3, 2)}, "config.profile must be a first and a last step"),
]


@pytest.mark.parametrize("changes, message", IMPOSSIBLE, ids=lambda value: str(value)[:50])
def test_impossible_values(data, changes, message):
  with pytest.raises(ValueError, match=message):
    read(data, **changes)


def test_paths_that_are_not_there(data, tmp_path):
  with pytest.raises(FileNotFoundError, match="no data set folder at '.*nowhere'"):
    read(str(tmp_path / "nowhere"))
  with pytest.raises(FileNotFoundError, match=r"no shard of split 'test'.*\['train'\]"):
    read(data, data__split="test")
  with pytest.raises(FileNotFoundError, match="no model folder at '.*nowhere'"):
    read(data, init_from=str(tmp_path / "nowhere"))
  with pytest.raises(FileNotFoundError, match="is no model folder"):
    read(data, init_from=str(tmp_path))

"""Folders in PyTorch format: what is read, what is refused, and with which words."""

import json
import pickle

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from fgclip_jax.models.config import preset
from fgclip_jax.weights import huggingface, huggingface_names
from fgclip_jax.weights.name_map import write_rows

FGCLIP = preset("tiny").replace(text={"vocab_size": 60})
CLIP = FGCLIP.replace(text={"long_length": None, "vocab_size": 60})
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path, random_params):
  """An FG-CLIP."""
  huggingface.write(str(tmp_path), FGCLIP, random_params(FGCLIP))
  return tmp_path


def _change(folder, change):
  tensors = safetensors.numpy.load_file(folder / WEIGHTS)
  change(tensors)
  safetensors.numpy.save_file(tensors, folder / WEIGHTS)


def _change_config(folder, change):
  path = folder / "config.json"
  config = json.loads(path.read_text())
  change(config)
  path.write_text(json.dumps(config))


@pytest.mark.parametrize("config", [FGCLIP, CLIP], ids=["FG-CLIP", "CLIP"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name)
def test_parameters_come_back_as_they_were_written(config, dtype, tmp_path, random_params):
  flat = random_params(config, dtype)
  huggingface.write(str(tmp_path), config, flat)
  read_config, read, _ = huggingface.read(str(tmp_path))
  assert read_config == config
  assert read.keys() == flat.keys()
  for name, value in flat.items():
    assert read[name].dtype == value.dtype and read[name].tobytes() == value.tobytes(), name
  assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == np.dtype(dtype).name


def test_the_model_size_is_read_without_the_weights(folder):
  assert huggingface.read_config(str(folder)) == FGCLIP


def test_every_tensor_that_does_not_fit_is_listed_in_one_error(folder):
  def change(tensors):
    for name in ("logit_scale", "text_model.encoder.layers.1.mlp.fc1.bias"):
      del tensors[name]
    tensors["another.weight"] = np.zeros((2, 3), np.float32)
    tensors["visual_projection.weight"] = np.zeros((5, 7), np.float32)
    tensors["vision_model.encoder.layers.0.layer_norm1.weight"] = np.zeros(33, np.float32)
    tensors["text_model.embeddings.position_embedding_ori.weight"] = np.zeros((247, 32), np.float32)

  _change(folder, change)
  with pytest.raises(ValueError) as error:
    huggingface.read(str(folder))
  first, *listed = str(error.value).splitlines()
  assert str(folder) in first and "6 tensors do not fit" in first
  assert [" ".join(line.split()) for line in sorted(listed)] == [
    "extra another.weight (2, 3)",
    "misshapen text_model.embeddings.position_embedding_ori.weight (247, 32), expected (248, 32)",
    "misshapen vision_model.encoder.layers.0.layer_norm1.weight (33,), expected (32,)",
    "misshapen visual_projection.weight (5, 7), expected (16, 32)",
    "missing logit_scale ()",
    "missing text_model.encoder.layers.1.mlp.fc1.bias (64,)",
  ]


def test_a_message_shows_some_of_very_many_faults(folder):
  _change_config(folder, lambda config: config["vision_config"].update(num_hidden_layers=400))
  with pytest.raises(ValueError, match=r"tensors do not fit(.|\n)*\.\.\. and 6,\d+ more$") as error:
    huggingface.read(str(folder))
  assert len(str(error.value).splitlines()) == 102


def test_stored_position_ids_are_kept(folder, tmp_path):
  buffers = {
    "text_model.embeddings.position_ids": np.arange(77)[None],
    "vision_model.embeddings.position_ids": np.arange(17)[None],
  }
  _change(folder, lambda tensors: tensors.update(buffers))
  config, flat, source = huggingface.read(str(folder))
  huggingface.write(str(tmp_path / "again"), config, flat, source)
  written = safetensors.numpy.load_file(tmp_path / "again" / WEIGHTS)
  for name, value in buffers.items():
    np.testing.assert_array_equal(written[name], value)
    assert written[name].dtype == np.int64


def test_long_positions_are_put_together_from_the_rows_that_are_read(folder):
  ori, res = (f"text_model.embeddings.position_embedding_{part}.weight" for part in ("ori", "res"))
  rng = np.random.default_rng(1)
  tables = {name: rng.normal(size=(248, 32)).astype(np.float32) for name in (ori, res)}
  _change(folder, lambda tensors: tensors.update(tables))
  positions = huggingface.read(str(folder))[1]["text/long_positions"]
  np.testing.assert_array_equal(positions, np.concatenate([tables[ori][:20], tables[res][20:]]))


def test_a_folder_without_config(folder):
  (folder / "config.json").unlink()
  with pytest.raises(FileNotFoundError, match="no config.json in"):
    huggingface.read(str(folder))


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("{", "is not JSON"),
    ("[1, 2]", "must hold a JSON object, holds a list"),
    ('{"model_type": "clip", "text_config": {}}', "is not a CLIP configuration"),
    ('{"model_type": "bert", "architectures": ["BertModel"]}', r"model_type 'bert', architectures \['BertModel'\]"),
    ('{"model_type": "clip", "text_config": null, "vision_config": null}', "is not a CLIP configuration"),
    ('{"text_config": {"hidden_act": "relu"}, "vision_config": {}}', "activation must be"),
    ('{"text_config": {}, "vision_config": {"patch_size": 17}}', "multiple of patch_size"),
  ],
)
def test_a_config_that_describes_no_clip(content, message, folder):
  (folder / "config.json").write_text(content)
  with pytest.raises(ValueError, match=message) as error:
    huggingface.read(str(folder))
  assert str(folder / "config.json") in str(error.value)


def test_null_architectures_and_the_defaults_of_transformers(folder):
  _change_config(folder, lambda config: config.update(architectures=None))
  assert huggingface.read_config(str(folder)) == FGCLIP
  config = huggingface.model_config({"text_config": {}, "vision_config": {}}, None)
  assert config == preset("vit_b32").replace(text={"long_length": None})


@pytest.mark.parametrize("end_id", [2, 49407])
def test_the_end_of_text_rule_is_config_jsons_for_clip_and_fixed_for_fgclip(end_id, folder):
  _change_config(folder, lambda config: config["text_config"].update(eos_token_id=end_id))
  assert huggingface.read_config(str(folder)).text.end_id == 49407
  values = json.loads((folder / "config.json").read_text())
  assert huggingface.model_config(values, None).text.end_id == end_id


def test_a_folder_with_a_pickle_alone_is_refused(folder):
  (folder / WEIGHTS).unlink()
  (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"logit_scale": 1.0}))
  with pytest.raises(ValueError, match=r"pytorch_model.bin' is a pickle, .*: --allow_pickle \(allow_pickle=True\)"):
    huggingface.read(str(folder))


def test_a_folder_without_weights(folder):
  (folder / WEIGHTS).unlink()
  with pytest.raises(FileNotFoundError, match="no model.safetensors or pytorch_model.bin in"):
    huggingface.read(str(folder))


def test_a_header_may_begin_with_any_byte(folder):
  """The first byte counts the header's bytes, and may look like the start of a pickle."""
  expected = huggingface.read(str(folder))[1]
  data = (folder / WEIGHTS).read_bytes()
  length = int.from_bytes(data[:8], "little")
  padded = length + (0x80 - length) % 256
  (folder / WEIGHTS).write_bytes(
    padded.to_bytes(8, "little") + data[8 : 8 + length] + b" " * (padded - length) + data[8 + length :]
  )
  assert (folder / WEIGHTS).read_bytes()[0] == 0x80
  found = huggingface.read(str(folder))[1]
  assert all(np.array_equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_a_truncated_weights_file(size, folder):
  data = (folder / WEIGHTS).read_bytes()
  (folder / WEIGHTS).write_bytes(data[:size])
  with pytest.raises(ValueError, match="is not a readable safetensors file") as error:
    huggingface.read(str(folder))
  assert str(folder / WEIGHTS) in str(error.value)


def _shard(folder):
  tensors = safetensors.numpy.load_file(folder / WEIGHTS)
  (folder / WEIGHTS).unlink()
  names = sorted(tensors)
  parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
  for file, part in parts.items():
    safetensors.numpy.save_file({name: tensors[name] for name in part}, folder / file)
  index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  return index


def test_an_index_is_followed(folder):
  whole = huggingface.read(str(folder))[1]
  _shard(folder)
  shards = huggingface.read(str(folder))[1]
  assert all(np.array_equal(shards[name], value) for name, value in whole.items())


def test_an_index_that_names_a_missing_file(folder):
  _shard(folder)
  (folder / "model-00002-of-00002.safetensors").unlink()
  with pytest.raises(FileNotFoundError, match="names 'model-00002-of-00002.safetensors', which is not in"):
    huggingface.read(str(folder))


def test_an_index_that_promises_a_missing_tensor(folder):
  index = _shard(folder)
  index["weight_map"] |= {"one.more": "model-00001-of-00002.safetensors"}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  with pytest.raises(ValueError, match="promises tensors that its files lack: one.more"):
    huggingface.read(str(folder))


def test_a_logit_bias_has_no_place_in_this_format(tmp_path, random_params):
  config = CLIP.replace(logit_bias=-10.0)
  with pytest.raises(ValueError, match="has a logit bias .*: write it as jax or open_clip"):
    huggingface.write(str(tmp_path / "out"), config, random_params(config))
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["clip", "longclip"])
@pytest.mark.parametrize("split", [False, True], ids=["one table", "two tables"])
def test_long_clip_under_transformers_names(kind, split, tmp_path, random_params):
  config = preset("tiny").replace(text={"vocab_size": 60, "short_length": 248, "long_length": None})
  flat = random_params(config)
  tensors = write_rows(huggingface_names.table(config, split), flat)
  if split:
    tensors["text_model.embeddings.position_embedding.weight"] = np.array(flat["text/short_positions"])
    tensors["text_model.embeddings.position_embedding.weight"][20:] = 7.0  # not read
  values = huggingface.to_config_json(config, np.dtype(np.float32)) | {"model_type": kind}
  huggingface.save(str(tmp_path), values, tensors)
  found, read, _ = huggingface.read(str(tmp_path))
  assert found == config
  assert all(np.array_equal(read[name], value) for name, value in flat.items())

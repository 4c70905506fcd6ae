"""Folders of SigLIP, SigLIP 2 and FG-CLIP 2: read and written byte for byte, and what is refused."""

import json
import pathlib

import numpy as np
import pytest
import safetensors.numpy

from fgclip_jax import convert
from fgclip_jax.models.config import preset
from fgclip_jax.weights import formats, huggingface, huggingface_siglip

NAMES = ("tiny_siglip", "tiny_naflex", "tiny_fgclip2")
CHECKPOINTS = ("fgclip2", "fgclip2_world2", "siglip2_naflex", "siglip_fixed")
WEIGHTS = "model.safetensors"
TEMPERATURES = ("logit_scale_finegraind", "logit_scale_hardneg")


@pytest.fixture
def save(tmp_path, random_params):
  """Writes a preset with random parameters, after changes of its tensors and of its config.json; returns the folder."""

  def write(name, change=lambda tensors: None, change_config=lambda values: None):
    config, folder = preset(name), tmp_path / "theirs"
    huggingface.write(str(folder), config, random_params(config))
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / WEIGHTS)
    values = json.loads((folder / "config.json").read_text())
    change_config(values)
    (folder / "config.json").write_text(json.dumps(values))
    return folder

  return write


def _same_bytes(first: pathlib.Path, second: pathlib.Path):
  before, after = (safetensors.numpy.load_file(folder / WEIGHTS) for folder in (first, second))
  assert before.keys() == after.keys()
  for name, value in before.items():
    assert (after[name].shape, after[name].dtype) == (value.shape, value.dtype), name
    assert after[name].tobytes() == value.tobytes(), name
  configs = [json.loads((folder / "config.json").read_text()) for folder in (first, second)]
  assert configs[0] == configs[1]


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_size_come_back_as_they_were_written(name, save, random_params):
  config, flat, _ = formats.read(str(save(name)))
  assert config == preset(name).replace(region_temperature_init=np.log(100) if config.fine_grained else None)
  for leaf, value in random_params(config).items():
    assert flat[leaf].tobytes() == value.tobytes(), leaf


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_recorded_checkpoints_there_and_back_by_way_of_our_folders(name, shared, tmp_path):
  source = shared / "oracle_fgclip2" / name / "checkpoint"
  if not source.is_dir():
    pytest.skip(f"needs {source}")
  assert convert.main([str(source), str(tmp_path / "ours")]) == 0
  assert convert.main([str(tmp_path / "ours"), str(tmp_path / "back")]) == 0
  _same_bytes(source, tmp_path / "back")


def test_rows_of_positions_that_nothing_reads_are_kept(save, tmp_path):
  """Training leaves them behind in two tables; a run's folder, whose tables have moved on, has none."""
  ori = "text_model.embeddings.position_embedding_ori.weight"
  folder = save("tiny_fgclip2", lambda tensors: tensors[ori].__setitem__(slice(20, None), 7.0))
  assert convert.main([str(folder), str(tmp_path / "ours")]) == 0
  assert convert.main([str(tmp_path / "ours"), str(tmp_path / "back")]) == 0
  _same_bytes(folder, tmp_path / "back")
  config, flat, _ = formats.read(str(tmp_path / "ours"))
  huggingface.write(str(tmp_path / "new"), config, flat)
  assert np.all(safetensors.numpy.load_file(tmp_path / "new" / WEIGHTS)[ori][20:] != 7.0)


def test_two_absent_temperatures_are_ln_100_and_stay_absent(save, tmp_path, capsys):
  folder = save("tiny_fgclip2", lambda tensors: [tensors.pop(name) for name in TEMPERATURES])
  config, flat, source = formats.read(str(folder))
  assert "no logit_scale_finegraind and no logit_scale_hardneg: taken to be ln 100" in capsys.readouterr().err
  assert all(np.isclose(flat[f"temperature/{name}"], np.log(100)) for name in ("regional", "hard_negative"))
  huggingface.write(str(tmp_path / "back"), config, flat, source)
  _same_bytes(folder, tmp_path / "back")
  # once they have been trained they are written
  huggingface.write(str(tmp_path / "trained"), config, flat | {"temperature/regional": np.float32(3)}, source)
  written = safetensors.numpy.load_file(tmp_path / "trained" / WEIGHTS)
  assert written["logit_scale_finegraind"] == 3 and "logit_scale_hardneg" not in written


def test_a_sparse_config_has_the_classes_defaults():
  values = {"model_type": "siglip", "text_config": {"vocab_size": 256000}, "vision_config": {"image_size": 512}}
  found = huggingface_siglip.model_config(values, {}, "config.json")
  assert found == preset("siglip2_b16").replace(vision={"image_size": 512})
  assert huggingface_siglip.model_config({"model_type": "siglip"}, {}, "config.json") == preset("siglip_b16")
  values = {"architectures": ["FG_CLIP2_Model"], "text_config": {"vocab_size": 256000}}
  assert huggingface_siglip.describes(values)
  assert huggingface_siglip.model_config(values, {}, "config.json") == preset("fgclip2_b16")


def test_num_patches_that_is_missing_follows_from_the_table(save):
  folder = save("tiny_naflex", change_config=lambda values: values["vision_config"].pop("num_patches"))
  assert formats.read_config(str(folder)).vision.position_grid == 4


def test_the_text_tower_may_be_narrower_than_the_image_tower():
  giant = preset("siglip2_giant16")
  values = huggingface_siglip.to_config_json(giant, "float32")
  assert values["text_config"]["projection_size"] == 1536
  assert huggingface_siglip.model_config(values, {}, "config.json") == giant


def test_a_model_without_a_text_head(save, tmp_path, random_params):
  """A file that has none is read without; transformers' class always has one, so a new folder gets the identity."""

  def change(tensors):
    del tensors["text_model.head.weight"], tensors["text_model.head.bias"]

  folder = save("tiny_siglip", change, lambda values: values["text_config"].update(no_head=True))
  config, flat, source = formats.read(str(folder))
  assert not config.text.head and "short_projection/kernel" not in flat
  huggingface.write(str(tmp_path / "back"), config, flat, source)
  _same_bytes(folder, tmp_path / "back")
  huggingface.write(str(tmp_path / "new"), config, flat)
  found, read, _ = formats.read(str(tmp_path / "new"))
  assert found.text.head
  np.testing.assert_array_equal(read["short_projection/kernel"], np.eye(32))


def test_shards_are_read_through_their_index(save):
  folder = save("tiny_fgclip2")
  whole = formats.read(str(folder))[1]
  tensors = safetensors.numpy.load_file(folder / WEIGHTS)
  (folder / WEIGHTS).unlink()
  names = sorted(tensors)
  weight_map = {name: f"model-{index % 2 + 1:05}-of-00002.safetensors" for index, name in enumerate(names)}
  for file in set(weight_map.values()):
    safetensors.numpy.save_file({n: tensors[n] for n in names if weight_map[n] == file}, folder / file)
  (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
  flat = formats.read(str(folder))[1]
  assert all(np.array_equal(flat[name], value) for name, value in whole.items())


# what is wrong with a folder: the preset, the change of its tensors, of its config.json, and the message
def _vocabulary(values):
  values["text_config"]["vocab_size"] = 256000


def _not_square(values):
  values["vision_config"]["num_patches"] = 15


def _no_pooling(values):
  values["vision_config"]["vision_use_head"] = False


def _narrow(values):
  values["text_config"]["projection_size"] = 16


BAD = {
  "another vocabulary": ("tiny_naflex", None, _vocabulary, r"misshapen  text_model.embeddings.token_embedding.weight "
                         r"\(49408, 32\), expected \(256000, 32\)"),
  "a missing tensor": ("tiny_fgclip2", lambda tensors: tensors.pop("boxtext_head.bias"), None,
                       r"missing    boxtext_head.bias \(32,\)"),
  "a misshapen tensor": ("tiny_fgclip2", lambda tensors: tensors.update({"vision_model.head.probe": np.zeros(32)}),
                         None, r"misshapen  vision_model.head.probe \(32,\), expected \(1, 1, 32\)"),
  "an extra tensor": ("tiny_siglip", lambda tensors: tensors.update({"text_model.other": np.zeros(3)}), None,
                      r"extra      text_model.other \(3,\)"),
  "num_patches": ("tiny_naflex", None, _not_square, "num_patches = 15 must be a square number"),
  "no pooling": ("tiny_naflex", None, _no_pooling, "vision_use_head = False"),
  "projection_size": ("tiny_naflex", None, _narrow, "projection_size 16 is not vision_config.hidden_size 32"),
  "a section": ("tiny_naflex", None, lambda values: values.update(text_config=3), "text_config = 3 must be a section"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "change", "change_config", "message"), BAD.values(), ids=BAD)
def test_a_folder_with_something_wrong(name, change, change_config, message, save):
  folder = save(name, *(each or (lambda values: None) for each in (change, change_config)))
  with pytest.raises(ValueError, match=f"(?s){folder}.*{message}"):
    formats.read(str(folder))


def test_models_that_the_published_classes_have_no_place_for(random_params, tmp_path):
  config = preset("tiny_siglip").replace(vision={"dense_head": True}, text={"long_length": 48})
  with pytest.raises(ValueError, match="published code takes pictures of any shape.*--as naflex"):
    huggingface.write(str(tmp_path), config, random_params(config))
  config = preset("tiny_naflex")
  for to, message in (
    ("clip", "no place for a SigLIP"),
    ("clip_vision", "no CLIPVisionModel"),
    ("open_clip", "NaFlex"),
  ):
    with pytest.raises(ValueError, match=message):
      formats.write(str(tmp_path / "out"), to, config, random_params(config))
  clip = preset("tiny")
  for to, message in (("siglip", "is a CLIP and no SigLIP"), ("big_vision", "the model is none")):
    with pytest.raises(ValueError, match=message):
      formats.write(str(tmp_path / "out"), to, clip, random_params(clip))


def test_the_files_of_a_tokenizer_go_with_the_model(save, tmp_path, capsys):
  def with_gemma(values):
    values["text_config"]["vocab_size"] = 60

  folder = save(
    "tiny_naflex",
    lambda tensors: tensors.update({"text_model.embeddings.token_embedding.weight": np.zeros((60, 32), np.float32)}),
    with_gemma,
  )
  assert convert.main([str(folder), str(tmp_path / "bare")]) == 0
  assert "no tokenizer beside the input" in capsys.readouterr().out
  for name in ("tokenizer.json", "tokenizer_config.json"):
    (folder / name).write_text(json.dumps({"name": name}))
  assert convert.main([str(folder), str(tmp_path / "ours")]) == 0
  assert convert.main([str(tmp_path / "ours"), str(tmp_path / "back")]) == 0
  assert "no tokenizer" not in capsys.readouterr().out
  for name in ("tokenizer.json", "tokenizer_config.json"):
    assert json.loads((tmp_path / "back" / name).read_text()) == {"name": name}
  # a model without one does not keep that of the model it takes the place of
  assert convert.main([str(tmp_path / "bare"), str(tmp_path / "back"), "--overwrite"]) == 0
  assert not (tmp_path / "back" / "tokenizer.json").exists()

"""OpenAI's, open_clip's and Long-CLIP's layout: what is read, what is inferred, what is refused."""

import json
import warnings

import numpy as np
import pytest
import safetensors.numpy

from fgclip_jax import convert
from fgclip_jax.models.config import preset
from fgclip_jax.weights import formats as folders
from fgclip_jax.weights import huggingface, open_clip
from fgclip_jax.weights.name_map import leaf_shapes, write_rows
from fgclip_jax.weights.openai_names import counters, table
from tests.helpers.features import assert_close, features
from tests.weights.test_torch_pickle import save

CLIP = preset("tiny").replace(text={"long_length": None, "end_id": 2, "vocab_size": 60})
RESNET = preset("tiny_resnet").replace(text={"long_length": None, "end_id": 2, "vocab_size": 60})
HEADS = (2, 2)
MODELS = pytest.mark.parametrize("config", [CLIP, RESNET], ids=["ViT", "ResNet"])


def write_file(path, config, flat, text="", split_positions=False, extra=None):
  """A bare file of tensors in this layout."""
  tensors = write_rows(table(config, text, split_positions), flat)
  tensors |= {name: np.asarray(3, np.int64) for name in counters(config)} | (extra or {})
  safetensors.numpy.save_file({name: np.array(value, order="C") for name, value in tensors.items()}, path)
  return str(path)


def read(path, heads=HEADS, activation="quick_gelu", **options):
  return folders.read(str(path), heads=heads, activation=activation, **options)


def assert_same(found, expected):
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    assert found[name].dtype == value.dtype and found[name].tobytes() == value.tobytes(), name


def test_the_resnet_of_openais_code_gives_what_was_recorded(oracle):
  folder = oracle / "clip_resnet"
  if not folder.is_dir():
    pytest.skip(f"no folder {folder}")
  with np.load(folder / "io.npz") as file:
    recorded = dict(file)
  path = folder / "openai_state_dict.safetensors"
  options = {"activation": "quick_gelu", "heads": (2, 4)}
  image, text, scale = features(path, recorded["pixel_values"], recorded["input_ids"], **options)
  assert_close(image, recorded["image_features"])
  assert_close(text, recorded["text_features"])
  unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text)]
  assert_close(scale * unit[0] @ unit[1].T, recorded["logits_per_image"])


@MODELS
@pytest.mark.parametrize("text", ["", "text."])
def test_the_table_names_every_parameter_once(config, text, random_params):
  rows = table(config.replace(logit_bias=0.0), text)
  assert sorted(name for row in rows for name in row.ours) == sorted(random_params(config.replace(logit_bias=0.0)))
  theirs = [name for row in rows for layer in row.names() for name in layer]
  assert len(theirs) == len(set(theirs))


@MODELS
@pytest.mark.parametrize("text", ["", "text."], ids=["flat", "text tower of its own"])
def test_a_bare_file_is_recognised_and_its_size_inferred(config, text, tmp_path, random_params):
  flat = random_params(config)
  path = write_file(tmp_path / "anything.safetensors", config, flat, text)
  for place in (path, tmp_path):  # the file, or a folder that holds nothing else
    assert folders.detect(str(place)) == "open_clip"
    found, read_flat, _ = read(place)
    assert found == config
    assert_same(read_flat, flat)


@pytest.mark.parametrize("name", ["vit_b32", "vit_b16", "vit_l14", "vit_l14_336", "rn50", "rn101", "rn50x4", "rn50x16"])
def test_published_sizes_are_inferred_from_shapes_alone(name):
  config = preset(name).replace(text={"long_length": None})
  shapes = leaf_shapes(config)
  tensors = {}
  for row in table(config):
    sizes = row.shapes(shapes)
    for names in row.names():
      for tensor, shape in zip(names, sizes, strict=True):
        tensors[tensor] = np.broadcast_to(np.int8(0), shape)  # takes no memory
  assert open_clip.infer_config(tensors) == config


def _shapes(width, patch, text_width, mlp=4.0):
  """Tensors that show a bare model's size, without memory."""
  shapes = {
    "visual.conv1.weight": (width, 3, patch, patch), "visual.positional_embedding": (257, width),
    "positional_embedding": (77, text_width), "token_embedding.weight": (49408, text_width),
    "text_projection": (text_width, 512),
  }  # fmt: skip
  for prefix, size, hidden in (("visual.", width, int(width * mlp)), ("", text_width, 4 * text_width)):
    shapes[f"{prefix}transformer.resblocks.0.ln_1.weight"] = (size,)
    shapes[f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"] = (hidden, size)
  return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
  ("width", "patch", "text_width", "heads"),
  [
    (384, 16, 384, (6, 6)), (512, 32, 256, (8, 4)), (512, 16, 512, (8, 8)), (768, 16, 512, (12, 8)),
    (896, 16, 640, (14, 10)), (1024, 14, 768, (16, 12)), (1280, 14, 1024, (16, 16)), (1408, 14, 1024, (16, 16)),
    (1664, 14, 1280, (16, 20)), (1792, 14, 1280, (16, 20)),
  ],
  ids=["S", "M-alt", "M", "B", "B-plus", "L", "H", "g", "bigG", "e"],
)  # fmt: skip
def test_published_widths_have_their_heads(width, patch, text_width, heads):
  """As in open_clip's model_configs: `width // head_width` and text_cfg.heads."""
  config = open_clip.infer_config(_shapes(width, patch, text_width, 4.3637), "gelu")
  assert (config.vision.heads, config.text.heads) == heads
  assert open_clip.infer_config(_shapes(width, patch, text_width), "gelu", (2, 4)).vision.heads == 2


@pytest.mark.parametrize(
  ("width", "text_width", "part"), [(1152, 512, "image"), (128, 512, "image"), (768, 896, "text")]
)
def test_other_widths_need_their_heads(width, text_width, part):
  tensors = _shapes(width, 16, text_width)
  with pytest.raises(ValueError, match=f"attention heads of the {part} tower.*--heads IMAGE TEXT"):
    open_clip.infer_config(tensors)
  config = open_clip.infer_config(tensors, heads=(16, 8))
  assert (config.vision.heads, config.text.heads) == (16, 8)


@pytest.mark.parametrize("options", [[], ["--as", "fgclip"], ["--image_size", "64"], ["--to", "clip"], ["--overwrite"]])
def test_the_activation_is_warned_about_whatever_else_is_said(options, tmp_path, random_params):
  path = write_file(tmp_path / "model.safetensors", CLIP, random_params(CLIP))
  with pytest.warns(UserWarning, match="activation is not known"):
    assert convert.main([path, str(tmp_path / "out"), "--heads", "2", "2", *options]) == 0


def test_an_archive_that_is_not_openais_is_warned_about(torch, tmp_path, random_params):
  tensors = {name: torch.tensor(value) for name, value in write_rows(table(CLIP), random_params(CLIP)).items()}
  for extra, count in (({}, 1), ({"input_resolution": torch.tensor(32)}, 0)):
    save(torch, "archive", tensors | extra, str(tmp_path / "model.pt"))
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter("always")
      read(tmp_path / "model.pt", activation=None)
    assert len([each for each in caught if "activation is not known" in str(each.message)]) == count


def test_an_unknown_activation_is_warned_about_and_taken_to_be_openais(tmp_path, random_params):
  path = write_file(tmp_path / "model.safetensors", CLIP, random_params(CLIP))
  with pytest.warns(UserWarning, match=r"activation is not known: taken to be quick_gelu.*--activation"):
    found, _, _ = read(path, activation=None)
  assert found.text.activation == found.vision.activation == "quick_gelu"
  found, _, _ = read(path, activation="gelu")
  assert found.text.activation == found.vision.activation == "gelu"


def test_long_clip_is_a_clip_with_more_positions(tmp_path, random_params):
  config = CLIP.replace(text={"short_length": 248})
  flat = random_params(config)
  tables = {"positional_embedding": np.array(flat["text/short_positions"])}
  tables["positional_embedding"][20:] = 7.0  # not read
  path = write_file(tmp_path / "longclip.safetensors", config, flat, split_positions=True, extra=tables)
  found, read_flat, _ = folders.read(path, heads=HEADS)  # its activation is known
  assert found == config
  assert_same(read_flat, flat)


@pytest.mark.parametrize("kind", ["archive", "state dict", "state dict of old", "checkpoint"])
def test_pytorchs_files(kind, torch, tmp_path, random_params):
  flat = random_params(RESNET)
  tensors = {name: torch.tensor(value) for name, value in write_rows(table(RESNET), flat).items()}
  tensors |= {name: torch.tensor(5) for name in counters(RESNET)}
  if kind == "archive":  # as OpenAI's have them
    tensors |= {name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")}
  path = str(tmp_path / "RN.pt")
  save(torch, kind, tensors, path)
  if kind != "archive":
    with pytest.raises(ValueError, match="is a pickle"):
      folders.detect(path)
  found, read_flat, source = read(path, allow_pickle=True)
  assert found == RESNET
  assert_same(read_flat, flat)
  assert set(source["buffers"].values()) == {5}


def test_a_scale_that_is_an_array_of_one(tmp_path, random_params):
  flat = random_params(CLIP)
  extra = {"logit_scale": flat["temperature/global"].reshape(1)}
  path = write_file(tmp_path / "model.safetensors", CLIP, flat, extra=extra)
  assert_same(read(path)[1], flat)


@MODELS
def test_every_tensor_that_does_not_fit_is_listed_in_one_error(config, tmp_path, random_params):
  flat = random_params(config)
  tensors = write_rows(table(config), flat)
  del tensors["transformer.resblocks.1.mlp.c_fc.bias"]
  tensors["visual.another"] = np.zeros(2, np.float32)
  tensors["ln_final.bias"] = np.zeros(33, np.float32)
  path = tmp_path / "model.safetensors"
  safetensors.numpy.save_file({name: np.array(value, order="C") for name, value in tensors.items()}, path)
  with pytest.raises(ValueError, match="3 tensors do not fit") as error:
    read(path)
  first, *listed = str(error.value).splitlines()
  assert str(path) in first
  assert [" ".join(line.split()) for line in sorted(listed)] == [
    "extra visual.another (2,)",
    "misshapen ln_final.bias (33,), expected (32,)",
    "missing transformer.resblocks.1.mlp.c_fc.bias (64,)"
    if config is CLIP
    else f"missing transformer.resblocks.1.mlp.c_fc.bias ({config.text.mlp_width},)",
  ]


@pytest.mark.parametrize("name", ["visual.proj", "visual.positional_embedding", "text_projection"])
def test_a_file_that_lacks_what_the_size_follows_from(name, tmp_path, random_params):
  tensors = write_rows(table(CLIP), random_params(CLIP))
  del tensors[name]
  path = tmp_path / "model.safetensors"
  safetensors.numpy.save_file({key: np.array(value, order="C") for key, value in tensors.items()}, path)
  with pytest.raises(ValueError, match=rf"(there is no |missing +){name}"):
    read(path)


def test_files_that_are_no_model(tmp_path, random_params):
  path = tmp_path / "other.safetensors"
  safetensors.numpy.save_file({"layer.weight": np.zeros(2, np.float32)}, path)
  with pytest.raises(ValueError, match="holds tensors of no known model: layer.weight"):
    folders.detect(str(path))
  write_file(tmp_path / "more.safetensors", CLIP, random_params(CLIP))
  with pytest.raises(FileNotFoundError, match="it holds more.safetensors, other.safetensors: give the path of one"):
    folders.detect(str(tmp_path))


# ---- open_clip_config.json


@pytest.fixture
def folder(tmp_path, random_params):
  """A model with a config, as written for open_clip."""
  open_clip.write(str(tmp_path / "model"), CLIP, random_params(CLIP))
  return tmp_path / "model"


def _change_config(folder, change):
  path = folder / "open_clip_config.json"
  config = json.loads(path.read_text())
  change(config["model_cfg"])
  path.write_text(json.dumps(config))


@MODELS
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("bias", [None, -10.0])
def test_a_config_tells_everything(config, activation, bias, tmp_path, random_params):
  config = config.replace(
    text={"activation": activation, "mlp_width": 75, "layer_norm_eps": 1e-4, "short_length": 40},
    logit_bias=bias,
    temperature_init=4.0,
  )
  if "heads" in config.to_dict()["vision"]:
    config = config.replace(vision={"activation": activation, "mlp_width": 101, "layer_norm_eps": 1e-6})
  flat = random_params(config)
  open_clip.write(str(tmp_path), config, flat)
  assert folders.detect(str(tmp_path)) == "open_clip"
  assert folders.read_config(str(tmp_path)) == config
  assert_same(folders.read(str(tmp_path))[1], flat)
  assert folders.read_config(str(tmp_path / "open_clip_model.safetensors")) == config


def test_the_config_and_options_do_not_contradict_each_other(folder):
  for options in ({"activation": "gelu"}, {"heads": (2, 2)}):
    with pytest.raises(ValueError, match="tells the activation and the heads"):
      folders.read(str(folder), **options)


@pytest.mark.parametrize(
  ("part", "setting", "value"),
  [
    ("vision_cfg", "timm_model_name", "vit_base"),
    ("vision_cfg", "pool_type", "avg"),
    ("vision_cfg", "no_ln_pre", True),
    ("vision_cfg", "attentional_pool", True),
    ("vision_cfg", "qk_norm", True),
    ("vision_cfg", "unheard_of", 5),
    ("text_cfg", "hf_model_name", "roberta-base"),
    ("text_cfg", "pool_type", "last"),
    ("text_cfg", "proj_type", "none"),
    ("text_cfg", "no_causal_mask", True),
    ("text_cfg", "tokenizer_kwargs", {"clean": "canonicalize"}),
  ],
)
def test_settings_that_make_another_model_are_refused(part, setting, value, folder):
  _change_config(folder, lambda config: config[part].update({setting: value}))
  with pytest.raises(ValueError, match=rf"open_clip_config.json': {part}.{setting} = .* has no counterpart here"):
    folders.read_config(str(folder))


def test_settings_of_no_consequence_are_passed_over(folder):
  def change(config):
    config["vision_cfg"] |= {"patch_dropout": 0.5, "timm_model_name": None, "pool_type": "tok", "qk_norm": False}
    config["text_cfg"] |= {"pad_id": 1, "proj_bias": False, "hf_model_name": None}

  _change_config(folder, change)
  assert folders.read_config(str(folder)) == CLIP


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda config: config.pop("embed_dim"), "is no configuration of open_clip"),
    (lambda config: config.update(text_cfg=None), "is no configuration of open_clip"),
    (lambda config: config.update(multimodal_cfg={}), "multimodal_cfg has no counterpart"),
    (lambda config: config["vision_cfg"].update(image_size=[32, 64]), r"images of \[32, 64\] are no squares"),
    (lambda config: config["vision_cfg"].update(patch_size=5), "must be a multiple of patch_size 5"),
    (lambda config: config["vision_cfg"].update(layers=[1, 1, 1, 1], head_width=32), "heads of 64 channels, not 32"),
  ],
)
def test_a_config_that_describes_no_model_of_ours(change, message, folder):
  _change_config(folder, change)
  with pytest.raises(ValueError, match=message) as error:
    folders.read_config(str(folder))
  assert str(folder / "open_clip_config.json") in str(error.value)


def test_towers_with_different_activations_are_not_written(tmp_path, random_params):
  config = CLIP.replace(vision={"activation": "gelu"})
  with pytest.raises(ValueError, match="one activation for both towers"):
    open_clip.write(str(tmp_path / "out"), config, random_params(config))
  assert not (tmp_path / "out").exists()


# ---- which format a folder has


def test_a_folder_with_both_configs_is_read_by_the_weights_that_it_has(folder, random_params):
  """As laid out on model hubs: transformers' and open_clip's files side by side."""
  flat = random_params(CLIP, seed=1)
  huggingface.write(str(folder), CLIP, flat)
  assert folders.detect(str(folder)) == "pytorch"
  assert_same(folders.read(str(folder))[1], flat)
  assert_same(folders.read(str(folder / "model.safetensors"))[1], flat)
  assert_same(folders.read(str(folder / "open_clip_model.safetensors"))[1], random_params(CLIP))
  (folder / "model.safetensors").unlink()
  assert folders.detect(str(folder)) == "open_clip"

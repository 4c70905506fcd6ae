"""Models of open_clip's, built at random and saved as its users save them."""

import json

import pytest


@pytest.fixture(scope="session")
def open_clip():
  """The library; a test that needs it skips without it."""
  return pytest.importorskip("open_clip", reason="needs open_clip, see requirements-open-clip.txt")


@pytest.fixture(scope="session")
def make(open_clip):
  """Makes a model of a config, with parameters and BatchNorm's statistics away from their first values."""
  import torch

  def make(config, seed=0):
    torch.manual_seed(seed)
    config = dict(config)
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    model = kind(**config).eval()
    with torch.no_grad():
      for name, value in model.state_dict().items():
        if name.endswith("running_var"):
          value.uniform_(0.5, 2.0)
        elif name.endswith("num_batches_tracked"):
          value.fill_(17)
        elif name.startswith("logit_"):
          value.add_(0.3)
        elif value.ndim < 2:
          value.add_(0.1 * torch.randn_like(value))
        else:
          value.add_(value.std() * 0.5 * torch.randn_like(value))
    return model

  return make


@pytest.fixture(scope="session")
def save(open_clip):
  """Saves a model with its config, as the library does for the model hub: as safetensors, or as a pickle."""
  import safetensors.torch
  import torch
  from open_clip.push_to_hf_hub import save_config_for_hf

  def save(model, config, folder, pickled=False):
    folder.mkdir(parents=True, exist_ok=True)
    open_clip.model.set_model_preprocess_cfg(
      model, {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    )
    save_config_for_hf(model, folder / "open_clip_config.json", config)
    tensors = model.state_dict()
    if pickled:
      torch.save(tensors, folder / "open_clip_pytorch_model.bin")
    else:
      safetensors.torch.save_file(tensors, folder / "open_clip_model.safetensors")
    assert json.loads((folder / "open_clip_config.json").read_text())["model_cfg"] == json.loads(json.dumps(config))

  return save

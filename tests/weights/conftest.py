"""Small random models of transformers', saved as its users save them."""

import numpy as np
import pytest

from fgclip_jax.weights.name_map import leaf_shapes


@pytest.fixture(scope="session")
def transformers():
  """The library, with PyTorch; a test that needs it skips without it."""
  pytest.importorskip("torch", reason="needs PyTorch (requirements-dev.txt)")
  return pytest.importorskip("transformers", reason="needs transformers (requirements-dev.txt)")


@pytest.fixture(scope="session")
def make_clip(transformers):
  """Makes a small CLIPModel whose parameters are away from their initial values."""
  import torch

  def make(activation="quick_gelu", end_id=49407, seed=0):
    torch.manual_seed(seed)
    text = {
      "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2,
      "hidden_act": activation, "eos_token_id": end_id, "bos_token_id": 49406, "pad_token_id": 49407,
    }  # fmt: skip
    vision = {
      "hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 3, "num_hidden_layers": 3,
      "image_size": 32, "patch_size": 8, "hidden_act": activation,
    }  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
      for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return model

  return make


@pytest.fixture
def random_params():
  """Makes flat random NumPy parameters of a model size."""

  def make(config, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    shapes = leaf_shapes(config)
    return {name: np.asarray(rng.normal(size=shape, scale=0.1), dtype) for name, shape in shapes.items()}

  return make

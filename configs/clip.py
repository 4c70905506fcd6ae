"""Plain CLIP: image against one short caption.

  python -m fgclip_jax.main --config=configs/clip.py --workdir=runs/clip --config.data.path=data/pairs

The CLIP paper's optimizer (arXiv 2103.00020, table 18 and section 2.5): AdamW with decay on weights
only, cosine, temperature from 0.07 and held at 100; its augmentation, random square crops. An argument picks the
model: `--config=configs/clip.py:vit_l14`.
"""

import math

from configs import common


def get_config(model: str = "vit_b32"):
  """Plain CLIP for a preset of fgclip_jax/models/presets.py."""
  config = common.get_config()
  config.model = model
  config.kind = "clip"
  config.steps = 390_000  # 32 epochs of 400 M pairs in batches of 32,768
  config.objective.update({"global_long": 0.0, "regional": 0.0, "hard_negative": 0.0})
  config.data.update({"batch_size": 32_768, "boxes": 0, "crop": "random_square"})
  config.optimizer.update(
    {
      "learning_rate": 4e-4 if model.startswith("vit_l") else 5e-4,
      "warmup_steps": 2000,
      "b2": 0.98,
      "eps": 1e-6,
      "weight_decay": 0.2,
      "rules": (("norm|bias|temperature|class_embedding", "weight_decay", 0.0),),
      "temperature_max": math.log(100),
    }
  )
  return config

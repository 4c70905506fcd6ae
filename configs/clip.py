"""Plain CLIP as published: image against one short caption.

  python -m fgclip_jax.main --config=configs/clip.py --workdir=runs/clip --config.data.path=data/pairs

An argument picks the model: `--config=configs/clip.py:rn50`, and likewise the other ResNets and Vision Transformers of
fgclip_jax/models/config.py. Batch and steps are the paper's: set `data.batch_size` and `steps` to what your devices
and data allow. Where each number comes from:

  [18] [19] [20]  tables of arXiv 2103.00020: what the models share; the ResNets; the Vision Transformers
  [2.3] [2.5]     its sections on the method and on training
  [ours]          not published, chosen here

`vit_l14_336` is `vit_l14` trained for one more epoch at 336 pixels [2.5]: give its run folder as `init_from`.
"""

import math

from configs import common

EPOCH = 400_000_000 // 32_768  # 400 M pairs

LEARNING_RATES = {
  "rn50": 5e-4, "rn101": 5e-4, "rn50x4": 5e-4, "rn50x16": 4e-4, "rn50x64": 3.6e-4,  # [19]
  "vit_b32": 5e-4, "vit_b16": 5e-4, "vit_l14": 4e-4, "vit_l14_336": 2e-5,  # [20]
}  # fmt: skip


def get_config(model: str = "vit_b32"):
  """Plain CLIP for a preset of fgclip_jax/models/config.py."""
  config = common.get_config()
  config.model = model
  config.kind = "clip"
  config.steps = EPOCH if model == "vit_l14_336" else 32 * EPOCH  # [18] 32 epochs; [2.5] one more
  config.objective.update(
    {
      "global_long": 0.0,
      "global_short": 1.0,
      "regional": 0.0,
      "hard_negative": 0.0,
      "form": "auto",  # [2.5] no device computes more of the similarities than its own share
    }
  )
  config.data.update(
    {
      "batch_size": 32_768,  # [18]
      "boxes": 0,
      "crop": "random_square",  # [2.3] the only augmentation: a random square of the resized image
    }
  )
  transformer = not model.startswith("rn")
  config.optimizer.update(
    {
      "name": "adamw",  # [2.5] Adam with decoupled weight decay
      "learning_rate": LEARNING_RATES.get(model, 5e-4),  # [19] [20]; [ours] for other models
      "warmup_steps": 2000,  # [18]
      "end_fraction": 0.0,  # [2.5] cosine
      "b1": 0.9,  # [18]
      "b2": 0.98 if transformer else 0.999,  # [18]
      "eps": 1e-6 if transformer else 1e-8,  # [18]
      "moment_dtype": "bfloat16",  # [2.5] half-precision Adam statistics; the second moments stay float32 [ours]
      "weight_decay": 0.2,  # [18]
      # [2.5] on all weights that are not gains or biases
      "rules": (("norm|bias|temperature|class_embedding", "weight_decay", 0.0),),
      "temperature_max": math.log(100),  # [18]; begins at 0.07 [2.5]
    }
  )
  config.runtime.update({"dtype": "bfloat16", "remat": "full"})  # [2.5] mixed precision, gradient checkpointing
  return config

"""FG-CLIP stage 2: long and short captions, regions, and hard negatives (FineHARD).

  python -m fgclip_jax.main --config=configs/stage2.py --workdir=runs/stage2 \\
    --config.data.path=data/finehard --config.init_from=runs/stage1

An argument picks the model: `--config=configs/stage2.py:vit_b16` (at 224 pixels, the default) and `:vit_l14_336` are
the published ones, `vit_b32` and `vit_l14` are there as well; nothing else differs between them. Where each number
comes from:

  [paper]   arXiv 2505.05071, its details of training, at second hand
  [script]  scripts/train.sh of the published code (branch v1.0), and what it leaves at its library's defaults
  [code]    the published code itself
"""

from configs import common


def get_config(model: str = "vit_b16"):
  """Stage 2 for a preset of fgclip_jax/models/config.py."""
  config = common.get_config()
  config.model = model
  config.steps = 2_930  # [paper] one epoch over 12 M images, in batches of 4,096

  config.objective.update(
    {
      "global_long": 1.0,  # [code], and the next
      "global_short": 1.0,
      "regional": 0.1,  # [paper], [script]
      "hard_negative": 0.5,  # [paper], [script]
      "regional_group": 512,  # [code] regions are contrasted within each GPU's images
    }
  )
  config.data.update(
    {
      "batch_size": 4096,  # [paper] 512 on each GPU, [script] 8 GPUs
      "boxes": 4,  # [code] the first four of an image
      "region_text": "random",  # [code] short or long expression, by chance
      "short_prefix": "a photo of ",  # [code]
    }
  )
  config.optimizer.update(
    {
      "name": "adamw",  # [script]
      "learning_rate": 1e-6,  # [paper], [script]
      "warmup_steps": 200,  # [script]
      "end_fraction": 0.0,  # [script] cosine
      "b1": 0.9,  # [script] not given, so the library's defaults; so the next two
      "b2": 0.999,
      "eps": 1e-8,
      "weight_decay": 0.001,  # [script]
      "clip_norm": None,  # [script] none
      "temperature_max": None,  # [code] none of the three is clamped
    }
  )
  config.runtime.update({"dtype": "bfloat16", "remat": "full"})  # [script]
  return config

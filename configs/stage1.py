"""FG-CLIP stage 1: image against short and long captions.

  python -m fgclip_jax.main --config=configs/stage1.py --workdir=runs/stage1 \\
    --config.data.path=data/pairs --config.init_from=path/to/clip-vit-base-patch16

An argument picks the model: `--config=configs/stage1.py:vit_b16` (at 224 pixels, the default) and `:vit_l14_336` are
the published ones, `vit_b32` and `vit_l14` are there as well; nothing else differs between them. Batch and steps are
the paper's: set `data.batch_size` and `steps` to what your devices and data allow. Where each number comes from:

  [paper]     arXiv 2505.05071, its details of training, at second hand
  [inferred]  from arXiv 2510.10921 (FG-CLIP 2), whose batch of 61,440 on 160 devices is the paper's 384 on each
  [ours]      not published, chosen here

The code of stage 1 was never released.
"""

from configs import common


def get_config(model: str = "vit_b16"):
  """Stage 1 for a preset of fgclip_jax/models/config.py."""
  config = common.get_config()
  config.model = model  # [paper]: initialised from CLIP's weights; give them as `init_from`
  config.steps = 26_041  # [paper] one epoch over 1.6 B pairs, [inferred] in batches of 61,440

  config.objective.update({"global_long": 1.0, "global_short": 1.0, "regional": 0.0, "hard_negative": 0.0})  # [paper]
  config.data.update({"batch_size": 61_440, "boxes": 0})  # [inferred] 160 x 384

  config.optimizer.update(
    {
      "name": "adamw",  # [paper]
      "learning_rate": 1e-4,  # [paper]
      "warmup_steps": 200,  # [ours] as in stage 2's script
      "end_fraction": 0.0,  # [ours] cosine to zero, as in stage 2's script
      "b1": 0.9,  # [ours] CLIP's, and the next two
      "b2": 0.98,
      "eps": 1e-6,
      "weight_decay": 0.05,  # [ours] between CLIP's 0.2, for training from nothing, and stage 2's 0.001
      "temperature_max": None,  # stage 2's code clamps none
    }
  )
  config.runtime.update({"dtype": "bfloat16"})  # [paper]
  return config

"""FG-CLIP stage 1: image against short and long captions.

  python -m fgclip_jax.main --config=configs/stage1.py --workdir=runs/stage1 \\
    --config.data.path=data/pairs --config.init_from=path/to/clip-vit-base-patch16

The paper's run is one epoch over 1.6 B pairs in batches of 61,440 (the batch is an inference from
FG-CLIP 2's report); set `data.batch_size` and `steps` to what your devices and data allow. Not
published for stage 1, so chosen here: weight decay, betas, warm-up. An argument picks the model:
`--config=configs/stage1.py:vit_l14_336`.
"""

from configs import common


def get_config(model: str = "vit_b16"):
  """Stage 1 for a preset of fgclip_jax/models/presets.py."""
  config = common.get_config()
  config.model = model
  config.steps = 26_041  # 1.6 B / 61,440
  config.objective.update({"regional": 0.0, "hard_negative": 0.0})
  config.data.update({"batch_size": 61_440, "boxes": 0})
  config.optimizer.update({"learning_rate": 1e-4, "weight_decay": 0.05, "b2": 0.98, "eps": 1e-6})
  return config

"""FG-CLIP stage 2: long and short captions, regions, and hard negatives (FineHARD).

  python -m fgclip_jax.main --config=configs/stage2.py --workdir=runs/stage2 \\
    --config.data.path=data/finehard --config.init_from=runs/stage1

The published script's settings: 8 x 512 images, learning rate 1e-6, one epoch over 12 M images.
`objective.regional_group = 512` is its objective, which contrasts regions within a device's images.
An argument picks the model: `--config=configs/stage2.py:vit_l14_336`.
"""

from configs import common


def get_config(model: str = "vit_b16"):
  """Stage 2 for a preset of fgclip_jax/models/presets.py."""
  config = common.get_config()
  config.model = model
  config.steps = 2_930  # 12 M / 4,096
  config.objective.regional_group = 512
  config.data.short_prefix = "a photo of "
  return config

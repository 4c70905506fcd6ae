"""A small FG-CLIP that learns the rendered scenes on a laptop's CPU; `launch/quickstart.sh` runs it.

  python -m fgclip_jax.main --config=configs/quickstart.py:stage1 --workdir=runs/quickstart/stage1
  python -m fgclip_jax.main --config=configs/quickstart.py:stage2 --workdir=runs/quickstart/stage2

Made from nothing: no pretrained weights, no download.
"""

import math

from configs import common

STEPS = {"stage1": 280, "stage2": 440}


def get_config(stage: str = "stage2"):
  """One of the two stages."""
  if stage not in STEPS:
    raise ValueError(f"configs/quickstart.py takes {' or '.join(STEPS)} after the colon, got {stage!r}")
  config = common.get_config()
  config.model = "scenes"
  config.steps = STEPS[stage]
  if stage == "stage1":
    config.objective.update({"regional": 0.0, "hard_negative": 0.0})
  else:
    config.init_from = "runs/quickstart/stage1"
    config.objective.regional_mask_identical = True  # few descriptions: one batch holds many twice
  config.data.update({"path": "data/scenes", "batch_size": 64, "boxes": 3, "row_length": 64})
  config.optimizer.update(
    {
      "learning_rate": 1e-3,
      "warmup_steps": STEPS[stage] // 8,
      "end_fraction": 0.02,
      "b2": 0.98,
      "eps": 1e-6,
      "weight_decay": 0.05,
      "rules": (("norm|bias|temperature|class_embedding", "weight_decay", 0.0),),
      "clip_norm": 1.0,
      "temperature_max": math.log(100),
    }
  )
  config.runtime.update({"dtype": "float32", "remat": "none", "unroll": 0})
  config.checkpoint_every = 200
  return config

"""A small FG-CLIP that learns the rendered scenes on a laptop's CPU; `launch/quickstart.sh` runs it.

  python -m fgclip_jax.main --config=configs/quickstart.py:stage1 --workdir=runs/quickstart/stage1
  python -m fgclip_jax.main --config=configs/quickstart.py:stage2 --workdir=runs/quickstart/stage2

`fgclip2_stage1` and `fgclip2_stage2` are a small FG-CLIP 2 on scenes of several shapes (`prepare scenes --shapes
mixed`), which `launch/quickstart.sh fgclip2` runs. Made from nothing: no pretrained weights, no download.
"""

import math

from configs import common

STEPS = {"stage1": 280, "stage2": 440, "fgclip2_stage1": 220, "fgclip2_stage2": 220}


def get_config(stage: str = "stage2"):
  """A stage of one of the two models."""
  if stage not in STEPS:
    raise ValueError(f"configs/quickstart.py takes {' or '.join(STEPS)} after the colon, got {stage!r}")
  second = stage.startswith("fgclip2_")
  regions = stage.endswith("stage2")
  config = common.get_config()
  config.model = "scenes2" if second else "scenes"
  config.steps = STEPS[stage]
  if not regions:
    config.objective.update({"regional": 0.0, "hard_negative": 0.0})
  else:
    config.init_from = f"runs/quickstart/{stage.replace('stage2', 'stage1')}"
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
  if second:
    config.data.update({"path": "data/scenes_mixed", "row_length": 48})
    config.objective.update({"contrast": "sigmoid", "regional_contrast": "softmax"})
    # The sigmoid contrast learns slowly in so few steps, and the tower does not: a smaller one, trained for 300 steps,
    # found the long caption among a batch's 64 for 60 % of its pictures with `softmax`, and for 26 % with `sigmoid`
    # from a temperature of 10 under AdamW. The bias stayed where it began, so that pictures moved away from all
    # captions instead, which leaves less room for what tells captions apart. The preset `scenes2` begins with 20, and
    # the bias learns 100 times as fast (39 %, with 10 times for temperatures). At first, all embeddings still moved
    # together; Muon, which gives every direction an equal step, made it 49 % in 200 steps. FG-CLIP 2 itself is
    # trained with AdamW, for much longer.
    config.optimizer.update(
      {
        "name": "muon",
        "learning_rate": 2e-3,
        "rules": (("temperature/bias", "learning_rate", 100.0), *config.optimizer.rules),
      }
    )
    if regions:
      config.objective.update({"regional": 0.2, "text_intra_modal": 0.1, "hard_contrast": 0.3, "hard_rank": 0.2})
  config.runtime.update({"dtype": "float32", "remat": "none", "unroll": 0})
  config.checkpoint_every = 200
  return config

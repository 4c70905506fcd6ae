"""FG-CLIP 2: English and Chinese, pictures of any shape, long and short captions, regions, and hard negatives.

  python -m fgclip_jax.main --config=configs/fgclip2.py --workdir=runs/fgclip2 \\
    --config.data.path=data/finehard --config.init_from=weights/siglip2-base-patch16-naflex

An argument picks stage and model: `stage2` (the default, all losses) or `stage1` (global losses alone), and one of
`fgclip2_b16`, `fgclip2_l16` and `fgclip2_so400m16`, as in `--config=configs/fgclip2.py:stage1,fgclip2_l16`. Training
starts from a SigLIP 2 for pictures of any shape, which becomes an FG-CLIP 2, or from an FG-CLIP 2, such as stage 1's
run folder: `init_from` names it. Where each number comes from:

  [script]  scripts/train/stage2_fgclip2.sh of the published code, and what it leaves at its library's defaults
  [code]    the published code itself
  [ours]    not published

The published stage 2 starts from SigLIP 2; of stage 1, nothing but its losses is published.
"""

from configs import common

STAGES = ("stage1", "stage2")
MODELS = ("fgclip2_b16", "fgclip2_l16", "fgclip2_so400m16", "tiny_fgclip2")


def get_config(argument: str = "stage2"):
  """A stage for a preset of fgclip_jax/models/config.py."""
  stage, _, model = argument.partition(",")
  model = model or "fgclip2_b16"
  if stage not in STAGES or model not in MODELS:
    raise ValueError(
      f"configs/fgclip2.py takes {' or '.join(STAGES)} after the colon, and behind a comma one of "
      f"{', '.join(MODELS)}; got {argument!r}"
    )
  config = common.get_config()
  config.model = model
  config.steps = 35_000  # [script] six epochs over 12 M English and 12 M Chinese images, in batches of 4,096

  regions = stage == "stage2"
  config.objective.update(
    {
      "contrast": "sigmoid",  # [code] SigLIP's loss, and the next five
      "regional_contrast": "softmax",
      "global_long": 1.0,
      "global_short": 1.0,
      "regional": 0.2 if regions else 0.0,
      "text_intra_modal": 0.1 if regions else 0.0,
      "hard_contrast": 0.5 * 0.6 if regions else 0.0,  # [code] the three parts of a term of weight 0.5
      "hard_negative": 0.5 * 3 if regions else 0.0,
      "hard_rank": 0.5 * 0.4 if regions else 0.0,
      "regional_group": 512,  # [code] regions are contrasted within each device's images
    }
  )
  config.data.update(
    {
      "batch_size": 4096,  # [script] 512 on each of 8 devices
      "boxes": 4 if regions else 0,  # [code] the first four of an image
      "region_text": "random",  # [code] short or long expression, by chance
      "short_prefix": "a photo of ",  # [code] before English captions
      "language_steps": True,  # [script] all images of a step have captions in one language
      "patch_budget": "dynamic",  # [code] 128 to 1,024 by the largest picture of a device's batch
      "squash_small": 512,  # [script] pictures with a side below 128 px
    }
  )
  config.optimizer.update(
    {
      "name": "adamw",  # [script]
      "learning_rate": 1e-6,  # [script]
      "warmup_share": 0.03,  # [script]
      "end_fraction": 0.0,  # [script] cosine
      "b1": 0.9,  # [script], and the next three
      "b2": 0.98,
      "eps": 1e-6,
      "weight_decay": 0.001,
      "rules": (("norm|bias", "weight_decay", 0.0),),  # [code] LayerNorms and biases do not decay
      "clip_norm": None,  # [script] none
      "temperature_max": None,  # [code] nothing is clamped
    }
  )
  if not regions:  # what has no gradient is left alone, as PyTorch's AdamW leaves it
    unused = "dense_head|region_projection|temperature/(regional|hard_negative)"
    config.optimizer.rules = (*config.optimizer.rules, (unused, "weight_decay", 0.0))
  config.runtime.update({"dtype": "bfloat16", "remat": "full"})  # [script]
  return config

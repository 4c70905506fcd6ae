"""The base that every config starts from: FG-CLIP's stage 2, whose settings the stages then change."""

import ml_collections


def _unset(kind: type):
  return ml_collections.config_dict.placeholder(kind)  # None until it is given; a new one for each key


def _tower() -> dict:
  whole = ("width", "depth", "heads", "mlp_width")
  return {**{name: _unset(int) for name in whole}, "layer_norm_eps": _unset(float)}


def get_config() -> ml_collections.ConfigDict:
  """Every key there is, with its default. Sections are explained where their dataclass stands."""
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.steps = 1000
  config.ema_decay = _unset(float)  # e.g. 0.9999: keeps an average of the weights, which evaluation then takes

  # the model: a name of fgclip_jax/models/presets.py, or `from_weights` to take the size from `init_from`
  config.model = "vit_b16"
  config.kind = "fgclip"  # or `clip`: no long text, no regions
  config.model_changes = ml_collections.ConfigDict(  # what is changed about it, e.g. vision.image_size
    {
      "vision": {**_tower(), "image_size": _unset(int), "patch_size": _unset(int)},
      "text": _tower(),
      "embedding_width": _unset(int),
    }
  )
  config.init_from = ""  # a PyTorch-format, model or run folder; a plain CLIP becomes FG-CLIP; empty: random

  # fgclip_jax/losses/objective.py
  config.objective = ml_collections.ConfigDict(
    {
      "global_long": 1.0,
      "global_short": 1.0,
      "regional": 0.1,
      "hard_negative": 0.5,
      "regional_group": _unset(int),  # None: the whole batch; the paper's: 512
      "regional_mask_identical": False,
      "contrast": "softmax",  # or `sigmoid`, SigLIP's
      "form": "auto",
      "chunk": 1024,
    }
  )

  # fgclip_jax/data/settings.py
  config.data = ml_collections.ConfigDict(
    {
      "path": "",
      "split": "train",
      "mixture": (),  # in place of `path`, e.g. (("data/finehard", 3.0), ("data/pairs", 1.0))
      "batch_size": 4096,
      "boxes": 4,
      "region_text": "random",
      "short_prefix": "",
      "row_length": 0,
      "packed": True,
      "shuffle": True,
      "decode": "fast",  # or `exact`: the published pixels, bit for bit, in twice the time
      "crop": "none",  # or `random`, `random_square`
      "crop_area": (0.6, 1.0),
      "crop_keep": 0.5,
      "workers": -1,
      "threads": -1,
      "prefetch": 4,
      "max_bad_share": 0.01,
    }
  )

  # fgclip_jax/train/optimizer.py
  config.optimizer = ml_collections.ConfigDict(
    {
      "name": "adamw",  # or adafactor, lion, muon
      "learning_rate": 1e-6,
      "warmup_steps": 200,
      "end_fraction": 0.0,
      "b1": 0.9,
      "b2": 0.999,
      "eps": 1e-8,
      "moment_dtype": "float32",  # of first moments; or bfloat16
      "weight_decay": 0.001,
      # (pattern, setting, value) by parameter name, the first found decides: factors on `weight_decay` and
      # `learning_rate`, or `frozen`; e.g. ("^vision", "frozen", 1.0): the image tower and its projection
      "rules": (("norm", "weight_decay", 0.0), ("bias", "weight_decay", 0.0)),
      "layer_decay": 1.0,  # a block's learning rate as a share of the one's above it
      "clip_norm": _unset(float),
      "temperature_max": _unset(float),
    }
  )

  # fgclip_jax/models/transformer.py
  config.runtime = ml_collections.ConfigDict(
    {"dtype": "bfloat16", "remat": "full", "unroll": 1, "attention": "auto", "micro_batches": 1}
  )

  config.mesh = "auto"  # or sizes of its axes, e.g. "data=32,fsdp=8,tensor=1"; see fgclip_jax/train/mesh.py

  # savings, off by default
  config.patch_dropout = 0.0  # stage 1: the share of patches that the image tower does not see
  config.progressive = ()  # e.g. ((0, 112), (8000, 224)): image size from a step on

  config.in_flight = 2  # steps under way on the devices before the host waits
  config.compilation_cache = "auto"  # a folder; "auto": the user's cache folder, on accelerators; "": none
  config.profile = ()  # e.g. (10, 15): a profile of these steps, for TensorBoard or Perfetto

  config.log_every = 10
  config.checkpoint_every = 500
  # what is measured on the live parameters every so many steps, and at the end: lines as for
  # `python -m fgclip_jax.evaluate`, e.g. ("records --data data/scenes --limit 500", "classify imagenet --images DIR")
  config.evals = ()
  config.eval_every = 1000
  # which checkpoints stay (fgclip_jax/train/checkpoint.py): the newest so many, those at a multiple of `every` steps
  # (0: none), and the best so many by a metric (0: none)
  config.keep = ml_collections.ConfigDict({"newest": 2, "every": 0, "best": 0, "metric": "loss", "mode": "min"})

  # when the run reports, tries again, or gives up (fgclip_jax/train/guard.py)
  config.guard = ml_collections.ConfigDict(
    {
      "max_skipped": 10,
      "spike_deviations": 8.0,
      "max_failed_saves": 3,
      "watchdog_seconds": 300.0,
      "grace_seconds": 60.0,
    }
  )
  config.resume_changed = False  # True: continue although steps, schedule or objective have changed
  return config

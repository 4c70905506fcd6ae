"""The base that every config starts from: FG-CLIP's stage 2, whose settings the stages then change.

A section's keys, their defaults and their meaning are those of its dataclass: this file holds no second copy of them.
"""

import dataclasses
import types
import typing
from typing import Any

import ml_collections
from ml_collections import config_dict

from fgclip_jax.data.config import DataConfig
from fgclip_jax.losses.objective import Objective
from fgclip_jax.models.transformer import Runtime
from fgclip_jax.train.checkpoints.settings import CheckpointConfig, Keep
from fgclip_jax.train.guard import GuardConfig
from fgclip_jax.train.optimizer import OptimizerConfig


def _unset(kind: type):
  return config_dict.placeholder(kind)  # None until it is given; a new one for each key


def _section(kind: type, without: tuple[str, ...] = (), **changes) -> ml_collections.ConfigDict:
  """The fields of a dataclass with their defaults, or with `changes`; a field that may be None takes its other type.

  A field that is a dataclass itself is a section of its own.
  """
  section, hints = {}, typing.get_type_hints(kind)
  for field in dataclasses.fields(kind):
    value, hint = changes.get(field.name, field.default), hints[field.name]
    if value is None and isinstance(hint, types.UnionType):
      value = _unset(next(option for option in typing.get_args(hint) if option is not types.NoneType))
    if field.name not in without:
      section[field.name] = _section(typing.cast(type, hint)) if dataclasses.is_dataclass(hint) else value
  return ml_collections.ConfigDict(section)


def _tower() -> dict:
  whole = ("width", "depth", "heads", "mlp_width")
  return {**{name: _unset(int) for name in whole}, "layer_norm_eps": _unset(float)}


def get_config() -> Any:  # a ConfigDict, of whose keys type checkers know nothing
  """Every key with its default; the docstrings of the dataclasses explain those of the sections."""
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.steps = 1000
  config.ema_decay = _unset(float)  # e.g. 0.9999: keeps an average of the weights, which evaluation then takes

  # the model: a name of fgclip_jax/models/config.py, or `from_weights` to take the size from `init_from`
  config.model = "vit_b16"
  config.kind = "fgclip"  # or `clip`: no long text, no regions
  config.model_changes = ml_collections.ConfigDict(  # what is changed about it, e.g. vision.image_size
    {
      "vision": {**_tower(), "image_size": _unset(int), "patch_size": _unset(int)},
      "text": _tower(),
      "embedding_width": _unset(int),
      # gives the model a pooling of the patches that is conditioned on a text; train it by objective.text_conditioned
      "text_pooling": {"heads": _unset(int), "layer_norm_eps": _unset(float)},
    }
  )
  config.init_from = ""  # a PyTorch-format, model or run folder; a plain CLIP becomes FG-CLIP; empty: random

  config.objective = _section(Objective)  # fgclip_jax/losses/objective.py
  config.data = _section(DataConfig)  # fgclip_jax/data/config.py
  config.optimizer = _section(OptimizerConfig, without=("total_steps",))  # fgclip_jax/train/optimizer.py; `steps` is it
  # fgclip_jax/models/transformer.py. By itself a Runtime is exact and keeps everything, for inference and tests; a run
  # computes in bfloat16 and keeps of each block only its input for the backward pass.
  config.runtime = _section(Runtime, without=("sharding",), dtype="bfloat16", remat="full")

  config.mesh = "auto"  # or sizes of its axes, e.g. "data=32,fsdp=8,tensor=1"; see fgclip_jax/train/mesh.py

  # savings, off by default
  config.patch_dropout = 0.0  # stage 1: the share of patches that the image tower does not see
  config.progressive = ()  # e.g. ((0, 112), (8000, 224)): image size from a step on

  config.in_flight = 2  # steps under way on the devices before the host waits
  config.compilation_cache = "auto"  # a folder; "auto": the user's cache folder, on accelerators; "": none
  config.profile = ()  # e.g. (10, 15): a profile of these steps, for TensorBoard or Perfetto

  # services that get the metrics too, e.g. ("wandb",): wandb, trackio, mlflow (requirements-loggers.txt)
  config.loggers = ()
  config.project = ""  # what they file the run under; "": the service's own setting, or `fgclip`
  config.run_name = ""  # "": the last two parts of the workdir

  config.log_every = 10
  # samples of the batch, heat maps and scores of a fixed picture, every so many steps, for TensorBoard and `loggers`
  config.image_every = 0  # 0: none
  config.checkpoint_every = 500  # in the workdir
  config.checkpoint = _section(CheckpointConfig)  # fgclip_jax/train/checkpoints/settings.py: faster, on local disks
  # what is measured on the live parameters every so many steps, and at the end: lines as for
  # `python -m fgclip_jax.evaluate`, e.g. ("records --data data/scenes --limit 500", "classify imagenet --images DIR")
  config.evals = ()
  config.eval_every = 1000
  config.keep = _section(Keep)  # fgclip_jax/train/checkpoints/settings.py: which checkpoints stay
  config.guard = _section(GuardConfig)  # fgclip_jax/train/guard.py: when the run reports, tries again, or gives up
  config.resume_changed = False  # True: continue although steps, schedule or objective have changed
  return config

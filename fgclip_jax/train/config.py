"""A run's settings, checked: from an ml_collections config to plain dataclasses.

Every value is looked at before anything is compiled; an error names the key and says what it takes.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from fgclip_jax.data.dataset_folder import find_shards
from fgclip_jax.data.loader import DataConfig
from fgclip_jax.data.packing import Layout, choose_row_length
from fgclip_jax.data.tokenizers import files
from fgclip_jax.data.tokenizers.padded import check_tokenizer
from fgclip_jax.evals.evaluator import Evaluator
from fgclip_jax.losses.objective import Objective
from fgclip_jax.losses.terms import LOSS_TERMS
from fgclip_jax.models.config import ModelConfig, preset
from fgclip_jax.models.params import abstract_params, flatten
from fgclip_jax.models.transformer import Runtime
from fgclip_jax.train.checkpoints.settings import CheckpointConfig, Keep
from fgclip_jax.train.config_values import as_dataclass, as_pairs, as_section, as_typed, as_whole, given_changes
from fgclip_jax.train.evaluation import evaluator_names, read_evals
from fgclip_jax.train.guard import GuardConfig
from fgclip_jax.train.loggers import registry as loggers
from fgclip_jax.train.mesh import parse_mesh
from fgclip_jax.train.optimizer import OptimizerConfig, check_rules, make_optimizer
from fgclip_jax.train.state import TrainSetup, abstract_state, size_in_bytes
from fgclip_jax.weights import formats as folders
from fgclip_jax.weights.clip_to_fgclip import fgclip_config, plain_config

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """The settings of a run.

  Attributes:
    model: the model's size.
    init_from: a folder that the weights come from; empty: random.
    objective, data, optimizer, runtime: sections, see their classes.
    mesh: sizes of its axes; None chooses them.
    steps: updates to make in all.
    ema_decay: of the parameters' exponential moving average, by update; None: none is kept.
    seed: of weights and data order.
    log_every, checkpoint_every, eval_every: in steps.
    image_every: pictures and a table of scores go to the loggers every so many steps; 0: none.
    evals: what is measured on the parameters every `eval_every` steps, and after the last one.
    checkpoint: fast checkpoints on the machines' own disks.
    keep: which checkpoints stay.
    guard: when the run reports, retries, or gives up.
    resume_changed: the run may continue with another length, schedule or objective than it began with.
    in_flight: steps that may be under way on the devices before the host waits.
    patch_dropout: the share of patches that the image tower does not see (FLIP); not with region terms.
    progressive: pairs of a step and the image size from that step on; empty: the model's size throughout.
    profile: first and last step of a profile; empty: none.
    loggers: services that the metrics go to as well, see `fgclip_jax/train/loggers/registry.py`.
    project, run_name: what these file the run under; empty: their own setting, and the workdir's last two parts.
    compilation_cache: a folder where compiled programs are kept for the next run; empty: none; `auto`: one in
      the user's cache folder, on accelerators.
    values: the whole config as it was given, for the record.
  """

  model: ModelConfig
  init_from: str
  objective: Objective
  data: DataConfig
  optimizer: OptimizerConfig
  runtime: Runtime
  mesh: dict[str, int] | None
  steps: int
  ema_decay: float | None
  seed: int
  log_every: int
  checkpoint_every: int
  eval_every: int
  image_every: int
  evals: tuple[Evaluator, ...]
  checkpoint: CheckpointConfig
  keep: Keep
  guard: GuardConfig
  resume_changed: bool
  in_flight: int
  patch_dropout: float
  progressive: tuple[tuple[int, int], ...]
  profile: tuple[int, ...]
  loggers: tuple[str, ...]
  project: str
  run_name: str
  compilation_cache: str
  values: dict[str, Any]

  @property
  def keeps_by_eval(self) -> bool:
    """Whether the best checkpoints are those of the best evaluation."""
    return self.keep.best > 0 and self.keep.metric.startswith("eval/")

  def setup(self, mesh: Mesh) -> TrainSetup:
    """What the run's state and step follow from, on the devices of a mesh."""
    return TrainSetup(
      self.model, mesh, self.objective, self.optimizer, self.runtime, self.seed, self.patch_dropout, self.ema_decay
    )

  def state_bytes(self) -> int:
    """The bytes of the run's whole state, over all devices."""
    optimizer, ema = make_optimizer(self.optimizer), self.ema_decay is not None
    return size_in_bytes(abstract_state(self.model, optimizer, ema, self.objective.needs_margin))

  def layout(self) -> Layout:
    """The static shapes of the run's batches, but for the row buckets."""
    model: Any = self.model  # of towers of any type
    vision, text = model.vision, model.text
    data, needs, set_size = self.data, self.objective.needs, self.data.captions.set_size
    long = text.long_length if "long" in needs or set_size else None
    regions = self.objective.needs_regions and self.model.fine_grained
    return Layout(
      boxes=data.boxes if regions else 0,
      row_length=data.row_length or choose_row_length(text, long),
      short_length=text.short_length,
      long_length=long,
      packed=data.packed,
      tokenizer=text.tokenizer,
      pad_id=text.pad_id if text.reads_padding else None,
      patches=data.patch_layout(vision.patch_size, vision.max_patches) if vision.takes_patches else None,
      set_size=set_size,
      long_per_image="long" in needs,
      caption_ids=self.objective.mask_identical,
    )


def read_config(config: ml_collections.ConfigDict, check_data: bool = True) -> RunConfig:
  """Checks a config and turns it into dataclasses.

  Without `check_data` the data set need not be there, nor the weights unless the model takes its size from them.

  Raises:
    ValueError: an unknown or missing key, or an impossible value.
    FileNotFoundError: a data set or model folder that is not there.
  """
  values = config.to_dict()
  left = dict(values)

  def take(key):
    if key not in left:
      raise ValueError(f"config.{key} is missing; see configs/common.py")
    return left.pop(key)

  def section(key, kind, **extra):
    return as_dataclass(key, take(key), kind, **extra)

  def whole(key, least=1, most=math.inf):
    return as_whole(key, take(key), least, most)

  steps = whole("steps", most=2**31 - 1)  # counted in int32
  init_from = as_typed("init_from", take("init_from"), str)
  objective, data = section("objective", Objective), section("data", DataConfig)
  model = _model(as_typed("model", take("model"), str), take("kind"), take("model_changes"), init_from, check_data)
  if objective.needs_bias and not init_from and model.logit_bias is None:
    model = model.replace(temperature_init=math.log(10), logit_bias=-10.0)  # SigLIP's, arXiv 2303.15343 section 3.2
  model = model.replace(text={"tokenizer": files.locate(model.text.tokenizer, data.tokenizer, init_from)})
  optimizer = section("optimizer", OptimizerConfig, total_steps=steps)
  _check_optimizer(optimizer, steps, model)
  runtime = as_section("runtime", take("runtime"))
  if runtime.get("dtype") not in DTYPES:
    raise ValueError(f"config.runtime.dtype must be one of {list(DTYPES)}, got {runtime.get('dtype')!r}")
  left["runtime"] = {**runtime, "dtype": DTYPES[runtime["dtype"]]}
  run = RunConfig(
    model=model,
    init_from=init_from,
    objective=objective,
    data=data,
    optimizer=optimizer,
    runtime=section("runtime", Runtime, sharding=None),
    mesh=parse_mesh(as_typed("mesh", take("mesh"), str)),
    steps=steps,
    ema_decay=as_typed("ema_decay", take("ema_decay"), float | None),
    seed=whole("seed", least=0, most=2**32 - 1),  # Grain's range
    **{key: whole(key) for key in ("log_every", "checkpoint_every", "eval_every", "in_flight")},
    image_every=whole("image_every", least=0),
    evals=read_evals(as_typed("evals", take("evals"), tuple[str, ...]), check_data),
    checkpoint=section("checkpoint", CheckpointConfig),
    keep=section("keep", Keep),
    guard=section("guard", GuardConfig),
    resume_changed=as_typed("resume_changed", take("resume_changed"), bool),
    patch_dropout=as_typed("patch_dropout", take("patch_dropout"), float),
    compilation_cache=as_typed("compilation_cache", take("compilation_cache"), str),
    progressive=as_pairs("progressive", take("progressive")),
    profile=as_typed("profile", take("profile"), tuple[int, ...]),
    loggers=loggers.check(as_typed("loggers", take("loggers"), tuple[str, ...]), check_data),
    **{key: as_typed(key, take(key), str) for key in ("project", "run_name")},
    values=values,
  )
  if left:
    raise ValueError(f"unknown keys {sorted(left)} in the config; see configs/common.py")
  _check_keep(run)
  as_whole("data.batch_size", run.data.batch_size, most=2**31 - 1)  # JAX's indices are int32
  as_whole("data.row_length", run.data.row_length, least=0, most=2**20)
  as_whole("data.boxes", run.data.boxes, least=0, most=2**10)
  as_whole("runtime.unroll", run.runtime.unroll, least=0)
  as_whole("runtime.micro_batches", run.runtime.micro_batches)
  _check_objective(run)
  _check_captions(run)
  _check_savings(run)
  if check_data:
    _check_data(run.data)
    check_tokenizer(run.model.text)
  run.layout()
  return run


def _check_data(data: DataConfig) -> None:
  """The data sets are there."""
  if not data.path and not data.mixture:
    raise ValueError("config.data.path is empty: name a folder made by `python -m fgclip_jax.prepare`")
  for each in data.sets():
    find_shards(each.path, each.split)


def _check_keep(run: RunConfig) -> None:
  """Checkpoints that are kept by an evaluation need it at each of them."""
  if not run.keeps_by_eval:
    return
  names = evaluator_names(run.evals)
  if run.keep.metric.rpartition("/")[0] not in [f"eval/{name}" for name in names]:
    there = ", ".join(f"'eval/{name}/...'" for name in names) or "none, as config.evals is empty"
    raise ValueError(f"config.keep.metric={run.keep.metric!r} is of no evaluation of this run: there are {there}")
  if run.keep.mode != "max":
    raise ValueError(f"config.keep.mode must be 'max' with config.keep.metric={run.keep.metric!r}: more is better")
  if run.checkpoint_every % run.eval_every:
    raise ValueError(
      f"config.checkpoint_every={run.checkpoint_every} must be a multiple of config.eval_every={run.eval_every}, since "
      f"checkpoints are kept by {run.keep.metric!r}"
    )


def _model(name: str, kind: Any, changes: Any, init_from: str, check_folder: bool) -> ModelConfig:
  """The model's size: a preset, or `from_weights`: that of the folder the weights come from."""
  if kind not in ("fgclip", "clip"):
    raise ValueError(f"config.kind must be 'fgclip' or 'clip', got {kind!r}")
  if init_from and check_folder:
    folders.detect(init_from)
  if name == "from_weights":
    if not init_from:
      raise ValueError("config.model is 'from_weights', but config.init_from is empty")
    model = folders.read_config(init_from)
  else:
    try:
      model = preset(name)
    except ValueError as error:
      raise ValueError(f"config.model: {error}, and 'from_weights', which takes the size from init_from") from None
  if kind == "clip":
    model = plain_config(model)
  elif not model.fine_grained:
    model = fgclip_config(model)
  try:
    return model.replace(**given_changes("model_changes", as_section("model_changes", changes)))
  except (TypeError, ValueError) as error:
    message = str(error)
    raise ValueError(message if message.startswith("config.") else f"config.model_changes: {message}") from None


def _check_optimizer(config: OptimizerConfig, steps: int, model: ModelConfig) -> None:
  if config.warmup > steps:
    raise ValueError(f"config.optimizer.warmup_steps must lie in 0..steps ({steps}), got {config.warmup}")
  if config.layer_decay != 1 and not model.vision.supports_layer_decay:
    raise ValueError(
      f"config.optimizer.layer_decay is for transformers, and the image tower is a {model.vision.label}: leave it at 1"
    )
  check_rules(config.rules, flatten(abstract_params(model)))


def _check_objective(run: RunConfig) -> None:
  weights = run.objective.weights
  if any(weight < 0 for weight in weights.values()) or not any(weights.values()):
    raise ValueError(f"config.objective: weights must not be negative and not all zero, got {weights}")
  fine = [name for name, weight in weights.items() if weight and LOSS_TERMS[name].needs_fgclip]
  if fine and not run.model.fine_grained:
    raise ValueError(f"config.objective: {fine} need FG-CLIP, the model is a plain CLIP (no long text, no regions)")
  if run.objective.text_conditioned:
    if run.model.text_pooling is None:
      raise ValueError(
        "config.objective.text_conditioned needs a model with text pooling: set "
        "config.model_changes.text_pooling.heads, e.g. to 8"
      )
    as_whole("objective.conditioned_negatives", run.objective.conditioned_negatives, most=run.data.batch_size - 1)
  if run.objective.needs_bias and run.model.logit_bias is None:
    raise ValueError(
      f"config.objective.contrast is 'sigmoid', but the weights in {run.init_from!r} have no logit bias: start from "
      "random weights (config.init_from='') or from a run with this contrast"
    )
  group = run.objective.regional_group
  if group is not None and (group < 1 or run.data.batch_size % group):
    raise ValueError(f"config.objective.regional_group {group} must divide data.batch_size {run.data.batch_size}")
  if run.objective.needs_regions and run.data.boxes < 1:
    raise ValueError("config.data.boxes must be at least 1: the objective has region terms")


def _check_captions(run: RunConfig) -> None:
  """Sets of captions are read if and only if a term compares them."""
  set_size, weights = run.data.captions.set_size, run.objective.weights
  if "captions" in run.objective.needs and not set_size:
    raise ValueError(
      "config.objective.caption_set compares captions of sets, of which config.data.captions.set_size takes none: set "
      "it, e.g. to 4"
    )
  if set_size and not any(weights.get(name) for name in ("caption_set", "text_conditioned")):
    raise ValueError(
      f"config.data.captions.set_size={set_size} is for captions that no term compares: give a weight to "
      "config.objective.caption_set, or leave set_size at 0"
    )


def _check_savings(run: RunConfig) -> None:
  if run.ema_decay is not None and not 0 < run.ema_decay < 1:
    raise ValueError(f"config.ema_decay must lie between 0 and 1 (None: no average), got {run.ema_decay}")
  if not 0 <= run.patch_dropout < 1:
    raise ValueError(f"config.patch_dropout must lie in 0..1 (1 excluded), got {run.patch_dropout}")
  if run.patch_dropout and run.objective.needs_regions:
    raise ValueError("config.patch_dropout: region terms need every patch; it is for stage 1 and plain CLIP")
  if run.patch_dropout and run.objective.text_conditioned:
    raise ValueError("config.patch_dropout: objective.text_conditioned needs every patch: leave it at 0")
  if run.patch_dropout and not run.model.vision.has_patches:
    raise ValueError(
      "config.patch_dropout is for Vision Transformers of square pictures, and the image tower is a "
      f"{run.model.vision.label}: leave it at 0"
    )
  if run.profile and len(run.profile) != 2:
    raise ValueError(f"config.profile must be two steps, e.g. (10, 15), or (), got {run.profile}")
  if run.profile and not 1 <= run.profile[0] <= run.profile[1]:
    raise ValueError(f"config.profile must be a first and a last step, counted from 1, got {run.profile}")
  patch = run.model.vision.patch_size
  if run.progressive and run.model.vision.takes_patches:
    raise ValueError("config.progressive: the model takes pictures of any shape, which have a patch budget and no size")
  for _, size in run.progressive:
    if size < patch or size % patch:
      raise ValueError(f"config.progressive: image size {size} is no multiple of the patch size {patch}")
  starts = [start for start, _ in run.progressive]
  if run.progressive and (starts[0] != 0 or starts != sorted(set(starts))):
    raise ValueError(f"config.progressive: steps must begin with 0 and ascend, got {starts}")
  own = run.model.vision.image_size
  if run.progressive and run.progressive[-1][1] != own:
    raise ValueError(f"config.progressive must end with the model's image size, {own}, got {run.progressive[-1][1]}")

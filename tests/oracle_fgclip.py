"""The comparison with a recorded run of FG-CLIP; see oracle.py, the command."""

import collections
import dataclasses
import functools
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from fgclip_jax.data.packing import Caption, Example, Layout, assemble, cut
from fgclip_jax.losses.objective import Objective, objective_terms
from fgclip_jax.models.params import build, flatten, unflatten
from fgclip_jax.models.roi_align import roi_align
from fgclip_jax.models.transformer import Runtime
from fgclip_jax.train.mesh import activation_sharding, data_shards, shard_params, to_devices
from fgclip_jax.train.optimizer import OptimizerConfig, apply_updates, make_optimizer, rule_value, schedule
from fgclip_jax.weights import huggingface, huggingface_names

FEATURE, LOSS, GRADIENT = 1e-4, 1e-4, 1e-3  # largest error, relative to the array's largest value
INPUTS = {
  "image", "text_short", "text_long", "box_infos", "box_texts", "box_nums", "hard_infos", "hard_texts", "hard_nums",
}  # fmt: skip
OPTIMIZER = {
  "losses", "lr", "betas", "eps", "weight_decay", "warmup_steps", "total_steps", "schedule", "gradient_clipping",
  "decayed",
}  # fmt: skip
ORI, RES = (f"text_model.embeddings.position_embedding_{part}.weight" for part in ("ori", "res"))
STAGES = {
  "stage1": Objective(regional=0.0, hard_negative=0.0),
  "regional": Objective(hard_negative=0.0),
  "stage2": Objective(),
}


class Report:
  """Prints and counts comparisons, and knows what is left over."""

  def __init__(self, quiet: bool = False):
    self.compared, self.failed, self.quiet = 0, 0, quiet

  def line(self, name: str, absolute: float, relative: float, ok: bool) -> None:
    self.compared += 1
    self.failed += not ok
    if not (self.quiet and ok):
      print(f"{name:<100} abs {absolute:9.2e}  rel {relative:9.2e}  {'ok' if ok else 'FAIL'}", flush=True)

  def array(self, name: str, ours, recorded, tolerance: float, noise: float = 0.0) -> None:
    """Passes within `tolerance` of the largest recorded value, or within `noise`, absolute."""
    ours, recorded = np.asarray(ours, np.float64), np.asarray(recorded, np.float64)
    if ours.shape != recorded.shape:
      print(f"{name}: shape {ours.shape}, recorded {recorded.shape}")
      return self.line(name, np.inf, np.inf, False)
    absolute = float(np.max(np.abs(ours - recorded), initial=0.0))
    relative = absolute / max(float(np.max(np.abs(recorded), initial=0.0)), 1e-30)
    self.line(name, absolute, relative, bool(relative <= tolerance or absolute <= noise))

  def exact(self, name: str, same: bool) -> None:
    self.line(name, 0.0 if same else np.inf, 0.0 if same else np.inf, bool(same))

  def not_compared(self, name: str) -> None:
    self.failed += 1
    print(f"{name:<100} was recorded but not compared  FAIL", flush=True)


def load_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
  with np.load(path, allow_pickle=False) as file:
    return dict(file)


def examples_of(inputs: dict[str, np.ndarray], end_id: int) -> list[Example]:
  """The recorded inputs of one process as our examples."""
  count = len(inputs["box_nums"])
  boxes = inputs["box_infos"].reshape(count, -1, 4)
  texts = inputs["box_texts"].reshape(count, boxes.shape[1], -1)
  hard_boxes = inputs["hard_infos"].reshape(count, -1, 4)
  per_hard = len(inputs["hard_texts"]) // max(int(inputs["hard_nums"].sum()), 1)
  hard_texts = iter(inputs["hard_texts"].reshape(-1, max(per_hard, 1), inputs["hard_texts"].shape[-1]))
  examples = []
  for i in range(count):
    n, negatives = int(inputs["box_nums"][i]), {}
    for j in range(int(inputs["hard_nums"][i])):
      same = [k for k in range(n) if k not in negatives and np.array_equal(boxes[i, k], hard_boxes[i, j])]
      if not same:
        raise ValueError(f"image {i}: hard box {j} is none of the image's boxes")
      truth, *wrong = (cut(ids, end_id) for ids in next(hard_texts))
      negatives[same[0]] = (truth, tuple(wrong))
    examples.append(
      Example(
        image=inputs["image"][i].transpose(1, 2, 0),
        short=cut(inputs["text_short"][i], end_id),
        long=cut(inputs["text_long"][i], end_id, long=True),
        boxes=boxes[i, :n],
        regions=tuple(cut(texts[i, k], end_id) for k in range(n)),
        negatives=tuple(negatives.get(k) for k in range(n)),
        record=i,
      )
    )
  return examples


def text_features(model, captions: list[Caption], layout: Layout):
  """Features of captions of one kind, each read where it ends."""
  image = np.zeros((1, 1, 3), np.uint8)
  batch = assemble([Example(image=image, short=c) for c in captions], 1, layout)
  row, end = np.divmod(batch["short_eot"][0], layout.row_length)
  kind = "long" if captions[0].long else "short"
  args = (batch[key][0] for key in ("tokens", "segment", "position"))
  return jax.jit(functools.partial(type(model).text_features, kind=kind))(model, *args, row, end)


def fgclip_folder(folder: pathlib.Path, report: Report, mesh: jax.sharding.Mesh | None = None) -> set[str]:
  """Compares a folder of an FG-CLIP run; returns the files it has dealt with.

  With a mesh, losses and gradients are computed there, of packed captions.
  """
  name = folder.name
  config, flat, _ = huggingface.read(str(folder / "checkpoint"))
  params = unflatten({key: jnp.asarray(value) for key, value in flat.items()})
  done = {"checkpoint/config.json", "checkpoint/model.safetensors"}
  ranks = sorted(folder.glob("inputs*.npz"), key=lambda p: [int(n) for n in re.findall(r"\d+", p.stem)])
  inputs = [load_npz(path) for path in ranks]
  done |= {path.name for path in ranks}
  for key in set().union(*inputs) - INPUTS:
    report.not_compared(f"{name}/inputs/{key}")
  end_id = config.text.end_id
  examples = [example for part in inputs for example in examples_of(part, end_id)]
  boxes = max(part["box_infos"].reshape(len(part["box_nums"]), -1, 4).shape[1] for part in inputs)
  layouts = {
    form: Layout(boxes=boxes, row_length=config.text.long_length, packed=form == "packed")
    for form in (("padded", "packed") if mesh is None else ("packed",))
  }
  # each rank is a contrast group of ours, as the published code scores regions within a process
  group = len(examples) // len(ranks) if len(ranks) > 1 else None
  if any(len(part["box_nums"]) * len(ranks) != len(examples) for part in inputs):
    raise ValueError(f"{folder}: the ranks hold different numbers of images")

  if (path := folder / "outputs.npz").exists():
    done.add(path.name)
    _features(f"{name}/outputs", build(config, params), inputs[0], load_npz(path), layouts, report)

  recorded_losses = {}
  if (path := folder / "losses.json").exists():
    recorded_losses = json.loads(path.read_text())
    done.add(path.name)
  elif rank_losses := sorted(folder.glob("losses_rank*.json")):
    by_rank = [json.loads(path.read_text()) for path in rank_losses]
    done |= {path.name for path in rank_losses}
    recorded_losses = {
      "stage2": {key: float(np.mean([rank[key] for rank in by_rank])) for key in set().union(*by_rank)}
    }
  for stage in recorded_losses.keys() - STAGES.keys():
    report.not_compared(f"{name}/losses/{stage}")
  stages = {
    stage: dataclasses.replace(objective, regional_group=group)
    for stage, objective in STAGES.items()
    if stage in recorded_losses or (stage == "stage2" and (folder / "optimizer.json").exists())
  }

  @jax.jit
  def compiled(params, batch, chosen):
    # compiling costs far more than running: one function serves all stages, `chosen` being 1 for one and 0 for others
    def total(params):
      embeddings = build(config, params, Runtime(sharding=mesh and activation_sharding(mesh)))(batch)
      terms = {
        stage: objective_terms(embeddings, params["temperature"], value, mesh) for stage, value in stages.items()
      }
      return sum(chosen[stage] * terms[stage]["total"] for stage in stages), terms

    (_, terms), grads = jax.value_and_grad(total, has_aux=True)(params)
    return terms, grads

  def terms_and_gradients(params, batch, stage):
    terms, grads = compiled(params, batch, {other: float(other == stage) for other in stages})
    return terms[stage], grads

  if mesh is not None:
    params = jax.device_put(params, shard_params(params, mesh))
  for form, layout in layouts.items():
    batch = assemble(examples, data_shards(mesh) if mesh else len(ranks), layout)
    batch = to_devices(batch, mesh) if mesh else batch
    for stage, recorded in recorded_losses.items():
      if stage not in stages:
        continue
      terms, grads = terms_and_gradients(params, batch, stage)
      for key, value in recorded.items():
        if key in terms:
          report.array(f"{name}/losses/{form}/{stage}/{key}", terms[key], value, LOSS)
        else:
          report.not_compared(f"{name}/losses/{stage}/{key}")
      path = folder / (f"grads_{stage}.safetensors" if len(ranks) == 1 else "mean_grads.safetensors")
      if path.exists():
        done.add(path.name)
        _tensors(f"{name}/{path.stem}/{form}", grads, safetensors.numpy.load_file(path), config, GRADIENT, report)

  if (path := folder / "optimizer.json").exists():
    after = folder / "params_after_3_steps.safetensors"
    done |= {path.name, after.name}
    batch = assemble(examples, len(ranks), layouts["packed"])
    step = functools.partial(terms_and_gradients, batch=batch, stage="stage2")
    _optimizer(name, config, params, step, json.loads(path.read_text()), after, report)

  if (path := folder / "position_stretch.npz").exists():
    done.add(path.name)
    tables = load_npz(path)
    stretched = huggingface_names.stretch_positions(tables.pop("clip_77"))
    for key, table in tables.items():
      report.array(f"{name}/position_stretch/{key}", stretched, table, FEATURE)
  compare_roundtrip(name, folder / "checkpoint", config, flat, report)
  return done


def compare_roundtrip(name: str, checkpoint: pathlib.Path, config, flat, report: Report) -> None:
  """Reading and writing a checkpoint gives the same bytes (rows that nothing reads aside)."""
  ours, recorded = (
    huggingface_names.to_theirs(flat, config),
    safetensors.numpy.load_file(checkpoint / "model.safetensors"),
  )
  same = ours.keys() == recorded.keys()
  for key in set(ours) & set(recorded):
    rows = {ORI: slice(None, huggingface_names.KEPT_POSITIONS), RES: slice(huggingface_names.KEPT_POSITIONS, None)}.get(
      key, ...
    )
    a, b = ours[key][rows], recorded[key][rows]
    same &= ours[key].shape == recorded[key].shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
  report.exact(f"{name}/checkpoint/round trip", same)


def _features(name: str, model, inputs, recorded, layouts: dict[str, Layout], report: Report) -> None:
  """Compares features before normalisation: of images, and of texts in both forms."""
  count = len(inputs["box_nums"])
  image, dense = jax.jit(type(model).image_features)(model, jnp.asarray(inputs["image"].transpose(0, 2, 3, 1)))
  boxes = jnp.asarray(inputs["box_infos"].reshape(count, -1, 4))
  ours = {
    "image_features": image,
    "dense_features": dense.reshape(count, -1, dense.shape[-1]),
    "roi_features": roi_align(dense, boxes).reshape(-1, dense.shape[-1]),
  }
  for form, layout in layouts.items():
    texts = _text_features_by_kind(model, inputs, layout)
    for key, value in recorded.items():
      if key in texts:
        report.array(f"{name}/{form}/{key}", texts[key], value, FEATURE)
  for key, value in recorded.items():
    if key in ours:
      report.array(f"{name}/{key}", ours[key], value, FEATURE)
    elif key not in texts:
      report.not_compared(f"{name}/{key}")


def _text_features_by_kind(model, inputs, layout: Layout) -> dict[str, np.ndarray]:
  end_id = model.config.text.end_id
  kinds = {"short_text_features": "text_short", "box_text_features": "box_texts", "hard_text_features": "hard_texts"}
  short = text_features(model, [cut(ids, end_id) for key in kinds.values() for ids in inputs[key]], layout)
  lengths = [len(inputs[key]) for key in kinds.values()]
  features = dict(zip(kinds, np.split(np.asarray(short), np.cumsum(lengths)[:-1]), strict=True))
  long = text_features(model, [cut(ids, end_id, long=True) for ids in inputs["text_long"]], layout)
  return features | {"long_text_features": np.asarray(long)}


def _noise(tensors) -> float:
  """Some gradients are zero in exact arithmetic (a key's bias): what is recorded is the rounding noise of others."""
  return 1e-6 * max(float(np.max(np.abs(v), initial=0.0)) for k, v in tensors.items() if not k.endswith(".rows"))


def _tensors(name: str, tree, recorded, config, tolerance: float, report: Report, noise=None) -> None:
  """Compares a tree like the parameters with recorded tensors under the reference's names.

  `noise` gives, by name, the absolute error that passes; by default that of gradients.
  """
  theirs = huggingface_names.to_theirs({key: np.asarray(leaf) for key, leaf in flatten(tree).items()}, config)
  recorded = dict(recorded)
  if noise is None:
    floor = _noise(recorded)
    noise = collections.defaultdict(lambda: floor)
  for key in [key.removesuffix(".rows") for key in recorded if key.endswith(".rows")]:
    rows = recorded.pop(f"{key}.rows")
    report.array(
      f"{name}/{key} (recorded rows)", theirs[key][rows], recorded.pop(f"{key}.values"), tolerance, noise[key]
    )
    theirs.pop(key)
  for key, value in recorded.items():
    if key not in theirs:
      report.not_compared(f"{name}/{key}")
      continue
    rows = {ORI: slice(None, huggingface_names.KEPT_POSITIONS), RES: slice(huggingface_names.KEPT_POSITIONS, None)}.get(
      key, ...
    )
    report.array(f"{name}/{key}", theirs.pop(key)[rows], value[rows], tolerance, noise[key])
  for key in theirs:
    report.array(f"{name}/{key} (not recorded: zero)", theirs[key], np.zeros_like(theirs[key]), tolerance, noise[key])


def _optimizer(name: str, config, params, step, recorded, after: pathlib.Path, report: Report) -> None:
  for key in recorded.keys() - OPTIMIZER:
    report.not_compared(f"{name}/optimizer/{key}")
  b1, b2 = recorded["betas"]
  settings = OptimizerConfig(
    learning_rate=recorded["lr"],
    warmup_steps=recorded["warmup_steps"],
    total_steps=recorded["total_steps"],
    b1=b1,
    b2=b2,
    eps=recorded["eps"],
    weight_decay=recorded["weight_decay"],
    clip_norm=recorded["gradient_clipping"],
  )
  shapes = {
    key: np.full(leaf.shape, bool(rule_value(settings.rules, "weight_decay", key)))
    for key, leaf in flatten(params).items()
  }
  decayed = {key for key, value in huggingface_names.to_theirs(shapes, config).items() if value.all()}
  report.exact(f"{name}/optimizer/decayed", decayed == set(recorded["decayed"]))
  optimizer = make_optimizer(settings)
  state = optimizer.init(params)

  @jax.jit
  def update(grads, state, params):
    updates, state = optimizer.update(grads, state, params)
    return apply_updates(settings, params, updates), state

  noise = collections.defaultdict(float)
  for index, loss in enumerate(recorded["losses"]):
    terms, grads = step(params)
    report.array(f"{name}/optimizer/losses[{index}]", terms["total"], loss, LOSS)
    if not noise:  # Adam turns a gradient of pure noise into steps of up to the learning rate
      first = huggingface_names.to_theirs({key: np.asarray(leaf) for key, leaf in flatten(grads).items()}, config)
      steps = sum(float(schedule(settings)(i)) for i in range(len(recorded["losses"])))
      noise |= {key: steps for key, value in first.items() if np.max(np.abs(value)) <= _noise(first)}
    params, state = update(grads, state, params)
  _tensors(f"{name}/{after.stem}", params, safetensors.numpy.load_file(after), config, GRADIENT, report, noise)

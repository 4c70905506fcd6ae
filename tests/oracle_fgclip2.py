"""The comparison with recorded runs of FG-CLIP 2 and SigLIP; see oracle.py, the command.

`KINDS` has a comparer for each kind of folder: a function of the folder and the report, which returns the names of the
files that it has dealt with.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from oracle_fgclip import FEATURE, LOSS, Report, compare_roundtrip, load_npz
from oracle_patches import common_folder, loader_folder
from oracle_siglip import (
  FORMS,
  compare_gradients,
  image_features,
  levels_of,
  pack_images,
  read_rows,
  siglip_folder,
  similarities,
  text_features,
  to_theirs,
)

from fgclip_jax.data.packing import Caption, Example, Layout, assemble
from fgclip_jax.data.patches import PatchLayout
from fgclip_jax.losses.groups import as_published, make_groups
from fgclip_jax.losses.margin import next_margin
from fgclip_jax.losses.objective import Objective, objective_terms
from fgclip_jax.losses.terms import QUIRKS
from fgclip_jax.models.fgclip import unit_length
from fgclip_jax.models.params import build, unflatten
from fgclip_jax.models.pixels import normalize_patches
from fgclip_jax.models.roi_align import roi_align_patches
from fgclip_jax.models.transformer import Runtime
from fgclip_jax.train.mesh import activation_sharding, data_shards, make_mesh, shard_params, to_devices
from fgclip_jax.train.optimizer import OptimizerConfig, apply_updates, make_optimizer, rule_value, schedule
from fgclip_jax.weights import huggingface, huggingface_names

PARAMETERS_AFTER = 2e-4, 2e-3  # absolute: of parameters after three steps, and of keys' biases, which have no gradient
INPUTS = {
  "pixel_values", "pixel_attention_mask", "spatial_shapes", "text_short", "text_long", "box_infos", "box_texts",
  "box_nums", "hard_infos", "hard_nums", "hard_texts",
}  # fmt: skip
GLOBAL = {"global_long": 1.0, "global_short": 1.0}
REGIONS = {"regional": 0.2, "text_intra_modal": 0.1}
HARD = {"hard_contrast": 0.3, "hard_negative": 1.5, "hard_rank": 0.2}
ALL = GLOBAL | REGIONS | HARD
# of each case: the weights; what the recorded boxes and hard boxes of the images become, by rank where there are two
Counts = dict[str, list[int]]
CASES: dict[str, tuple[dict[str, float], Counts]] = {
  "stage1": (GLOBAL, {}),
  "short_only": ({"global_short": 1.0}, {}),
  "regional": (GLOBAL | REGIONS, {}),
  "hard": (GLOBAL | HARD, {}),
  "stage2": (ALL, {}),
  "stage2_threshold": (ALL, {}),
  "stage2_gather": (ALL, {}),
  "no_regions": (ALL, {"boxes": [0] * 5, "hard": [0] * 5}),
  "quirk_fewer_than_ten_boxes": (ALL, {"boxes": [1, 0, 3, 4, 0], "hard": [1, 0, 1, 3, 0]}),
  "quirk_one_hard_box": (ALL, {"hard": [1, 0, 0, 0, 0]}),
  "rank1_without_regions": (ALL, {"boxes": [4, 4, 4, 0, 0, 0], "hard": [4, 4, 4, 0, 0, 0]}),
}
PUBLISHED = Objective(contrast="sigmoid", regional_contrast="softmax", quirks=tuple(QUIRKS), **ALL)
NAMES = {"hard_pair": "hard_negative"}  # of terms
# with an attention mask over padding
NOT_OFFERED = {"short_text_features_masked"}


class Run:
  """A recorded model and its inputs, of one process or of several, whose images then follow each other."""

  def __init__(self, folder: pathlib.Path, inputs: list[dict[str, np.ndarray]]):
    self.folder, self.inputs = folder, inputs
    self.config, self.flat, _ = huggingface.read(str(folder / "checkpoint"))
    self.params = unflatten({key: jnp.asarray(value) for key, value in self.flat.items()})
    self.images = sum(len(part["spatial_shapes"]) for part in inputs)

  def theirs(self, tree) -> dict[str, np.ndarray]:
    """A tree like the parameters under the published names."""
    return to_theirs(tree, self.config)

  def batch(self, shards: int, packed: bool) -> dict[str, np.ndarray]:
    """The inputs as a batch, all recorded boxes and hard boxes included."""
    text, patch = self.config.text, self.config.vision.patch_size
    boxes = max(len(part["box_infos"]) // len(part["box_nums"]) for part in self.inputs)
    budget = max(part["pixel_values"].shape[1] for part in self.inputs)
    lengths = text.short_length, text.long_length or 0
    layout = Layout(
      boxes=boxes,
      row_length=sum(lengths) if packed else max(lengths),
      short_length=text.short_length,
      long_length=text.long_length,
      packed=packed,
      pad_id=text.pad_id,
      patches=PatchLayout(budget=budget, patch_size=patch),
    )
    return assemble([example for part in self.inputs for example in examples_of(part)], shards, layout)


def examples_of(inputs: dict[str, np.ndarray]) -> list[Example]:
  """The recorded inputs of one process as our examples; patches as the levels that they were made of."""
  count = len(inputs["box_nums"])
  boxes, hard_boxes = (inputs[key].reshape(count, -1, 4) for key in ("box_infos", "hard_infos"))
  texts = inputs["box_texts"].reshape(count, boxes.shape[1], -1)
  hard_texts = iter(inputs["hard_texts"].reshape(-1, 11, inputs["hard_texts"].shape[-1]))
  caption = lambda ids, long=False: Caption(tuple(map(int, ids)), long)  # noqa: E731
  examples = []
  for i in range(count):
    number, negatives = int(inputs["box_nums"][i]), {}
    for j in range(int(inputs["hard_nums"][i])):
      (same, *_) = [k for k in range(number) if k not in negatives and np.array_equal(boxes[i, k], hard_boxes[i, j])]
      truth, *wrong = map(caption, next(hard_texts))
      negatives[same] = (truth, tuple(wrong))
    height, width = map(int, inputs["spatial_shapes"][i])
    examples.append(
      Example(
        image=levels_of(inputs["pixel_values"][i, : height * width]),
        grid=(height, width),
        short=caption(inputs["text_short"][i]),
        long=caption(inputs["text_long"][i], True),
        boxes=boxes[i, :number],
        regions=tuple(caption(texts[i, k]) for k in range(number)),
        negatives=tuple(negatives.get(k) for k in range(number)),
        record=i,
      )
    )
  return examples


def with_counts(batch: dict[str, np.ndarray], counts: Counts) -> dict[str, np.ndarray]:
  """The batch with at most these numbers of boxes, and of hard boxes, of each image; shapes stay."""
  batch = dict(batch)
  shards, per_shard, boxes = batch["region_eot"].shape
  if "boxes" in counts:
    most = np.asarray(counts["boxes"]).reshape(shards, per_shard, 1)
    batch["region_eot"] = np.where(np.arange(boxes) < most, batch["region_eot"], -1)
  if "hard" in counts:
    batch["hard_box"], left = batch["hard_box"].copy(), np.asarray(counts["hard"]).reshape(shards, per_shard).copy()
    for shard, row in np.argwhere(batch["hard_box"] >= 0):
      image = batch["hard_box"][shard, row] // boxes
      if left[shard, image] == 0:
        batch["hard_box"][shard, row] = -1
      left[shard, image] = max(left[shard, image] - 1, 0)
  return batch


class Compared:
  """The compiled loss of a run in one form: every case of the same program, `weights` being its input."""

  def __init__(self, run: Run, packed: bool, mesh: jax.sharding.Mesh | None, group: int | None):
    self.mesh, self.run = mesh, run
    self.objective = dataclasses.replace(PUBLISHED, regional_group=group)
    self.host_batch = run.batch(data_shards(mesh) if mesh else 1, packed)
    self.params = jax.device_put(run.params, shard_params(run.params, mesh)) if mesh else run.params
    runtime = Runtime(sharding=mesh and activation_sharding(mesh))

    def total(params, batch, weights, margin):
      patches = normalize_patches(batch["patches"], batch["patch_segment"], run.config.vision.pixels)
      embeddings = build(run.config, params, runtime)({**batch, "patches": patches})
      terms = objective_terms(embeddings, params["temperature"], self.objective, mesh, margin=margin)
      after = next_margin(embeddings, jnp.exp(params["temperature"]["hard_negative"]), self.objective, margin)
      total = sum(weights[name] * terms[name] for name in ALL)
      return total, ({**terms, "total": total, "margin": after}, embeddings)

    self._compiled = jax.jit(jax.value_and_grad(total, has_aux=True))

  def __call__(self, case: str, margin: float, params=None):
    """The terms and the next margin, the embeddings, the gradients of the total."""
    weights, counts = CASES[case]
    # without hard terms the published code takes no hard boxes, and the margin stays
    counts = counts if weights.keys() & HARD else {**counts, "hard": [0] * self.run.images}
    batch = with_counts(self.host_batch, counts)
    batch = to_devices(batch, self.mesh) if self.mesh else jax.tree.map(jnp.asarray, batch)
    given = {name: jnp.float32(weights.get(name, 0.0)) for name in ALL}
    (_, (terms, embeddings)), grads = self._compiled(
      self.params if params is None else params, batch, given, jnp.float32(margin)
    )
    terms["hard_total"] = sum(value * terms[name] for name, value in HARD.items()) / 0.5
    return terms, embeddings, grads


def fgclip2_folder(folder: pathlib.Path, report: Report) -> set[str]:
  """FG-CLIP 2: features, every loss term, gradients, margins and optimizer steps; of one process or of two."""
  name, done = folder.name, {"checkpoint/config.json", "checkpoint/model.safetensors"}
  paths = sorted(folder.glob("inputs*.npz"))
  run = Run(folder, [load_npz(path) for path in paths])
  done |= {path.name for path in paths}
  for key in set().union(*run.inputs) - INPUTS:
    report.not_compared(f"{name}/inputs/{key}")
  ranks = len(paths)
  group = run.images // ranks if ranks > 1 else None  # each process is a contrast group of ours
  if (path := folder / "outputs.npz").exists():
    done.add(path.name)
    _features(name, run, load_npz(path), report)
  losses = sorted(folder.glob("losses*.json"))
  by_rank = [json.loads(path.read_text()) for path in losses]
  done |= {path.name for path in losses}
  for case in set().union(*by_rank) - CASES.keys():
    report.not_compared(f"{name}/losses/{case}")
  for form, packed, mesh, cases in _forms(run.images):
    compared = Compared(run, packed, mesh, group)
    for case in [case for case in cases if case in by_rank[0]]:
      rows = [rank[case] for rank in by_rank]
      margin = rows[0].get("threshold_in", 1.25 if "regions" in case or "quirk" in case else 0.0)
      terms, embeddings, grads = compared(case, margin)
      _losses(f"{name}/losses/{form}/{case}", terms, embeddings, grads, rows, margin, compared, report)
      prefix = "grads" if ranks == 1 else "mean_grads"
      if (path := folder / f"{prefix}_{case}.safetensors").exists():
        done.add(path.name)
        compare_gradients(f"{name}/{path.stem}/{form}", run.theirs(grads), safetensors.numpy.load_file(path), report)
    if form == "packed" and (path := folder / "optimizer.json").exists():
      after = folder / "params_after_3_steps.safetensors"
      done |= {path.name, after.name}
      _optimizer(name, run, compared, json.loads(path.read_text()), safetensors.numpy.load_file(after), report)
  compare_roundtrip(name, folder / "checkpoint", run.config, run.flat, report)
  return done


def _forms(images: int):
  """Every case packed on one device; some of them padded, and some packed on meshes of the devices there are.

  Padding changes embeddings alone, which every case reads; a mesh must also divide what a case leaves out.
  """
  yield "padded", False, None, ("stage1", "stage2")
  yield "packed", True, None, tuple(CASES)
  sizes = [{"tensor": 8}, {"data": images}] if images % 2 else [{"data": 2, "tensor": 4}, {"fsdp": images}]
  cases = ("stage2", "no_regions"), ("stage2", "quirk_fewer_than_ten_boxes", "rank1_without_regions")
  for shape, some in zip(sizes, cases, strict=True):
    count = int(np.prod(list(shape.values())))
    if count <= len(jax.devices()):
      label = " x ".join(f"{axis} {size}" for axis, size in shape.items())
      yield f"packed, {label}", True, make_mesh(shape, jax.devices()[:count]), some


def _losses(name, terms, embeddings, grads, rows, margin, compared: Compared, report: Report) -> None:
  keys = set().union(*rows) - {"threshold_in"}
  temperature, settings = compared.params["temperature"], {"objective": compared.objective, "mesh": compared.mesh}
  lost, whole, offers = jax.device_get(_detail(embeddings, temperature, jnp.float32(margin), **settings))
  for key in sorted(keys):
    values = [row.get(key, 0.0) for row in rows]
    if key == "terms_dropped":
      report.exact(f"{name}/{key}", lost == values[0])
    elif key == "no_gradient":
      theirs = compared.run.theirs(grads)
      report.exact(f"{name}/{key}", not any(np.any(theirs[parameter]) for parameter in values[0]))
    elif key == "threshold_after":
      report.array(f"{name}/{key}", terms["margin"], values[0], LOSS)
    elif key == "threshold_sum":  # no recorded one leaves the range that the mean is held in
      report.array(f"{name}/{key}", terms["margin"] * len(rows), values[0], LOSS)
    elif key == "threshold_local":
      for rank, value in enumerate(values):
        if key in rows[rank]:
          report.array(f"{name}/{key} of rank {rank}", offers[rank], value, LOSS)
    elif (ours := NAMES.get(key, key)) in terms:
      value = terms[ours]
      if lost and ours in REGIONS | HARD:  # computed there before all is dropped
        value = whole[ours]
      report.array(f"{name}/{key}", value, np.mean(values), LOSS)
    else:
      report.not_compared(f"{name}/{key}")


@functools.partial(jax.jit, static_argnames=("objective", "mesh"))
def _detail(embeddings, temperature, margin, *, objective: Objective, mesh: jax.sharding.Mesh | None):
  """Whether the published code drops a row; the terms of all rows; what each contrast group offers for the margin.

  A group's offer is the margin of a batch in which the others have no hard box.
  """
  groups, every = make_groups(embeddings, objective), dataclasses.replace(objective, quirks=())
  kept = as_published(embeddings, groups, objective.quirks)
  lost = jnp.any(kept.region_valid != embeddings.region_valid) | jnp.any(kept.hard_valid != embeddings.hard_valid)
  scale, offers = jnp.exp(temperature["hard_negative"]), []
  for group in range(groups.count):
    alone = embeddings.replace(hard_valid=embeddings.hard_valid & (groups.hard == group)[:, None])
    offers.append(next_margin(alone, scale, every, margin))
  return lost, objective_terms(embeddings, temperature, every, mesh), offers


def _optimizer(name: str, run: Run, compared: Compared, recorded, after, report: Report) -> None:
  """Three steps of AdamW on one batch, the margin carried from step to step."""
  settings = OptimizerConfig(
    learning_rate=recorded["lr"],
    warmup_steps=recorded["warmup_steps"],
    total_steps=recorded["total_steps"],
    b1=recorded["betas"][0],
    b2=recorded["betas"][1],
    eps=recorded["eps"],
    weight_decay=recorded["weight_decay"],
    clip_norm=recorded["gradient_clipping"],
  )
  heads = ("dense_head|region_projection|long_projection", "learning_rate", 5.0)
  report.exact(
    f"{name}/optimizer/decayed", _matching(run, settings.rules, "weight_decay", 1) == set(recorded["decayed"])
  )
  report.exact(
    f"{name}/optimizer/not_decayed", _matching(run, settings.rules, "weight_decay", 0) == set(recorded["not_decayed"])
  )
  fast = {key for part in recorded["head_lr_option"]["groups"] if part["lr"] > recorded["lr"] for key in part["names"]}
  report.exact(f"{name}/optimizer/head_lr_option", _matching(run, (heads,), "learning_rate", 5) == fast)
  optimizer, params, margin = make_optimizer(settings), run.params, 0.0
  state = optimizer.init(params)

  @jax.jit
  def update(grads, state, params):
    updates, state = optimizer.update(grads, state, params)
    return apply_updates(settings, params, updates), state

  report.array(f"{name}/optimizer/thresholds[0]", margin, recorded["thresholds"][0], LOSS)
  for step, (loss, row) in enumerate(zip(recorded["losses"], recorded["terms"], strict=True)):
    terms, _, grads = compared("stage2", margin, params)
    report.array(f"{name}/optimizer/losses[{step}]", terms["total"], loss, LOSS)
    for key in row.keys() - {"total"}:
      ours = (
        terms["margin"] if key.startswith("threshold") and key != "threshold_in" else terms.get(NAMES.get(key, key))
      )
      report.array(f"{name}/optimizer/terms[{step}]/{key}", margin if key == "threshold_in" else ours, row[key], LOSS)
    report.array(f"{name}/optimizer/lr_of_step[{step}]", schedule(settings)(step), recorded["lr_of_step"][step], LOSS)
    margin = float(terms["margin"])
    report.array(f"{name}/optimizer/thresholds[{step + 1}]", margin, recorded["thresholds"][step + 1], LOSS)
    params, state = update(grads, state, params)
  ours, before = run.theirs(params), run.theirs(run.params)
  for key in recorded["not_updated"]:
    report.exact(f"{name}/optimizer/not_updated/{key}", np.array_equal(ours[key], before[key]))
  for key, value in after.items():
    allowed = PARAMETERS_AFTER[key.endswith(("k_proj.bias", "in_proj_bias"))]
    report.array(
      f"{name}/params_after_3_steps/{key}", read_rows(key, ours.pop(key)), read_rows(key, value), 0.0, allowed
    )
  for key in ours:
    report.not_compared(f"{name}/params_after_3_steps/{key}, which was not recorded,")
  known = {
    "losses", "thresholds", "lr_of_step", "terms", "lr", "betas", "eps", "weight_decay", "warmup_steps", "total_steps",
    "schedule", "gradient_clipping", "not_updated", "decayed", "not_decayed", "head_lr_option",
  }  # fmt: skip
  for key in recorded.keys() - known:
    report.not_compared(f"{name}/optimizer/{key}")


def _matching(run: Run, rules, setting: str, value: float) -> set[str]:
  """The published names of the parameters for which the rules give a setting this value."""
  marks = {key: np.full(leaf.shape, rule_value(rules, setting, key) == value) for key, leaf in run.flat.items()}
  return {key for key, mark in huggingface_names.to_theirs(marks, run.config).items() if mark.all()}


def _features(name: str, run: Run, recorded, report: Report) -> None:
  """Features before normalisation, padded and packed; similarities and the loss of the published inference class."""
  inputs, model = run.inputs[0], build(run.config, run.params)
  boxes = inputs["box_infos"].reshape(run.images, -1, 4)
  valid = np.arange(boxes.shape[1]) < inputs["box_nums"][:, None]
  texts = {
    "short": ("short", inputs["text_short"]), "long": ("long", inputs["text_long"]),
    "box": ("region", inputs["box_texts"]), "hard": ("region", inputs["hard_texts"]),
  }  # fmt: skip
  for form, packed in FORMS.items():
    arrays = pack_images(inputs, run.config.vision.patch_size, packed)
    ours = image_features(model, arrays)
    regions = roi_align_patches(ours["dense_features"], jnp.asarray(arrays["image_grid"]), jnp.asarray(boxes))[valid]
    ours |= {
      "region_count": inputs["box_nums"],
      "region_features": regions,
      "region_features_unit": unit_length(regions),
    }
    for kind, (path, ids) in texts.items():
      text = ours[f"{kind}_text_features"] = text_features(model, ids, path, packed)
      if kind != "hard":  # of several boxes the first
        pair = similarities(run.params, ours["image_features"], text[:: len(text) // run.images])
        ours[f"logits_per_image_{kind}"], ours[f"loss_{kind}"] = pair
    for key, value in recorded.items():
      if key in ours:
        report.array(f"{name}/outputs/{form}/{key}", ours[key], value, FEATURE)
      elif key not in NOT_OFFERED:
        report.not_compared(f"{name}/outputs/{key}")
  for key in NOT_OFFERED & recorded.keys():
    print(f"{name}/outputs/{key} is left out: neither training nor any published script masks padding")


# by the `model_type` of the folder's checkpoint
KINDS: dict[str, Callable[[pathlib.Path, Report], set[str]]] = {
  "fgclip2": fgclip2_folder,
  "siglip2": siglip_folder,
  "siglip": siglip_folder,
}


def comparer(folder: pathlib.Path) -> Callable[[pathlib.Path, Report], set[str]] | None:
  """The function for a folder; None: it is of none of these kinds."""
  if (folder / "patch_budget.npz").exists():
    return common_folder
  if (folder / "batch_en.npz").exists():
    return loader_folder
  path = folder / "checkpoint" / "config.json"
  return KINDS.get(json.loads(path.read_text()).get("model_type", "")) if path.exists() else None

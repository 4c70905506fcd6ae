"""Compares fgclip_jax with recorded runs of the published PyTorch code.

  python tests/oracle.py ../shared/oracle/*

Takes folders of recorded inputs and outputs (their README describes the kinds), compares everything
recorded in them and prints a line per quantity. Exit code 1 on any FAIL, and on anything recorded
that was not compared. Text runs in both forms, `padded` (a caption a row) and `packed`.
"""

import argparse
import collections
import dataclasses
import functools
import json
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from fgclip_jax.data import image as images
from fgclip_jax.data.packing import Caption, Example, Layout, assemble, cut
from fgclip_jax.data.tokenizer import Tokenizer
from fgclip_jax.losses.objective import Objective, objective_terms
from fgclip_jax.models.parameters import build, flatten, unflatten
from fgclip_jax.models.roi_align import roi_align
from fgclip_jax.train.optimizer import OptimizerConfig, apply_updates, decay_mask, make_optimizer, schedule
from fgclip_jax.weights import huggingface, names

FEATURE, LOSS, GRADIENT = 1e-4, 1e-4, 1e-3  # largest error, relative to the array's largest value
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


# ---------------------------------------------------------------------------------------- FG-CLIP


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
  row, end = np.divmod(batch["short_end"][0], layout.row_length)
  long = captions[0].long
  args = (batch[key][0] for key in ("tokens", "segment", "position"))
  return jax.jit(functools.partial(type(model).text_features, long=long))(model, *args, row, end)


def fgclip_folder(folder: pathlib.Path, report: Report) -> set[str]:
  """Compares a folder of an FG-CLIP run; returns the files it has dealt with."""
  name = folder.name
  config, flat, _ = huggingface.read(str(folder / "checkpoint"))
  params = unflatten({key: jnp.asarray(value) for key, value in flat.items()})
  done = {"checkpoint/config.json", "checkpoint/model.safetensors"}
  ranks = sorted(folder.glob("inputs*.npz"), key=lambda p: [int(n) for n in re.findall(r"\d+", p.stem)])
  inputs = [load_npz(path) for path in ranks]
  done |= {path.name for path in ranks}
  end_id = config.text.end_id
  examples = [example for part in inputs for example in examples_of(part, end_id)]
  boxes = max(part["box_infos"].reshape(len(part["box_nums"]), -1, 4).shape[1] for part in inputs)
  layouts = {
    form: Layout(boxes=boxes, row_length=config.text.long_length, packed=form == "packed")
    for form in ("padded", "packed")
  }
  # each rank is a contrast group of ours, as the published code scores regions within a process
  group = len(examples) // len(ranks) if len(ranks) > 1 else None
  if any(len(part["box_nums"]) * len(ranks) != len(examples) for part in inputs):
    raise ValueError(f"{folder}: the ranks hold different numbers of images")

  if (path := folder / "outputs.npz").exists():
    done.add(path.name)
    for form, layout in layouts.items():
      _features(f"{name}/outputs/{form}", build(config, params), inputs[0], load_npz(path), layout, report)

  @functools.partial(jax.jit, static_argnames="objective")
  def terms_and_gradients(params, batch, objective):
    def total(params):
      terms = objective_terms(build(config, params)(batch), params["temperature"], objective)
      return terms["total"], terms

    (_, terms), grads = jax.value_and_grad(total, has_aux=True)(params)
    return terms, grads

  recorded_losses = {}
  if (path := folder / "losses.json").exists():
    recorded_losses = json.loads(path.read_text())
    done.add(path.name)
  elif rank_losses := sorted(folder.glob("losses_rank*.json")):
    by_rank = [json.loads(path.read_text()) for path in rank_losses]
    done |= {path.name for path in rank_losses}
    recorded_losses = {"stage2": {key: float(np.mean([rank[key] for rank in by_rank])) for key in by_rank[0]}}
  for form, layout in layouts.items():
    batch = assemble(examples, len(ranks), layout)
    for stage, recorded in recorded_losses.items():
      if stage not in STAGES:
        report.not_compared(f"{name}/losses/{stage}")
        continue
      terms, grads = terms_and_gradients(params, batch, dataclasses.replace(STAGES[stage], regional_group=group))
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
    step = functools.partial(terms_and_gradients, batch=batch, objective=STAGES["stage2"])
    _optimizer(name, config, params, step, json.loads(path.read_text()), after, report)

  if (path := folder / "position_stretch.npz").exists():
    done.add(path.name)
    tables = load_npz(path)
    stretched = names.stretch_positions(tables.pop("clip_77"))
    for key, table in tables.items():
      report.array(f"{name}/position_stretch/{key}", stretched, table, FEATURE)
  _roundtrip(name, folder / "checkpoint", config, flat, report)
  return done


def _roundtrip(name: str, checkpoint: pathlib.Path, config, flat, report: Report) -> None:
  """Reading and writing a checkpoint gives the same bytes (rows that nothing reads aside)."""
  ours, recorded = names.to_theirs(flat, config), safetensors.numpy.load_file(checkpoint / "model.safetensors")
  same = ours.keys() == recorded.keys()
  for key in set(ours) & set(recorded):
    rows = {ORI: slice(None, names.KEPT_POSITIONS), RES: slice(names.KEPT_POSITIONS, None)}.get(key, ...)
    a, b = ours[key][rows], recorded[key][rows]
    same &= ours[key].shape == recorded[key].shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
  report.exact(f"{name}/checkpoint/round trip", same)


def _features(name: str, model, inputs, recorded, layout: Layout, report: Report) -> None:
  end_id = model.config.text.end_id
  count = len(inputs["box_nums"])
  image, dense = jax.jit(type(model).image_features)(model, inputs["image"].transpose(0, 2, 3, 1))

  def texts(key, long=False):
    return text_features(model, [cut(ids, end_id, long) for ids in inputs[key]], layout)

  ours = {
    "image_features": lambda: image,
    "dense_features": lambda: dense.reshape(count, -1, dense.shape[-1]),
    "roi_features": lambda: roi_align(dense, inputs["box_infos"].reshape(count, -1, 4)).reshape(-1, dense.shape[-1]),
    "short_text_features": lambda: texts("text_short"),
    "long_text_features": lambda: texts("text_long", long=True),
    "box_text_features": lambda: texts("box_texts"),
    "hard_text_features": lambda: texts("hard_texts"),
  }
  for key, value in recorded.items():
    if key in ours:
      report.array(f"{name}/{key}", ours[key](), value, FEATURE)
    else:
      report.not_compared(f"{name}/{key}")


def _noise(tensors) -> float:
  """Some gradients are zero in exact arithmetic (a key's bias): what is recorded is the rounding noise of others."""
  return 1e-6 * max(float(np.max(np.abs(v), initial=0.0)) for k, v in tensors.items() if not k.endswith(".rows"))


def _tensors(name: str, tree, recorded, config, tolerance: float, report: Report, noise=None) -> None:
  """Compares a tree like the parameters with recorded tensors under the reference's names.

  `noise` gives, by name, the absolute error that passes; by default that of gradients.
  """
  theirs = names.to_theirs({key: np.asarray(leaf) for key, leaf in flatten(tree).items()}, config)
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
    rows = {ORI: slice(None, names.KEPT_POSITIONS), RES: slice(names.KEPT_POSITIONS, None)}.get(key, ...)
    report.array(f"{name}/{key}", theirs.pop(key)[rows], value[rows], tolerance, noise[key])
  for key in theirs:
    report.array(f"{name}/{key} (not recorded: zero)", theirs[key], np.zeros_like(theirs[key]), tolerance, noise[key])


def _optimizer(name: str, config, params, step, recorded, after: pathlib.Path, report: Report) -> None:
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
  mask = decay_mask(params, settings.no_decay)
  shapes = {
    key: np.full(leaf.shape, decays)
    for (key, leaf), decays in zip(
      sorted(flatten(params).items()), (v for _, v in sorted(flatten(mask).items())), strict=True
    )
  }
  decayed = {key for key, value in names.to_theirs(shapes, config).items() if value.all()}
  report.exact(f"{name}/optimizer/decayed", decayed == set(recorded["decayed"]))
  optimizer = make_optimizer(settings)
  state = optimizer.init(params)
  noise = collections.defaultdict(float)
  for index, loss in enumerate(recorded["losses"]):
    terms, grads = step(params)
    report.array(f"{name}/optimizer/losses[{index}]", terms["total"], loss, LOSS)
    if not noise:  # Adam turns a gradient of pure noise into steps of up to the learning rate
      first = names.to_theirs({key: np.asarray(leaf) for key, leaf in flatten(grads).items()}, config)
      steps = sum(float(schedule(settings)(i)) for i in range(len(recorded["losses"])))
      noise |= {key: steps for key, value in first.items() if np.max(np.abs(value)) <= _noise(first)}
    updates, state = optimizer.update(grads, state, params)
    params = apply_updates(settings, params, updates)
  _tensors(f"{name}/{after.stem}", params, safetensors.numpy.load_file(after), config, GRADIENT, report, noise)


# ----------------------------------------------------------------------------------------- common


def plain_clip_folder(folder: pathlib.Path, report: Report) -> set[str]:
  """Compares a plain CLIP: embeddings and logits."""
  config, flat, _ = huggingface.read(str(folder / "checkpoint"))
  model = build(config, unflatten({key: jnp.asarray(value) for key, value in flat.items()}))
  io = load_npz(folder / "io.npz")
  pixels, ids = io.pop("pixel_values"), io.pop("input_ids")
  image, _ = jax.jit(type(model).image_features)(model, pixels.transpose(0, 2, 3, 1))
  for form in ("padded", "packed"):
    layout = Layout(boxes=0, row_length=256, long_length=None, packed=form == "packed")
    text = text_features(model, [cut(row, config.text.end_id) for row in ids], layout)
    unit = {key: value / jnp.linalg.norm(value, axis=-1, keepdims=True) for key, value in (("i", image), ("t", text))}
    scale = jnp.exp(model.temperature["global"][...])
    ours = {"image_embeds": unit["i"], "text_embeds": unit["t"], "logits_per_image": scale * unit["i"] @ unit["t"].T}
    for key, value in io.items():
      if key in ours:
        report.array(f"{folder.name}/{form}/{key}", ours[key], value, FEATURE)
      else:
        report.not_compared(f"{folder.name}/{key}")
  _roundtrip(folder.name, folder / "checkpoint", config, flat, report)
  return {"checkpoint/config.json", "checkpoint/model.safetensors", "io.npz"}


def roi_align_file(path: pathlib.Path, report: Report) -> None:
  """RoIAlign's value and gradient; the recorded boxes are in cells, ours in 0..1."""
  recorded = load_npz(path)
  features, boxes = recorded["features_nchw"].transpose(0, 2, 3, 1), recorded["boxes_xyxy"]
  height, width = features.shape[1:3]
  from fgclip_jax.models.roi_align import axis_weights

  def pool(features):
    rows = axis_weights(boxes[..., 1], boxes[..., 3], height)
    columns = axis_weights(boxes[..., 0], boxes[..., 2], width)
    return jnp.einsum("bhwd,bkh,bkw->bkd", features, rows, columns, precision="highest")

  pooled, pullback = jax.vjp(pool, jnp.asarray(features))
  report.array("roi_align/pooled", pooled, recorded["pooled"], FEATURE)
  (grad,) = pullback(jnp.asarray(recorded["cotangent"]))
  report.array("roi_align/grad_features", grad.transpose(0, 3, 1, 2), recorded["grad_features"], GRADIENT)
  scaled = jax.jit(roi_align)(features, boxes / np.asarray([width, height, width, height], np.float32))
  report.array("roi_align/pooled from normalised boxes", scaled, recorded["pooled"], GRADIENT)


def tokens_file(path: pathlib.Path, report: Report) -> None:
  """Token ids, equal to the last one."""
  texts = json.loads((path.parent / "tokens_texts.json").read_text())
  tokenizer = Tokenizer()
  for key, ids in load_npz(path).items():
    report.exact(f"tokens/{key}", np.array_equal(tokenizer(texts, int(key.removeprefix("ids_"))), ids))


def preprocess_file(path: pathlib.Path, report: Report) -> None:
  """Preprocessed pictures; the record is stored in half precision, which the tolerance allows for."""
  pictures = path.parents[2] / "data" / "pictures"
  for key, recorded in load_npz(path).items():
    stem, mode, size = re.fullmatch(r"(.+)_(square|centercrop)(\d+)", key).groups()
    (picture,) = pictures.glob(f"{stem}.*")
    mode = {"square": "squash", "centercrop": "center_crop"}[mode]
    ours = images.preprocess(str(picture), int(size), mode=mode)[0]
    report.array(f"preprocess/{key}", ours.transpose(2, 0, 1), recorded, 2.0**-11)


FILES = {"roi_align.npz": roi_align_file, "tokens.npz": tokens_file, "preprocess.npz": preprocess_file}


def compare(folder: pathlib.Path, report: Report) -> None:
  """Compares a folder of any kind, and the folders in it."""
  done = {"README.md", "tokens_texts.json"}
  if (folder / "checkpoint").is_dir() and (folder / "io.npz").exists():
    done |= plain_clip_folder(folder, report)
  elif (folder / "checkpoint").is_dir():
    done |= fgclip_folder(folder, report)
  for path in sorted(folder.iterdir()):
    if path.is_dir() and path.name != "checkpoint":
      compare(path, report)
    elif path.name in FILES:
      FILES[path.name](path, report)
    elif path.is_file() and path.name not in done:
      report.not_compared(f"{folder.name}/{path.name}")


def main(argv: list[str] | None = None) -> int:
  """The command; returns its exit code."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("folders", metavar="DIR", nargs="+", type=pathlib.Path)
  parser.add_argument("--quiet", action="store_true", help="print only what fails")
  args = parser.parse_args(argv)
  report = Report(args.quiet)
  for folder in args.folders:
    if not folder.is_dir():
      parser.error(f"{folder} is not a folder")
    compare(folder.resolve(), report)
  print(f"{report.compared} quantities compared, {report.failed} failed")
  return 1 if report.failed or not report.compared else 0


if __name__ == "__main__":
  jax.config.update("jax_platforms", "cpu")
  sys.exit(main())

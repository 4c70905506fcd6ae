"""The comparison with recorded runs of SigLIP and SigLIP 2, and what the one with FG-CLIP 2 shares; see oracle.py."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from oracle_fgclip import FEATURE, GRADIENT, LOSS, Report, compare_roundtrip, load_npz

from fgclip_jax.data.packing import Caption, Example, Layout, assemble
from fgclip_jax.data.patch_rows import pack_patches
from fgclip_jax.data.patches import PatchLayout
from fgclip_jax.losses.objective import Objective, objective_terms
from fgclip_jax.models.fgclip import Embeddings, unit_length
from fgclip_jax.models.params import build, flatten, unflatten
from fgclip_jax.models.positions import resize_positions
from fgclip_jax.models.siglip import PatchRows, take_slots
from fgclip_jax.models.vit import patchify
from fgclip_jax.weights import clip_to_fgclip, huggingface, huggingface_names

FORMS = {"padded": False, "packed": True}


def noise_of(tensors) -> float:
  """The absolute error of gradients that are zero but for rounding."""
  return 1e-6 * max(float(np.max(np.abs(value), initial=0.0)) for value in tensors.values())


def read_rows(key: str, value):
  """Of the two long position tables the rows that are read."""
  kept = huggingface_names.KEPT_POSITIONS
  rows = {"position_embedding_ori": slice(None, kept), "position_embedding_res": slice(kept, None)}
  return value[next((rows[part] for part in rows if part in key), ...)]


def to_theirs(tree, config) -> dict[str, np.ndarray]:
  """A tree like the parameters under the published names."""
  return huggingface_names.to_theirs({key: np.asarray(leaf) for key, leaf in flatten(tree).items()}, config)


def compare_gradients(name: str, ours: dict[str, np.ndarray], recorded, report: Report) -> None:
  """Compares gradients under the published names; one that is not recorded must be zero."""
  noise, ours = noise_of(recorded), dict(ours)
  for key, value in recorded.items():
    if key not in ours:
      report.not_compared(f"{name}/{key}")
      continue
    report.array(f"{name}/{key}", read_rows(key, ours.pop(key)), read_rows(key, value), GRADIENT, noise)
  for key, value in ours.items():
    report.array(f"{name}/{key} (not recorded: zero)", value, np.zeros_like(value), GRADIENT, noise)


def levels_of(values: np.ndarray) -> np.ndarray:
  """The levels 0..255 that recorded pixel values were made of."""
  levels = np.rint((values + 1) * 127.5)
  assert np.abs(levels / 127.5 - 1 - values).max() < 1e-6
  return levels.astype(np.uint8)


def pack_images(inputs, patch_size: int, packed: bool, values: bool = True) -> dict[str, np.ndarray]:
  """The recorded patches of one shard, packed as a batch's are; with `values` normalised, as recorded."""
  grids = [tuple(map(int, shape)) for shape in inputs["spatial_shapes"]]
  patches = [levels_of(each[: h * w]) for each, (h, w) in zip(inputs["pixel_values"], grids, strict=True)]
  layout = PatchLayout(budget=inputs["pixel_values"].shape[1], patch_size=patch_size)
  arrays = {key: value[0] for key, value in pack_patches(patches, grids, 1, layout, packed).items()}
  if values:
    levels = arrays["patches"].astype(np.float32)
    arrays["patches"] = np.where(arrays["patch_segment"][..., None] > 0, (levels / 255 - 0.5) / 0.5, 0.0)
  return arrays


def image_features(model, arrays) -> dict[str, jax.Array]:
  """Features of pictures of any shape, those of patches in their pictures' order and 0 beyond them."""

  @jax.jit
  def run(patches, segment, place, slot):
    rows = PatchRows(patches, segment, place)
    image, dense = model.patch_features(rows, slot)
    hidden, embedded = (take_slots(x, slot) for x in (model.vision(rows), model.vision.embed(rows)))
    of_patches = {"dense_features": dense, "patch_features": hidden, "patch_embeddings": embedded}
    blanked = {name: jnp.where(slot[..., None] >= 0, x, 0.0) for name, x in of_patches.items()}
    return {"image_features": image, **blanked}

  keys = ("patches", "patch_segment", "patch_place", "patch_slot")
  return run(*(jnp.asarray(arrays[key]) for key in keys))


def text_features(model, ids: np.ndarray, kind: str, packed: bool) -> np.ndarray:
  """Features of texts of one kind, from their padded rows."""
  text = model.config.text
  layout = Layout(
    boxes=0,
    row_length=text.short_length + (text.long_length or text.short_length),
    short_length=text.short_length,
    long_length=text.long_length,
    packed=packed,
    pad_id=text.pad_id,
  )
  captions = [Caption(tuple(map(int, row)), kind == "long") for row in ids]
  batch = assemble([Example(image=np.zeros((1, 1, 3), np.uint8), short=c) for c in captions], 1, layout)
  row, end = np.divmod(batch["short_eot"][0], layout.row_length)
  args = (batch[key][0] for key in ("tokens", "segment", "position"))
  return np.asarray(jax.jit(functools.partial(type(model).text_features, kind=kind))(model, *args, row, end))


def similarities(params, image, text):
  """The logits and the loss of the published inference classes, of features that are not normalised."""
  temperature = jax.tree.map(jnp.asarray, params["temperature"])
  image, text = unit_length(jnp.asarray(image)), unit_length(jnp.asarray(text))
  logits = jnp.exp(temperature["global"]) * jnp.matmul(image, text.T, precision="highest") + temperature["bias"]
  objective = Objective(global_long=0.0, regional=0.0, hard_negative=0.0, contrast="sigmoid")
  loss = objective_terms(Embeddings(image=image, short=text), temperature, objective)["total"]
  return logits, loss[None]


def siglip_folder(folder: pathlib.Path, report: Report) -> set[str]:
  """A SigLIP for square pictures or for any shape: features, logits, the loss and its gradients."""
  config, flat, _ = huggingface.read(str(folder / "checkpoint"))
  params, io = unflatten({key: jnp.asarray(value) for key, value in flat.items()}), load_npz(folder / "io.npz")
  read = ("input_ids", "pixel_values", "pixel_attention_mask", "spatial_shapes", "pixel_values_other")
  for form, packed in FORMS.items():
    ours, grads = _siglip(config, params, io, packed)
    for key in io.keys() - {*read}:
      if key in ours:
        report.array(f"{folder.name}/{form}/{key}", ours[key], io[key], LOSS if key == "loss" else FEATURE)
      else:
        report.not_compared(f"{folder.name}/{key}")
    recorded = safetensors.numpy.load_file(folder / "grads.safetensors")
    compare_gradients(f"{folder.name}/grads/{form}", to_theirs(grads, config), recorded, report)
  compare_roundtrip(folder.name, folder / "checkpoint", config, flat, report)
  done = {"checkpoint/config.json", "checkpoint/model.safetensors", "io.npz", "grads.safetensors"}
  if (path := folder / "as_fgclip2.npz").exists():
    _as_fgclip2(folder, config, flat, io, report)
    done |= {path.name, "as_fgclip2.json"}
  return done


def _siglip(config, params, io, packed: bool):
  """Everything recorded of a plain SigLIP, and the gradients of its loss."""
  model, count = build(config, params), len(io["input_ids"])
  text = config.text
  layout = Layout(
    boxes=0, row_length=2 * text.short_length, short_length=text.short_length, long_length=None, packed=packed,
    pad_id=text.pad_id,
  )  # fmt: skip
  captions = [Caption(tuple(map(int, row))) for row in io["input_ids"]]
  if config.vision.takes_patches:
    arrays = pack_images(io, config.vision.patch_size, packed)
    found = image_features(model, arrays)
    images = {key: jnp.asarray(value)[None] for key, value in arrays.items()}
  else:
    square = jnp.asarray(io["pixel_values"].transpose(0, 2, 3, 1))
    images, found = {"image": square[None]}, _square_features(model, square)
    found["image_features_other"] = _other_shape(model, jnp.asarray(io["pixel_values_other"].transpose(0, 2, 3, 1)))
  examples = [Example(image=np.zeros((1, 1, 3), np.uint8), short=caption) for caption in captions]
  batch = {key: jnp.asarray(value) for key, value in assemble(examples, 1, layout).items() if key != "image"} | images

  @jax.jit
  def loss(params):
    objective = Objective(global_long=0.0, regional=0.0, hard_negative=0.0, contrast="sigmoid")
    embeddings = build(config, params)(batch)
    return objective_terms(embeddings, params["temperature"], objective)["total"], embeddings

  (value, embeddings), grads = jax.value_and_grad(loss, has_aux=True)(params)
  found["text_features"] = text_features(model, io["input_ids"], "short", packed)
  logits, _ = similarities(params, found["image_features"], found["text_features"])
  found |= {"image_embeds": embeddings.image, "text_embeds": embeddings.short, "logits_per_image": logits}
  assert len(embeddings.image) == count
  return found | {"loss": value[None]}, grads


def _square_features(model, image) -> dict[str, jax.Array]:
  tower = model.vision
  tokens = tower.patch_embedding(patchify(image, tower.config.patch_size)) + tower.positions[...]
  hidden = tower.post_norm(tower.transformer(tokens)[0])
  return {"image_features": model.image_features(image)[0], "patch_features": hidden}


def _other_shape(model, image):
  """Pictures of another shape through a tower for squares, its positions interpolated."""
  tower, size = model.vision, model.config.vision.patch_size
  grid = (image.shape[1] // size, image.shape[2] // size)
  positions = resize_positions(tower.positions[...], grid, class_token=False)
  tokens = tower.patch_embedding(patchify(image, size)) + positions
  return tower.pooling_head.pool(tower.post_norm(tower.transformer(tokens)[0]))


def _as_fgclip2(folder: pathlib.Path, config, flat, io, report: Report) -> None:
  """What FG-CLIP 2's training start makes of a SigLIP 2: positions stretched, heads copied."""
  made, new = clip_to_fgclip.to_fgclip(config, flat)
  model, recorded = (
    build(made, unflatten({key: jnp.asarray(value) for key, value in new.items()})),
    load_npz(folder / "as_fgclip2.npz"),
  )
  names = json.loads((folder / "as_fgclip2.json").read_text())
  temperatures = {huggingface_names.REGION_TEMPERATURES[name] for name in ("regional", "hard_negative")}
  added = to_theirs(unflatten(new), made).keys() - to_theirs(unflatten(flat), config).keys() - temperatures
  report.exact(f"{folder.name}/as_fgclip2/new_parameters", added == set(names["new_parameters"]))
  report.exact(f"{folder.name}/as_fgclip2/unused", not names["unused"])
  for form, packed in FORMS.items():
    ours = image_features(model, pack_images(io, made.vision.patch_size, packed))
    texts = {"short": ("short", io["input_ids"]), "box": ("region", io["input_ids"])}
    for name, (kind, ids) in (texts | {"long": ("long", recorded["text_long"])}).items():
      ours[f"{name}_text_features"] = text_features(model, ids, kind, packed)
    for key in recorded.keys() - {"text_long"}:
      report.array(f"{folder.name}/as_fgclip2/{form}/{key}", ours[key], recorded[key], FEATURE)

"""The comparison with what is recorded of pictures of any shape and their texts: sizes, patches, positions, tokens."""

import io
import json
import os
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from oracle_fgclip import Report, load_npz
from PIL import Image

from fgclip_jax.data.decode import decode_patches
from fgclip_jax.data.mixture import DataSet, Mixture
from fgclip_jax.data.packing import NONE
from fgclip_jax.data.patches import PatchLayout, dynamic_budget, fit_grid
from fgclip_jax.data.tokenizers import get_tokenizer
from fgclip_jax.models.pixel_spec import SIGLIP_PIXELS
from fgclip_jax.models.siglip import grid_weights
from fgclip_jax.weights import huggingface_names
from tests.data.test_loader_languages import make_set, steps
from tests.data.test_loader_patches import assemble_as_published, read_records

POSITION = 1e-5  # largest error, relative to the array's largest value
GEMMA = "FGCLIP_GEMMA_TOKENIZER"  # the environment variable that names Gemma's tokenizer.json, which is not recorded


def common_folder(folder: pathlib.Path, report: Report) -> set[str]:
  """Sizes and budgets, resized and stretched positions, patches, token ids."""
  _positions(load_npz(folder / "position_resize.npz"), report)
  stretch = load_npz(folder / "position_stretch.npz")
  stretched = huggingface_names.stretch_positions(stretch.pop("short"))
  for key, table in stretch.items():
    report.array(f"position_stretch/{key}", stretched, table, POSITION)
  _budgets(load_npz(folder / "patch_budget.npz"), report)
  _patches(load_npz(folder / "preprocess.npz"), folder.parents[1] / "data" / "pictures", report)
  _tokens(folder, report)
  names = ("position_resize", "position_stretch", "patch_budget", "preprocess", "tokens")
  return {f"{name}.npz" for name in names} | {"tokens_texts.json"}


def _positions(recorded, report: Report) -> None:
  """Tables resized for each picture, and their gradient; slots beyond a picture repeat its first position."""
  for size in [key.removeprefix("table_") for key in recorded if key.startswith("table_")]:
    table, shapes = jnp.asarray(recorded[f"table_{size}"]), recorded[f"shapes_{size}"]
    count = recorded[f"resized_{size}"].shape[1]

    def resize(table, shapes=shapes, count=count):
      each = []
      for height, width in shapes:
        at = np.where(np.arange(count) < height * width, np.arange(count), 0)
        rows = grid_weights(jnp.asarray(at // width), jnp.full(count, height), len(table))
        columns = grid_weights(jnp.asarray(at % width), jnp.full(count, width), len(table))
        each.append(jnp.einsum("na,nb,abd->nd", rows, columns, table, precision="highest"))
      return jnp.stack(each)

    resized, pullback = jax.vjp(resize, table)
    report.array(f"position_resize/resized_{size}", resized, recorded[f"resized_{size}"], POSITION)
    (grad,) = pullback(jnp.asarray(recorded[f"cotangent_{size}"]))
    report.array(f"position_resize/grad_{size}", grad, recorded[f"grad_{size}"], POSITION)


def _budgets(recorded, report: Report) -> None:
  columns = dict(zip(recorded["columns"].tolist(), recorded["table"].T, strict=True))
  sizes = [columns[name].tolist() for name in ("width", "height", "max_num_patches", "patch")]
  grids = np.asarray([fit_grid(*size) for size in zip(*sizes, strict=True)]) * columns["patch"][:, None]
  for name, ours in zip(("target_height", "target_width"), grids.T, strict=True):
    report.exact(f"patch_budget/{name}", np.array_equal(ours, columns[name]))
  buckets = [dynamic_budget(width, height, patch) for width, height, _, patch in zip(*sizes, strict=True)]
  report.exact("patch_budget/dynamic_bucket", np.array_equal(buckets, columns["dynamic_bucket"]))


def _patches(recorded, pictures: pathlib.Path, report: Report) -> None:
  """Patches of pictures and of made ones; `_128` are squashed by the caller first."""

  def png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(file, "png")
    return file.getvalue()

  made = {key.removesuffix("_image"): recorded[key] for key in recorded if key.endswith("_image")}
  for name in [key.removesuffix("_shape") for key in recorded if key.endswith("_shape")]:
    stem, _, mode = name.partition("_")
    if stem == "made":  # the batch of all made pictures
      data = [png(image) for image in made.values()]
      sizes = [image.shape[1::-1] for image in made.values()]
      budgets = PatchLayout("dynamic").choose_budgets(sizes)
    elif stem in made:
      data, budgets = [png(made[stem])], [None]
    else:
      (path,) = (path for path in pictures.iterdir() if stem in path.name)
      squashed = png(Image.open(path).convert("RGB").resize((200, 300)))
      data, budgets = [squashed if mode == "128" else path.read_bytes()], [int(mode) if mode.isdigit() else None]
    patches, mask = recorded[f"{name}_patches_uint8"], recorded[f"{name}_mask"]
    for place, (each, budget) in enumerate(zip(data, budgets, strict=True)):
      ours, grid, _ = decode_patches(each, PatchLayout("dynamic"), "exact", budget, pixels=SIGLIP_PIXELS)
      full = np.zeros_like(patches[place])
      full[: len(ours)] = ours
      report.exact(f"preprocess/{name}_shape[{place}]", list(grid) == recorded[f"{name}_shape"][place].tolist())
      report.exact(
        f"preprocess/{name}_mask[{place}]", np.array_equal(np.arange(len(full)) < len(ours), mask[place] > 0)
      )
      report.array(f"preprocess/{name}_patches_uint8[{place}]", full, patches[place], 0.0)


def _tokens(folder: pathlib.Path, report: Report) -> None:
  if not os.environ.get(GEMMA):
    print(f"tokens: {GEMMA} does not name Gemma's tokenizer.json: token ids are left out")
    return
  texts, tokenizer = json.loads((folder / "tokens_texts.json").read_text()), get_tokenizer(f"gemma:{os.environ[GEMMA]}")
  for key, ids in load_npz(folder / "tokens.npz").items():
    length, written = int(key.split("_")[1]), key.endswith("as_written")
    ours = (tokenizer.as_written() if written else tokenizer)(texts, length)
    report.exact(f"tokens/{key}", np.array_equal(ours, ids))


def loader_folder(folder: pathlib.Path, report: Report) -> set[str]:
  """The published loader's batches, from the annotations on; `text_long_flag` is always 1 there and never read."""
  for language, file in (("en", "records_en.json"), ("cn", "records_cn/records.json")):
    records, recorded = read_records(folder, file), load_npz(folder / f"batch_{language}.npz")
    recorded.pop("text_long_flag")
    gemma = os.environ.get(GEMMA)
    with tempfile.TemporaryDirectory() as made:
      batch = assemble_as_published(records, pathlib.Path(made), f"gemma:{gemma}" if gemma else "clip_padded")
    boxes, hard = batch["boxes"][0].reshape(-1, 4), batch["hard_box"][0]
    sizes = [PatchLayout(small_size=512).sees(*Image.open(io.BytesIO(record.image)).size) for record in records]
    ours = {
      "patches_uint8": batch["patches"][0],
      "pixel_attention_mask": batch["patch_segment"][0] > 0,
      "spatial_shapes": batch["image_grid"][0],
      "max_img_token": [(width // 16) * (height // 16) for width, height in sizes],
      "box_infos": boxes,
      "box_nums": batch["box_count"][0],
      "hard_nums": np.bincount(hard[hard != NONE] // 4, minlength=len(records)),
    }
    # theirs are listed by picture, each picture's in its first rows
    places = [image * 4 + place for image, count in enumerate(recorded["hard_nums"]) for place in range(count)]
    recorded["hard_infos"], ours["hard_infos"] = recorded["hard_infos"][places], boxes[hard[hard != NONE]]
    recorded["box_texts"] = recorded["box_texts"][batch["region_eot"][0].reshape(-1) != NONE]
    texts = _texts(batch)
    ours |= texts
    for key, value in recorded.items():
      if key in texts and not gemma:
        continue
      if key in ours:
        report.exact(f"loader/{language}/{key}", np.array_equal(ours[key], value))
      else:
        report.not_compared(f"loader/{language}/{key}")
  if not gemma:
    print(f"loader: {GEMMA} does not name Gemma's tokenizer.json: token ids are left out")
  _sampler(json.loads((folder / "sampler.json").read_text()), report)
  return {"batch_en.npz", "batch_cn.npz", "records_en.json", "sampler.json"}


def _sampler(recorded, report: Report) -> None:
  """Groups of one language are ours without shuffling; theirs come in random order, the last of each left out."""
  batch, tags = recorded["batch_size"] * recorded["world_size"], recorded["tags"]
  counts = {"en": tags.count(1), "zh": tags.count(0)}
  with tempfile.TemporaryDirectory() as made:
    sets = [DataSet(make_set(pathlib.Path(made), n, language), "train", float(n)) for language, n in counts.items()]
    ours = {tuple(step) for step in steps(Mixture(sets, batch), batch, len(tags) // batch, shuffle=False)}
  theirs = [tuple(recorded["order"][begin : begin + batch]) for begin in range(0, len(recorded["order"]), batch)]
  report.exact("loader/sampler/order", len(set(theirs)) == len(theirs) and set(theirs) <= ours)


def _texts(batch) -> dict[str, np.ndarray]:
  """The padded rows of a batch's captions, in the published order; padding rows left out."""
  tokens = batch["tokens"][0].reshape(-1)

  def rows(ends, length):
    return np.asarray([tokens[end + 1 - length : end + 1] for end in ends.reshape(-1) if end != NONE]).reshape(
      -1, length
    )

  return {
    "text_short": rows(batch["short_eot"][0], 64),
    "text_long": rows(batch["long_eot"][0], 196),
    "box_texts": rows(batch["region_eot"][0], 64),
    "hard_texts": rows(batch["hard_eot"][0], 64),
  }

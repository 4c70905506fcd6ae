"""Compares fgclip_jax with recorded runs of the published PyTorch code.

  python tests/oracle.py ../shared/oracle/* ../shared/oracle_fgclip2/*

Takes folders of recorded inputs and outputs (their README describes the kinds), compares everything
recorded in them and prints a line per quantity. Exit code 1 on any FAIL, and on anything recorded
that was not compared. FG-CLIP's text runs in both forms, `padded` (a caption a row) and `packed`; FG-CLIP 2's training
runs packed, and some of its records padded and on a mesh, too.
"""

import argparse
import json
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that it runs from anywhere
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from oracle_fgclip import FEATURE, GRADIENT, Report, compare_roundtrip, fgclip_folder, load_npz, text_features
from oracle_fgclip2 import comparer

from fgclip_jax.data import image as images
from fgclip_jax.data.packing import Layout, cut
from fgclip_jax.data.tokenizers.clip import Tokenizer
from fgclip_jax.models.params import build, unflatten
from fgclip_jax.models.roi_align import axis_weights, roi_align
from fgclip_jax.weights import huggingface


def plain_clip_folder(folder: pathlib.Path, report: Report) -> set[str]:
  """Compares a plain CLIP: embeddings and logits."""
  config, flat, _ = huggingface.read(str(folder / "checkpoint"))
  model = build(config, unflatten({key: jnp.asarray(value) for key, value in flat.items()}))
  io = load_npz(folder / "io.npz")
  pixels, ids = io.pop("pixel_values"), io.pop("input_ids")
  image, _ = jax.jit(type(model).image_features)(model, jnp.asarray(pixels.transpose(0, 2, 3, 1)))
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
  compare_roundtrip(folder.name, folder / "checkpoint", config, flat, report)
  return {"checkpoint/config.json", "checkpoint/model.safetensors", "io.npz"}


def roi_align_file(path: pathlib.Path, report: Report) -> None:
  """RoIAlign's value and gradient; the recorded boxes are in cells, ours in 0..1."""
  recorded = load_npz(path)
  features = jnp.asarray(recorded["features_nchw"].transpose(0, 2, 3, 1))
  boxes = jnp.asarray(recorded["boxes_xyxy"])
  for key in recorded.keys() - {"features_nchw", "boxes_xyxy", "pooled", "cotangent", "grad_features"}:
    report.not_compared(f"roi_align/{key}")
  height, width = features.shape[1:3]

  def pool(features):
    rows = axis_weights(boxes[..., 1], boxes[..., 3], height)
    columns = axis_weights(boxes[..., 0], boxes[..., 2], width)
    return jnp.einsum("bhwd,bkh,bkw->bkd", features, rows, columns, precision="highest")

  pooled, pullback = jax.vjp(pool, features)
  report.array("roi_align/pooled", pooled, recorded["pooled"], FEATURE)
  (grad,) = pullback(jnp.asarray(recorded["cotangent"]))
  report.array("roi_align/grad_features", grad.transpose(0, 3, 1, 2), recorded["grad_features"], GRADIENT)
  scaled = jax.jit(roi_align)(features, boxes / jnp.asarray([width, height, width, height], jnp.float32))
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
  files = FILES
  if compare_second := comparer(folder):
    done |= compare_second(folder, report)
    files = {}  # some have the same names as these, and other contents
  elif (folder / "checkpoint").is_dir() and (folder / "io.npz").exists():
    done |= plain_clip_folder(folder, report)
  elif (folder / "checkpoint").is_dir():
    done |= fgclip_folder(folder, report)
  for path in sorted(folder.iterdir()):
    if path.is_dir() and path.name not in ("checkpoint", "images", "records_cn"):
      compare(path, report)
    elif path.name in files:
      files[path.name](path, report)
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
  jax.config.update("jax_num_cpu_devices", 8)
  sys.exit(main())

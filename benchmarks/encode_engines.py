"""One engine of `encode.py` in a process of its own: ENGINE FOLDER CORES. Answers lines of JSON on standard input.

`{"task": "images" | "texts", "batch": B, "calls": N}` gives `{"seconds": of a call, "peak": bytes resident at most}`,
and with no calls `{"found": unit-length embeddings}`. Linux, glibc. Only the engine's own library is imported.
"""

import json
import os
import pathlib
import sys
import time

import numpy as np


def ours(folder: pathlib.Path, cores: int):
  """fgclip_jax: token ids through the packing that every user gets."""
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])  # before JAX makes its threads
  import jax

  jax.config.update("jax_platforms", "cpu")
  import fgclip_jax

  model = fgclip_jax.load(folder / "transformers")
  return f"jax {jax.__version__}", model.encode_image, model.encode_text


def transformers(folder: pathlib.Path, cores: int, longest: bool = False):
  """transformers' CLIPModel with PyTorch's scaled dot-product attention; `longest` cuts the padding all texts have."""
  import torch
  import transformers as library
  from torch.nn.functional import normalize

  torch.set_num_threads(cores)
  model = library.CLIPModel.from_pretrained(folder / "transformers", attn_implementation="sdpa").eval()
  end = model.config.text_config.eos_token_id

  @torch.inference_mode()
  def images(pixels):
    features = model.vision_model(pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())).pooler_output
    return normalize(model.visual_projection(features), dim=-1).numpy()

  @torch.inference_mode()
  def texts(ids):
    if longest:
      ids = ids[:, : (ids == end).argmax(1).max() + 1]
    features = model.text_model(input_ids=torch.from_numpy(ids)).pooler_output
    return normalize(model.text_projection(features), dim=-1).numpy()

  return f"transformers {library.__version__}, torch {torch.__version__}, sdpa", images, texts


def open_clip(folder: pathlib.Path, cores: int):
  """open_clip."""
  import open_clip as library
  import torch

  torch.set_num_threads(cores)
  model = library.create_model(f"local-dir:{folder / 'open_clip'}").eval()

  @torch.inference_mode()
  def images(pixels):
    return model.encode_image(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), normalize=True).numpy()

  @torch.inference_mode()
  def texts(ids):
    return model.encode_text(torch.from_numpy(ids), normalize=True).numpy()

  return f"open_clip {library.__version__}, torch {torch.__version__}", images, texts


def main(engine: str, folder: str, cores: str) -> None:
  """Answers until there are no more requests."""
  sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1])]
  from step_engines import read_peak, reset_peak

  answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print
  folder, cores = pathlib.Path(folder), int(cores)
  make = {"ours": ours, "open_clip": open_clip}.get(engine, transformers)
  about, images, texts = make(folder, cores, **({"longest": True} if engine == "longest" else {}))
  inputs = np.load(folder / "inputs.npz")
  given = {"images": (images, inputs["pixels"]), "texts": (texts, inputs["ids"])}
  print(json.dumps({"about": about}), file=answers, flush=True)
  for line in sys.stdin:
    request = json.loads(line)
    encode, rows = given[request["task"]]
    rows, calls = rows[: request["batch"]], request["calls"]
    if not calls:
      answer = {"found": encode(rows).tolist()}
      encode(rows)  # what is compiled or allocated once, is now
    else:
      reset_peak()
      begin = time.perf_counter()
      for _ in range(calls):
        encode(rows)
      answer = {"seconds": (time.perf_counter() - begin) / calls, "peak": read_peak()}
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])

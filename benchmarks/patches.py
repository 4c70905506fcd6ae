"""Measures pictures of any shape on a CPU: what a patch budget costs, and images/s against transformers' Siglip2Model.

  python benchmarks/patches.py budgets --model path/to/fg-clip2-base --images pictures
  python benchmarks/patches.py transformers                                # base size, batch 8, random weights
  python benchmarks/patches.py step                                        # the same, a training step

Prints tables in Markdown. `budgets` compares the embeddings of pictures at each budget with those at the largest one.
`transformers` runs both libraries in turns, with the same weights and patches, once their embeddings have been found
equal; transformers pads every picture to the largest of its batch, as its processor does, and ours packs them. `step`
is both towers with SigLIP's loss, its gradients and AdamW, once three steps have given equal losses.
"""

import argparse
import itertools
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from machine import machine

import fgclip_jax
from fgclip_jax.data.packing import Caption, Example, Layout, assemble
from fgclip_jax.data.patches import PatchLayout
from fgclip_jax.inference.pictures import PatchedImage
from fgclip_jax.losses.objective import Objective
from fgclip_jax.models.transformer import Runtime
from fgclip_jax.train.flops import patches_forward
from fgclip_jax.train.mesh import make_mesh, to_devices
from fgclip_jax.train.optimizer import OptimizerConfig
from fgclip_jax.train.state import TrainSetup
from fgclip_jax.train.step import make_step

BUDGETS = (128, 256, 576, 784, 1024)
EQUAL = 1e-4
AIMS = {"equal": 1.0, "mixed": 1.5}  # times as fast as transformers
BATCH = 8
VOCABULARY = 1024  # small, so that its table's update is not what is compared
RATE = 1e-5
HEAD = (
  "| pictures | ours, images/s | transformers, images/s | ratio | lowest .. highest | aim |\n| --- |" + " ---: |" * 5
)


def main(argv: list[str] | None = None) -> int:
  """The command; returns its exit code."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  commands = parser.add_subparsers(dest="command", required=True)
  budgets = commands.add_parser("budgets")
  budgets.add_argument("--model", required=True, help="a model that takes pictures of any shape")
  budgets.add_argument("--images", required=True, type=pathlib.Path, help="a folder of pictures")
  peer = commands.add_parser("transformers")
  peer.add_argument("--depth", type=int, default=12, help="blocks of the image tower (default: %(default)s)")
  peer.add_argument("--most", type=int, nargs="+", default=[256, 1024], help="patches of the largest picture")
  step = commands.add_parser("step")
  step.add_argument("--depth", type=int, default=12, help="blocks of each tower (default: %(default)s)")
  step.add_argument("--most", type=int, nargs="+", default=[256], help="patches of the largest picture")
  for each in (budgets, peer, step):
    each.add_argument("--rounds", type=int, default=5, help="timed turns (default: %(default)s)")
  options = parser.parse_args(argv)
  {"budgets": measure_budgets, "transformers": compare, "step": compare_steps}[options.command](options)
  return 0


def measure_budgets(options: argparse.Namespace) -> None:
  """Prints what each budget costs, and the cosine of its embeddings with those of the largest."""
  model = fgclip_jax.load(options.model)
  pictures = sorted(path for path in options.images.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
  full = model.encode_image(pictures, max_patches=BUDGETS[-1])
  print(f"{machine('jax')}\n{model}, {len(pictures)} pictures.\n")
  turns = range(options.rounds)
  print("| max_patches | patches | GFLOP an image | ms an image | cosine, mean | lowest |\n|" + " ---: |" * 6)
  for budget in BUDGETS:
    ready = model.preprocess(pictures, max_patches=budget)
    counts = [len(each.patches) for each in ready]
    work = sum(patches_forward(model.config.vision, count, count**2) for count in counts) / len(counts)
    found = model.encode_image(ready, max_patches=budget)  # compiles
    seconds = [clock(lambda given, most: model.encode_image(given, max_patches=most), ready, budget) for _ in turns]
    cosines = np.sum(found * full, axis=1)
    print(
      f"| {budget} | {np.mean(counts):.0f} | {work / 1e9:.1f} | {1000 * statistics.median(seconds) / len(ready):.0f} | "
      f"{cosines.mean():.4f} | {cosines.min():.4f} |",
      flush=True,
    )


def compare(options: argparse.Namespace) -> None:
  """Prints images/s of both libraries."""
  import torch

  text = {"num_hidden_layers": 1, "vocab_size": 64}
  peer, model = make_models(text, options.depth)
  print(f"{machine('jax', 'torch', 'transformers')}\n{model}, batch {BATCH}.\n")
  print(HEAD)
  for kind, most in itertools.product(("equal", "mixed"), options.most):
    given = make_pictures(kind, most)
    arrays = pad(given)

    def theirs(arrays=arrays):
      with torch.inference_mode():
        return torch.nn.functional.normalize(features(peer, arrays), dim=-1).numpy()

    def ours(given=given, most=most):
      return model.encode_image(given, max_patches=most)

    difference = np.abs(ours() - theirs()).max()
    if not difference <= EQUAL:
      raise ValueError(f"{kind}, {most}: embeddings differ by {difference:.2g}: speeds mean nothing")
    print_row(kind, most, given, [(clock(ours), clock(theirs)) for _ in range(options.rounds)])


def compare_steps(options: argparse.Namespace) -> None:
  """Prints images/s of training steps of both libraries."""
  import torch

  peer, model = make_models({"num_hidden_layers": options.depth, "vocab_size": VOCABULARY}, options.depth)
  length = model.config.text.short_length
  print(f"{machine('jax', 'torch', 'transformers')}\n{model}, training steps, batch {BATCH}, {length} tokens.\n")
  print(HEAD)
  weights = {name: value.clone() for name, value in peer.state_dict().items()}
  for kind, most in itertools.product(("equal", "mixed"), options.most):
    given = make_pictures(kind, most)
    ids = np.random.default_rng(2).integers(3, VOCABULARY, (BATCH, length), dtype=np.int64)
    peer.load_state_dict(weights)
    peer.train()
    optimizer = torch.optim.AdamW(peer.parameters(), lr=RATE, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0)
    arrays, tokens = pad(given), torch.tensor(ids)
    layout = Layout(
      boxes=0,
      row_length=length,
      short_length=length,
      long_length=None,
      pad_id=model.config.text.pad_id,
      patches=PatchLayout(budget=most, patch_size=model.config.vision.patch_size),
    )
    examples = [
      Example(image=each.patches, grid=each.grid, short=Caption(tuple(row.tolist())), record=number)
      for number, (each, row) in enumerate(zip(given, ids, strict=True))
    ]
    setup = TrainSetup(
      model.config,
      make_mesh({"data": 1}),
      Objective(contrast="sigmoid", global_long=0.0, regional=0.0, hard_negative=0.0),
      OptimizerConfig(
        learning_rate=RATE, warmup_steps=0, end_fraction=1.0, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.0
      ),
      Runtime(remat="none"),
    )
    run, batch = make_step(setup), to_devices(assemble(examples, 1, layout), setup.mesh)
    state = setup.make_state(model.params)

    def theirs(arrays=arrays, tokens=tokens, optimizer=optimizer) -> float:
      pixels, mask, shapes = arrays
      optimizer.zero_grad()
      loss = peer(
        input_ids=tokens, pixel_values=pixels, pixel_attention_mask=mask, spatial_shapes=shapes, return_loss=True
      ).loss
      loss.backward()
      optimizer.step()
      return float(loss.detach())

    def ours(run=run, batch=batch) -> float:
      nonlocal state
      state, metrics = run(state, batch)
      return float(metrics["loss"])

    losses = [(ours(), theirs()) for _ in range(3)]
    if not all(abs(mine - other) <= 1e-3 * abs(other) for mine, other in losses):
      raise ValueError(f"{kind}, {most}: losses differ, {losses}: speeds mean nothing")
    print_row(kind, most, given, [(clock(ours), clock(theirs)) for _ in range(options.rounds)])


def make_models(text: dict, depth: int):
  """A random `Siglip2Model` of base size, and the same weights as our model."""
  import torch
  import transformers

  torch.manual_seed(0)
  text = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0} | text
  config = transformers.Siglip2Config(text_config=text, vision_config={"num_hidden_layers": depth, "num_patches": 256})
  peer = transformers.Siglip2Model(config).eval()
  with tempfile.TemporaryDirectory() as folder:
    peer.save_pretrained(folder)
    return peer, fgclip_jax.load(folder)


def make_pictures(kind: str, most: int) -> list[PatchedImage]:
  """Eight pictures of noise with the grids of `make_grids`."""
  rng = np.random.default_rng(0)
  grids = make_grids(kind, most)
  return [PatchedImage(rng.integers(0, 256, (h * w, 768), dtype=np.uint8), (h, w)) for h, w in grids]


def print_row(kind: str, most: int, given: list[PatchedImage], turns: list[tuple[float, float]]) -> None:
  """A line of a table, of the seconds that each library took in turns."""
  mine, other = (statistics.median(seconds) for seconds in zip(*turns, strict=True))
  ratios = sorted(b / a for a, b in turns)
  total = sum(len(each.patches) for each in given)
  print(
    f"| {kind}, at most {most} ({total:,} patches) | {BATCH / mine:.2f} | {BATCH / other:.2f} | "
    f"{statistics.median(ratios):.2f} | {ratios[0]:.2f} .. {ratios[-1]:.2f} | {AIMS[kind]} |",
    flush=True,
  )


def make_grids(kind: str, most: int) -> list[tuple[int, int]]:
  """Eight grids: squares of `most` patches, or of an eighth up to all of them and of several shapes, log-uniform."""
  if kind == "equal":
    return [(int(most**0.5),) * 2] * BATCH
  rng = np.random.default_rng(1)
  counts = [*np.exp(rng.uniform(np.log(most / 8), np.log(most), BATCH - 1)), most]  # one as large as may be
  grids = []
  for count in counts:
    height = max(round((count * np.exp(rng.uniform(-0.7, 0.7))) ** 0.5), 1)
    grids.append((height, max(int(count / height), 1)))
  return grids


def pad(given: list[PatchedImage]) -> tuple:
  """What transformers' processor makes of the same patches."""
  import torch

  longest = max(len(each.patches) for each in given)
  pixels = np.zeros((len(given), longest, given[0].patches.shape[1]), np.float32)
  mask = np.zeros((len(given), longest), np.int64)
  for row, each in enumerate(given):
    pixels[row, : len(each.patches)] = each.patches.astype(np.float32) / 127.5 - 1
    mask[row, : len(each.patches)] = 1
  return torch.tensor(pixels), torch.tensor(mask), torch.tensor([each.grid for each in given])


def features(peer, arrays: tuple):
  """The image features of transformers' model, which newer versions put into an object."""
  pixels, mask, shapes = arrays
  found = peer.get_image_features(pixel_values=pixels, pixel_attention_mask=mask, spatial_shapes=shapes)
  return getattr(found, "pooler_output", found)


def clock(call, *arguments) -> float:
  """The seconds of a call."""
  start = time.perf_counter()
  call(*arguments)
  return time.perf_counter() - start


if __name__ == "__main__":
  sys.exit(main())

"""Measures images/s and texts/s of ours against transformers (PyTorch, its fastest attention) and open_clip, on a CPU.

  python benchmarks/encode.py --output tables.md
  python benchmarks/encode.py --open_clip_python path/to/venv/bin/python       # open_clip in an environment of its own

Prints tables in Markdown. Every engine has a process of its own with the same weights (random, written by
transformers) and the same inputs, and is timed only after its embeddings have been found equal to those of
transformers, to 1e-4. Engines take turns, call by call. Pictures are arrays: normalised, as their decoding is not
what is compared. Texts are token ids of short captions, padded to 77 as CLIP reads them; `longest` gives transformers
rows as long as the longest text of the batch. A small trial: `python benchmarks/encode.py --model tiny --rounds 2`.
Needs Linux and the packages of requirements-dev.txt.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from fgclip_jax.data.tokenizers.clip import Tokenizer
from fgclip_jax.models.config import END_ID, PRESETS

BASELINE = "transformers"
ENGINES = ("ours", BASELINE, "longest", "open_clip")
EQUAL = 1e-4
AIMS = {("texts", 1): 1.5, ("texts", 32): 1.0, ("images", 32): 1.0}  # times as fast as the baseline


class Engine:
  """An engine in a process of its own, which answers a line of JSON with another."""

  def __init__(self, name: str, python: str, folder: pathlib.Path, cores: int):
    self.name = name
    script = pathlib.Path(__file__).with_name("encode_engines.py")
    command = [python, str(script), name, str(folder), str(cores)]
    self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
      self.about = self._read()["about"]
    except RuntimeError:
      self.close()
      raise

  def ask(self, **request) -> dict:
    """Its answer to a request; see `encode_engines.py`."""
    print(json.dumps(request), file=self._process.stdin, flush=True)
    return self._read()

  def close(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait()

  def _read(self) -> dict:
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError(f"the process of {self.name} has ended: what it said stands above")
    return json.loads(line)


def main(argv: list[str] | None = None) -> int:
  """The command; returns its exit code."""
  options = parse(argv)
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    prepare(folder, options)
    engines = []
    try:
      for name in options.engines:
        python = options.open_clip_python if name == "open_clip" else sys.executable
        if subprocess.run([python, "-c", f"import {_needs(name)}"], capture_output=True).returncode:
          print(f"{name}: not installed for {python}" + (" (--open_clip_python)" if name == "open_clip" else ""))
          continue
        engines.append(Engine(name, python, folder, options.cores))
      text = measure(engines, options)
    finally:
      for engine in engines:
        engine.close()
  if options.output:
    pathlib.Path(options.output).write_text(text + "\n", encoding="utf-8")
    print(f"wrote {options.output}")
  return 0


def _needs(name: str) -> str:
  return {"ours": "jax", "open_clip": "open_clip"}.get(name, "transformers")


def prepare(folder: pathlib.Path, options: argparse.Namespace) -> None:
  """Writes weights in both formats, and inputs."""
  import torch
  import transformers

  from fgclip_jax.convert import convert
  from fgclip_jax.weights.huggingface import to_config_json

  config = PRESETS[options.model].replace(text={"long_length": None})
  torch.manual_seed(0)
  model = transformers.CLIPModel(transformers.CLIPConfig(**to_config_json(config, np.dtype(np.float32))))
  model.save_pretrained(folder / "transformers")
  if "open_clip" in options.engines:
    convert(str(folder / "transformers"), str(folder / "open_clip"), "open_clip")
  rng, side, most = np.random.default_rng(0), config.vision.image_size, max(options.batches)
  tokenizer = Tokenizer()
  ids = np.full((most, config.text.short_length), END_ID, np.int64)
  for row, text in zip(ids, captions(options.real, most), strict=True):
    tokens = tokenizer.encode(text, config.text.short_length)
    row[: len(tokens)] = tokens
  np.savez(folder / "inputs.npz", pixels=rng.normal(size=(most, side, side, 3)).astype(np.float32), ids=ids)


def captions(real: str, count: int) -> list[str]:
  """Short captions of photographs, over and over if there are too few."""
  files = sorted(pathlib.Path(real, "jsonfiles").glob("*.json"))
  if not files:
    raise FileNotFoundError(f"no captions in {real}/jsonfiles: name a folder of FineHARD's form by --real")
  texts = [f"a photo of {record['short_caption']}" for file in files for record in json.loads(file.read_text())]
  return [texts[number % len(texts)] for number in range(count)]


def measure(engines: list[Engine], options: argparse.Namespace) -> str:
  """Tables of all tasks, each printed when it is there."""
  from machine import machine

  lines = [machine("jax", "torch", "transformers"), f"{options.model}, float32, {options.cores} cores.", ""]
  lines += [f"- {engine.name}: {engine.about}" for engine in engines]
  print("\n".join(lines), flush=True)
  for task in ("images", "texts"):
    for batch in options.batches:
      first = {engine.name: np.asarray(engine.ask(task=task, batch=batch, calls=0)["found"]) for engine in engines}
      expected = first.get(BASELINE, next(iter(first.values())))
      for name, found in first.items():
        difference = np.abs(found - expected).max()
        if not difference <= EQUAL:
          raise ValueError(f"{name}: embeddings of {task} differ by {difference:.2g}: its speed means nothing")
      seconds = {engine.name: [] for engine in engines}
      peak = dict.fromkeys(seconds, 0)
      for number in range(options.rounds):
        for engine in engines if number % 2 else engines[::-1]:
          answer = engine.ask(task=task, batch=batch, calls=options.calls if batch == 1 else 1)
          seconds[engine.name].append(answer["seconds"])
          peak[engine.name] = max(peak[engine.name], answer["peak"])
      section = ["", f"### {task}, batch {batch}", "", *table(task, batch, seconds, peak)]
      print("\n".join(section), flush=True)
      lines += section
  return "\n".join(lines)


def table(task: str, batch: int, seconds: dict[str, list[float]], peak: dict[str, int]) -> list[str]:
  """Rows of a table, and whether the aim is met."""
  rows = [f"| engine | {task}/s | ms a call | x {BASELINE} | lowest .. highest | peak GiB |", "| --- |" + " ---: |" * 5]
  base, ours = seconds.get(BASELINE), None
  for name, times in seconds.items():
    ratios = sorted(theirs / mine for theirs, mine in zip(base or times, times, strict=True))
    ratio, median = statistics.median(ratios), statistics.median(times)
    ours = ratio if name == "ours" else ours
    rows.append(
      f"| {name} | {batch / median:.3g} | {1000 * median:.3g} | {ratio:.2f} | {ratios[0]:.2f} .. {ratios[-1]:.2f} "
      f"| {peak[name] / 2**30:.2f} |"
    )
  aim = AIMS.get((task, batch))
  if aim and ours and base:
    rows += ["", f"ours over {BASELINE}: {ours:.2f} (aim: at least {aim}) – {'met' if ours >= aim else 'missed'}"]
  return rows


def parse(argv: list[str] | None) -> argparse.Namespace:
  """The options."""
  shared = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  vits = [name for name, config in PRESETS.items() if hasattr(config.vision, "mlp_width")]
  parser.add_argument("--model", choices=vits, default="vit_b16", help="default: %(default)s")
  parser.add_argument("--batches", type=int, nargs="+", default=[1, 32], help="default: %(default)s")
  parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
  parser.add_argument("--rounds", type=int, default=7, help="turns of every engine (default: %(default)s)")
  parser.add_argument("--calls", type=int, default=5, help="calls in a turn at batch 1 (default: %(default)s)")
  parser.add_argument("--cores", type=int, default=2, help="threads of an engine (default: %(default)s)")
  parser.add_argument("--open_clip_python", default=sys.executable, help="a Python that has open_clip")
  parser.add_argument("--real", default=str(shared / "real_mini"), help="has jsonfiles/ (default: %(default)s)")
  parser.add_argument("--output", default="", metavar="FILE.md", help="write the tables to this file, too")
  options = parser.parse_args(argv)
  for name in ("rounds", "calls", "cores"):
    if getattr(options, name) < 1:
      parser.error(f"--{name} must be at least 1")
  if min(options.batches) < 1:
    parser.error("--batches must be at least 1")
  return options


if __name__ == "__main__":
  sys.exit(main())

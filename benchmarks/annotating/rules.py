"""Phrases and negatives by the rules, in one process: texts a second, of processor time and by the clock.

Captions are the long ones of annotations in FineHARD's form; phrases to make negatives of are the positives of a file
of FG-OVD, each once. Both are repeated, and the words of each text are split anew each time.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Callable, Sequence

from benchmarks.machine import machine
from fgclip_jax.annotate.rules import negatives, phrases, tokens

DATA = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"
COUNT = 10  # negatives of a phrase


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the options."""
  parser.add_argument("--annotations", default=str(DATA / "real_mini" / "jsonfiles"), help="folder of JSON files")
  parser.add_argument("--benchmark", default=str(DATA / "fgovd" / "h_attributes_llava.jsonl"), help="file of FG-OVD")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--texts", type=int, default=2000, help="texts of a round, at least")


def run(options: argparse.Namespace) -> int:
  """Prints the table."""
  print(machine("numpy"), end="\n\n")
  files = sorted(pathlib.Path(options.annotations).glob("*.json"))
  captions = [each["caption"] for file in files for each in json.loads(file.read_text())]
  lines = pathlib.Path(options.benchmark).read_text().splitlines()
  positives = list(dict.fromkeys(json.loads(line)["pos_expression"][0] for line in lines))
  drawer = negatives.Drawer("en", negatives.count_values(positives))
  drawn = [len(drawer.draw(phrase, COUNT, number)) for number, phrase in enumerate(positives)]
  print("| what | texts | words each | a second of CPU | a second | found |\n|---|---:|---:|---:|---:|---|")
  found = sum(len(phrases.split(caption)) for caption in captions)
  _print("phrases of captions", captions, phrases.split, f"{found / len(captions):.1f} phrases each", options)
  full = sum(count == COUNT for count in drawn) / len(drawn)
  _print("negatives of phrases", positives, lambda text: drawer.draw(text, COUNT), f"{full:.1%} with {COUNT}", options)
  return 0


def _print(name: str, texts: Sequence[str], call: Callable[[str], object], found: str, options) -> None:
  """A row; of the rounds the median."""
  taken, repeats = [], -(-options.texts // len(texts))
  count = repeats * len(texts)
  for _ in range(options.rounds):
    used, began = time.process_time(), time.perf_counter()
    for _ in range(repeats):
      tokens.split_words.cache_clear()
      for text in texts:
        call(text)
    taken.append((time.process_time() - used, time.perf_counter() - began))
  used, seconds = (sorted(each)[len(taken) // 2] for each in zip(*taken, strict=True))
  words = sum(len(text.split()) for text in texts) / len(texts)
  row = [f"{len(texts):,}", f"{words:.0f}", f"{count / used:,.0f}", f"{count / seconds:,.0f}", found]
  print(f"| {name} | {' | '.join(row)} |", flush=True)

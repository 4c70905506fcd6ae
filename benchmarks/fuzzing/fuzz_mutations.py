"""Mutations of files, by what their names end with, and of their place in a folder."""

import gzip
import os
import pathlib
import random
from collections.abc import Callable

from fuzzing.fuzz_binary import (
  mutate_parquet,
  mutate_picture,
  mutate_safetensors,
  mutate_tar,
  mutate_torch,
)
from fuzzing.fuzz_shards import mutate_shard
from fuzzing.fuzz_text import ESCAPED, mutate_bytes, mutate_json, mutate_json_lines, mutate_text

PICTURES = (".png", ".jpg", ".webp", ".gif")


BOMB = 48 << 20  # bytes that a few kB are unpacked to


def mutate_compressed(rng: random.Random, data: bytes) -> bytes:
  """Changes what a gzip file of JSON lines holds, or its own bytes, or has it unpack to very much more."""
  if rng.random() < 0.3:
    return mutate_bytes(rng, data)
  if rng.random() < 0.2:
    head, rest = gzip.decompress(data), rng.choice((b"\n", b" ", b"a", b"[", b'{"image": "', b"\0"))
    return gzip.compress(head + rest * (BOMB // len(rest)), 1)
  return gzip.compress(mutate_json_lines(rng, gzip.decompress(data)))


BY_SUFFIX: dict[str, Callable[[random.Random, bytes], bytes]] = {
  **dict.fromkeys(PICTURES, mutate_picture),
  **dict.fromkeys((".csv", ".tsv", ".txt", ".xml"), mutate_text),
  **dict.fromkeys((".pt", ".bin"), mutate_torch),
  ".json": mutate_json,
  ".jsonl": mutate_json_lines,
  ".gz": mutate_compressed,
  ".tar": mutate_tar,
  ".parquet": mutate_parquet,
  ".safetensors": mutate_safetensors,
  ".array_record": mutate_shard,
}


def mutate_place(rng: random.Random, path: pathlib.Path) -> str:
  """Puts something else in the place of a file, or moves it; returns what."""
  kind = rng.choice(("pipe", "folder", "loop", "link", "device", "missing", "empty", "renamed", "beside", "deep"))
  data = path.read_bytes()
  if kind not in ("beside", "deep"):
    path.unlink()
  if kind == "pipe":
    os.mkfifo(path)
  elif kind == "folder":
    path.mkdir()
  elif kind in ("loop", "device"):
    path.symlink_to(path.name if kind == "loop" else "/dev/zero")
  elif kind == "link":  # to a file that nobody may change
    outside = path.parent / f"{ESCAPED}.target"
    outside.write_bytes(data)
    path.symlink_to(outside.name)
  elif kind == "empty":
    path.touch()
  elif kind in ("renamed", "beside"):
    name = rng.choice((b"\xff", b"a\x1b[2J", b"a\nb", b".hidden", b"\xe2\x80\xa8", b"Thumbs")) + os.fsencode(
      path.suffix
    )
    with open(os.path.join(os.fsencode(path.parent), name), "wb") as file:
      file.write(data)
  elif kind == "deep":
    folder = path.parent / rng.choice((".ipynb_checkpoints", "__MACOSX", "nested"))
    folder.mkdir(exist_ok=True)
    (folder / path.name).write_bytes(data)
  return kind


def mutate(rng: random.Random, path: pathlib.Path) -> str:
  """Changes a file; returns in words what was done."""
  return f"{path.name}: {mutate_place(rng, path) if rng.random() < 0.04 else mutate_content(rng, path)}"


def mutate_content(rng: random.Random, path: pathlib.Path) -> str:
  """Changes what a file holds by what its name ends with; returns the name of the function that did."""
  data, change = path.read_bytes(), BY_SUFFIX.get(path.suffix.partition("-")[0], mutate_bytes)
  try:
    changed = change(rng, data)
  except Exception:  # an earlier mutation has left nothing that can be taken apart
    changed, change = mutate_bytes(rng, data), mutate_bytes
  path.write_bytes(changed)
  return change.__name__

"""Mutations of bytes, of text, and of the trees of JSON."""

import copy
import json
import random
import re
from collections.abc import Callable
from typing import Any

ESCAPED = "escaped"  # what hostile names and pickles would write beside the folders they are in
NAMES = (
  "a\x1b[2Jb",
  "a\nb",
  "a\rb",
  "\udcff",
  "a\u2028b",
  "..",
  "../../escaped",
  "/",
  "",
  " ",
  "a" * 300,
  "nul\0",
  "😀",
  "‮abc",
)
TEXTS = (
  *NAMES,
  "NaN",
  "null",
  "1e999",
  "-1",
  "0",
  "<|endoftext|>",
  '"',
  '"a',
  "a,b",
  "a\tb",
  "x" * 20_000,
  "\ufeffa",
  "{}",
  "%s%n",
)
NUMBERS = (
  0,
  -1,
  1,
  2**31,
  2**63,
  2**64,
  -(2**63) - 1,
  10**30,
  10**400,
  0.5,
  -0.0,
  1e308,
  1e-320,
  float("nan"),
  float("inf"),
)


def draw_value(rng: random.Random) -> Any:
  """A value of JSON of any type."""
  kind = rng.randrange(6)
  if kind == 0:
    return rng.choice(TEXTS)
  if kind == 1:
    return rng.choice(NUMBERS)
  return [None, rng.random() < 0.5, [], {}][kind - 2]


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
  """Flips bits, cuts, doubles, removes, moves, overwrites or inserts ranges."""
  if not data:
    return bytes(rng.randrange(256) for _ in range(rng.randrange(64)))
  begin = rng.randrange(len(data))
  end = min(len(data), begin + rng.choice((1, 2, 4, 16, 64, 1024)))
  kind = rng.randrange(9)
  if kind <= 1:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8, 64))):
      changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)
  middle = data[begin:end]
  changes: list[Callable[[], bytes]] = [
    lambda: data[:begin],  # cut
    lambda: data[:end] + middle * rng.choice((1, 1, 2, 100)) + data[end:],
    lambda: data[:begin] + data[end:],
    lambda: data[:begin] + bytes(len(middle)) + data[end:],
    lambda: data[:begin] + b"\xff" * len(middle) + data[end:],
    lambda: data[:begin] + bytes(rng.randrange(256) for _ in middle) + data[end:],
    lambda: b"" if rng.random() < 0.3 else data + data[:end],
  ]
  return changes[kind - 2]()


def mutate_text(rng: random.Random, data: bytes) -> bytes:
  """Changes the encoding, the ends of lines, or the lines and fields; at last the bytes."""
  kind = rng.randrange(12)
  text = data.decode(errors="surrogateescape")
  if kind == 0:
    return b"\xef\xbb\xbf" * rng.choice((1, 2)) + data
  if kind in (1, 2):
    encoding = rng.choice(("utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252", "utf-7"))
    return (text.replace("a", "é") if rng.random() < 0.5 else text).encode(encoding, "replace")
  if kind in (3, 4):
    end = rng.choice(("\r\n", "\r", "\n\n", "\u2028", "\0\n", " \n", "\n\r", "\x0c", ",\n", "\v"))
    return text.replace("\n", end).encode(errors="surrogateescape")
  lines = text.split("\n")
  place = rng.randrange(len(lines))
  if kind == 5:
    lines[place:place] = [rng.choice((lines[place], "", " ", "null", "[]", "{", '"', rng.choice(TEXTS)))]
  elif kind == 6:
    del lines[place]
  elif kind == 7:
    fields = re.split(r"([,\t])", lines[place])
    field = rng.randrange(len(fields))
    fields[field] = rng.choice((rng.choice(TEXTS), str(rng.choice(NUMBERS[:8])), "", fields[field] * 2))
    lines[place] = "".join(fields)
  elif kind == 8:
    column = rng.randrange(len(lines[place]) + 1)
    lines[place] = lines[place][:column] + rng.choice('"",\t;[]{}\\\0\x1b:\'') + lines[place][column:]
  elif kind == 9:
    rng.shuffle(lines)
  elif kind == 10:
    lines.append(rng.choice(TEXTS))
  else:
    return mutate_bytes(rng, data)
  return "\n".join(lines).encode(errors="surrogatepass" if rng.random() < 0.1 else "replace")


def mutate_tree(rng: random.Random, tree: Any) -> Any:
  """Changes a random place of a tree of JSON: types, missing, repeated and new keys and entries, deep nesting."""
  tree = copy.deepcopy(tree)
  place, parents = tree, []
  while isinstance(place, dict | list) and place and (len(parents) < 1 or rng.random() < 0.75):
    key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
    parents.append((place, key))
    place = place[key]
  if not parents:
    return draw_value(rng)
  holder, key = parents[-1]
  kind = rng.randrange(10)
  if kind <= 3:
    holder[key] = draw_value(rng)
  elif kind == 4:
    del holder[key]
  elif kind == 5:
    holder[key] = str(place) if not isinstance(place, str) else [place]
  elif kind == 6:
    deep = place
    for _ in range(rng.choice((1, 2, 50, 5000))):
      deep = [deep] if rng.random() < 0.5 else {"a": deep}
    holder[key] = deep
  elif kind == 7 and isinstance(holder, dict):
    holder[rng.choice((*NAMES, f"{key} ", str(key).upper(), f"\ufeff{key}"))] = holder.pop(key)
  elif kind == 8 and isinstance(holder, list):
    holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(place))
  elif isinstance(place, int | float) and not isinstance(place, bool):
    holder[key] = rng.choice((-place, place * 10**6, place + 1, float(place), str(place)))
  else:
    other_holder, other_key = rng.choice(parents)
    holder[key] = rng.choice((other_key, rng.choice(NAMES), other_holder[other_key] if rng.random() < 0.3 else None))
    try:
      json.dumps(tree)
    except ValueError:  # a loop
      holder[key] = None
  return tree


def dump(tree: Any, rng: random.Random, **options: Any) -> str:
  """A tree as JSON; sometimes with a key twice, or surrogates as escapes or as they are."""
  try:
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.7, **options)
  except (RecursionError, ValueError):  # deeper, or a number with more digits, than Python itself writes
    return "[" * 100_000 if rng.random() < 0.5 else "1" * 5_000
  if rng.random() < 0.05:
    text = re.sub(r'("[a-z_]+": [0-9"a-z]+)', r"\1, \1", text, count=rng.choice((1, 0)))
  return text


def mutate_json(rng: random.Random, data: bytes) -> bytes:
  """Changes the tree of a JSON file, or its text."""
  if rng.random() < 0.25:
    return mutate_text(rng, data)
  tree = json.loads(data)
  for _ in range(rng.choice((1, 1, 2, 4))):
    tree = mutate_tree(rng, tree)
  return dump(tree, rng, indent=rng.choice((None, 1))).encode(errors="surrogatepass")


def mutate_json_lines(rng: random.Random, data: bytes) -> bytes:
  """Changes the trees of some lines, or the text."""
  if rng.random() < 0.3:
    return mutate_text(rng, data)
  lines = data.decode().splitlines()
  for _ in range(rng.choice((1, 1, 2, 4))):
    place = rng.randrange(len(lines))
    try:
      lines[place] = dump(mutate_tree(rng, json.loads(lines[place])), rng)
    except (ValueError, RecursionError):
      continue  # changed before
  return "".join(f"{line}\n" for line in lines).encode(errors="surrogatepass")

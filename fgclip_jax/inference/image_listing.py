"""Lists the images of a folder, a pattern or a list, so that a run that is continued has the same ones.

A listing is a file with a JSON list a line: a path and the file's size; a path alone where the size is not known; or a
name, a kind and a reason for what was left out when the images were listed.
"""

import fnmatch
import glob
import json
import os
import sys
from collections.abc import Iterable, Iterator

from PIL import Image

from fgclip_jax.data import image as images
from fgclip_jax.storage import atomic, folders, paths, text
from fgclip_jax.storage.skip_report import SkipReport

TEXT_LINES = (".txt", ".txt.gz")


def write(listing: str, given: str, folder: str) -> None:
  """Writes a listing, in an order that depends on the names alone.

  Args:
    listing: the file to write.
    given: a folder, a pattern such as `photos/**/*.jpg`, a .txt list of paths, or a file; may be a URL.
    folder: what the paths are relative to; empty: the current folder.

  Raises:
    FileNotFoundError, ValueError: there is no such input.
  """
  paths.make_folder(paths.parent(listing))
  with atomic.file(listing) as temporary, open(temporary, "w", encoding="utf-8") as file:
    file.writelines(json.dumps(item) + "\n" for item in _list(given, folder))


def _list(given: str, folder: str) -> Iterable[list]:
  suffixes = tuple(suffix for suffix, kind in Image.registered_extensions().items() if kind in images.FORMATS)
  if paths.is_folder(given):
    return _walk(given, folder, suffixes)
  if glob.has_magic(given) and not paths.exists(given):
    return _find_remote_pattern(given) if paths.is_remote(given) else _find_pattern(given, suffixes)
  if not paths.exists(given):
    raise FileNotFoundError(f"no image, folder, list or record folder at {given!r}")
  names = _read_list(given) if given.lower().endswith(TEXT_LINES) else [given]
  return (_measure(name, folder) for name in names)


def _measure(name: str, folder: str) -> list:
  path = paths.join(folder, name) if folder else name
  try:
    return [name] if paths.is_remote(path) else [name, os.stat(path).st_size]
  except (OSError, ValueError):  # said when its turn comes
    return [name]


def _walk(given: str, folder: str, suffixes: tuple[str, ...]) -> Iterator[list]:
  skips = SkipReport(limit=sys.maxsize)
  for path in folders.walk(given, skips, suffixes):
    yield _measure(path, folder)
  for skip in (each for kind in skips.examples.values() for each in kind):
    yield [skip.place, skip.kind, skip.message]


def _find_pattern(pattern: str, suffixes: tuple[str, ...]) -> Iterator[list]:
  """What matches a pattern, sorted; folders are none of it, unless one is named as a picture."""
  if pattern == "**" or pattern.endswith("/**"):
    pattern += "/*"
  start, recursive, rest = pattern.partition("**/")
  if not recursive or (start and not start.endswith("/")) or "/." in f"/{rest}":
    found = glob.iglob(pattern, recursive=True)
    yield from (_measure(p, "") for p in sorted(found) if not os.path.isdir(p) or p.lower().endswith(suffixes))
    return
  # not by `glob`, which goes round in circles where a folder has links to one above it
  skips, matches = SkipReport(limit=sys.maxsize), []
  ending = os.path.splitext(rest)[1].lower()
  for base in glob.glob(start) if start else [""]:
    walked = folders.walk(base or ".", skips, ("" if glob.has_magic(ending) else ending,))
    wanted = ["**", *rest.split("/")]
    matches += [os.path.join(base, path) for path in walked if _matches(path.split("/"), wanted)]
  yield from (_measure(path, "") for path in sorted(matches))
  for skip in (each for kind in skips.examples.values() for each in kind if not each.kind.endswith("_hidden")):
    yield [skip.place, skip.kind, skip.message]


def _find_remote_pattern(pattern: str) -> Iterator[list]:
  """What matches a pattern in object storage, sorted: the folder above the first of its parts with a `*` is listed."""
  parts = pattern.split("/")
  fixed = next(place for place, part in enumerate(parts) if glob.has_magic(part))
  base, wanted = "/".join(parts[:fixed]), parts[fixed:]
  if fixed < 3:  # gs: / / BUCKET
    raise ValueError(f"{pattern!r}: a pattern needs the name of its bucket")
  if wanted[-1] == "**":
    wanted.append("*")
  skips = SkipReport(limit=sys.maxsize)
  found = folders.walk(base, skips) if paths.is_folder(base) else ()
  yield from ([paths.join(base, path)] for path in sorted(found) if _matches(path.split("/"), wanted))


def _matches(parts: list[str], wanted: list[str]) -> bool:
  """Whether the parts of a path match those of a pattern, of which `**` stands for any number."""
  if not wanted:
    return not parts
  if wanted[0] == "**":
    return any(_matches(parts[begin:], wanted[1:]) for begin in range(len(parts) + 1))
  return bool(parts) and fnmatch.fnmatchcase(parts[0], wanted[0]) and _matches(parts[1:], wanted[1:])


def _read_list(path: str) -> Iterator[str]:
  """The names in a list; a byte that is not UTF-8 stays as `os.fsdecode` gives it, so that the file is found."""
  with text.open(path) as file:
    for line in text.split(file, path):
      if name := line.decode(errors="surrogateescape").strip():
        yield name

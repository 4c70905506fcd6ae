"""Tokenizers that are read from a model's own files: where these files are, and what they must hold."""

import functools
import hashlib

from fgclip_jax.storage import paths

FILES = {"gemma": ("tokenizer.json",), "siglip": ("spiece.model",)}  # by the tokenizer's name: what it may be read from
_MAX_BYTES = 256 << 20


def locate(name: str, *folders: str) -> str:
  """The name with which `get_tokenizer` finds a tokenizer's file: `NAME:PATH`, or the name if it needs none.

  Args:
    name: of a tokenizer; one that has a path already stays as it is.
    folders: where its file may be: folders, or the file itself, the first one first; empty ones are left out. If none
      has it the name is returned alone, and `get_tokenizer` says what is missing.
  """
  for folder in filter(None, folders if name in FILES else ()):
    if path := find_file(name, folder):
      return f"{name}:{path}"
  return name


def locate_any(text: str) -> str:
  """The name with which `get_tokenizer` finds what a user means by `text`: a name, `NAME:PATH`, a folder or a file.

  Raises:
    FileNotFoundError: it is a path, and there is no tokenizer.
  """
  if paths.is_folder(text) or paths.is_file(text):
    # SigLIP 1's folders have both files, the second of which would not clean texts
    for name in ("siglip", "gemma"):
      if path := find_file(name, text):
        return f"{name}:{path}"
    raise FileNotFoundError(f"no tokenizer.json or spiece.model in {text!r}")
  return text


def find_file(name: str, folder: str) -> str | None:
  """The file of a tokenizer: the path itself, in that folder, or beside that file of weights; None: it is not there."""
  if paths.is_file(folder):
    if folder.endswith(FILES[name]):
      return folder
    folder = paths.parent(folder)
  for file in FILES[name]:
    if paths.is_file(path := paths.join(folder, file)):
      return path
  return None


def copy(name: str, folder: str) -> None:
  """Puts the file of a tokenizer, `NAME:PATH`, into a model folder, which can then be read by itself."""
  name, _, path = name.partition(":")
  if path and find_file(name, folder) is None:
    paths.write(paths.join(folder, FILES[name][0]), read(path))


@functools.lru_cache(maxsize=2)
def read(path: str) -> bytes:
  """The bytes of a tokenizer's file."""
  data = paths.read(path, 0, _MAX_BYTES + 1)
  if len(data) > _MAX_BYTES:
    raise ValueError(f"{path} has more than {_MAX_BYTES:,} bytes: it is no tokenizer's file")
  return data


@functools.cache
def hash_of(path: str) -> str:
  """The hexadecimal SHA-256 of a tokenizer's file; it names the ids that it makes."""
  return hashlib.sha256(read(path)).hexdigest()


def missing(name: str) -> FileNotFoundError:
  """What to do where a tokenizer's file was not found."""
  file = FILES[name][0]
  return FileNotFoundError(
    f"the tokenizer {name!r} is read from a model's own {file}, and there is none: put it into the model folder, or "
    "name a folder that has it (training: config.data.tokenizer; prepare: --tokenizer)"
  )

"""The one listing of folders of people's files: sub-folders, and files at any depth; what is left out is counted.

Folders gather files that nobody put there: hidden ones (`.ipynb_checkpoints`, `._x.jpg` of macOS) and those of systems
(`__MACOSX`, `@eaDir`, `lost+found`, `Thumbs.db`). They are left out below the folder that is listed, and counted. So
are names that are not UTF-8, which no file of ids can hold, and folders that cannot be listed. Links are followed, but
no folder is read twice: a link into what is read anyway, or back to a folder above it, is left out and counted.
"""

import os
from collections.abc import Iterator

from fgclip_jax.storage import paths
from fgclip_jax.storage.skip_report import Skip, SkipReport
from fgclip_jax.storage.text import is_unicode

# of macOS, Windows, Python, Linux' file systems and network drives; compared in lower case
_SYSTEM = {
  "__macosx",
  "thumbs.db",
  "ehthumbs.db",
  "desktop.ini",
  "system volume information",
  "$recycle.bin",
  "__pycache__",
  "lost+found",
  "@eadir",
  "@recycle",
  "@recently-snapshot",
  "#recycle",
  "#snapshot",
}


def is_hidden(name: str) -> bool:
  """Whether a file or folder of this name is hidden, or made by a system and not by people."""
  return name.startswith(".") or name.lower() in _SYSTEM


def list_folders(folder: str, skips: SkipReport) -> list[str]:
  """Lists the names of a folder's sub-folders, sorted.

  Args:
    folder: the folder, on this machine or in object storage.
    skips: counts those that are left out: `folder_hidden`, `folder_not_unicode`, and `folder_loop` for a link to the
      folder itself or to one above it.

  Raises:
    OSError: the folder is missing or cannot be listed.
  """
  found = []
  for name, is_folder in paths.scan_folder(folder):
    if not is_folder:
      continue
    where = paths.join(folder, name)
    if is_hidden(name):
      skips.add(_hidden("folder", where))
    elif not is_unicode(name):
      skips.add(_not_unicode("folder", where))
    elif _contains(where, folder):
      skips.add(Skip("folder_loop", "is a link to a folder above it", place=where, scope="file"))
    else:
      found.append(name)
  return found


def list_files(folder: str, suffixes: tuple[str, ...] = ("",), skips: SkipReport | None = None) -> list[str]:
  """Lists the names of the files in one folder that end in one of `suffixes` (in lower case), sorted.

  Hidden files and those that systems make are left out, and counted in `skips` as `file_hidden`.

  Raises:
    OSError: the folder is missing or cannot be listed.
  """
  found = [name for name, is_folder in paths.scan_folder(folder) if not is_folder and name.lower().endswith(suffixes)]
  if skips is not None:
    for name in filter(is_hidden, found):
      skips.add(_hidden("file", paths.join(folder, name)))
  return [name for name in found if not is_hidden(name)]


def walk(folder: str, skips: SkipReport, suffixes: tuple[str, ...] = ("",)) -> Iterator[str]:
  """Yields the paths of the files in a folder and the folders below it, relative to it and separated by `/`.

  The files of a folder come first, by name, then those of its sub-folders, by name. Devices, pipes and broken links are
  yielded like files: readers refuse them by name.

  Args:
    folder: the folder, on this machine or in object storage.
    skips: counts what is left out: `file_hidden`, `folder_hidden`, `id_not_unicode` (a file), `folder_loop` and
      `folder_read_already` (links), `folder_not_readable`.
    suffixes: in lower case; files without one of them are no part of the listing, and not counted.

  Raises:
    OSError: the folder itself is missing or cannot be listed.
  """
  roots = [] if paths.is_remote(folder) else [os.path.realpath(folder)]  # whatever is read lies below one of them
  waiting = [""]
  while waiting:
    base = waiting.pop()
    here = paths.join(folder, base) if base else folder
    try:
      entries = paths.scan_folder(here)
    except OSError as error:
      if not base:
        raise
      skips.add(Skip("folder_not_readable", error.strerror or str(error), place=here, scope="file"))
      continue
    below = []
    for name, is_folder in entries:
      path = f"{base}/{name}" if base else name
      where = paths.join(folder, path)
      if is_folder:
        refused = _hidden("folder", where) if is_hidden(name) else _check_link(where, roots)
        if refused is None:
          below.append(path)
        else:
          skips.add(refused)
      elif name.lower().endswith(suffixes):
        if is_hidden(name):
          skips.add(_hidden("file", where))
        elif not is_unicode(path):
          skips.add(_not_unicode("id", where))
        else:
          yield path
    waiting += reversed(below)


def describe(folder: str, skips: SkipReport) -> list[str]:
  """A line on what a listing left out of a folder, if it left out anything."""
  if not skips:
    return []
  kinds = "; ".join(f"{skip.kind} {count:,}, the first: {skip}" for skip, count in skips.firsts())
  return [f"left out of {folder!r}: {kinds}"]


def _check_link(where: str, roots: list[str]) -> Skip | None:
  """Says why a folder is not to be read; adds a linked one that is to be read to the roots."""
  if not roots or not os.path.islink(where):
    return None
  target = os.path.realpath(where)
  if _is_below(os.path.realpath(os.path.dirname(where)), target):
    return Skip("folder_loop", f"is a link to {target!r}, a folder above it", place=where, scope="file")
  for root in roots:
    inside = os.path.relpath(target, root).split(os.sep) if _is_below(target, root) else []
    if _is_below(root, target) or (inside and not any(map(is_hidden, inside))):
      return Skip("folder_read_already", f"is a link to {target!r}, which is read anyway", place=where, scope="file")
  roots.append(target)
  return None


def _contains(outer: str, inner: str) -> bool:
  return not paths.is_remote(outer) and _is_below(os.path.realpath(inner), os.path.realpath(outer))


def _is_below(path: str, folder: str) -> bool:
  """Whether a real path is a folder or lies in it."""
  return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _hidden(what: str, where: str) -> Skip:
  return Skip(f"{what}_hidden", "is hidden, or made by a system", place=where, scope="file")


def _not_unicode(what: str, where: str) -> Skip:
  return Skip(f"{what}_not_unicode", "its name is not UTF-8: rename it", place=where, scope="file")

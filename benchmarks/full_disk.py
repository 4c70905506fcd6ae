"""Lets every command that writes meet a full disk, and looks at what is left.

  python benchmarks/full_disk.py                 # all writers; needs Linux and root, for the small disk
  python benchmarks/full_disk.py --only embed    # those whose names begin so

A writer first makes an output on a tmpfs. The disk is then filled but for some bytes, from none to nearly all that is
needed, and the writer is to replace the output, or to make another beside it. Where it fails, the old output must be as
it was, nothing may be beside it but what its next run continues from, and the message must be one line that names a
file of the disk. With room again, the same command must succeed. The last runs have room for the output, and none for
temporary files.

Columns: `runs` that met the full disk and those of them that `failed`; then what was wrong: `lost` (the old output is
changed), `remains` (files that no later run needs), `unnamed` (another message), `stuck` (fails with room again).
"""

import argparse
import collections
import contextlib
import ctypes
import dataclasses
import io
import json
import os
import pathlib
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from unittest import mock

import jax

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from fuzz import PACKAGES, make_model
from fuzzing import fuzz_inputs
from fuzzing.forks import in_fork
from machine import machine

from fgclip_jax import convert, embed, evaluate, export, show
from fgclip_jax.annotate import __main__ as annotate
from fgclip_jax.prepare import __main__ as prepare

DISK = 64 << 20  # bytes
SHARES = (0.0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)  # of what an output needs, that are left free
COLUMNS = ("runs", "failed", "lost", "remains", "unnamed", "stuck")
COMMANDS = {"convert": convert, "embed": embed, "evaluate": evaluate, "export": export, "show": show}
COMMANDS |= {"annotate": annotate, "prepare": prepare}


@dataclasses.dataclass(frozen=True)
class Writer:
  """A command that writes.

  Attributes:
    name: of its row.
    old: the command line that makes the first output; `{in}` and `{out}` stand for folders.
    new: the one that is to replace it, or to add to it.
    state: what a stopped run leaves to continue from: the beginnings of paths in the output folder.
    keeps: whether the old output must be as it was after a failure; False where the parts of an output are replaced
      one after another, or where the option that is given discards the old output first.
    grows: files of the old output to which the new one adds.
    slow: whether it takes long, so that fewer shares are tried.
  """

  name: str
  old: str
  new: str
  state: tuple[str, ...] = ()
  keeps: bool = True
  grows: tuple[str, ...] = ()
  slow: bool = False


_TEXTS = "embed --model m --texts {in}/embed/texts"
_PICTURES = "embed --model m --images {in}/embed/images"
_PAIRS = "prepare pairs --images {in}/pairs/images --workers 1 --captions {in}/pairs/captions"
_COCO = (
  "prepare coco --captions {in}/coco/captions.json --instances {in}/coco/instances.json --images {in}/coco/images "
  "--workers 1"
)
_INSPECT = "prepare inspect {in}/records --split validation --output {out}/p.html"
_FOLDER = ("d/info.json", "d/dataset_info.json", "d/checksums.json")  # name all splits
_ANNOTATE = "annotate --images {in}/pairs/images --known {in}/pairs/captions.jsonl --output {out}/a --workers 1"
_REQUESTS = f"{_ANNOTATE} --negatives http --model x --requests {{out}}/q"
_RECORDS = "evaluate records --model m --data {in}/records --output {out}/r.json"
_SHOW = "show --model m --text dog --output {out}/heat.png --image {in}/embed/images"
_EXPORT = "export {out}/e --model {in}/native --format stablehlo --what"
_TO_PYTORCH, _TO_JAX = "convert {in}/native {out}/m --to pytorch", "convert {in}/pytorch {out}/m --to jax"
WRITERS = (
  Writer("convert to jax", _TO_PYTORCH, f"{_TO_JAX} --overwrite"),
  Writer("convert to pytorch", _TO_JAX, f"{_TO_PYTORCH} --overwrite"),
  Writer("convert, new", _TO_PYTORCH, "convert {in}/native {out}/n --to jax"),
  Writer("export", f"{_EXPORT} text", f"{_EXPORT} text,image", slow=True),
  *(
    Writer(
      f"embed, {form}", f"{_TEXTS}.txt --output {{out}}/r.{form}",
      f"{_TEXTS}.jsonl --output {{out}}/r.{form} --overwrite", (f"r.{form}.parts",),
    )
    for form in ("npy", "parquet")
  ),
  Writer("embed, new", f"{_TEXTS}.txt --output {{out}}/t.npy", f"{_PICTURES} --output {{out}}/r.npy", ("r.npy.parts",)),
  Writer(
    "prepare, new", f"{_PAIRS}.jsonl --output {{out}}/d --split a", f"{_PAIRS}.csv --output {{out}}/d --split b",
    ("d/",), grows=_FOLDER,
  ),
  Writer(
    "prepare --overwrite", f"{_PAIRS}.jsonl --output {{out}}/d", f"{_PAIRS}.csv --output {{out}}/d --overwrite",
    ("d/",), keeps=False,
  ),
  Writer("prepare, joined", f"{_PAIRS}.jsonl --output {{out}}/d", f"{_COCO} --output {{out}}/e", ("e/",)),
  Writer("prepare inspect", _INSPECT, _INSPECT),
  Writer("annotate", _ANNOTATE, f"{_ANNOTATE} --form finehard", ("a/",), keeps=False),
  Writer("annotate, new", _ANNOTATE, _ANNOTATE.replace("{out}/a", "{out}/b"), ("b/",)),
  Writer("annotate --audit", _ANNOTATE, f"{_ANNOTATE} --audit 2"),
  Writer("annotate --requests", _ANNOTATE, _REQUESTS, ("a/",), keeps=False),
  Writer("evaluate", _RECORDS, f"{_RECORDS} --limit 2"),
  Writer("show", f"{_SHOW}/1.png", f"{_SHOW}/0.jpg"),
)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
  """The command; returns 1 if anything was wrong."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="writers whose names begin so")
  options = parser.parse_args(argv)
  jax.config.update("jax_platforms", "cpu")
  folder = pathlib.Path(tempfile.mkdtemp(prefix="full-disk-"))
  rows: dict[str, collections.Counter[str]] = {}
  start = time.monotonic()
  try:
    in_fork(lambda: fuzz_inputs.generate(folder / "base"))
    for writer in WRITERS:
      if writer.name.startswith(tuple(options.only)):
        in_fork(lambda writer=writer: _try(writer, folder), quiet=False)
        rows[writer.name] = collections.Counter(json.loads((folder / "counts.json").read_bytes()))
  finally:
    shutil.rmtree(folder, ignore_errors=True)
  print(f"\n{machine(*PACKAGES)}\n{time.monotonic() - start:.0f} s\n")
  print(f"| writer | {' | '.join(COLUMNS)} |\n| --- |{' ---: |' * len(COLUMNS)}")
  for name, counts in rows.items():
    print(f"| {name} | {' | '.join(str(counts[column]) for column in COLUMNS)} |")
  return int(any(counts[column] for counts in rows.values() for column in COLUMNS[2:]))


@contextlib.contextmanager
def _disk(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """A small disk of its own."""
  folder.mkdir()
  libc = ctypes.CDLL(None, use_errno=True)
  # MS_NOSUID | MS_NODEV
  if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 6, f"size={DISK}".encode()):
    raise OSError(ctypes.get_errno(), "a small disk cannot be mounted; run as root")
  try:
    yield folder
  finally:
    libc.umount2(os.fsencode(folder), 2)  # MNT_DETACH
    folder.rmdir()


def _try(writer: Writer, folder: pathlib.Path) -> None:
  """Runs a writer with ever more room, and writes what was counted to `counts.json`."""
  counts: collections.Counter[str] = collections.Counter()
  call = _make_call(folder)
  shares = SHARES[::3] if writer.slow else SHARES
  with _disk(folder / "disk") as disk, _disk(folder / "other") as other:
    before = _make_old(writer, call, other)
    need = _used(other)
    _expect_success(writer, call(writer.new, other))
    need = max(_used(other) - need, _used(other) // 2)
    shutil.rmtree(other / "out")
    for share in (*shares, None):
      before = _make_old(writer, call, disk)
      free = share is None
      if not free:
        _fill(disk, int(share * need))
      with _no_scratch(other) if free else contextlib.nullcontext():
        code, told = call(writer.new, disk)
      counts["runs"] += 1
      (disk / "ballast").unlink(missing_ok=True)
      if code:
        counts["failed"] += 1
        found = _read(disk / "out")
        places = [str(disk / "out"), *([str(other / "tmp")] if free else [])]
        _judge(writer, before, found, told, places, counts, share)
        code, told = call(writer.new, disk)
        if code:
          _report(counts, "stuck", writer, share, told[-300:])
      shutil.rmtree(disk / "out")
  (folder / "counts.json").write_text(json.dumps(counts))


def _judge(
  writer: Writer, before: dict[str, bytes | None], found: dict[str, bytes | None], told: str, places: list[str],
  counts: collections.Counter[str], share: float | None,
) -> None:  # fmt: skip
  """Counts what is wrong after a failure."""
  kept = [name for name in before if name not in writer.grows] if writer.keeps else []
  lost = [name for name in kept if found.get(name, b"gone") != before[name]]
  if lost := lost + [name for name in writer.grows if not _holds(found.get(name), before[name])]:
    _report(counts, "lost", writer, share, str(lost[:3]))
  more = [name for name in found if name not in before]
  temporary = [name for name in more if ".tmp" in name]
  if temporary or (more := [name for name in more if not f"{name}/".startswith(writer.state or ("\0",))]):
    _report(counts, "remains", writer, share, str((temporary or more)[:3]))
  _, mark, message = told.rpartition("error: ")
  if not mark or len(message.splitlines()) != 1 or not any(place in message for place in places):
    _report(counts, "unnamed", writer, share, repr((message if mark else told)[-600:]))


def _holds(new: bytes | None, old: bytes | None) -> bool:
  """Whether a JSON object is whole, and has all members of an older one."""
  try:
    return json.loads(old or b"").keys() <= json.loads(new or b"").keys()
  except ValueError:
    return False


def _report(counts: collections.Counter[str], what: str, writer: Writer, share: float | None, detail: str) -> None:
  counts[what] += 1
  room = "no room for temporary files" if share is None else f"{share:.0%} of the room"
  print(f"{what}: {writer.name}, {room}: {detail}", flush=True)


def _make_call(folder: pathlib.Path) -> Callable[[str, pathlib.Path], tuple[int, str]]:
  """A function that runs a command line with its output on a disk, and returns its exit code and what it says."""
  model = make_model()

  def call(line: str, disk: pathlib.Path) -> tuple[int, str]:
    command, *words = line.split()
    words = [word.replace("{in}", str(folder / "base")).replace("{out}", str(disk / "out")) for word in words]
    (disk / "out").mkdir(exist_ok=True)
    told = io.StringIO()
    with contextlib.ExitStack() as stack:
      for module in (embed, evaluate, show):
        stack.enter_context(mock.patch.object(module, "load", lambda *_, **__: model))
      stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
      stack.enter_context(contextlib.redirect_stderr(told))
      try:
        code = COMMANDS[command].main(words)
      except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
      except Exception:
        return 1, told.getvalue() + traceback.format_exc()
    return code, told.getvalue()

  return call


def _make_old(writer: Writer, call: Callable, disk: pathlib.Path) -> dict[str, bytes | None]:
  _expect_success(writer, call(writer.old, disk))
  return _read(disk / "out")


def _expect_success(writer: Writer, result: tuple[int, str]) -> None:
  if result[0]:
    raise RuntimeError(f"{writer.name} fails with room enough: {result[1][-800:]}")


@contextlib.contextmanager
def _no_scratch(disk: pathlib.Path) -> Iterator[None]:
  """Has temporary files go to a disk without room."""
  (disk / "tmp").mkdir(exist_ok=True)
  _fill(disk, 0)
  with mock.patch.object(tempfile, "tempdir", str(disk / "tmp")):
    yield
  (disk / "ballast").unlink()


def _fill(disk: pathlib.Path, free: int) -> None:
  """Fills the disk until this many bytes are free, rounded down to pages."""
  found = os.statvfs(disk)
  size = (found.f_bavail - free // found.f_frsize) * found.f_frsize
  with open(disk / "ballast", "wb") as file:
    os.posix_fallocate(file.fileno(), 0, max(size, 1))


def _used(disk: pathlib.Path) -> int:
  found = os.statvfs(disk)
  return (found.f_blocks - found.f_bfree) * found.f_frsize


def _read(folder: pathlib.Path) -> dict[str, bytes | None]:
  """The files below a folder, locks aside, and its folders."""
  return {
    str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
    for path in sorted(folder.rglob("*"))
    if not path.name.endswith("lock")
  }


if __name__ == "__main__":
  sys.exit(main())

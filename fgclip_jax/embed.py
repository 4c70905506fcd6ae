"""Embeds images, texts or regions into one file.

python -m fgclip_jax.embed --model runs/stage2 --images "photos/**/*.jpg" --output photos.npy
python -m fgclip_jax.embed --model runs/stage2 --texts captions.jsonl --field caption --kind long --output texts.parquet
python -m fgclip_jax.embed --model runs/stage2 --regions data/finehard --split validation --output regions.parquet

IMAGES is a folder, a pattern, a .txt list of paths, or one picture; TEXTS a file with one text a line (.txt), or JSON
lines, a JSON list or CSV with a field for the text and, if there is one, `id`; REGIONS JSON lines or a JSON list of
  {"image": "a/1.jpg", "boxes": [[0.1, 0.2, 0.6, 0.9], ...]}     (or "regions": [{"box": [...]}, ...])
Each may also be a record folder, as `python -m fgclip_jax.prepare` writes it.

OUTPUT.npy holds float32 [rows, width] of unit length, and OUTPUT.ids.txt the rows' ids; OUTPUT.parquet holds both. An
id is an image's path (or its record's id), a text's `id` or number from 1, and for regions the image's id with #0, ...
(so too for a list of texts). Items that cannot be used are left out and listed in OUTPUT.left_out.jsonl. All devices of
this machine are used. After a stop or a crash, the same command continues where it was.
"""

import argparse
import itertools
import json
import sys
import warnings
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
import tqdm

from fgclip_jax.cli import add_max_patches, print_error
from fgclip_jax.inference import bulk_inputs, programs
from fgclip_jax.inference.bulk_outputs import Output
from fgclip_jax.inference.model import DTYPES, FGCLIP, KINDS, load
from fgclip_jax.storage import paths
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import Skip, printable
from fgclip_jax.storage.threads import in_threads
from fgclip_jax.weights.checkpoint_files.checksums import checksums

PART = 4096  # items that are written at a time
PART_BYTES = 256 << 20  # of records of text, which may be large
WHAT = ("images", "texts", "regions")


def embed(
  model: FGCLIP,
  what: str,
  given: str,
  output: str,
  *,
  kind: str = "short",
  field: str = "text",
  split: str = "train",
  root: str = "",
  overwrite: bool = False,
  progress: bool = False,
) -> tuple[list[str], dict[str, Any]]:
  """Embeds an input into a file, or continues where an earlier call was stopped.

  Args:
    model: the model.
    what: `images`, `texts` or `regions`.
    given: what to read, see `bulk_inputs.find`.
    output: the file to write, `.npy` or `.parquet`.
    kind: how texts are read: `short`, `long` or `region`.
    field: the field of texts in JSON or CSV.
    split: the split of a record folder.
    root: the folder that paths in a list of images or regions are relative to; empty: the current one.
    overwrite: start over; an earlier output is replaced when the new one is whole.
    progress: show a progress bar.

  Returns:
    The paths written (none if the output was already finished), and the report.

  Raises:
    FileNotFoundError, ValueError: the input does not exist, breaks off, has no such field or gives no row; the output
      exists with other settings, or is the input.
    OSError: the output cannot be written; an earlier one is then as it was.
  """
  target = Output(output)
  if paths.identity(given) in map(paths.identity, target.files()):
    raise ValueError(f"output {output!r} would replace its own input, {given!r}: name another output")
  with target.locked():
    new = overwrite or not target.begun
    if new:
      target.discard_parts()
    try:
      source, settings = _start(model, what, given, target, kind, field, split, root)
      if target.begin(settings, overwrite):
        target.discard_parts()
        return [], target.report()
      total = sum(1 for _ in _items(source))
      if not total:
        raise ValueError(f"{source.name!r} holds none of the {what}")
    except BaseException:
      if new:  # what a failed start noted must not decide the next one
        target.discard_parts()
      raise
    parts = _write_parts(model, source, target, what, kind, total, progress)
    return target.finish(parts, settings)


def _start(
  model: FGCLIP, what: str, given: str, target: Output, kind: str, field: str, split: str, root: str
) -> tuple[bulk_inputs.Input, dict[str, Any]]:
  """Finds the input; returns it and what decides the output."""
  reader = model.reader(None if what == "images" else "squash")
  reading = bulk_inputs.Reading(reader, what, kind, field, root)
  source = bulk_inputs.find(what, given, split, target.state, reading)
  settings = {
    "what": what,
    "input": source.name,
    "read": {"kind": kind, "field": field} if what == "texts" else reader.settings(),
    "root": root,
    "fingerprint": zlib.crc32(json.dumps(source.fingerprint, sort_keys=True).encode()),
    "model": fingerprint(model),
    "dtype": model.runtime.dtype.name,
    "width": model.config.embedding_width,
  }
  if isinstance(source, bulk_inputs.ImageFiles):
    settings["sizes"] = source.sizes
  return source, settings


def fingerprint(model: FGCLIP) -> str:
  """Returns 8 hex digits that change when the model's config or any of its parameters changes."""
  described = [model.config.identity(), checksums(model.params)]
  return f"{zlib.crc32(json.dumps(described, sort_keys=True).encode()):08x}"


def _write_parts(
  model: FGCLIP, source: bulk_inputs.Input, target: Output, what: str, kind: str, total: int, progress: bool
) -> int:
  """Writes the missing parts; returns the number of all parts."""
  encode = {"images": _encode_images, "regions": _encode_regions, "texts": _encode_texts}[what]
  parts = 0
  with tqdm.tqdm(total=total, desc=what, unit="item", disable=not progress) as bar:
    for number, items in enumerate(_divide(_items(source))):
      if target.part(number) is None:
        part = _Part(source, items, bar)
        features, cut = encode(model, part, kind)
        target.write_part(number, features, part.ids, part.left_out, items=len(items), texts_cut=cut)
      else:
        bar.update(len(items))
      parts = number + 1
  return parts


def _divide(items: Iterable[Any]) -> Iterator[list[Any]]:
  """Lists of up to `PART` items, fewer where they are large."""
  part, size = [], 0
  for item in items:
    part.append(item)
    size += len(item[1]) if isinstance(item, tuple) and isinstance(item[1], bytes) else 0
    if len(part) == PART or size > PART_BYTES:
      yield part
      part, size = [], 0
  if part:
    yield part


def _items(source: bulk_inputs.Input) -> Iterator[Any]:
  try:
    yield from source
  except RecordError as error:
    raise ValueError(f"{source.name!r} breaks off ({error}): repair it first") from error


class _Part:
  """Some items, loaded by threads; iterating yields the usable ones.

  Attributes:
    ids: the ids of the rows yielded so far.
    left_out: the items that could not be used so far; the place of each is its id.
  """

  def __init__(self, source: bulk_inputs.Input, items: list, bar: tqdm.tqdm):
    self.ids: list[str] = []
    self.left_out: list[Skip] = []
    self._source, self._items, self._bar = source, items, bar

  def __iter__(self) -> Iterator[bulk_inputs.Loaded]:
    for item, loaded in zip(self._items, in_threads(self._try, self._items), strict=True):
      self._bar.update()
      if isinstance(loaded, RecordError):
        self.left_out.append(Skip.of(loaded, place=self._source.describe(item)))
      else:
        self.ids += loaded.ids
        yield loaded

  def _try(self, item: Any) -> bulk_inputs.Loaded | RecordError:
    try:
      loaded = self._source.load(item)
      for name in loaded.ids:
        bulk_inputs.check_id(name)
      return loaded
    except RecordError as error:
      return error


def _peek(part: Iterable) -> Iterator | None:
  """Returns the part's usable items; None if there is none, for the model refuses an empty input."""
  iterator = iter(part)
  first = next(iterator, None)
  return None if first is None else itertools.chain([first], iterator)


def _encode_images(model: FGCLIP, part: _Part, kind: str) -> tuple[np.ndarray, int]:
  loaded = _peek(part)
  if loaded is None:
    return _nothing(model), 0
  return model.encode_image(each.pixels for each in loaded if each.pixels is not None), 0


def _encode_regions(model: FGCLIP, part: _Part, kind: str) -> tuple[np.ndarray, int]:
  loaded = _peek(each for each in part if each.boxes is not None and len(each.boxes))
  if loaded is None:
    return _nothing(model), 0
  # The model reads both iterators in step, so that `tee` keeps one batch of images at most.
  first, second = itertools.tee(loaded)
  pixels = (each.pixels for each in first if each.pixels is not None)
  regions = model.encode_regions(pixels, (each.boxes for each in second if each.boxes is not None))
  return np.concatenate(regions), 0


def _encode_texts(model: FGCLIP, part: _Part, kind: str) -> tuple[np.ndarray, int]:
  texts = [text for each in part for text in each.texts]
  if not texts:
    return _nothing(model), 0
  length = model.config.text.kinds[kind].length
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # cut texts are counted below and reported at the end
    features = model.encode_text(texts, kind)
  assert length is not None  # a model without a long table has refused to encode long texts
  return features, sum(len(ids) > length for ids in model.tokenizer.encode_batch(texts))


def _nothing(model: FGCLIP) -> np.ndarray:
  return np.zeros((0, model.config.embedding_width), np.float32)


def main(argv: list[str] | None = None) -> int:
  """Runs the command; returns its exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m fgclip_jax.embed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--model", metavar="DIR", required=True, help="a model in any format, or a run folder")
  source = parser.add_mutually_exclusive_group(required=True)
  for what in WHAT:
    source.add_argument(f"--{what}", metavar=what.upper(), help=f"embed these {what}")
  parser.add_argument("--output", metavar="FILE", required=True, help="the file to write, .npy or .parquet")
  parser.add_argument("--kind", choices=KINDS, default="short", help="how texts are read (default: %(default)s)")
  parser.add_argument("--field", default="text", help="the field of texts in JSON or CSV (default: %(default)s)")
  parser.add_argument("--split", default="train", help="the split of a record folder (default: %(default)s)")
  parser.add_argument("--root", metavar="DIR", default="", help="paths in a list are relative to this folder")
  parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="compute in this type (default: %(default)s)")
  parser.add_argument("--raw_weights", action="store_true", help="a run's last weights, not their average")
  add_max_patches(parser)
  parser.add_argument("--overwrite", action="store_true", help="discard an earlier output and start over")
  args = parser.parse_args(argv)
  try:
    _run(args)
  except KeyboardInterrupt:
    print("\nStopped. Run the same command again to continue.", file=sys.stderr)
    return 1
  except (OSError, ValueError) as error:
    print_error(error)
    return 1
  return 0


def _run(args: argparse.Namespace) -> None:
  Output(args.output)  # a wrong name is told before gigabytes are read
  programs.use_compilation_cache()
  devices = jax.local_devices()
  device = programs.all_devices() if len(devices) > 1 else None
  model = load(args.model, args.dtype, device, not args.raw_weights, max_patches=args.max_patches)
  what = next(what for what in WHAT if getattr(args, what) is not None)
  print(f"{args.model}: {model}")
  print(f"Embedding the {what} of {printable(getattr(args, what))} on {len(devices)} x {devices[0].device_kind}")
  options = {name: getattr(args, name) for name in ("kind", "field", "split", "root", "overwrite")}
  written, report = embed(model, what, getattr(args, what), args.output, **options, progress=True)
  if not written:
    print(f"{printable(args.output)} is finished already: {report['rows']:,} rows (--overwrite starts over)")
    return
  print(f"{report['rows']:,} rows of {report['width']} numbers, of {report['items']:,} items")
  if report["texts_cut"]:
    print(f"note: {report['texts_cut']:,} texts are longer than the model reads with --kind {args.kind}, and were cut")
  if report["ids_repeated"]:
    print(f"note: {report['ids_repeated']:,} rows have an id that another row before them has")
  if left_out := report["left_out"]:
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in left_out.items())
    print(f"note: left out {sum(left_out.values()):,} items: {kinds}")
  for path in written:
    print(f"wrote {printable(path)}")
  reads = f"pyarrow.parquet as p; print(p.read_table('{printable(args.output)}'))"
  if args.output.endswith(".npy"):
    reads = f"numpy; print(numpy.load('{printable(args.output)}', mmap_mode='r').shape)"
  print(f'next: python -c "import {reads}"')


if __name__ == "__main__":
  sys.exit(main())

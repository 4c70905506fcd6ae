"""Converts Karpathy's files of captions: dataset_coco.json, dataset_flickr30k.json, dataset_flickr8k.json.

An image's short caption is the first of its sentences; the others are not used, which is noted. There are no regions
and no long captions. --from_split takes the images of some splits; COCO's usual training set is `train restval`.
"""

import argparse
import functools
import posixpath
from collections.abc import Iterator, Sequence

from fgclip_jax.prepare import cli
from fgclip_jax.prepare.sources import image_store, joins
from fgclip_jax.storage.streams import named, read_entries

SHORT = "Karpathy's files of captions of COCO and Flickr30k"
TEXT = f"{__doc__}{cli.IMAGE_CHECK}"
EXAMPLE = "--annotations dataset_coco.json --from_split train restval --images coco --output data/coco_karpathy"

FORM = "karpathy"


def make(state: str, files: Sequence[str], splits: Sequence[str], folder: image_store.Folder) -> joins.Joined:
  """Reads files such as `dataset_coco.json`; see `joins.make`.

  Args:
    state: the folder where the result is kept.
    files: the files.
    splits: the splits to take; none takes all images.
    folder: the images.

  Raises:
    ValueError: a file is broken, or has no image of the splits.
  """
  form = f"{FORM}:{','.join(splits)}" if splits else FORM
  made = joins.make(state, form, functools.partial(_join, splits), files, folder)
  return joins.Joined(FORM, made.files, folder)


def _join(splits: Sequence[str], files: Sequence[str]) -> Iterator[dict]:
  for file in files:
    seen, taken = {}, 0
    for _, entry in read_entries(file, ("images",)):
      with named(file, entry):
        split = entry.get("split")
        seen[str(split)] = None
        if splits and split not in splits:
          continue
        taken += 1
        yield _make_line(entry)
    if not taken:
      wanted = f" of split {', '.join(splits)}" if splits else ""
      raise ValueError(f"{file} has no image{wanted}: the splits are {', '.join(seen) or 'none'} (--from_split)")


def _make_line(entry: dict) -> dict:
  texts = [sentence["raw"] for sentence in entry["sentences"]]
  texts = [text.strip() for text in texts if isinstance(text, str) and text.strip()]
  found = []
  if len(texts) > 1:
    found.append(["note", "captions_unused", "sentences", f"{len(texts)} captions, of which the first is taken"])
  name = posixpath.join(entry.get("filepath") or "", entry["filename"])
  return {"image": name, "short": texts[0] if texts else None, joins.FOUND: found}


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the command's options."""
  cli.add_output(parser)
  parser.add_argument("--annotations", required=True, nargs="+", metavar="FILE", help="dataset_coco.json or the like")
  parser.add_argument(
    "--from_split", nargs="+", default=[], metavar="NAME", help="the splits to take: train restval (default: all)"
  )
  cli.add_images(parser)
  cli.add_conversion(parser, name="karpathy")


def run(options: argparse.Namespace) -> None:
  """Runs the command."""
  folder = image_store.Folder(options.images)
  cli.convert(options, make(cli.tables_folder(options), options.annotations, options.from_split, folder))

"""Converts Karpathy's files of captions: dataset_coco.json, dataset_flickr30k.json, dataset_flickr8k.json.

An image's short caption is the first of its sentences; all are kept as its set of captions. There are no regions and no
long captions. --from_split takes the images of some splits; COCO's usual training set is `train restval`.
"""

import argparse
import functools
import posixpath
from collections.abc import Iterator, Sequence

from fgclip_jax.data import annotation_fields
from fgclip_jax.prepare import cli
from fgclip_jax.prepare.sources import image_store, joins
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import printable

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
    for _, field, value in joins.read_lists(file, ("images",)):
      try:
        entry = annotation_fields.get_mapping(value, field, "annotation")
        split = entry.get("split")
        seen[printable(str(split)[:80])] = None
        if splits and split not in splits:
          continue
        taken += 1
        yield _make_line(entry, field)
      except RecordError as error:
        taken += 1
        yield {joins.FAULT: [error.kind, error.field, error.message]}
    if not taken:
      wanted = f" of split {', '.join(splits)}" if splits else ""
      raise ValueError(f"{file} has no image{wanted}: the splits are {', '.join(seen) or 'none'} (--from_split)")


def _make_line(entry: dict, field: str) -> dict:
  name = annotation_fields.get_text(entry, "filename", f"{field}.filename", joins.ignore)
  folder = annotation_fields.get_text(entry, "filepath", f"{field}.filepath", joins.ignore, optional=True)
  sentences, texts, found = entry.get("sentences"), [], []
  if not isinstance(sentences, list):
    raise RecordError("sentences_wrong_type", f"{field}.sentences", f"must be a list, got {sentences!r:.80}")
  for place, sentence in enumerate(sentences):
    inner = f"{field}.sentences[{place}]"
    try:
      texts.append(
        annotation_fields.get_text(
          annotation_fields.get_mapping(sentence, inner, "annotation"), "raw", f"{inner}.raw", joins.ignore
        ).strip()
      )
    except RecordError as error:
      found.append(["annotation", error.kind, error.field, error.message])
  return {"image": posixpath.join(folder, name), **joins.captions(texts), joins.FOUND: found}


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

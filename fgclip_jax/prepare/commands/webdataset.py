"""`prepare webdataset`: web pairs as img2dataset writes them."""

import argparse

from fgclip_jax.prepare import cli

SHORT = "web pairs: img2dataset's tar or Parquet files"
TEXT = (
  """
Converts web pairs that img2dataset downloaded with --output_format webdataset (tar files) or parquet.

INPUT is one or more folders, searched with all below them, or files. The short caption is the text beside an image
(KEY.txt) or the field `caption`; --short_field names another one. Long captions, which the first stage of training
needs, are a further field of the same JSON or Parquet (--long_field), or come from files of their own
(--long_captions): JSON lines, a JSON list, CSV, each also as .gz, or Parquet, whose entries have a `url` or `key` and
the caption in the field `long` (or --long_field), or a JSON object of captions by URL or key.

A tar file that breaks off gives what lies before the break. Any path may be a URL: gs://..., s3://...
"""
  + cli.IMAGE_CHECK
)
EXAMPLE = "--input laion/00000.tar laion/00001.tar --long_captions captions/*.jsonl --by url --output data/web"


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the command's options."""
  cli.add_output(parser)
  parser.add_argument("--input", required=True, nargs="+", metavar="PATH", help="folders, or .tar or .parquet files")
  parser.add_argument("--short_field", metavar="NAME", help="the field of the short caption (default: the text's file)")
  parser.add_argument("--long_field", metavar="NAME", help="the field of the long caption")
  parser.add_argument("--long_captions", nargs="+", metavar="FILE", help="files of long captions")
  parser.add_argument(
    "--by", choices=("url", "key"), default="url", help="what these files name images by (default: %(default)s)"
  )
  cli.add_conversion(parser, name="webdataset")


def run(options: argparse.Namespace) -> None:
  """Runs the command."""
  from fgclip_jax.prepare.sources import webdataset

  files, table, long_field = webdataset.find_files(options.input), None, options.long_field
  if options.long_captions:
    state, engine = cli.tables_folder(options), cli.make_engine(options)
    table = webdataset.read_long_captions(options.long_captions, options.by, long_field or "long", state, engine)
    long_field = None
  source = webdataset.WebDataset(files, options.short_field, long_field, table, options.by)
  cli.convert(options, source)

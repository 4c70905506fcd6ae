"""`prepare finehard`: FineHARD's annotations and images."""

import argparse

from fgclip_jax.prepare import cli

SHORT = "FineHARD's annotations and images"
TEXT = (
  """
Converts FineHARD's annotations and images.

ANNOTATIONS is the folder of JSON files (the data set's `jsonfiles`), one JSON or JSON-lines file, or a .txt file that
lists such files, one a line. IMAGES holds coyo_image_0, coyo_image_1, ...: the image of an f_path
`grit-20m/data-12m/coyo_image_0/00069/000699825.jpg` (or, in older annotations, `data/down-grit-12m/coyo_image_0/...`)
is the file IMAGES/coyo_image_0/00069/000699825.jpg, or of that name in IMAGES/coyo_image_0/00069.tar or, by its `key`,
in IMAGES/coyo_image_0/00069.parquet: img2dataset's output in any of its forms.

A download numbers its images anew. With --url2key, FineHARD's folder url2key_jsons, they are found by their URLs under
the numbers that img2dataset gave them, and need not be renamed; IMAGES is then what img2dataset wrote, side files
included. Any path may be a URL: gs://..., s3://...
"""
  + cli.IMAGE_CHECK
)
EXAMPLE = "--annotations FineHARD/jsonfiles --images FineHARD/data-12m --output data/finehard"


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the command's options."""
  cli.add_output(parser)
  parser.add_argument("--annotations", required=True, metavar="PATH", help="a folder, a JSON file, or a .txt list")
  cli.add_images(parser)
  parser.add_argument("--url2key", metavar="DIR", help="FineHARD's url2key_jsons, for images not renamed since")
  cli.add_conversion(parser, name="finehard")


def run(options: argparse.Namespace) -> None:
  """Runs the command."""
  from fgclip_jax.prepare.sources import finehard, image_store

  files = finehard.find_annotations(options.annotations)
  found = image_store.find(options.images, options.url2key, cli.tables_folder(options), cli.make_engine(options))
  cli.convert(options, finehard.FineHard(files, found))

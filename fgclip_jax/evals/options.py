"""Options that several evaluators share."""

import argparse

from fgclip_jax.cli import positive
from fgclip_jax.evals.guards import check_names
from fgclip_jax.evals.templates import TEMPLATES


def add_allow(parser: argparse._ActionsContainer) -> None:
  """Adds `--allow`."""
  parser.add_argument(
    "--allow",
    type=_names,
    default=(),
    metavar="GUARD,...",
    help="switch guards off: resolution (images of another size than in training), cut_texts (texts too long for the "
    "model or its path)",
  )


def add_as_written(parser: argparse.ArgumentParser) -> None:
  """Adds `--as_written`."""
  parser.add_argument(
    "--as_written", action="store_true", help="do not lower-case texts, where the model's tokenizer lower-cases them"
  )


def add_data_dir(parser: argparse.ArgumentParser) -> None:
  """Adds `--data_dir`."""
  parser.add_argument(
    "--data_dir", metavar="DIR", help="of tfds, the folder of data sets (default: ~/tensorflow_datasets)"
  )


def add_limit(parser: argparse.ArgumentParser, things: str = "pictures") -> None:
  """Adds `--limit`."""
  parser.add_argument("--limit", type=positive, metavar="N", help=f"read only the first N {things}")


def add_mode(parser: argparse.ArgumentParser) -> None:
  """Adds `--mode`."""
  parser.add_argument(
    "--mode",
    choices=("squash", "center_crop"),
    help="how pictures are made square (default: squash for an FG-CLIP, center_crop for a plain CLIP)",
  )


def add_rerank(parser: argparse.ArgumentParser) -> None:
  """Adds `--rerank`."""
  parser.add_argument(
    "--rerank",
    type=positive,
    metavar="K",
    help="measure also with the first K answers compared anew, by text-conditioned pooling (of models that have it)",
  )


def add_templates(parser: argparse.ArgumentParser) -> None:
  """Adds `--templates`."""
  parser.add_argument(
    "--templates", choices=sorted(TEMPLATES), default="openai80", help="prompts for a class (default: %(default)s)"
  )


def _names(text: str) -> tuple[str, ...]:
  try:
    return check_names([name.strip() for name in text.split(",") if name.strip()])
  except ValueError as error:
    raise argparse.ArgumentTypeError(str(error)) from error

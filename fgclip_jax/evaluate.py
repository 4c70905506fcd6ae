"""Measures a model on a benchmark, and compares results.

python -m fgclip_jax.evaluate --model runs/stage2 --data data/scenes --output stage2.json
python -m fgclip_jax.evaluate classify imagenet --model M --images imagenet/val --output in1k.json
python -m fgclip_jax.evaluate --compare stage1.json stage2.json --published "FG-CLIP B/16"
python -m fgclip_jax.evaluate --published "FG-CLIP B/16"
"""

import argparse
import sys
import time
import warnings

import jax

from fgclip_jax.cli import FAILED, add_max_patches, positive, print_error
from fgclip_jax.evals import guards, options, registry, results
from fgclip_jax.evals.evaluator import Evaluator, Result
from fgclip_jax.evals.tasks.dataset import Records
from fgclip_jax.inference import programs
from fgclip_jax.inference.model import DTYPES, FGCLIP, load
from fgclip_jax.storage import paths
from fgclip_jax.storage.skip_report import printable
from fgclip_jax.weights import formats

compare, table = results.compare, results.table


def evaluate(
  model: FGCLIP, data: str, split: str = "validation", limit: int | None = None
) -> dict[str, dict[str, float | int | None]]:
  """All metrics of a model on a split of a record folder: `{name: {"value": share, "chance": share, "count": n}}`.

  Metrics without labels are left out. Warnings name them, records that could not be used, and texts that were cut.

  Args:
    model: the model.
    data, split: the record folder and its split.
    limit: the number of records to read, from the first; None for all.

  Raises:
    FileNotFoundError, ValueError: the split is missing, or holds no usable record.
  """
  result = Records(data, split, limit).run(model)
  for note in result.notes:
    warnings.warn(f"evaluating {data!r}: {note}", stacklevel=2)
  return results.as_json(result)


def main(argv: list[str] | None = None) -> int:
  """The command; returns its exit code."""
  args = _parse(sys.argv[1:] if argv is None else argv)
  try:
    if hasattr(args, "compare"):
      _compare(args)
    else:
      _run(args, args.make(args))
  except (OSError, ValueError) as error:
    print_error(str(error).replace("\n", " "))
    return FAILED
  return 0


def _compare(args: argparse.Namespace) -> None:
  """Prints result files side by side; without files, published numbers."""
  if args.compare:
    print(compare(args.compare, args.published))
    return
  for model in args.published:
    results.check_published(model)
    print(f"{model}\n{results.describe_published(model)}")


def _parse(argv: list[str]) -> argparse.Namespace:
  """Reads `COMMAND OPTIONS`, or the options of `records`, or `--compare FILES` and `--published MODELS` alone."""
  if argv and argv[0] in registry.EVALUATORS:
    name, argv = argv[0], argv[1:]
    module = registry.get_module(name)
    parser = _make_parser(
      f"python -m fgclip_jax.evaluate {name}",
      module.TEXT,
      f"example:\n  python -m fgclip_jax.evaluate {name} {module.EXAMPLE}",
    )
    _add_model(parser)
    registry.add_to(parser, name)
    return parser.parse_args(argv)
  given = {word.partition("=")[0] for word in argv}
  if "--compare" in given or ("--published" in given and "--model" not in given):
    parser = _make_parser("python -m fgclip_jax.evaluate", "Prints result files side by side, or published numbers.")
    parser.add_argument("--compare", metavar="FILE", nargs="+", default=[], help="result files (--output)")
    _add_published(parser)
    args, rest = parser.parse_known_args(argv)
    if rest:
      parser.error(f"--compare reads result files alone: leave out {' '.join(rest)}")
    return args
  lines = [f"  {name:14}{registry.get_module(name).SHORT}" for name in registry.EVALUATORS]
  parser = _make_parser(
    "python -m fgclip_jax.evaluate [COMMAND]",
    __doc__,
    "\n".join(["commands (each with --help; without one the options are those of `records`):", *lines])
    + "\n\n--compare FILE ... [--published MODEL] prints result files side by side; --published MODEL alone prints a"
    "\nmodel's published numbers",
  )
  _add_model(parser)
  registry.add_to(parser, "records")
  if argv and not argv[0].startswith("-"):
    parser.error(f"no command {argv[0]!r}: there are {', '.join(registry.EVALUATORS)}")
  return parser.parse_args(argv)


def _make_parser(prog: str, description: str | None, epilog: str | None = None) -> argparse.ArgumentParser:
  return argparse.ArgumentParser(
    prog=prog, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
  )


def _add_model(parser: argparse.ArgumentParser) -> None:
  group = parser.add_argument_group("model and results")
  group.add_argument("--model", required=True, metavar="DIR", help="a PyTorch-format, model or run folder")
  group.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="compute in (default: %(default)s)")
  group.add_argument("--raw_weights", action="store_true", help="take a run's last weights, not their average")
  group.add_argument("--image_size", type=positive, metavar="N", help="another size of images than the model's")
  add_max_patches(group)
  group.add_argument("--name", help="the name of the results in a comparison (default: that of the model folder)")
  group.add_argument("--output", metavar="FILE", help="write the results to this JSON file")
  group.add_argument("--examples", metavar="FILE", help="write the prediction for each question, as JSON lines")
  options.add_allow(group)
  _add_published(group)


def _add_published(parser: argparse._ActionsContainer) -> None:
  parser.add_argument(
    "--published", metavar="MODEL", action="append", default=[], help="show published numbers too, e.g. 'FG-CLIP B/16'"
  )


def _run(args: argparse.Namespace, evaluator: Evaluator) -> None:
  start = time.perf_counter()
  for row in args.published:
    results.check_published(row)
  inputs = [entry if isinstance(entry, str) else entry[0] for entry in evaluator.files()]
  results.check_outputs((args.output, args.examples), [args.model, *inputs])
  programs.use_compilation_cache()
  device = programs.all_devices() if jax.local_device_count() > 1 else None
  model = load(args.model, args.dtype, device, ema=not args.raw_weights, max_patches=args.max_patches)
  if args.image_size:
    model = model.with_image_size(args.image_size)
  guards.check_resolution(model, args.allow)
  print(f"{args.model}: {model}")
  if not args.raw_weights and formats.is_averaged(args.model):
    print("Weights averaged over the run's steps (--raw_weights: those of its last step)")
  devices = f"{jax.local_device_count()} x {jax.devices()[0].device_kind}"
  print(f"Evaluating {evaluator.name} on {devices}")
  result = evaluator.run(model, progress=True)
  seconds = time.perf_counter() - start
  name = args.name or printable(paths.base_name(args.model))
  _report(args, evaluator, result, name, seconds)
  if args.output:
    settings = {key: getattr(args, key) for key in ("model", "dtype", "raw_weights", "image_size")}
    settings["image_size"] = model.config.vision.image_size
    if model.max_patches is not None:
      settings |= {"image_size": None, "max_patches": args.max_patches or model.max_patches}
    settings |= evaluator.settings() | dict(result.settings) | {"allow": list(args.allow)}
    results.write(args.output, results.describe(model, evaluator.name, name, result, settings, seconds))
    print(f"wrote {args.output}")
    print(f"next: python -m fgclip_jax.evaluate --compare {args.output} OTHER.json")
  if isinstance(evaluator, Records):
    print(
      f"next: python -m fgclip_jax.show --model {args.model} --data {args.data} --split {args.split} --output heat.png"
    )


def _report(args: argparse.Namespace, evaluator: Evaluator, result: Result, name: str, seconds: float) -> None:
  """Prints the table and the notes, and writes the examples."""
  mine = {name: results.as_json(result)}
  beside, sources = results.published_columns(evaluator.name, evaluator.settings(), mine.values(), args.published)
  print(f"\n{table(mine | beside)}")
  print(f"Values and chance in percent. {result.records:,} records in {seconds:.0f} s.")
  for note in (*result.notes, *sources):
    print(f"note: {note}")
  if args.examples:
    print(f"wrote {args.examples} ({results.write_examples(args.examples, result):,} questions)")


if __name__ == "__main__":
  sys.exit(main())

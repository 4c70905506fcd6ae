"""The options of the command, and the job that they make."""

import argparse
import math
import os

from fgclip_jax.annotate.asking import Asking
from fgclip_jax.annotate.boxes.backend import Detector
from fgclip_jax.annotate.boxes.command import PIXELS, Command
from fgclip_jax.annotate.boxes.conventions import FRAMES, ORDERS, UNITS, Convention
from fgclip_jax.annotate.boxes.own import Own
from fgclip_jax.annotate.boxes.rescore import Rescored
from fgclip_jax.annotate.boxes.served import THOUSANDTHS, Served
from fgclip_jax.annotate.boxes.transformers import Transformers
from fgclip_jax.annotate.chain import Job
from fgclip_jax.annotate.draft import FORMS
from fgclip_jax.annotate.items import Input
from fgclip_jax.annotate.rules.lexicon import CLASSES, DEFAULT_CLASSES
from fgclip_jax.annotate.stage import Stage
from fgclip_jax.annotate.stages.boxes import Boxes
from fgclip_jax.annotate.stages.captions import Captions
from fgclip_jax.annotate.stages.check import MARGIN, Check
from fgclip_jax.annotate.stages.negatives import Negatives
from fgclip_jax.annotate.stages.phrases import Phrases
from fgclip_jax.annotate.stages.region_captions import RegionCaptions
from fgclip_jax.cli import positive
from fgclip_jax.prepare.cli import add_engine
from fgclip_jax.storage import paths
from fgclip_jax.storage.lookup_table import Table

STAGES = ("captions", "phrases", "boxes", "region_captions", "negatives")
SERVED = ("captions", "boxes", "region_captions", "negatives")  # those that model servers may answer
TEXT = """
Annotates pictures: long captions, regions with captions of their own, and hard negatives, which is what FG-CLIP's
second stage trains on.

The stages are captions, phrases (of the captions), boxes (of the phrases), region_captions and negatives. Each has a
backend. Without options nothing is asked of anyone: captions and boxes are those that are known (--known), phrases and
negatives are made by rules. What is known is kept, and only what is missing is made.

A model server is anything that speaks OpenAI's protocol (vLLM, SGLang, llama.cpp, Ollama): --endpoint and --model. The
same command, typed again, goes on where it was stopped; every answer is kept, and a changed prompt or model asks anew
for its stage alone.

OUTPUT/annotations is what `prepare pairs --captions OUTPUT/annotations/*.jsonl --images IMAGES` reads.
"""
EPILOG = """examples:
  python -m fgclip_jax.annotate --images photos --known captions.jsonl --boxes own:runs/stage2 --output annotated
  python -m fgclip_jax.annotate --images photos --captions http --negatives http --endpoint http://localhost:8000/v1
    --model Qwen/Qwen3-VL-8B-Instruct --boxes command:'python detect.py' --output annotated
"""


def make_parser() -> argparse.ArgumentParser:
  """The command's options."""
  parser = argparse.ArgumentParser(
    prog="python -m fgclip_jax.annotate",
    description=TEXT,
    epilog=EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add("--images", required=True, nargs="+", metavar="PATH", help="a folder of pictures, or img2dataset's tar files")
  add(
    "--known",
    nargs="+",
    default=[],
    metavar="FILE",
    help="what is known, in the form of `prepare pairs`; may lack all but `image`",
  )
  add("--output", required=True, metavar="DIR", help="the folder to write; may be a URL")
  add("--stages", default=",".join(STAGES), metavar="NAMES", help="the stages to run (default: %(default)s)")
  add(
    "--language",
    choices=["en", "zh"],
    help="of captions, where nothing says it (default: en)",
  )
  add("--form", choices=[*FORMS], default="pairs", help="of the annotations (default: %(default)s)")
  add("--retry", default="", metavar="CLASSES", help="tries failures of these classes again; `all` for every class")
  add("--plan", action="store_true", help="say what would be asked of model servers, and end")
  add(
    "--seconds", type=float, default=3.0, metavar="S", help="with --plan: that a request takes (default: %(default)g)"
  )
  add("--price", default="0,0", metavar="IN,OUT", help="with --plan: of a million tokens of prompts and of answers")
  add("--audit", type=positive, metavar="N", help="write a page with N negatives of OUTPUT for a person to judge")
  add("--verdicts", metavar="FILE", help="read what a person has said on that page")
  add_engine(parser)
  _add_backends(parser)
  _add_servers(parser)
  return parser


def _add_backends(parser: argparse.ArgumentParser) -> None:
  group = parser.add_argument_group("backends of the stages")
  add = group.add_argument
  add("--captions", choices=["existing", "http"], default="existing", help="(default: %(default)s)")
  add("--phrases", default="rules", metavar="rules|spacy:MODEL", help="(default: %(default)s)")
  add(
    "--boxes", default="existing", metavar="BACKEND",
    help="existing, http, own:MODEL (a model of this project), transformers:ID, or command:PROGRAM (default: "
    "%(default)s)",
  )  # fmt: skip
  add("--region_captions", choices=["phrases", "http"], default="phrases", help="(default: %(default)s)")
  add("--negatives", choices=["rules", "http"], default="rules", help="(default: %(default)s)")
  add("--rescore", default="", metavar="own:MODEL", help="boxes get the scores of a model of this project")
  add("--check", default="", metavar="own:MODEL", help="compare negatives with their regions by this model")
  add(
    "--check_margin", type=float, default=MARGIN, metavar="D",
    help="a negative scores higher if its cosine is above the positive's by more than this (default: %(default)g)",
  )  # fmt: skip
  add("--check_reject", action="store_true", help="leave out negatives that score higher; else they are counted only")
  add("--box_threshold", type=float, metavar="S", help="the least score of a box (default: by the detector)")
  add("--max_regions", type=positive, default=10, metavar="N", help="of a picture (default: %(default)s)")
  add(
    "--convention", default="", metavar="ORDER,UNIT,FRAME",
    help=f"of the boxes of a command or model server: {'|'.join(ORDERS)}, {'|'.join(UNITS)}, {'|'.join(FRAMES)} "
    f"(default: {PIXELS} of a command, {THOUSANDTHS} of a server)",
  )  # fmt: skip
  add(
    "--attributes", default="", metavar="NAMES",
    help=f"that negatives may change, of {', '.join(CLASSES)} (default: {', '.join(DEFAULT_CLASSES)})",
  )  # fmt: skip
  for stage in SERVED:
    add(f"--{stage}_prompt", default="", metavar="FILE", help=f"a prompt of your own for {stage}")


def _add_servers(parser: argparse.ArgumentParser) -> None:
  group = parser.add_argument_group("model servers")
  add = group.add_argument
  add("--endpoint", default="", metavar="URLS", help="base URLs, comma separated, such as http://localhost:8000/v1")
  add("--model", default="", metavar="NAME", help="the model's name there")
  add(
    "--in_flight",
    type=positive,
    default=16,
    metavar="N",
    help="requests at a time at each endpoint (default: %(default)s)",
  )
  add("--timeout", type=float, default=120.0, metavar="S", help="for each request, in seconds (default: %(default)g)")
  add("--api_key_file", default="", metavar="FILE", help="with the API key (default: OPENAI_API_KEY, if it is set)")
  add("--temperature", type=float, default=0.2, metavar="T", help="(default: %(default)g)")
  add(
    "--max_side",
    type=positive,
    default=1024,
    metavar="N",
    help="longest side of pictures that are sent (default: %(default)s)",
  )
  add("--requests", default="", metavar="DIR", help="write OpenAI batch files here in place of asking")
  add("--answers", nargs="+", default=[], metavar="FILE", help="take answers from the output files of such batches")


def make_input(args: argparse.Namespace) -> Input:
  """Where the items come from."""
  return Input(tuple(args.images), tuple(args.known), args.language or "")


def make_job(args: argparse.Namespace, answers: Table | None = None) -> Job:
  """The job.

  Args:
    args: the options.
    answers: those of `--answers`.

  Raises:
    ValueError: options that are unknown or do not go together; names them.
  """
  wanted = [name.strip() for name in args.stages.split(",") if name.strip()]
  if unknown := [name for name in wanted if name not in STAGES]:
    raise ValueError(f"--stages may hold {', '.join(STAGES)}, got {unknown[0]!r}")
  served = [name for name in SERVED if getattr(args, name) == "http"]
  if served and not args.model:
    raise ValueError(f"--{served[0]} http needs --model, the model's name at the server")
  if served and not (args.endpoint or args.requests or args.answers or args.plan):
    raise ValueError(f"--{served[0]} http needs --endpoint, such as http://localhost:8000/v1, or --requests")
  if args.requests and args.answers:
    raise ValueError("--requests writes what has no answer yet, --answers reads answers: give one of them")
  asking = Asking(
    model=args.model,
    endpoints=tuple(filter(None, args.endpoint.split(","))),
    in_flight=args.in_flight,
    timeout=args.timeout,
    temperature=args.temperature,
    max_side=args.max_side,
    key_file=args.api_key_file,
    requests=args.requests,
    answers=answers,
  )
  classes = tuple(name.strip() for name in args.attributes.split(",") if name.strip())
  if unknown := [name for name in classes if name not in CLASSES]:
    raise ValueError(f"--attributes may hold {', '.join(CLASSES)}, got {unknown[0]!r}")
  stages: dict[str, Stage] = {
    "captions": Captions(asking if args.captions == "http" else None, args.captions_prompt),
    "phrases": Phrases(_parser(args.phrases)),
    "boxes": Boxes(_detector(args, asking), args.box_threshold, args.max_regions),
    "region_captions": RegionCaptions(asking if args.region_captions == "http" else None, args.region_captions_prompt),
    "negatives": Negatives(asking if args.negatives == "http" else None, args.negatives_prompt, classes=classes),
  }
  if "captions" not in wanted:
    stages["captions"] = Captions()
  if "boxes" not in wanted:
    stages["boxes"] = Boxes()
  if "region_captions" not in wanted:
    stages["region_captions"] = RegionCaptions()
  order = ["captions", *(["phrases"] if "phrases" in wanted else []), "boxes", "region_captions"]
  return Job(
    output=args.output,
    first=tuple(stages[name] for name in order),
    second=(*([stages["negatives"]] if "negatives" in wanted else []), *_check(args)),
    language=args.language or "",
    form=args.form,
    retry=tuple(filter(None, args.retry.split(","))),
  )


def read_price(text: str) -> tuple[float, float]:
  """The two prices; a ValueError if they are no numbers."""
  try:
    prompts, answers = map(float, text.split(","))
  except ValueError as error:
    raise ValueError(f"--price needs two numbers, such as 0.2,0.8, got {text!r}") from error
  return prompts, answers


def _parser(text: str) -> str:
  kind, _, model = text.partition(":")
  if text == "rules" or (kind == "spacy" and model):
    return model
  raise ValueError(f"--phrases must be rules or spacy:MODEL, got {text!r}")


def _detector(args: argparse.Namespace, asking: Asking) -> Detector | None:
  found = _find_detector(args, asking)
  if not args.rescore:
    return found
  if found is None:
    raise ValueError("--rescore judges the boxes of a detector: give --boxes")
  return Rescored(found, _judge(args.rescore, "--rescore"))


def _check(args: argparse.Namespace) -> tuple[Check, ...]:
  if not args.check:
    if args.check_reject:
      raise ValueError("--check_reject needs --check own:MODEL, which compares negatives with their regions")
    return ()
  if not math.isfinite(args.check_margin):
    raise ValueError(f"--check_margin must be a number, got {args.check_margin!r}")
  return (Check(_judge(args.check, "--check"), args.check_margin, args.check_reject),)


def _judge(text: str, option: str) -> Own:
  kind, _, model = text.partition(":")
  if kind != "own" or not model:
    raise ValueError(f"{option} must be own:MODEL, got {text!r}")
  return _own(model, option)


def _own(model: str, option: str) -> Own:
  if not paths.exists(model) and os.sep in model:
    raise FileNotFoundError(f"{option} own: no model at {model!r}")
  return Own(model)


def _find_detector(args: argparse.Namespace, asking: Asking) -> Detector | None:
  kind, _, rest = args.boxes.partition(":")
  if args.boxes == "existing":
    return None
  if args.boxes == "http":
    return Served(asking, Convention.parse(args.convention) if args.convention else THOUSANDTHS, args.boxes_prompt)
  if kind not in ("own", "transformers", "command") or not rest:
    raise ValueError(
      f"--boxes must be existing, http, own:MODEL, transformers:ID or command:PROGRAM, got {args.boxes!r}"
    )
  if kind == "own":
    return _own(rest, "--boxes")
  if kind == "transformers":
    return Transformers(rest)
  return Command(rest, Convention.parse(args.convention) if args.convention else PIXELS)

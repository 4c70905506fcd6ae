"""Writes a model as graphs that run without this package: StableHLO for JAX, or ONNX.

python -m fgclip_jax.export --model runs/stage2 exported --format stablehlo
python -m fgclip_jax.export --model path/to/fg-clip-base exported --format onnx --what image,text,long_text

Each part is one file with its weights inside and takes any number of images or texts, at least one (ONNX Runtime ends
the process at a batch of 0); export.json tells what goes in, what comes out, and how pictures and texts are made ready.
ONNX needs the packages of requirements-export.txt.
"""

import argparse
import contextlib
import json
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from fgclip_jax.cli import add_max_patches, print_error, shipped_file
from fgclip_jax.data.tokenizers import files
from fgclip_jax.inference.graphs import PARTS, TEXT_PARTS, Part, make_part, sample
from fgclip_jax.inference.model import DTYPES, FGCLIP, load
from fgclip_jax.storage import atomic, paths
from fgclip_jax.storage.skip_report import printable
from fgclip_jax.weights import formats

FORMATS = ("stablehlo", "onnx")
PLATFORMS = ("cpu", "cuda", "tpu")  # that a StableHLO file runs on
TOLERANCE = {
  "float32": 1e-4,
  "bfloat16": 0.05,
  "float16": 0.01,
}  # of a file's outputs, of unit length, from the model's
DESCRIPTION = "export.json"
# image towers that ONNX cannot have: jax2onnx 0.13 fails on padded convolutions ("padding was not hashable")
NOT_IN_ONNX = {"resnet": "a ResNet's convolutions"}


def to_stablehlo(part: Part) -> bytes:
  """The part as `jax.export.deserialize` reads it, for any of `PLATFORMS`."""
  names = {size for shape, _ in part.inputs.values() for size in shape if isinstance(size, str)}
  scope = jax.export.SymbolicScope()
  sizes: dict[int | str, Any] = {name: jax.export.symbolic_shape(name, scope=scope)[0] for name in sorted(names)}
  specs = [
    jax.ShapeDtypeStruct(tuple(sizes.get(size, size) for size in shape), dtype) for shape, dtype in part.inputs.values()
  ]
  return bytes(jax.export.export(jax.jit(part.function), platforms=PLATFORMS)(*specs).serialize())


def to_onnx(part: Part) -> bytes:
  """The part as an ONNX file; made by jax2onnx.

  Raises:
    ModuleNotFoundError: jax2onnx is not installed.
  """
  import jax2onnx  # late: it takes seconds

  specs = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in part.inputs.values()]
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of what it calls in JAX and Flax
    graph = jax2onnx.to_onnx(part.function, specs, input_names=list(part.inputs), output_names=[part.output])
  return graph.SerializeToString()


def run(format: str, data: bytes, arrays: Sequence[np.ndarray]) -> np.ndarray:
  """The output of an exported part, by JAX or by ONNX Runtime on the CPU.

  Raises:
    ValueError: an empty batch for ONNX: ONNX Runtime divides by its size and ends the process.
  """
  if format == "stablehlo":
    return np.asarray(jax.export.deserialize(bytearray(data)).call(*arrays))
  if not all(len(array) for array in arrays):
    raise ValueError("ONNX Runtime ends the process at a batch of 0: give one row at least")
  import onnxruntime

  session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
  outputs = session.run(None, dict(zip((given.name for given in session.get_inputs()), arrays, strict=True)))
  return np.asarray(outputs[0])


def export(model: FGCLIP, output: str, format: str, what: Sequence[str]) -> list[str]:
  """Writes parts of a model, once the file of each has given the model's own embeddings.

  All files are made whole before the first takes its place: a failure leaves an earlier export as it was.

  Args:
    model: the model, on one device; its dtype is that of the graphs. ONNX is float32.
    output: the folder to write; files of the same names in it are replaced.
    format: one of `FORMATS`.
    what: some of `PARTS`.

  Returns:
    The paths written.

  Raises:
    ValueError: an unknown format or part, one that the model does not have, or ONNX in another dtype.
    ModuleNotFoundError: the packages for ONNX are not installed.
    ArithmeticError: a file does not give the model's embeddings; nothing is written.
    OSError: the folder cannot be written.
  """
  dtype = model.runtime.dtype.name
  if format not in FORMATS:
    raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
  if format == "onnx" and dtype != "float32":
    raise ValueError(f"ONNX is written in float32 alone, got {dtype}: leave --dtype out, or take --format stablehlo")
  if format == "onnx" and model.config.vision.type in NOT_IN_ONNX and set(what) - set(TEXT_PARTS):
    raise ValueError(
      f"jax2onnx cannot write {NOT_IN_ONNX[model.config.vision.type]}: take --format stablehlo, or --what text"
    )
  if model.config.text_pooling is not None:
    print("graphs have no text pooling: it is left out", flush=True)
  parts = {name: make_part(model, name, unroll=format == "onnx") for name in dict.fromkeys(what)}
  paths.make_folder(output)
  description = {"format": format, "model": repr(model), "dtype": dtype, "parts": {}}
  if format == "stablehlo":
    description |= {"platforms": PLATFORMS, "jax": jax.__version__}
  written = [paths.join(output, DESCRIPTION)]
  bar = tqdm.tqdm(parts.items(), "parts", unit="part")
  with contextlib.ExitStack() as stack:
    described = stack.enter_context(atomic.file(written[0]))
    for name, part in bar:
      bar.set_postfix_str(name)
      data = to_onnx(part) if format == "onnx" else to_stablehlo(part)
      arrays = sample(model, part, batch=3)
      expected, found = np.asarray(jax.jit(part.function)(*arrays)), run(format, data, arrays)
      difference = float(np.abs(found - expected).max())
      if not difference <= TOLERANCE[dtype]:
        raise ArithmeticError(
          f"part {name!r} as {format} differs from the model by {difference:.2g}: it is not written"
        )
      written.insert(-1, paths.join(output, f"{name}.{format}"))
      with open(stack.enter_context(atomic.file(written[-2])), "wb") as file:
        file.write(data)
      inputs = {key: {"shape": shape, "dtype": kind} for key, (shape, kind) in part.inputs.items()}
      shape = ["batch", *(["boxes"] if name == "regions" else []), *expected.shape[2 if name == "regions" else 1 :]]
      description["parts"][name] = {
        "file": paths.base_name(written[-2]),
        "inputs": inputs,
        "outputs": {part.output: {"shape": shape, "dtype": "float32", "length": 1}},
        "preprocessing": part.preprocessing,
        "largest_difference": difference,
      }
    if set(what) & set(TEXT_PARTS):
      files.copy(model.config.text.tokenizer, output)  # where it is read from one
    with open(described, "w", encoding="utf-8") as file:
      json.dump(description, file, indent=2)
  return written


def _check_output(model: str, output: str) -> None:
  """Raises `ValueError` where the files would be written among or over those of the model, or nowhere."""
  paths.check(output, "output", write=True)
  folder, given = paths.identity(output), paths.identity(model)
  if folder == given or (paths.is_file(given) and folder == paths.parent(given)):
    raise ValueError(f"output {output!r} holds the model that is read: name another folder")
  if paths.is_remote(output):
    return
  if os.path.exists(model):  # a folder above or below is no harm, for only files of these names are replaced
    owned = (DESCRIPTION, *(f"{part}.{format}" for part in PARTS for format in FORMATS))
    files = [each for each in formats.input_files(model) if not each.startswith(os.path.join(output, ""))]
    atomic.check_links(model, files, output, owned)
  if os.path.lexists(output) and not os.path.isdir(output):
    raise NotADirectoryError(f"output {output!r} is no folder: name one to write files in")


def main(argv: list[str] | None = None) -> int:
  """The command; returns its exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m fgclip_jax.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("output", metavar="OUTPUT", help="the folder to write")
  parser.add_argument("--model", metavar="DIR", required=True, help="a model in any format, or a run folder")
  parser.add_argument("--format", choices=FORMATS, required=True)
  parser.add_argument(
    "--what", default="image,text", metavar="PART,...", help=f"of {', '.join(PARTS)} (default: %(default)s)"
  )
  parser.add_argument("--dtype", choices=DTYPES, default="float32", help="to compute in (default: %(default)s)")
  add_max_patches(parser)
  parser.add_argument("--allow_pickle", action="store_true", help="read a pickle (.bin, .pt), without executing it")
  args = parser.parse_args(argv)
  try:
    _check_output(args.model, args.output)
    model = load(args.model, dtype=args.dtype, allow_pickle=args.allow_pickle, max_patches=args.max_patches)
    print(f"{printable(args.model)}: {model}")
    written = export(model, args.output, args.format, [name.strip() for name in args.what.split(",")])
  except ModuleNotFoundError as error:
    print_error(f"{error}: ONNX needs `pip install -r requirements-export.txt`")
    return 1
  except (OSError, ValueError, ArithmeticError) as error:
    print_error(error)
    return 1
  for path in written:
    print(f"wrote {path} ({paths.size(path) / 2**20:.1f} MiB)")
  example = shipped_file("examples", f"run_{args.format}.py")
  print(f'next: python {example} {args.output} --image photo.jpg --text "a cat" "a dog"')
  return 0


if __name__ == "__main__":
  sys.exit(main())

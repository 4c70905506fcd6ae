"""The flags of XLA that help training on a chip: one table, for the launchers and for `plan --compiler_flags`.

As a command it finds the chip of this machine, prints what it sets, and becomes the command that it is given:

  python -m fgclip_jax.plan.compiler_flags python -m fgclip_jax.main --config=configs/stage2.py ...

A variable that is set already, even to nothing, is left as it is: `LIBTPU_INIT_ARGS= bash launch/tpu_vm.sh ...` trains
without them. A flag is set where it was seen to make collectives of our compiled steps asynchronous; others are
candidates, which `plan --compiler_flags=table` compiles with. docs/scale.md says what was tried. Nothing here imports
JAX, which reads the variables when it is imported.
"""

import dataclasses
import glob
import os
import subprocess
import sys
from collections.abc import MutableMapping

from fgclip_jax import cli


@dataclasses.dataclass(frozen=True)
class Flag:
  """A flag of XLA.

  Attributes:
    name, value: as after `--`.
    chips: the generations that it is set for.
    effect: what it does.
    source: who recommends it.
    seen: what it changed in our compiled steps; empty: nobody has seen it yet, and it is not set.
  """

  name: str
  value: str
  chips: tuple[str, ...]
  effect: str
  source: str
  seen: str = ""


FLAGS = (
  Flag(
    "xla_enable_async_all_reduce", "true", ("v5e", "v6e"),
    "all-reduces may be split into a start and an end",
    "https://github.com/AI-Hypercomputer/maxtext/blob/main/benchmarks/xla_flags_library.py (CF_FOR_ALL_REDUCE)",
  ),
  Flag(
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce", "true", ("v5e", "v6e"),
    "what lies between the two is computed while the chips exchange",
    "https://openxla.org/xla/flags_guidance (v5e/Async)",
  ),
  Flag(
    "xla_gpu_enable_latency_hiding_scheduler", "true", ("hopper", "ampere"),
    "collectives start early and end late, with computations between",
    "https://docs.jax.dev/en/latest/gpu_performance_tips.html, https://docs.nvidia.com/jax-toolbox/environment-variables",
  ),
)  # fmt: skip
CHIPS = ("v4", "v5e", "v5p", "v6e", "hopper", "ampere")

_GOOGLE = "0x1ae0"
_TPUS = {
  "0x005e": "v4",
  "0x0062": "v5p",
  "0x0063": "v5e",
  "0x006f": "v6e",
}  # PCI devices, as jax.hardware_utils has them
_GPUS = {"9": "hopper", "8": "ampere"}  # by the compute capability's first number


def flags_of(chip: str, candidates: bool = False) -> dict[str, str]:
  """The flags that are set for a chip of `CHIPS`, or of a topology (`h100`), by name; with `candidates` all of them."""
  chip = {"h100": "hopper", "a100": "ampere"}.get(chip, chip)
  return {flag.name: flag.value for flag in FLAGS if chip in flag.chips and (flag.seen or candidates)}


def parse(text: str) -> dict[str, str]:
  """Flags as they stand in an environment variable, `--name=value --other=value`, by name.

  Raises:
    ValueError: something in it is none.
  """
  flags = {}
  for word in text.split():
    name, equals, value = word.partition("=")
    if not name.startswith("--xla") or not equals or not value:
      raise ValueError(f"{word!r} is no compiler flag: write --xla_NAME=VALUE")
    flags[name[2:]] = value
  return flags


def as_text(flags: dict[str, str]) -> str:
  """Flags as an environment variable holds them."""
  return " ".join(f"--{name}={value}" for name, value in flags.items())


def set_flags(chip: str | None, environment: MutableMapping[str, str]) -> str:
  """Sets the flags of a chip in an environment, unless it has some; returns a line that says what was done."""
  if chip is None:
    return "compiler flags: no TPU or GPU that has some was found, none are set"
  variable = "LIBTPU_INIT_ARGS" if chip.startswith("v") else "XLA_FLAGS"
  if variable in environment:
    return f"compiler flags for {chip}: {variable} is set already, and stays: {environment[variable] or '(empty)'}"
  flags = as_text(flags_of(chip))
  if not flags:
    return f"compiler flags for {chip}: none"
  environment[variable] = flags
  return f"compiler flags for {chip}: {variable}={flags!r}"


def find_chip(root: str = "/") -> str | None:
  """The generation of this machine's TPUs or GPUs, one of `CHIPS`; None: it has none of these."""
  for vendor in glob.glob(os.path.join(root, "sys/bus/pci/devices/*/vendor")):
    if _read(vendor) == _GOOGLE and (chip := _TPUS.get(_read(os.path.join(os.path.dirname(vendor), "device")))):
      return chip
  command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
  try:
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
  except (OSError, subprocess.SubprocessError):  # no GPU, or no driver
    return None
  return _GPUS.get(found.strip().partition(".")[0])


def _read(path: str) -> str:
  try:
    with open(path, encoding="ascii") as file:
      return file.read().strip()
  except OSError:  # a device that has gone
    return ""


def main(argv: list[str] | None = None) -> int:
  """The command; it does not return where it becomes another one."""
  command = sys.argv[1:] if argv is None else argv
  if not command:
    print(__doc__, file=sys.stderr)
    return cli.WRONG_USAGE
  print(set_flags(find_chip(), os.environ), flush=True)
  try:
    os.execvp(command[0], command)
  except OSError as error:
    cli.print_error(OSError(f"{command[0]!r} cannot be run: {error.strerror}"))
    return cli.WRONG_USAGE


if __name__ == "__main__":
  sys.exit(main())

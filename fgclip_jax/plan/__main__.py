"""Estimates memory and time of a run before anyone rents the machines: compiles its step for them, without them.

  python -m fgclip_jax.plan --config=configs/stage1.py:vit_l14_336 --topology=v5e:16x16
  python -m fgclip_jax.plan --config=configs/stage2.py --topology=h100:4x8 --search --json plan.json

Topologies: v4, v5e, v5p, v6e with the slice's shape (v5p:4x4x8), `--slices=2` for several; h100 with hosts x GPUs.
Any key of the config can be changed as in training: `--config.runtime.remat=dots`. The data set need not be there.
Prints memory, collectives and operations of the compiled step, and an estimate of its time. An estimate is no
measurement: it is what the step would take if every part ran at the chip's peak rate, which no program reaches.
"""

import dataclasses
import importlib.metadata
import json
import os
import sys
from collections.abc import Iterator

from absl import app, flags, logging

from fgclip_jax import cli
from fgclip_jax.plan import compiler_flags, hardware
from fgclip_jax.storage import atomic, paths
from fgclip_jax.train.config_flags import CONFIG, flag_value, parse_flags, wrong_usage

_TOPOLOGY = flags.DEFINE_string("topology", None, "The devices, e.g. v5e:16x16, v5p:4x4x8, h100:32x8 (hosts x GPUs).")
_SLICES = flags.DEFINE_integer("slices", 1, "How many TPU slices of this shape.")
_SEARCH = flags.DEFINE_bool("search", False, "Try meshes, rematerialisation and micro-batches; print those that fit.")
_JSON = flags.DEFINE_string("json", None, "Also write everything to this file.")
_FLAGS = flags.DEFINE_string(
  "compiler_flags",
  "",
  "Also compile with these flags, '--xla_NAME=VALUE ...', or 'table': the chip's, not yet set ones too.",
)
# what is assumed about texts: the published data's means
_LONG = flags.DEFINE_integer("long_tokens", 130, "Mean tokens of a long caption.")
_SHORT = flags.DEFINE_integer("short_tokens", 15, "Mean tokens of a short caption.")
_REGION = flags.DEFINE_integer("region_tokens", 15, "Mean tokens of a region's caption or hard negative.")
_SET = flags.DEFINE_integer("set_tokens", 30, "Mean tokens of a caption of the set (data.captions.set_size).")
_BOXES = flags.DEFINE_float("boxes_per_image", 3.3, "Mean boxes of an image.")
_HARD = flags.DEFINE_float("hard_share", 0.025, "The share of boxes with ten hard negatives.")

REMATS = ("none", "dots", "full")  # by operations, fewest first


def main(argv: list[str]) -> int:
  """The command; returns its exit code: 0 if there is a plan that fits, 1 if none does, 2 for wrong usage."""
  logging.set_verbosity(logging.WARNING)
  config = CONFIG.value
  if wrong := wrong_usage(argv, {"config": config, "topology": _TOPOLOGY.value}, str(__doc__)):
    print(wrong, file=sys.stderr)
    return cli.WRONG_USAGE
  import jax

  from fgclip_jax.plan.batch import Captions
  from fgclip_jax.train.config import read_config

  jax.config.update("jax_enable_compilation_cache", False)  # what is compiled here cannot be read back
  try:
    _check_output(_JSON.value)
    run = read_config(config, check_data=False)
    chip = (_TOPOLOGY.value or "").partition(":")[0]
    compared = compiler_flags.flags_of(chip, True) if _FLAGS.value == "table" else compiler_flags.parse(_FLAGS.value)
    if compared and _SEARCH.value:
      raise ValueError("--compiler_flags compares one plan: leave out --search")
    topology = hardware.describe(_TOPOLOGY.value or "", _SLICES.value)
    captions = Captions(_LONG.value, _SHORT.value, _REGION.value, _BOXES.value, _HARD.value, set=_SET.value)
    _print_run(run, topology, captions)
    plans = list(_search(run, topology, captions) if _SEARCH.value else _single(run, topology, captions, compared))
    if _FLAGS.value and not compared:
      print(f"the table has no compiler flags for {chip}")
    if _JSON.value:
      contents = {"versions": versions(), "captions": dataclasses.asdict(captions)}
      contents |= {"plans": [dataclasses.asdict(plan) for plan in plans]}
      with atomic.file(_JSON.value) as path, open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(contents, indent=2) + "\n")
      print(f"wrote {_JSON.value}")
  except (OSError, ValueError, ModuleNotFoundError) as error:
    cli.print_error(error)
    return cli.exit_code(error)
  return 0 if any(plan.fits for plan in plans) else 1


def _check_output(path: str | None) -> None:
  """Raises an OSError where `--json` cannot be written: before minutes of compiling."""
  if path is None:
    return
  paths.check(path, "--json", write=True)
  if paths.is_folder(path):
    raise IsADirectoryError(f"--json {path!r} is a folder; name a file")
  if not paths.is_remote(path) and not os.path.isdir(os.path.dirname(path) or "."):
    raise FileNotFoundError(f"--json {path!r}: there is no folder {os.path.dirname(path)!r}")


def _parse_flags(argv: list[str]) -> list[str]:
  # before the config file is read: it imports JAX, which reads the environment then
  hardware.prepare_environment(flag_value(argv, "topology"))
  return parse_flags(argv)


def versions() -> dict[str, str]:
  """Of the packages that a plan depends on, those that are installed."""
  found = {}
  for name in ("jax", "libtpu", "jax-cuda13-plugin"):
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def _print_run(run, topology, captions) -> None:
  from fgclip_jax.models.params import abstract_params, count
  from fgclip_jax.plan.batch import PATCH_FILL

  layout = run.layout()
  pictures = f"{run.model.vision.image_size} px"
  if layout.patches:
    pictures = f"pictures of at most {layout.patches.budgets[-1]} patches, {PATCH_FILL:.0%} of that on average"
  print(
    f"{run.values['model']}, {count(abstract_params(run.model)) / 1e6:.1f} M parameters, {pictures}; "
    f"batch {run.data.batch_size:,}, {run.steps:,} steps"
  )
  print(
    f"{topology.name}: {len(topology.devices)} x {topology.devices[0].device_kind}"
    + (f" in {topology.slices} {topology.chip.near}s" if topology.slices > 1 else "")
    + f"; {', '.join(f'{name} {version}' for name, version in versions().items())}"
  )
  regions = f", regions {captions.region}, {captions.boxes} boxes an image, {captions.hard_share:.1%} of them with ten"
  if layout.pad_id is not None:
    print(
      f"long captions of {layout.long_length or 0} tokens and others of {layout.short_length}, padding included"
      + (f"; assumed: {captions.boxes} boxes an image, {captions.hard_share:.1%} of them hard" if layout.boxes else "")
    )
  else:
    print(
      f"assumed: long captions of {captions.long} tokens, short {captions.short}"
      + (f", {layout.set_size} of each picture's set {captions.set}" if layout.set_size else "")
      + (f"{regions} hard negatives" if layout.boxes else "")
      + (f"; rows of text {captions.fill:.0%} full" if layout.packed else "; a row for each caption")
    )
  if topology.chip.near == "host" and run.runtime.attention == "auto":
    print("attention is compiled in its plain form here; on the GPUs it is cuDNN's where that can be, and holds less")
  if run.progressive:
    print(f"planned throughout for {run.model.vision.image_size} px, though the run begins smaller")


def _single(run, topology, captions, compared: dict[str, str]) -> Iterator:
  from fgclip_jax.plan.estimate import choose, estimate_step
  from fgclip_jax.train.mesh import check_batch, make_mesh, mesh_text

  mesh = make_mesh(choose(run, topology), topology.devices)
  check_batch(mesh.shape, run.data.batch_size, topology.devices, run.runtime.micro_batches)
  print(f"mesh {mesh_text(mesh.shape)}{'' if run.mesh else ' (auto)'}; compiling ...", flush=True)
  plan = estimate_step(run, topology, mesh, captions)
  print_plan(plan, topology)
  if plan.fits:
    keys = " ".join(flag for flag in sys.argv[1:] if flag.startswith(("--config.", "--config=")))
    print(f"next: python -m fgclip_jax.main {keys} --workdir=DIR   (on these machines)")
  yield plan
  if compared:
    print(f"\ncompiling with {compiler_flags.as_text(compared)} ...", flush=True)
    other = estimate_step(run, topology, mesh, captions, compared)
    print("\n".join(compare(plan, other)))
    yield other


def compare(before, after) -> list[str]:
  """Lines that say what compiler flags change in a plan."""
  if not (before.fits and after.fits):
    return [f"{name} the flags: {plan.problem or 'fits'}" for name, plan in (("without", before), ("with", after))]
  rows = [("peak memory, GiB", *(f"{plan.memory['peak'] / hardware.GIB:.3f}" for plan in (before, after)))]
  rows.append(("memory traffic, GiB", *(f"{p.estimate['memory_bytes'] / hardware.GIB:.2f}" for p in (before, after))))
  for kind in sorted({*before.collectives, *after.collectives}):
    found = [plan.collectives.get(kind, {"times": 0, "asynchronous": 0}) for plan in (before, after)]
    rows.append((f"{kind}, times", *(f"{each['times']:,}" for each in found)))
    rows.append((f"{kind}, of them asynchronous", *(f"{each['asynchronous']:,}" for each in found)))
  lines = [f"{'':<32} {'without':>12} {'with flags':>12}"]
  lines += [f"{name:<32} {one:>12} {other:>12}" for name, one, other in rows]
  if before.memory == after.memory and all(one == other for _, one, other in rows):
    lines.append("they change nothing of this: there is no reason to set them")
  return lines


def _search(run, topology, captions) -> Iterator:
  """Rematerialisation and micro-batches on the mesh that the run would take; then other meshes with the best."""
  from fgclip_jax.plan.estimate import choose, estimate_step, mesh_choices
  from fgclip_jax.train.mesh import make_mesh, mesh_text

  def attempt(trial, mesh):
    plan = estimate_step(trial, topology, mesh, captions)
    print(f"{_settings(plan)}: {_outcome(plan)}", flush=True)
    return plan

  mesh, fitting = make_mesh(choose(run, topology), topology.devices), []
  trial = run
  for trial in _trials(run, mesh):
    if fitting and trial.runtime.micro_batches > 1:
      break  # only to fit: every part is computed once more
    plan = attempt(trial, mesh)
    fitting += [(plan, trial)] if plan.fits else []
    yield plan
  trial = min(fitting, key=lambda pair: _cost(pair[0]))[1] if fitting else trial
  for sizes in mesh_choices(run, topology):
    if sizes != dict(mesh.shape):
      plan = attempt(trial, make_mesh(sizes, topology.devices))
      fitting += [(plan, trial)] if plan.fits else []
      yield plan
  if not fitting:
    print("nothing that was tried fits: more devices, or a smaller --config.data.batch_size")
    return
  print(f"\nby the estimated step ({len(fitting)} fit):")
  ranked = sorted((plan for plan, _ in fitting), key=_cost)
  for plan in ranked:
    print(f"  {_settings(plan)}: {_outcome(plan)}")
  print()
  print_plan(ranked[0], topology)
  print(
    f"next: --config.runtime.remat={ranked[0].run['remat']} "
    f"--config.runtime.micro_batches={ranked[0].run['micro_batches']} --config.mesh={mesh_text(ranked[0].mesh)}"
  )


def _cost(plan) -> tuple[float, float]:
  return plan.estimate["step_seconds_overlapped"], plan.estimate["step_seconds_in_turn"]


def _trials(run, mesh) -> Iterator:
  """The run with ever fewer activations held."""
  from fgclip_jax.train.mesh import data_shards

  images = run.data.batch_size // data_shards(mesh)
  settings = [(remat, 1) for remat in REMATS]
  settings += [(REMATS[-1], parts) for parts in (2, 4, 8, 16, 32) if images % parts == 0]
  for remat, parts in settings:
    runtime = dataclasses.replace(run.runtime, remat=remat, micro_batches=parts)
    yield dataclasses.replace(run, runtime=runtime)


def _settings(plan) -> str:
  from fgclip_jax.train.mesh import mesh_text

  return f"mesh {mesh_text(plan.mesh)} remat={plan.run['remat']} micro_batches={plan.run['micro_batches']}"


def _outcome(plan) -> str:
  if not plan.fits:
    return f"no: {plan.problem}"
  estimate, memory = plan.estimate, plan.memory
  return (
    f"{memory['peak'] / hardware.GIB:.2f} of {memory['limit'] / hardware.GIB:.2f} GiB, estimated step "
    f"{estimate['step_seconds_overlapped']:.3g} to {estimate['step_seconds_in_turn']:.3g} s"
  )


def print_plan(plan, topology: hardware.Topology) -> None:
  """Prints a plan."""
  gib, chip = hardware.GIB, topology.chip
  batch = plan.batch
  print(
    f"each data shard: {batch['images_per_shard']} images, text in {batch['rows_per_shard']} rows of "
    f"{batch['row_length']} tokens; remat {plan.run['remat']}, micro-batches {plan.run['micro_batches']}"
  )
  if not plan.fits:
    print(f"does not compile for these devices: {plan.problem}")
    print("what to change:")
    for line in plan.advice:
      print(f"  {line}")
    return
  print(f"compiles, in {plan.compile_seconds:.0f} s")
  memory = plan.memory
  print(f"\nmemory of a device, GiB: peak {memory['peak'] / gib:.2f} of {memory['limit'] / gib:.2f}")
  names = {"rest": "activations, gradients, copies"}
  for name in ("parameters", "optimizer", "batch", "rest"):
    print(f"  {names.get(name, name):<32} {memory[name] / gib:8.3f}")
  columns = ("times", "asynchronous", "GiB of arrays", "GiB sent by a device")
  print(f"\n{'collectives of a step':<24} {columns[0]:>8} {columns[1]:>13} {columns[2]:>15} {columns[3]:>22}")
  for kind, row in plan.collectives.items():
    counts = f"{row['times']:>8,} {row['asynchronous']:>13,}"
    print(f"  {kind:<22} {counts} {row['bytes'] / gib:>15.3f} {row['sent'] / gib:>22.3f}")
  checks = plan.checks
  if checks["whole_weight_all_reduces"]:
    print(f"  note: of the all-reduces, {checks['whole_weight_all_reduces'] / gib:.3f} GiB are whole block weights")
  if checks["batch_by_batch_arrays"]:
    print(f"  note: a device holds the whole batch against itself: {checks['batch_by_batch_arrays']}")
  operations, estimate = plan.operations, plan.estimate
  print(
    f"\noperations of a step, all devices: {operations['useful']:.3e} useful; {operations['executed']:.3e} in matrix "
    "products as compiled,\n  recomputation and empty slots included"
  )
  float32 = f"; full float32 takes {chip.float32_passes} times as long"
  print("\nestimate of a step, every part at the chip's peak rate (no measurement, and no program reaches these rates)")
  print(f"  matrix products {estimate['matrix_seconds']:>9.4f} s   at {chip.peak / 1e12:.0f} TFLOP/s bfloat16{float32}")
  print(
    f"  memory          {estimate['memory_seconds']:>9.4f} s   {estimate['memory_bytes'] / gib:.1f} GiB "
    f"at {chip.memory_rate / 1e9:.0f} GB/s"
  )
  print(
    f"  network         {estimate['network_seconds']:>9.4f} s   at {chip.near_rate / 1e9:.0f} GB/s within a "
    f"{chip.near}, {chip.far_rate / 1e9:.1f} GB/s a device between {chip.near}s"
  )
  for name, text in (("overlapped", "all overlapped"), ("in_turn", "one after another")):
    print(
      f"  {text:<18} {estimate[f'step_seconds_{name}']:.4g} s a step: {plan.run['steps']:,} steps take "
      f"{estimate[f'hours_{name}']:.4g} hours, {estimate[f'chip_hours_{name}']:,.0f} chip-hours"
    )
  print(f"  useful operations would be at most {estimate['useful_share_of_peak']:.0%} of the peak")


if __name__ == "__main__":
  app.run(main, flags_parser=_parse_flags)

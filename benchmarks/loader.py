"""Measures the images a second that reach training: our loader, PyTorch's, WebDataset's, and decoding alone.

  python benchmarks/loader.py --output tables.md                 # all of it: about 8 minutes
  python benchmarks/loader.py --parts rate --cores 1 --sides 256 --seconds 3

Prints tables in Markdown. Parts: `rate`, images a second on so many cores, each engine in a process of its own that
may use no others; `far`, the same from a stand-in for object storage where every request takes 20 or 50 ms; `memory`,
what is resident after 10,000, 100,000 and 1,000,000 records. Nothing else should run meanwhile. Needs Linux and the
packages of requirements-dev.txt.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import loader_data
from machine import machine

ROOT = pathlib.Path(__file__).resolve().parents[1]
PARTS = ("rate", "far", "memory")
NAMES = {"pytorch": "PyTorch DataLoader", "webdataset": "WebDataset"}
AIM_DECODE, AIM_PYTORCH = 0.9, 3.0
LATENCIES = (0.02, 0.05)
RECORDS = (10_000, 100_000, 1_000_000)
SHARD = 10_000  # records of the shard that the data set of `memory` repeats
PACKAGES = ("grain", "array_record", "pillow", "simplejpeg", "torch", "transformers", "webdataset", "numpy")


def main(argv: list[str] | None = None) -> int:
  """The command; returns its exit code."""
  options = parse(argv)
  lines = [machine(*PACKAGES)]
  with tempfile.TemporaryDirectory(dir=options.scratch or None) as scratch:
    folders = {}
    if set(options.parts) & {"rate", "far"}:
      for side in options.sides:
        folders[side] = pathlib.Path(scratch, str(side))
        say(f"making {options.count} records of {side} px")
        facts = loader_data.generate(options.real, folders[side], options.count, side)
        lines.append(describe(facts))
    if "rate" in options.parts:
      for cores in options.cores:
        for side in options.sides:
          lines += rate_table(folders[side], side, cores, options)
    if "far" in options.parts:
      lines += far_table(folders[options.sides[0]], options)
    if "memory" in options.parts:
      lines += memory_table(pathlib.Path(scratch, "tiny"), options)
  text = "\n".join(lines) + "\n"
  print(text)
  if options.output:
    pathlib.Path(options.output).write_text(text, encoding="utf-8")
    say(f"wrote {options.output}")
  return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
  """The options."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
  parser.add_argument("--cores", nargs="+", type=int, default=[1, 2], help="default: 1 2")
  parser.add_argument("--sides", nargs="+", type=int, default=[256, 512], help="longer sides of pictures, in pixels")
  parser.add_argument("--modes", nargs="+", default=["exact", "fast"], help="of decoding")
  parser.add_argument("--count", type=int, default=1024, help="records made (default: %(default)s)")
  parser.add_argument("--records", nargs="+", type=int, default=list(RECORDS), help="where memory is looked at")
  parser.add_argument("--seconds", type=float, default=5, help="measured of each engine (default: %(default)s)")
  real = ROOT.parent / "shared" / "data" / "real_mini"
  parser.add_argument("--real", type=pathlib.Path, default=real, help="jsonfiles/, images/ (default: %(default)s)")
  parser.add_argument(
    "--scratch", default="", metavar="DIR", help="where data sets are made (default: a temporary one)"
  )
  parser.add_argument("--output", default="", metavar="FILE.md", help="write the tables to this file, too")
  options = parser.parse_args(argv)
  if max(options.cores) > len(os.sched_getaffinity(0)):
    parser.error(f"--cores {max(options.cores)}: only {len(os.sched_getaffinity(0))} may be used here")
  return options


def say(text: str) -> None:
  """Prints progress, apart from the tables."""
  print(text, file=sys.stderr, flush=True)


def measure(engine: str, folder: pathlib.Path, cores: int, seconds: float = 0, **more) -> dict:
  """Runs one engine in a process of its own."""
  command = [sys.executable, str(ROOT / "benchmarks" / "loader_engines.py"), engine, str(folder)]
  command += ["--cores", str(cores), "--seconds", str(seconds)]
  for name, value in more.items():
    command += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
  found = json.loads(done.stdout.splitlines()[-1])
  say(f"  {engine} {' '.join(f'{key} {value}' for key, value in more.items())}: {found.get('rate', found)}")
  return found


def describe(facts: dict) -> str:
  """What the records are like, as a line."""
  what = "photographs and captions of real_mini" if facts["real"] else "blurred noise and random words"
  boxes = sum(count * share for count, share in loader_data.BOXES.items())
  return (
    f"{facts['records']:,} records of {what}, longer side {facts['side']} px, JPEG quality {loader_data.QUALITY}, "
    f"{facts['kilobytes']:.1f} kB each; {boxes:.1f} boxes an image, {loader_data.HARD_SHARE:.1%} of them with ten hard "
    "negatives."
  )


def rate_table(folder: pathlib.Path, side: int, cores: int, options: argparse.Namespace) -> list[str]:
  """Images a second of every engine."""
  say(f"{side} px on {cores} cores")
  best = {}
  for engine in NAMES:
    # workers that share the cores with the main process, or none
    tried = [measure(engine, folder, cores, options.seconds, workers=count) | {"at": count} for count in (0, cores)]
    best[engine] = max(tried, key=lambda found: found["rate"])
  rows = [(name, best[engine], f"{best[engine]['at']} workers", None) for engine, name in NAMES.items()]
  for mode in options.modes:
    limit = measure("decode", folder, cores, options.seconds, mode=mode)
    rows.append((f"decoding alone, {mode}", limit, f"{cores} processes", None))
    rows.append((f"ours, {mode}", measure("ours", folder, cores, options.seconds, mode=mode), "default", limit["rate"]))
  base = rows[0][1]["rate"]
  lines = [f"\n#### {side} px, {cores} core{'s' if cores > 1 else ''}\n"]
  lines.append("| engine | images/s | x PyTorch | of decoding alone | processor time an image, µs | settings |")
  lines.append("| --- | ---: | ---: | ---: | ---: | --- |")
  for name, found, settings, limit in rows:
    rate = found["rate"]
    share = f"{rate / limit:.2f}" if limit else "–"
    lines.append(f"| {name} | {rate:,.0f} | {rate / base:.2f} | {share} | {found['microseconds']:,.0f} | {settings} |")
  for name, found, _, limit in rows:
    if limit:
      rate = found["rate"]
      checks = [(rate / base, AIM_PYTORCH, "x PyTorch")]
      checks += [(rate / limit, AIM_DECODE, "of decoding alone")] if name.endswith("fast") else []
      for value, aim, what in checks:
        lines.append(f"- {name}: {value:.2f} {what} (aim: at least {aim}) – {'met' if value >= aim else 'missed'}")
  return lines


def far_table(folder: pathlib.Path, options: argparse.Namespace) -> list[str]:
  """Our loader from a storage with latency, beside a local disk."""
  cores = max(options.cores)
  say(f"object storage, {cores} cores")
  lines = [f"\n#### Object storage, {options.sides[0]} px, {cores} cores\n"]
  lines += ["| decoding | each request takes | images/s | of local |", "| --- | ---: | ---: | ---: |"]
  for mode in options.modes:
    local = None
    for latency in (0.0, *LATENCIES):
      rate = measure("ours", folder, cores, options.seconds, mode=mode, latency=latency)["rate"]
      local = local or rate
      lines.append(
        f"| {mode} | {f'{1000 * latency:.0f} ms' if latency else 'local'} | {rate:,.0f} | {rate / local:.2f} |"
      )
  return lines


def memory_table(folder: pathlib.Path, options: argparse.Namespace) -> list[str]:
  """Memory after ever more records of a data set that repeats one shard."""
  records = sorted(options.records)
  shards = -(-records[-1] // SHARD)
  say(f"making {shards} shards of {SHARD:,} records, all the same file")
  loader_data.repeat_shard(folder, SHARD, shards)
  found = measure("memory", folder, max(options.cores), mode=options.modes[-1], records=records)["resident"]
  lines = [f"\n#### Memory, {shards * SHARD:,} records in {shards} shards\n"]
  lines += ["| records seen | resident, MiB | over the first |", "| ---: | ---: | ---: |"]
  first = found[str(records[0])]
  for count in records:
    lines.append(f"| {count:,} | {found[str(count)]:,.0f} | {found[str(count)] - first:+,.0f} |")
  return lines


if __name__ == "__main__":
  sys.exit(main())

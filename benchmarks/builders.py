"""Builds data sets from trees with planted defects in several ways, and compares what comes out with what was planted.

  python benchmarks/builders.py                               # 25 minutes on two busy cores
  python benchmarks/builders.py --records 600 --memory 600    # a trial

Each run is `python -m fgclip_jax.prepare` as users type it. The first table: whether every count of the report equals
what was planted, whether the records are those that can be used, in order, and whether the shards are byte for byte
those of the first run. The second: the most memory that was held, by the largest process and by all together, for
growing numbers of records. Needs Linux, and requirements-beam.txt for the runs by Apache Beam.
"""

import argparse
import dataclasses
import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import planted
from machine import machine

from fgclip_jax.data import record
from fgclip_jax.data.shards import Records

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BEAM = ("--engine", "beam")
MANY = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
PAGE = os.sysconf("SC_PAGE_SIZE")
NEAR = ("--near_duplicates", "4")


@dataclasses.dataclass
class Result:
  """How a run went: seconds, exit code, and the most memory in bytes of its largest process and of all of them."""

  seconds: float
  code: int
  largest: int = 0
  together: int = 0


def prepare(arguments: list[str], log: str, kill_at: tuple[str, int] | None = None) -> Result:
  """Runs `prepare`; with `kill_at`, a pattern and a number, kills it once so many files match."""
  environment = os.environ | {"PYTHONPATH": ROOT, "JAX_PLATFORMS": "cpu"}
  begin = time.monotonic()
  with open(log, "ab") as file:
    process = subprocess.Popen(
      [sys.executable, "-m", "fgclip_jax.prepare", *arguments],
      stdout=file, stderr=file, env=environment, start_new_session=True,
    )  # fmt: skip
    result = Result(0.0, 0)
    while process.poll() is None:
      sizes = _resident(process.pid)
      result.largest, result.together = max(result.largest, *sizes, 0), max(result.together, sum(sizes))
      if kill_at and len(glob.glob(kill_at[0])) >= kill_at[1]:
        os.killpg(process.pid, signal.SIGKILL)  # a session of its own: this run's processes and no others
      time.sleep(0.05)
  return dataclasses.replace(result, seconds=time.monotonic() - begin, code=process.returncode)


def _resident(session: int) -> list[int]:
  """Resident bytes of each process of a session; pages that processes share count for each."""
  found = [0]
  for path in glob.glob("/proc/[0-9]*/stat"):
    try:
      with open(path) as file:
        fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
      continue  # it has ended meanwhile
    if int(fields[3]) == session:
      found.append(int(fields[21]) * PAGE)
  return found


def compare(output: str, expected: planted.Planted, dropped: bool) -> tuple[str, str]:
  """Whether the report's counts and the records are as planted: `yes`, or what differs first."""
  with open(os.path.join(output, "report-train.json"), encoding="utf-8") as file:
    report = json.load(file)
  twice = expected.duplicates
  wanted = dict(expected.findings) | (dict(twice) if dropped else {})
  found = {kind: item["count"] for kind, item in report["findings"].items()}
  kept = {kind: item["count"] for kind, item in report["duplicates"].items()}
  different = sorted(kind for kind in {*wanted, *found} if wanted.get(kind) != found.get(kind))
  counts = f"all {len(wanted) + len(kept)} classes"
  if different:
    counts = f"{different[0]}: {found.get(different[0], 0)}, planted {wanted.get(different[0], 0)}"
  elif kept != ({} if dropped else dict(twice)):
    counts = f"duplicates {kept}, planted {dict(twice)}"
  elif report["read"] != expected.records:
    counts = f"read {report['read']} of {expected.records}"
  records = Records(output, "train")
  ids = [record.decode(records[index]).id for index in range(len(records))]
  left = [name for name in expected.kept if not dropped or planted.number(name) not in expected.copies]
  return counts, "yes" if ids == left else f"{len(ids)} records, {len(left)} expected"


def _checksums(output: str) -> str:
  with open(os.path.join(output, "checksums.json"), encoding="utf-8") as file:
    return file.read()


def compare_builds(folder: str, records: int, beam: bool) -> int:
  """Prints the first table; returns how many cells say that something differs."""
  trees = {
    "FineHARD, image files": (planted.finehard(f"{folder}/files", records), _finehard(f"{folder}/files")),
    "FineHARD, tars": (planted.finehard(f"{folder}/tars", records, tars=True), _finehard(f"{folder}/tars")),
    "img2dataset, tars": (
      planted.web(f"{folder}/web", records),
      ["webdataset", "--input", f"{folder}/web", "--long_field", "long"],
    ),
  }
  ways = [("1 process", ["--workers", "1"], False), ("2 processes", ["--workers", "2"], False)]
  ways += [("2 processes, killed and continued", ["--workers", "2"], True)]
  if beam:
    ways += [("Beam in process", [*BEAM], False), ("Beam, 2 processes", [*BEAM, *MANY], False)]
    ways += [("Beam, 2 processes, killed and continued", [*BEAM, *MANY], True)]
  print(f"{records:,} records in each tree, 8 shards\n")
  print("| tree | duplicates | how | counts equal those planted | records in order | same bytes | s |")
  print("|---|---|---|---|---|---|--:|")
  wrong = 0
  for number, (name, (expected, command)) in enumerate(trees.items()):
    for duplicates in ("keep", "drop"):
      first = ""
      for way, (label, options, kill) in enumerate(ways):
        if duplicates == "drop" and way > 2:
          continue  # the same tasks by the same engine
        output = f"{folder}/out-{number}-{duplicates}-{way}"
        arguments = [*command, "--output", output, "--shards", "8", *NEAR, "--duplicates", duplicates, *options]
        result = prepare(arguments, f"{output}.log", (f"{output}/*.array_record-*-of-00008", 4) if kill else None)
        seconds = result.seconds
        if kill:
          label += f" (exit {result.code})"
          result = prepare(arguments, f"{output}.log")
          seconds += result.seconds
        if result.code:
          counts = order = same = f"exit {result.code}, see {output}.log"
        else:
          counts, order = compare(output, expected, duplicates == "drop")
          first = first or _checksums(output)
          same = "yes" if _checksums(output) == first else "no"
          shutil.rmtree(output)
        wrong += not counts.startswith("all ") or (order, same) != ("yes", "yes")
        print(f"| {name} | {duplicates} | {label} | {counts} | {order} | {same} | {seconds:.0f} |", flush=True)
  return wrong


def _finehard(folder: str) -> list[str]:
  return ["finehard", "--annotations", f"{folder}/jsonfiles", "--images", f"{folder}/images"]


def measure_memory(folder: str, sizes: list[int]) -> None:
  """Prints the second table."""
  print("\n| records | shards | records/s | largest process, MB | all processes, MB |")
  print("|--:|--:|--:|--:|--:|")
  for records in sizes:
    tree, output = f"{folder}/memory", f"{folder}/memory-out"
    planted.finehard(tree, records, tars=True)
    command = [*_finehard(tree), "--output", output, "--shards", "16", "--workers", "2", *NEAR]
    result = prepare([*command, "--duplicates", "drop"], f"{folder}/memory.log")
    if result.code:
      raise SystemExit(f"prepare ended with exit code {result.code}: see {folder}/memory.log")
    rate = records / result.seconds
    print(
      f"| {records:,} | 16 | {rate:,.0f} | {result.largest / 1e6:,.0f} | {result.together / 1e6:,.0f} |", flush=True
    )
    shutil.rmtree(tree)
    shutil.rmtree(output)


def main() -> int:
  """Runs both; returns 1 if anything differs."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--records", type=int, default=10_000, help="of each tree (default: %(default)s)")
  parser.add_argument("--memory", type=int, nargs="*", default=[1000, 10_000, 100_000], help="numbers of records")
  parser.add_argument("--no_beam", action="store_true", help="leave out the runs by Apache Beam")
  options = parser.parse_args()
  folder = tempfile.mkdtemp(prefix="builders-")
  print(machine("array_record", "pillow", "numpy", *([] if options.no_beam else ["apache-beam"])))
  wrong = compare_builds(folder, options.records, not options.no_beam) if options.records else 0
  measure_memory(folder, options.memory)
  if wrong:
    print(f"\n{wrong} rows differ; {folder} is kept")
  else:
    shutil.rmtree(folder)
  return min(wrong, 1)


if __name__ == "__main__":
  sys.exit(main())

"""The job of a conversion, and its plan: which records of which files go into which shard.

The plan depends only on the input and the arguments, never on the number of processes.
"""

import dataclasses
import functools
import itertools
import json

from fgclip_jax.data.tokenizers import DEFAULT_TOKENIZER, get_tokenizer
from fgclip_jax.prepare.checks import Checks
from fgclip_jax.prepare.image_storage import Storing
from fgclip_jax.prepare.source import Source
from fgclip_jax.storage import paths
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.workers import Engine, run_tasks, tick

VERSION = 2  # raised when the records written change, so that the shards of an older program are not continued
RECORDS_PER_SHARD = 8192
MAX_SHARDS = 1000  # unless --shards says more: a reader keeps all shards open, and 1024 open files is a usual limit
MAX_TASKS = 1000  # tasks that read the input for the plan
STRIDE = 256  # records between two noted offsets


class PrepareError(ValueError):
  """The data set cannot be prepared; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Job:
  """What to convert, and where to write it.

  Attributes:
    source: where the records come from.
    output: the folder of the data set.
    name: the data set's name.
    split: the split to write.
    shards: the number of shards; None chooses it by the number of records.
    storing: how images are checked and stored.
    checks: further checks of records.
    strict: stop at the first thing that would be left out.
    tokenizer: the name of the tokenizer that makes the token ids, see `fgclip_jax.data.tokenizers`.
    language: the code of the captions' language, of records whose source does not say; empty: English.
  """

  source: Source
  output: str
  name: str
  split: str = "train"
  shards: int | None = None
  storing: Storing = dataclasses.field(default_factory=Storing)
  checks: Checks = dataclasses.field(default_factory=Checks)
  strict: bool = False
  tokenizer: str = DEFAULT_TOKENIZER
  language: str = ""


@dataclasses.dataclass(frozen=True)
class Piece:
  """Records `index` to `index + count` of a file: they begin `skip` records after `offset`.

  Attributes:
    file: the file's path.
    file_number: its number among the files of the source.
    offset: the byte offset to read from, which the plan noted.
    skip: the records between `offset` and the first record of the piece.
    index, count: the number of the first record in the file, and how many there are.
  """

  file: str
  file_number: int
  offset: int
  skip: int
  index: int
  count: int


def get_arguments(job: Job) -> dict:
  """Returns everything that decides what is written, as JSON; the plan keeps it."""
  return {
    "version": VERSION,
    "form": job.source.form,
    **job.source.arguments(),
    "name": job.name,
    "shards": job.shards,
    "check_images": job.storing.check,
    "max_side": job.storing.max_side,
    "quality": job.storing.quality,
    **dataclasses.asdict(job.checks),
    "tokenizer": get_tokenizer(job.tokenizer).name,
    **({"record_language": job.language} if job.language else {}),
    "files": [{"path": paths.absolute(path), **paths.fingerprint(path)} for path in job.source.files],
  }


def compare_arguments(old: dict, new: dict) -> list[str]:
  """Describes the differences between the arguments of two plans, one text each."""
  changes = [
    f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
    for key in {**old, **new}
    if key != "files" and old.get(key) != new.get(key)
  ]
  before = {entry["path"]: entry for entry in old.get("files", [])}
  after = {entry["path"]: entry for entry in new["files"]}
  for word, found in (
    ("gone", [path for path in before if path not in after]),
    ("new", [path for path in after if path not in before]),
    ("changed", [path for path in after if path in before and before[path] != after[path]]),
  ):
    if found:
      more = f" and {len(found) - 1} more" if len(found) > 1 else ""
      changes.append(f"input file {found[0]}{more} is {word}")
  if not changes and old != new:
    changes.append("the input files are in another order")
  return changes


def make_plan(job: Job, state: str, workers: int | Engine) -> dict:
  """Reads all input files, and makes and saves the plan.

  Returns:
    `arguments`, and `files`: for each file its number of `records`, the `offsets` of every 256th record, and where it
    is `broken` (kind, place and reason; None for a whole file).

  Raises:
    PrepareError: there is no record; or the job is strict and a file is broken.
  """
  plan = {"arguments": get_arguments(job), "files": [None] * len(job.source.files)}
  size = sum(entry["size"] for entry in plan["arguments"]["files"])
  groups = min(len(job.source.files), MAX_TASKS)
  bounds = [len(job.source.files) * group // groups for group in range(groups + 1)] if groups else []
  function = functools.partial(_index_files, job)
  tasks = list(itertools.pairwise(bounds))
  for begin, found in run_tasks(function, tasks, workers, total=size, label="reading the input", unit="B"):
    plan["files"][begin : begin + len(found)] = found
  count = sum(found["records"] for found in plan["files"])
  if count == 0:
    broken = next((found["broken"][1:] for found in plan["files"] if found["broken"]), None)
    reason = f": {job.source.files[0]}, {broken[0]}: {broken[1]}" if broken else ""
    raise PrepareError(f"no record in {len(job.source.files)} input files{reason}")
  save_json(paths.join(state, "plan.json"), plan)
  return plan


def _index_files(job: Job, task: tuple[int, int]) -> tuple[int, list[dict]]:
  """Counts the records of files `begin` to `end`."""
  begin, end = task
  return begin, [_index_file(job, path) for path in job.source.files[begin:end]]


def _index_file(job: Job, path: str) -> dict:
  """Counts a file's records; `broken` holds kind, place and reason if the file breaks off."""
  found = {"records": 0, "offsets": [], "broken": None}
  done = 0
  try:
    for offset, _ in job.source.scan(path):
      if found["records"] % STRIDE == 0:
        found["offsets"].append(offset)
        tick(offset - done)
        done = offset
      found["records"] += 1
  except RecordError as error:
    if job.strict:
      raise PrepareError(f"--strict: {path}, record {found['records']}: {error}") from error
    found["broken"] = [error.kind, error.field, error.message]
  tick(paths.size(path) - done)
  return found


def cut_shards(job: Job, plan: dict) -> list[list[Piece]]:
  """Cuts the records of all files, one after the other, into shards of nearly equal length."""
  counts = [found["records"] for found in plan["files"]]
  total = sum(counts)
  shards = min(job.shards or min(-(-total // RECORDS_PER_SHARD), MAX_SHARDS), total)
  starts = list(itertools.accumulate(counts, initial=0))
  cuts = [total * index // shards for index in range(shards + 1)]
  pieces, first = [], 0
  for begin, end in itertools.pairwise(cuts):
    pieces.append([])
    while starts[first + 1] <= begin:
      first += 1
    for number in range(first, len(counts)):
      if starts[number] >= end:
        break
      index = max(begin - starts[number], 0)
      count = min(end - starts[number], counts[number]) - index
      if count:
        offset = plan["files"][number]["offsets"][index // STRIDE]
        pieces[-1].append(Piece(job.source.files[number], number, offset, index % STRIDE, index, count))
  return pieces


def save_json(path: str, value: dict) -> None:
  """Writes a JSON file that is complete from the moment it exists."""
  paths.write(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def load_json(path: str) -> dict | None:
  """Reads a JSON object; None where there is none, or a damaged file."""
  try:
    value = json.loads(paths.read(path))
  except (FileNotFoundError, ValueError, RecursionError):
    return None
  return value if isinstance(value, dict) else None

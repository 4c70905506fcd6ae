"""Reads a compiled program (HLO text): its collectives, memory traffic and arrays.

Counts are multiplied by the trip counts of loops, which XLA's own cost analysis counts once. HLO text is no stable
format and changes with XLA: this reads what jax 0.10 writes for TPUs (libtpu 0.0.42) and GPUs.
"""

import collections
import dataclasses
import functools
import math
import re

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(r"\b(?:calls|to_apply|condition|true_computation|false_computation)=%?([\w.\-]+)")
_CALLED_SETS = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_BODY = re.compile(r"\bcondition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r"known_trip_count\W+n\W+(\d+)")

# no traffic of their own: they name, group or wait for what others compute
_FREE = frozenset(
  "parameter constant tuple get-tuple-element bitcast while conditional call after-all partition-id replica-id iota "
  "opt-barrier".split()
)
_ASYNC = 'custom_call_target="AsyncCollective'  # TPU: the ends of a collective that is fused with others as it goes on
_SLICES = ("dynamic-slice", "slice", "gather")


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of HLO: its result's shape as text, opcode, names of operands, and the whole of its attributes."""

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  attributes: str
  root: bool


@dataclasses.dataclass(frozen=True)
class Collective:
  """A collective operation.

  Attributes:
    kind: one of `KINDS`.
    times: how often a step runs it.
    shapes: of the arrays as a whole, gathered or not yet scattered.
    size: their bytes.
    group: the devices that take part, as numbers in the mesh.
    source: the name of the operation it was made for.
    asynchronous: other operations run between its start and its end.
  """

  kind: str
  times: int
  shapes: tuple[tuple[int, ...], ...]
  size: int
  group: tuple[int, ...]
  source: str
  asynchronous: bool = False

  @property
  def sent(self) -> float:
    """Bytes that each device sends, once, by the usual algorithms around a ring."""
    if self.kind == "collective-permute":
      return float(self.size)
    rounds = 2 if self.kind == "all-reduce" else 1
    return rounds * self.size * (len(self.group) - 1) / max(len(self.group), 1)


class HloProgram:
  """A compiled program, read from its HLO text.

  Args:
    text: `compiled.as_text()`.
    devices: of the mesh.
  """

  def __init__(self, text: str, devices: int):
    self.devices = devices
    self.computations: dict[str, list[Instruction]] = {}
    entry, current = "", []
    for line in text.splitlines():
      if match := _COMPUTATION.match(line):
        current = self.computations.setdefault(match[2], [])
        entry = match[2] if match[1] else entry
      elif match := _INSTRUCTION.match(line):
        operands = tuple(re.findall(r"%([\w.\-]+)", match[5].partition(")")[0]))
        current.append(Instruction(match[2], match[3], match[4], operands, match[5], bool(match[1])))
    if not entry:
      raise ValueError("this is no HLO text: it has no ENTRY computation")
    self._times = self._count_runs(entry)
    # computations that run beside others, such as collectives on a TPU's SparseCores
    self._apart = {
      name
      for instructions in self.computations.values()
      for instruction in instructions
      if instruction.opcode == "async-start"
      for name in _CALLED.findall(instruction.attributes)
    }

  def _count_runs(self, entry: str) -> collections.Counter:
    """How often each computation runs in a step."""
    runs = collections.Counter({entry: 1})
    for name in reversed(self.computations):  # a computation stands before those that call it
      for instruction in self.computations[name]:
        called = _CALLED.findall(instruction.attributes)
        for names in _CALLED_SETS.findall(instruction.attributes):
          called += re.findall(r"[\w.\-]+", names)
        if body := _BODY.search(instruction.attributes):
          trips = _TRIPS.search(instruction.attributes)
          runs[body[2]] += runs[name] * (int(trips[1]) if trips else self._trips(body[1]))
        for other in called:
          runs[other] += runs[name]
    return runs

  def _trips(self, condition: str) -> int:
    """A loop's trip count where it is not stated: the bound in its condition; 1 if there is none."""
    bounds = [
      int(found[1])
      for instruction in self.computations.get(condition, ())
      if instruction.opcode == "constant" and (found := re.match(r"(\d+)\)", instruction.attributes))
    ]
    return max(bounds, default=1)

  def shapes(self) -> set[tuple[int, ...]]:
    """The shapes of all arrays on one device."""
    return {
      shape
      for instructions in self.computations.values()
      for instruction in instructions
      for shape, _ in _arrays(instruction.shape)
    }

  def collectives(self) -> list[Collective]:
    """Every collective; the pieces of an asynchronous one count as one."""
    found, seen = [], set()
    for computation, instructions in self.computations.items():
      for instruction in instructions:
        kind = instruction.opcode.removesuffix("-start")
        if kind not in KINDS or not self._times[computation]:
          continue
        # TPU: an operation that is fused with others as it goes on appears in each of them
        chain = re.search(r'chain_id="(\d+)"', instruction.attributes)
        if chain:
          if chain[1] in seen:
            continue
          seen.add(chain[1])
        apart = instruction.opcode.endswith("-start") or chain is not None or computation in self._apart
        found.append(dataclasses.replace(self._collective(kind, instruction, computation), asynchronous=apart))
    return found

  def _collective(self, kind: str, instruction: Instruction, computation: str) -> Collective:
    group = device_group(instruction.attributes, self.devices)
    shape = instruction.shape
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
      shape = _elements(shape)[1]  # operand, result, and what the machine keeps for itself
    arrays = _arrays(shape)
    if kind == "reduce-scatter":
      arrays = [((math.prod(dims) * len(group),), size * len(group)) for dims, size in arrays]
    if computation.startswith("all-reduce-scatter"):  # TPU: written as a fused all-reduce and slice
      kind = "reduce-scatter"
    source = re.search(r'op_name="([^"]*)"', instruction.attributes)
    return Collective(
      kind=kind,
      times=self._times[computation],
      shapes=tuple(dims for dims, _ in arrays),
      size=sum(size for _, size in arrays),
      group=group,
      source=source[1] if source else "",
    )

  def traffic(self) -> int:
    """Bytes that a step reads from and writes to a device's main memory.

    Operands and results of every operation that is not within a fusion, what lies in a TPU's on-chip memory aside; of
    operands that are only sliced, the slices; a collective's arrays once in and once out. Caches and repeated reads of
    a kernel's operands are not known here.
    """
    fused = {
      name
      for instructions in self.computations.values()
      for instruction in instructions
      if instruction.opcode not in ("while", "conditional", "call")
      for name in _CALLED.findall(instruction.attributes)
    }
    computed = sum(
      self._times[name] * sum(self._moved(instruction, name) for instruction in instructions)
      for name, instructions in self.computations.items()
      if name not in fused and self._times[name]
    )
    return computed + sum(2 * collective.times * collective.size for collective in self.collectives())

  def _moved(self, instruction: Instruction, computation: str) -> int:
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done") or opcode.removesuffix("-start") in KINDS:
      return 0
    if opcode.endswith("-start"):
      parts = _elements(instruction.shape)
      if opcode == "copy-start":
        return _off_chip(parts[0]) + _off_chip(parts[1])
      if opcode in ("slice-start", "dynamic-slice-start"):
        return _size(parts[1]) + _off_chip(parts[1])
      return 2 * _off_chip(parts[1])
    shapes = self._shapes_of(computation)
    if opcode == "fusion":
      inner = _CALLED.findall(instruction.attributes)[0]
      read = [
        min(self._read(inner, number), _off_chip(shapes.get(name, ""))) if _off_chip(shapes.get(name, "")) else 0
        for number, name in enumerate(instruction.operands)
      ]
      written = min(self._written(inner), _off_chip(instruction.shape))
      return sum(read) + written
    if opcode in _SLICES:
      return 2 * _off_chip(instruction.shape)
    if opcode == "dynamic-update-slice":
      return 2 * _off_chip(shapes.get(instruction.operands[1], ""))
    written = instruction.shape
    if opcode == "custom-call":
      written = re.sub(r"s8\[\d+\](\{[^}]*\})?", "", written)  # GPU: a workspace
    return sum(_off_chip(shapes.get(name, "")) for name in instruction.operands) + _off_chip(written)

  @functools.cache  # noqa: B019 - a program lives as long as the command
  def _shapes_of(self, computation: str) -> dict[str, str]:
    return {instruction.name: instruction.shape for instruction in self.computations[computation]}

  @functools.cache  # noqa: B019
  def _users(self, computation: str) -> dict[str, list[Instruction]]:
    users = collections.defaultdict(list)
    for instruction in self.computations[computation]:
      for name in set(instruction.operands):
        users[name].append(instruction)
    return users

  @functools.cache  # noqa: B019
  def _read(self, computation: str, number: int) -> int:
    """Bytes that a fused computation reads of its parameter: all, or the slices it takes."""
    parameter = next(
      (i for i in self.computations[computation] if i.opcode == "parameter" and i.attributes.startswith(f"{number})")),
      None,
    )
    return 0 if parameter is None else self._used(computation, parameter)

  def _used(self, computation: str, value: Instruction) -> int:
    total = 0
    for user in self._users(computation).get(value.name, ()):
      if user.opcode in _SLICES and user.operands[0] == value.name:
        total += _size(user.shape)
      elif user.opcode == "dynamic-update-slice" and user.operands[0] == value.name:
        continue  # in place
      elif user.opcode in KINDS or (user.opcode == "tuple" and user.root) or _ASYNC in user.attributes:
        continue  # counted with the collectives, or handed on as it is
      elif user.opcode == "bitcast":
        total += self._used(computation, user)
      elif user.opcode == "fusion" and (inner := _CALLED.search(user.attributes)):
        total += sum(self._read(inner[1], n) for n, name in enumerate(user.operands) if name == value.name)
      else:
        return _size(value.shape)
    return min(total, _size(value.shape))

  @functools.cache  # noqa: B019
  def _written(self, computation: str) -> int:
    """Bytes that a fused computation writes: its results, or the slices it updates of them."""
    by_name = {instruction.name: instruction for instruction in self.computations[computation]}

    def written(instruction: Instruction) -> int:
      if instruction.opcode == "tuple":
        return sum(written(by_name[name]) for name in instruction.operands)
      if instruction.opcode in (*KINDS, "parameter") or _ASYNC in instruction.attributes:
        return 0
      if instruction.opcode == "dynamic-update-slice":
        return _size(by_name[instruction.operands[1]].shape)
      if instruction.opcode == "bitcast":
        return written(by_name[instruction.operands[0]])
      if instruction.opcode == "fusion" and (inner := _CALLED.search(instruction.attributes)):
        return self._written(inner[1])
      return _size(instruction.shape)

    return sum(written(instruction) for instruction in by_name.values() if instruction.root)


def device_group(attributes: str, devices: int) -> tuple[int, ...]:
  """The first of a collective's groups of devices, in any of the ways HLO writes them; all devices if none is given."""
  if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
    return int(pairs[1]), int(pairs[2])
  if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
    return tuple(int(number) for number in listed[1].split(","))
  if tiled := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
    return tuple(_iota(tiled[2], tiled[3]).reshape(_numbers(tiled[1]))[0].tolist())
  if named := re.search(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}", attributes
  ):
    axes = [axis.partition("=") for axis in named[1].split(",")]
    sizes, names = [int(size) for _, _, size in axes], [name for name, _, _ in axes]
    ids = _iota(named[2] or str(math.prod(sizes)), named[3]).reshape(sizes)
    chosen = set(named[4].split(","))
    return tuple(ids[tuple(slice(None) if name in chosen else 0 for name in names)].ravel().tolist())
  return tuple(range(devices))


def _numbers(text: str) -> list[int]:
  return [int(number) for number in text.split(",")]


def _iota(shape: str, order: str | None) -> np.ndarray:
  ids = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
  return (ids.transpose(_numbers(order)) if order else ids).ravel()


def _arrays(shape: str) -> list[tuple[tuple[int, ...], int]]:
  """The dimensions and bytes of each array in a shape's text."""
  found = []
  for dtype, dims, _ in _ARRAY.findall(shape):
    dims = tuple(int(size) for size in dims.split(",") if size)
    found.append((dims, math.ceil(math.prod(dims) * _bits(dtype) / 8)))
  return found


def _bits(dtype: str) -> int:
  return 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])


def _size(shape: str) -> int:
  return sum(size for _, size in _arrays(shape))


def _off_chip(shape: str) -> int:
  """Bytes of the arrays in main memory: a TPU's layout names another space, such as `S(1)`."""
  arrays = zip(_arrays(shape), _ARRAY.findall(shape), strict=True)
  return sum(size for (_, size), (_, _, layout) in arrays if not re.search(r"S\([1-9]", layout))


def _elements(shape: str) -> list[str]:
  """The parts of a tuple's text."""
  parts, depth, part = [], 0, ""
  for letter in shape[1:-1]:
    depth += (letter in "([{") - (letter in ")]}")
    if letter == "," and not depth:
      parts.append(part)
      part = ""
    else:
      part += letter
  return [*parts, part]

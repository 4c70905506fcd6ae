"""The layers of docs/design.md: a module imports from its own layer or below, wherever in it the import stands."""

import ast
import graphlib
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "fgclip_jax"
LAYERS = (
  {"storage", "cli"},
  {"models", "data"},
  {"losses", "weights"},
  {"inference", "viz", "prepare"},
  {"evals"},
  {"train"},
  {"plan"},
)
# packages that never import JAX, or anything that does: worker processes of the loader must start at once
WITHOUT_JAX = ("storage", "data", "prepare")
JAX = ("jax", "flax", "optax", "orbax")


def modules() -> dict[str, pathlib.Path]:
  """Every module of the package by its dotted name."""
  found = {}
  for path in sorted(PACKAGE.rglob("*.py")):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
  return found


MODULES = modules()


def imports(name: str) -> list[tuple[str, int]]:
  """What a module imports, in functions and under TYPE_CHECKING too: names and lines."""
  found = []
  for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      found += [(alias.name, node.lineno) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f"{name}:{node.lineno}: imports are absolute"
      whole = [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
      found += [each if each[0] in MODULES else (node.module or "", node.lineno) for each in whole]
  return found


def layer(name: str) -> int:
  """The number of a module's layer; what stands at top level is above all."""
  package = (name + ".").split(".")[1]
  return next((number for number, packages in enumerate(LAYERS) if package in packages), len(LAYERS))


@pytest.mark.parametrize("name", MODULES)
def test_imports_from_its_own_layer_or_below(name):
  upward = [
    f"line {line}: {imported}"
    for imported, line in imports(name)
    if imported in MODULES and imported != "fgclip_jax" and layer(imported) > layer(name)
  ]
  assert not upward


def test_no_import_circles():
  graph = {name: {imported for imported, _ in imports(name) if imported in MODULES} for name in MODULES}
  graph["fgclip_jax"] = set()  # the public names, imported when they are first asked for
  for name, needed in graph.items():
    needed.discard(name)
  list(graphlib.TopologicalSorter(graph).static_order())  # a CycleError names the circle


def test_no_private_names_of_jax():
  assert not [
    f"{name}:{line}" for name in MODULES for imported, line in imports(name) if imported.startswith("jax._src")
  ]


@pytest.mark.parametrize(
  "name", [name for name in MODULES if name.split(".")[1:2] and name.split(".")[1] in WITHOUT_JAX]
)
def test_imports_no_jax(name):
  seen, ahead = set(), [name]
  while ahead:
    module = ahead.pop()
    seen.add(module)
    for imported, line in imports(module):
      assert imported.partition(".")[0] not in ("jax", "flax", "optax", "orbax"), (
        f"{module}:{line}, reached from {name}"
      )
      if imported in MODULES and imported not in seen and imported != "fgclip_jax":
        ahead.append(imported)

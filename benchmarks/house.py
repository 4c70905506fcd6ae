"""How the code is laid out and reads, in figures.

  python benchmarks/house.py                # a table in Markdown; the type checker takes most of the time
  python benchmarks/house.py --no_types

It needs `requirements-dev.txt`. Imports are counted as `tests/test_layers.py` reads them, those inside functions too.
A function's length is from its first line to its last, its docstring and the functions inside it included; its
complexity counts conditional expressions and comprehensions, which ruff's C901 leaves out.
"""

import argparse
import ast
import collections
import io
import json
import pathlib
import subprocess
import sys
import tokenize

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from tests.test_layers import MODULES, PACKAGE, imports, layer  # reads files, imports nothing of the package

ROOT = PACKAGE.parent
# what adds a path through a function; the functions inside it are part of it
BRANCHES = (ast.If, ast.IfExp, ast.For, ast.While, ast.ExceptHandler, ast.comprehension, ast.match_case)


def main(argv: list[str] | None = None) -> int:
  """The command; returns its exit code."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--no_types", action="store_true", help="leave the type checker out")
  options = parser.parse_args(argv)
  print("| figure | measured |\n|---|---|")
  for name, value in (layout() | trainer() | ({} if options.no_types else types()) | prose()).items():
    print(f"| {name} | {value} |", flush=True)
  return 0


def layout() -> dict[str, str]:
  """Imports between modules, and how files spread over folders."""
  needed = {name: {each for each, _ in imports(name) if each in MODULES} - {name} for name in MODULES}
  needed["fgclip_jax"] = set()  # the public names, imported when they are first asked for
  upward = sum(
    each in MODULES and each != "fgclip_jax" and layer(each) > layer(name)
    for name in MODULES
    for each, _ in imports(name)
  )
  folders = collections.Counter(path.parent for path in MODULES.values())
  largest, files = folders.most_common(1)[0]
  lines = collections.Counter()
  for path in MODULES.values():
    lines[path.relative_to(PACKAGE).parts[0]] += count_lines(path)
  package, most = lines.most_common(1)[0]
  top = [path for path in MODULES.values() if path.parent == PACKAGE and path.stem != "__init__"]
  return {
    "import circles; upward imports": f"{len(circles(needed))}; {upward}",
    "files in the largest flat folder": f"{files} ({largest.relative_to(ROOT)})",
    "modules at top level": str(len(top)),
    "biggest package's share of the lines": f"{most / lines.total():.0%} ({package}), of {lines.total()}",
  }


def circles(needed: dict[str, set[str]]) -> list[frozenset[str]]:
  """The groups of modules that import each other, directly or through others."""
  reached = {}
  for name in needed:
    seen, ahead = set(), [name]
    while ahead:
      found = needed[ahead.pop()] - seen
      seen |= found
      ahead += found
    reached[name] = seen
  groups = {
    frozenset({other for other in reached[name] if name in reached[other]}) for name in needed if name in reached[name]
  }
  return sorted(groups, key=sorted)


def count_lines(path: pathlib.Path) -> int:
  """Lines of a file."""
  return path.read_text(encoding="utf-8").count("\n")


def trainer() -> dict[str, str]:
  """The longest and the most complex function of `fgclip_jax/train`."""
  functions = {
    f"{path.stem}.{node.name}": node
    for path in sorted((PACKAGE / "train").rglob("*.py"))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.FunctionDef)
  }
  lengths = {name: (node.end_lineno or 0) - node.lineno + 1 for name, node in functions.items()}
  branches = {name: complexity(node) for name, node in functions.items()}
  longest, hardest = (max(figures, key=figures.__getitem__) for figures in (lengths, branches))
  return {
    "longest function of the trainer": f"{lengths[longest]} lines ({longest})",
    "highest cyclomatic complexity of the trainer": f"{branches[hardest]} ({hardest})",
  }


def complexity(function: ast.FunctionDef) -> int:
  """Cyclomatic complexity: one more than its branches, loops and filters."""
  nodes = list(ast.walk(function))
  filters = sum(len(node.ifs) for node in nodes if isinstance(node, ast.comprehension))
  return 1 + sum(isinstance(node, BRANCHES) for node in nodes) + filters


def types() -> dict[str, str]:
  """What pyright finds in the package."""
  command = [sys.executable, "-m", "pyright", "--outputjson", f"--pythonpath={sys.executable}", str(PACKAGE)]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  if done.returncode not in (0, 1):
    raise OSError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr or done.stdout}")
  return {"type checker (pyright, basic)": f"{json.loads(done.stdout)['summary']['errorCount']} errors"}


def prose() -> dict[str, str]:
  """The share of lines that carry a comment; those for tools (`# noqa`, `# type:`, ...) are not for readers."""
  comments = sum(
    token.type == tokenize.COMMENT and not token.string.startswith(("# noqa", "# type:", "# pyright:", "# fmt:"))
    for path in MODULES.values()
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
  )
  return {"share of lines with a comment": f"{comments / sum(map(count_lines, MODULES.values())):.1%}"}


if __name__ == "__main__":
  sys.exit(main())

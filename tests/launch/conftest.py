"""A place to run launchers in: gcloud, srun and kubectl there only write down how they were called."""

import json
import os
import pathlib
import shlex
import subprocess
import sys

import pytest

# stands for a program: writes down its arguments and its input, and ends with the next code of a list
FAKE = """#!{python}
import json, os, sys
with open({log!r}, "a") as log:
  stdin = "" if sys.stdin.isatty() else sys.stdin.read()
  print(json.dumps({{"program": {name!r}, "args": sys.argv[1:], "stdin": stdin}}), file=log)
codes = open({codes!r}).read().split() if os.path.exists({codes!r}) else []
open({codes!r}, "w").write(" ".join(codes[1:]))
sys.exit(int(codes[0]) if codes else 0)
"""


class Machine:
  """A place where a launcher runs: the programs it calls are fakes that write down how they were called.

  Attributes:
    training: flags of the training; a shell, YAML and JSON each have to quote something in them.

  Args:
    root: the repository.
    folder: an empty folder.
    fakes: names of the programs.
  """

  training = ("--config=configs/stage1.py:vit_b16", "--workdir=/mnt/it's here", '--config.data.path=a "b" & $c\\d')

  def __init__(self, root: pathlib.Path, folder: pathlib.Path, *fakes: str):
    self.root, self.folder, self.log = root, folder, folder / "calls.jsonl"
    (folder / "bin").mkdir()
    for name in fakes:
      self.fake(folder / "bin" / name)
    self.env = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "TMPDIR": str(folder)}
    self.env = {key: value for key, value in self.env.items() if not key.startswith("SLURM_")}

  def fake(self, path: pathlib.Path) -> None:
    """Puts a fake program there."""
    codes = str(self.folder / f"{path.name}.codes")
    path.write_text(FAKE.format(python=sys.executable, log=str(self.log), name=path.name, codes=codes))
    path.chmod(0o755)

  def ends_with(self, program: str, *codes: int) -> None:
    """The exit codes of the program's next calls; 0 after them."""
    (self.folder / f"{program}.codes").write_text(" ".join(map(str, codes)))

  def bash(
    self, *command: str, cwd: pathlib.Path | None = None, code: int = 0, **env: str
  ) -> subprocess.CompletedProcess[str]:
    """Runs a script, which has to end with this code."""
    ended = subprocess.run(
      ["bash", *command],
      cwd=cwd or self.root,
      env=self.env | env,
      capture_output=True,
      text=True,
      stdin=subprocess.DEVNULL,
      timeout=60,
    )
    assert ended.returncode == code, f"{command} ended with {ended.returncode}: {ended.stdout}{ended.stderr}"
    return ended

  def printed(self, *command: str, **env: str) -> list[list[str]]:
    """The commands that a script prints, as a shell would read them."""
    text = self.bash(*command, **env).stdout
    return [shlex.split(line) for line in text.splitlines() if line and not line.startswith("#")]

  def calls(self, program: str | None = None) -> list[list[str]]:
    """How programs were called, in order: name and arguments."""
    if not self.log.exists():
      return []
    calls = [json.loads(line) for line in self.log.read_text().splitlines()]
    return [[call["program"], *call["args"]] for call in calls if program in (None, call["program"])]


@pytest.fixture
def machine(root, tmp_path):
  """Makes the machine, with the named programs on it."""
  return lambda *fakes: Machine(root, tmp_path, *fakes)

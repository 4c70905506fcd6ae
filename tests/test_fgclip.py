"""The console command `fgclip`."""

import glob
import os
import subprocess
import sys
import tomllib

import pytest

from fgclip_jax import __main__ as fgclip
from fgclip_jax import __version__


@pytest.fixture
def run(monkeypatch, capsys):
  """Types the command; returns its exit code and what it printed."""

  def run(*arguments: str) -> tuple[object, str, str]:
    monkeypatch.setattr(sys, "argv", ["fgclip", *arguments])
    try:
      code = fgclip.main()
    except SystemExit as ended:
      code = ended.code
    return code, *capsys.readouterr()

  return run


def test_every_program_is_a_command(root):
  starts = {path for path in (root / "fgclip_jax").glob("*.py") if 'if __name__ == "__main__":' in path.read_text()}
  packages = {path.parent for path in (root / "fgclip_jax").glob("*/__main__.py")}
  programs = {path.stem for path in starts | packages} - {"__main__"}
  assert {module for module, _ in fgclip.COMMANDS.values()} == programs


def test_help_lists_the_commands(run):
  code, out, err = run("--help")
  assert code == 0 and not err
  for name, (_, line) in fgclip.COMMANDS.items():
    assert f"  {name:<10}{line}\n" in out


def test_version(run):
  assert run("--version") == (0, f"fgclip {__version__}\n", "")


@pytest.mark.parametrize("name", ["prepare", "convert", "evaluate"])
def test_runs_the_program(run, name):
  code, out, _ = run(name, "--help")
  assert code == 0 and out.startswith(f"usage: python -m fgclip_jax.{name}")


def test_wrong_usage(run):
  assert run() == (2, "", fgclip.HELP.format(commands=run("--help")[1].split("\n\n")[2].rstrip()))
  code, out, err = run("fly")
  assert code == 2 and not out and err.startswith("error: no command 'fly': there are prepare, train, ")
  assert run("convert", "--fly")[0] == 2


@pytest.mark.slow
def test_a_program_is_main_to_the_processes_it_starts(root, tmp_path):
  """`prepare` starts workers, which must not run the command again."""
  command = [sys.executable, "-m", "fgclip_jax", "prepare", "scenes", "--output", "scenes"]
  process = subprocess.run(
    [*command, "--train", "8", "--validation", "2", "--workers", "2"],
    cwd=tmp_path, env={"PYTHONPATH": str(root)}, capture_output=True, text=True, check=False, timeout=120,
  )  # fmt: skip
  assert process.returncode == 0, process.stderr
  assert "Wrote 10 scenes" in process.stdout and f"--config={root}/configs/quickstart.py:stage1" in process.stdout


@pytest.mark.slow
def test_an_installed_program_finds_its_configs(root, tmp_path):
  """In a wheel, configs/ and examples/ are inside the package, and commands run from any folder."""
  pytest.importorskip("setuptools", "77")
  source, site = tmp_path / "source", tmp_path / "site"
  source.mkdir()
  for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "fgclip_jax", "configs", "examples"):
    (source / name).symlink_to(root / name)
  for path in root.glob("requirements*.txt"):
    (source / path.name).symlink_to(path)
  pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
  subprocess.run([*pip, "--target", str(site), str(source)], check=True, timeout=300)
  (tmp_path / "empty").mkdir()
  code = (
    "import sys, fgclip_jax\n"
    "from fgclip_jax.cli import shipped_file\n"
    "from fgclip_jax.train import config_flags\n"
    "config_flags.parse_flags(sys.argv)\n"
    "print(fgclip_jax.__file__, config_flags.CONFIG.value.model, shipped_file('examples', 'run_onnx.py'))\n"
  )
  process = subprocess.run(
    [sys.executable, "-c", code, "--config=stage2:vit_l14_336"],
    cwd=tmp_path / "empty", env={"PYTHONPATH": str(site)}, capture_output=True, text=True, check=False, timeout=120,
  )  # fmt: skip
  package = site / "fgclip_jax"
  assert process.stdout.split() == [f"{package}/__init__.py", "vit_l14_336", f"{package}/examples/run_onnx.py"]
  installed = {
    path.relative_to(package).as_posix() for path in package.rglob("*") if path.suffix in (".json", ".typed")
  }
  expected = (root / "fgclip_jax").rglob("*")
  assert installed == {
    path.relative_to(root / "fgclip_jax").as_posix() for path in expected if path.suffix in (".json", ".typed")
  }
  assert tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"] == fgclip.fgclip_jax.__version__


@pytest.mark.parametrize(
  ("given", "taken"), [({}, "cpu"), ({"JAX_PLATFORMS": "tpu"}, "tpu"), ({"TPU_NAME": "local"}, None)], ids=str
)
def test_libtpu_is_left_out_where_there_is_no_accelerator(root, tmp_path, given, taken):
  """A stand-in for it is installed; the machine has neither a TPU nor a GPU."""
  if any(glob.glob(f"/dev/{name}") for name in ("accel*", "vfio/[0-9]*", "nvidia*", "dxg", "kfd")):
    pytest.skip("this machine has an accelerator")
  (tmp_path / "libtpu.py").touch()
  code = "import fgclip_jax, os, sys; print(os.environ.get('JAX_PLATFORMS')); assert 'jax' not in sys.modules"
  environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "TPU_", "PJRT_"))}
  environment |= {"PYTHONPATH": f"{root}:{tmp_path}", **given}
  ended = subprocess.run(
    [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=60
  )
  assert (ended.stdout, ended.stderr) == (f"{taken}\n", "")

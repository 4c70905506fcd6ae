"""The benchmark of mutations in miniature: its inputs are valid, its seeds repeat, and it sees what it looks for."""

import pathlib
import random
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "benchmarks"))

import fuzz
from fuzzing import fuzz_case, fuzz_inputs, fuzz_mutations
from fuzzing.fuzz_targets import TARGETS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # a command shows its warnings


@pytest.fixture(scope="module")
def base(tmp_path_factory, torch):
  folder = tmp_path_factory.mktemp("fuzz") / "base"
  fuzz_inputs.generate(folder)
  return folder


@pytest.fixture(scope="module")
def model():
  return fuzz.make_model()


@pytest.fixture
def run(base, model, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr("tempfile.tempdir", None)
  return lambda seed: fuzz_case.run(seed, base, tmp_path / "case", model)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_unchanged_inputs_are_read(target, run):
  outcome = run(target.name + fuzz_case.UNCHANGED)
  assert (outcome.outcomes, outcome.detail) == (["exit 0"], "")


@pytest.mark.parametrize("name", ["prepare-pairs-jsonl", "prepare-webdataset-tar", "convert-pytorch-safetensors"])
def test_mutations_repeat_and_end_well(name, run):
  for number in range(5):
    first, second = run(f"{name}:{number}"), run(f"{name}:{number}")
    assert (first.outcomes, first.change) == (second.outcomes, second.change)
    assert first.outcomes in (["exit 0"], ["error"]), first


@pytest.mark.parametrize(
  ("code", "expected"),
  [
    ("raise KeyError('a')", "uncaught"),
    ("print('error: it is broken', file=sys.stderr); return 1", "error"),
    ("print('error: a\\x1b[2Jb', file=sys.stderr); return 1", "unclear"),
    ("return 1", "unclear"),
    ("open('../escaped', 'w').close(); return 0", "outside"),
    ("while True: pass", "hang"),
  ],
)
def test_what_a_command_does_is_seen(code, expected, run, monkeypatch):
  space = {"sys": sys}
  exec(f"def main(argv):\n  {code}", space)
  monkeypatch.setattr("fgclip_jax.convert.main", space["main"])
  monkeypatch.setattr(fuzz_case, "SECONDS", 0.2)
  assert run("convert-native-model.json:0").outcomes[-1] == expected


def test_wrong_counts_are_seen(run, monkeypatch):
  monkeypatch.setattr(fuzz_case, "count_lines", lambda path: 3)
  outcome = run("prepare-pairs-csv" + fuzz_case.UNCHANGED)
  assert (outcome.outcomes, outcome.detail) == (["exit 0", "counts"], " 3 lines in, 4 read")


def test_seeds_and_the_table():
  seeds = fuzz.list_seeds(list(TARGETS), 1000, 5)
  assert seeds == fuzz.list_seeds(list(TARGETS), 1000, 5) and len(set(seeds)) == 1000
  assert {seed.rpartition(":")[0] for seed in seeds} == {target.name for target in TARGETS}
  outcomes = [fuzz_case.Outcome(seed, ["exit 0", "counts"], seconds=0.01) for seed in ("prepare-coco-json:1",) * 2]
  assert "| prepare | json | 2 | 2 | 0 | 0 | 0 | 0 | 0 | 2 | 10 |" in fuzz.format_table(outcomes)


def test_a_mutated_file_differs(tmp_path):
  changed = 0
  for number in range(50):
    (tmp_path / "a.json").write_text('{"a": [1, 2, {"b": "c"}]}')
    fuzz_mutations.mutate_content(random.Random(number), tmp_path / "a.json")
    changed += (tmp_path / "a.json").read_bytes() != b'{"a": [1, 2, {"b": "c"}]}'
  assert changed > 40

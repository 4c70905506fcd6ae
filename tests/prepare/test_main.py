"""Commands of `prepare`: every source is one, and a new source is one new file."""

import sys

from fgclip_jax.prepare import __main__ as prepare
from fgclip_jax.prepare import sources

SOURCE = """
SHORT, TEXT, EXAMPLE = "words of a song", "Counts words.", "--song a.txt"


def add_options(parser):
  parser.add_argument("--song", required=True)


def run(options):
  print("words:", len(options.song.split()))
"""


def test_commands_are_listed_in_order():
  expected = "finehard webdataset pairs coco karpathy visual_genome flickr30k yolo tfds scenes inspect verify benchmark"
  assert list(prepare.find_commands()) == expected.split()


def test_a_new_source_is_one_new_file(tmp_path, monkeypatch, capsys):
  (tmp_path / "songs.py").write_text(SOURCE)
  (tmp_path / "rhymes.py").write_text("SHORT = 'a part of a source, and no command'\n")
  monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path)])
  try:
    names = list(prepare.find_commands())
    assert names[names.index("scenes") + 1] == "songs" and "rhymes" not in names
    assert prepare.main(["songs", "--song", "la la la"]) == 0
    assert capsys.readouterr().out == "words: 3\n"
  finally:
    for name in ("songs", "rhymes"):
      sys.modules.pop(f"{sources.__name__}.{name}", None)
      sources.__dict__.pop(name, None)

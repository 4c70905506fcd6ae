"""Items from folders, tar files and files of captions."""

import io
import json
import tarfile

import pytest
from PIL import Image

from fgclip_jax.annotate import items
from fgclip_jax.annotate.items import Input, Item
from fgclip_jax.storage import paths
from tests.helpers import standin


def png(colour: str = "red") -> bytes:
  file = io.BytesIO()
  Image.new("RGB", (8, 8), colour).save(file, "PNG")
  return file.getvalue()


def scan(*images, known=(), language="") -> tuple[list[Item], list[str]]:
  reported: list[str] = []
  found = list(
    Input(tuple(map(str, images)), tuple(map(str, known)), language).scan(lambda _, error: reported.append(error.kind))
  )
  return found, reported


@pytest.fixture
def photos(tmp_path):
  folder = tmp_path / "photos"
  (folder / "sub").mkdir(parents=True)
  for name in ("b.png", "a.jpg", "sub/c.webp"):
    (folder / name).write_bytes(png())
  (folder / "notes.txt").write_text("no picture")
  return folder


def test_a_folder(photos):
  found, reported = scan(photos)
  assert [item.id for item in found] == ["a.jpg", "b.png", "sub/c.webp"] and reported == []
  assert found[2].read() == png() and all(item.known == {} for item in found)


def test_tars_with_text_beside_pictures(tmp_path):
  with tarfile.open(tmp_path / "00000.tar", "w") as tar:
    for name, data in (("0.png", png("blue")), ("0.txt", b" a dog "), ("1.txt", b"no picture"), ("2.png", png())):
      member = tarfile.TarInfo(name)
      member.size = len(data)
      tar.addfile(member, io.BytesIO(data))
  found, reported = scan(tmp_path / "0000*.tar")
  assert [(item.id, item.known) for item in found] == [("00000/0.png", {"short": "a dog"}), ("00000/2.png", {})]
  assert found[0].read() == png("blue") and reported == ["image_missing"]


def test_what_is_known_and_what_of_it_is_wrong(photos, tmp_path):
  known = tmp_path / "known.jsonl"
  lines = [
    {"image": "a.jpg"},
    {"image": "b.png", "caption": ["a dog", "another"], "long": "A long one.", "language": "en", "mood": "good",
     "regions": [
       {"box": [0, 0, 1, 0.5]}, {"box": [3]}, {"box": [0, 0, 1, 1], "short": "x", "negatives": ["y", 3, ""]},
     ]},
    {"image": "../outside.png", "short": "x"},
    {"short": "no image"},
    3,
  ]  # fmt: skip
  known.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{broken\n")
  found, reported = scan(photos, known=[known])
  assert [item.id for item in found] == ["a.jpg", "b.png"]
  regions = [{"box": [0.0, 0.0, 1.0, 0.5]}, {"box": [0.0, 0.0, 1.0, 1.0], "short": "x", "negatives": ["y"]}]
  captions = [(each["text"], each["kind"]) for each in found[1].known.pop("captions")]
  assert captions == [("a dog", "short"), ("another", "short"), ("A long one.", "long")]
  assert found[1].known == {"short": "a dog", "long": "A long one.", "language": "en", "regions": regions}
  of_negatives = ["negative_wrong_type", "negative_empty", "negatives_under_10"]
  assert reported[:6] == ["box_not_four_numbers", *of_negatives, "field_unknown", "path_outside"]
  assert len(reported) == 9


def test_inputs_that_are_not_there(photos, tmp_path):
  for images, known, message in (
    ([tmp_path / "nowhere"], [], "neither a folder nor a tar file"),
    ([tmp_path / "nowhere.tar"], [], "no tar file"),
    ([tmp_path / "nowhere*"], [], "nothing matches"),
    ([photos], [tmp_path / "nowhere.jsonl"], "no captions file"),
    ([photos], [photos / "notes.txt"], "must end in one of"),
    ([photos, photos], [photos / "x.jsonl"], "one folder"),
  ):
    with pytest.raises((FileNotFoundError, ValueError), match=message):
      scan(*images, known=known)


@pytest.mark.parametrize("place", ["local", "remote"])
def test_parts_keep_their_items_when_others_come(place, tmp_path):
  folder = str(tmp_path / "items") if place == "local" else paths.join(standin.remote(tmp_path), "items")
  reported: list[str] = []
  made = [Item(f"{number}.png", "photos") for number in range(40)]

  def write(found, parts=None):
    return items.write_parts(folder, found, lambda _, error: reported.append(str(error)), parts)

  assert write(made) == [40]
  counts = write(reversed(made), parts=4)
  before = [items.read_part(folder, number) for number in range(4)]
  assert sum(counts) == 40 and counts == list(map(len, before)) and max(counts) < 20
  assert all(part == sorted(part, key=lambda item: item.id) for part in before)
  write([*made[1:], Item("new.png", "photos", known={"short": "a dog"}), made[3], made[3]], parts=4)
  after = [items.read_part(folder, number) for number in range(4)]
  assert [[item for item in part if item.id != "new.png"] for part in after] == [
    [item for item in part if item != made[0]] for part in before
  ]
  assert len(reported) == 2 and all("comes twice" in each for each in reported)
  assert items.read_part(folder, 9) == []

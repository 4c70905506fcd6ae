"""Pictures in order, with those that cannot be used counted; class texts from templates; guards."""

import numpy as np
import pytest
from PIL import Image

from fgclip_jax.data import image as images
from fgclip_jax.evals import guards, templates
from fgclip_jax.evals.datasets.images import Faults, encode_pictures, read_batches, read_pictures


@pytest.fixture
def files(tmp_path, draw):
  """Nine sources, three of which cannot be used."""
  made = [draw(tmp_path / f"{seed}.png", seed) for seed in range(6)]
  (tmp_path / "broken.png").write_bytes(b"no picture")
  array = np.asarray(Image.open(made[4]))
  lazy = lambda: Image.open(made[5])  # noqa: E731
  return [made[0], str(tmp_path / "none.png"), *made[1:3], str(tmp_path / "broken.png"), str(tmp_path), array, lazy]


def test_pictures_come_in_order_and_faults_are_named(files):
  faults = Faults()
  found = list(read_pictures(files, 24, "squash", faults))
  assert [number for number, _ in found] == [0, 2, 3, 6, 7]
  for number, pixels in found:
    picture = files[number]() if callable(files[number]) else files[number]
    np.testing.assert_array_equal(pixels, images.to_levels(picture, 24))
  assert faults.skipped == {"image_missing": 2, "image_unreadable": 1}
  (note,) = faults.notes(8)
  assert note.startswith("3 of 8 images could not be used") and f"first: {files[1]}" in note and files[4] in note
  assert Faults().notes(8) == []


def test_a_file_that_may_not_be_read_is_a_fault_and_a_broken_disk_an_error(monkeypatch):
  def fail(path):
    raise PermissionError(path) if path == "closed" else OSError(5, "input/output error")

  monkeypatch.setattr("fgclip_jax.evals.datasets.images.paths.read", fail)
  faults = Faults()
  assert list(read_pictures(["closed"], 8, "squash", faults)) == [] and faults.skipped == {"image_not_permitted": 1}
  with pytest.raises(OSError, match="input/output"):
    list(read_pictures(["x"], 8, "squash", faults))


def test_normalised_pixels_are_refused():
  with pytest.raises(ValueError, match="must be uint8"):
    list(read_pictures([np.zeros((8, 8, 3), np.float32)], 8, "squash", Faults()))


def test_the_last_batch_is_filled_up(model, files, monkeypatch):
  monkeypatch.setattr("fgclip_jax.inference.programs.CHUNKS", (1, 2))
  batches = list(read_batches(model, files, Faults()))
  assert [batch.numbers.tolist() for batch in batches] == [[0, 2], [3, 6], [7]]
  assert all(len(batch.pixels) == 2 for batch in batches)
  np.testing.assert_array_equal(batches[2].pixels[1], batches[2].pixels[0])
  (single,) = read_batches(model, files[:1], Faults())
  assert len(single.pixels) == 1


def test_embeddings_do_not_depend_on_batches_or_devices(model, spread_model, files, monkeypatch):
  whole, numbers = encode_pictures(model, files, Faults())
  assert numbers.tolist() == [0, 2, 3, 6, 7]
  np.testing.assert_allclose(whole[0], model.encode_image(files[0])[0], atol=1e-6)
  for other, chunks in ((model, (1, 2)), (spread_model, (1, 4))):
    monkeypatch.setattr("fgclip_jax.inference.programs.CHUNKS", chunks)
    found, again = encode_pictures(other, files, Faults())
    np.testing.assert_allclose(found, whole, atol=1e-6)
    np.testing.assert_array_equal(again, numbers)
  none, numbers = encode_pictures(model, files[1:2], Faults())
  assert none.shape == (0, 16) and numbers.shape == (0,)


def test_a_class_is_the_mean_of_its_prompts(model, monkeypatch):
  names, prompts = ["tench", "great white shark", "tench"], ("a photo of a {}.", "the {}.", "{}")
  expected = []
  for name in names:
    rows = np.stack([model.encode_text(prompt.format(name))[0] for prompt in prompts])
    expected.append(rows.mean(0) / np.linalg.norm(rows.mean(0)))
  np.testing.assert_allclose(templates.class_embeddings(model, names, prompts), expected, atol=1e-6)
  monkeypatch.setattr(templates, "_TEXTS", 3)  # a class at a time
  found = templates.class_embeddings(model, names, prompts)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  np.testing.assert_array_equal(found[0], found[2])


def test_templates_are_clips():
  assert len(set(templates.OPENAI_80)) == 80 and len(set(templates.OPENAI_7)) == 7
  assert set(templates.OPENAI_7) <= set(templates.OPENAI_80)
  assert all(template.count("{}") == 1 for each in templates.TEMPLATES.values() for template in each)


@pytest.mark.parametrize(
  "names, prompts, message",
  [
    ([], ("{}",), "at least one class"),
    (["a"], (), "at least one class"),
    (["a", " "], ("{}",), "class 1 is empty"),
    (["a"], ("a photo",), "needs one {}"),
    (["very " * 90], ("{}",), "longer than the 77 tokens"),
  ],
)
def test_what_is_no_class_is_refused(model, names, prompts, message):
  with pytest.raises(ValueError, match=message):
    templates.class_embeddings(model, names, prompts)


def test_another_resolution_is_refused_unless_asked_for(model):
  assert guards.check_resolution(model) == []
  other = model.with_image_size(64).with_image_size(48)
  with pytest.raises(ValueError, match="48 x 48, and the model was trained on 32 x 32: .* --allow resolution"):
    guards.check_resolution(other, ("cut_texts",))
  assert guards.check_resolution(other, ("resolution",)) == ["images are 48 x 48, and the model was trained on 32 x 32"]
  assert guards.check_resolution(other.with_image_size(32)) == []
  with pytest.raises(ValueError, match="allow takes resolution, cut_texts, got 'all'"):
    guards.check_names(["all"])


def test_long_texts_are_refused_unless_asked_for(model, plain_model):
  long, short = "many words " * 60, "few words"
  found, notes = guards.encode_texts(model, [short, long, short], "long")
  assert notes == []
  np.testing.assert_array_equal(found[0], found[2])
  np.testing.assert_allclose(found, model.encode_text([short, long, short], "long"), atol=1e-6)
  for other, kind in ((model, "short"), (plain_model, "long"), (plain_model, "short")):
    with pytest.raises(ValueError, match="1 of 2 texts are longer than the 77 tokens.*--allow cut_texts"):
      guards.encode_texts(other, [short, long, short], kind)
    found, (note,) = guards.encode_texts(other, [short, long], kind, ("cut_texts",))
    assert "tokens were cut" in note and found.shape == (2, 16)
  found, notes = guards.encode_texts(plain_model, [short], "long")
  assert notes == []

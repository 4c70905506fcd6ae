"""Budgets of patches, the sizes that follow from them, and the patches: the published ones, exactly."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fgclip_jax.data.decode import decode_patches
from fgclip_jax.data.image import ImageError
from fgclip_jax.data.patches import BUDGETS, PatchLayout, cut_patches, dynamic_budget, fit_grid, parse_budget
from fgclip_jax.models.pixel_spec import PixelSpec

PIXELS = PixelSpec(mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")


def png(pixels: np.ndarray) -> bytes:
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "png")
  return file.getvalue()


def noise(height: int, width: int) -> np.ndarray:
  return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def recorded(shared):
  folder = shared / "oracle_fgclip2" / "common"
  if not folder.is_dir():
    pytest.skip(f"no recordings at {folder}")
  return {name: np.load(folder / f"{name}.npz") for name in ("patch_budget", "preprocess")}


def test_sizes_and_budgets_are_the_recorded_ones(recorded):
  table = recorded["patch_budget"]
  names = ["height", "width", "patch", "max_num_patches", "target_height", "target_width", "dynamic_bucket"]
  assert table["columns"].tolist() == names
  for height, width, patch, budget, target_height, target_width, bucket in table["table"].tolist():
    rows, columns = fit_grid(width, height, budget, patch)
    assert (rows * patch, columns * patch) == (target_height, target_width)
    assert dynamic_budget(width, height, patch) == bucket


@pytest.mark.parametrize("mode, tolerance", [("exact", 0), ("fast", 2)])
def test_patches_are_the_recorded_ones(recorded, shared, mode, tolerance):
  record, pictures = recorded["preprocess"], shared / "data" / "pictures"
  cat, cups = (pictures / "cat_dfclor.jpg").read_bytes(), (pictures / "df_cups.png").read_bytes()
  made = [png(record[f"made{number}_image"]) for number in range(3)]

  def squashed(data: bytes) -> bytes:  # by the caller, before the processor
    return png(np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((200, 300))))

  cases = [("cat_dynamic", 0, cat, None), ("cat_256", 0, cat, 256), ("cat_128", 0, squashed(cat), 128)]
  cases += [("cups_dynamic", 0, cups, None), ("cups_256", 0, cups, 256), ("cups_128", 0, squashed(cups), 128)]
  sizes = [record[f"made{number}_image"].shape[1::-1] for number in range(3)]
  budgets = PatchLayout("dynamic").choose_budgets(sizes)  # of a batch
  cases += [("made0_alone_dynamic", 0, made[0], None)]
  cases += [("made_batch_dynamic", place, made[place], budgets[place]) for place in range(3)]
  for name, place, data, budget in cases:
    patches, grid, seen = decode_patches(data, PatchLayout("dynamic"), mode, budget, pixels=PIXELS)
    assert (list(grid), seen) == (record[f"{name}_shape"][place].tolist(), (0, 0, 1, 1))
    expected = record[f"{name}_patches_uint8"][place]
    assert (len(expected) if budget is None else budget) == len(expected)
    assert len(patches) == grid[0] * grid[1] == record[f"{name}_mask"][place].sum()
    assert np.abs(patches.astype(int) - expected[: len(patches)]).max() <= tolerance, name


def test_a_patch_holds_rows_columns_and_channels_in_this_order():
  image = noise(4, 6)
  patches = cut_patches(image, 2)
  assert patches.shape == (6, 12)
  np.testing.assert_array_equal(patches[4], image[2:4, 2:4].reshape(-1))


@given(st.integers(1, 6000), st.integers(1, 6000), st.sampled_from([1, 2, 36, 256, 1024, 16384]))
def test_a_budget_is_kept_and_nearly_used(width, height, budget):
  rows, columns = fit_grid(width, height, budget)
  assert 1 <= rows * columns <= budget
  if max(width, height) * 100 // 16 > budget and max(width, height) < 3 * min(width, height) and budget >= 256:
    assert rows * columns > 0.8 * budget  # neither limit of the search is met


def test_sizes_at_the_limits_of_the_search():
  assert fit_grid(1, 1, 48) == (6, 6) and fit_grid(1, 1, 1024) == (7, 7)  # scaled up a hundredfold at most
  assert fit_grid(5000, 1, 1) == fit_grid(1, 5000, 1) == fit_grid(640, 480, 1) == (1, 1)
  assert fit_grid(5000, 2, 128) == (1, 128) and fit_grid(2, 5000, 128) == (128, 1)
  assert fit_grid(2048, 2048, 16384) == (128, 128)
  assert [dynamic_budget(*size) for size in ((15, 9999), (256, 128), (256, 144), (640, 480))] == [128, 128, 256, 1024]


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_a_picture_one_pixel_wide_is_refused_and_one_of_two_becomes_a_line_of_patches(mode):
  with pytest.raises(ImageError, match="has 1 x 5000 pixels; each side needs 2"):
    decode_patches(png(noise(5000, 1)), PatchLayout(1), mode, pixels=PIXELS)
  for budget, grid in ((1, (1, 1)), (128, (128, 1))):
    patches, found, _ = decode_patches(png(noise(5000, 2)), PatchLayout(budget), mode, pixels=PIXELS)
    assert found == grid and patches.shape == (grid[0], 768)


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_small_pictures_are_squashed_first_on_request(mode):
  image = noise(100, 300)
  layout = PatchLayout("dynamic_each", small_size=512)
  patches, grid, seen = decode_patches(png(image), layout, mode, pixels=PIXELS)
  assert grid == (32, 32) and seen == (0, 0, 1, 1)  # 512 px ask for the largest budget
  square = Image.fromarray(image).resize((512, 512))
  np.testing.assert_array_equal(patches, cut_patches(np.asarray(square), 16))
  assert decode_patches(png(image), PatchLayout("dynamic_each"), mode, pixels=PIXELS)[1] == fit_grid(300, 100, 128)
  assert not layout.is_small(128, 300) and layout.is_small(300, 127)


def test_a_part_of_a_picture_takes_the_budget_of_the_whole():
  image = noise(320, 480)
  patches, grid, seen = decode_patches(
    png(image), PatchLayout("dynamic_each"), "exact", choose=lambda *_: (240, 0, 480, 240), pixels=PIXELS
  )
  assert grid == fit_grid(240, 240, 784) == (28, 28) and seen == (0.5, 0, 1, 0.75)
  alone, *_ = decode_patches(png(image[:240, 240:]), PatchLayout(784), "exact", pixels=PIXELS)
  np.testing.assert_array_equal(patches, alone)


def test_budgets_of_groups():
  sizes = [(100, 100), (640, 480), None, (300, 300)]
  assert PatchLayout("dynamic").choose_budgets(sizes) == [1024] * 4
  assert PatchLayout("dynamic_each").choose_budgets(sizes) == [128, 1024, 128, 576]
  assert PatchLayout(300).choose_budgets(sizes) == [300] * 4
  assert PatchLayout("dynamic").budgets == BUDGETS and PatchLayout(300).budgets == (300,)


def test_a_budget_may_be_written_as_text_and_else_is_refused():
  assert [parse_budget(value) for value in ("256", 1, "dynamic", "dynamic_each")] == [256, 1, "dynamic", "dynamic_each"]
  for value in (0, "0", -1, 2.5, True, "many", "", 1 << 20, "2.5", None):
    with pytest.raises(ValueError, match="patch_budget must be a number of patches in 1..65,536 or one of"):
      parse_budget(value)
  with pytest.raises(ValueError, match="rows of 512 patches cannot hold a picture of 1024: set data.patch_row_length"):
    PatchLayout("dynamic", row_length=512)

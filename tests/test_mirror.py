"""Tests are where the code is: `fgclip_jax/a/b.py` is tested in `tests/a/test_b.py`, or where it says here."""

import pathlib

import pytest

TESTS = pathlib.Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "fgclip_jax"
# modules that are tested through others: {module: the test file}, without `fgclip_jax/`, `tests/`, `test_` and `.py`
ELSEWHERE = {
  "__main__": "fgclip",
  "annotate/__main__": "annotate/chain",
  "annotate/boxes/backend": "annotate/boxes/command",
  "annotate/draft": "annotate/audit",
  "annotate/options": "annotate/chain",
  "annotate/plan": "annotate/asking",
  "annotate/report": "annotate/chain",
  "annotate/rules/chinese": "annotate/rules/lexicon",
  "annotate/rules/chinese_attributes": "annotate/rules/phrases",
  "annotate/rules/chinese_chunks": "annotate/rules/phrases",
  "annotate/rules/chunks": "annotate/rules/phrases",
  "annotate/rules/english": "annotate/rules/lexicon",
  "annotate/rules/english_chunks": "annotate/rules/phrases",
  "annotate/rules/english_words": "annotate/rules/phrases",
  "annotate/rules/tokens": "annotate/rules/english_attributes",
  "annotate/servers/prompts_en": "annotate/servers/prompts",
  "annotate/servers/prompts_zh": "annotate/servers/prompts",
  "annotate/stage": "annotate/chain",
  "annotate/stages/boxes": "annotate/chain",
  "annotate/stages/captions": "annotate/asking",
  "annotate/stages/negatives": "annotate/asking",
  "annotate/stages/phrases": "annotate/chain",
  "annotate/stages/region_captions": "annotate/asking",
  "annotate/stages/served": "annotate/asking",
  "data/annotation_fields": "prepare/sources/finehard",
  "data/config": "data/loader",
  "data/rows": "data/packing",
  "data/tfds_reader": "prepare/sources/tfds",
  "evals/datasets/class_lists": "evals/tasks/segmentation",
  "evals/datasets/compositional_sets": "evals/tasks/compositional",
  "evals/datasets/label_maps": "evals/tasks/segmentation",
  "evals/datasets/proposals": "evals/tasks/detection",
  "evals/datasets/records": "evaluate",
  "evals/datasets/text_files": "evals/datasets/instances",
  "evals/embeddings": "evals/tasks/dataset",
  "evals/evaluator": "evals/registry",
  "evals/features": "evals/tasks/linear_probe",
  "evals/options": "evals/registry",
  "goodput": "train/goodput/timeline",
  "index/__main__": "index/index_command",
  "index/folder": "index/search",
  "index/graphs": "index/search",
  "index/parts": "index/build",
  "index/sources": "index/build",
  "inference/describe": "inference/model",
  "inference/graphs": "export",
  "inference/hub": "inference/programs",
  "inference/image_listing": "inference/bulk_inputs",
  "inference/text_chunks": "inference/model",
  "models/params": "train/state",
  "models/pixel_spec": "models/config",
  "models/siglip_config": "models/config",
  "models/sizes": "models/config",
  "models/text": "models/towers",
  "models/tower_config": "models/config",
  "models/transformer": "models/towers",
  "models/vit": "models/towers",
  "plan/__main__": "plan/plan",
  "plan/batch": "plan/estimate",
  "plan/hardware": "plan/estimate",
  "prepare/__main__": "prepare/main",
  "prepare/cli": "prepare/prepare",
  "prepare/conversion": "prepare/pipeline",
  "prepare/inspect": "prepare/prepare",
  "prepare/job": "prepare/pipeline",
  "prepare/loader_timing": "prepare/benchmark",
  "prepare/shard_writer": "data/dataset_folder",
  "prepare/source": "prepare/sources/sources",
  "prepare/sources/coco": "prepare/sources/joins",
  "prepare/sources/flickr30k": "prepare/sources/joins",
  "prepare/sources/known_forms": "prepare/sources/caption_files",
  "prepare/sources/scene_captions": "prepare/sources/scenes",
  "prepare/sources/scene_shapes": "prepare/sources/scenes",
  "prepare/sources/visual_genome": "prepare/sources/joins",
  "prepare/verify": "prepare/prepare",
  "serve/__main__": "serve/serve_command",
  "serve/limits": "serve/app",
  "serve/schemas": "serve/app",
  "serve/service": "serve/app",
  "storage/riegeli": "storage/remote_shard",
  "storage/threads": "inference/programs",
  "train/checkpoints/orbax_store": "train/checkpoints/manager",
  "train/checkpoints/settings": "train/checkpoints/manager",
  "train/checkpoints/together": "train/checkpoints/manager",
  "train/checkpoints/wanted_state": "train/checkpoints/manager",
  "train/config_flags": "main",
  "train/config_values": "train/config",
  "train/goodput/report": "train/goodput/timeline",
  "train/loggers/mlflow": "train/loggers/registry",
  "train/loggers/protocol": "train/loggers/registry",
  "train/loggers/trackio": "train/loggers/registry",
  "train/loggers/wandb": "train/loggers/registry",
  "train/preemption": "train/loop",
  "viz/box_scores": "viz/heatmap",
  "viz/contact_sheet": "prepare/report",
  "weights/name_map": "weights/openai",
  "weights/open_clip": "weights/openai",
  "weights/open_clip_pixels": "weights/formats",
  "weights/openai_names": "weights/openai",
  "weights/pickled": "weights/torch_pickle",
  "weights/tensor_files": "weights/torch_pickle",
}
MODULES = [
  path.relative_to(PACKAGE).with_suffix("").as_posix()
  for path in sorted(PACKAGE.rglob("*.py"))
  if path.stem != "__init__"
]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_tested_at_its_place_or_where_it_says_here(name):
  folder, _, stem = ELSEWHERE.get(name, name).rpartition("/")
  assert (TESTS / folder / f"test_{stem}.py").is_file()
  if name in ELSEWHERE:
    folder, _, stem = name.rpartition("/")
    assert not (TESTS / folder / f"test_{stem}.py").is_file(), f"{name} has a test file of its own now"


def test_no_module_is_said_that_is_not_there():
  assert set(ELSEWHERE) <= set(MODULES)

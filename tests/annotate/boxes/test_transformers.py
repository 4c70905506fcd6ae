"""Boxes by detectors of the transformers library, of random small weights."""

import io

import pytest
from PIL import Image

from fgclip_jax.annotate.boxes.backend import Question
from fgclip_jax.annotate.boxes.transformers import Transformers
from fgclip_jax.data.tokenizers import get_tokenizer


@pytest.fixture(scope="module")
def owl(transformers, tmp_path_factory) -> str:
  """The folder of an OWLv2, which pads pictures at right and bottom to a square."""
  folder = str(tmp_path_factory.mktemp("owl"))
  vocabulary, merges = get_tokenizer("clip").save_vocabulary(folder)
  tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
  config = transformers.Owlv2Config(
    text_config={**tower, "max_position_embeddings": 16},
    vision_config={**tower, "image_size": 32, "patch_size": 8},
    projection_dim=16,
  )
  transformers.Owlv2ForObjectDetection(config).save_pretrained(folder)
  images = transformers.Owlv2ImageProcessorPil(size={"height": 32, "width": 32})
  tokenizer = transformers.CLIPTokenizer(vocabulary, merges, model_max_length=16)
  transformers.Owlv2Processor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
  return folder


def test_each_phrase_is_a_query_of_its_own(owl):
  Image.new("RGB", (60, 30), "red").save(file := io.BytesIO(), "PNG")
  questions = [Question(str(number), file.getvalue(), (60, 30), ("a dog", "a red car")) for number in range(2)]
  one, two = Transformers(owl).locate(questions)
  assert one.found == two.found and {each.phrase for each in one.found} <= {0, 1}
  assert one.found or one.bad  # of random weights; every box is either inside of the picture or counted
  assert all(0 <= each.score <= 1 for each in one.found)


def test_what_is_no_detector(transformers, tmp_path):
  with pytest.raises(ValueError, match="--boxes transformers:"):
    list(Transformers(str(tmp_path / "nothing")).locate([]))

"""Models that are no CLIP are refused by the name of their family."""

import json

import numpy as np
import pytest
import safetensors.numpy

from fgclip_jax import convert
from fgclip_jax.models.config import preset
from fgclip_jax.weights import families, formats, huggingface, name_map, openai_names

CLIP = preset("tiny").replace(text={"long_length": None, "end_id": 2, "vocab_size": 60})
TYPES = {
  "siglip_vision_model": "tower of a SigLIP alone", "siglip2_text_model": "tower of a SigLIP alone",
  "SiglipForImageClassification": "classifier made of a SigLIP", "paligemma": "PaliGemma", "gemma3": "Gemma 3",
  "smolvlm": "Idefics", "llava": "LLaVA", "llava_next": "LLaVA",
  "blip": "BLIP", "blip-2": "BLIP", "chinese_clip": "Chinese CLIP", "altclip": "AltCLIP", "clipseg": "CLIPSeg",
  "metaclip_2": "MetaCLIP 2", "align": "ALIGN", "dinov2": "DINO", "dinov3_vit": "DINO", "owlvit": "OWL-ViT",
  "owlv2": "OWL-ViT", "groupvit": "GroupViT", "xclip": "X-CLIP", "clap": "CLAP", "jina_clip": "Jina CLIP",
  "flava": "FLAVA", "clip_text_model": "text tower of CLIP alone", "evaclip": "EVA-CLIP",
}  # fmt: skip
NAMES = {
  "PaliGemma": ["vision_tower.vision_model.embeddings.patch_embedding.weight", "multi_modal_projector.linear.weight"],
  "LLaVA": ["model.vision_tower.vision_tower.vision_model.embeddings.patch_embedding.weight",
            "model.mm_projector.0.bias"],
  "CoCa": ["visual.conv1.weight", "text.token_embedding.weight", "text_decoder.resblocks.0.ln_1.weight"],
  "MobileCLIP": ["image_encoder.model.patch_embed.0.rbr_conv.0.conv.weight", "text_encoder.embedding_layer.weight"],
  "EVA-CLIP": ["visual.cls_token", "visual.blocks.0.attn.q_bias", "text.token_embedding.weight"],
  "BLIP": ["visual_encoder.blocks.0.attn.qkv.weight", "text_encoder.encoder.layer.0.attention.self.query.weight"],
  "CLIPSeg": ["clip.vision_model.embeddings.patch_embedding.weight",
              "clip.text_model.embeddings.token_embedding.weight",
              "decoder.film_mul.weight"],
  "Chinese CLIP": ["visual.conv1.weight", "bert.embeddings.word_embeddings.weight"],
  "AltCLIP": ["vision_model.embeddings.patch_embedding.weight", "text_model.roberta.embeddings.word_embeddings.weight"],
  "ALIGN": ["vision_model.embeddings.convolution.weight"],
  "ImageBind": ["modality_trunks.vision.blocks.0.attn.in_proj_weight"],
  "DINO": ["cls_token", "blocks.0.attn.qkv.weight"],
  "OWL-ViT": ["owlvit.vision_model.embeddings.patch_embedding.weight", "class_head.dense0.weight"],
  "image tower of timm": ["visual.trunk.patch_embed.proj.weight", "text.token_embedding.weight"],
  "text tower of Hugging Face": ["visual.conv1.weight", "text.transformer.embeddings.word_embeddings.weight"],
  "LoRA": ["base_model.model.visual.transformer.resblocks.0.attn.out_proj.lora_A.weight", "visual.conv1.weight"],
}  # fmt: skip


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("known", ["model_type", "architectures"])
def test_a_config_names_its_family(kind, known, tmp_path, capsys):
  values = {"model_type": kind} if known == "model_type" else {"architectures": [f"{kind}Model"]}
  (tmp_path / "config.json").write_text(json.dumps({**values, "text_config": {}, "vision_config": {}}))
  safetensors.numpy.save_file({"a": np.zeros(1)}, tmp_path / "model.safetensors")
  if ("_model" in kind or kind.startswith("Siglip")) and known == "architectures":
    pytest.skip("no such class")
  assert convert.main([str(tmp_path), str(tmp_path.parent / "out")]) == 1
  message = capsys.readouterr().err
  assert f"not read, {TYPES[kind]} (" in message and message.count("\n") == 1


@pytest.mark.parametrize("prefix", ["", "module.", "state_dict.model."])
@pytest.mark.parametrize("family", NAMES)
def test_bare_tensors_name_their_family(family, prefix, tmp_path):
  path = tmp_path / "model.safetensors"
  safetensors.numpy.save_file({prefix + name: np.zeros(2, np.float32) for name in NAMES[family]}, path)
  with pytest.raises(ValueError, match=f"model.safetensors' belongs to a family that is not read, .*{family}"):
    formats.detect(str(path))


def test_a_bare_file_with_another_vocabulary(random_params, tmp_path):
  config = CLIP.replace(text={"vocab_size": 21128})
  path = tmp_path / "model.safetensors"
  tensors = name_map.write_rows(openai_names.table(config), random_params(config))
  safetensors.numpy.save_file({name: np.array(value, order="C") for name, value in tensors.items()}, path)
  with pytest.raises(ValueError, match="Chinese CLIP"):
    formats.read(str(path), heads=(2, 2), activation="gelu")


def test_no_name_of_a_clip_is_that_of_another_family():
  config = preset("tiny")
  names = [name for row in openai_names.table(CLIP, "text.") for layer in row.names() for name in layer]
  names += [name for row in openai_names.table(preset("tiny_resnet")) for layer in row.names() for name in layer]
  families.check_names("x", names)
  families.check_names(
    "x", [name for row in huggingface.huggingface_names.table(config) for each in row.names() for name in each]
  )
  siglips = (preset(name) for name in ("tiny_siglip", "tiny_naflex", "tiny_fgclip2"))
  families.check_names(
    "x",
    [
      name
      for each in siglips
      for row in huggingface.huggingface_names.table(each)
      for names in row.names()
      for name in names
    ],
  )
  families.check_config("x", {"model_type": "siglip", "architectures": ["SiglipModel"]})
  families.check_config("x", {"model_type": "siglip2", "architectures": ["Siglip2Model"]})
  families.check_config("x", {"model_type": "fgclip2", "architectures": ["FG_CLIP2_Model"]})
  families.check_config("x", {"model_type": "clip", "architectures": ["CLIPModel", "FGCLIPModel", "LongCLIPModel"]})

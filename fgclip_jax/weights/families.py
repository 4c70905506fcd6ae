"""Families of models that are not read, by what their files say: they are refused by name.

Many share parts of CLIP's or SigLIP's names, and would otherwise be read in part, or be called damaged.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

from fgclip_jax.storage.skip_report import printable

_TIMM = "image towers of timm have no counterpart here: use open_clip itself, or a model with a plain ViT or ResNet"


@dataclasses.dataclass(frozen=True)
class Family:
  """A family.

  Attributes:
    name: what people call it.
    types: a pattern of `model_type`, or of a class in `architectures`, in config.json.
    names: a pattern that is found in the name of some tensor, after a dot or at its start.
    vocabulary: the rows of its token table, which tell it from CLIP; None: they do not.
    advice: what to do.
  """

  name: str
  types: str = ""
  names: str = ""
  vocabulary: int | None = None
  advice: str = "load it with transformers or its own library"


# The first that fits is named, so those that are made of another one come before it.
FAMILIES = (
  Family("tower of a SigLIP alone", r"siglip2?_(text|vision)_model|siglip2?(Text|Vision)Model",
         advice="convert the whole model"),
  Family("classifier made of a SigLIP", r"siglip2?ForImageClassification", advice="convert the SigLIP it came from"),
  Family("PaliGemma", r"(col)?pali_?gemma.*", r"multi_modal_projector\.linear\.",
         advice="it is a language model; its image tower was a SigLIP: convert that one"),
  Family("Gemma 3", r"gemma_?3.*", r"multi_modal_projector\.mm_",
         advice="it is a language model; its image tower was a SigLIP: convert that one"),
  Family("Idefics", r"(smolvlm|idefics).*", r"connector\.modality_projection\.",
         advice="it is a language model; its image tower was a SigLIP: convert that one"),
  Family("LLaVA", r"(llava|vip_?llava|bunny|video_?llava).*",
         r"(mm_projector|multi_modal_projector|vision_tower\.vision_tower)\.",
         advice="it is a language model; its image tower was a CLIP: convert that one"),
  Family("Stable Diffusion", "", r"(model\.diffusion_model|cond_stage_model|first_stage_model)\.",
         advice="it holds a text tower alone; convert the CLIP that it came from"),
  Family("CoCa", r"coca.*", r"text_decoder\.(resblocks|cross_attn|ln_final|text_projection)", advice="use open_clip"),
  Family("BLIP", r"(instruct)?blip.*",
         r"(visual_encoder\.(blocks|cls_token|patch_embed)|[Qq]former\.|text_decoder\.bert)"),
  Family("CLIPSeg", r"clipseg.*", r"(film_mul|film_add)\."),
  Family("Chinese CLIP", r"chinese_?clip.*",
         r"(bert\.embeddings\.word_embeddings|text_model\.(encoder\.layer\.0\.|embeddings\.word_embeddings))", 21128,
         "its text tower is a BERT: load it with transformers or cn_clip"),
  Family("AltCLIP", r"alt_?clip.*", r"text_model\.(roberta|transformation|pre_LN)\."),
  Family("ALIGN", r"align.*", r"vision_model\.embeddings\.convolution\."),
  Family("CLIPA", "", "", 32000, "its tokenizer is BERT's: use open_clip"),
  Family("MetaCLIP 2", r"meta_?clip_?2.*", "", 901629, "its tokenizer is multilingual: load it with transformers"),
  Family("OWL-ViT", r"owl_?v(it|2).*", r"(class_head\.dense0|box_head\.dense0)\."),
  Family("GroupViT", r"group_?vit.*", r"vision_model\.encoder\.stages\."),
  Family("X-CLIP", r"x_?clip.*", r"(prompts_generator|mit\.position_embedding)"),
  Family("CLAP", r"clap.*", r"(audio_model|audio_branch)\."),
  Family("FLAVA", r"flava.*", r"flava\."),
  Family("Jina CLIP", r"jina_?clip.*", r"text_model\.transformer\.(encoder|embeddings)\."),
  Family("ImageBind", r"imagebind.*", r"modality_(trunks|preprocessors)\."),
  Family("MobileCLIP", r"mobile_?clip.*", r"(image_encoder\.model\.|visual\.trunk\.(stem|stages|network)\.)",
         advice="use open_clip or ml-mobileclip"),
  Family("EVA-CLIP", r"eva_?(02_?)?clip.*",
         r"visual\.(blocks\.0|rope|patch_embed|norm|cls_token|pos_embed|(trunk\.)?blocks\.0\.attn\.q_bias)",
         advice="use open_clip or EVA-CLIP's own code"),
  Family("open_clip model with an image tower of timm", "", r"visual\.trunk\.", advice=_TIMM),
  Family("open_clip model with a text tower of Hugging Face", "",
         r"text\.(transformer\.(embeddings|encoder|shared|layer|model)|proj\.)",
         advice="use open_clip itself, or a model with CLIP's own text tower"),
  Family("DINO", r"dino.*",
         r"(blocks\.0\.attn\.qkv\.weight|embeddings\.cls_token|layer\.0\.attention\.attention\.query)",
         advice="it has no text tower"),
  Family("text tower of CLIP alone", r"clip_text_model|CLIPTextModel.*", advice="convert the whole model"),
  Family("LoRA adapter", "", r"lora_(A|B|down|up|alpha)\b", advice="merge it into its model first"),
)  # fmt: skip
_SUPPORTED = "read are CLIP (also open_clip's and Long-CLIP), SigLIP, SigLIP 2, and both FG-CLIPs"


def check_config(path: str, values: Mapping[str, Any]) -> None:
  """A ValueError if a config.json names a family that is not read."""
  classes = values.get("architectures")
  said = [values.get("model_type"), *(classes if isinstance(classes, list) else [])]
  for each in said:
    for family in FAMILIES:
      if family.types and isinstance(each, str) and re.fullmatch(family.types, each, re.IGNORECASE):
        raise _refused(path, family, f"model_type {values.get('model_type')!r}, architectures {classes!r}")


def check_names(path: str, names: Collection[str]) -> None:
  """A ValueError if the names of a file's tensors are those of a family that is not read."""
  for family in FAMILIES:
    pattern = re.compile(rf"(^|\.)(?:{family.names})") if family.names else None
    if pattern and (found := next((name for name in names if pattern.search(name)), None)):
      raise _refused(path, family, f"tensor {found}")


def check_vocabulary(path: str, rows: int) -> None:
  """A ValueError if a token table of so many rows is that of a family that is not read."""
  for family in FAMILIES:
    if family.vocabulary == rows:
      raise _refused(path, family, f"{rows} tokens")


def _refused(path: str, family: Family, reason: str) -> ValueError:
  return ValueError(
    f"{path!r} belongs to a family that is not read, {family.name} ({printable(reason[:200])}): {family.advice}; "
    f"{_SUPPORTED}"
  )

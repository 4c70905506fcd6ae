"""What a model is, in a line."""

from fgclip_jax.models.config import ModelConfig


def family(config: ModelConfig) -> str:
  """The published family that a model belongs to."""
  if config.text.reads_padding and config.fine_grained:
    return "FG-CLIP 2"
  if config.vision.takes_patches:
    return "SigLIP 2 NaFlex"
  if config.text.reads_padding:
    return "SigLIP 2" if config.text.tokenizer.startswith("gemma") else "SigLIP"
  return "FG-CLIP" if config.fine_grained else "plain CLIP"


def describe(config: ModelConfig, images: str, parameters: int, dtype: str) -> str:
  """The family and the sizes.

  Args:
    config: the model's.
    images: what it reads of a picture.
    parameters: how many it has.
    dtype: what it computes in.
  """
  vision, text = config.vision, config.text
  name, lengths = family(config), "/".join(map(str, text.position_tables.values()))
  tower = f"patch {vision.patch_size}" if vision.has_patches or vision.takes_patches else vision.label
  return (
    f"{'FGCLIP' if name == 'FG-CLIP' else f'FGCLIP ({name})'}("
    f"image {images}, {tower}, width {vision.width} x {vision.depth} blocks; "
    f"text {lengths} tokens, width {text.width} x {text.depth} blocks; "
    f"embedding {config.embedding_width}; "
    f"{parameters / 1e6:.1f} M parameters, {dtype})"
  )

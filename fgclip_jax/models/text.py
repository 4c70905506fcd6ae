"""The text tower over packed rows: CLIP's causal one and SigLIP's, with FG-CLIP's short and long position tables."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from fgclip_jax.models.config import SiglipTextConfig, TextConfig
from fgclip_jax.models.transformer import Runtime, Transformer, layer_norm


class TextTower(nnx.Module):
  """Rows of packed captions to hidden vectors, of which each caption's last one is read."""

  def __init__(self, config: TextConfig | SiglipTextConfig, runtime: Runtime = Runtime(), *, rngs: nnx.Rngs):
    self.config, self.runtime = config, runtime

    def table(rows, std):
      return nnx.Param(nnx.initializers.normal(std)(rngs.params(), (rows, config.width), jnp.float32))

    self.token_embedding = table(config.vocab_size, 0.02)
    for name, rows in config.position_tables.items():
      setattr(self, name, table(rows, 0.01))
    self.transformer = Transformer(config, runtime, causal=config.causal, rngs=rngs)
    self.final_norm = layer_norm(config.width, config.layer_norm_eps, rngs)

  def __call__(
    self, tokens: Int[Array, "R L"], segment: Int[Array, "R L"], position: Int[Array, "R L"]
  ) -> Float[Array, "R L W"]:
    """Encodes rows of captions.

    Args:
      tokens: token ids.
      segment: which caption a token belongs to, any number but 0, which is empty space.
      position: the row in the position tables laid end to end: 0..76 in CLIP's short one, from 77 on in the long one.

    Returns:
      The last block's output, *before* the final LayerNorm: apply `final_norm` to what is read.
    """
    tables = [getattr(self, name)[...] for name in self.config.position_tables]
    # added in float32, however the tables are stored
    parts = (self.token_embedding[...][tokens], jnp.concatenate(tables)[position])
    embedded: Any = sum(part.astype(jnp.float32) for part in parts)
    hidden, _ = self.transformer(embedded.astype(self.runtime.dtype), segment)
    return hidden

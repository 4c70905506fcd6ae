"""A model as its users have it: loading, embedding, bulk embedding."""

from fgclip_jax.inference.programs import use_compilation_cache

__all__ = ["use_compilation_cache"]

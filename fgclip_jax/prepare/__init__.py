"""Data sets to ArrayRecord shards: `python -m fgclip_jax.prepare`. `sources/` has one file for each form of input."""

"""Data sets to ArrayRecord: `python -m fgclip_jax.prepare`."""

"""The commands of `python -m fgclip_jax.prepare`: a module each, named as its command.

A module has `SHORT` (its line in the list of commands), `TEXT` and `EXAMPLE` (its help), `add_options(parser)` and
`run(options)`. It imports what it needs inside `run`: help must come at once.
"""

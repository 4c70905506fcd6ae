"""The subcommands of `benchmarks/annotate.py`."""

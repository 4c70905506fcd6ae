"""The benchmarks: one file for each, with its options."""

"""The options of the benchmarks."""

"""Readers of the files of benchmarks."""

"""The parts of `fuzz.py`: inputs, targets, mutations, and one case."""

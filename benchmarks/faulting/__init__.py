"""The parts of `faults.py`: runs that are watched, what is done to them, and a bad network before their bucket."""

"""Services that a run's numbers, pictures and tables go to, beside the files in its folder (`train/logger.py`)."""

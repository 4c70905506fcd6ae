"""The sources of `prepare`: one file for each form of input."""

"""The sources of `prepare`: one file for each form of input, with its command. `source.py` says what a file needs.

`image_store`, `joins` and `scene_shapes` are parts that sources share, and no commands.
"""

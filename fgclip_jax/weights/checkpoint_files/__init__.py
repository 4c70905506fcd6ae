"""What checkpoints hold beside arrays as Orbax writes them: checksums, and plain files."""

"""Checkpoints of a run: in durable storage, and faster ones on the machines' own disks."""

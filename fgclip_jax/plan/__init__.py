"""Memory, traffic and time of a run on machines that are not present, from its compiled step."""

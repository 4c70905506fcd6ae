"""A model for other programs: embeddings, similarities and searches over HTTP."""

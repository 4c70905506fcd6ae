"""A model as its users have it: loading, embedding, bulk embedding."""

"""Files of any format, local or in buckets: paths, locks, streams, tars, tables. Knows neither JAX nor models."""

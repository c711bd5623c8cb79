"""`alt-jax serve`: a model's scores over HTTP."""

"""alt-jax: aligning a CTR model with a language model, in JAX."""

__version__ = "0.1.0"

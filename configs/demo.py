"""Placeholder."""

from pathlib import Path

from alt_jax.config import Config
from alt_jax.demo import demo_config


def get_config() -> Config:
    """The recipe that `alt-jax demo` uses, on the data that it keeps in `demo/`."""
    return demo_config(Path("demo"))

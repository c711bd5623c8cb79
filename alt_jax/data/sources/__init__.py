"""Data sources, one file each. Adding one is a file with a loader and a line in `_LOADERS`."""

from collections.abc import Callable

from alt_jax.config import DataConfig
from alt_jax.data.sources import bookcrossing, goodreads, movielens, table
from alt_jax.data.sources.raw import RawData
from alt_jax.errors import InputError, choices

_LOADERS: dict[str, Callable[[DataConfig], RawData]] = {
    "bookcrossing": bookcrossing.load,
    "goodreads": goodreads.load,
    "movielens_100k": movielens.load,
    "movielens_1m": movielens.load,
    "table": table.load,
}

__all__ = ["RawData", "load", "names"]


def names() -> tuple[str, ...]:
    """Names that `data.source` may have."""
    return tuple(_LOADERS)


def load(config: DataConfig) -> RawData:
    """Reads and checks the raw rows that the config names.

    Raises:
      InputError: There is no such source, or its files are missing or malformed.
    """
    if config.source not in _LOADERS:
        raise InputError(f"Unknown data.source {config.source!r}; {choices(config.source, names())}")
    return _LOADERS[config.source](config)

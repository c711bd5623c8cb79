"""Data sources, one file each. Adding one is a file with a loader and a line in `_LOADERS`."""

import dataclasses
from collections.abc import Callable

from alt_jax.config import DataConfig
from alt_jax.data.sources import bookcrossing, goodreads, movielens, table
from alt_jax.data.sources.raw import RawData, check_linked
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
    """Reads and checks the raw rows that the config names; linked groups are the config's, where it has any.

    Raises:
      InputError: There is no such source, its files are missing or malformed, or the groups cannot be.
    """
    if config.source not in _LOADERS:
        raise InputError(f"Unknown data.source {config.source!r}; {choices(config.source, names())}")
    raw = _LOADERS[config.source](config)
    check_linked(config.linked, [field.column for field in raw.fields])
    return dataclasses.replace(raw, linked=config.linked or raw.linked)

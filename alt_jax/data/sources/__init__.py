"""Data sources, one file each. Adding one is a file with a loader and a line in `_MODULES`.

A source is imported when it is read: to say which there are needs none of them.
"""

import dataclasses
import importlib
from typing import TYPE_CHECKING

from alt_jax.config import DataConfig
from alt_jax.data.declared import check_linked
from alt_jax.errors import InputError, choices

if TYPE_CHECKING:
    import pyarrow as pa

    import alt_jax.data.sources.raw

# The module of this package whose `load` reads the source.
_MODULES = {
    "bookcrossing": "bookcrossing",
    "goodreads": "goodreads",
    "movielens_100k": "movielens",
    "movielens_1m": "movielens",
    "table": "table",
}

__all__ = ["check_name", "load", "names"]


def names() -> tuple[str, ...]:
    """Names that `data.source` may have."""
    return tuple(_MODULES)


def check_name(name: str) -> None:
    """Refuses an unknown `data.source`.

    Raises:
      InputError: There is no such source; names the nearest and all.
    """
    if name not in _MODULES:
        raise InputError(f"Unknown data.source {name!r}; {choices(name, names())}")


def load(config: DataConfig, frame: "pa.Table | None" = None) -> "alt_jax.data.sources.raw.RawData":
    """Reads and checks the raw rows that the config names; linked groups are the config's, where it has any.

    Args:
      config: Names them.
      frame: The rows of an own table, where they are in memory.

    Raises:
      InputError: There is no such source, its files are missing or malformed, or the groups cannot be.
    """
    check_name(config.source)
    if frame is not None and config.source != "table":
        raise InputError(
            f"Source {config.source!r} is read from its files; a table in memory is one of source 'table'."
        )
    source = importlib.import_module(f"{__name__}.{_MODULES[config.source]}")
    raw: alt_jax.data.sources.raw.RawData = source.load(config) if frame is None else source.load(config, frame)
    check_linked(config.linked, [field.column for field in raw.fields])
    return dataclasses.replace(raw, linked=config.linked or raw.linked)

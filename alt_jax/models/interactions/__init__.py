"""Feature-interaction models, one file a published CTR model, found by name.

A file in this folder that defines an `Interaction` subclass under `@register("name")` is all that a new tower needs.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float

from alt_jax.config import CTRConfig
from alt_jax.errors import InputError


class Interaction(nn.Module):
    """Turns a row's field embeddings into its representation h_c.

    Attributes:
      config: The CTR tower's sizes.
    """

    config: CTRConfig

    def __call__(self, embeddings: Float[Array, "B F D"], *, train: bool) -> Float[Array, "B C"]:
        """Computes h_c."""
        raise NotImplementedError


_TOWERS: dict[str, type[Interaction]] = {}


def register(name: str) -> Callable[[type[Interaction]], type[Interaction]]:
    """Class decorator: makes an `Interaction` available as `--ctr.tower name`."""

    def add(tower: type[Interaction]) -> type[Interaction]:
        if name in _TOWERS:
            raise ValueError(f"Two towers are called {name!r}: {_TOWERS[name].__module__} and {tower.__module__}.")
        _TOWERS[name] = tower
        return tower

    return add


def names() -> tuple[str, ...]:
    """Every registered tower."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return tuple(sorted(_TOWERS))


def get(name: str) -> type[Interaction]:
    """The tower called `name`.

    Raises:
      InputError: There is none; the message names the nearest and all known ones.
    """
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"Unknown CTR tower {name!r}; {hint}Known: {', '.join(known)}.")
    return _TOWERS[name]

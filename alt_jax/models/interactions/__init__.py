"""Feature-interaction models, one file a published CTR model, found by name.

A file in this folder that defines an `Interaction` subclass under `@register("name")` is all that a new tower needs.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, ClassVar, get_type_hints

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import TypeAdapter, ValidationError

from alt_jax.config import CTRConfig
from alt_jax.errors import InputError, choices
from alt_jax.schema import Schema


class Linear(nn.Module):
    """wᵀh + b: what most towers make their logit of."""

    @nn.compact
    def __call__(self, h: Float[Array, "B C"]) -> Float[Array, " B"]:
        """The representation's share of the click logit."""
        return nn.Dense(1, name="dense")(h)[:, 0]


class Sum(nn.Module):
    """Σ_j h_j + b: for towers whose representation is the terms of their logit."""

    @nn.compact
    def __call__(self, h: Float[Array, "B C"]) -> Float[Array, " B"]:
        """The representation's share of the click logit."""
        return jnp.sum(h, axis=1) + self.param("bias", nn.initializers.zeros, ())


class Interaction(nn.Module):
    """Turns a row's field embeddings into its representation h_c, and says what the click logit is made of.

    Further attributes of a subclass are the tower's own options: `--ctr.options NAME VALUE …` sets them, after a check
    against their annotated types.

    Attributes:
      config: What all towers share.
      first_order: Whether the logit also has the linear part Σ_f w[x_f].
      only_pairs: Whether h_c is made of pairs of vectors alone, and so says nothing where there is one.
      takes_numbers: Whether `__call__` also takes the numeric fields' numbers [B, M], behind the embeddings.
    """

    config: CTRConfig
    first_order: ClassVar[bool] = True
    only_pairs: ClassVar[bool] = False
    takes_numbers: ClassVar[bool] = False

    @nn.nowrap
    def embedding_width(self) -> int:
        """Columns of the embedding table."""
        return self.config.dim

    def __call__(self, embeddings: Float[Array, "B F D"], *, train: bool) -> Float[Array, "B C"]:
        """Computes h_c."""
        raise NotImplementedError

    @nn.nowrap
    def readout(self) -> nn.Module:
        """The module that makes the representation's share of the logit. Finetuning starts it fresh."""
        return Linear(name="readout")


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


def options(name: str) -> dict[str, Any]:
    """The options that the tower called `name` has beyond those that all towers share, with their types.

    Raises:
      InputError: There is no such tower; the message names the nearest and all known ones.
    """
    known = names()
    if name not in known:
        raise InputError(f"Unknown CTR tower {name!r}; {choices(name, known)}")
    types = get_type_hints(_TOWERS[name], include_extras=True)
    own = [f.name for f in dataclasses.fields(_TOWERS[name]) if f.name not in ("config", "parent", "name")]
    return {option: types[option] for option in own}


def build(config: CTRConfig) -> Interaction:
    """The tower that a config names, with its options; a module that is not bound to parameters yet.

    Raises:
      InputError: The tower is unknown, has no such option, or the option's value does not fit.
    """
    known = options(config.tower)
    for name, value in config.options:
        if name not in known:
            raise InputError(
                f"ctr.options: the tower {config.tower!r} has no option {name!r}; it has {', '.join(known) or 'none'}."
            )
        try:
            TypeAdapter(known[name]).validate_python(value, strict=True)
        except ValidationError as error:
            raise InputError(
                f"ctr.options: {name} of the tower {config.tower!r} cannot be {value!r}: {error.errors()[0]['msg']}."
            ) from None
    chosen: dict[str, Any] = dict(config.options)
    return _TOWERS[config.tower](config, **chosen)


def check(config: CTRConfig, schema: Schema) -> None:
    """Refuses a tower of pairs where a row has no two vectors: h_c would be empty, or the same for all rows.

    Raises:
      InputError: It is one; or as `build` does.
    """
    tower = build(config)
    numbers = tower.takes_numbers and bool(schema.numeric_slots)  # one more vector
    if tower.only_pairs and len(schema.tabular) + numbers < 2:
        raise InputError(
            f"The CTR tower {config.tower!r} is made of pairs of fields, and the dataset has one field that is not "
            "text; choose another --ctr.tower, e.g. lr or dcnv2."
        )

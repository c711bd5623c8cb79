"""Which of the model's parameters are split over the devices: the rules that a config stands for.

`alt_jax.sharding` applies any rules and knows no parameter's name, so that models can import it.
"""

from typing import Literal

from jax.sharding import Mesh

from alt_jax.config import Config
from alt_jax.errors import InputError
from alt_jax.lazy import TABLES
from alt_jax.models.table import ROWS_MULTIPLE
from alt_jax.sharding import Rules


def rules(config: Config) -> Rules:
    """The rules of an experiment: tables of ids and of MTM's noise by rows, text towers fully sharded, or neither."""
    found: list[tuple[str, Literal["rows", "longest"]]] = []
    if config.sharding.tables == "split":
        found.append((TABLES, "rows"))
        # An exact softmax reads a field's whole share of the table, so that splitting it would only move it about.
        if config.mtm.method in ("sampled", "nce"):
            found.append(("mtm/(table|bias)", "rows"))
    if config.sharding.text == "split":
        found.append(("(text(_second)?|mlm)/.*", "longest"))
    return tuple(found)


def check_rules(mesh: Mesh, rules: Rules) -> None:
    """Raises InputError if the devices do not divide the rows of a table that is to be split."""
    if ROWS_MULTIPLE % mesh.size and any(how == "rows" for _, how in rules):
        raise InputError(
            f"Tables have a multiple of {ROWS_MULTIPLE} rows, which {mesh.size} devices do not divide; use a power of "
            "two of devices, or set --sharding.tables replicate."
        )

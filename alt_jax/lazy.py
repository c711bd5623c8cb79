"""Updates of the tables of ids that touch only the rows of a batch, so that their cost does not grow with the tables.

A step takes the batch's rows out of the tables and out of the optimiser's state, differentiates and updates these small
tables as it would the whole ones, and writes them back in place. Any optimiser that treats rows one by one can be lazy;
where a batch holds every id it is what it is without. L2 is felt by a row when it is touched, and not between.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from alt_jax.models.table import Rows
from alt_jax.schema import MASK_ID, PAD_ID

TABLES = r"(ctr/embedding|ctr_logit/linear)/embedding"  # names of the parameters that are tables of ids


def touched(params: Any, ids: Int[Array, "B S"]) -> Int[Array, " U"]:
    """The ids of a batch and those of padding and masks, ascending, each once.

    Args:
      params: Where the tables are, of which all have the same N rows.
      ids: Feature ids.

    Returns:
      As many as there can be: min(B · S + 2, N), the last of them N, which is no row, where there are fewer.
    """
    tables = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if _is_table(path)]
    if not tables:
        return jnp.zeros(0, jnp.int32)
    num_ids = tables[0].shape[0]
    every = jnp.concatenate([jnp.array([PAD_ID, MASK_ID], ids.dtype), ids.ravel()])
    return jnp.unique(every, size=min(len(every), num_ids), fill_value=num_ids)


def take(tree: Any, rows: Int[Array, " U"]) -> Any:
    """Parameters, or an optimiser's state, with only these rows of every table."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.take(leaf, rows, axis=0, mode="clip") if _is_table(path) else leaf, tree
    )


def put(tree: Any, part: Any, rows: Int[Array, " U"]) -> Any:
    """`part`, as `take` made it from `tree`, with all rows of every table again; in place where `tree` is donated."""

    def back(path: tuple[Any, ...], whole: Array, few: Array) -> Array:
        if not _is_table(path):
            return few
        return whole.at[rows].set(few, mode="drop", indices_are_sorted=True)

    return jax.tree_util.tree_map_with_path(back, tree, part)


def with_rows(params: Any, rows: Int[Array, " U"]) -> Any:
    """What `take` made of parameters, as a model reads it."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: Rows(rows, leaf) if _is_table(path) else leaf, params)


def _is_table(path: tuple[Any, ...]) -> bool:
    # The name of a parameter also stands at the end of the path of what an optimiser's state holds for it.
    keys = (key.key for key in path if isinstance(key, jax.tree_util.DictKey))
    return re.fullmatch(f"(.*/)?{TABLES}", "/".join(map(str, keys))) is not None

"""A batch in parts, one after the other, each computed again in the backward pass.

What a part is computed from and what it hands out is kept; what lies between is not. So a loss over what the parts hand
out may compare all rows of a batch with each other, while memory holds the inside of one part only. This is GradCache
(Gao et al. 2021, arXiv 2101.06983): all representations without gradient; the loss, and its gradient with respect to
them; and each part once more, with its share of that as cotangent. Reverse mode makes just that of a loop whose parts
are rematerialised.
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from alt_jax.sharding import cut

_PART: ContextVar[tuple[UInt32[Array, ""] | int, int]] = ContextVar("part", default=(0, 1))  # which, of how many


def in_turn(work: Callable[[Any], Any], rows: Any, parts: int) -> Any:
    """`work` of every part of some rows, as `alt_jax.sharding.cut` makes them.

    Args:
      work: From some of the rows to anything.
      rows: Arrays whose leading axis is rows.
      parts: How many; 1: all rows at once, and everything is kept for the backward pass.

    Returns:
      What `work` returns, each array with an axis of `parts` in front.
    """
    if parts == 1:
        return jax.tree.map(lambda x: x[None], work(rows))

    def one(numbered: tuple[UInt32[Array, ""], Any]) -> Any:
        part, some = numbered
        before = _PART.set((part, parts))
        try:
            return work(some)
        finally:
            _PART.reset(before)

    return jax.lax.map(jax.checkpoint(one), (jnp.arange(parts, dtype=jnp.uint32), cut(rows, parts)))


def in_batch(number: UInt32[Array, "*n"], per_row: int) -> UInt32[Array, "*n"]:
    """Inside `work`: the numbers that things of a part have among those of all rows, of which each has `per_row`.

    What is drawn by them does not depend on the number of parts.
    """
    part, parts = _PART.get()
    if parts == 1:
        return number
    return (number // per_row * parts + part) * per_row + number % per_row

"""The table of a vector per feature id, and the part of it that a batch touches."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Tables have a multiple of so many rows, the last of which belong to no id, so that any power of two of devices up to
# that can split them evenly. Their shape, and so a checkpoint, does not depend on whether they are split. (JAX's random
# numbers do not depend on how many are drawn after them.)
ROWS_MULTIPLE = 256


class Rows(NamedTuple):
    """Some rows of a table, which can stand in its place among the parameters.

    Attributes:
      ids: Feature ids of the rows, ascending; every id that is looked up is among them.
      vectors: The rows.
    """

    ids: Int[Array, " U"]
    vectors: Float[Array, "U D"]


def table_rows(num_ids: int) -> int:
    """Rows of a table of so many ids."""
    return -(-num_ids // ROWS_MULTIPLE) * ROWS_MULTIPLE


class Table(nn.Module):
    """A vector per feature id, N(0, init_std²) at first; the parameter is named as that of `nn.Embed`.

    Attributes:
      num_ids: Ids (`Schema.num_ids`); the rows are as many or a few more (`table_rows`).
      dim: D, the columns.
      init_std: Standard deviation of the start.
    """

    num_ids: int
    dim: int
    init_std: float

    @nn.compact
    def __call__(self, ids: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        """Looks ids up, in the whole table or in `Rows` of it."""
        if self.has_variable("params", "embedding"):
            part: Any = self.get_variable("params", "embedding")
            if isinstance(part, Rows):
                return jnp.take(part.vectors, jnp.searchsorted(part.ids, ids), axis=0)
        init = nn.initializers.normal(self.init_std)
        return jnp.take(self.param("embedding", init, (table_rows(self.num_ids), self.dim)), ids, axis=0)

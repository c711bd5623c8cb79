"""FwFM: field-weighted factorization machine (Pan et al., WWW 2018, arXiv 1806.03514)."""

from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alt_jax.models.interactions import Interaction, register


def inner_products(embeddings: Float[Array, "B F D"]) -> Float[Array, "B P"]:
    """⟨v_i, v_j⟩ of all pairs i < j, row by row of the upper triangle."""
    first, second = np.triu_indices(embeddings.shape[1], k=1)
    return jnp.einsum("bfd,bgd->bfg", embeddings, embeddings)[:, first, second]


@register("fwfm")
class FwFM(Interaction):
    """logit = b + Σ_f w[x_f] + Σ_{i<j} r_ij ⟨v_i, v_j⟩.

    h_c is the vector of the products, and the weights of the linear readout are the r_ij.
    """

    only_pairs: ClassVar[bool] = True

    def __call__(self, embeddings: Float[Array, "B F D"], *, train: bool) -> Float[Array, "B P"]:
        """Computes h_c."""
        return inner_products(embeddings)

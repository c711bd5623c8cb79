"""FM: factorization machine of second order (Rendle, ICDM 2010)."""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from alt_jax.models.interactions import Interaction, Sum, register


def pooled_products(embeddings: Float[Array, "B F D"]) -> Float[Array, "B D"]:
    """Σ_{i<j} v_i ⊙ v_j, by ½((Σ_i v_i)² − Σ_i v_i²): linear in the number of fields (lemma 3.1)."""
    return 0.5 * (jnp.sum(embeddings, axis=1) ** 2 - jnp.sum(embeddings**2, axis=1))


@register("fm")
class FM(Interaction):
    """logit = b + Σ_f w[x_f] + Σ_{i<j} ⟨v_i, v_j⟩ (equation 1); h_c = Σ_{i<j} v_i ⊙ v_j, whose sum is the last term."""

    only_pairs: ClassVar[bool] = True

    def __call__(self, embeddings: Float[Array, "B F D"], *, train: bool) -> Float[Array, "B D"]:
        """Computes h_c."""
        return pooled_products(embeddings)

    @nn.nowrap
    def readout(self) -> nn.Module:
        """The products' sum."""
        return Sum(name="readout")

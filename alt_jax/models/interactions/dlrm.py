"""DLRM: inner products of embeddings under a top network (Naumov et al., 2019, arXiv 1906.00091)."""

from typing import ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from alt_jax.models.interactions import Interaction, register
from alt_jax.models.interactions.fwfm import inner_products
from alt_jax.models.mlp import MLP


@register("dlrm")
class DLRM(Interaction):
    """h_c = MLP(⟨v_i, v_j⟩ for all pairs i < j), logit = wᵀ h_c + b.

    The paper's bottom network turns dense inputs into one more vector; a table without dense inputs has none.
    """

    first_order: ClassVar[bool] = False

    @nn.compact
    def __call__(self, embeddings: Float[Array, "B F D"], *, train: bool) -> Float[Array, "B C"]:
        """Computes h_c."""
        products = inner_products(embeddings)
        return MLP(self.config.hidden, self.config.dropout, name="top")(products, train=train)

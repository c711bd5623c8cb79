"""DLRM: inner products of embeddings under a top network (Naumov et al., 2019, arXiv 1906.00091)."""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from alt_jax.models.interactions import Interaction, register
from alt_jax.models.interactions.fwfm import inner_products
from alt_jax.models.mlp import MLP


@register("dlrm")
class DLRM(Interaction):
    """h_c = MLP(concat(z, ⟨v_i, v_j⟩ for all pairs i < j)), logit = wᵀ h_c + b.

    A bottom network turns the numbers of a row into one more vector v = z; a table without numeric fields has none.
    """

    first_order: ClassVar[bool] = False
    only_pairs: ClassVar[bool] = True
    takes_numbers: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self, embeddings: Float[Array, "B F D"], numbers: Float[Array, "B M"] | None = None, *, train: bool
    ) -> Float[Array, "B C"]:
        """Computes h_c."""
        config = self.config
        if numbers is None:
            top = inner_products(embeddings)
        else:
            bottom = MLP((*config.hidden[:-1], embeddings.shape[2]), config.dropout, name="bottom")
            z = bottom(numbers, train=train)
            top = jnp.concatenate([z, inner_products(jnp.concatenate([z[:, None], embeddings], axis=1))], axis=1)
        return MLP(config.hidden, config.dropout, name="top")(top, train=train)

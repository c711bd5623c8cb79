"""AFN: logarithmic neurons learn cross features of adaptive order (Cheng et al., AAAI 2020, arXiv 1909.03276)."""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import PositiveInt

from alt_jax.models.interactions import Interaction, register
from alt_jax.models.mlp import MLP
from alt_jax.models.norm import layer_norm

_LEAST = 1e-7  # of an embedding's magnitude, since log 0 has no value; far below what embeddings start at


@register("afn")
class AFN(Interaction):
    """y_j = exp(Σ_i w_ij ln |v_i|) for j = 1…N, then a deep part over all y_j; logit = wᵀ h_c + b.

    The authors put batch normalisation behind the logarithm and behind the exponential. Here both are layer
    normalisations over a row's values, which need no running state and keep a row's prediction its own.

    Attributes:
      neurons: Logarithmic neurons N.
    """

    first_order: ClassVar[bool] = False
    neurons: PositiveInt = 64

    @nn.compact
    def __call__(self, embeddings: Float[Array, "B F D"], *, train: bool) -> Float[Array, "B C"]:
        """Computes h_c."""
        rows = embeddings.shape[0]
        logs = jnp.log(jnp.maximum(jnp.abs(embeddings), _LEAST)).reshape(rows, -1)
        logs = layer_norm("log_norm")(logs).reshape(embeddings.shape)
        exponents = self.param("exponents", nn.initializers.normal(0.1), (embeddings.shape[1], self.neurons))
        crosses = jnp.exp(jnp.einsum("bfd,fn->bnd", logs, exponents)).reshape(rows, -1)
        crosses = layer_norm("exp_norm")(crosses)
        return MLP(self.config.hidden, self.config.dropout, name="deep")(crosses, train=train)

"""DCN-Mix: the mixture of low-rank experts of DCN-V2 (Wang et al., WWW 2021, arXiv 2008.13535, section 3.4)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import PositiveInt

from alt_jax.models.interactions import Interaction, register
from alt_jax.models.mlp import MLP


class CrossMix(nn.Module):
    """One cross layer of E low-rank experts (equation 6).

    x_{l+1} = x_l + Σ_e g_e(x_l) · x_0 ⊙ (U_e tanh(C_e tanh(V_eᵀ x_l)) + b), where the gate g is a softmax over experts
    of a bias-free linear map of x_l and the experts share b.

    Attributes:
      experts: E.
      rank: Width r of the experts' inner space.
    """

    experts: int
    rank: int

    @nn.compact
    def __call__(self, x0: Float[Array, "B N"], x: Float[Array, "B N"]) -> Float[Array, "B N"]:
        """x_0 is the input of the first cross layer, x the input of this one."""
        width = x0.shape[-1]
        init = nn.initializers.xavier_normal(in_axis=-2, out_axis=-1, batch_axis=(0,))
        V = self.param("V", init, (self.experts, width, self.rank))
        C = self.param("C", init, (self.experts, self.rank, self.rank))
        U = self.param("U", init, (self.experts, self.rank, width))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        gate = jax.nn.softmax(nn.Dense(self.experts, use_bias=False, name="gate")(x), axis=-1)
        inner = jnp.tanh(jnp.einsum("bn,enr->ber", x, V))
        inner = jnp.tanh(jnp.einsum("ber,erk->bek", inner, C))
        # Σ_e g_e (U_e v_e + b) = (Σ_e g_e U_e v_e) + b, since the gate sums to one.
        mixed = jnp.einsum("be,ber,ern->bn", gate, inner, U) + bias[None, :]
        return x + x0 * mixed


@register("dcn_mix")
class DCNMix(Interaction):
    """Cross layers beside a deep part, h_c = concat(cross, deep): F·dim + hidden[-1] wide.

    Attributes:
      layers: Cross layers.
      experts: Experts in each.
      rank: Width of the experts' inner space.
    """

    layers: PositiveInt = 2
    experts: PositiveInt = 4
    rank: PositiveInt = 32

    @nn.compact
    def __call__(self, embeddings: Float[Array, "B F D"], *, train: bool) -> Float[Array, "B C"]:
        """Computes h_c."""
        x0 = embeddings.reshape(embeddings.shape[0], -1)
        cross = x0
        for layer in range(self.layers):
            cross = CrossMix(self.experts, self.rank, name=f"cross_{layer}")(x0, cross)
        deep = MLP(self.config.hidden, self.config.dropout, name="deep")(x0, train=train)
        return jnp.concatenate([cross, deep], axis=-1)

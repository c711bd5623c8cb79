"""FinalMLP: two deep streams, each with its own view of the fields (Mao et al., AAAI 2023, arXiv 2304.00902)."""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import PositiveInt

from alt_jax.errors import InputError
from alt_jax.models.interactions import Interaction, Linear, register
from alt_jax.models.mlp import MLP


class BilinearFusion(nn.Module):
    """b + w_1ᵀ o_1 + w_2ᵀ o_2 + Σ_j o_1jᵀ W_j o_2j over the heads' slices of both streams.

    Attributes:
      heads: Slices j.
    """

    heads: int

    @nn.compact
    def __call__(self, h: Float[Array, "B C"]) -> Float[Array, " B"]:
        """The representation's share of the click logit; h joins the two streams."""
        first, second = (half.reshape(h.shape[0], self.heads, -1) for half in jnp.split(h, 2, axis=1))
        width = first.shape[-1]
        W = self.param("W", nn.initializers.xavier_normal(batch_axis=(0,)), (self.heads, width, width))
        return Linear(name="linear")(h) + jnp.einsum("bkn,knm,bkm->b", first, W, second)


@register("finalmlp")
class FinalMLP(Interaction):
    """h_c = concat(o_1, o_2), o_s = MLP_s(2σ(gate_s) ⊙ x_0); a bilinear fusion gives the logit.

    gate_s is a small network over a context that the stream's authors choose by hand for every dataset. Here, as in
    their setting without such a choice, the context is one learned vector.

    Attributes:
      context: Width of the learned context and of the gate's hidden layer.
      heads: Of the bilinear fusion; divides the width of the deep part's last layer.
    """

    first_order: ClassVar[bool] = False
    context: PositiveInt = 32
    heads: PositiveInt = 2

    def __post_init__(self) -> None:
        """Refuses heads that the streams cannot be cut into."""
        super().__post_init__()
        if self.config.hidden and self.config.hidden[-1] % self.heads:
            raise InputError(
                f"ctr.options: heads {self.heads} of the tower 'finalmlp' does not divide the last of ctr.hidden, "
                f"{self.config.hidden[-1]}; change one."
            )

    @nn.compact
    def __call__(self, embeddings: Float[Array, "B F D"], *, train: bool) -> Float[Array, "B C"]:
        """Computes h_c."""
        x0 = embeddings.reshape(embeddings.shape[0], -1)
        streams = []
        for s in (1, 2):
            context = self.param(f"context_{s}", nn.initializers.normal(1.0), (1, self.context))
            hidden = nn.relu(nn.Dense(self.context, name=f"gate_{s}_hidden")(context))
            gate = 2 * nn.sigmoid(nn.Dense(x0.shape[1], name=f"gate_{s}")(hidden))
            streams.append(MLP(self.config.hidden, self.config.dropout, name=f"stream_{s}")(x0 * gate, train=train))
        return jnp.concatenate(streams, axis=1)

    @nn.nowrap
    def readout(self) -> nn.Module:
        """The bilinear fusion of both streams."""
        return BilinearFusion(self.heads, name="readout")

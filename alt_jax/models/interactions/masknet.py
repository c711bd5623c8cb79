"""MaskNet: blocks behind masks that each row makes for itself (Wang et al., DLP-KDD 2021, arXiv 2102.07619)."""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import PositiveInt

from alt_jax.models.dropout import Dropout
from alt_jax.models.interactions import Interaction, register
from alt_jax.models.mlp import MLP
from alt_jax.models.norm import layer_norm


class MaskBlock(nn.Module):
    """ReLU(LN(W (mask ⊙ x))), mask = W_d2 ReLU(W_d1 v + b_1) + b_2.

    Attributes:
      width: Of the output.
      reduction: The mask's hidden layer is this many times as wide as the mask.
    """

    width: int
    reduction: int

    @nn.compact
    def __call__(self, v: Float[Array, "B N"], x: Float[Array, "B M"]) -> Float[Array, "B W"]:
        """V makes the mask, x is masked."""
        hidden = nn.relu(nn.Dense(self.reduction * x.shape[1], name="mask_hidden")(v))
        mask = nn.Dense(x.shape[1], name="mask")(hidden)
        return nn.relu(layer_norm("norm")(nn.Dense(self.width, use_bias=False, name="dense")(mask * x)))


def _normed(embeddings: Float[Array, "B F D"], name: str) -> Float[Array, "B N"]:
    """LN_EMB: every field's embedding normalised by itself, all with one scale and bias, then joined."""
    return layer_norm(name)(embeddings).reshape(embeddings.shape[0], -1)


@register("masknet_serial")
class SerialMaskNet(Interaction):
    """Mask blocks one on the other, of widths `ctr.hidden`; h_c is the last one's output.

    Attributes:
      reduction: The masks' hidden layers are this many times as wide as the masks.
    """

    first_order: ClassVar[bool] = False
    reduction: PositiveInt = 2

    @nn.compact
    def __call__(self, embeddings: Float[Array, "B F D"], *, train: bool) -> Float[Array, "B C"]:
        """Computes h_c."""
        v = embeddings.reshape(embeddings.shape[0], -1)
        x = _normed(embeddings, "norm")
        for block, width in enumerate(self.config.hidden):
            x = MaskBlock(width, self.reduction, name=f"block_{block}")(v, x)
            x = Dropout(self.config.dropout)(x, train=train)
        return x


@register("masknet_parallel")
class ParallelMaskNet(Interaction):
    """Mask blocks side by side on the embeddings, joined, under a deep part whose last layer is h_c.

    Attributes:
      blocks: Mask blocks.
      width: Of each.
      reduction: The masks' hidden layers are this many times as wide as the masks.
    """

    first_order: ClassVar[bool] = False
    blocks: PositiveInt = 3
    width: PositiveInt = 64
    reduction: PositiveInt = 2

    @nn.compact
    def __call__(self, embeddings: Float[Array, "B F D"], *, train: bool) -> Float[Array, "B C"]:
        """Computes h_c."""
        v = embeddings.reshape(embeddings.shape[0], -1)
        normed = _normed(embeddings, "norm")
        blocks = [MaskBlock(self.width, self.reduction, name=f"block_{b}")(v, normed) for b in range(self.blocks)]
        joined = jnp.concatenate(blocks, axis=1)
        return MLP(self.config.hidden, self.config.dropout, name="deep")(joined, train=train)

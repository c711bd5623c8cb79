"""The plain deep part that most CTR towers have."""

import flax.linen as nn
from jaxtyping import Array, Float

from alt_jax.models.dropout import Dropout


class MLP(nn.Module):
    """ReLU layers, dropout after each.

    Attributes:
      widths: Of the layers; none gives the input back.
      dropout: Rate in training; None is 0.
    """

    widths: tuple[int, ...]
    dropout: float | None = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "B N"], *, train: bool) -> Float[Array, "B M"]:
        """x_{l+1} = dropout(ReLU(W_l x_l + b_l))."""
        for layer, width in enumerate(self.widths):
            x = nn.relu(nn.Dense(width, name=f"dense_{layer}")(x))
            x = Dropout(self.dropout)(x, train=train)
        return x

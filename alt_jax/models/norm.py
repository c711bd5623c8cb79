"""Layer normalisation as the originals of our towers and heads have it."""

import flax.linen as nn

EPSILON = 1e-5  # PyTorch's; Flax's own is 1e-6, which a vector of a small variance is stretched threefold by


def layer_norm(name: str) -> nn.LayerNorm:
    """(x − mean) / √(variance + 1e-5) · scale + bias over the last axis."""
    return nn.LayerNorm(epsilon=EPSILON, name=name)

"""Layer normalisation against PyTorch's, whose figures these are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alt_jax.models.norm import layer_norm


def test_a_small_variance_is_not_stretched():
    """torch.nn.LayerNorm(2)(torch.tensor([0, 1e-4])) is ∓0.0158; with Flax's ε it would be ∓0.0499."""
    norm = layer_norm("norm")
    x = jnp.asarray([[0.0, 1e-4], [0.0, 2.0]])
    found = norm.apply(norm.init(jax.random.key(0), x), x)
    expected = [[-5e-5 / np.sqrt(2.5e-9 + 1e-5)] * 2, [-1 / np.sqrt(1 + 1e-5)] * 2] * np.array([1, -1])
    assert np.asarray(found) == pytest.approx(expected, rel=1e-4)
    assert found[0, 1] == pytest.approx(0.0158, abs=1e-4)

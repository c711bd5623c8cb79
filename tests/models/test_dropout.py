"""Dropout: what is kept, how often, and that the mask does not know how many devices there are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from alt_jax.models.dropout import Dropout, keep
from alt_jax.sharding import make_mesh


def drop(rate, x, seed=0):
    return Dropout(rate).apply({}, x, train=True, rngs={"dropout": jax.random.key(seed)})


@pytest.mark.parametrize("chance", [0.9, 0.5, 0.02, 1 - 1e-6])
def test_as_many_are_kept_as_asked_for(chance):
    kept = np.asarray(keep(jax.random.key(0), chance, (500, 1001)))
    deviation = np.sqrt(chance * (1 - chance) / kept.size)
    assert abs(kept.mean() - chance) < 4 * deviation + 2**-16


def test_elements_are_independent():
    kept = np.asarray(keep(jax.random.key(1), 0.5, (2000, 64)), float)
    covariance = np.cov(kept.T) - np.eye(64) / 4
    assert np.abs(covariance).max() < 0.25 * 5 / np.sqrt(2000)  # halves of one draw among them


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_is_kept_is_scaled_and_the_rest_zero(dtype):
    x = jnp.arange(1.0, 22.0).reshape(3, 7).astype(dtype)
    out = drop(0.25, x)
    assert out.dtype == dtype
    kept = np.asarray(out != 0)
    assert 0 < kept.sum() < kept.size
    np.testing.assert_array_equal(np.asarray(out, np.float32)[kept], np.asarray(x / 0.75, np.float32)[kept])


def test_gradients_pass_where_something_was_kept():
    x = jnp.ones((4, 9))
    grads = jax.grad(lambda x: drop(0.5, x).sum())(x)
    np.testing.assert_array_equal(grads, drop(0.5, x))


def test_off_outside_of_training_and_at_rate_0():
    x = jnp.ones((2, 3))
    np.testing.assert_array_equal(Dropout(0.5).apply({}, x, train=False), x)
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x, train=True), x)


def test_keys_give_other_masks():
    x = jnp.ones((8, 64))
    assert (np.asarray(drop(0.5, x, 0)) != np.asarray(drop(0.5, x, 1))).any()


def test_eight_devices_draw_what_one_draws_and_without_talking():
    x = jnp.ones((16, 33))
    split = NamedSharding(make_mesh(), PartitionSpec("data"))
    program = jax.jit(lambda x: drop(0.3, x), out_shardings=split).lower(jax.device_put(x, split)).compile()
    np.testing.assert_array_equal(program(jax.device_put(x, split)), drop(0.3, x))
    assert not [
        op for op in ("all-gather", "all-reduce", "collective-permute", "all-to-all") if op in program.as_text()
    ]

"""DCN-Mix as the released code has it: sizes, start, dropout. Its equations: `test_interactions`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alt_jax.config import CTRConfig
from alt_jax.models.ctr import CTRTower

CONFIG = CTRConfig(dim=3, init_std=0.5, hidden=(7, 5), options=(("experts", 3), ("rank", 2)))
NUM_IDS, FIELDS = 20, 4
IDS = np.random.default_rng(0).integers(0, NUM_IDS, (6, FIELDS)).astype(np.int32)


def random_like(tree, seed: int = 0):
    """Every parameter random, biases too, so that no term can be missing unnoticed."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.standard_normal(leaf.shape), jnp.float32), tree)


@pytest.fixture(scope="module")
def tower():
    model = CTRTower(CONFIG, NUM_IDS)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.asarray(IDS), train=False))["params"]
    return model, random_like(shapes)


def test_dcn_mix_has_no_further_parameters(tower):
    _, params = tower
    names = {"/".join(str(k.key) for k in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    cross = {f"interaction/cross_{i}/{p}" for i in range(2) for p in ("V", "C", "U", "bias", "gate/kernel")}
    deep = {f"interaction/deep/dense_{i}/{p}" for i in range(2) for p in ("kernel", "bias")}
    assert names == {"embedding/embedding"} | cross | deep


@pytest.mark.parametrize(("fields", "width"), [(8, 384), (15, 608)])
def test_published_widths(fields, width):
    """F · 32 + 128 with the default config."""
    model = CTRTower(CTRConfig(), NUM_IDS)
    ids = jnp.zeros((2, fields), jnp.int32)
    shape = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), ids, train=False)[0]).shape
    assert shape == (2, width)


def test_embeddings_start_as_published():
    model = CTRTower(dataclasses.replace(CONFIG, init_std=1e-4), 5000)
    table = model.init(jax.random.key(0), jnp.asarray(IDS), train=False)["params"]["embedding"]["embedding"]
    assert np.std(table) == pytest.approx(1e-4, rel=0.05)
    assert np.mean(table) == pytest.approx(0, abs=5e-6)


def test_cross_part_of_one_expert_ignores_the_gate(tower):
    """A softmax over one expert is 1, whatever the gate's kernel."""
    config = dataclasses.replace(CONFIG, options=(("experts", 1), ("rank", 2)))
    model = CTRTower(config, NUM_IDS)
    params = random_like(jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.asarray(IDS), train=False))["params"])
    other = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + 3 if any(str(k.key) == "gate" for k in path) else leaf, params
    )
    apply = jax.jit(lambda p: model.apply({"params": p}, jnp.asarray(IDS), train=False))
    one, two = apply(params), apply(other)
    assert np.asarray(one) == pytest.approx(np.asarray(two), abs=1e-6)


def test_dropout_acts_on_the_deep_part_in_training_only():
    config = dataclasses.replace(CONFIG, dropout=0.5)
    model = CTRTower(config, NUM_IDS)
    params = random_like(jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.asarray(IDS), train=False))["params"])

    @functools.partial(jax.jit, static_argnums=0)
    def run(train: bool, seed: int):
        return model.apply({"params": params}, jnp.asarray(IDS), train=train, rngs={"dropout": jax.random.key(seed)})

    cross = FIELDS * CONFIG.dim
    assert (run(False, 0) == run(False, 1)).all()
    assert (run(True, 0)[:, :cross] == run(False, 0)[:, :cross]).all()
    assert (run(True, 0)[:, cross:] != run(True, 1)[:, cross:]).any()

"""The CTR tower: DCN-Mix against its published equations, the logit, and the registry of towers."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from alt_jax.config import Config, CTRConfig
from alt_jax.errors import InputError
from alt_jax.models import interactions
from alt_jax.models.ctr import CTRLogit, CTRTower
from alt_jax.models.interactions import Interaction

pytestmark = pytest.mark.usefixtures("quick_compile")

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


def slow_cross_layer(x0: list[float], x: list[float], p) -> list[float]:
    """Equations 5 and 6 of DCN-V2 (arXiv 2008.13535), expert after expert:

    x_{l+1} = Σ_e G_e(x_l) E_e(x_l) + x_l,  E_e(x) = x_0 ⊙ (U_e · tanh(C_e · tanh(V_eᵀ x)) + b), G softmax.
    """
    V, C, U, b = (np.asarray(p[name], np.float64) for name in ("V", "C", "U", "bias"))
    gate_kernel = np.asarray(p["gate"]["kernel"], np.float64)
    width, experts, rank = len(x0), V.shape[0], V.shape[2]
    gates = [math.exp(sum(x[n] * gate_kernel[n, e] for n in range(width))) for e in range(experts)]
    gates = [g / sum(gates) for g in gates]
    out = list(x)
    for e in range(experts):
        inner = [math.tanh(sum(V[e, n, r] * x[n] for n in range(width))) for r in range(rank)]
        inner = [math.tanh(sum(inner[r] * C[e, r, k] for r in range(rank))) for k in range(rank)]
        for n in range(width):
            expert = x0[n] * (sum(inner[r] * U[e, r, n] for r in range(rank)) + b[n])
            out[n] += gates[e] * expert
    return out


def slow_representation(ids: list[int], params, config: CTRConfig) -> list[float]:
    table = np.asarray(params["embedding"]["embedding"], np.float64)
    p = params["interaction"]
    x0 = [float(v) for i in ids for v in table[i]]
    cross = x0
    for layer in range(2):
        cross = slow_cross_layer(x0, cross, p[f"cross_{layer}"])
    deep = x0
    for layer in range(len(config.hidden)):
        kernel, bias = (np.asarray(p["deep"][f"dense_{layer}"][name], np.float64) for name in ("kernel", "bias"))
        deep = [
            max(0.0, sum(x * k for x, k in zip(deep, kernel[:, j], strict=True)) + bias[j]) for j in range(len(bias))
        ]
    return [*cross, *deep]


def test_dcn_mix_is_the_published_equations(tower):
    model, params = tower
    found = jax.jit(lambda p: model.apply({"params": p}, jnp.asarray(IDS), train=False))(params)
    expected = np.array([slow_representation(row.tolist(), params, CONFIG) for row in IDS])
    assert found.shape == (6, FIELDS * CONFIG.dim + CONFIG.hidden[-1])
    assert np.asarray(found) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_dcn_mix_has_no_further_parameters(tower):
    _, params = tower
    names = {"/".join(str(k.key) for k in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    cross = {f"interaction/cross_{i}/{p}" for i in range(2) for p in ("V", "C", "U", "bias", "gate/kernel")}
    deep = {f"interaction/deep/dense_{i}/{p}" for i in range(2) for p in ("kernel", "bias")}
    assert names == {"embedding/embedding"} | cross | deep


@pytest.mark.parametrize(("fields", "width"), [(8, 384), (15, 608)])
def test_published_widths(fields, width):
    """F · 32 + 128 with the default config (METHOD.md)."""
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


def test_logit_is_first_order_weights_plus_linear():
    rng = np.random.default_rng(1)
    h = rng.standard_normal((6, 5)).astype(np.float32)
    model = CTRLogit(CONFIG, NUM_IDS)
    params = random_like(
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.asarray(IDS), jnp.asarray(h)))["params"], seed=2
    )
    found = model.apply({"params": params}, jnp.asarray(IDS), jnp.asarray(h))
    weights, kernel = np.asarray(params["linear"]["embedding"]), np.asarray(params["readout"]["dense"]["kernel"])
    for row in range(6):
        slow = float(params["readout"]["dense"]["bias"][0])
        for feature in IDS[row]:
            slow += float(weights[feature, 0])
        for j in range(5):
            slow += float(h[row, j]) * float(kernel[j, 0])
        assert found[row] == pytest.approx(slow, rel=1e-5, abs=1e-5)


# --- the registry ---


def test_unknown_tower_names_the_nearest():
    with pytest.raises(InputError, match=r"Unknown CTR tower 'dcn_mx'; did you mean 'dcn_mix'\? Known: .*dcn_mix"):
        interactions.options("dcn_mx")
    with pytest.raises(InputError, match=r"Unknown CTR tower 'zzz'; Known: "):
        interactions.options("zzz")


def test_a_tower_is_one_registered_class(monkeypatch):
    monkeypatch.setattr(interactions, "_TOWERS", dict(interactions._TOWERS))

    @interactions.register("sum_pool")
    class SumPool(Interaction):
        """The sum over fields through one layer."""

        @nn.compact
        def __call__(self, embeddings: Float[Array, "B F D"], *, train: bool) -> Float[Array, "B C"]:
            return nn.Dense(self.config.hidden[-1], name="dense")(jnp.sum(embeddings, axis=1))

    assert "sum_pool" in interactions.names()
    config = Config(ctr=dataclasses.replace(CONFIG, tower="sum_pool"))
    h, variables = CTRTower(config.ctr, NUM_IDS).init_with_output(jax.random.key(0), jnp.asarray(IDS), train=False)
    p = variables["params"]
    pooled = np.asarray(p["embedding"]["embedding"])[IDS].sum(axis=1)
    assert np.asarray(h) == pytest.approx(pooled @ np.asarray(p["interaction"]["dense"]["kernel"]), abs=1e-6)
    with pytest.raises(ValueError, match="Two towers are called 'sum_pool'"):
        interactions.register("sum_pool")(SumPool)
    monkeypatch.undo()
    with pytest.raises(InputError, match="Unknown CTR tower 'sum_pool'"):
        interactions.options("sum_pool")


def test_every_registered_tower_represents_rows():
    """The contract that the rest relies on: finite [B, C], row by row, whatever the batch."""
    for name in interactions.names():
        model = CTRTower(dataclasses.replace(CONFIG, tower=name, dim=4), NUM_IDS)
        h, variables = jax.jit(lambda m=model: m.init_with_output(jax.random.key(0), jnp.asarray(IDS), train=False))()
        assert h.shape[0] == len(IDS), name
        assert h.ndim == 2, name
        assert jnp.isfinite(h).all(), name
        alone = jax.jit(lambda v, m=model: m.apply(v, jnp.asarray(IDS[2:3]), train=False))(variables)
        assert np.asarray(alone[0]) == pytest.approx(np.asarray(h[2]), rel=1e-5, abs=1e-6), name

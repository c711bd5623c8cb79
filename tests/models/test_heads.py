"""The heads against literal NumPy versions of their equations, and what must not reach them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alt_jax.models.heads import Fusion, MLMHead, MTMHead, Projection, TextLogit, pool
from alt_jax.models.table import table_rows
from alt_jax.schema import Field, Schema, Split, TextSchema

B, L, C, D, E = 3, 5, 7, 6, 4
RNG = np.random.default_rng(0)
H = RNG.standard_normal((B, C)).astype(np.float32)
STATES = RNG.standard_normal((B, L, D)).astype(np.float32)
MASK = np.arange(L)[None] < np.array([5, 3, 1])[:, None]


def make_schema() -> Schema:
    return Schema(
        source="table",
        protocol="random",
        fields=(Field("A", "a", 2, 3, 4), Field("B", "b", 5, 4, 4)),
        linked=(),
        user=None,
        item=None,
        text=TextSchema("trained", "", 10, 0, 1, 2, 3, L, L, L),
        splits={"train": Split(1, 0)},
        vocabulary_hash="",
        data_hash="",
    )


def random_params(model, *arguments, **options):
    """Every parameter random, scales and biases too."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *arguments, **options))["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), shapes)


def dense(x: np.ndarray, p) -> np.ndarray:
    return np.asarray(x, np.float64) @ np.asarray(p["kernel"], np.float64) + np.asarray(p["bias"], np.float64)


def layer_norm(x: np.ndarray, p) -> np.ndarray:
    out = np.empty_like(x)
    for i, row in enumerate(x):
        mean = sum(row) / len(row)
        variance = sum((v - mean) ** 2 for v in row) / len(row)
        out[i] = (row - mean) / math.sqrt(variance + 1e-5) * np.asarray(p["scale"]) + np.asarray(p["bias"])
    return out


# --- projection ---


@pytest.mark.parametrize("normalize", [False, True])
def test_projection_is_the_equation(normalize):
    """Linear → GELU → Linear, plus the first Linear's output, then LayerNorm."""
    model = Projection(E, 0.2, normalize)
    params = random_params(model, jnp.asarray(H), train=False)
    found = model.apply({"params": params}, jnp.asarray(H), train=False)
    first = dense(H, params["first"])
    gelu = np.vectorize(lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2))))(first)
    z = layer_norm(first + dense(gelu, params["second"]), params["norm"])
    if normalize:
        z = np.array([row / math.sqrt(sum(v * v for v in row)) for row in z])
    assert np.asarray(found) == pytest.approx(z, rel=1e-4, abs=1e-4)


def test_a_fresh_projection_has_length_sqrt_d_or_1():
    """LayerNorm at its initial scale gives ‖z‖ ≈ √E, which τ = 0.7 was chosen for."""
    for normalize, length in ((False, math.sqrt(32)), (True, 1.0)):
        z, _ = Projection(32, 0.0, normalize).init_with_output(jax.random.key(0), jnp.asarray(H), train=False)
        assert np.linalg.norm(z, axis=1) == pytest.approx(np.full(B, length), rel=1e-3)


def test_projection_drops_out_in_training_only():
    model = Projection(32, 0.5, False)
    params = random_params(model, jnp.asarray(H), train=False)

    def run(train: bool, seed: int) -> np.ndarray:
        rngs = {"dropout": jax.random.key(seed)}
        return np.asarray(model.apply({"params": params}, jnp.asarray(H), train=train, rngs=rngs))

    assert (run(False, 0) == run(False, 1)).all()
    assert (run(True, 0) != run(True, 1)).any()


# --- MLM ---


def test_mlm_head_is_the_equation():
    model = MLMHead(11, 0.2)
    at = STATES[:, 0]
    params = random_params(model, jnp.asarray(at), jnp.asarray(H), train=False)
    found = model.apply({"params": params}, jnp.asarray(at), jnp.asarray(H), train=False)
    hidden = np.tanh(dense(np.concatenate([at, H], axis=1), params["hidden"]))
    assert params["hidden"]["kernel"].shape == (D + C, D)  # → Linear(D_t)
    assert np.asarray(found) == pytest.approx(dense(hidden, params["output"]), rel=1e-4, abs=1e-4)


# --- MTM ---


@pytest.fixture(scope="module")
def mtm():
    model = MTMHead(make_schema(), E)
    arguments = jnp.asarray(H), jnp.asarray(STATES), jnp.asarray(MASK)
    params = random_params(model, *arguments)
    apply = jax.jit(lambda p, *a: model.apply({"params": p}, *a))
    return apply, params


def test_mtm_head_is_the_equation(mtm):
    """softmax(q·k / √D) over real tokens only, computed token after token."""
    apply, params = mtm
    vectors, table, bias = apply(params, jnp.asarray(H), jnp.asarray(STATES), jnp.asarray(MASK))
    query = layer_norm(dense(H, params["help"]["query"]), params["help"]["norm"])
    attended = np.zeros((B, D))
    for b in range(B):
        tokens = [t for t in range(L) if MASK[b, t]]
        scores = [sum(query[b, d] * float(STATES[b, t, d]) for d in range(D)) / math.sqrt(D) for t in tokens]
        weights = [math.exp(s) for s in scores]
        for t, w in zip(tokens, weights, strict=True):
            attended[b] += w / sum(weights) * STATES[b, t]
    expected = dense(np.concatenate([H, attended], axis=1), params["output"]).reshape(B, 2, E)
    assert np.asarray(vectors) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert table.shape == (table_rows(9), E)
    assert bias.shape == (table_rows(9),)


def test_mtm_pays_no_attention_to_padding(mtm):
    """Neither values nor gradients see what stands in padding, however large; nor how much padding there is."""
    apply, params = mtm
    wild = np.where(MASK[..., None], STATES, 1e4).astype(np.float32)
    plain = apply(params, jnp.asarray(H), jnp.asarray(STATES), jnp.asarray(MASK))[0]
    assert np.asarray(apply(params, jnp.asarray(H), jnp.asarray(wild), jnp.asarray(MASK))[0]) == pytest.approx(
        np.asarray(plain), rel=1e-6
    )
    longer = np.concatenate([wild, wild], axis=1)
    padded = np.concatenate([MASK, np.zeros_like(MASK)], axis=1)
    found = apply(params, jnp.asarray(H), jnp.asarray(longer), jnp.asarray(padded))[0]
    assert np.asarray(found) == pytest.approx(np.asarray(plain), rel=1e-5)
    grad = jax.grad(lambda s: jnp.sum(apply(params, jnp.asarray(H), s, jnp.asarray(MASK))[0] ** 2))(jnp.asarray(wild))
    assert np.isfinite(grad).all()
    assert (np.asarray(grad)[~MASK] == 0).all()
    assert (np.asarray(grad)[MASK] != 0).any()


def test_one_real_token_gets_all_attention(mtm):
    """Row 2 has one: the query then does not matter."""
    apply, params = mtm
    query = jax.tree.map(lambda leaf: -3 * leaf, params["help"]["query"])
    other = dict(params) | {"help": dict(params["help"]) | {"query": query}}
    one, two = (apply(p, jnp.asarray(H), jnp.asarray(STATES), jnp.asarray(MASK))[0] for p in (params, other))
    assert np.asarray(one[2]) == pytest.approx(np.asarray(two[2]), rel=1e-5)
    assert np.abs(np.asarray(one[0] - two[0])).max() > 1e-3


# --- finetuning ---


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_text_logit_is_of_the_pooled_states(pooling):
    slow = {
        "cls": [row[0] for row in STATES],
        "mean": [
            sum(row[place] for place in np.flatnonzero(real)) / real.sum()
            for row, real in zip(STATES, MASK, strict=True)
        ],
    }[pooling]
    text = pool(jnp.asarray(STATES), jnp.asarray(MASK), pooling)
    assert np.asarray(text) == pytest.approx(np.asarray(slow), rel=1e-5, abs=1e-5)
    assert pool(jnp.asarray(STATES, jnp.bfloat16), jnp.asarray(MASK), pooling).dtype == jnp.float32
    model = TextLogit()
    params = random_params(model, text)
    found = model.apply({"params": params}, text)
    assert np.asarray(found) == pytest.approx(dense(np.asarray(text), params["dense"])[:, 0], rel=1e-5, abs=1e-5)


CTR, TEXT = jnp.asarray([1.0, -2.0, 4.0]), jnp.asarray([3.0, 0.5, -1.0])
VIEWS = jnp.asarray([[0.5, 1.0], [2.0, -1.0], [0.0, 1.5]]), jnp.asarray([[1.0], [-2.0], [0.5]])


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 0.3])
def test_fusion_mixes_the_logits(alpha):
    model = Fusion("free", alpha)
    found, variables = model.init_with_output(jax.random.key(0), CTR, TEXT, *VIEWS)
    assert variables["params"]["alpha"].shape == ()
    slow = [alpha * float(c) + (1 - alpha) * float(t) for c, t in zip(CTR, TEXT, strict=True)]
    assert np.asarray(found) == pytest.approx(slow, rel=1e-6)
    # dL/dα = Σ (logit_c − logit_t): the scalar learns
    grad = jax.grad(lambda v: model.apply(v, CTR, TEXT, *VIEWS).sum())(variables)["params"]["alpha"]
    assert grad == pytest.approx(float((CTR - TEXT).sum()), rel=1e-6)


def test_at_alpha_0_the_ctr_logit_gets_no_joint_gradient():
    """Why α starts at ½ here and not at 0, as in the released code."""

    def gradient(alpha: float):
        fusion, params = Fusion("free", alpha), {"params": {"alpha": alpha}}
        return jax.grad(lambda ctr: fusion.apply(params, ctr, TEXT, *VIEWS).sum())(jnp.ones(3))

    assert jnp.all(gradient(0.0) == 0)
    assert jnp.all(gradient(0.5) == 0.5)


@pytest.mark.parametrize("kind", ["sigmoid", "gated"])
def test_bounded_fusion_starts_at_alpha(kind):
    found, variables = Fusion(kind, 0.3).init_with_output(jax.random.key(0), CTR, TEXT, *VIEWS)
    assert np.asarray(found) == pytest.approx(np.asarray(0.3 * CTR + 0.7 * TEXT), rel=1e-5)
    grads = jax.grad(lambda v: (Fusion(kind, 0.3).apply(v, CTR, TEXT, *VIEWS) * jnp.arange(1.0, 4)).sum())(variables)
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(grads))


def test_the_gate_is_the_equation():
    params = {"gate": {"kernel": jnp.asarray([[0.7], [-0.4], [1.1]]), "bias": jnp.asarray([0.2])}}
    found = Fusion("gated", 0.5).apply({"params": params}, CTR, TEXT, *VIEWS)
    for r, (h, t) in enumerate(zip(np.asarray(VIEWS[0]), np.asarray(VIEWS[1]), strict=True)):
        alpha = 1 / (1 + np.exp(-(0.7 * h[0] - 0.4 * h[1] + 1.1 * t[0] + 0.2)))
        assert float(found[r]) == pytest.approx(float(alpha * CTR[r] + (1 - alpha) * TEXT[r]), rel=1e-5)


def test_the_average_has_nothing_to_learn():
    found, variables = Fusion("average", 0.5).init_with_output(jax.random.key(0), CTR, TEXT, *VIEWS)
    assert variables == {}
    assert np.asarray(found) == pytest.approx(np.asarray((CTR + TEXT) / 2))

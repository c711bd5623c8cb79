"""ICL beyond the plain softmax: rows left out, the sigmoid loss, chunks, a learned temperature, sampled softmax."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import optimised
from hypothesis import given, settings
from hypothesis import strategies as st

from alt_jax import objectives
from alt_jax.models.heads import Similarity
from alt_jax.sharding import by_rows, make_mesh

B, D = 8, 5
OBJECTIVES, DUPLICATES = ("infonce", "sigmoid"), ("positive", "ignore", "negative")


def draw(seed: int = 0):
    """Views, values of user, item and context, with equal rows and rows that share a user or an item."""
    rng = np.random.default_rng(seed)
    ctr, text = rng.standard_normal((2, B, D)).astype(np.float32)
    return ctr, text, rng.integers(0, 3, (B, 2)).astype(np.int32)


def slow(ctr, text, values, columns, scale, bias, objective, duplicates) -> float:
    """Pair by pair, in float64."""
    total = 0.0
    for queries, keys in ((ctr, text), (text, ctr)):
        for i in range(B):
            scores, positive = [], []
            for j in range(B):
                equal = list(values[i]) == list(values[j])
                shares = any(values[i][c] == values[j][c] for c in columns)
                is_positive = i == j or (equal and duplicates == "positive")
                if not is_positive and (shares or (equal and duplicates == "ignore")):
                    continue
                dot = sum(float(a) * float(b) for a, b in zip(queries[i], keys[j], strict=True))
                scores.append(scale * dot + bias)
                positive.append(is_positive)
            if objective == "sigmoid":
                signed = [s if p else -s for s, p in zip(scores, positive, strict=True)]
                total += 0.5 * sum(math.log1p(math.exp(-s)) for s in signed)
            else:
                log_z = math.log(sum(math.exp(s) for s in scores))
                of = [s - log_z for s, p in zip(scores, positive, strict=True) if p]
                total -= 0.5 * sum(of) / len(of)
    return total / B


def contrast(ctr, text, values, columns=(), **options) -> objectives.Contrast:
    values = jnp.asarray(values)
    apart = values[:, np.array(columns, int)]
    return objectives.instance_contrast(jnp.asarray(ctr), jnp.asarray(text), values, apart=apart, **options)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("duplicates", DUPLICATES)
@pytest.mark.parametrize("columns", [(), (0,), (0, 1)], ids=["none", "user", "user and item"])
def test_the_loss_is_the_sum_over_pairs(objective, duplicates, columns):
    ctr, text, values = draw()
    options = {"scale": 1.5, "bias": -2.0, "objective": objective, "duplicates": duplicates}
    found = contrast(ctr, text, values, columns, **options)
    assert found.loss.value == pytest.approx(slow(ctr, text, values, columns, **options), rel=1e-5)


def test_rows_left_out_are_no_negatives():
    """However alike a row of the same user is, nothing of it reaches the loss or its gradient."""
    ctr, text, values = draw(1)
    values[:, 1] = np.arange(B)  # no equal rows
    values[1, 0] = values[0, 0] = 7  # rows 0 and 1 share a user that no other has
    grads = jax.grad(lambda c: contrast(c, text, values, (0,), scale=1.0).loss.value)
    moved = text.copy()
    moved[1] += 100 * ctr[0]  # row 1's text now looks like row 0's table
    per_row = jax.jacobian(
        lambda t: (
            objectives.instance_contrast(
                jnp.asarray(ctr[:2]), t[:2], jnp.asarray(values[:2]), scale=1.0, apart=jnp.asarray(values[:2, :1])
            ).loss.value
        )
    )(jnp.asarray(moved))
    assert float(jnp.abs(per_row).max()) == 0  # two rows of one user have nothing to be told apart from
    assert jnp.isfinite(grads(jnp.asarray(ctr))).all()


@given(
    st.integers(0, 2**32 - 1), st.sampled_from(OBJECTIVES), st.sampled_from(DUPLICATES), st.sampled_from([1, 2, 4, 8])
)
@settings(deadline=None, max_examples=12)
def test_chunks_change_neither_loss_nor_gradient(seed, objective, duplicates, chunk):
    ctr, text, values = draw(seed)

    def run(c, t, size):
        found = contrast(c, t, values, (0,), scale=2.0, objective=objective, duplicates=duplicates, chunk=size)
        return found.loss.value, tuple(m.value for m in found)

    views = jnp.asarray(ctr), jnp.asarray(text)
    whole, chunked = (
        jax.value_and_grad(lambda c, t, size=size: run(c, t, size), argnums=(0, 1), has_aux=True)(*views)
        for size in (0, chunk)
    )
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(chunked), strict=True):
        assert np.asarray(other) == pytest.approx(np.asarray(one), rel=1e-5, abs=1e-6)


# --- memory ---

LARGE, WIDTH, CHUNK = 32_768, 128, 256


@pytest.fixture(scope="module")
def large() -> dict[tuple[int, int], Any]:
    """Loss and gradient of a batch of 32,768 rows, compiled in earnest but not run; by devices and chunk."""
    programs = {}
    for devices, chunk in ((1, 0), (1, CHUNK), (8, 0), (8, CHUNK)):
        mesh = make_mesh(jax.local_devices()[:devices])
        view = jax.ShapeDtypeStruct((LARGE, WIDTH), jnp.float32, sharding=by_rows(mesh))
        values = jax.ShapeDtypeStruct((LARGE, 8), jnp.int32, sharding=by_rows(mesh))

        def loss(ctr, text, values, chunk=chunk):
            return objectives.instance_contrast(ctr, text, values, scale=2.0, chunk=chunk).loss.value

        with optimised(), jax.set_mesh(mesh):
            both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
            programs[devices, chunk] = both.lower(view, view, values).compile()
    return programs


def test_chunks_bound_the_memory_of_32768_rows(large):
    """A whole similarity matrix takes 4.3 GB, and there are several; a device holds its share of a chunk of each."""
    size = {which: program.memory_analysis().temp_size_in_bytes for which, program in large.items()}
    print({which: f"{number / 1e9:.2f} GB" for which, number in size.items()})  # docs/method.md has these
    assert size[1, 0] > 4 * 4 * LARGE**2
    assert size[1, CHUNK] < 0.4e9
    for chunk in (0, CHUNK):
        assert size[8, chunk] < size[1, chunk] / 5


def test_a_device_has_its_share_of_the_similarities(large):
    """By the arrays of the compiled programs: some rows against all, or all of a chunk against some; never all."""
    for (devices, chunk), program in large.items():
        arrays = {tuple(map(int, dims.split(","))) for dims in re.findall(r"f32\[([0-9,]+)\]", program.as_text())}
        rows = chunk or LARGE
        assert {(rows // devices, LARGE), (rows, LARGE // devices)} & arrays
        assert max(map(math.prod, arrays)) <= max(rows * LARGE // devices, LARGE * WIDTH)


# --- temperature ---


def test_learned_scale_starts_at_the_temperature_and_is_clamped_at_100():
    module = Similarity(0.07, learned=True, biased=True)
    params = module.init(jax.random.key(0))["params"]
    scale, bias = module.apply({"params": params})
    assert float(scale) == pytest.approx(1 / 0.07, rel=1e-6)
    assert float(bias) == -10
    high = {**params, "log_scale": jnp.log(300.0)}
    assert float(module.apply({"params": high})[0]) == pytest.approx(100)

    def slope(sign: float, at: float) -> float:
        def f(log_scale):
            return sign * module.apply({"params": {**params, "log_scale": log_scale}})[0]

        return float(jax.grad(f)(jnp.log(at)))

    assert slope(1.0, 50.0) == pytest.approx(50, rel=1e-5)  # d exp(x) / dx
    assert slope(-1.0, 50.0) == pytest.approx(-50, rel=1e-5)
    assert slope(-1.0, 300.0) == 0  # descent would raise it further
    assert slope(1.0, 300.0) > 0  # the way back is open


def test_a_fixed_temperature_has_no_parameters():
    module = Similarity(0.7, learned=False, biased=False)
    assert module.init(jax.random.key(0)) == {}
    assert module.apply({}) == (pytest.approx(1 / 0.7), 0.0)


# --- sampled softmax ---


def test_sampled_softmax_is_the_equation():
    rng = np.random.default_rng(0)
    target, noise, q = rng.standard_normal(3), rng.standard_normal((3, 4)), rng.uniform(0.1, 0.5, (3, 4))
    hit = np.array([[False] * 4, [True, False, True, False], [True] * 4])
    found = objectives.sampled_softmax(*map(jnp.float32, (target, noise, np.log(q))), jnp.asarray(hit))
    for r in range(3):
        terms = [math.exp(noise[r, k]) / (4 * q[r, k]) for k in range(4) if not hit[r, k]]
        own = math.exp(target[r])
        assert float(found[r]) == pytest.approx(-math.log(own / (own + sum(terms))), rel=1e-5, abs=1e-6)


def test_sampled_softmax_tends_to_the_full_one():
    """With very many draws it has the gradient of the softmax over all ids, whatever q is; without log q it has not."""
    rng, ids, draws, target = np.random.default_rng(1), 6, 200_000, 2
    scores = jnp.asarray(rng.standard_normal(ids), jnp.float32)
    q = rng.dirichlet(np.ones(ids))
    noise = jnp.asarray(rng.choice(ids, draws, p=q))

    def sampled(s, log_q):
        return objectives.sampled_softmax(s[target], s[noise], log_q[noise], noise == target)

    full = np.asarray(jax.grad(lambda s: objectives.softmax_cross_entropy(s, jnp.int32(target)))(scores))
    assert np.asarray(jax.grad(sampled)(scores, jnp.asarray(np.log(q), jnp.float32))) == pytest.approx(full, abs=0.01)
    uniform = jnp.full(ids, -math.log(ids))
    assert np.abs(np.asarray(jax.grad(sampled)(scores, uniform)) - full).max() > 0.05

"""The losses against slow, literal versions of their equations in float64, and what they do at the edges."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from alt_jax import objectives

DUPLICATES = ("positive", "ignore", "negative")
B, D = 6, 5
VALUES = np.array([[1, 2], [3, 4], [1, 2], [5, 6], [3, 4], [1, 2]], np.int32)  # rows 0 = 2 = 5, 1 = 4


def views(scale: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    ctr, text = rng.standard_normal((2, B, D)).astype(np.float32)
    return scale * ctr, text


def contrast(ctr, text, values=VALUES, *, temperature: float = 0.7, duplicates: str) -> objectives.Contrast:
    return objectives.instance_contrast(
        jnp.asarray(ctr), jnp.asarray(text), jnp.asarray(values), scale=1 / temperature, duplicates=duplicates
    )


def check(loss, *arguments) -> None:
    """Forward and reverse gradients against float32 differences (jax.test_util passes NumPy arrays on)."""
    on_device = jax.tree.map(jnp.asarray, arguments)
    check_grads(
        lambda *a: loss(*map(jnp.asarray, a)), on_device, order=1, modes=("fwd", "rev"), atol=2e-3, rtol=2e-3, eps=1e-2
    )


def log_sum_exp(values: list[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


def slow_one_way(queries, keys, values, temperature: float, duplicates: str) -> list[float]:
    """CE of every query's softmax over the keys, row by row."""
    losses = []
    rows = len(queries)
    for i in range(rows):
        scores = {}
        for j in range(rows):
            twin = j != i and all(a == b for a, b in zip(values[i], values[j], strict=True))
            if not (twin and duplicates == "ignore"):
                scores[j] = sum(float(a) * float(b) for a, b in zip(queries[i], keys[j], strict=True)) / temperature
        normaliser = log_sum_exp(list(scores.values()))
        if duplicates == "positive":
            positives = [j for j in range(rows) if all(a == b for a, b in zip(values[i], values[j], strict=True))]
        else:
            positives = [i]
        losses.append(-sum(scores[j] - normaliser for j in positives) / len(positives))
    return losses


def slow_contrast(ctr, text, values, temperature: float, duplicates: str) -> float:
    rows = slow_one_way(ctr, text, values, temperature, duplicates)
    columns = slow_one_way(text, ctr, values, temperature, duplicates)
    return sum(0.5 * a + 0.5 * b for a, b in zip(rows, columns, strict=True)) / len(rows)


def slow_retrieved(queries, keys, values) -> float:
    """Share of queries whose best key is their own or an equal row's."""
    hits = 0
    for i in range(len(queries)):
        scores = [sum(float(a) * float(b) for a, b in zip(queries[i], key, strict=True)) for key in keys]
        best = max(range(len(keys)), key=scores.__getitem__)
        hits += all(a == b for a, b in zip(values[i], values[best], strict=True))
    return hits / len(queries)


# --- ICL ---


@pytest.mark.parametrize("duplicates", DUPLICATES)
@pytest.mark.parametrize("temperature", [0.07, 0.7])
def test_contrast_is_the_equation(duplicates, temperature):
    ctr, text = views()
    found = contrast(ctr, text, temperature=temperature, duplicates=duplicates)
    assert found.loss.weight == B
    assert found.loss.value == pytest.approx(slow_contrast(ctr, text, VALUES, temperature, duplicates), rel=1e-5)


def test_duplicates_matter_only_where_there_are_some():
    ctr, text = views()
    alone = np.arange(2 * B, dtype=np.int32).reshape(B, 2)
    with_twins = [float(contrast(ctr, text, duplicates=d).loss.value) for d in DUPLICATES]
    without = [float(contrast(ctr, text, alone, duplicates=d).loss.value) for d in DUPLICATES]
    assert len(set(np.round(with_twins, 4))) == 3
    assert without == pytest.approx([without[0]] * 3, rel=1e-6)
    assert without[0] == pytest.approx(with_twins[2], rel=1e-6)  # `negative` does not look at equality


def test_contrast_of_identical_rows():
    """All rows the same: as positives the target is uniform, left out nothing competes, as negatives it is ln B."""
    ctr, text = np.ones((B, D), np.float32), np.ones((B, D), np.float32)
    values = np.ones((B, 2), np.int32)
    assert contrast(ctr, text, values, duplicates="positive").loss.value == pytest.approx(math.log(B), rel=1e-6)
    assert contrast(ctr, text, values, duplicates="ignore").loss.value == 0
    assert contrast(ctr, text, values, duplicates="negative").loss.value == pytest.approx(math.log(B), rel=1e-6)


@pytest.mark.parametrize("duplicates", DUPLICATES)
def test_contrast_is_symmetric_in_its_direction(duplicates):
    ctr, text = views()
    one, other = contrast(ctr, text, duplicates=duplicates), contrast(text, ctr, duplicates=duplicates)
    assert one.loss.value == pytest.approx(float(other.loss.value), rel=1e-6)
    assert one.ctr_to_text.value == other.text_to_ctr.value
    assert one.text_to_ctr.value == other.ctr_to_text.value


def test_retrieval_counts_equal_rows_as_found():
    for seed in range(5):
        ctr, text = views(seed=seed)
        found = contrast(ctr, text, duplicates="positive")
        assert found.ctr_to_text.value == pytest.approx(slow_retrieved(ctr, text, VALUES))
        assert found.text_to_ctr.value == pytest.approx(slow_retrieved(text, ctr, VALUES))
    identity = np.eye(B, dtype=np.float32)
    assert contrast(identity, identity, duplicates="negative").ctr_to_text.value == 1


@given(st.integers(0, 2**32 - 1), st.permutations(range(B)), st.sampled_from(DUPLICATES))
@settings(deadline=None, max_examples=20)
def test_contrast_does_not_depend_on_the_order_of_rows(seed, order, duplicates):
    rng = np.random.default_rng(seed)
    ctr, text = rng.standard_normal((2, B, D)).astype(np.float32)
    values = rng.integers(0, 2, (B, 2)).astype(np.int32)
    order = np.array(order)
    straight = contrast(ctr, text, values, duplicates=duplicates)
    shuffled = contrast(ctr[order], text[order], values[order], duplicates=duplicates)
    for one, other in zip(straight, shuffled, strict=True):
        assert one.value == pytest.approx(float(other.value), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("duplicates", DUPLICATES)
def test_gradients_of_contrast_are_those_of_finite_differences(duplicates):
    ctr, text = views(0.5)
    check(lambda c, t: contrast(c, t, duplicates=duplicates).loss.value, ctr, text)


@pytest.mark.parametrize("duplicates", DUPLICATES)
def test_gradient_of_contrast_is_that_of_the_slow_version(duplicates):
    """Central differences of the literal loops in float64: far sharper than float32 differences."""
    ctr, text = views(0.5)
    found = jax.grad(lambda c: contrast(c, text, duplicates=duplicates).loss.value)(jnp.asarray(ctr))
    exact = ctr.astype(np.float64)
    for index in np.ndindex(2, D):  # row 0 has twins, row 1 too
        step = np.zeros_like(exact)
        step[index] = 1e-5
        high = slow_contrast(exact + step, text, VALUES, 0.7, duplicates)
        low = slow_contrast(exact - step, text, VALUES, 0.7, duplicates)
        assert found[index] == pytest.approx((high - low) / 2e-5, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("duplicates", DUPLICATES)
@pytest.mark.parametrize("scale", [1e4, 1e-4, 0.0])
def test_contrast_and_its_gradients_stay_finite(duplicates, scale):
    ctr, text = views(scale)
    loss, grads = jax.value_and_grad(lambda c, t: contrast(c, t, duplicates=duplicates).loss.value, argnums=(0, 1))(
        jnp.asarray(ctr), jnp.asarray(text)
    )
    assert loss == pytest.approx(slow_contrast(ctr, text, VALUES, 0.7, duplicates), rel=1e-5)
    assert all(jnp.isfinite(g).all() for g in grads)


# --- MLM, MTM by softmax ---


def slow_cross_entropy(logits, target) -> float:
    logits = [float(v) for v in logits]
    return log_sum_exp(logits) - logits[target]


def test_cross_entropy_is_averaged_over_masked_tokens_only():
    """A weight of 0 elsewhere, taking the masked positions out, and the loop over them are all the same."""
    rng = np.random.default_rng(0)
    logits = (3 * rng.standard_normal((4, 7, 11))).astype(np.float32)
    target = rng.integers(0, 11, (4, 7)).astype(np.int32)
    masked = rng.random((4, 7)) < 0.3
    slow = [slow_cross_entropy(logits[i, j], target[i, j]) for i in range(4) for j in range(7) if masked[i, j]]
    everywhere = objectives.weighted(
        objectives.softmax_cross_entropy(jnp.asarray(logits), jnp.asarray(target)), jnp.asarray(masked, jnp.float32)
    )
    index = np.flatnonzero(masked)
    taken = objectives.softmax_cross_entropy(
        jnp.asarray(logits.reshape(-1, 11)[index]), jnp.asarray(target.reshape(-1)[index])
    )
    indexed = objectives.weighted(taken, jnp.ones(len(index)))
    assert everywhere.weight == indexed.weight == len(slow)
    assert everywhere.value == pytest.approx(sum(slow) / len(slow), rel=1e-5)
    assert indexed.value == pytest.approx(float(everywhere.value), rel=1e-6)


def test_cross_entropy_is_softmax_over_what_it_is_given():
    """MTM's softmax over a field: a constant added to all logits, or a field of one id, changes nothing."""
    logits = jnp.asarray([[1.0, 2.0, 3.0]])
    target = jnp.asarray([1])
    found = objectives.softmax_cross_entropy(logits, target)
    assert found[0] == pytest.approx(-math.log(math.e**2 / (math.e + math.e**2 + math.e**3)), rel=1e-6)
    assert objectives.softmax_cross_entropy(logits + 100, target)[0] == pytest.approx(float(found[0]), rel=1e-5)
    assert objectives.softmax_cross_entropy(jnp.asarray([[5.0]]), jnp.asarray([0]))[0] == 0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_cross_entropy_of_extreme_logits(dtype):
    logits = jnp.asarray([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0], [-jnp.inf, 0.0, 0.0]], dtype)
    target = jnp.asarray([0, 1, 2])
    loss, grad = jax.value_and_grad(lambda x: objectives.softmax_cross_entropy(x, target).sum())(logits)
    each = objectives.softmax_cross_entropy(logits, target)
    assert each.dtype == jnp.float32
    assert each == pytest.approx(np.array([0, 2 * float(logits[0, 0]), math.log(2)]), rel=1e-6)
    assert jnp.isfinite(loss)
    assert jnp.isfinite(grad).all()


def test_gradients_of_cross_entropy():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.standard_normal((3, 5)), jnp.float32)
    target = jnp.asarray([0, 3, 4])
    weight = jnp.asarray([1.0, 0.0, 1.0])

    def loss(x):
        return objectives.weighted(objectives.softmax_cross_entropy(x, target), weight).value

    check(loss, logits)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = (p - np.eye(5)[np.asarray(target)]) * np.array([[0.5], [0], [0.5]])
    assert jax.grad(loss)(logits) == pytest.approx(expected, abs=1e-6)


# --- MTM by NCE ---


def slow_sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slow_nce(target: float, noise, log_q_target: float, log_q_noise) -> float:
    """K + 1 binary decisions: data against noise, with odds p(x) / (K q(x)) where p = e^score."""
    k = len(noise)
    p = slow_sigmoid(float(target) - math.log(k * math.exp(log_q_target)))
    loss = -math.log(p)
    for score, log_q in zip(noise, log_q_noise, strict=True):
        loss -= math.log(1 - slow_sigmoid(float(score) - math.log(k * math.exp(log_q))))
    return loss


def test_nce_is_the_equation():
    rng = np.random.default_rng(0)
    target, noise = rng.standard_normal((3, 2)), rng.standard_normal((3, 2, 4))
    log_q, log_q_noise = -3 * rng.random((3, 2)) - 0.1, -3 * rng.random((3, 2, 4)) - 0.1
    found = objectives.noise_contrastive(*(jnp.asarray(x, jnp.float32) for x in (target, noise, log_q, log_q_noise)))
    assert found.shape == (3, 2)
    for i in np.ndindex(3, 2):
        assert found[i] == pytest.approx(slow_nce(target[i], noise[i], log_q[i], log_q_noise[i]), rel=1e-5)


def test_nce_is_least_at_the_true_distribution():
    """In expectation, scores of log p minimise NCE: the gradient of the expected loss vanishes there (Gutmann 2010)."""
    p, q, k = jnp.asarray([0.5, 0.3, 0.2]), jnp.asarray([0.2, 0.2, 0.6]), 4

    def expected(scores):
        # E over target ~ p and K independent noise ids ~ q; the noise terms are linear in q.
        target = objectives.noise_contrastive(scores, jnp.full((3, k), -1e4), jnp.log(q), jnp.zeros((3, k)))
        noise = objectives.noise_contrastive(
            jnp.full(3, 1e4), jnp.repeat(scores[:, None], k, 1), jnp.zeros(3), jnp.repeat(jnp.log(q)[:, None], k, 1)
        )
        return jnp.sum(p * target) + jnp.sum(q * noise)

    assert jax.grad(expected)(jnp.log(p)) == pytest.approx(np.zeros(3), abs=1e-6)
    assert jnp.abs(jax.grad(expected)(jnp.log(q))).max() > 0.01


@pytest.mark.parametrize("score", [-1e4, 1e4])
def test_nce_of_extreme_scores(score):
    args = (jnp.full(2, score), jnp.full((2, 3), score), jnp.full(2, -1.0), jnp.full((2, 3), -1.0))
    loss, grads = jax.value_and_grad(lambda s, n: objectives.noise_contrastive(s, n, *args[2:]).sum(), argnums=(0, 1))(
        *args[:2]
    )
    assert loss == pytest.approx(2 * (1e4 if score < 0 else 3e4), rel=1e-3)
    assert all(jnp.isfinite(g).all() for g in grads)


def test_gradients_of_nce():
    rng = np.random.default_rng(0)
    scores, noise = rng.standard_normal(3).astype(np.float32), rng.standard_normal((3, 2)).astype(np.float32)
    log_q = jnp.full(3, -1.0), jnp.full((3, 2), -2.0)
    check(lambda s, n: objectives.noise_contrastive(s, n, *log_q).sum(), scores, noise)


# --- finetuning ---


def test_binary_cross_entropy_is_the_equation():
    rng = np.random.default_rng(0)
    logit = (3 * rng.standard_normal(8)).astype(np.float32)
    label = np.array([0, 1] * 4, np.float32)
    weight = np.array([1, 1, 1, 0, 1, 1, 0, 1], np.float32)
    slow = [
        -math.log(slow_sigmoid(float(s))) if y else -math.log(1 - slow_sigmoid(float(s)))
        for s, y, w in zip(logit, label, weight, strict=True)
        if w
    ]
    found = objectives.binary_cross_entropy(jnp.asarray(logit), jnp.asarray(label), jnp.asarray(weight))
    assert found.weight == 6
    assert found.value == pytest.approx(sum(slow) / 6, rel=1e-5)
    taken = [jnp.asarray(x[weight > 0]) for x in (logit, label, weight)]
    assert objectives.binary_cross_entropy(*taken).value == pytest.approx(float(found.value), rel=1e-6)


def test_binary_cross_entropy_of_extreme_logits():
    logit, label = jnp.asarray([1e4, -1e4, 1e4, -1e4]), jnp.asarray([1.0, 0.0, 0.0, 1.0])
    loss, grad = jax.value_and_grad(lambda s: objectives.binary_cross_entropy(s, label, jnp.ones(4)).total)(logit)
    assert loss == pytest.approx(2e4)
    assert grad == pytest.approx(np.array([0, 0, 1, -1]))


def test_gradients_of_binary_cross_entropy():
    logit, label = jnp.asarray([0.3, -1.2, 2.0]), jnp.asarray([1.0, 0.0, 0.0])
    weight = jnp.asarray([1.0, 1.0, 0.0])

    def loss(s):
        return objectives.binary_cross_entropy(s, label, weight).value

    check(loss, logit)
    expected = [(slow_sigmoid(0.3) - 1) / 2, slow_sigmoid(-1.2) / 2, 0]
    assert jax.grad(loss)(logit) == pytest.approx(np.array(expected), rel=1e-5)


# --- means and equality ---


def test_no_weight_is_a_loss_of_zero_with_no_gradient():
    def loss(x):
        return objectives.weighted(objectives.softmax_cross_entropy(x, jnp.asarray([0, 1])), jnp.zeros(2)).value

    value, grad = jax.value_and_grad(loss)(jnp.asarray([[1.0, 2.0], [1e4, -1e4]]))
    assert value == 0
    assert jnp.all(grad == 0)
    assert objectives.binary_cross_entropy(jnp.ones(2), jnp.ones(2), jnp.zeros(2)).value == 0


@pytest.mark.parametrize(("rows", "fields", "seed"), [(1, 1, 0), (6, 1, 1), (6, 3, 2), (6, 3, 3)])
def test_twins_are_equal_in_every_field(rows, fields, seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2, (rows, fields)).astype(np.int32)
    ctr, text = rng.standard_normal((2, rows, D)).astype(np.float32)
    listed = values.tolist()
    expected = sum(listed.count(row) > 1 for row in listed) / rows
    assert contrast(ctr, text, values, duplicates="negative").twins.value == pytest.approx(expected)

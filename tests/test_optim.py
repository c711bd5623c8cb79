"""Finetuning's optimiser against Adam and AdamW written out for one number at a time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alt_jax import bridge
from alt_jax.config import FinetuneConfig
from alt_jax.models.alt import ALT
from alt_jax.optim import averaged, finetune_optimizer, path_name, swapped
from alt_jax.tasks import Finetune

RECIPE = FinetuneConfig(learning_rate=0.1, text_learning_rate=0.03, weight_decay=0.2, l2=0.05)
PATHS = (
    ("ctr", "embedding", "embedding"),
    ("ctr", "tower", "kernel"),
    ("ctr_logit", "linear", "embedding"),
    ("ctr_logit", "out", "kernel"),
    ("text", "dense", "kernel"),
)


def nested(leaves: dict[tuple[str, ...], jax.Array]) -> dict:
    tree: dict = {}
    for path, leaf in leaves.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def adam(start: float, gradients: list[float], rate: float, decay: float, l2: float, centre: float) -> float:
    """Adam's paper, algorithm 1, with L2 in the gradient and decoupled decay beside it."""
    w, m, v = start, 0.0, 0.0
    for t, gradient in enumerate(gradients, start=1):
        g = gradient + 2 * l2 * (w - centre)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w -= rate * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + decay * w)
    return w


@pytest.mark.parametrize("towards", ["zero", "start"])
def test_l2_holds_tables_of_ids_and_nothing_else(towards):
    rng = np.random.default_rng(0)
    starts = {path: rng.normal(size=(2, 3)) for path in PATHS}
    gradients = [{path: rng.normal(size=(2, 3)) for path in PATHS} for _ in range(4)]
    # The gradient of a table's second row is zero, as that of an id which no batch holds: only L2 moves it.
    for each in gradients:
        each[PATHS[0]][1] = 0.0

    optimizer = finetune_optimizer(dataclasses.replace(RECIPE, l2_towards=towards))
    params = nested({path: jnp.asarray(x, jnp.float32) for path, x in starts.items()})
    state = jax.jit(optimizer.init)(params)
    for each in gradients:
        grads = nested({path: jnp.asarray(x, jnp.float32) for path, x in each.items()})
        updates, state = jax.jit(optimizer.update)(grads, state, params)
        params = optax.apply_updates(params, updates)

    for path in PATHS:
        leaf = params
        for key in path:
            leaf = leaf[key]
        text, table = path[0] == "text", path[1] in ("embedding", "linear")
        for i in np.ndindex(2, 3):
            start = starts[path][i]
            expected = adam(
                start,
                [each[path][i] for each in gradients],
                rate=RECIPE.text_learning_rate if text else RECIPE.learning_rate,
                decay=RECIPE.weight_decay if text else 0.0,
                l2=RECIPE.l2 if table else 0.0,
                centre=start if towards == "start" else 0.0,
            )
            assert leaf[i] == pytest.approx(expected, rel=1e-4, abs=1e-5), path
            if path == PATHS[0] and i[0] == 1:
                moved = abs(float(leaf[i]) - start)
                assert moved < 1e-6 if towards == "start" else moved > 0.1


@pytest.mark.parametrize("strategy", ["ctr", "plm", "joint"])
def test_l2_finds_the_tables_of_a_real_model(strategy, plain_config, tiny_dataset):
    """Without gradients and weight decay, L2 alone moves parameters: the table of ids and the first-order weights."""
    encoder = bridge.encoder_config(plain_config.text, tiny_dataset.schema)
    task = Finetune(ALT(plain_config, tiny_dataset.schema, encoder), strategy)
    params = jax.tree.map(jnp.ones_like, jax.eval_shape(task.init, jax.random.key(0)))
    optimizer = finetune_optimizer(dataclasses.replace(RECIPE, weight_decay=0.0))
    still = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(optimizer.update)(still, jax.jit(optimizer.init)(params), params)
    moved = {path_name(path) for path, leaf in jax.tree_util.tree_leaves_with_path(updates) if leaf.any()}
    tables = {"ctr/embedding/embedding", "ctr_logit/linear/embedding"}
    assert moved == (set() if strategy == "plm" else tables)


def test_the_mean_of_the_parameters_is_the_recursion():
    """ā ← d ā + (1 − d) w with d = min(.9, (1 + t) / (10 + t)), w as without a mean."""
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=3), rng.normal(size=(20, 3))
    plain, mean = optax.sgd(0.1), averaged(optax.sgd(0.1), 0.9)
    w = {"w": jnp.asarray(start, jnp.float32)}
    state, expected = mean.init(w), start.copy()
    other, other_state = w, plain.init(w)
    for t, gradient in enumerate(gradients, start=1):
        g = {"w": jnp.asarray(gradient, jnp.float32)}
        updates, state = jax.jit(mean.update)(g, state, w)
        w = optax.apply_updates(w, updates)
        updates, other_state = plain.update(g, other_state, other)
        other = optax.apply_updates(other, updates)
        d = min(0.9, (1 + t) / (10 + t))
        expected = d * expected + (1 - d) * (start - 0.1 * gradients[:t].sum(axis=0))
    np.testing.assert_allclose(w["w"], other["w"], rtol=1e-6)
    kept, saved = swapped(w, state)
    np.testing.assert_allclose(kept["w"], expected, rtol=1e-4)
    trained, back = swapped(kept, saved)
    np.testing.assert_array_equal(trained["w"], w["w"])
    np.testing.assert_array_equal(back.average["w"], kept["w"])
    assert swapped(w, other_state) == (w, other_state)

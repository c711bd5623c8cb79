"""Lazy updates of tables: the dense ones where every row is touched, and elsewhere only the rows of the batch."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_rows import fresh

from alt_jax import bridge
from alt_jax.config import LossConfig
from alt_jax.data.batches import Batch, batch_at
from alt_jax.data.prompt import feature_ids
from alt_jax.models.alt import ALT
from alt_jax.models.table import table_rows
from alt_jax.optim import adagrad_by_rows, finetune_optimizer, pretrain_optimizer
from alt_jax.sharding import make_mesh, replicate, split_rows
from alt_jax.tasks import Finetune
from alt_jax.train import initial_state, make_step

TABLES = (("ctr", "embedding", "embedding"), ("ctr_logit", "linear", "embedding"))


def leaf(tree: Any, path: tuple[str, ...]) -> np.ndarray:
    for key in path:
        tree = tree[key]
    return np.asarray(tree)


def click_task(config, dataset, strategy: str = "ctr") -> Finetune:
    return Finetune(ALT(config, dataset.schema, bridge.encoder_config(config.text, dataset.schema)), strategy)


def run(task, optimizer, dataset, batches: list[Batch], *, lazy: bool, devices: int = 1) -> tuple[list[Any], list[Any]]:
    """States before, between and after updates with these batches, and the metrics of each."""
    mesh = make_mesh(jax.local_devices()[:devices])
    pieces = replicate(mesh, dataset.pieces)
    with jax.set_mesh(mesh):
        state = initial_state(mesh, fresh(task), optimizer)
        step = jax.jit(make_step(task, optimizer, lazy_tables=lazy))
        states, logged = [jax.device_get(state)], []
        for batch in batches:
            state, metrics = step(state, pieces, split_rows(mesh, batch), jax.random.key(2))
            states.append(jax.device_get(state))
            logged.append(jax.device_get(metrics))
    return states, logged


def held(dataset, batch: Batch) -> np.ndarray:
    return np.unique(feature_ids(dataset.pieces, batch.values))


@pytest.mark.parametrize("towards", ["zero", "start"])
@pytest.mark.parametrize("tables", ["lazy_adam", "lazy_adagrad"])
def test_where_every_id_is_held_lazy_is_dense(tables, towards, plain_config, tiny_dataset):
    """Of ids that training has; no batch holds the out-of-vocabulary ones, the padding and the mask."""
    recipe = dataclasses.replace(plain_config.finetune.ctr, tables=tables, l2=0.01, l2_towards=towards)
    task, optimizer = click_task(plain_config, tiny_dataset), finetune_optimizer(recipe)
    batches = [batch_at(tiny_dataset.train, seed=0, step=step, batch_size=240) for step in range(4)]
    ids = held(tiny_dataset, batches[0])
    assert len(ids) > tiny_dataset.schema.num_ids - 12
    assert all(np.array_equal(held(tiny_dataset, batch), ids) for batch in batches)
    (start, *_, dense), expected = run(task, optimizer, tiny_dataset, batches, lazy=False)
    (*_, lazy), metrics = run(task, optimizer, tiny_dataset, batches, lazy=True)
    for one, other in zip(expected, metrics, strict=True):
        assert {name: float(m.value) for name, m in other.items()} == pytest.approx(
            {name: float(m.value) for name, m in one.items()}, rel=1e-4
        )
    for path in TABLES:
        assert leaf(lazy.params, path)[ids] == pytest.approx(leaf(dense.params, path)[ids], rel=1e-3, abs=1e-4)
        assert np.abs(leaf(lazy.params, path)[ids] - leaf(start.params, path)[ids]).max(axis=1).min() > 1e-5
    for (name, one), other in zip(jax.tree_util.tree_leaves_with_path(dense), jax.tree.leaves(lazy), strict=True):
        if one.ndim and one.shape[0] != table_rows(tiny_dataset.schema.num_ids):
            assert other == pytest.approx(one, rel=1e-3, abs=1e-4), name


def test_rows_that_no_batch_holds_stay(plain_config, tiny_dataset):
    """Bit for bit, and so does what the optimiser knows of them; the others move as Adam's paper has it."""
    recipe = dataclasses.replace(plain_config.finetune.ctr, tables="lazy_adam", l2=0.02, learning_rate=0.01)
    task, optimizer = click_task(plain_config, tiny_dataset), finetune_optimizer(recipe)
    batches = [batch_at(tiny_dataset.train, seed=0, step=step, batch_size=4) for step in range(3)]
    states, _ = run(task, optimizer, tiny_dataset, batches, lazy=True)
    special = {0, 1}  # are in every batch
    for number, batch in enumerate(batches):
        before, after = states[number], states[number + 1]
        touched = sorted(set(held(tiny_dataset, batch)) | special)
        untouched = np.setdiff1d(np.arange(tiny_dataset.schema.num_ids), touched)
        assert len(untouched) > 20
        key = jax.random.fold_in(jax.random.key(2), number)

        def loss(params, batch, key=key):
            return task.loss(params, jax.tree.map(jnp.asarray, tiny_dataset.pieces), batch, key)[0]

        grads = jax.jit(jax.grad(loss))(before.params, batch)
        pairs = zip(
            jax.tree_util.tree_leaves_with_path(before.optimizer), jax.tree.leaves(after.optimizer), strict=True
        )
        rows = [(one, other) for (path, one), other in pairs if "embedding" in str(path) and one.ndim == 2]
        assert len(rows) == 4  # two moments of two tables
        assert all(np.array_equal(one[untouched], other[untouched]) for one, other in rows)
        moments = after.optimizer.inner_states["tables"].inner_state[1][0]
        earlier = before.optimizer.inner_states["tables"].inner_state[1][0]
        for path in TABLES:
            w, new = leaf(before.params, path), leaf(after.params, path)
            assert np.array_equal(w[untouched], new[untouched])
            g = leaf(grads, path) + 2 * recipe.l2 * w
            m, v = 0.9 * leaf(earlier.mu, path) + 0.1 * g, 0.999 * leaf(earlier.nu, path) + 0.001 * g**2
            t = number + 1
            expected = w - 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            assert leaf(moments.mu, path)[touched] == pytest.approx(m[touched], rel=1e-3, abs=1e-7)
            assert new[touched] == pytest.approx(expected[touched], rel=1e-3, abs=2e-5)


@pytest.mark.parametrize("strategy", [pytest.param("plm", marks=pytest.mark.slow), "joint"])
def test_other_strategies_can_be_lazy(strategy, plain_config, tiny_dataset):
    recipe = dataclasses.replace(getattr(plain_config.finetune, strategy), tables="lazy_adam", l2=0.0)
    task, optimizer = click_task(plain_config, tiny_dataset, strategy), finetune_optimizer(recipe)
    batches = [batch_at(tiny_dataset.train, seed=0, step=0, batch_size=16)]
    (_, dense), expected = run(task, optimizer, tiny_dataset, batches, lazy=False)
    (_, lazy), metrics = run(task, optimizer, tiny_dataset, batches, lazy=True)
    assert metrics[0]["grad_norm"].total == pytest.approx(expected[0]["grad_norm"].total, rel=1e-5)
    # Without L2 the first step of Adam moves only what a batch holds.
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(dense.params), jax.tree.leaves(lazy.params), strict=True
    ):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-5), path


@pytest.mark.parametrize(
    ("method", "tables"),
    [pytest.param("softmax", "lazy_adam", marks=pytest.mark.slow), ("rfd", "lazy_adagrad")],
)
def test_pretraining_can_be_lazy(method, tables, plain_config, make_pretrain, tiny_dataset):
    """Losses, and the gradient's norm, are those of the whole tables, masked and replaced ids included."""
    config = plain_config.override({"mtm.method": method, "mask.rate": 0.4, "pretrain.tables": tables})
    task = make_pretrain(config, LossConfig())
    optimizer = pretrain_optimizer(config.pretrain, 10)
    batches = [batch_at(tiny_dataset.train, seed=0, step=0, batch_size=16)]
    (_, dense), (expected,) = run(task, optimizer, tiny_dataset, batches, lazy=False)
    (_, lazy), (metrics,) = run(task, optimizer, tiny_dataset, batches, lazy=True)
    assert {name: float(m.value) for name, m in metrics.items()} == pytest.approx(
        {name: float(m.value) for name, m in expected.items()}, rel=1e-4, abs=1e-6
    )
    assert leaf(lazy.params, TABLES[0]) == pytest.approx(leaf(dense.params, TABLES[0]), rel=1e-3, abs=1e-4)


def test_lazy_updates_are_the_same_on_eight_devices(plain_config, tiny_dataset):
    recipe = dataclasses.replace(plain_config.finetune.ctr, tables="lazy_adagrad", l2=0.01)
    task, optimizer = click_task(plain_config, tiny_dataset), finetune_optimizer(recipe)
    batches = [batch_at(tiny_dataset.train, seed=0, step=step, batch_size=16) for step in range(2)]
    one, many = (run(task, optimizer, tiny_dataset, batches, lazy=True, devices=n)[0][-1] for n in (1, 8))
    for path in TABLES:
        assert leaf(many.params, path) == pytest.approx(leaf(one.params, path), rel=1e-3, abs=1e-5)


def test_a_lazy_step_holds_no_copy_of_a_table(plain_config, tiny_dataset):
    """What a compiled step needs beside its donated state does not grow with the table; a dense one's does."""
    optimizer = finetune_optimizer(dataclasses.replace(plain_config.finetune.ctr, tables="lazy_adam", l2=0.01))
    batch = batch_at(tiny_dataset.train, seed=0, step=0, batch_size=16)
    found = {}
    for more in (10_000, 1_000_000):
        *others, last = tiny_dataset.schema.fields
        schema = dataclasses.replace(
            tiny_dataset.schema, fields=(*others, dataclasses.replace(last, size=last.size + more))
        )
        task = click_task(plain_config, dataclasses.replace(tiny_dataset, schema=schema))
        params = jax.eval_shape(task.init, jax.random.key(0))
        state = jax.eval_shape(lambda params: initial_state(make_mesh(jax.devices()[:1]), params, optimizer), params)
        for lazy in (True, False) if more == 1_000_000 else (True,):
            step = jax.jit(make_step(task, optimizer, lazy_tables=lazy), donate_argnums=0)
            memory = step.lower(state, tiny_dataset.pieces, batch, jax.random.key(0)).compile().memory_analysis()
            found[lazy, more] = memory.temp_size_in_bytes
    assert found[True, 1_000_000] <= found[True, 10_000] + 1000
    assert found[False, 1_000_000] > 4_000_000


def test_adagrad_has_one_accumulator_a_row():
    rng = np.random.default_rng(0)
    w, grads = rng.normal(size=(5, 3)), rng.normal(size=(4, 5, 3))
    grads[:, 2] = 0
    optimizer = adagrad_by_rows(0.1)
    params = jnp.asarray(w, jnp.float32)
    state = optimizer.init(params)
    assert {leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim} == {(5, 1)}
    sums = np.zeros(5)
    for g in grads:
        updates, state = optimizer.update(jnp.asarray(g, jnp.float32), state, params)
        params = params + updates
        for row in range(5):
            sums[row] += (g[row] ** 2).mean()
            w[row] -= 0.1 * g[row] / np.sqrt(sums[row] + 1e-8)
    assert params == pytest.approx(w, rel=1e-4, abs=1e-6)

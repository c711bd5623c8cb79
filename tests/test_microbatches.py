"""Accumulation changes memory and nothing else: loss, metrics and gradients are the same, dropout and negatives too."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_rows import fresh

from alt_jax import pretraining
from alt_jax.config import Config, LossConfig
from alt_jax.data.batches import Batch, batch_at
from alt_jax.errors import InputError
from alt_jax.microbatches import in_batch, in_turn
from alt_jax.models import packing
from alt_jax.sharding import check_batch, cut, make_mesh, replicate, split_rows, uncut
from alt_jax.tasks import Task

B = 32
ALL = LossConfig(icl=1.0, mlm=0.5, mtm=2.0)

# Each way through the towers and heads: weights of the losses, and options.
WAYS: dict[str, tuple[LossConfig, dict[str, Any]]] = {
    "all, in chunks": (ALL, {"icl.chunk": 8, "icl.leave_out": ("user",), "icl.learn_temperature": True}),
    "contrast alone, of [CLS] states": (LossConfig(icl=1, mlm=0, mtm=0), {}),
    "single tokens, and noise of every target's own": (
        LossConfig(icl=0, mlm=1, mtm=1),
        {"mlm.unit": "token", "mtm.method": "nce", "mtm.noise_from": "all"},
    ),
    "replaced features, each helped by the masked other": (
        LossConfig(icl=0, mlm=1, mtm=1),
        {"mtm.method": "rfd", "mask.pairing": "same", "mask.helper": "masked", "mlm.unit": "span", "mask.rate": 0.4},
    ),
}


@pytest.fixture
def quick(monkeypatch):
    """Batches are so small here that of themselves they would not be packed."""
    monkeypatch.setattr(packing, "room", lambda lengths, rows, length: rows * int(lengths.max()))


def run(task: Task, dataset, parts: int, devices: int) -> tuple[Any, Any, Any]:
    """Loss, metrics and gradients of a batch whose first row comes again as the last, in another microbatch."""
    model: Any = task.model
    config = model.config.override({"pretrain.microbatches": parts})
    task = dataclasses.replace(task, model=model.clone(config=config))
    rows = batch_at(dataset.train, seed=0, step=0, batch_size=B)
    values = np.array(rows.values)
    values[-1] = values[0]
    mesh = make_mesh(jax.local_devices()[:devices])
    with jax.set_mesh(mesh):
        params, pieces = replicate(mesh, (fresh(task), dataset.pieces))
        batch: Batch = split_rows(mesh, rows._replace(values=values))
        found = jax.jit(jax.value_and_grad(task.loss, has_aux=True))(params, pieces, batch, jax.random.key(4))
        (loss, metrics), grads = jax.device_get(found)
    return loss, metrics, grads


def same(found: tuple[Any, Any, Any], expected: tuple[Any, Any, Any]) -> None:
    """Up to the rounding of float32 sums in another order."""
    (loss, metrics, grads), (one_loss, one_metrics, one_grads) = found, expected
    assert loss == pytest.approx(one_loss, rel=1e-5)
    assert set(metrics) == set(one_metrics)
    for name, mean in metrics.items():
        assert np.array(mean) == pytest.approx(np.array(one_metrics[name]), rel=1e-5, abs=1e-5), name
    scale = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(one_grads)))
    assert scale > 0.1
    for (path, leaf), one in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(one_grads), strict=True):
        difference = np.linalg.norm(leaf - one)
        assert difference <= 1e-5 * np.linalg.norm(one) + 1e-6 * scale, jax.tree_util.keystr(path)


def small(config: Config, options: dict[str, Any]) -> Config:
    return config.override({"ctr.hidden": (8,), "ctr.options": {"layers": 1}, **options})


@pytest.mark.parametrize(
    ("way", "parts", "devices"),
    [pytest.param(way, 2, 1, marks=[] if way == "all, in chunks" else pytest.mark.slow) for way in WAYS]
    + [pytest.param("all, in chunks", 4, 8, marks=pytest.mark.slow)],
)
def test_parts_change_nothing(way, parts, devices, make_pretrain, tiny_config, tiny_dataset, quick):
    """Dropout is on: what is drawn for a row depends on its number in the batch, not on the part it is in."""
    weights, options = WAYS[way]
    assert min(tiny_config.text.dropout, tiny_config.ctr.dropout, tiny_config.icl.dropout, tiny_config.mlm.dropout) > 0
    task = make_pretrain(small(tiny_config, options), weights, B)
    whole = run(task, tiny_dataset, 1, 1)
    if weights.icl:
        assert whole[1]["duplicates"].total >= 2
    same(run(task, tiny_dataset, parts, devices), whole)


@pytest.mark.slow
def test_padding_and_noise_from_the_batch(make_pretrain, plain_config, tiny_dataset):
    """Without packing, dropout off, noise that all rows share."""
    options = {"mtm.method": "sampled", "mtm.attention": "released", "mlm.with_table": False}
    task = make_pretrain(small(plain_config, options), LossConfig(icl=0, mlm=1, mtm=1), B)
    same(run(task, tiny_dataset, 4, 1), run(task, tiny_dataset, 1, 1))


# --- the loop ---


def test_parts_are_all_rows_once_each_and_each_device_has_its_share():
    rows = jnp.arange(B * 3).reshape(B, 3)
    parts = cut(rows, 4)
    np.testing.assert_array_equal(parts[1], rows[1::4])
    np.testing.assert_array_equal(uncut(parts), rows)
    mesh = make_mesh(jax.local_devices())
    with jax.set_mesh(mesh):
        program = jax.jit(lambda x: cut(x, 4)).lower(split_rows(mesh, rows)).compile()
        assert {shard.data.shape for shard in program(split_rows(mesh, rows)).addressable_shards} == {(4, 1, 3)}
    assert not any(f" {moves}" in program.as_text() for moves in ("all-gather", "all-to-all", "collective-permute"))


def test_things_have_their_numbers_in_the_batch():
    """Three things to a row."""
    number = jnp.arange(B * 3, dtype=jnp.uint32).reshape(B, 3)

    def numbers(rows):
        own = jnp.arange(rows.size, dtype=jnp.uint32).reshape(rows.shape)
        return in_batch(own, 3)

    for parts in (1, 2, 8):
        np.testing.assert_array_equal(uncut(in_turn(numbers, number, parts)), number)


def test_only_one_part_is_kept_for_the_backward_pass():
    """Of 1, 2, 4, 8 parts, by XLA's own account. All but the inside of the parts is small here."""
    width, depth = 512, 8
    weight = jax.ShapeDtypeStruct((width, width), jnp.float32)
    rows = jax.ShapeDtypeStruct((4096, 16), jnp.float32)

    def loss(weight, rows, parts):
        def tower(x):
            h = jnp.pad(x, ((0, 0), (0, width - 16)))
            for _ in range(depth):
                h = jnp.tanh(h @ weight)
            return h[:, :16]

        z = in_turn(tower, rows, parts).reshape(4096, 16)
        return jnp.sum(z.T @ z)

    sizes = [
        jax.jit(jax.grad(loss), static_argnums=2).lower(weight, rows, parts).compile().memory_analysis()
        for parts in (1, 2, 4, 8)
    ]
    assert all(b.temp_size_in_bytes < 0.65 * a.temp_size_in_bytes for a, b in itertools.pairwise(sizes))


def test_the_memory_of_a_step_falls(make_pretrain, tiny_config, tiny_dataset):
    config = small(tiny_config, {"text.hidden": 64, "text.intermediate": 256})
    batch = jax.tree.map(jnp.asarray, batch_at(tiny_dataset.train, seed=0, step=0, batch_size=256))
    pieces = jax.tree.map(jnp.asarray, tiny_dataset.pieces)

    def size(parts: int) -> int:
        task = make_pretrain(config.override({"pretrain.microbatches": parts}), LossConfig(icl=1, mlm=0, mtm=0), 256)
        params = jax.eval_shape(task.init, jax.random.key(0))
        grad = jax.jit(jax.grad(task.loss, has_aux=True))
        lowered = grad.lower(params, pieces, batch, jax.random.key(0))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert size(8) < 0.4 * size(1)


# --- what is refused ---


def test_parts_that_do_not_divide_the_batch_are_refused(tiny_config, tiny_dataset):
    config = tiny_config.override({"pretrain.microbatches": 3})
    with pytest.raises(InputError, match=r"pretrain.microbatches 3 does not divide pretrain.batch_size 16"):
        pretraining.check(config, tiny_dataset.schema)


def test_parts_that_the_devices_do_not_divide_are_refused():
    mesh = make_mesh(jax.local_devices())
    check_batch(mesh, 16, 2)
    with pytest.raises(InputError, match="A microbatch of 4 rows cannot be split over 8 devices"):
        check_batch(mesh, 16, 4)

"""The global batch is the unit of meaning: one loss, whatever the number of devices.

The step, jitted over meshes of 1, 2 and 8 devices, gives the same numbers, with and without padding, dropout included;
and those of a literal `jax.pmap` version in which every collective is written out.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from alt_jax import masking
from alt_jax.config import Config, LossConfig, MaskConfig
from alt_jax.data.batches import batch_at
from alt_jax.data.prompt import compose, mask_fields
from alt_jax.models import packing
from alt_jax.pretraining import Pretrain
from alt_jax.schema import MASK_ID
from alt_jax.sharding import make_mesh, replicate, split_rows
from alt_jax.tasks import text_length
from alt_jax.train import State, make_step

B = 16
WEIGHTS = LossConfig(icl=1.0, mlm=0.5, mtm=2.0)
MASK = MaskConfig(rate=0.4, unit="group")  # two of five units, so that rows hide unequal numbers of tokens and fields


def small(config: Config) -> Config:
    """Fewer layers, since everything here is compiled for several meshes."""
    return dataclasses.replace(
        config, mask=MASK, ctr=dataclasses.replace(config.ctr, options={"layers": 1}, hidden=(8,))
    )


def random_params(task: Pretrain) -> Any:
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        return jnp.asarray(0.2 * rng.standard_normal(leaf.shape) + (path[-1].key == "scale"), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(task.init, jax.random.key(0)))


def rows_at(dataset, step: int):
    """A batch in which the first row comes again as the last, on another device."""
    batch = batch_at(dataset.train, seed=0, step=step, batch_size=B)
    values = np.array(batch.values)
    values[-1] = values[0]
    return batch._replace(values=values)


def longest(lengths, rows, length):
    """A room that always suffices. Batches are so small here that of themselves they would not be packed."""
    assert rows * lengths.max() < rows * length
    return rows * int(lengths.max())


# --- the jitted step on 1, 2 and 8 devices ---

PADDED = 0  # one device that computes padding too


Updated = tuple[Any, list[dict[str, np.ndarray]], float]


@pytest.fixture(scope="module")
def updated(make_pretrain, tiny_config, tiny_dataset) -> Callable[[int], Updated]:
    """By devices: parameters after three updates with dropout on, the metrics of each, and the FLOPs of one device."""
    task = make_pretrain(small(tiny_config), WEIGHTS, B)
    assert task.model.config.text.dropout > 0
    # Plain descent: Adam's normalisation blows the rounding of all but vanishing gradients up to whole steps.
    optimizer = optax.sgd(0.1)
    params = random_params(task)

    @functools.cache
    def update(count: int) -> Updated:
        mesh = make_mesh(jax.local_devices()[: max(count, 1)])
        with jax.set_mesh(mesh), pytest.MonkeyPatch.context() as patch:
            patch.setattr(packing, "room", longest if count else lambda lengths, rows, length: None)
            state = replicate(mesh, State(jnp.int32(0), params, jax.jit(optimizer.init)(params)))
            pieces = replicate(mesh, tiny_dataset.pieces)
            batch = split_rows(mesh, rows_at(tiny_dataset, 0))
            assert {len(shard.data) for shard in batch.values.addressable_shards} == {B // max(count, 1)}
            key = jax.random.key(3)
            step = jax.jit(make_step(task, optimizer)).lower(state, pieces, batch, key).compile()
            logged = []
            for number in range(3):
                state, metrics = step(state, pieces, split_rows(mesh, rows_at(tiny_dataset, number)), key)
                logged.append({name: np.array(m) for name, m in jax.device_get(metrics).items()})
            assert int(state.step) == 3
            moved = jax.tree.map(lambda new, old: float(jnp.abs(new - jax.device_get(old)).max()), state.params, params)
            assert min(max(jax.tree.leaves(moved[tower])) for tower in moved) > 1e-3
            assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.params))
            return jax.device_get(state.params), logged, step.cost_analysis()["flops"]

    return update


NUMBERS = pytest.mark.parametrize("count", [PADDED, pytest.param(2, marks=pytest.mark.slow), 8])


@NUMBERS
def test_metrics_are_the_same_on_any_number_of_devices(updated, count):
    _, one, _ = updated(1)
    _, many, _ = updated(count)
    for step, (expected, metrics) in enumerate(zip(one, many, strict=True)):
        assert set(metrics) == set(expected)
        for name, mean in metrics.items():
            assert mean == pytest.approx(expected[name], rel=1e-4, abs=1e-5), f"{name} of update {step + 1}"
    assert many[0]["duplicates"].tolist() == [2, B]
    assert many[0]["loss"][0] != many[2]["loss"][0]


@NUMBERS
def test_parameters_are_the_same_on_any_number_of_devices(updated, count):
    one, many = (traverse_util.flatten_dict(updated(n)[0], sep="/") for n in (1, count))
    for name, leaf in many.items():
        assert leaf == pytest.approx(one[name], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize(("count", "share"), [pytest.param(2, 0.7, marks=pytest.mark.slow), (8, 0.35)])
def test_work_is_split_not_repeated(updated, tiny_dataset, count, share):
    _, _, alone = updated(1)
    lengths, most = tiny_dataset.prompt_tokens(), text_length(tiny_dataset.schema.text.length)
    padding = 1 - lengths.max() / most  # what a room for the longest prompts leaves out of the text tower
    assert padding > 0.02
    assert alone < (1 - 0.4 * padding) * updated(PADDED)[2]
    assert updated(count)[2] < share * alone


# --- a literal jax.pmap version ---


def pmap_reference(task: Pretrain, params, dataset, values: np.ndarray, key: jax.Array):
    """Loss and gradients on 8 devices out of tower applies and plain jnp, every collective in sight.

    Of every mean, a device adds up its own rows' terms and divides by the weight of all devices' rows. The loss is the
    sum of that over devices, and so is the gradient: `jax.grad` is taken of a device's own share, *before* any psum.
    A device's share depends on other devices' parameters through the gathered projections; the transpose of all_gather
    adds up and hands back what all devices' shares owe to one device's rows, so that the sum of the devices' gradients
    is that of the global loss: neither psum of the loss inside grad (too large by the number of devices) nor gathered
    negatives without gradient (too small, as in the released code) would be.
    """
    schema, config = task.model.schema, task.model.config
    devices = jax.device_count()
    mlm_key, mtm_key, _, _ = jax.random.split(key, 4)
    units = masking.mask_units(schema, config.mask)
    length = text_length(schema.text.length)

    def shard(x):
        return np.asarray(x).reshape(devices, B // devices, *x.shape[1:])

    # Masks of the global batch, sliced.
    prompt = compose(dataset.pieces, values, length=length, pad_id=schema.text.pad_id)
    hide_values = np.asarray(masking.choose_fields(mlm_key, B, units, config.mask.rate))
    masked_tokens, hidden = mask_fields(prompt, hide_values, schema.text.mask_id)
    hide_ids = np.asarray(masking.choose_fields(mtm_key, B, units, config.mask.rate))
    ids = dataset.pieces.feature[values]
    local = [values, ids, np.where(hide_ids, MASK_ID, ids), hide_ids, prompt.tokens, prompt.mask, masked_tokens, hidden]

    def per_device(params, values, ids, masked_ids, hide_ids, tokens, real, masked_tokens, hidden):
        def total(x):
            return jax.lax.psum(x, "devices")

        def gathered(x):
            return jax.lax.all_gather(x, "devices", tiled=True)

        def own_share(params):
            def call(method, *args, **options):
                return task.model.apply({"params": params}, *args, method=method, **options)

            h, states = call("represent", ids, train=False), call("read", tokens, real, train=False)

            # ICL: this device's rows against all devices' rows, both ways.
            z_ctr, z_text = call("align", h, states[:, 0], train=False)
            same = jnp.all(values[:, None, :] == gathered(values)[None, :, :], axis=-1)
            positives = same / same.sum(axis=1, keepdims=True)
            icl = 0.0
            for queries, keys in ((z_ctr, gathered(z_text)), (z_text, gathered(z_ctr))):
                log_p = jax.nn.log_softmax(queries @ keys.T / config.icl.temperature, axis=1)
                icl -= 0.5 * jnp.sum(positives * log_p)
            icl /= total(len(values))

            # MLM: a softmax at every position, of which the hidden ones count.
            masked_states = call("read", masked_tokens, real, train=False)
            everywhere = masked_states.reshape(-1, masked_states.shape[-1]), jnp.repeat(h, length, axis=0)
            log_p = jax.nn.log_softmax(call("recover_tokens", *everywhere, train=False), axis=1)
            log_p = jnp.take_along_axis(log_p, tokens.reshape(-1, 1), axis=1).reshape(hidden.shape)
            mlm = -jnp.sum(jnp.where(hidden, log_p, 0.0)) / total(hidden.sum())

            # MTM: a softmax over each hidden field's own ids.
            hidden_h = call("represent", masked_ids, train=False)
            vectors, table, bias = call("recover_features", hidden_h, states, real)
            mtm = 0.0
            for f, field in enumerate(schema.fields):
                own = jnp.arange(field.offset, field.offset + field.size)
                log_p = jax.nn.log_softmax(vectors[:, f] @ table[own].T + bias[own][None, :], axis=1)
                log_p = jnp.take_along_axis(log_p, ids[:, f : f + 1] - field.offset, axis=1)[:, 0]
                mtm -= jnp.sum(jnp.where(hide_ids[:, f], log_p, 0.0))
            mtm /= total(hide_ids.sum())
            return WEIGHTS.icl * icl + WEIGHTS.mlm * mlm + WEIGHTS.mtm * mtm, (icl, mlm, mtm)

        (share, terms), grads = jax.value_and_grad(own_share, has_aux=True)(params)
        return total(share), [total(term) for term in terms], jax.tree.map(total, grads)

    run = jax.pmap(per_device, axis_name="devices", in_axes=(None, *[0] * len(local)))
    return jax.device_get(run(params, *map(shard, local)))


def test_the_jitted_step_is_the_literal_pmap_version(make_pretrain, plain_config, tiny_dataset, monkeypatch):
    monkeypatch.setattr(packing, "room", longest)
    task = make_pretrain(small(plain_config), WEIGHTS, B)
    params, key, batch = random_params(task), jax.random.key(9), rows_at(tiny_dataset, 0)
    mesh = make_mesh(jax.local_devices())
    assert mesh.size == 8
    with jax.set_mesh(mesh):
        arguments = replicate(mesh, params), replicate(mesh, tiny_dataset.pieces), split_rows(mesh, batch), key
        (loss, metrics), grads = jax.jit(jax.value_and_grad(task.loss, has_aux=True))(*arguments)
        loss, metrics, grads = jax.device_get((loss, metrics, grads))
    assert metrics["mlm/dropped"].total == 0

    losses, terms, reference = pmap_reference(task, params, tiny_dataset, np.asarray(batch.values), key)
    assert np.ptp(losses) == 0  # every device has the global loss
    assert loss == pytest.approx(losses[0], rel=1e-5)
    for name, term in zip(("icl", "mlm", "mtm"), terms, strict=True):
        assert metrics[name].total / metrics[name].weight == pytest.approx(term[0], rel=1e-5), name

    found, reference = (traverse_util.flatten_dict(tree, sep="/") for tree in (grads, reference))
    assert set(found) == set(reference)
    scale = np.sqrt(sum(np.sum(leaf**2) for leaf in found.values()))
    for name, leaf in reference.items():
        assert (leaf == leaf[:1]).all(), name
        difference = np.linalg.norm(found[name] - leaf[0])
        # relative to the leaf, or for leaves whose gradient is all but 0 to the whole gradient
        assert difference <= 1e-5 * np.linalg.norm(leaf[0]) + 1e-7 * scale, name

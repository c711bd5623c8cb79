"""Pretraining against loops over rows, fields and tokens; what a weight of 0 removes; that every method learns."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from slow_rows import Slow, cross_entropy, fresh, log_sigmoid, spell

from alt_jax import masking, mlm, mtm, presets, pretraining
from alt_jax.config import LossConfig, MaskConfig, MTMConfig
from alt_jax.data.batches import Batch, batch_at
from alt_jax.data.prompt import compose
from alt_jax.errors import InputError
from alt_jax.masking import choose_masks
from alt_jax.models import packing
from alt_jax.models.table import table_rows
from alt_jax.pretraining import Pretrain
from alt_jax.schema import MASK_ID
from alt_jax.train import State, make_step

B = 8
WEIGHTS = LossConfig(icl=1.0, mlm=0.5, mtm=2.0)


@pytest.fixture(scope="module")
def batch(tiny_dataset) -> Batch:
    """Eight rows, the last the same as the first."""
    rows = batch_at(tiny_dataset.train, seed=0, step=0, batch_size=B)
    values = np.array(rows.values)
    values[-1] = values[0]
    return Batch(jnp.asarray(values), jnp.asarray(rows.label), jnp.asarray(rows.weight))


@pytest.fixture(autouse=True)
def unpadded(monkeypatch):
    """Batches are so small here that of themselves they would keep their padding (`test_devices` compares both)."""
    monkeypatch.setattr(packing, "room", lambda lengths, rows, length: rows * int(lengths.max()))


@pytest.fixture(scope="module")
def pieces(tiny_dataset):
    return jax.tree.map(jnp.asarray, tiny_dataset.pieces)


# --- the slow version ---


def slow_icl(z_ctr, z_text, values, temperature: float) -> float:
    total = 0.0
    for queries, keys in ((z_ctr, z_text), (z_text, z_ctr)):
        for i in range(B):
            scores = (
                np.array([sum(a * b for a, b in zip(queries[i], keys[j], strict=True)) for j in range(B)]) / temperature
            )
            twins = [j for j in range(B) if (values[i] == values[j]).all()]
            total += 0.5 * sum(cross_entropy(scores, j) for j in twins) / len(twins)
    return total / B


class Views(NamedTuple):
    """What the towers see of a batch: whole, and as each side's loss hides it."""

    ids: np.ndarray
    shown_ids: np.ndarray
    tokens: np.ndarray
    real: np.ndarray
    hidden_tokens: np.ndarray
    hidden_real: np.ndarray


def run_model(task: Pretrain, params, views: Views):
    """All that towers and heads give for a batch, MLM logits at every position; the only array arithmetic there is."""
    model, config = task.model, task.model.config

    @jax.jit
    def towers(params, views):
        def call(method, *args, **options):
            return model.apply({"params": params}, *args, method=method, **options)

        h, shown_h = (call("represent", x, train=False) for x in (views.ids, views.shown_ids))
        states = call("read", views.tokens, views.real, train=False)
        hidden_states = call("read", views.hidden_tokens, views.hidden_real, train=False)
        whole = config.mask.helper == "whole"
        length = states.shape[1]
        helper = jnp.repeat(h if whole else shown_h, length, axis=0) if config.mlm.with_table else None
        text = states[:, 0]
        if config.text.pooling == "mean":
            text = jnp.nanmean(jnp.where(views.real[:, :, None], states, jnp.nan), axis=1)
        logits = call("recover_tokens", hidden_states.reshape(-1, states.shape[-1]), helper, train=False)
        prompt = (states, views.real) if whole else (hidden_states, views.hidden_real)
        prompt = prompt if config.mtm.with_text else (None, None)
        return (
            call("align", h, text, train=False),
            logits.reshape(B, length, -1),
            call("recover_features", shown_h, *prompt),
        )

    return jax.tree.map(lambda x: np.asarray(x, np.float64), towers(params, jax.tree.map(jnp.asarray, views)))


def slow_hide(prompt: Slow, hidden: np.ndarray, mask_id: int, pad_id: int, *, span: bool):
    """The prompts with hidden tokens masked, for `span` a run of one value by a single mask; and where to look."""
    tokens, real = np.full_like(prompt.tokens, pad_id), np.zeros_like(prompt.real)
    place = np.zeros_like(prompt.tokens)
    for r, row in enumerate(prompt.tokens):
        at = -1
        for t, token in enumerate(row):
            if not prompt.real[r, t]:
                continue
            goes_on = span and hidden[r, t] and t > 0 and prompt.field[r, t - 1] == prompt.field[r, t]
            if not goes_on:
                at += 1
                tokens[r, at], real[r, at] = mask_id if hidden[r, t] else token, True
            place[r, t] = at
    return tokens, real, place


def slow_mtm(task: Pretrain, output, ids, shown_ids, hide_ids, key) -> tuple[float, dict[str, Any], dict[str, Any]]:
    """Loss, and by field what came first and how far the loss is below one that knows frequencies only."""
    schema, config = task.model.schema, task.model.config.mtm
    losses, right, gains = [], *({name: [] for name in schema.names} for _ in range(2))
    if config.method == "rfd":
        for f, name in enumerate(schema.names):
            replaced = ids[:, f] != shown_ids[:, f]
            own = task.counts[schema.fields[f].offset :][: schema.fields[f].size]
            rate = 1 / 5 * (1 - sum((count / own.sum()) ** 2 for count in own))  # one of five units is hidden
            for r in range(len(ids)):
                losses.append(-log_sigmoid(output[r, f] if replaced[r] else -output[r, f]))
                gains[name].append(-math.log(rate if replaced[r] else 1 - rate) - losses[-1])
                if replaced[r]:
                    right[name].append(output[r, f] > 0)
        return sum(losses) / len(losses), right, gains
    vectors, table, bias = output
    k, counts = config.noise, task.counts.astype(np.float64)
    for f, field in enumerate(schema.fields):
        own_ids = range(field.offset, field.offset + field.size)
        pool = list(own_ids) if config.noise_from == "field" else list(range(schema.num_ids))
        q = {i: counts[i] / sum(counts[j] for j in pool) for i in pool}
        p = jnp.asarray([q[i] for i in pool], jnp.float32)
        half = {i: max(counts[i], 0.5) for i in pool}
        common = {i: math.log(half[i] / sum(half.values())) for i in pool}
        field_key = jax.random.fold_in(key, f)

        def draw(key, pool=pool, p=p):
            return pool[0] + np.asarray(jax.random.choice(key, len(pool), (k,), p=p))

        for r in np.flatnonzero(hide_ids[:, f]):
            noise = draw(field_key if config.method == "sampled" else jax.random.fold_in(field_key, r))
            target = ids[r, f]
            scores = {i: float(vectors[r, f] @ table[i] + bias[i]) for i in range(schema.num_ids)}
            own = [scores[i] for i in own_ids]

            def loss(scores, target=target, noise=noise, field=field, own_ids=own_ids, q=q):
                if config.method == "softmax":
                    return cross_entropy(np.array([scores[i] for i in own_ids]), target - field.offset)
                if config.method == "nce":
                    positive = -log_sigmoid(scores[target] - math.log(k * q[target]))
                    return positive - sum(log_sigmoid(-(scores[i] - math.log(k * q[i]))) for i in noise)
                against = [scores[i] - math.log(k * q[i]) for i in noise if i != target]
                return cross_entropy(np.array([scores[target], *against]), 0)

            losses.append(loss(scores))
            gains[field.name].append(loss(common) - losses[-1])
            if config.method == "softmax":
                right[field.name].append(np.argmax(own) == target - field.offset)
            else:
                right[field.name].append(all(scores[target] > scores[i] for i in noise if i != target))
    return sum(losses) / len(losses), right, gains


def slow_token_shares(dataset) -> list[np.ndarray]:
    """By field, the share of every token among those of the training rows' values; one that is absent counts a half."""
    prompt = spell(dataset, np.asarray(dataset.train.values))
    counts = np.full((len(dataset.schema.names), dataset.schema.text.vocab_size), 0.0)
    for tokens, fields in zip(prompt.tokens, prompt.field, strict=True):
        for token, f in zip(tokens, fields, strict=True):
            if f >= 0:
                counts[f, token] += 1
    return [np.where(row == 0, 0.5, row) / np.where(row == 0, 0.5, row).sum() for row in counts]


def slow_pretraining(task: Pretrain, params, dataset, values: np.ndarray, key: jax.Array) -> dict[str, float]:
    """The losses and accuracies of a batch, out of what towers and heads give, row by row."""
    schema, config = task.model.schema, task.model.config
    names, text = schema.names, schema.text
    mlm_key, mtm_key, noise_key, _ = jax.random.split(key, 4)
    hide_text, hide_ids = (np.asarray(x) for x in choose_masks((mlm_key, mtm_key), B, schema, config.mask))

    prompt = spell(dataset, values)
    if config.mlm.unit == "token":
        hidden = np.asarray(jax.random.bernoulli(mlm_key, config.mask.rate, prompt.tokens.shape)) & (prompt.field >= 0)
    else:
        hidden = np.array([[f >= 0 and hide_text[r, f] for f in row] for r, row in enumerate(prompt.field)])
    tokens, real, place = slow_hide(prompt, hidden, text.mask_id, text.pad_id, span=config.mlm.unit == "span")
    ids = dataset.pieces.feature[values]
    shown_ids = np.where(hide_ids, MASK_ID, ids)
    if config.mtm.method == "rfd":
        donor = np.asarray(jax.random.randint(noise_key, ids.shape, 0, B))
        shown_ids = np.array(
            [[ids[donor[r, f], f] if hide_ids[r, f] else ids[r, f] for f in range(len(names))] for r in range(B)]
        )

    views = Views(ids, shown_ids, prompt.tokens, prompt.real, tokens, real)
    (z_ctr, z_text), token_logits, output = run_model(task, params, views)
    found = {"icl": slow_icl(z_ctr, z_text, values, config.icl.temperature)}

    losses, right, gains = [], *({name: [] for name in names} for _ in range(2))
    shares = slow_token_shares(dataset)
    for r, t in np.argwhere(hidden):
        logits, f, token = token_logits[r, place[r, t]], prompt.field[r, t], prompt.tokens[r, t]
        losses.append(cross_entropy(logits, token))
        right[names[f]].append(np.argmax(logits) == token)
        gains[names[f]].append(-math.log(shares[f][token]) - losses[-1])
    found["mlm"] = sum(losses) / len(losses)
    found |= {f"mlm/accuracy/{name}": np.mean(hits) if hits else None for name, hits in right.items()}
    found |= {f"mlm/gain/{name}": np.mean(gained) if gained else None for name, gained in gains.items()}

    found["mtm"], right, gains = slow_mtm(task, output, ids, shown_ids, hide_ids, noise_key)
    logged = "beats_noise" if config.mtm.method in ("sampled", "nce") else "accuracy"
    found |= {f"mtm/{logged}/{name}": np.mean(hits) if hits else None for name, hits in right.items()}
    found |= {f"mtm/gain/{name}": np.mean(gained) if gained else None for name, gained in gains.items()}
    weights = config.loss
    found["loss"] = weights.icl * found["icl"] + weights.mlm * found["mlm"] + weights.mtm * found["mtm"]
    return found


def means(metrics) -> dict[str, float | None]:
    return {name: float(m.total) / float(m.weight) if m.weight else None for name, m in metrics.items()}


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "released noise": {"mtm.method": "nce", "mtm.noise_from": "all", "mask.rate": 0.5, "mask.unit": "group"},
    "field noise, one mask a value": {"mtm.method": "nce", "mlm.unit": "span", "mask.rate": 0.4},
    "sampled softmax, single tokens": {"mtm.method": "sampled", "mlm.unit": "token", "mask.rate": 0.3},
    "replaced features, same masks on both sides": {
        **{"mtm.method": "rfd", "mask.pairing": "same", "mask.helper": "masked", "mask.unit": "group"},
        "mlm.unit": "span",
    },
    "complementary masks, each helped by the masked other": {
        **{"mask.pairing": "complementary", "mask.helper": "masked", "mask.rate": 0.34},
    },
    "no help from the table, released attention": {"mlm.with_table": False, "mtm.attention": "released"},
    "no help from the text, mean of its states": {"mtm.with_text": False, "text.pooling": "mean"},
}
_AT_LENGTH = ("field noise, one mask a value",)  # the others have each by itself


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, id=name, marks=[pytest.mark.slow] if name in _AT_LENGTH else [])
        for name, options in OPTIONS.items()
    ],
)
def test_pretraining_loss_is_the_sum_of_the_three_equations(
    options, make_pretrain, plain_config, tiny_dataset, pieces, batch
):
    task = make_pretrain(plain_config.override(options), WEIGHTS, B)
    params, key = fresh(task), jax.random.key(5)
    loss = jax.jit(task.loss)
    total, metrics = loss(params, pieces, batch, key)
    found = means(metrics)
    expected = slow_pretraining(task, params, tiny_dataset, np.asarray(batch.values), key)
    assert float(total) == pytest.approx(expected["loss"], rel=1e-5)
    for name, value in expected.items():
        least = 1e-5 if "/gain/" in name else None  # a difference, which may be near 0
        assert found[name] == (None if value is None else pytest.approx(value, rel=1e-5, abs=least)), name
    assert found["duplicates"] == pytest.approx(2 / B)
    assert found["mlm/dropped"] == 0
    assert found.get("mtm/dropped", 0) == 0
    assert sum(name.startswith("mtm/gain/") for name in expected) == len(tiny_dataset.schema.names)

    # Neither labels nor the order of fields that are not masked matter; another key masks other fields.
    other_labels = batch._replace(label=1 - batch.label)
    assert float(loss(params, pieces, other_labels, key)[0]) == float(total)
    assert float(loss(params, pieces, batch, jax.random.key(6))[0]) != float(total)


def test_too_many_masked_tokens_are_counted_not_hidden(make_pretrain, plain_config, tiny_dataset, pieces, batch):
    """A capacity that is too small costs tokens, which `mlm/dropped` says, and nothing else."""
    config = dataclasses.replace(plain_config, mask=MaskConfig(rate=0.5))
    task = make_pretrain(config, LossConfig(icl=0, mlm=1, mtm=0), B)
    task = dataclasses.replace(task, maskable=np.zeros_like(task.maskable))  # nothing to hide, so that 8 are the most
    key = jax.random.key(5)
    total, found = jax.jit(task.loss)(fresh(task), pieces, batch, key)
    chosen = masking.choose_fields(
        jax.random.split(key, 4)[0], B, masking.mask_units(task.model.schema, config.mask), 0.5
    )
    hidden = (tiny_dataset.pieces.maskable[np.asarray(batch.values)] * np.asarray(chosen)).sum()
    assert hidden > 8
    assert found["mlm"].weight == 8
    assert found["mlm/dropped"] == (hidden - 8, hidden)
    assert sum(m.weight for name, m in found.items() if name.startswith("mlm/accuracy/")) == 8
    assert np.isfinite(total)


@pytest.mark.parametrize(("locked", "moved"), [("ctr", "text"), ("text", "ctr")])
def test_icl_does_not_move_a_locked_tower(locked, moved, make_pretrain, plain_config, pieces, batch):
    """Both projections learn all the same; the loss is what it is with nothing locked."""
    only = LossConfig(icl=1, mlm=0, mtm=0)
    task, free = (make_pretrain(plain_config.override({"icl.locked": way}), only, B) for way in (locked, "none"))
    params, key = fresh(task), jax.random.key(5)
    (loss, _), grads = jax.jit(jax.value_and_grad(task.loss, has_aux=True))(params, pieces, batch, key)
    assert float(loss) == pytest.approx(float(jax.jit(free.loss)(params, pieces, batch, key)[0]), rel=1e-6)
    assert not optax.tree.norm(grads[locked])
    for name in (moved, "align_ctr", "align_text"):
        assert optax.tree.norm(grads[name]) > 0


# --- a weight of 0 ---


def equations(jaxpr) -> Iterator[Any]:
    """All equations of a program, inner ones too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for sub in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            if hasattr(sub, "eqns") or hasattr(sub, "jaxpr"):
                yield from equations(getattr(sub, "jaxpr", sub))


ONLY = {
    # weights: text passes, CTR passes, heads
    (1, 1, 1): (2, 2, {"align_ctr", "align_text", "mlm", "mtm"}),
    (1, 0, 1): (1, 2, {"align_ctr", "align_text", "mtm"}),
    (1, 0, 0): (1, 1, {"align_ctr", "align_text"}),
    (0, 1, 0): (1, 1, {"mlm"}),
    (0, 0, 1): (1, 1, {"mtm"}),
    (0, 1, 1): (2, 2, {"mlm", "mtm"}),
}


@pytest.mark.parametrize("method", ["softmax", "rfd"])
def test_mtm_without_text_has_no_text_tower(method, make_pretrain, plain_config, pieces, batch):
    config = plain_config.override({"mtm.with_text": False, "mtm.method": method})
    task = make_pretrain(config, LossConfig(icl=0, mlm=0, mtm=1), B)
    params = jax.eval_shape(task.init, jax.random.key(0))
    assert set(params) == {"ctr", "mtm"}
    program = jax.make_jaxpr(task.loss)(params, pieces, batch, jax.random.key(1))
    assert not any(eqn.primitive.name == "erf" for eqn in equations(program))  # GELU, which text towers alone have
    assert not pretraining.reads_text(config.override({"loss.icl": 0, "loss.mlm": 0}))


@pytest.mark.parametrize("preset", ["paper", "released_code"])
def test_nce_starts_where_nothing_but_frequencies_is_known(preset, make_pretrain, plain_config, pieces, batch):
    """As the released code does, whose bias is log q: every term is −log σ(∓log k) then, 4.24 in all for k = 25."""
    task = make_pretrain(presets.apply(plain_config, preset), LossConfig(icl=0, mlm=0, mtm=1), B)
    assert task.model.config.mtm.noise == 25
    params = task.init(jax.random.key(0))
    bias, table = params["mtm"]["bias"], params["mtm"]["table"]
    counts = task.counts
    np.testing.assert_allclose(bias[: len(counts)][counts > 0], np.log(counts[counts > 0] / counts.sum()), rtol=1e-2)
    assert np.abs(table).max() == pytest.approx(1 / math.sqrt(table.shape[1]), rel=1e-2)
    assert table.std() == pytest.approx(1 / math.sqrt(3 * table.shape[1]), rel=0.05)
    params["mtm"]["output"] = jax.tree.map(jnp.zeros_like, params["mtm"]["output"])
    _, found = jax.jit(task.loss)(params, pieces, batch, jax.random.key(1))
    start = math.log(26) + 25 * math.log(26 / 25)
    assert float(found["mtm"].value) == pytest.approx(start, rel=0.02)


@pytest.fixture(scope="module")
def flops() -> dict[tuple[int, ...], float]:
    return {}


@pytest.mark.parametrize("weights", list(ONLY))
def test_a_weight_of_0_removes_the_term_from_the_program(weights, make_pretrain, plain_config, pieces, batch, flops):
    icl, mlm, mtm = weights
    task = make_pretrain(plain_config, LossConfig(icl=icl, mlm=mlm, mtm=mtm), B)
    text_passes, ctr_passes, heads = ONLY[weights]
    params = jax.eval_shape(task.init, jax.random.key(0))
    assert set(params) == {"ctr", "text"} | heads

    schema, encoder = task.model.schema, task.model.encoder
    words, features = (encoder.vocab_size, encoder.hidden_size), (table_rows(schema.num_ids), plain_config.ctr.dim)
    program = list(equations(jax.make_jaxpr(task.loss)(params, pieces, batch, jax.random.key(0)).jaxpr))
    looked_up = [eqn.invars[0].aval.shape for eqn in program if eqn.primitive.name == "gather"]
    assert looked_up.count(words) == text_passes
    assert looked_up.count(features) == ctr_passes
    wide = [
        eqn
        for eqn in program
        if eqn.primitive.name == "dot_general" and encoder.vocab_size in eqn.outvars[0].aval.shape
    ]
    assert bool(wide) == bool(mlm)

    lowered = jax.jit(task.loss).lower(params, pieces, batch, jax.random.key(0))
    assert bool(re.search(rf"dot_general.*x{encoder.vocab_size}xf32", lowered.as_text())) == bool(mlm)
    flops[weights] = lowered.cost_analysis()["flops"]


def test_what_is_not_computed_costs_nothing(flops):
    """Of the counts above: a text pass less is most of the work less."""
    if set(flops) != set(ONLY):
        pytest.skip("needs the counts of the test above")
    whole = flops[1, 1, 1]
    assert flops[1, 0, 0] < 0.6 * whole
    assert flops[0, 1, 0] < 0.75 * whole
    assert flops[0, 0, 1] < 0.75 * whole
    assert flops[1, 0, 1] < 0.75 * whole
    assert flops[0, 1, 1] < whole


# --- learning ---


@pytest.mark.parametrize("method", ["softmax", "sampled", "nce"])
def test_mtm_learns_to_recover_features(method, make_pretrain, plain_config, tiny_dataset, pieces):
    """Thirty updates on one batch, masks drawn anew each time: the loss falls, and fields are recovered.

    NCE has to learn how frequent every id is before it ranks them; what it recovers so early says nothing.
    """
    config = dataclasses.replace(plain_config, mtm=MTMConfig(method=method, dim=16, noise=25))
    task = make_pretrain(config, LossConfig(icl=0, mlm=0, mtm=1))
    params = fresh(task)
    optimizer = optax.adam(2e-2)
    step = jax.jit(make_step(task, optimizer))
    state = State(jnp.int32(0), params, optimizer.init(params))
    rows = jax.tree.map(jnp.asarray, batch_at(tiny_dataset.train, seed=0, step=0, batch_size=16))
    losses, hits = [], []
    for _ in range(30):
        state, metrics = step(state, pieces, rows, jax.random.key(1))
        losses.append(float(metrics["mtm"].value))
        recovered = [m for name, m in metrics.items() if name.startswith(("mtm/accuracy/", "mtm/beats_noise/"))]
        hits.append(sum(float(m.total) for m in recovered) / sum(float(m.weight) for m in recovered))
    assert int(state.step) == 30
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    if method != "nce":
        assert np.mean(hits[-5:]) > np.mean(hits[:5]) + 0.2


def test_replaced_features_are_found(make_pretrain, plain_config, tiny_dataset, pieces):
    """120 updates on one batch, replacements drawn anew: those are found more often than other fields are blamed."""
    task = make_pretrain(
        plain_config.override({"mtm.method": "rfd", "mask.rate": 0.5}), LossConfig(icl=0, mlm=0, mtm=1)
    )
    optimizer = optax.adam(2e-2)
    step = jax.jit(make_step(task, optimizer))
    params = fresh(task)
    state = State(jnp.int32(0), params, optimizer.init(params))
    rows = jax.tree.map(jnp.asarray, batch_at(tiny_dataset.train, seed=0, step=0, batch_size=16))
    losses, logged = [], []
    for _ in range(120):
        state, metrics = step(state, pieces, rows, jax.random.key(1))
        losses.append(float(metrics["mtm"].value))
        logged.append(metrics)

    def rate(kind: str) -> float:
        chosen = [m for metrics in logged[-10:] for name, m in metrics.items() if name.startswith(f"mtm/{kind}/")]
        return sum(float(m.total) for m in chosen) / sum(float(m.weight) for m in chosen)

    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:5])
    assert rate("accuracy") > rate("false_alarm") + 0.1


def test_another_number_of_the_same_bin_is_a_replacement(plain_config, tiny_dataset):
    """The tower sees the number itself, so it can tell."""
    schema = tiny_dataset.schema
    f = schema.index("Age")
    age = dataclasses.replace(schema.fields[f], kind="numeric")
    schema = dataclasses.replace(schema, fields=(*schema.fields[:f], age, *schema.fields[f + 1 :]))
    ids = jnp.asarray(tiny_dataset.pieces.feature[tiny_dataset.train.values[:B]])
    numbers = jnp.arange(B, dtype=jnp.float32)[:, None]
    shown = mtm.Shown(ids, numbers.at[2].set(0.5))
    logits, chosen = jnp.zeros(ids.shape), jnp.zeros(ids.shape, bool)
    config = plain_config.override({"mtm.method": "rfd"})
    metrics = mtm.loss(logits, ids, numbers, shown, chosen, np.ones(9), jax.random.key(0), config, schema)
    replaced = {name: float(metrics[f"mtm/accuracy/{name}"].weight) for name in schema.names}
    assert replaced == {name: float(name == "Age") for name in schema.names}


# --- hiding a value behind one mask ---


def test_one_mask_hides_how_long_a_value_is(plain_config, tiny_dataset):
    """Two rows that differ in one field's value alone, by any number of tokens, look the same once it is hidden."""
    schema, field = tiny_dataset.schema, tiny_dataset.schema.index("Title")
    config = plain_config.override({"mlm.unit": "span"})
    row = np.array(tiny_dataset.train.values[:1])
    titles = np.unique(tiny_dataset.train.values[:, field])
    values = np.repeat(row, len(titles), axis=0)
    values[:, field] = titles
    length = 8 * -(-schema.text.length // 8)
    prompt = compose(jax.tree.map(jnp.asarray, tiny_dataset.pieces), values, length=length, pad_id=schema.text.pad_id)
    chosen = jnp.zeros((len(titles), len(schema.fields)), bool).at[:, field].set(True)
    hidden = mlm.hide(prompt, chosen, config, schema)
    assert len(set(np.asarray(prompt.mask).sum(axis=1).tolist())) > 1
    assert (np.asarray(hidden.tokens) == np.asarray(hidden.tokens)[:1]).all()
    assert (np.asarray(hidden.mask) == np.asarray(hidden.mask)[:1]).all()
    assert (np.asarray(hidden.tokens) == schema.text.mask_id).sum(axis=1).tolist() == [1] * len(titles)
    where, place = np.asarray(hidden.where), np.asarray(hidden.place)
    assert (np.take_along_axis(np.asarray(hidden.tokens), place, axis=1)[where] == schema.text.mask_id).all()


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss.icl": 0, "loss.mlm": 0, "loss.mtm": 0}, "nothing to pretrain"),
        ({"mask.pairing": "complementary", "mask.rate": 0.6}, "hides 3 units on each side, 6 in all, but there are 5"),
        ({"icl.leave_out": ("user",)}, "icl.leave_out names the user"),
        ({"icl.chunk": 5}, "icl.chunk 5 does not divide pretrain.batch_size 16"),
    ],
)
def test_what_cannot_be_pretrained_is_refused(options, said, tiny_config, tiny_dataset):
    schema = dataclasses.replace(tiny_dataset.schema, user=None)
    if "mask.rate" in options:
        schema = dataclasses.replace(schema, fields=schema.fields[:5], linked=())
    with pytest.raises(InputError, match=said):
        pretraining.check(tiny_config.override(options), schema)


def test_masks_that_nothing_hides_are_not_checked(tiny_config, tiny_dataset):
    config = tiny_config.override({"loss.mlm": 0, "loss.mtm": 0, "mask.pairing": "complementary", "mask.rate": 0.9})
    pretraining.check(config, tiny_dataset.schema)

"""The tasks' losses against loops over rows, fields and tokens; what a weight of 0 removes; that MTM learns."""

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

from alt_jax import bridge, masking
from alt_jax.config import LossConfig, MaskConfig, MTMConfig
from alt_jax.data.batches import Batch, batch_at
from alt_jax.models.alt import ALT
from alt_jax.schema import MASK_ID
from alt_jax.tasks import Finetune, Pretrain
from alt_jax.train import State, make_step

pytestmark = pytest.mark.usefixtures("quick_compile")

B = 8
WEIGHTS = LossConfig(icl=1.0, mlm=0.5, mtm=2.0)


@pytest.fixture(scope="module")
def batch(tiny_dataset) -> Batch:
    """Eight rows, the last the same as the first."""
    rows = batch_at(tiny_dataset.train, seed=0, step=0, batch_size=B)
    values = np.array(rows.values)
    values[-1] = values[0]
    return Batch(jnp.asarray(values), jnp.asarray(rows.label), jnp.asarray(rows.weight))


@pytest.fixture(scope="module")
def pieces(tiny_dataset):
    return jax.tree.map(jnp.asarray, tiny_dataset.pieces)


def fresh(task: Any, seed: int = 0):
    """Random parameters, biases and scales too, so that none can be missing unnoticed; no initialiser to compile."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = 0.2 * rng.standard_normal(leaf.shape)
        return jnp.asarray(noise + (path[-1].key == "scale"), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(task.init, jax.random.key(0)))


# --- the slow version ---


class Slow(NamedTuple):
    """Prompts of a batch, spelled out token by token."""

    tokens: np.ndarray
    real: np.ndarray
    field: np.ndarray


def spell(dataset, values: np.ndarray) -> Slow:
    """[CLS], prefix and value of every field, [SEP], padding: from the pieces, one after the other."""
    pieces, schema = dataset.pieces, dataset.schema
    length = 8 * math.ceil(schema.text.length / 8)
    known = len(pieces.feature)
    out = Slow(
        np.full((len(values), length), schema.text.pad_id),
        np.zeros((len(values), length), bool),
        np.full((len(values), length), -1),
    )
    for r, row in enumerate(values):
        at = 0
        segments = [(known, -1)]
        for f, value in enumerate(row):
            segments += [(known + 2 + f, -1), (int(value), f)]
        segments.append((known + 1, -1))
        for piece, f in segments:
            for t in range(pieces.length[piece]):
                out.tokens[r, at] = pieces.tokens[pieces.start[piece] + t]
                out.real[r, at] = True
                out.field[r, at] = f if t < pieces.maskable[piece] else -1
                at += 1
    return out


def cross_entropy(logits: np.ndarray, target: int) -> float:
    top = max(logits)
    return top + math.log(sum(math.exp(v - top) for v in logits)) - logits[target]


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > -30 else x


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


@pytest.fixture(scope="module")
def outputs(make_pretrain, plain_config):
    """All that towers and heads give for a batch, MLM logits at every position; the only array arithmetic there is."""
    model = make_pretrain(plain_config, WEIGHTS, B).model

    @jax.jit
    def towers(params, ids, masked_ids, tokens, masked_tokens, real):
        def call(method, *args, **options):
            return model.apply({"params": params}, *args, method=method, **options)

        h, hidden_h = (call("represent", x, train=False) for x in (ids, masked_ids))
        states, masked_states = (call("read", x, real, train=False) for x in (tokens, masked_tokens))
        width, length = states.shape[-1], states.shape[1]
        everywhere = masked_states.reshape(-1, width), jnp.repeat(h, length, axis=0)
        return (
            call("align", h, states, train=False),
            call("recover_tokens", *everywhere, train=False).reshape(B, length, -1),
            call("recover_features", hidden_h, states, real),
        )

    return lambda *args: jax.tree.map(lambda x: np.asarray(x, np.float64), towers(*args))


def slow_pretraining(task: Pretrain, params, outputs, dataset, values: np.ndarray, key: jax.Array) -> dict[str, float]:
    """The losses and accuracies of a batch, out of what towers and heads give, row by row."""
    schema, config = task.model.schema, task.model.config
    names = schema.names
    mlm_key, mtm_key, noise_key, _ = jax.random.split(key, 4)
    units = masking.mask_units(schema, config.mask)
    hide_tokens = np.asarray(masking.choose_fields(mlm_key, B, units, config.mask.rate))
    hide_ids = np.asarray(masking.choose_fields(mtm_key, B, units, config.mask.rate))

    prompt = spell(dataset, values)
    hidden = np.array([[f >= 0 and hide_tokens[r, f] for f in row] for r, row in enumerate(prompt.field)])
    masked_tokens = np.where(hidden, schema.text.mask_id, prompt.tokens)
    ids = dataset.pieces.feature[values]

    (z_ctr, z_text), token_logits, (vectors, table, bias) = outputs(
        params, ids, np.where(hide_ids, MASK_ID, ids), prompt.tokens, masked_tokens, prompt.real
    )
    found = {"icl": slow_icl(z_ctr, z_text, values, config.icl.temperature)}

    losses, right = [], {name: [] for name in names}
    for r, t in np.argwhere(hidden):
        losses.append(cross_entropy(token_logits[r, t], prompt.tokens[r, t]))
        right[names[prompt.field[r, t]]].append(np.argmax(token_logits[r, t]) == prompt.tokens[r, t])
    found["mlm"] = sum(losses) / len(losses)
    found |= {f"mlm/accuracy/{name}": np.mean(hits) if hits else None for name, hits in right.items()}

    losses, right = [], {name: [] for name in names}
    q = np.asarray(jnp.asarray(task.counts / task.counts.sum(), jnp.float32))
    k = config.mtm.noise
    noise = np.asarray(jax.random.choice(noise_key, len(q), (B, len(names), k), p=jnp.asarray(q)))
    for r, f in np.argwhere(hide_ids):
        field, target = schema.fields[f], ids[r, f]
        scores = {i: float(vectors[r, f] @ table[i] + bias[i]) for i in range(schema.num_ids)}
        own = [scores[field.offset + i] for i in range(field.size)]
        right[names[f]].append(np.argmax(own) == target - field.offset)
        if config.mtm.method == "softmax":
            losses.append(cross_entropy(np.array(own), target - field.offset))
        else:
            loss = -log_sigmoid(scores[target] - math.log(k * q[target]))
            for i in noise[r, f]:
                loss -= log_sigmoid(-(scores[i] - math.log(k * q[i])))
            losses.append(loss)
    found["mtm"] = sum(losses) / len(losses)
    found |= {f"mtm/accuracy/{name}": np.mean(hits) if hits else None for name, hits in right.items()}
    weights = config.loss
    found["loss"] = weights.icl * found["icl"] + weights.mlm * found["mlm"] + weights.mtm * found["mtm"]
    return found


def means(metrics) -> dict[str, float | None]:
    return {name: float(m.total) / float(m.weight) if m.weight else None for name, m in metrics.items()}


@pytest.mark.parametrize(("method", "mask"), [("softmax", MaskConfig()), ("nce", MaskConfig(rate=0.5, unit="group"))])
def test_pretraining_loss_is_the_sum_of_the_three_equations(
    method, mask, make_pretrain, plain_config, tiny_dataset, pieces, batch, outputs
):
    config = dataclasses.replace(plain_config, mtm=MTMConfig(method=method, dim=4, noise=5), mask=mask)
    task = make_pretrain(config, WEIGHTS, B)
    params, key = fresh(task), jax.random.key(5)
    loss = jax.jit(task.loss)
    total, metrics = loss(params, pieces, batch, key)
    found = means(metrics)
    expected = slow_pretraining(task, params, outputs, tiny_dataset, np.asarray(batch.values), key)
    assert float(total) == pytest.approx(expected["loss"], rel=1e-5)
    for name, value in expected.items():
        assert found[name] == (None if value is None else pytest.approx(value, rel=1e-5)), name
    assert found["duplicates"] == pytest.approx(2 / B)
    assert found["mlm/dropped"] == 0
    assert {f"{kind}/accuracy/{name}" for kind in ("mlm", "mtm") for name in tiny_dataset.schema.names} <= set(found)

    # Neither labels nor the order of fields that are not masked matter; another key masks other fields.
    other_labels = batch._replace(label=1 - batch.label)
    assert float(loss(params, pieces, other_labels, key)[0]) == float(total)
    assert float(loss(params, pieces, batch, jax.random.key(6))[0]) != float(total)


def test_too_many_masked_tokens_are_counted_not_hidden(make_pretrain, plain_config, tiny_dataset, pieces, batch):
    """A capacity that is too small costs tokens, which `mlm/dropped` says, and nothing else."""
    config = dataclasses.replace(plain_config, mask=MaskConfig(rate=0.5))
    task = dataclasses.replace(make_pretrain(config, LossConfig(icl=0, mlm=1, mtm=0), B), capacity=16)
    key = jax.random.key(5)
    total, found = jax.jit(task.loss)(fresh(task), pieces, batch, key)
    chosen = masking.choose_fields(
        jax.random.split(key, 4)[0], B, masking.mask_units(task.model.schema, config.mask), 0.5
    )
    hidden = (tiny_dataset.pieces.maskable[np.asarray(batch.values)] * np.asarray(chosen)).sum()
    assert hidden > 16
    assert found["mlm"].weight == 16
    assert found["mlm/dropped"].value == hidden - 16
    assert sum(m.weight for name, m in found.items() if name.startswith("mlm/accuracy/")) == 16
    assert np.isfinite(total)


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
    words, features = (encoder.vocab_size, encoder.hidden_size), (schema.num_ids, plain_config.ctr.dim)
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


@pytest.mark.parametrize("method", ["softmax", "nce"])
def test_mtm_learns_to_recover_features(method, make_pretrain, plain_config, tiny_dataset, pieces):
    """Thirty updates on one batch, masks drawn anew each time: the loss falls, and fields are recovered.

    NCE's noise comes from all fields, so it first learns which ids belong to a field at all (METHOD.md: most negatives
    are trivial); what it recovers within a field so early says nothing.
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
        recovered = [m for name, m in metrics.items() if name.startswith("mtm/accuracy/")]
        hits.append(sum(float(m.total) for m in recovered) / sum(float(m.weight) for m in recovered))
    assert int(state.step) == 30
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    if method == "softmax":
        assert np.mean(hits[-5:]) > np.mean(hits[:5]) + 0.2


# --- finetuning ---


@pytest.mark.parametrize("strategy", ["ctr", "plm", "joint"])
def test_finetuning_losses(strategy, plain_config, tiny_dataset, pieces, batch):
    """BCE of the strategy's logit; for `joint` those of both parts too; L2 on the whole id tables but for `plm`."""
    schema = tiny_dataset.schema
    config = plain_config.override({"finetune.joint.alpha": 0.3})
    model = ALT(config, schema, bridge.encoder_config(plain_config.text, schema))
    task = Finetune(model, strategy, l2=0.01)
    params = fresh(task)
    weighted = batch._replace(weight=batch.weight.at[2].set(0.0))
    total, metrics = jax.jit(task.loss)(params, pieces, weighted, jax.random.key(0))
    found = means(metrics)

    values = np.asarray(batch.values)
    ids, prompt = tiny_dataset.pieces.feature[values], spell(tiny_dataset, values)
    arrays = map(jnp.asarray, (ids, prompt.tokens, prompt.real))
    outputs = jax.jit(lambda p: model.apply({"params": p}, strategy, *arrays, train=False, method="click"))
    logits = {name: np.asarray(logit, np.float64) for name, logit in outputs(params).items()}
    assert set(logits) == {"ctr", "plm", "joint"} if strategy == "joint" else {strategy}
    if strategy == "joint":
        alpha = float(params["fusion"]["alpha"])
        assert logits["joint"] == pytest.approx(alpha * logits["ctr"] + (1 - alpha) * logits["plm"], rel=1e-5)
    expected = 0.0
    for name, logit in logits.items():
        kept = [i for i in range(B) if i != 2]
        bce = -sum(log_sigmoid(logit[i]) if batch.label[i] else log_sigmoid(-logit[i]) for i in kept) / len(kept)
        assert found[f"bce/{name}"] == pytest.approx(bce, rel=1e-5)
        expected += bce
    if strategy != "plm":
        embeddings, weights = params["ctr"]["embedding"]["embedding"], params["ctr_logit"]["linear"]["embedding"]
        expected += 0.01 * sum(float(v) ** 2 for table in (embeddings, weights) for row in table for v in row)
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert found["loss"] == pytest.approx(expected, rel=1e-5)

    # What predicts is what was trained, with prompts padded to another length.
    length = prompt.tokens.shape[1] + 8 if strategy != "ctr" else 8
    scores = jax.jit(task.logit, static_argnums=3)(params, pieces, batch.values, length)
    assert np.asarray(scores) == pytest.approx(logits[strategy], rel=1e-4, abs=1e-5)

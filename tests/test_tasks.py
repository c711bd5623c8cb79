"""Finetuning's losses against their equations, row by row."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from slow_rows import fresh, log_sigmoid, spell

from alt_jax import bridge, metrics
from alt_jax.data.batches import Batch, batch_at
from alt_jax.models import packing
from alt_jax.models.alt import ALT
from alt_jax.tasks import Finetune, text_length
from alt_jax.train import State, make_step

B = 8


@pytest.fixture(scope="module")
def batch(tiny_dataset) -> Batch:
    return Batch(*map(jnp.asarray, batch_at(tiny_dataset.train, seed=0, step=0, batch_size=B)))


@pytest.fixture(scope="module")
def pieces(tiny_dataset):
    return jax.tree.map(jnp.asarray, tiny_dataset.pieces)


def means(metrics) -> dict[str, float]:
    return {name: float(m.total) / float(m.weight) for name, m in metrics.items()}


@pytest.mark.parametrize("strategy", ["ctr", "plm", "joint"])
def test_finetuning_losses(strategy, plain_config, tiny_dataset, pieces, batch):
    """BCE of the strategy's logit; for `joint` those of both parts too."""
    schema = tiny_dataset.schema
    config = plain_config.override({"finetune.joint.alpha": 0.3})
    model = ALT(config, schema, bridge.encoder_config(plain_config.text, schema))
    task = Finetune(model, strategy)
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
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert found["loss"] == pytest.approx(expected, rel=1e-5)

    # What predicts is what was trained, with prompts padded to another length.
    length = prompt.tokens.shape[1] + 8 if strategy != "ctr" else 8
    scores = jax.jit(task.logit, static_argnums=3)(params, pieces, batch.values, length)
    assert np.asarray(scores) == pytest.approx(logits[strategy], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(("strategy", "pooling"), [("plm", "mean"), ("joint", "cls")])
def test_unpadded_prompts_train_as_padded_ones_do(
    strategy, pooling, tiny_config, tiny_dataset, pieces, batch, monkeypatch
):
    """Loss and gradients, dropout included."""
    asked = []

    def room(lengths, rows, length):
        asked.append((rows, length))
        return rows * int(lengths.max())

    monkeypatch.setattr(packing, "room", room)
    schema = tiny_dataset.schema
    config = tiny_config.override({"text.pooling": pooling})
    padded = Finetune(ALT(config, schema, bridge.encoder_config(config.text, schema)), strategy)
    packed = dataclasses.replace(padded, lengths=tiny_dataset.prompt_tokens())
    assert packed.lengths.max() < text_length(schema.text.length)
    params, key = fresh(padded), jax.random.key(1)

    def found(task):
        (loss, metrics), grads = jax.jit(jax.value_and_grad(task.loss, has_aux=True))(params, pieces, batch, key)
        return float(loss), metrics, grads

    expected, metrics, expected_grads = found(padded)
    assert not asked
    assert "text/dropped" not in metrics
    loss, metrics, grads = found(packed)
    assert asked == [(B, text_length(schema.text.length))]
    assert metrics["text/dropped"].value == 0
    assert loss == pytest.approx(expected, rel=1e-6)
    for mine, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)


def test_the_mean_of_the_states_may_be_what_is_read(plain_config, tiny_dataset, pieces, batch):
    schema = tiny_dataset.schema
    config = plain_config.override({"text.pooling": "mean"})
    task = Finetune(ALT(config, schema, bridge.encoder_config(config.text, schema)), "plm")
    params = fresh(task)
    values = np.asarray(batch.values)
    found = task.logit(params, pieces, jnp.asarray(values), text_length(schema.text.length))
    prompt = spell(tiny_dataset, values)
    tokens, real = map(jnp.asarray, (prompt.tokens, prompt.real))
    states = task.model.apply({"params": {"text": params["text"]}}, tokens, real, train=False, method="read")
    text = [np.asarray(row)[np.asarray(own)].mean(axis=0) for row, own in zip(states, real, strict=True)]
    head = jax.tree.map(np.asarray, params["text_logit"]["dense"])
    assert np.asarray(found) == pytest.approx((text @ head["kernel"])[:, 0] + head["bias"][0], rel=1e-4, abs=1e-5)


def test_bfloat16_learns_what_float32_does(tiny_config, tiny_dataset, pieces):
    """AUC after training, within the noise of the seeds; one word of the prompt decides four clicks of five."""
    schema, values = tiny_dataset.schema, np.asarray(tiny_dataset.train.values)
    female = values[:, schema.slot("Gender")] == values[:, schema.slot("Gender")].min()
    label = (np.random.default_rng(0).random(len(values)) < np.where(female, 0.8, 0.2)).astype(np.float32)

    def aucs(dtype):
        config = tiny_config.override({"text.dtype": dtype})
        task = Finetune(ALT(config, schema, bridge.encoder_config(config.text, schema)), "plm")
        optimizer = optax.adam(3e-3)
        update, scores = jax.jit(make_step(task, optimizer)), jax.jit(task.logit, static_argnums=3)
        for seed in range(3):
            params = jax.jit(task.init)(jax.random.key(seed))
            state = State(jnp.int32(0), params, optimizer.init(params))
            for step in range(40):
                rows = np.random.default_rng((seed, step)).integers(0, len(values), 32)
                fed = Batch(jnp.asarray(values[rows]), jnp.asarray(label[rows]), jnp.ones(32))
                state, _ = update(state, pieces, fed, jax.random.key(seed))
            yield metrics.auc(
                label.astype(np.int64), np.asarray(scores(state.params, pieces, jnp.asarray(values), 48), np.float64)
            )

    whole, half = list(aucs("float32")), list(aucs("bfloat16"))
    assert min(whole) > 0.7
    assert abs(np.mean(half) - np.mean(whole)) < max(np.ptp(whole), 0.01)


def test_two_text_towers_read_a_half_of_the_prompt_each(plain_config, tiny_dataset, pieces, batch):
    """CTR-BERT: what stands in the other half changes nothing; both halves together are the whole prompt."""
    schema = tiny_dataset.schema
    config = plain_config.override({"finetune.plm.towers": "two"})
    task = Finetune(ALT(config, schema, bridge.encoder_config(config.text, schema)), "plm")
    params = fresh(task)
    assert set(params) == {"text", "text_second", "two_text_logit"}
    length = 8 * -(-schema.text.length // 8)
    values = np.array(batch.values)
    _, *one, _, two = task.inputs(pieces, jnp.asarray(values), length)
    words = {}
    for name, (tokens, mask) in {"one": one, "two": two, "whole": spell(tiny_dataset, values)[:2]}.items():
        words[name] = [np.asarray(t)[np.asarray(m)].tolist() for t, m in zip(tokens, mask, strict=True)]
    for first, second, whole in zip(words["one"], words["two"], words["whole"], strict=True):
        assert first[:-1] + second[1:] == whole  # but for the [SEP] and [CLS] in between
    item = schema.index(schema.item)
    assert item == 3
    swapped = values.copy()
    swapped[:, item:] = values[::-1, item:]
    _, *same, _, other = task.inputs(pieces, jnp.asarray(swapped), length)
    assert (np.asarray(same[0]) == np.asarray(one[0])).all()
    assert (np.asarray(other[0]) == np.asarray(two[0])[::-1]).all()

    def h(name, tokens, mask):
        return task.model.apply({"params": {"text": params[name]}}, tokens, mask, train=False, method="read")[:, 0]

    head = params["two_text_logit"]
    views = np.concatenate([h("text", *one), h("text_second", *two)], axis=1)
    hidden = np.maximum(views @ np.asarray(head["hidden"]["kernel"]) + np.asarray(head["hidden"]["bias"]), 0)
    expected = hidden @ np.asarray(head["dense"]["kernel"])[:, 0] + float(head["dense"]["bias"][0])
    found = task.logit(params, pieces, jnp.asarray(values), length)
    assert np.asarray(found) == pytest.approx(expected, rel=1e-4, abs=1e-5)

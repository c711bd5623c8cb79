"""Finetuning's losses against their equations, row by row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_rows import fresh, log_sigmoid, spell

from alt_jax import bridge
from alt_jax.data.batches import Batch, batch_at
from alt_jax.models.alt import ALT
from alt_jax.tasks import Finetune

pytestmark = pytest.mark.usefixtures("quick_compile")

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


def test_two_text_towers_read_a_half_of_the_prompt_each(plain_config, tiny_dataset, pieces, batch):
    """CTR-BERT: what stands in the other half changes nothing; both halves together are the whole prompt."""
    schema = tiny_dataset.schema
    config = plain_config.override({"finetune.plm.towers": "two"})
    task = Finetune(ALT(config, schema, bridge.encoder_config(config.text, schema)), "plm")
    params = fresh(task)
    assert set(params) == {"text", "text_second", "two_text_logit"}
    length = 8 * -(-schema.text.length // 8)
    values = np.array(batch.values)
    _, *one, _, two = task._inputs(pieces, jnp.asarray(values), length)
    words = {}
    for name, (tokens, mask) in {"one": one, "two": two, "whole": spell(tiny_dataset, values)[:2]}.items():
        words[name] = [np.asarray(t)[np.asarray(m)].tolist() for t, m in zip(tokens, mask, strict=True)]
    for first, second, whole in zip(words["one"], words["two"], words["whole"], strict=True):
        assert first[:-1] + second[1:] == whole  # but for the [SEP] and [CLS] in between
    item = schema.index(schema.item)
    assert item == 3
    swapped = values.copy()
    swapped[:, item:] = values[::-1, item:]
    _, *same, _, other = task._inputs(pieces, jnp.asarray(swapped), length)
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

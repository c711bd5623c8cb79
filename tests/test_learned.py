"""What the end of a pretraining says of it."""

import json

import jax
import numpy as np
import pytest
from tiny_runs import trained

from alt_jax import learned, mtm
from alt_jax.checkpoint import load_params
from alt_jax.config import Config
from alt_jax.data.batches import Batch
from alt_jax.sharding import make_mesh, replicate

FOUND = {
    "icl": 4.0, "icl/top1_ctr_to_text": 0.1, "icl/top1_text_to_ctr": 0.2, "batch": 64.0, "rows": 640.0,
    "mtm/gain": 0.3, "mtm/gain/Movie ID": 0.5, "mtm/gain/Age": 0.1, "mtm/gain/Gender": 0.001,
    "mlm/gain": 0.2, "mlm/gain/A/B test": 0.2,
}  # fmt: skip


def test_what_was_learned_is_one_sentence():
    good, bad = learned.verdict(FOUND, Config())
    assert good == (
        "MTM is 0.30 nats below the unigram loss (Movie ID 0.50, Age 0.10); "
        "MLM is 0.20 nats below the unigram loss (A/B test 0.20); "
        "ICL finds the other view of 15.0% of the rows among 64 (1.6% by chance)"
    )
    assert bad == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mtm/gain": 0.0, "mtm/gain/Movie ID": 0.01, "mtm/gain/Age": -0.1}, "MTM has learned nothing (0.00 nats"),
        ({"mlm/gain": -1.0, "mlm/gain/A/B test": -1.0}, "raise pretrain.text_learning_rate"),
        ({"icl/top1_ctr_to_text": 0.02, "icl/top1_text_to_ctr": 0.01}, "ICL is at chance (its loss is 4.00, ln 64"),
    ],
)  # fmt: skip
def test_a_loss_that_learned_nothing_is_told_with_what_to_try(change, said):
    _, bad = learned.verdict(FOUND | change, Config())
    (sentence,) = bad
    assert said in sentence


def test_what_is_too_sure_of_itself_has_learned_all_the_same():
    sure = FOUND | {"mtm/share": 0.25}
    (good, _), (_, bad) = learned.verdict(sure, Config()), learned.verdict(sure | {"mtm/gain": -0.1}, Config())
    assert "(Movie ID 0.50, Age 0.10) with 0.25 of its scores, being too sure of them" in good
    assert "MTM has learned nothing (-0.10 nats" in bad[0]


def test_a_part_of_the_scores_is_looked_at_where_all_of_them_are_worse_than_none(
    tiny_config, tiny_dataset, make_pretrain
):
    """Scores that are ten times too large: a tenth of them is what was learned."""
    runs = trained(tiny_config)
    task, mesh = make_pretrain(runs.config), make_mesh()
    params, _ = load_params(runs.pretrain)
    pieces, head = replicate(mesh, tiny_dataset.pieces), params["mtm"]
    common = mtm.unigram_scores(task.counts, runs.config.mtm, task.model.schema)

    def measured(table, bias):
        changed = params | {"mtm": head | {"table": table, "bias": bias}}
        return learned.measure(task, mesh, replicate(mesh, changed), pieces, tiny_dataset)

    plain = measured(head["table"], head["bias"])
    assert "mtm/share" not in plain
    surplus = np.asarray(head["bias"][: len(common)]) - common
    bias = np.asarray(head["bias"]).copy()
    bias[: len(common)] = common + 10 * surplus
    found = measured(10 * head["table"], bias)
    assert found["mtm/share"] == 0.1
    for name in ("mtm", "mtm/gain", "mtm/accuracy/Title"):
        assert found[name] == pytest.approx(plain[name], abs=1e-3)
    assert found["icl"] == pytest.approx(plain["icl"])


def test_a_pretraining_measures_validation_rows_without_dropout(tiny_config, tiny_dataset, make_pretrain, monkeypatch):
    """As the loss itself gives them, batch by batch."""
    monkeypatch.setattr(learned, "_SHARES", ())
    config = trained(tiny_config).config
    task = make_pretrain(config)
    params, mesh = task.init(jax.random.key(0)), make_mesh()
    found = learned.measure(task, mesh, replicate(mesh, params), replicate(mesh, tiny_dataset.pieces), tiny_dataset)
    assert (found["rows"], found["batch"]) == (48, 16)
    totals = {"mtm": np.zeros(2), "icl": np.zeros(2)}
    for number in range(3):
        ones = np.ones(16, np.float32)
        batch = Batch(np.asarray(tiny_dataset.valid.values[16 * number : 16 * (number + 1)]), ones, ones)
        key = jax.random.fold_in(jax.random.key(0), number)
        _, means = jax.jit(lambda *inputs: task.loss(*inputs, train=False))(params, tiny_dataset.pieces, batch, key)
        for name in totals:
            totals[name] += np.array([means[name].total, means[name].weight])
    for name, (total, weight) in totals.items():
        assert found[name] == pytest.approx(total / weight, rel=1e-4)
    gains = [value for name, value in found.items() if name.startswith("mtm/gain/")]
    assert min(gains) <= found["mtm/gain"] <= max(gains)
    assert abs(found["mtm/gain"]) < 0.1  # a fresh one starts at the unigram loss


def test_a_result_holds_them(tiny_config, tiny_dataset):
    result = json.loads((trained(tiny_config).pretrain / "result.json").read_text(encoding="utf-8"))
    assert result["valid"]["rows"] == 48
    assert result["valid"]["mtm/gain"] > 0.01

"""The scorer: rows of like length together, and the scores that every row would have alone."""

import dataclasses
import json

import jax
import numpy as np
import pyarrow as pa
import pytest

from alt_jax import bridge, evaluate, stages
from alt_jax.config import Config
from alt_jax.data.dataset import Dataset, Encoder
from alt_jax.data.prompt import Pieces, prompt_lengths
from alt_jax.data.shards import ShardedArray
from alt_jax.evaluate import Probabilities, report, undefined
from alt_jax.models.alt import ALT
from alt_jax.sharding import make_mesh, replicate
from alt_jax.tasks import Finetune, Params, text_length


@pytest.fixture(scope="module")
def rows(tiny_dataset: Dataset) -> tuple[np.ndarray, Pieces]:
    """37 rows with titles of one to 30 words in no order, some of them alike, users that nobody knows, and nulls."""
    words = np.random.default_rng(0).permutation(np.arange(37) % 30 + 1)
    table = {
        "user_id": [None if n % 7 == 0 else f"u{n}" for n in range(37)],
        "gender": ["male"] * 37,
        "age": ["20"] * 37,
        "item_id": [f"i{n % 12}" for n in range(37)],
        "title": ["wolf " * n for n in words.tolist()],
        "genre": ["drama"] * 37,
    }
    return Encoder.load(tiny_dataset.folder).encode(pa.table(table))


def finetuned(config: Config, dataset: Dataset, strategy: str) -> tuple[Finetune, Params]:
    """A task and random parameters, large enough that rows differ."""
    task = Finetune(ALT(config, dataset.schema, bridge.encoder_config(config.text, dataset.schema)), strategy)
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        return (0.4 * rng.standard_normal(leaf.shape) + (path[-1].key == "scale")).astype(np.float32)

    return task, jax.tree_util.tree_map_with_path(draw, jax.eval_shape(task.init, jax.random.key(0)))


@pytest.fixture(scope="module", params=["ctr", "plm", "joint"])
def scored(request, tiny_config: Config, tiny_dataset: Dataset, rows) -> tuple[Finetune, Params, np.ndarray]:
    """A task, its parameters, and the score of every row by itself, its prompt padded to 8 alone."""
    task, params = finetuned(tiny_config, tiny_dataset, request.param)
    values, pieces = rows
    lengths = [text_length(int(n)) for n in prompt_lengths(pieces, values, tiny_dataset.schema.widths)]
    logit = jax.jit(task.logit, static_argnums=3)
    alone = [logit(params, pieces, values[n : n + 1], length)[0] for n, length in enumerate(lengths)]
    return task, params, 1 / (1 + np.exp(-np.array(alone, np.float64)))


@pytest.mark.parametrize("devices", [1, 8])
def test_every_row_has_in_its_place_the_score_that_it_has_alone(scored, rows, devices, monkeypatch):
    task, params, alone = scored
    monkeypatch.setattr(evaluate, "ID_BATCH", 2)
    monkeypatch.setattr(evaluate, "TEXT_BATCH", 2)
    monkeypatch.setattr(evaluate, "_RUN", 1)
    monkeypatch.setattr(evaluate, "_AHEAD", 2)
    mesh = make_mesh(jax.local_devices()[:devices])
    scorer, params = Probabilities(task, mesh, rows[1]), replicate(mesh, params)
    found = scorer(params, rows[0])
    assert np.ptp(alone) > 0.1
    np.testing.assert_allclose(found, alone, rtol=1e-5)
    np.testing.assert_array_equal(scorer(params, rows[0]), found)
    for few in (1, 17):
        np.testing.assert_allclose(scorer(params, rows[0][:few]), alone[:few], rtol=1e-5)
    assert scorer(params, rows[0][:0]).shape == (0,)
    monkeypatch.setattr(evaluate, "_PART", 10)  # and read in parts, from shards
    shards = ShardedArray([15, 15, 7], rows[0].shape[1:], "values", lambda part, n: rows[0][15 * n : 15 * (n + 1)])
    np.testing.assert_allclose(scorer(params, shards), alone, rtol=1e-5)


def test_batches_hold_every_row_once_and_rows_of_like_length(tiny_config, tiny_dataset, rows, monkeypatch):
    task, _ = finetuned(tiny_config, tiny_dataset, "plm")
    values, pieces = rows
    own = prompt_lengths(pieces, values, tiny_dataset.schema.widths)
    mesh = make_mesh(jax.devices()[:1])
    monkeypatch.setattr(evaluate, "TEXT_BATCH", 4)
    for run, programs in ((2, len(np.unique(own // 8))), (16, 1)):
        monkeypatch.setattr(evaluate, "_RUN", run)
        batches = list(Probabilities(task, mesh, pieces).batches(values))
        assert [len(chosen) for chosen, _, _ in batches] == [4] * 10
        runs = [batches[at : at + run] for at in range(0, 10, run)]
        order = [sorted(np.concatenate([chosen for chosen, _, _ in each]), key=lambda n: own[n]) for each in runs]
        assert own[np.concatenate(order)].tolist() == [*sorted(own), *[own.max()] * 3]
        assert sorted(set(np.concatenate(order).tolist())) == list(range(37))
        for each, members in zip(runs, order, strict=True):
            ((length, room),) = {(length, room) for _, length, room in each}
            assert length == text_length(int(own[members[-1]]))
            tokens = [own[chosen].sum() for chosen, _, _ in each]
            assert max(tokens) - min(tokens) <= np.ptp(own[members])
            assert room is None if max(tokens) > 4 * (length - 4) else max(tokens) <= room < max(tokens) + 16
        assert 1 <= len({length for _, length, _ in batches}) <= programs
        assert len({length for _, length, _ in batches}) > 1 or run == 16


def test_two_text_towers_are_not_packed_by_the_length_of_the_whole(tiny_config, tiny_dataset, rows):
    config = tiny_config.override({"finetune.plm.towers": "two"})
    task, _ = finetuned(config, tiny_dataset, "plm")
    assert {room for *_, room in Probabilities(task, make_mesh(jax.devices()[:1]), rows[1]).batches(rows[0])} == {None}


def test_scoring_without_prompts_keeps_the_order_of_the_rows(tiny_config, tiny_dataset, rows):
    task, _ = finetuned(tiny_config, tiny_dataset, "ctr")
    ((order, _, room),) = Probabilities(task, make_mesh(jax.devices()[:1]), rows[1]).batches(rows[0])
    assert order[:37].tolist() == list(range(37))
    assert room is None


@pytest.mark.parametrize(
    ("positive", "score", "said"),
    [
        (0.5, 0.3, "all scores are equal"),
        (0.0, 0.3, "one class"),
        (0.5, None, ""),
    ],
)
def test_why_an_area_is_undefined_is_said(tiny_dataset, positive, score, said):
    """In words for people, as null in JSON; also of what `result.json` has read back, where NaN is null already."""
    rows = tiny_dataset.test
    labels = (np.arange(len(rows.labels)) % 2 < 2 * positive).astype(np.uint8)
    dataset = dataclasses.replace(tiny_dataset)
    dataset.__dict__["test"] = rows._replace(labels=labels)
    probability = np.linspace(0.1, 0.9, len(labels)) if score is None else np.full(len(labels), score)
    found = report(dataset, "test", probability)
    read_back = json.loads(stages.to_json(found), parse_constant=pytest.fail)
    assert (read_back["auc"] is None, read_back["gauc"] is None) == (bool(said), bool(said))
    for metrics in (found, read_back):
        lines = dict(line.split(maxsplit=1) for line in stages.format_report(metrics, "valid").splitlines())
        assert lines["unseen_item_auc"] == "undefined (no rows)"  # the 12 items are in training, all of them
        for name in ("auc", "gauc"):
            if said:
                assert lines[name] == f"undefined ({said})"
            else:
                assert float(lines[name]) == pytest.approx(found[name], abs=1e-5)


def test_why_a_mean_over_users_is_undefined_is_said(tiny_dataset):
    found = report(tiny_dataset, "test", np.asarray(tiny_dataset.test.labels) / 2)
    assert undefined(found | {"gauc": float("nan")}, "gauc") == "no user has both classes"
    without_users = {name: value for name, value in found.items() if not name.startswith("unseen_user")}
    assert undefined(without_users, "gauc") == "no users"

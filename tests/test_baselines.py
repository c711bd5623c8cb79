"""Baselines of other libraries: what they see against loops over rows, that they learn, and the study that has them."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jax import device_get

pytest.importorskip("sklearn")
pytest.importorskip("lightgbm")

from alt_jax import ablate, baselines, factors, run_files, studies
from alt_jax.config import Config
from alt_jax.data.prepare import prepare
from alt_jax.data.prompt import feature_ids
from alt_jax.errors import InputError
from alt_jax.studies import Arm, Study


@pytest.fixture(scope="module")
def liked(tmp_path_factory, tiny_config) -> Config:
    """The tiny table with clicks that depend on the item: what a linear model can learn, too."""
    folder = tmp_path_factory.mktemp("liked")
    table = pq.read_table(tiny_config.data.raw)
    random = np.random.default_rng(0)
    good = np.array([int(item[1:]) % 3 == 0 for item in table["item_id"].to_pylist()])
    label = (random.random(len(good)) < 0.2 + 0.6 * good).astype(np.int64)
    names = table.column_names
    pq.write_table(table.set_column(names.index("label"), "label", pa.array(label)), folder / "rows.parquet")
    config = tiny_config.override({"data.raw": str(folder / "rows.parquet"), "data.dir": str(folder / "prepared")})
    prepare(config)
    return config


@pytest.mark.parametrize("name", baselines.NAMES)
def test_a_baseline_learns_and_keeps_what_it_scores(name, tmp_path, liked):
    result = baselines.fit(liked, name, tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (stored["took"], stored["test"]["auc"]) == (result["took"], result["test"]["auc"])
    assert result["valid"]["auc"] > 0.7
    assert result["took"].keys() == baselines._KINDS[name][1].keys()
    assert 0 < result["test"]["logloss"] < 1
    scores = run_files.read_scores(tmp_path / "run")
    assert [len(scores[split]) for split in ("valid", "test")] == [60, 60]
    assert ((scores["test"] >= 0) & (scores["test"] <= 1)).all()


def test_one_hot_rows_are_those_of_a_loop(tiny_dataset):
    rows = tiny_dataset.valid
    found = baselines._one_hot(tiny_dataset)(rows).toarray()
    ids = np.asarray(device_get(feature_ids(tiny_dataset.pieces, np.asarray(rows.values[:]))))
    slow = np.zeros((len(ids), tiny_dataset.schema.num_ids))
    for n, row in enumerate(ids):
        for one in row:
            slow[n, one] += 1
    np.testing.assert_array_equal(found, slow)


def test_factors_stand_behind_the_ids_with_their_products(tiny_dataset):
    rows, schema = tiny_dataset.valid, tiny_dataset.schema
    found = baselines._with_factors(tiny_dataset)(rows).toarray()[:, schema.num_ids :]
    ids, vectors = factors.factors(tiny_dataset, 32)
    of = dict(zip(ids.tolist(), vectors / vectors.std(), strict=True))
    features = np.asarray(device_get(feature_ids(tiny_dataset.pieces, np.asarray(rows.values[:]))))
    user, item = (
        np.stack([of[one] for one in features[:, schema.slot(name)].tolist()]) for name in ("User ID", "Item ID")
    )
    np.testing.assert_allclose(found, np.concatenate([user, item, user * item], axis=1), rtol=1e-5)


def test_the_best_point_on_validation_is_kept(tmp_path, tiny_config, tiny_dataset, monkeypatch):
    truth = np.asarray(tiny_dataset.valid.labels).astype(float)
    fitted = []

    def train(task, point):
        fitted.append(point)
        return lambda x: np.full(x.shape[0], 0.5) if point["l2"] != 2 else 0.25 + truth[: x.shape[0]] / 2

    monkeypatch.setitem(baselines._KINDS, "ridge", (baselines._one_hot, {"l2": (1.0, 2.0, 3.0)}, train))
    result = baselines.fit(tiny_config, "ridge", tmp_path / "run")
    assert [point["l2"] for point in fitted] == [1, 2, 3]
    assert result["took"] == {"l2": 2}
    assert result["valid"]["auc"] == 1


def test_labels_that_are_not_known_are_not_fitted_to(tmp_path, tiny_config, tiny_dataset, monkeypatch):
    seen = []

    def train(task, point):
        seen.append(len(task.y))
        return lambda x: np.linspace(0, 1, x.shape[0])

    monkeypatch.setitem(baselines._KINDS, "ridge", (baselines._one_hot, {"l2": (1.0,)}, train))
    baselines.fit(tiny_config.override({"finetune.label_share": 0.25}), "ridge", tmp_path / "run")
    assert seen == [120]


def test_without_the_library_the_extra_is_named(tiny_dataset, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lightgbm", None)
    with pytest.raises(InputError, match=r"'lightgbm' needs the package lightgbm; .* 'alt-jax\[baselines\]'"):
        baselines.check("lightgbm", tiny_dataset.schema)


def test_a_study_chooses_on_validation_by_its_first_seed(tmp_path, tiny_config, tiny_dataset, monkeypatch):
    """Two arms of ours and one of another library; what was chosen is in the table, and holds for every seed."""

    def here(groups, jobs):
        for group in groups:
            for planned in group:
                job = planned.chosen()
                if job is not None and not job.finished:
                    job.folder.parent.mkdir(parents=True, exist_ok=True)
                    job.beside(".json").write_text(ablate._to_json(job), encoding="utf-8")
                    ablate._run_job(job.beside(".json"), job.folder)

    monkeypatch.setattr(ablate, "run", here)
    arms = (Arm("none", pretrain=False), Arm("LR", pretrain=False, baseline="logistic"))
    study = Study(arms, ("ctr",), {"ctr": {"l2": (0.5,), "learning_rate": (1e-5, 3e-2)}})
    text = ablate.ablate(tiny_config, study, seeds=2, folder=tmp_path / "study", jobs=1)
    ran = {path.parent.relative_to(tmp_path / "study" / "ctr").as_posix() for path in tmp_path.rglob("result.json")}
    points = [f"none/tuning/l2={l2:g},learning_rate={rate:g}" for l2 in (0.5,) for rate in (1e-5, 0.03)]
    assert ran == {*points, "none/seed-0", "none/seed-1", "LR/seed-0", "LR/seed-1"}
    aucs = {name: json.loads((tmp_path / f"study/ctr/{name}/result.json").read_text())["valid"]["auc"] for name in ran}
    best = max(points, key=lambda name: aucs[name])
    l2, rate = (float(part.split("=")[1]) for part in best.split("/")[-1].split(","))
    for seed in range(2):
        config = json.loads((tmp_path / f"study/ctr/none/seed-{seed}/config.json").read_text())
        assert (config["finetune"]["ctr"]["l2"], config["finetune"]["ctr"]["learning_rate"]) == (l2, rate)
        assert config["seed"] == seed
    assert math.isclose(aucs["none/seed-0"], aucs[best])  # the same run again
    assert "| chosen on validation |" in text
    assert f"| l2 {l2:g}, learning_rate {rate:g} |" in text
    took = json.loads((tmp_path / "study/ctr/LR/seed-0/result.json").read_text())["took"]["l2"]
    assert f"| l2 {took:g} |" in text
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert ablate.ablate(tiny_config, study, seeds=2, folder=tmp_path / "study", jobs=1) == text
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    with pytest.raises(InputError, match=r"was run with ctr.dim = .*; give another --run-dir"):
        ablate.ablate(tiny_config.override({"ctr.dim": 5}), study, seeds=2, folder=tmp_path / "study", jobs=1)


def test_what_is_chosen_waits_for_its_candidates(tmp_path):
    study = studies.get("baselines")
    groups = ablate.plan(Config(), study, 2, tmp_path)
    for group in groups:
        there = set()
        for job in group:
            assert {candidate.folder for _, candidate in job.candidates} <= there
            assert job.init_from is None or job.init_from in there
            there.add(job.folder)
    for strategy, number in (("ctr", 8), ("plm", 2), ("joint", 8)):
        ours = [job for group in groups for job in group if job.strategy == strategy and not job.baseline]
        assert {len(job.candidates) for job in ours} == {0, number}

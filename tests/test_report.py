"""The report: its numbers against slow versions of them, and its page in a real browser."""

import copy
import dataclasses
import html
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import colors, image
from tiny_runs import Runs, trained

from alt_jax import bridge, cli, comparison, metrics, objectives, run_files, stages
from alt_jax.comparison import Missing, Scores, Seeds
from alt_jax.config import Config, MaskConfig, MLMConfig, MTMConfig
from alt_jax.data.dataset import Dataset
from alt_jax.data.prompt import feature_ids
from alt_jax.evaluate import Probabilities
from alt_jax.pretraining import Pretrain
from alt_jax.report import alignment, card, clicks, figures, measures, page, sections, sources
from alt_jax.report.alignment import Detection
from alt_jax.report.asked import Asked, ask
from alt_jax.report.build import report
from alt_jax.report.measures import Ranks
from alt_jax.report.verdict import Verdict, verdicts
from alt_jax.run import Origin, Run
from alt_jax.sharding import make_mesh, replicate
from alt_jax.tasks import Finetune

_EVIL = "<script>alert('$x$ & \"y\"')</script>"


@pytest.fixture(scope="module")
def runs(tiny_config: Config, tiny_dataset: Dataset) -> Runs:
    return trained(tiny_config)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tables of a study in which one run failed and one is still to be run."""
    folder, (zero, one) = tmp_path_factory.mktemp("study"), (Seeds(0, 0), Seeds(1, 1))
    found = {
        ("ctr", "all"): {zero: Scores(0.71, 0.6, 0.72), one: Scores(0.73, 0.6, 0.74)},
        ("ctr", _EVIL): {zero: Scores(0.74, 0.6, 0.75), one: Missing(True, f"failed: {_EVIL}")},
        ("plm", "all"): {zero: Missing(False, "not run"), one: Missing(False, "not run")},
    }
    comparison.write(comparison.compare(found), folder)
    return folder


@pytest.fixture(scope="module")
def asked(runs: Runs, study: Path) -> Asked:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alt_jax.report.alignment.make_mesh", lambda: make_mesh(jax.local_devices()))
        return ask([runs.pretrain, runs.joint, runs.ctr, study])


@pytest.fixture(scope="module")
def written(asked: Asked, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page.page("report", "of tiny runs", sections.sections(asked, 1.5), "end"), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def scored() -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities with ties."""
    rng = np.random.default_rng(0)
    probability = np.round(rng.random(400), 2)
    return rng.random(400) < probability, probability


# Numbers.


def test_roc_is_that_of_every_threshold(scored):
    label, score = scored
    exact = {(0.0, 0.0)}
    for threshold in np.unique(score):
        hit = score >= threshold
        exact.add((float(hit[~label].mean()), float(hit[label].mean())))
    curve = measures.roc(label, score, most=1000)
    assert set(zip(curve.x.tolist(), curve.y.tolist(), strict=True)) == exact
    assert np.trapezoid(curve.y, curve.x) == pytest.approx(metrics.auc(label, score), abs=1e-12)
    few = measures.roc(label, score, most=20)
    points = list(zip(few.x.tolist(), few.y.tolist(), strict=True))
    assert len(points) <= 20
    assert set(points) < exact
    assert (points[0], points[-1]) == ((0, 0), (1, 1))
    assert measures.roc(np.ones(400, bool), score) is None


def test_calibration_is_that_of_every_bin(scored):
    label, probability = scored
    found = measures.calibration(label, probability)
    for b in range(15):
        own = [n for n, p in enumerate(probability) if min(int(p * 15), 14) == b]
        assert found.rows[b] == len(own)
        assert found.predicted[b] == pytest.approx(np.mean(probability[own]))
        assert found.clicked[b] == pytest.approx(np.mean(label[own]))
    assert found.ece == pytest.approx(metrics.ece(label, probability), abs=1e-12)
    gap = measures.calibration(label[:1], probability[:1])
    assert np.isnan(gap.clicked).sum() == 14


def test_frequency_bins_share_out_all_rows(scored):
    label, score = scored
    seen = np.random.default_rng(1).choice([0, 1, 3, 4, 10, 11, 30, 31, 100, 101, 5000], 400)
    label = label | (seen == 0)
    bins = measures.by_frequency(label, score, seen)
    assert [one.name for one in bins] == ["0", "1–3", "4–10", "11–30", "31–100", "101 or more"]
    groups = [(0,), (1, 3), (4, 10), (11, 30), (31, 100), (101, 5000)]
    for one, values in zip(bins, groups, strict=True):
        own = [n for n in range(400) if seen[n] in values]
        assert one.rows == len(own)
        wins = [
            (score[i] > score[j]) + 0.5 * (score[i] == score[j])
            for i, j in itertools.product(own, own)
            if label[i] and not label[j]
        ]
        assert np.isnan(one.auc) if values == (0,) else one.auc == pytest.approx(np.mean(wins))


def test_partner_ranks_agree_with_a_slow_version_and_with_icl_itself():
    rng = np.random.default_rng(2)
    ctr, text = rng.standard_normal((2, 24, 5))
    text += ctr
    values = rng.integers(0, 12, 24)[:, None].astype(np.int32)
    same = (values[:, None] == values[None]).all(axis=2)
    similarity = np.round(ctr @ text.T, 1)  # with ties
    ranks = measures.partner_rank(similarity, same)
    for i in range(24):
        best = max(similarity[i, j] for j in range(24) if same[i, j])
        first = min(j for j in range(24) if same[i, j] and similarity[i, j] == best)
        others = [j for j in range(24) if not same[i, j]]
        assert ranks[i] == 1 + sum(similarity[i, j] > best or (similarity[i, j] == best and j < first) for j in others)
    found = objectives.instance_contrast(
        *(jnp.asarray(x, jnp.float32) for x in (ctr, text)), jnp.asarray(values), scale=2.0
    )
    exact = measures.partner_rank(2.0 * ctr @ text.T, same)
    assert measures.of_ranks(exact).first == pytest.approx(float(found.ctr_to_text.value))
    of_ranks = measures.of_ranks(np.array([1, 2, 5, 6, 11]))
    assert of_ranks == Ranks(5, 0.2, 0.6, 0.8, pytest.approx((1 + 1 / 2 + 1 / 5 + 1 / 6 + 1 / 11) / 5))


def test_chance_is_the_share_of_all_draws():
    same = np.array([[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]], bool)
    for k in range(1, 7):
        draws = list(itertools.combinations(range(5), min(k, 5)))
        hits = [[any(same[i, j] for j in draw) for draw in draws] for i in range(5)]
        assert measures.chance_at(same, k) == pytest.approx(np.mean(hits))


def test_the_plane_is_that_of_the_largest_eigenvectors():
    points = np.random.default_rng(3).standard_normal((40, 6)) * np.array([5, 1, 3, 0.1, 0.2, 0.5])
    flat, share = measures.principal_plane(points)
    scale, axes = np.linalg.eigh(np.cov(points.T))
    expected = (points - points.mean(axis=0)) @ axes[:, ::-1][:, :2]
    np.testing.assert_allclose(np.abs(flat), np.abs(expected), atol=1e-9)
    assert share == pytest.approx(scale[-2:].sum() / scale.sum())
    np.testing.assert_array_equal(measures.principal_plane(points)[0], flat)
    assert np.isnan(measures.principal_plane(np.ones((3, 2)))[1])


def test_smoothing_keeps_few_points_and_the_mean_of_many():
    few = measures.smooth([1, 2, 3], [3.0, 1.0, 2.0])
    assert (few.x.tolist(), few.y.tolist()) == ([1, 2, 3], [3, 1, 2])
    many = measures.smooth(list(range(1000)), np.arange(1000.0).tolist(), parts=10)
    np.testing.assert_allclose(many.y, [np.mean(range(100 * n, 100 * n + 100)) for n in range(10)])
    assert len(measures.smooth([], []).x) == 0


def test_mixtures_are_aucs_of_mixed_logits(scored):
    label, score = scored
    other = np.random.default_rng(4).random(400)
    curve = measures.mixtures(label, score, other, np.array([0.0, 0.3, 1.0]))
    assert curve.y.tolist() == [metrics.auc(label, x) for x in (other, 0.3 * score + 0.7 * other, score)]


# What is asked of models.


def test_aucs_of_the_page_are_those_of_result_json(asked: Asked, runs: Runs):
    for name in ("joint", "ctr"):
        test = json.loads((getattr(runs, name) / "result.json").read_text())["test"]
        clicks = asked.clicks[name]
        assert clicks.auc == pytest.approx(test["auc"], abs=1e-6)
        assert clicks.calibration.ece == pytest.approx(test["ece"], abs=1e-6)
        assert clicks.frequency["item"][0].rows == test["unseen_item_rows"]
        assert sum(one.rows for one in clicks.frequency["user"]) == test["rows"]


def test_alpha_and_the_towers_alone(asked: Asked, runs: Runs):
    fused = asked.clicks["joint"].fused
    assert asked.clicks["ctr"].fused is None
    valid = json.loads((runs.joint / "result.json").read_text())["valid"]["auc"]
    assert fused.mixed == pytest.approx(valid, abs=1e-6)
    assert np.interp(fused.alpha, *fused.mixtures) == pytest.approx(valid, abs=0.01)  # between two α of the curve


def test_alpha_of_a_gate_is_that_of_the_logits(tmp_path: Path, tiny_config: Config, tiny_dataset: Dataset):
    """Joint = α · ctr + (1 − α) · text, solved for every row's α."""
    config = tiny_config.override({"finetune.joint.fusion": "gated"})
    encoder = bridge.encoder_config(config.text, tiny_dataset.schema)
    run = Run(tmp_path, Origin("finetune", "joint"), config, tiny_dataset.schema, encoder)
    task = stages.finetune_task(run)
    params = task.init(jax.random.key(0))
    kernel = params["fusion"]["gate"]["kernel"]
    params["fusion"]["gate"]["kernel"] = 0.3 * jax.random.normal(jax.random.key(1), kernel.shape)
    mesh, values = make_mesh(), np.asarray(tiny_dataset.valid.values)
    ctr, text, both = (
        clicks._logits(
            Probabilities(Finetune(task.model, strategy), mesh, tiny_dataset.pieces)(replicate(mesh, params), values)
        )
        for strategy in ("ctr", "plm", "joint")
    )
    trained_run = stages.Trained(run, task, params, 0)
    alpha = clicks._gates(trained_run, tiny_dataset, values)
    assert alpha.std() > 0.02
    far = np.abs(ctr - text) > 0.02
    assert far.mean() > 0.5
    np.testing.assert_allclose(alpha[far], ((both - text) / (ctr - text))[far], atol=1e-3)
    fused = clicks._fused(trained_run, tiny_dataset, replicate(mesh, params), mesh)
    assert (fused.kind, fused.alpha) == ("gated", pytest.approx(alpha.mean()))
    assert fused.spread == tuple(np.quantile(alpha, [0.05, 0.95]))


def test_alignment_before_and_after(asked: Asked, runs: Runs, tiny_dataset: Dataset):
    aligned = asked.aligned["pretrain"]
    assert (aligned.step, aligned.rows) == (90, 56)  # of 60 rows, as many as 8 devices share
    ours = asked.runs[0].run
    task = Pretrain.build(ours.config, tiny_dataset, ours.encoder)
    model, fresh = task.model, jax.jit(task.init)(jax.random.key(ours.config.seed))
    some = np.linspace(0, 59, 56).astype(int)
    ids = jnp.asarray(feature_ids(tiny_dataset.pieces, np.asarray(tiny_dataset.valid.values[some])))
    h = model.apply({"params": fresh}, ids, jnp.zeros((56, 0)), train=False, method="represent")
    z = model.apply({"params": fresh}, h, train=False, method=lambda m, h, train: m.align_ctr(h, train=train))
    np.testing.assert_allclose(aligned.before.ctr, z, atol=1e-4)
    assert not np.allclose(aligned.after.ctr, aligned.before.ctr, atol=0.01)
    np.testing.assert_allclose(aligned.after.similarity, aligned.after.ctr @ aligned.after.text.T / 0.7, rtol=1e-6)


def test_every_field_is_recovered_with_and_without_help(asked: Asked):
    recovery = {one.name: one for one in asked.aligned["pretrain"].recovery}
    assert list(recovery) == ["User ID", "Gender", "Age", "Item ID", "Title", "Genre"]
    for one in recovery.values():
        assert set(one.text) == set(one.table) == {"helped", "alone"}
        assert 0 < one.most_frequent < 1
        assert all(
            isinstance(ranks, Ranks) and ranks.first <= ranks.in_five <= ranks.in_ten for ranks in one.table.values()
        )
        assert one.text["helped"].tokens == one.text["alone"].tokens


def test_ranks_are_those_of_a_slow_version(tiny_config: Config, tiny_dataset: Dataset, make_pretrain):
    task = make_pretrain(tiny_config)
    rng, schema = np.random.default_rng(5), tiny_dataset.schema
    values = np.asarray(tiny_dataset.valid.values[:20])
    ids = np.asarray(feature_ids(tiny_dataset.pieces, values)).copy()
    ids[0, :] = [field.offset for field in schema.fields]  # all unseen
    vectors = rng.standard_normal((20, 6, 4)).round(0)  # small whole numbers: with ties
    table, bias = rng.standard_normal((schema.num_ids, 4)).round(0), rng.standard_normal(schema.num_ids).round(0)
    hidden = rng.random((20, 6)) < 0.5
    arrays = tuple(jnp.asarray(x, jnp.float32) for x in (vectors, table, bias))
    found = np.asarray(alignment._ranks(task, arrays, jnp.asarray(ids), jnp.asarray(hidden)))
    for n, f in itertools.product(range(20), range(6)):
        field = schema.fields[f]
        scores = [vectors[n, f] @ table[i] + bias[i] for i in range(field.offset, field.offset + field.size)]
        order = sorted(range(field.size), key=lambda i: (-scores[i], i))
        known = hidden[n, f] and ids[n, f] != field.offset
        assert found[n, f] == (1 + order.index(ids[n, f] - field.offset) if known else -1)


def test_other_ways_of_hiding(tiny_config: Config, tiny_dataset: Dataset, make_pretrain, monkeypatch):
    """Replaced ids, values behind one mask, and both sides hidden."""
    monkeypatch.setattr(alignment, "_PASSES", 1)
    config = dataclasses.replace(
        tiny_config,
        mtm=MTMConfig(method="rfd"),
        mlm=MLMConfig(unit="span", with_table=False),
        mask=MaskConfig(pairing="same", helper="masked", unit="group", rate=0.4),
    )
    task = make_pretrain(config)
    mesh = make_mesh(jax.devices()[:1])
    params, pieces = (replicate(mesh, x) for x in (task.init(jax.random.key(0)), tiny_dataset.pieces))
    values = np.asarray(tiny_dataset.valid.values[:32])
    recovery = {one.name: one for one in alignment._recovery(task, mesh, params, pieces, values, 32, tiny_dataset)}
    assert set(recovery["Title"].text) == {"alone"}  # the table does not help this MLM
    detected = recovery["User ID"].table
    assert all(isinstance(one, Detection) and 0 <= one.found <= 1 for one in detected.values())
    assert set(detected) == {"helped", "alone"}


# The dataset card.


def changed(dataset: Dataset, **splits: object) -> Dataset:
    """The dataset with other rows."""
    found = copy.copy(dataset)
    found.__dict__.update(splits)
    return found


def test_nothing_is_suspected_of_a_random_split(tiny_dataset: Dataset):
    findings, alone = card.look(tiny_dataset)
    assert not any(finding.suspected for finding in findings if "repeat" not in finding.question)
    train, valid = tiny_dataset.train, tiny_dataset.valid
    for f, name in enumerate(tiny_dataset.schema.names):
        seen: dict[int, list[int]] = {}
        for value, label in zip(train.values[:, f].tolist(), train.labels.tolist(), strict=True):
            seen.setdefault(value, []).append(label)
        prior = float(np.mean(train.labels))
        score = [(sum(seen.get(v, [])) + prior) / (len(seen.get(v, [])) + 1) for v in valid.values[:, f].tolist()]
        assert alone[name] == pytest.approx(metrics.auc(valid.labels, np.array(score)))


def test_leaks_are_suspected(tiny_dataset: Dataset):
    train, valid = tiny_dataset.train, tiny_dataset.valid
    twice = card.look(changed(tiny_dataset, test=train))[0]
    shared, repeated = twice[0], twice[1]
    assert shared.suspected
    assert shared.answer == "480 in train and test"
    assert repeated.suspected
    assert repeated.answer.startswith("480 of 480 test rows (100.00%), 480 of them")
    gender = tiny_dataset.schema.index("Gender")
    told = {
        name: rows._replace(labels=(rows.values[:, gender] == train.values[0, gender]).astype(np.uint8))
        for name, rows in (("train", train), ("valid", valid))
    }
    suspected = [one.answer for one in card.look(changed(tiny_dataset, **told))[0] if one.suspected]
    assert any("Gender with 1.0000" in answer for answer in suspected)
    schema = dataclasses.replace(tiny_dataset.schema, protocol="cold_items")
    cold = card.look(dataclasses.replace(tiny_dataset, schema=schema))[0]
    assert any(one.suspected and "items" in one.question for one in cold)


def test_rows_have_equal_hashes_where_they_are_equal():
    values = np.random.default_rng(6).integers(-1, 4, (3000, 5)).astype(np.int32)
    found = card.row_hashes(values)
    assert (
        len(np.unique(found)) == len(np.unique(values, axis=0)) == len(set(zip(found, map(tuple, values), strict=True)))
    )


# The page.


class Document(HTMLParser):
    """Tags that are opened and closed in order, ids, what is loaded, and the text of tables."""

    VOID = frozenset({"meta", "br", "img", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.loaded: list[str] = []
        self.styles: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                self.loaded.append(value)
            if name == "style":
                self.styles.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(written: Path):
    text = written.read_text(encoding="utf-8")
    document = Document(text)
    assert len(document.ids) == len(set(document.ids))
    assert "script" not in document.tags
    assert "http" not in text.lower()
    for value in document.loaded:
        assert value.startswith(("#", "data:image/png;base64,"))
    for value in document.styles:
        assert "url(" not in value.replace("url(#", "")
    links = [value.removeprefix("#") for value in document.loaded if value.startswith("#")]
    assert set(links) <= set(document.ids)
    wanted = "overview results study curves cold-start fusion alignment recovery data configuration machine"
    assert set(wanted.split()) <= set(document.ids)
    assert document.tags.count("svg") == document.tags.count("figure") > 20


def test_the_page_is_the_same_when_it_is_written_again(written: Path, asked: Asked):
    assert page.page("report", "of tiny runs", sections.sections(asked, 1.5), "end") == written.read_text(
        encoding="utf-8"
    )


def test_what_the_page_says(written: Path, runs: Runs):
    text = written.read_text(encoding="utf-8")
    for name in ("joint", "ctr"):
        assert f"{json.loads((getattr(runs, name) / 'result.json').read_text())['test']['auc']:.4f}" in text
    assert "Item ID + Title" in text
    assert "1 failed" in text
    assert html.escape(_EVIL) in text
    assert "cost at $1.5 an hour" in text
    assert "nan" not in re.sub(r"<(style|svg).*?</\1>", "", text, flags=re.S).lower()


def _finetuned(asked: Asked, folder: Path, name: str, init_from: str | None, quality: float) -> sources.Logged:
    """A run like the tiny one, whose scores agree with the labels as well as is said."""
    like = next(run for run in asked.runs if run.run.origin.strategy == "ctr")
    (data,) = {id(one.dataset): one.dataset for one in asked.data.values()}.values()
    label = np.asarray(data.test.labels)
    score = float(quality) * label + np.random.default_rng(len(name)).random(len(label))
    (folder / name).mkdir(parents=True)
    run_files.write_scores(folder / name, {"test": score})
    opened = dataclasses.replace(like.run, folder=folder / name, origin=Origin("finetune", "ctr", init_from))
    result = {**like.result, "test": {**like.result["test"], "auc": metrics.auc(label, score)}}
    return dataclasses.replace(like, name=name, run=opened, result=result)


def test_the_verdict_on_what_a_pretraining_brought(asked: Asked, tmp_path: Path):
    def verdict(*runs: sources.Logged) -> list[Verdict]:
        return verdicts(Asked(list(runs), [], asked.data))

    none, good, same, poor = (
        _finetuned(asked, tmp_path, name, start, quality)
        for name, start, quality in (("a", None, 0.3), ("bb", "p", 9), ("c", "p", 0.3), ("dddd", "p", -9))
    )
    (better,) = verdict(none, good)
    auc = none.result["test"]["auc"]
    assert better.said.startswith(f"1.0000 test AUC with the pretraining, {auc:.4f} without: +{1 - auc:.4f}, +0.")
    assert "over other test users (95 %). One run each: another seed may differ by as much." in better.said
    assert not better.bad
    (equal,) = verdict(none, same)
    assert "+0.0000 to +0.0000 over other test users (95 %), so that these test rows cannot tell which is" in equal.said
    assert not equal.bad
    (worse,) = verdict(none, poor, poor)
    assert worse.bad
    assert "One run each" in worse.said
    (alone,) = verdict(good)
    assert alone.bad
    assert "--strategy ctr --init-from none" in alone.said
    assert not verdict(none)
    few = dataclasses.replace(
        good, run=dataclasses.replace(good.run, config=good.run.config.override({"finetune.label_share": 0.5}))
    )
    assert "--init-from none" in verdict(none, few)[0].said  # the baseline has more labels
    two = verdict(
        none, good, dataclasses.replace(same, run=dataclasses.replace(same.run, origin=Origin("finetune", "ctr", "q")))
    )
    assert [("pretraining p" in one.said, "pretraining q" in one.said) for one in two] == [(True, False), (False, True)]


def test_the_verdict_on_what_was_learned_is_red_where_it_was_nothing(asked: Asked, runs: Runs):
    pretrained = next(run for run in asked.runs if run.run.origin.stage == "pretrain")
    measured = {"rows": 60, "batch": 16, "icl": 2.8, "icl/top1_ctr_to_text": 0.06, "icl/top1_text_to_ctr": 0.06}
    measured |= {"mtm/gain": 0.5, "mtm/gain/Age": 0.9, "mtm/gain/Genre": 0.1, "mlm/gain": -0.1, "mlm/gain/Age": -0.1}
    logged = dataclasses.replace(pretrained, result={**pretrained.result, "valid": measured})
    found = Asked([logged], [], {})
    said = {(one.said.split()[0], one.bad) for one in verdicts(found)}
    assert said == {("On", False), ("MLM", True), ("ICL", True)}
    (section,) = [one for one in sections.sections(found, None) if one.name == "verdict"]
    text = page.page("", "", [section], "")
    assert text.count('class="bad"') == 2
    assert "MTM is 0.50 nats below the unigram loss (Age 0.90, Genre 0.10)" in text


def test_a_wide_table_becomes_several():
    header = ["metric", *(f"run {n}: {what}" for n in range(7) for what in ("rows", "predicted", "clicked"))]
    rows = [[f"row {r}", *(f"{r}.{n}" for n in range(21))] for r in range(2)]
    text = page.table(header, rows, "caption", together=3)
    assert text.count("<table>") == 3
    assert text.count("caption</caption>") == 1
    cells = re.findall(r"<td>([\d.]+)</td>", text)
    assert sorted(cells) == sorted(cell for row in rows for cell in row[1:])
    assert all(len(re.findall('<th scope="col">', one)) in (10, 4) for one in text.split("</table>")[:-1])


def test_names_are_text_and_never_markup():
    lines = comparison.compare({("ctr", _EVIL): {Seeds(0, 0): Scores(0.7, 0.6, 0.7)}})
    drawn = [
        figures.study(lines),
        figures.bars([_EVIL], {_EVIL: [0.5], "_b": [float("nan")]}, _EVIL, marks=[0.2]),
        figures.curves({_EVIL: measures.smooth([1, 2], [1, 2]), "_x": measures.smooth([1], [1])}, _EVIL, "電影"),
    ]
    blocks = [page.table([_EVIL], [[_EVIL]], _EVIL), *(page.figure(svg, _EVIL, _EVIL) for svg in drawn)]
    text = page.page(_EVIL, _EVIL, [page.Section('"><script>', _EVIL, blocks)], _EVIL)
    document = Document(text)
    assert "script" not in document.tags
    assert "電影" in text
    assert "$x$" in text
    assert html.unescape(page.text(_EVIL)) == _EVIL


def test_a_metric_that_is_undefined_is_said_to_be(runs: Runs):
    test = {"auc": None, "gauc": None, "rows": 1200, "positives": 0, "unseen_user_rows": 0, "unseen_user_auc": None}
    shown = [sections._metric(test, name) for name in ("auc", "unseen_user_auc", "rows", "ece")]
    assert shown == ["undefined (one class)", "undefined (no rows)", "1,200", "–"]
    both = {"auc": None, "gauc": None, "rows": 4, "positives": 2}
    assert [sections._metric(both, name) for name in ("auc", "gauc")] == [
        "undefined (all scores are equal)",
        "undefined (no users)",
    ]
    assert sections._auc(measures.Bin("0", 3, float("nan"))) == "undefined (one class)"


# What is missing.


def moved(source: Path, to: Path, **values: object) -> Path:
    """A copy of a run folder with other values of `data`, which remembers no place of its dataset."""
    shutil.copytree(source, to, ignore=shutil.ignore_patterns("checkpoints", "data.json"))
    config = json.loads((to / "config.json").read_text())
    config["data"] |= values
    (to / "config.json").write_text(json.dumps(config))
    return to


def test_without_its_dataset_a_run_is_reported_all_the_same(tmp_path: Path, runs: Runs, capsys):
    folder = moved(runs.joint, tmp_path / "gone", dir=str(tmp_path / "nothing"))
    result = json.loads((folder / "result.json").read_text())
    result["machine"] = {"device": "TPU v5 <lite>", "devices": 8, "seconds": 7200.0, "jax": "0.10.2"}
    (folder / "result.json").write_text(json.dumps(result))
    assert cli.run(["report", str(folder), "--price", "2.5"]) == 0
    assert f"wrote {folder / 'report.html'}" in capsys.readouterr().out
    text = (folder / "report.html").read_text(encoding="utf-8")
    Document(text)
    assert f"{tmp_path / 'nothing' / 'schema.json'} does not exist" in text
    assert "what needs the model or the dataset is missing" in text
    assert "Not looked for:" in text
    assert f"{result['test']['auc']:.4f}" in text
    assert "TPU v5 &lt;lite&gt;" in text
    assert "$5.00" in text
    assert "2.0 h" in text
    assert [path.name for path in folder.iterdir() if "partial" in path.name] == []


def test_an_unfinished_run_is_reported_as_far_as_it_is(tmp_path: Path, runs: Runs):
    folder = moved(runs.ctr, tmp_path / "half")
    (folder / "result.json").unlink()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 31, "lo')  # cut short by a kill
    text = report([folder], tmp_path / "deep" / "page.html").read_text(encoding="utf-8")
    assert "not finished, at step 30" in text
    assert 'id="curves"' in text
    assert 'id="cold-start"' not in text
    (folder / "metrics.jsonl").unlink()
    assert "has no metrics.jsonl" in report([folder], tmp_path / "page.html").read_text(encoding="utf-8")


def test_input_that_cannot_be_used(tmp_path: Path, runs: Runs, study: Path, capsys):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "table.json").write_text('{"no": "table"}')
    cases: list[tuple[list[object], str]] = [
        ([], "give the folder"),
        ([tmp_path], "is not a run folder"),
        ([tmp_path / "bad"], "is not the table of a study"),
        ([study, study], "is given twice"),
        ([study, "--price", "-1"], "should be US dollars"),
        ([study, "-o", tmp_path], "is a folder"),
        ([study, "-o", tmp_path / "bad" / "table.json" / "page.html"], "cannot be written (File exists)"),
        ([study, "-o", tmp_path / f"{'x' * 300}.html"], "cannot be written (File name too long)"),
    ]
    for arguments, said in cases:
        assert cli.run(["report", *map(str, arguments)]) == 2
        assert said in capsys.readouterr().err


def test_runs_have_the_shortest_names_that_tell_them_apart(tmp_path: Path):
    folders = [tmp_path / "a" / "seed-0", tmp_path / "b" / "seed-0"]
    assert sources.short_names(folders) == ["a/seed-0", "b/seed-0"]
    assert sources.short_names(folders[:1]) == ["seed-0"]


def test_what_differs_between_runs(asked: Asked):
    text = "".join(sections._configuration(asked))
    assert "What differs between the runs" in text
    assert re.search(r"<th[^>]*>--strategy</th><td>none</td><td>joint</td><td>ctr</td>", text)
    assert "User ID" in text
    assert ">seed</th><td>" not in text  # all have the same


def test_the_time_of_a_resumed_run_is_not_that_of_its_last_start(asked: Asked):
    run = asked.of("pretrain")[0]
    assert sections._spent(run, {"seconds": 7.0, "resumed_at": 0}) == (7.0, True)
    assert sections._spent(run, {"seconds": 7.0}) == (7.0, True)  # of a run from before that was written down
    assert sections._spent(run, {"seconds": 7.0, "resumed_at": 5}) == (run.training_seconds, False)
    assert run.training_seconds > 0


def test_rows_stand_beside_the_run_that_they_are_of(asked: Asked):
    """Runs of two splits, of which only one has 5 test rows of new items."""
    joint = asked.clicks["joint"]
    bins = [one._replace(rows=5) if n == 0 else one for n, one in enumerate(joint.frequency["item"])]
    other = dataclasses.replace(joint, frequency={"item": bins})
    alike = "".join(sections._cold_start(dataclasses.replace(asked, clicks={"a": joint, "b": joint})))
    assert "test rows" in alike
    assert "test rows of a" not in alike
    apart = "".join(sections._cold_start(dataclasses.replace(asked, clicks={"a": joint, "b": other})))
    assert "test rows of a" in apart
    assert f"<td>{joint.frequency['item'][0].rows}</td><td>5</td>" in apart


# A real browser.


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """`chromium(url, *options)`: what headless Chromium prints, cut off from every network."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no chromium or google-chrome on PATH")

    def call(url: str, *options: str) -> str:
        flags = (
            "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
            "disable-component-update disable-sync hide-scrollbars"
        )
        command = [program, *(f"--{flag}" for flag in flags.split()), "--host-resolver-rules=MAP * ~NOTFOUND"]
        profile = f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"
        done = subprocess.run(
            [*command, profile, *options, url], capture_output=True, text=True, timeout=120, check=True
        )
        return done.stdout

    return call


def framed(page: Path, width: int, height: int, to: Path) -> str:
    """A page that shows another at a width that no window of Chromium's can have, and says how wide that one is."""
    to.write_text(
        '<!DOCTYPE html><body style="margin:0;background:#f0f"><iframe style="border:0;display:block" '
        f'width="{width}" height="{height}" srcdoc="{html.escape(page.read_text(encoding="utf-8"))}"></iframe>'
        "<script>const f = document.querySelector('iframe'); f.onload = () => {"
        "document.body.dataset.wide = f.contentDocument.documentElement.scrollWidth }</script>",
        encoding="utf-8",
    )
    return to.as_uri()


def near(pixels: np.ndarray, color: str) -> int:
    """Pixels of a colour, but for the rounding of a screenshot."""
    return int((np.abs(pixels[..., :3] - np.array(colors.to_rgb(color))) < 0.02).all(axis=-1).sum())


@pytest.mark.parametrize("width", [320, 400])
def test_the_page_does_not_scroll_sideways_on_a_phone(tmp_path: Path, written: Path, chromium, width: int):
    shown = chromium(framed(written, width, 800, tmp_path / "frame.html"), "--virtual-time-budget=5000", "--dump-dom")
    assert int(re.search(r'data-wide="(\d+)"', shown)[1]) <= width


@pytest.mark.parametrize("width", [400, 1280])
def test_figures_are_to_be_seen(tmp_path: Path, written: Path, chromium, width: int):
    url = written.as_uri() if width > 500 else framed(written, width, 6000, tmp_path / "frame.html")
    shot = tmp_path / "shot.png"
    chromium(url, f"--window-size={max(width, 500)},6000", f"--screenshot={shot}", "--virtual-time-budget=5000")
    pixels = image.imread(shot)[:, :width, :3]
    assert pixels.shape[:2] == (6000, width)
    assert pixels.std() > 0.02
    for color in figures.PALETTE[:2]:
        assert near(pixels, color) > 300
    dark = pixels.mean(axis=-1) < 0.4
    assert 0.002 < dark.mean() < 0.3  # text and axes, on a light page
    assert not near(pixels, "#ff00ff")  # of the frame, nothing is left to be seen


def test_who_reads_in_the_dark_sees_light_text_on_a_dark_page(tmp_path: Path, written: Path, chromium):
    shot, dark = tmp_path / "shot.png", "--blink-settings=preferredColorScheme=0"
    chromium(written.as_uri(), dark, "--window-size=900,3000", f"--screenshot={shot}", "--virtual-time-budget=5000")
    brightness = image.imread(shot)[..., :3].mean(axis=-1)
    assert np.median(brightness) < 0.15
    assert 0.002 < (brightness > 0.6).mean() < 0.3  # text and axes

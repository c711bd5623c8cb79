"""Studies: what is run, what is shared, what is resumed, what is said; a real study of a tiny model."""

import dataclasses
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from matplotlib.figure import Figure
from tiny_runs import config_file

from alt_jax import ablate, bootstrap, comparison, metrics, run_files, stages, studies
from alt_jax.cli import run
from alt_jax.comparison import Seeds
from alt_jax.config import Config, load_config
from alt_jax.data.dataset import Dataset
from alt_jax.errors import InputError
from alt_jax.studies import Arm, Study


def test_the_losses_are_all_subsets():
    study = studies.get("losses")
    names = [arm.name for arm in study.arms]
    assert names == ["no pretraining", "icl", "mlm", "mtm", "icl+mlm", "icl+mtm", "mlm+mtm", "icl+mlm+mtm"]
    assert [arm.pretrain for arm in study.arms] == [False] + [True] * 7
    assert dict(study.arms[5].values) == {"loss.icl": 1.0, "loss.mlm": 0.0, "loss.mtm": 1.0}


@pytest.mark.parametrize("name", sorted(studies.STUDIES))
def test_every_value_of_every_study_exists_and_no_two_arms_are_the_same(name, tmp_path):
    study, config = studies.get(name), Config().override({"pretrain.epochs": 6})  # else all are as long as it takes
    jobs = [job for group in ablate.plan(config, study, 1, tmp_path) for job in group]
    assert len({job.folder for job in jobs}) == len(jobs)
    for strategy in study.strategies:
        trained = [arm for arm in study.arms if strategy in study.of(arm) and not arm.mean_of]
        final = [job for job in jobs if job.strategy == strategy and "tuning" not in job.folder.parts]
        runs = {(job.config.to_json(), job.init_from is None, job.baseline) for job in final}
        assert len(runs) == len(trained)


def test_the_baselines_are_those_of_the_literature(tmp_path):
    jobs = [job for group in ablate.plan(Config(), studies.get("baselines"), 1, tmp_path) for job in group]
    of = {(job.strategy, job.folder.parent.name): job for job in jobs}
    ptab = of["plm", "PTab"].config
    assert (ptab.loss.icl, ptab.loss.mlm, ptab.loss.mtm) == (0, 1, 0)
    assert ptab.mlm.unit == "token"
    assert not ptab.mlm.with_table
    assert of["plm", "CTR-BERT"].config.finetune.plm.towers == "two"
    assert of["plm", "CTR-BERT"].init_from is None
    ctrl = of["ctr", "CTRL"].config
    assert (ctrl.loss.icl, ctrl.loss.mlm, ctrl.loss.mtm) == (1, 0, 0)
    assert ("ctr", "PTab") not in of  # it has no CTR tower to finetune
    assert not any(name == "average_of_the_two" for _, name in of)  # nothing is trained


def test_arms_that_differ_in_finetuning_share_a_pretraining(tmp_path):
    arms = (
        Arm("none", pretrain=False),
        Arm("a", {"loss.mlm": 0.0}),
        Arm("b", {"loss.mlm": 0.0}, {"finetune.joint.alpha": 0.0}),
        Arm("c"),
    )
    groups = ablate.plan(Config(), Study(arms, ("joint", "ctr")), 2, tmp_path)
    folders = [[str(job.folder.relative_to(tmp_path)) for job in group] for group in groups]
    assert folders[:4] == [[f"{s}/none/seed-{n}"] for n in (0, 1) for s in ("joint", "ctr")]
    assert [sorted(group) for group in folders[4:6]] == [
        sorted([f"pretrain/a/seed-{n}", *(f"{s}/{arm}/seed-{n}" for s in ("joint", "ctr") for arm in "ab")])
        for n in (0, 1)
    ]
    for group in groups[4:]:
        assert group[0].strategy is None  # first, since the others wait for it
        assert {job.init_from for job in group[1:]} == {group[0].folder}
        assert len({job.config.seed for job in group}) == 1
    assert groups[4][0].config.finetune.joint.alpha == 0.5


def test_a_pretraining_may_start_from_another(tmp_path, monkeypatch):
    values = {"loss.mlm": 0.0, "first": {"loss.icl": 0.0, "pretrain.epochs": 30}, "finetune.label_share": 0.5}
    (tmp_path / "study.json").write_text(json.dumps({"none": {"pretrain": False}, "a": values}))
    study = studies.get(str(tmp_path / "study.json"))
    _, group = ablate.plan(Config(), dataclasses.replace(study, strategies=("ctr",)), 1, tmp_path)
    assert [job.folder.relative_to(tmp_path).as_posix() for job in group] == [
        "pretrain/a/first/seed-0",
        "pretrain/a/seed-0",
        "ctr/a/seed-0",
    ]
    first, second, _ = group
    assert [job.init_from for job in group] == [None, first.folder, second.folder]
    assert (first.config.loss.mlm, first.config.loss.icl, first.config.pretrain.epochs) == (0, 0, 30)
    assert (second.config.loss.mlm, second.config.loss.icl, second.config.pretrain.epochs) == (0, 1, None)
    asked = []
    monkeypatch.setattr(stages, "pretrain", lambda config, folder, origin: asked.append((folder, origin)))
    here([[first, second]], 1)
    assert asked == [(first.folder, None), (second.folder, first.folder)]

    def said():
        return next(line.not_run for line in ablate.table(study, 1, tmp_path) if line.arm == "a")

    assert said() == {Seeds(0, 0): "first pretraining not run"}
    (first.folder / "result.json").parent.mkdir()
    (first.folder / "result.json").write_text("{}")
    assert said() == {Seeds(0, 0): "pretraining not run"}
    (tmp_path / "study.json").write_text('{"a": {"pretrain": false, "first": {"loss.icl": 0}}}')
    with pytest.raises(InputError, match="first should be the values of a pretraining before"):
        studies.get(str(tmp_path / "study.json"))
    misspelt = Study((Arm("a", first={"loss.icll": 0.0}),), ("ctr",))
    with pytest.raises(InputError, match=r"arm 'a': there is no config value 'loss.icll'; did you mean 'loss.icl'"):
        ablate.plan(Config(), misspelt, 1, tmp_path)


def test_pretrainings_are_crossed_with_finetunings(tmp_path):
    study = Study((Arm("none", pretrain=False), Arm("a")), ("ctr",))
    groups = ablate.plan(Config(), study, 3, tmp_path, pretrainings=2)
    folders = [[str(job.folder.relative_to(tmp_path)) for job in group] for group in groups]
    assert folders == [
        *([f"ctr/none/seed-{seed}"] for seed in range(3)),
        ["pretrain/a/seed-0", "ctr/a/seed-0", "ctr/a/pretraining-0/seed-1", "ctr/a/pretraining-0/seed-2"],
        ["pretrain/a/seed-1", "ctr/a/pretraining-1/seed-0", "ctr/a/seed-1", "ctr/a/pretraining-1/seed-2"],
    ]
    assert [[job.config.seed for job in group] for group in groups[3:]] == [[0, 0, 1, 2], [1, 0, 1, 2]]


def test_every_share_of_the_labels_is_compared_without_and_with_one_pretraining(tmp_path):
    study = studies.get("labels")
    jobs = [job for group in ablate.plan(Config(), study, 1, tmp_path) for job in group]
    assert sum(job.strategy is None for job in jobs) == 1
    curves = ("no pretraining", "pretrained", "SVD start", "ridge, ids and SVD")
    for start, others in ((True, 1), (False, 3)):
        finetuned = [job for job in jobs if job.strategy and bool(job.init_from) == start]
        assert [job.config.finetune.label_share for job in finetuned] == list(np.repeat(studies.SHARES, others))
    assert [arm.point for arm in study.arms] == [(curve, share) for share in studies.SHARES for curve in curves]
    for arm in study.arms:
        assert arm.against == f"no pretraining, {100 * arm.point[1]:g} % of the labels"
    made_up(tmp_path, {ablate._name(arm): [0.7 if arm.pretrain else 0.6] for arm in study.arms})
    lines = ablate.table(study, 1, tmp_path)
    assert [line.difference for line in lines] == [
        pytest.approx(math.nan if arm.name == arm.against else 0.1 if arm.pretrain else 0.0, nan_ok=True)
        for arm in study.arms
    ]
    assert comparison.curves(lines) == {
        curve: [(share, pytest.approx(0.7 if curve == "pretrained" else 0.6), 0.0) for share in studies.SHARES]
        for curve in curves
    }
    comparison.write(lines, tmp_path)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_two_seeds_have_no_p():
    tiny = {Seeds(0, 0): 0.0001, Seeds(1, 1): 0.000102}
    assert math.isnan(comparison.paired_p(tiny))
    assert comparison.paired_p(tiny | {Seeds(2, 2): 0.000101}) < 0.001


def test_p_of_crossed_seeds_is_honest_where_pretrainings_differ():
    """Over made-up studies without a difference: the p is below 0.05 in at most 5 % of them or so."""
    random = np.random.default_rng(0)
    crossed, naive = [], []
    for _ in range(2000):
        grid = random.normal(0, 1, (3, 1)) + random.normal(0, 1, (1, 3)) + random.normal(0, 0.3, (3, 3))
        crossed.append(comparison.paired_p({Seeds(i, j): grid[i, j] for i in range(3) for j in range(3)}))
        naive.append(scipy.stats.ttest_1samp(grid.ravel(), 0).pvalue)
    assert np.mean(np.array(crossed) < 0.05) < 0.06
    assert np.mean(np.array(naive) < 0.05) > 0.2  # what taking nine runs for independent would say


def test_without_a_pretraining_a_run_is_the_partner_of_all_with_its_finetuning_seed():
    base = {Seeds(s, s): s / 10 for s in range(3)}
    ours = {Seeds(p, s): s / 10 + p / 100 for p in range(2) for s in range(3)}
    found = comparison.differences(ours, base, True, False)
    assert found == {seeds: pytest.approx(seeds.pretraining / 100) for seeds in ours}
    found = comparison.differences(base, ours, False, True)  # on average over the other's pretrainings
    assert found == {seeds: pytest.approx(-0.005) for seeds in base}
    other = {seeds: auc - 0.5 for seeds, auc in ours.items() if seeds != Seeds(1, 0)}
    assert comparison.differences(ours, other, True, True) == {seeds: pytest.approx(0.5) for seeds in other}


def test_p_wants_whole_pretrainings():
    lacking = {Seeds(p, s): 0.1 + p / 100 for p in range(3) for s in range(3) if p != s}
    assert math.isnan(comparison.paired_p(lacking))


def test_a_table_comes_back_as_it_was():
    runs = {
        ("ctr", "a"): {Seeds(0, 0): comparison.Scores(0.7, 0.6, 0.8), Seeds(1, 0): comparison.Missing(True, "why")},
        ("ctr", "b"): {Seeds(0, 0): comparison.Scores(0.8, 0.6, 0.8)},
    }
    known = {("ctr", "b"): comparison.ArmInfo("a", bootstrap.Interval(-0.1, 0.2), {"l2": 0.1}, ("curve", 0.5))}
    lines = comparison.compare(runs, known)
    plain = json.loads(json.dumps([comparison._plain(line) for line in lines]))
    again = [comparison.from_plain(entry) for entry in plain]
    assert [repr(line) for line in again] == [repr(line) for line in lines]
    header, rows = comparison.table(lines)
    assert header[-1] == "chosen on validation"
    assert rows[1][-3:] == ["+0.1000 (-0.1000 to +0.2000)", "–", "l2 0.1"]


def test_a_study_of_the_data_has_a_dataset_each(tmp_path):
    config = Config().override({"data.dir": "prepared"})
    jobs = [job for group in ablate.plan(config, studies.get("protocols"), 1, tmp_path) for job in group]
    assert {job.config.data.dir for job in jobs} == {
        "prepared" if job.config.data.protocol == "random" else f"prepared-{job.config.data.protocol}" for job in jobs
    }


@pytest.mark.parametrize(
    ("values", "own"),
    [
        ({"text.max_length": 32}, True),
        ({"text.vocab_size": 99}, True),
        ({"data.min_count": 3}, True),
        ({"data.raw": "other.csv"}, True),
        ({"text.model": "a-model"}, True),
        ({"text.hidden": 32, "loss.mlm": 0.0}, False),
        ({"data.min_count": 3, "data.dir": "given"}, False),
    ],
)
def test_an_arm_that_prepares_otherwise_has_a_dataset_of_its_own(tmp_path, values, own):
    config = Config().override({"data.dir": "prepared"})
    [[job]] = ablate.plan(config, Study((Arm("a", values, pretrain=False),), ("ctr",)), 1, tmp_path)
    assert job.config.data.dir == ("prepared-a" if own else values.get("data.dir", "prepared"))


def test_a_dataset_that_an_arm_does_not_fit_is_told_before_anything_is_prepared_or_run(
    tmp_path, tiny_config, tiny_dataset, monkeypatch
):
    monkeypatch.setattr(ablate, "run", lambda groups, jobs: pytest.fail("ran"))
    monkeypatch.setattr(ablate, "prepare", lambda config: pytest.fail("prepared"))
    other = Arm("other", {"data.min_count": 2, "data.dir": str(tmp_path / "other")}, pretrain=False)
    wrong = Arm("wrong", {"data.min_count": 2, "data.dir": tiny_config.data.dir}, pretrain=False)
    with pytest.raises(InputError, match=r"was prepared with data\.min_count = 1, not 2"):
        ablate.ablate(tiny_config, Study((other, wrong), ("ctr",)), seeds=1, folder=tmp_path / "study", jobs=1)


def test_the_towers_have_their_own_defaults_whatever_the_config_sets_for_one(tmp_path):
    config = Config().override({"ctr.options": {"rank": 2}})
    jobs = [job for group in ablate.plan(config, studies.get("towers"), 1, tmp_path) for job in group]
    assert {job.config.ctr.options for job in jobs} == {()}


def test_what_only_a_mean_needs_is_run_but_not_shown(tmp_path):
    study = dataclasses.replace(studies.get("baselines"), strategies=("joint",), grid={})
    jobs = [job for group in ablate.plan(Config(), study, 1, tmp_path) for job in group]
    first = [job.strategy for job in jobs if job.arm == "no pretraining"]
    assert first == ["joint", "ctr", "plm"]
    assert {job.strategy for job in jobs if job.arm != "no pretraining"} == {None, "joint"}
    assert {line.strategy for line in ablate.table(study, 1, tmp_path)} == {"joint"}
    without = dataclasses.replace(study, strategies=("ctr",))
    jobs = [job for group in ablate.plan(Config(), without, 1, tmp_path) for job in group]
    assert [job.strategy for job in jobs if job.arm == "no pretraining"] == ["ctr"]


MADE_UP = {"failed": "Traceback\nMemoryError: no room\n\nfailed: MemoryError: no room\n", "running": "epoch 1/9\n"}


def made_up(folder: Path, aucs: dict[str, list[float | str | None]], strategy: str = "ctr") -> None:
    """Run folders: an AUC, None for an undefined one, a key of `MADE_UP`, or "" for nothing at all."""
    for arm, values in aucs.items():
        for seed, auc in enumerate(values):
            run_folder = folder / strategy / arm / f"seed-{seed}"
            run_folder.mkdir(parents=True)
            if auc in MADE_UP:
                ablate._beside(run_folder, ".log").write_text(MADE_UP[auc])
            elif auc != "":
                rest = {"logloss": 1 - auc if auc else 0.5}, {"auc": auc + 0.125 if auc else 0.75}
                result = {"test": {"auc": auc, "rows": 9, "positives": 9, **rest[0]}, "valid": rest[1]}
                (run_folder / "result.json").write_text(json.dumps(result))


def test_the_table_by_hand(tmp_path):
    lost = "failed"
    made_up(tmp_path, {"none": [0.70, 0.71, 0.72], "a": [0.72, 0.74, 0.73], "b": [0.71, lost, lost], "c": [lost] * 3})
    study = Study((Arm("none"), Arm("a", {"seed": 1}), Arm("b", {"seed": 2}), Arm("c", {"seed": 3})), ("ctr",))
    lines = ablate.table(study, 3, tmp_path)
    assert [len(line.auc) for line in lines] == [3, 3, 1, 0]
    assert lines[1].relaimpr == pytest.approx((0.73 - 0.5) / (0.71 - 0.5) - 1)
    differences = [0.02, 0.03, 0.01]
    t = (sum(differences) / 3) / (0.01 / math.sqrt(3))
    assert lines[1].p == pytest.approx(2 * scipy.stats.t.sf(t, 2))
    assert math.isnan(lines[2].p)
    text = comparison.write(lines, tmp_path)
    assert "| ctr | a | 3 | 0.7300 ± 0.0100 | 0.2700 ± 0.0100 | 0.8550 ± 0.0100 | +9.52 % | +0.0200 | 0.074 |" in text
    assert "| ctr | b | 1 (2 failed) | 0.7100 | 0.2900 | 0.8350 | +5.00 % | +0.0100 | – |" in text
    assert "| ctr | c | 0 (3 failed) | failed | failed | failed | – | – | – |" in text
    assert "- ctr c seed 2: failed: MemoryError: no room" in text
    assert json.loads((tmp_path / "table.json").read_text())[3]["p"] is None
    assert (tmp_path / "table.csv").read_text().splitlines()[1] == "ctr,none,0,0.7,0.30000000000000004,0.825"
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")


def test_failed_undefined_and_not_run_are_told_apart(tmp_path, monkeypatch):
    made_up(tmp_path, {"none": [0.7, 0.7, 0.7], "a": [None, "failed", ""], "b": ["running", "", ""]})
    made_up(tmp_path, {"none": [0.7, 0.7, 0.7]}, "plm")
    (tmp_path / "pretrain" / "c").mkdir(parents=True)
    (tmp_path / "pretrain" / "c" / "seed-1.log").write_text(MADE_UP["failed"])
    arms = (*(Arm(name, pretrain=False) for name in ("none", "a", "b")), Arm("c", strategies=("ctr",)))
    lines = ablate.table(Study(arms, ("ctr", "plm")), 3, tmp_path)
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: figures.append(figure))
    text = comparison.write(lines, tmp_path)
    assert "| ctr | a | 0 (2 failed, 1 not run) | failed | failed | failed | – | – | – |" in text
    assert "| ctr | b | 0 (3 not run) | not run | not run | not run | – | – | – |" in text
    assert "| ctr | c | 0 (1 failed, 2 not run) | failed |" in text
    assert "- ctr a seed 0: test AUC undefined: one class\n" in text
    assert "- ctr a seed 1: failed: MemoryError: no room\n- ctr a seed 2: not run\n" in text
    assert "- ctr b seed 0: not run to its end: epoch 1/9\n" in text
    assert "- ctr c seed 0: pretraining not run\n- ctr c seed 1: pretraining failed: MemoryError: no room\n" in text
    stored = json.loads((tmp_path / "table.json").read_text())
    assert (list(stored[1]["failed"]), list(stored[1]["not_run"])) == (["0", "1"], ["2"])
    drawn = [{t.get_text(): t.xy[1] for t in axis.texts} for axis in figures[0].axes]
    assert drawn == [{"failed": 3, "not run": 2}, {"not run": 2}]  # c and b; in the second panel a and b
    assert [label.get_text() for label in figures[0].axes[0].get_yticklabels()] == ["none", "a", "b", "c"]


def test_a_mean_says_which_part_it_lacks(tmp_path, monkeypatch):
    arms = (Arm("none", pretrain=False), Arm("mean", strategies=("joint",), mean_of=("ctr", "plm")), Arm("full"))
    study = Study(arms, ("joint",))
    made_up(tmp_path, {"none": [0.7, "failed", 0.7]}, "ctr")
    made_up(tmp_path, {"none": ["", "", 0.7]}, "plm")

    def refuse(folders: list[Path], split: str) -> dict[str, float]:
        raise InputError("a checkpoint is damaged.")

    monkeypatch.setattr(stages, "evaluate", refuse)
    ablate.average(study, 3, tmp_path)
    _, mean, _ = ablate.table(study, 3, tmp_path)
    assert mean.not_run == {Seeds(0, 0): "its plm part: not run"}
    assert mean.failed == {
        Seeds(1, 1): "its ctr part: failed: MemoryError: no room; its plm part: not run",
        Seeds(2, 2): "failed: a checkpoint is damaged.",
    }


def test_relaimpr_over_a_base_that_is_no_better_than_chance(tmp_path):
    made_up(tmp_path, {"none": [0.5], "a": [0.7]})
    lines = ablate.table(Study((Arm("none"), Arm("a")), ("ctr",)), 1, tmp_path)
    assert "| ctr | a | 1 | 0.7000 | 0.3000 | 0.8250 | – | +0.2000 | – |" in comparison.write(lines, tmp_path)


def test_why_a_run_failed_is_what_it_said_last_the_last_time(tmp_path, monkeypatch):
    job = ablate.Job("a", tmp_path / "seed-0", Config())
    ends = [
        (1, b"Traceback\nrefused\n", comparison.Missing(True, "failed: refused")),
        (1, b"", comparison.Missing(True, "failed: exit code 1")),
        (75, b"stopped, saved\n", comparison.Missing(False, "not run to its end: stopped, saved")),
    ]
    for code, said, why in ends:
        program = f"import os, sys; os.write(1, {said!r}); os._exit({code})"
        monkeypatch.setattr(ablate, "_command", lambda job, program=program: [sys.executable, "-c", program])
        ablate.run([[job]], 1)
        assert ablate._by_log(job.folder) == why
    assert (tmp_path / "seed-0.log").read_text().startswith("Traceback")  # what was said before is kept


def here(groups: Sequence[Sequence[ablate.Job]], jobs: int) -> None:
    """As `ablate.run`, in this process."""
    for job in itertools.chain.from_iterable(groups):
        if not job.finished:
            job.folder.parent.mkdir(parents=True, exist_ok=True)
            job.beside(".json").write_text(ablate._to_json(job), encoding="utf-8")
            ablate._run_job(job.beside(".json"), job.folder)


def test_a_real_study(tmp_path, tiny_config, tiny_dataset, monkeypatch):
    """Two arms, one of which cannot run; then again, without processes, what is left; then with another config."""
    folder = tmp_path / "study"
    study = Study(
        (Arm("none", pretrain=False), Arm("icl", {"loss.mlm": 0.0, "loss.mtm": 0.0, "pretrain.batch_size": 10**6})),
        ("ctr",),
    )
    text = ablate.ablate(tiny_config, study, seeds=1, folder=folder, jobs=2)
    assert "| ctr | none | 1 | 0." in text
    assert "- ctr icl seed 0: pretraining failed: A batch of 1000000 rows is larger than" in text
    result = (folder / "ctr" / "none" / "seed-0" / "result.json").stat().st_mtime_ns
    good = Study((study.arms[0], Arm("icl", {"loss.mlm": 0.0, "loss.mtm": 0.0})), ("ctr",))
    monkeypatch.setattr(ablate, "run", here)
    text = ablate.ablate(tiny_config, good, seeds=1, folder=folder, jobs=1)
    assert "| ctr | icl | 1 | 0." in text
    assert (folder / "ctr" / "none" / "seed-0" / "result.json").stat().st_mtime_ns == result
    with pytest.raises(InputError, match=r"seed-0 was run with ctr.dim = .*; give another --run-dir"):
        ablate.ablate(tiny_config.override({"ctr.dim": 5}), good, seeds=1, folder=folder, jobs=1)


def test_a_run_stops_when_its_study_is_gone(monkeypatch):
    """The other end of its standard input closes, however the study ended."""
    reader, writer = os.pipe()
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(sys, "stdin", os.fdopen(reader))
    monkeypatch.setattr(os, "kill", lambda process, number: sent.append((process, number)))
    waiting = threading.Thread(target=ablate._stop_with_parent)
    waiting.start()
    assert not sent
    os.close(writer)
    waiting.join(60)
    assert sent == [(os.getpid(), signal.SIGTERM)]
    sys.stdin.close()


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGTERM, id="SIGTERM"),
        pytest.param(signal.SIGKILL, id="SIGKILL"),
    ],
)
@pytest.mark.slow
def test_a_run_never_outlives_its_study(tmp_path, tiny_config, tiny_dataset, number):
    """Else the study, started again, would have two processes in one run folder."""
    endless = tiny_config.override({"finetune.ctr.epochs": 10**5, "finetune.ctr.patience": 10**5})
    study, runs = tmp_path / "study.json", tmp_path / "runs"
    study.write_text('{"one": {"pretrain": false}, "two": {"pretrain": false, "ctr.dropout": 0}}')
    flags = ["--study", str(study), "--strategies", "ctr", "--seeds", "1", "--jobs", "1", "--run-dir", str(runs)]
    command = [sys.executable, "-m", "alt_jax", "ablate", config_file(tmp_path, endless), *flags]
    run, log = runs / "ctr" / "one" / "seed-0", runs / "ctr" / "one" / "seed-0.log"
    deadline = time.monotonic() + 240
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not any(run.glob("checkpoints/*/params")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    assert process.returncode == (75 if number == signal.SIGTERM else -number)
    if number == signal.SIGTERM:
        assert said.startswith(
            "stopping the runs…\nalt-jax ablate: stopped by SIGTERM, what was running has saved; start"
        )
    while not re.search(r"stopped by SIGTERM at step \d+ of \d+, saved$", log.read_text().strip()):
        assert number == signal.SIGKILL, "the study did not wait for its run"
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    assert not (runs / "ctr" / "two").exists()


def test_the_mean_of_two_runs_is_evaluated_not_trained(tmp_path, tiny_config, tiny_dataset, monkeypatch):
    arms = (Arm("none", pretrain=False), Arm("average", strategies=("joint",), mean_of=("ctr", "plm")))
    study = Study(arms, ("ctr", "plm", "joint"))
    folder = tmp_path / "study"
    monkeypatch.setattr(ablate, "run", here)  # what is tested are the means
    ablate.run([g for g in ablate.plan(tiny_config, study, 1, folder) if g[0].strategy == "ctr"], 1)
    ablate.average(study, 1, folder)
    assert not (folder / "joint" / "average").exists()  # one part is still missing
    text = ablate.ablate(tiny_config, study, seeds=1, folder=folder, jobs=1)
    parts = [folder / strategy / "none" / "seed-0" for strategy in ("ctr", "plm")]
    found = json.loads((folder / "joint" / "average" / "seed-0" / "result.json").read_text())
    assert found["test"]["auc"] == stages.evaluate(parts, "test")["auc"]
    assert f"| joint | average | 1 | {found['test']['auc']:.4f} |" in text
    # Scores that were kept are those that the metrics are of, and what the interval is made of.
    dataset = Dataset.load(tiny_config.data.dir)
    label = np.asarray(dataset.test.labels)
    for name in ("ctr/none", "plm/none", "joint/none", "joint/average"):
        run_folder = folder / name / "seed-0"
        kept, result = run_files.read_scores(run_folder), json.loads((run_folder / "result.json").read_text())
        assert metrics.auc(label, kept["test"]) == pytest.approx(result["test"]["auc"], abs=1e-4)
        assert len(kept["valid"]) == len(dataset.valid.labels)
    ours, theirs = ([run_files.read_scores(folder / "joint" / arm / "seed-0")["test"]] for arm in ("average", "none"))
    user = np.asarray(dataset.test.values[:, dataset.schema.slot(dataset.schema.entities["user"])])
    low, high = bootstrap.auc_difference(label, user, ours, theirs)
    assert low < high
    assert f"({low:+.4f} to {high:+.4f})" in next(row for row in text.splitlines() if "| average |" in row)


def test_an_own_study_takes_presets_and_strategies(tmp_path):
    (tmp_path / "study.json").write_text(
        '{"none": {"pretrain": false}, "p": {"preset": "paper", "pretrain.epochs": 2, "strategies": ["ctr"]}}'
    )
    study = studies.get(str(tmp_path / "study.json"))
    jobs = [job for group in ablate.plan(Config(), study, 1, tmp_path) for job in group]
    paper = [job for job in jobs if "/p/" in str(job.folder)]
    assert [job.strategy for job in paper] == [None, "ctr"]
    assert paper[0].config.mtm.method == "nce"
    assert paper[0].config.pretrain.epochs == 2  # beside a preset, what the arm says holds


@pytest.mark.parametrize("name", list(studies.STUDIES))
def test_every_study_can_be_planned_with_the_shipped_config(name, tmp_path):
    config = load_config(Path(__file__).parent.parent / "configs" / "movielens_100k.py")
    assert ablate.plan(config, studies.get(name), 1, tmp_path)


def test_a_masking_arm_is_what_its_name_says_whatever_the_config_masks(tmp_path):
    config = Config().override({"mask.pairing": "same", "mask.helper": "masked"})
    jobs = [job for group in ablate.plan(config, studies.get("masking"), 1, tmp_path) for job in group]
    assert {(j.config.mask.pairing, j.config.mask.helper) for j in jobs if j.arm == "field,0.15"} == {
        ("independent", "whole")
    }


def test_some_arms_of_a_study():
    study = studies.get("baselines").only(["MLM only", "average of the two", "no pretraining"])
    assert [arm.name for arm in study.arms] == ["no pretraining", "average of the two", "MLM only"]
    assert study.strategies == studies.get("baselines").strategies


def test_tasks_share_a_study(tmp_path, monkeypatch, tiny_config, tiny_dataset):
    ran: list[Path] = []
    monkeypatch.setattr(ablate, "run", lambda groups, jobs: ran.extend(job.folder for g in groups for job in g))
    for index in range(3):
        ablate.ablate(tiny_config, studies.get("losses"), seeds=2, folder=tmp_path, jobs=1, task=(index, 3))
    jobs = [job.folder for group in ablate.plan(tiny_config, studies.get("losses"), 2, tmp_path) for job in group]
    assert sorted(ran) == sorted(jobs)


# --- what cannot be ---


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("a b", "a_b"), "arms 'a b' and 'a_b' would share the folder 'a_b'; rename one."),
        (("a", "a"), "arms 'a' and 'a' would share"),
        (("a", ""), "arm '' cannot name a folder"),
        (("a", "."), "arm '.' cannot name a folder"),
        (("a", ".."), "arm '..' cannot name a folder"),
    ],
)
def test_every_arm_has_a_folder_of_its_own(tmp_path, names, said):
    arms = tuple(Arm(name, {"loss.mlm": float(i)}) for i, name in enumerate(names))
    with pytest.raises(InputError) as refused:
        ablate.plan(Config(), Study(arms), 1, tmp_path)
    assert said in str(refused.value)


def test_an_option_that_a_tower_does_not_have(tmp_path):
    config = Config().override({"ctr.options": {"rank": 2}})
    with pytest.raises(InputError, match=r"arm 'b': ctr.options: the tower 'fm' has no option 'rank'"):
        ablate.plan(config, Study((Arm("a"), Arm("b", {"ctr.tower": "fm"}))), 1, tmp_path)


@pytest.mark.parametrize(
    ("values", "finetune", "said"),
    [
        (dict.fromkeys(("loss.icl", "loss.mlm", "loss.mtm"), 0), {}, "arm 'bad': All three loss weights are 0"),
        ({"icl.chunk": 7}, {}, "arm 'bad': icl.chunk 7 does not divide"),
        ({}, {"finetune.plm.towers": "two"}, "arm 'bad': finetune.plm.towers 'two' splits the prompt before the item"),
    ],
)
def test_an_arm_that_its_dataset_cannot_have_is_refused_before_anything_runs(
    tmp_path, monkeypatch, tiny_config, tiny_dataset, values, finetune, said
):
    schema = dataclasses.replace(tiny_dataset.schema, item=None)
    schema.save(tmp_path / "schema.json")
    shutil.copy(Path(tiny_config.data.dir) / "config.json", tmp_path)
    monkeypatch.setattr(ablate, "run", lambda groups, jobs: pytest.fail("something was run"))
    study = Study((Arm("good"), Arm("bad", {"data.dir": str(tmp_path), **values}, finetune)))
    with pytest.raises(InputError) as refused:
        ablate.ablate(tiny_config, study, seeds=1, folder=tmp_path / "study", jobs=1)
    assert said in str(refused.value)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "should hold an object of arms"),
        ("{", "cannot be read as JSON"),
        ('{"a": {"los.mlm": 0}}', "arm 'a': there is no config value 'los.mlm'; did you mean 'loss.mlm'?"),
        (
            '{"a": {"preset": "papr"}}',
            "study.json: arm 'a': there is no preset 'papr'; did you mean 'paper'? Known: default,",
        ),
        ('{"a": {"preset": 5}}', "study.json: arm 'a': there is no preset '5'"),
        ('{"a": {"strategies": ["crt"]}}', "study.json: arm 'a': there is no strategy 'crt'; did you mean 'ctr'?"),
        ('{"a": {"strategies": [["ctr"]]}}', "study.json: arm 'a': there is no strategy ['ctr']"),
        (
            '{"a": {"strategies": "ctr"}}',
            "study.json: arm 'a': strategies should be a list of ctr, plm, joint, not 'ctr'",
        ),
        ('{"a": {"strategies": 5}}', "study.json: arm 'a': strategies should be a list of ctr, plm, joint, not 5"),
        ('{"a": {"pretrain": "no"}}', "study.json: arm 'a': pretrain should be true or false, not 'no'"),
        ('{"a": {"seed": 3}}', "study.json: arm 'a': seed cannot be an arm's"),
        ('{"a": {"loss.mlm": -1}}', "arm 'a': overridden config: loss.mlm: Input should be greater than or equal to 0"),
        ('{"a": {"finetune.ctr.l2": "x"}}', "arm 'a': overridden config: finetune.ctr.l2: Input should be"),
    ],
)
def test_an_own_study_that_cannot_be(tmp_path, content, said):
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(InputError) as refused:
        ablate.plan(Config(), studies.get(str(tmp_path / "study.json")), 1, tmp_path)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--study", "loses"], "there is no study 'loses'; did you mean 'losses'? Known: baselines, losses"),
        (["--study", "losses", "--task", "3/3"], "--task 3/3 should be i/N"),
        (["--study", "losses", "--seeds", "0"], "must be at least 1"),
        (["--study", "towers", "--arms", "fm", "dcnv3"], "the study has no arm 'dcnv3'; did you mean 'dcnv2'?"),
        (["--study", "baselines", "--arms", "average of the two"], "is a mean of runs of arm 'no pretraining'; name"),
    ],
)
def test_refused_in_one_sentence(tmp_path, flags, said, capsys):
    config = tmp_path / "c.py"
    config.write_text("from alt_jax.config import Config\ndef get_config():\n    return Config()\n")
    assert run(["ablate", str(config), "--run-dir", str(tmp_path / "d"), *flags]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def test_override_changes_what_it_names():
    config = Config().override({"loss.mlm": 0.5, "ctr.options": {"rank": 2}, "seed": 3})
    assert config == dataclasses.replace(
        Config(),
        loss=dataclasses.replace(Config().loss, mlm=0.5),
        ctr=dataclasses.replace(Config().ctr, options=(("rank", 2),)),
        seed=3,
    )

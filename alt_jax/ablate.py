"""`ablate`: runs a study, several runs side by side as processes, and says what came out.

```
DIR/pretrain/ARM/seed-0     DIR/STRATEGY/ARM/seed-0     run folders, each with seed-0.log beside it
DIR/table.md · table.csv · table.json · table.png
```

Started again, what is finished is not repeated and what was stopped goes on. Several machines that share DIR take one
task index each.
"""

import csv
import json
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import scipy.stats
from matplotlib.figure import Figure

from alt_jax import stages
from alt_jax.config import Config, Strategy
from alt_jax.data.dataset import SCHEMA
from alt_jax.data.prepare import check_prepared, prepare, prepared_by
from alt_jax.errors import InputError
from alt_jax.metrics import relaimpr
from alt_jax.run import write_json
from alt_jax.studies import Arm, Study

_RESULT = "result.json"


@dataclass(frozen=True)
class Job:
    """One run: its folder, config, and for a finetuning its strategy and where it starts."""

    folder: Path
    config: Config
    strategy: Strategy | None = None
    init_from: Path | None = None

    @property
    def finished(self) -> bool:
        """Whether its result is there."""
        return (self.folder / _RESULT).is_file()

    def beside(self, suffix: str) -> Path:
        """A file beside the run folder, e.g. `seed-0.log`."""
        return _beside(self.folder, suffix)


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
      strategy, arm: What was run.
      auc, logloss: On test, by seed, of the runs that finished.
      valid: AUC on validation, likewise: what a choice between arms may look at.
      seeds: Those seeds.
      failed: Why the others have no result, by seed.
      relaimpr: Of the mean AUC over the strategy's first arm's (0.01 is one per cent); NaN where there is none.
      p: Two-sided, of a paired t-test against the first arm over the seeds that both have; NaN below two.
    """

    strategy: Strategy
    arm: str
    auc: list[float]
    logloss: list[float]
    valid: list[float]
    seeds: list[int]
    failed: dict[int, str]
    relaimpr: float
    p: float


def plan(config: Config, study: Study, seeds: int, folder: Path) -> list[list[Job]]:
    """Groups of runs; those of a group depend on its first and come after it.

    Raises:
      InputError: An arm sets a value that does not exist or does not fit.
    """
    groups: dict[tuple[str, int], list[Job]] = {}
    shared: dict[str, str] = {}  # what is pretrained alike, under the name of its first arm
    for arm in study.arms:
        if arm.mean_of:
            continue  # what it averages is trained by the first arm
        base = _arm_config(config, arm)
        tuned = base.override(arm.finetune)
        key = shared.setdefault(_alike(arm), _name(arm)) if arm.pretrain else ""
        for seed in range(seeds):
            origin = folder / "pretrain" / key / f"seed-{seed}" if arm.pretrain else None
            # Without a pretraining nothing is shared: each run may go by itself
            for strategy in study.of(arm):
                group = groups.setdefault((key or f"{_name(arm)}/{strategy}", seed), [])
                if origin is not None and not group:
                    group.append(Job(origin, base.override({"seed": seed})))
                run = folder / strategy / _name(arm) / f"seed-{seed}"
                group.append(Job(run, tuned.override({"seed": seed}), strategy, origin))
    return list(groups.values())


def run(groups: Sequence[Sequence[Job]], jobs: int) -> None:
    """Runs the groups, up to `jobs` at a time, each run in a process of its own.

    What waits for a pretraining that failed is left out; started again, what failed is tried again.
    """

    def one(group: Sequence[Job]) -> None:
        for job in group:
            if job.finished:
                continue
            job.folder.parent.mkdir(parents=True, exist_ok=True)
            job.beside(".json").write_text(_to_json(job))
            with job.beside(".log").open("ab") as log:
                command = [sys.executable, "-m", "alt_jax.ablate", str(job.beside(".json")), str(job.folder)]
                code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
            print(f"{job.folder}: {'done' if code == 0 else why_failed(job.folder)}", flush=True)
            if code and job.strategy is None:
                return

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, groups))


def average(study: Study, seeds: int, folder: Path) -> None:
    """Evaluates the arms that are the mean of other runs, as soon as those are finished."""
    for arm in study.arms:
        for strategy in study.of(arm) if arm.mean_of else ():
            for seed in range(seeds):
                parts = [folder / part / _name(study.arms[0]) / f"seed-{seed}" for part in arm.mean_of]
                target = folder / strategy / _name(arm) / f"seed-{seed}"
                if (target / _RESULT).is_file() or not all((part / _RESULT).is_file() for part in parts):
                    continue
                target.mkdir(parents=True, exist_ok=True)
                found = {split: stages.evaluate(parts, split) for split in ("valid", "test")}
                write_json(target / _RESULT, {"mean_of": [str(part) for part in parts], "seed": seed, **found})


def why_failed(folder: Path) -> str:
    """The last line of a run's log."""
    log = _beside(folder, ".log")
    lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
    return f"failed: {lines[-1].strip()}" if lines else "not run"


def table(study: Study, seeds: int, folder: Path) -> list[Line]:
    """What the run folders say, by strategy and arm."""
    lines = []
    for strategy in study.strategies:
        base: dict[int, float] | None = None
        for arm in study.arms:
            if strategy not in study.of(arm):
                continue
            folders = [folder / strategy / _name(arm) / f"seed-{seed}" for seed in range(seeds)]
            results = {
                s: json.loads((f / _RESULT).read_text()) for s, f in enumerate(folders) if (f / _RESULT).is_file()
            }
            tests = {seed: result["test"] for seed, result in results.items()}
            auc = {seed: test["auc"] for seed, test in tests.items()}
            gain, p = float("nan"), float("nan")
            if base is None:
                base = auc
            elif auc and base:
                gain = relaimpr(statistics.mean(auc.values()), statistics.mean(base.values()))
                both = sorted(auc.keys() & base.keys())
                if len(both) > 1:
                    p = float(scipy.stats.ttest_rel([auc[s] for s in both], [base[s] for s in both]).pvalue)
            failed = {seed: _reason(study, arm, folder, f, seed) for seed, f in enumerate(folders) if seed not in auc}
            logloss = [test["logloss"] for test in tests.values()]
            valid = [result["valid"]["auc"] for result in results.values()]
            lines.append(Line(strategy, arm.name, list(auc.values()), logloss, valid, list(auc), failed, gain, p))
    return lines


def write(lines: Sequence[Line], folder: Path) -> str:
    """Writes table.md, table.csv, table.json and table.png.

    Returns:
      The table in Markdown.
    """
    columns = ("strategy", "arm", "seeds", "test AUC", "logloss", "valid AUC", "RelaImpr", "p (paired t)")
    rows = [
        (
            line.strategy,
            line.arm,
            str(len(line.auc)) + (f" ({len(line.failed)} failed)" if line.failed else ""),
            _spread(line.auc),
            _spread(line.logloss),
            _spread(line.valid),
            "–" if math.isnan(line.relaimpr) else f"{100 * line.relaimpr:+.2f} %",
            "–" if math.isnan(line.p) else f"{line.p:.3f}",
        )
        for line in lines
    ]
    text = "\n".join(f"| {' | '.join(row)} |" for row in (columns, ("---",) * len(columns), *rows)) + "\n"
    reasons = [f"- {x.strategy} {x.arm} seed {seed}: {why}" for x in lines for seed, why in x.failed.items()]
    text += "\n" + "\n".join(reasons) + "\n" if reasons else ""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(text)
    (folder / "table.json").write_text(json.dumps([_plain(vars(line)) for line in lines], indent=1) + "\n")
    with (folder / "table.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["strategy", "arm", "seed", "test_auc", "test_logloss", "valid_auc"])
        for line in lines:
            for seed, *values in zip(line.seeds, line.auc, line.logloss, line.valid, strict=True):
                out.writerow([line.strategy, line.arm, seed, *values])
    _draw(lines, folder / "table.png")
    return text


def _draw(lines: Sequence[Line], path: Path) -> None:
    """Mean test AUC of every arm, its seeds as points, one panel a strategy."""
    strategies = list(dict.fromkeys(line.strategy for line in lines))
    arms = list(dict.fromkeys(line.arm for line in lines))
    size = (4.0 * len(strategies) + 1, 1 + 0.3 * len(arms))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(strategies), squeeze=False, sharey=True)
    for axis, strategy in zip(axes[0], strategies, strict=True):
        shown = [line for line in lines if line.strategy == strategy]
        for y, line in enumerate(shown):
            axis.plot(line.auc, [y] * len(line.auc), "o", color="0.6", markersize=4)
            if line.auc:
                spread = statistics.stdev(line.auc) if len(line.auc) > 1 else 0.0
                axis.errorbar(statistics.mean(line.auc), y, xerr=spread, fmt="|", color="C0", capsize=3, markersize=10)
            else:
                axis.annotate("failed", (0.5, y), xycoords=("axes fraction", "data"), ha="center", va="center")
        axis.set_yticks(range(len(shown)), [line.arm for line in shown])
        axis.set_ylim(len(shown) - 0.5, -0.5)
        axis.set_title(strategy)
        axis.set_xlabel("test AUC, mean ± std over seeds")
        axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)


def _reason(study: Study, arm: Arm, folder: Path, run: Path, seed: int) -> str:
    """Why a run has no result: its own log, or that of the pretraining it waited for."""
    own = why_failed(run)
    if own != "not run" or not arm.pretrain:
        return own
    same = [other for other in study.arms if other.pretrain and _alike(other) == _alike(arm)]
    origin = folder / "pretrain" / _name(same[0]) / f"seed-{seed}"
    return "not run" if (origin / _RESULT).is_file() else f"pretraining {why_failed(origin)}"


def _beside(folder: Path, suffix: str) -> Path:
    return folder.parent / f"{folder.name}{suffix}"


def _alike(arm: Arm) -> str:
    """Equal for arms that pretrain alike."""
    return json.dumps(sorted(arm.values.items()), default=str)


def _check_same(job: Job) -> None:
    """Refuses a folder in which another study was run: its results would be taken for this one's."""
    path = job.folder / "config.json"
    if (job.folder / "run.json").is_file() and path.is_file():
        changed = job.config.differences(Config.from_json(path.read_text(encoding="utf-8"), str(path)))
        for name, (new, old) in changed.items():
            raise InputError(f"{job.folder} was run with {name} = {old!r}, not {new!r}; give another --run-dir.")


def _arm_config(config: Config, arm: Arm) -> Config:
    changed = config.override(arm.values)
    if prepared_by(changed) != prepared_by(config) and "data.dir" not in arm.values:
        return changed.override({"data.dir": f"{config.data.dir}-{_name(arm)}"})
    return changed


def _name(arm: Arm) -> str:
    """The arm as the name of a folder."""
    return re.sub(r"[^\w.,=+-]+", "_", arm.name)


def _spread(values: list[float]) -> str:
    if not values:
        return "failed"
    return f"{statistics.mean(values):.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """NaN, which JSON does not have, as null."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}


def _to_json(job: Job) -> str:
    origin = None if job.init_from is None else str(job.init_from)
    return json.dumps({"config": json.loads(job.config.to_json()), "strategy": job.strategy, "init_from": origin})


def _run_job(path: Path, folder: Path) -> None:
    """What a process does: one run."""
    job = json.loads(path.read_text())
    config = Config.from_json(json.dumps(job["config"]), str(path))
    if job["strategy"] is None:
        stages.pretrain(config, folder)
    else:
        origin = None if job["init_from"] is None else Path(job["init_from"])
        stages.finetune(config, job["strategy"], origin, folder)


def ablate(config: Config, study: Study, *, seeds: int, folder: Path, jobs: int, task: tuple[int, int] = (0, 1)) -> str:
    """Runs what of a study is not finished, and writes and returns its table.

    Args:
      config: What the arms change.
      study: Arms and strategies.
      seeds: Runs of every arm, with seeds 0, 1, …
      folder: Where everything is kept.
      jobs: Processes at a time.
      task: (i, N): this process takes every N-th group of runs, from the i-th.

    Raises:
      InputError: A dataset or an arm cannot be used; nothing was run then.
    """
    groups = plan(config, study, seeds, folder)
    for group in groups:
        for job in group:
            _check_same(job)
    configs = [job.config for group in groups for job in group]
    # Datasets that are there come first, so that a wrong one is told before others are prepared.
    for each in sorted(configs, key=lambda each: not (Path(each.data.dir) / SCHEMA).is_file()):
        if not (Path(each.data.dir) / SCHEMA).is_file():
            prepare(each)
        check_prepared(each)
    run(groups[task[0] :: task[1]], jobs)
    average(study, seeds, folder)
    return write(table(study, seeds, folder), folder)


if __name__ == "__main__":
    try:
        _run_job(Path(sys.argv[1]), Path(sys.argv[2]))
    except InputError as error:
        sys.exit(str(error))

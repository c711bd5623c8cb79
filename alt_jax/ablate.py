"""`ablate`: runs a study, several runs side by side as processes, and says what came out.

```
DIR/pretrain/ARM/seed-0     DIR/STRATEGY/ARM/seed-0     run folders, each with seed-0.log beside it
DIR/pretrain/ARM/first/seed-0                           where a pretraining starts from another
DIR/STRATEGY/ARM/pretraining-1/seed-0                   where pretrainings and finetunings are crossed
DIR/STRATEGY/ARM/tuning/l2=0.001,…                      where values are chosen on validation, by the first seed
DIR/table.md · table.csv · table.json · table.png · curves.png
```

Started again, what is finished is not repeated and what was stopped goes on. Several machines that share DIR take one
task index each.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from alt_jax import baselines, bootstrap, console, recipe, run_files, stages
from alt_jax.bootstrap import Interval
from alt_jax.comparison import ArmInfo, Line, Missing, Scores, Seeds, compare, write
from alt_jax.config import Config, Strategy
from alt_jax.data.dataset import Dataset
from alt_jax.data.labelled import number_labelled
from alt_jax.data.prepare import prepare
from alt_jax.data.prepared_config import check_prepared, prepared_by
from alt_jax.data.storage import SCHEMA, place
from alt_jax.errors import STOPPED, InputError, Stopped
from alt_jax.evaluate import undefined
from alt_jax.models import interactions
from alt_jax.run import wait_until_free
from alt_jax.run_files import Origin, read_object, write_json
from alt_jax.schema import Schema
from alt_jax.signals import stop_requests
from alt_jax.studies import Arm, Study, refusing

_RESULT = "result.json"
_SAVES_S = 60  # in which a run whose study was killed has saved: started again at once, the study finds it at that
_SCORES = (("test", "auc"), ("test", "logloss"), ("valid", "auc"))  # of `Scores`, in order
_FAILED = "failed: "  # how the last line of the log of a run begins that ended without a result


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
      arm: Its arm.
      folder: Where it is kept.
      config: Its values, without those that are chosen among the candidates.
      strategy: Of a finetuning.
      init_from: Where it starts.
      candidates: Runs by the values that are chosen among them on validation; empty: nothing is chosen.
      baseline: Of a run by another library (`alt_jax.baselines`).
    """

    arm: str
    folder: Path
    config: Config
    strategy: Strategy | None = None
    init_from: Path | None = None
    candidates: tuple[tuple[dict[str, float], "Job"], ...] = ()
    baseline: str = ""

    @property
    def finished(self) -> bool:
        """Whether its result is there."""
        return (self.folder / _RESULT).is_file()

    def chosen(self) -> "Job | None":
        """The job with the values of the best candidate; None while one of them has no result."""
        if not self.candidates:
            return self
        point = _best(self.candidates)
        return None if point is None else replace(self, config=_tuned(self.config, self.strategy, point))

    def beside(self, suffix: str) -> Path:
        """A file beside the run folder, e.g. `seed-0.log`."""
        return _beside(self.folder, suffix)


_NOT_RUN = Missing(False, "not run")


def plan(config: Config, study: Study, seeds: int, folder: Path, pretrainings: int = 0) -> list[list[Job]]:
    """Groups of runs; those of a group depend on its first and come after it.

    Args:
      config: What the arms change.
      study: Arms and strategies.
      seeds: Finetunings of every arm.
      folder: Of the study.
      pretrainings: Of every arm that has one, each of which all its finetunings start from; 0: every finetuning has a
        pretraining of its own, of the same seed.

    Raises:
      InputError: An arm sets a value that does not exist or does not fit, or has no folder of its own.
    """
    _check_names(study)
    groups: dict[Path, list[Job]] = {}
    for arm in study.arms:
        with refusing(f"arm {arm.name!r}"):
            base = _arm_config(config, arm)
            tuned, first_values = base.override(arm.finetune), base.override(arm.first)
            interactions.build(tuned.ctr)
        for each in _seeds(arm, seeds, pretrainings):
            origin = _origin(study, arm, each, folder)
            for strategy in study.trained(arm):
                run = _folder(folder, strategy, arm, each)
                candidates = _candidates(study, arm, strategy, tuned, folder)
                # Without a pretraining nothing is shared: each run may go by itself. What is chosen by the first seed
                # has the others wait for it.
                first = _origin(study, arm, Seeds(0, 0), folder) or _folder(folder, strategy, arm, Seeds(0, 0))
                group = groups.setdefault(first if candidates else origin or run, [])
                if origin is not None and origin not in {job.folder for job in group}:
                    seed = {"seed": each.pretraining}
                    if (before := _first_pretraining(arm, origin)) is not None:
                        group.append(Job(arm.name, before, first_values.override(seed)))
                    group.append(Job(arm.name, origin, base.override(seed), init_from=before))
                group += [job for _, job in candidates if job not in group]
                seeded = tuned.override({"seed": each.finetuning})
                group.append(Job(arm.name, run, seeded, strategy, origin, candidates, arm.baseline))
    return list(groups.values())


def _candidates(
    study: Study, arm: Arm, strategy: Strategy, tuned: Config, folder: Path
) -> tuple[tuple[dict[str, float], Job], ...]:
    """A run of the first seed for every point of the study's grid."""
    origin, found = _origin(study, arm, Seeds(0, 0), folder), []
    for point in study.points(arm, strategy):
        name = ",".join(f"{value}={number:g}" for value, number in point.items())
        run = folder / strategy / _name(arm) / "tuning" / name
        config = _tuned(tuned.override({"seed": 0}), strategy, point)
        found.append((point, Job(arm.name, run, config, strategy, origin)))
    return tuple(found)


def _tuned(config: Config, strategy: Strategy | None, point: Mapping[str, float]) -> Config:
    return config.override({f"finetune.{strategy}.{name}": value for name, value in point.items()})


def _best(candidates: Sequence[tuple[dict[str, float], Job]]) -> dict[str, float] | None:
    """The point with the best AUC on validation, the first of several; None while a result is missing."""
    if not all(job.finished for _, job in candidates):
        return None
    aucs = [read_object(job.folder / _RESULT)["valid"]["auc"] or 0.0 for _, job in candidates]
    return candidates[aucs.index(max(aucs))][0]


def _seeds(arm: Arm, seeds: int, pretrainings: int) -> list[Seeds]:
    """The seeds of an arm's runs."""
    if not pretrainings or not arm.pretrain or arm.mean_of:
        return [Seeds(seed, seed) for seed in range(seeds)]
    return [Seeds(first, second) for first in range(pretrainings) for second in range(seeds)]


def check(jobs: Sequence[Job]) -> None:
    """Refuses runs that cannot be on their datasets, so that this is not found out after hours of others.

    Raises:
      InputError: There is such a run; names its arm.
    """
    for job in jobs:
        with refusing(f"arm {job.arm!r}"):
            schema = Schema.load(place(job.config.data.dir).folder / SCHEMA)
            if job.baseline:
                baselines.check(job.baseline, schema)
            else:
                stage = Origin("pretrain") if job.strategy is None else Origin("finetune", job.strategy)
                stages.check_fields(job.config, stage, schema)


def run(groups: Sequence[Sequence[Job]], jobs: int) -> None:
    """Runs the groups, up to `jobs` at a time, each run in a process of its own.

    What waits for a pretraining that failed is left out; started again, what failed is tried again.

    Raises:
      alt_jax.errors.Stopped: A signal came. It was passed on, and what was running has saved.
    """
    running: set[subprocess.Popen[bytes]] = set()

    def stop_all() -> None:
        for process in list(running):
            process.terminate()

    def one(group: Sequence[Job]) -> None:
        failed: set[Path] = set()
        for planned in group:
            if planned.finished:
                continue
            if planned.init_from in failed:
                failed.add(planned.folder)
                continue
            if stop:
                return
            if (job := planned.chosen()) is None:
                planned.folder.parent.mkdir(parents=True, exist_ok=True)
                planned.beside(".log").write_text(f"{_FAILED}a run that its values are chosen among has no result\n")
                continue
            job.folder.parent.mkdir(parents=True, exist_ok=True)
            job.beside(".json").write_text(_to_json(job))
            outcome = "done"
            with job.beside(".log").open("a+b") as log:
                began = log.seek(0, os.SEEK_END)
                with subprocess.Popen(_command(job), stdin=subprocess.PIPE, stdout=log, stderr=log) as process:
                    running.add(process)
                    if stop:  # it came between the question above and the line above
                        process.terminate()
                    code = process.wait()
                    running.discard(process)
                if code:
                    log.seek(began)
                    outcome = _last_line(log.read()) or f"exit code {code}"
                if code not in (0, STOPPED) and not stop:
                    outcome = _FAILED + outcome
                    log.write(f"\n{outcome}\n".encode())
            console.log(f"{job.folder}: {outcome}", run_dir=str(job.folder), outcome=outcome)
            if code and job.strategy is None:
                failed.add(job.folder)

    with stop_requests("stopping the runs…", pass_on=stop_all) as stop, ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, groups))
    if stop:
        raise Stopped(f"stopped by {stop[0].name}, what was running has saved")


def average(study: Study, seeds: int, folder: Path) -> None:
    """Evaluates the arms that are the mean of other runs, as soon as those are finished."""
    for arm in study.arms:
        for strategy in study.of(arm) if arm.mean_of else ():
            for seed in range(seeds):
                parts = [_folder(folder, part, study.arms[0], Seeds(seed, seed)) for part in arm.mean_of]
                target = _folder(folder, strategy, arm, Seeds(seed, seed))
                if (target / _RESULT).is_file() or not all((part / _RESULT).is_file() for part in parts):
                    continue
                target.mkdir(parents=True, exist_ok=True)
                try:
                    found = {split: stages.evaluate(parts, split) for split in ("valid", "test")}
                except InputError as error:
                    _beside(target, ".log").write_text(f"{_FAILED}{error}\n")
                    continue
                scores = [run_files.read_scores(part) for part in parts]
                if all(scores):
                    means = {split: np.mean([one[split] for one in scores], axis=0) for split in scores[0]}
                    run_files.write_scores(target, means)
                write_json(target / _RESULT, {"mean_of": [str(part) for part in parts], "seed": seed, **found})


def table(study: Study, seeds: int, folder: Path, pretrainings: int = 0) -> list[Line]:
    """What the run folders say, by strategy and arm."""
    runs: dict[tuple[str, str], dict[Seeds, Scores | Missing]] = {}
    known: dict[tuple[str, str], ArmInfo] = {}
    for strategy in study.strategies:
        scored: dict[str, list[Path]] = {}
        for arm in study.arms:
            if strategy not in study.of(arm):
                continue
            found = {s: _outcome(study, arm, strategy, s, folder) for s in _seeds(arm, seeds, pretrainings)}
            runs[strategy, arm.name] = found
            whole = all(isinstance(outcome, Scores) for outcome in found.values())  # else other runs make the means
            scored[arm.name] = [_folder(folder, strategy, arm, seeds) for seeds in found] if whole else []
            other = scored.get(arm.against or next(iter(scored)), [])
            interval = None
            if other and scored[arm.name] and other != scored[arm.name]:
                interval = _interval(scored[arm.name], other)
            took = _took(study, arm, strategy, [_folder(folder, strategy, arm, seeds) for seeds in found], folder)
            known[strategy, arm.name] = ArmInfo(arm.against, interval, took, arm.point)
    return compare(runs, known)


def _took(study: Study, arm: Arm, strategy: Strategy, runs: Sequence[Path], folder: Path) -> Mapping[str, float]:
    """What was chosen on validation for an arm: among its candidates, or by a baseline itself for its first seed."""
    if study.points(arm, strategy):
        return _best(_candidates(study, arm, strategy, Config(), folder)) or {}
    if arm.baseline and (runs[0] / _RESULT).is_file():
        took: Mapping[str, float] = read_object(runs[0] / _RESULT).get("took", {})
        return took
    return {}


def _interval(ours: Sequence[Path], theirs: Sequence[Path]) -> Interval | None:
    """Of the difference in test AUC over test users; None where runs have not kept scores, or are of two datasets."""
    runs = [folder for folder in (*ours, *theirs) if (folder / "config.json").is_file()]  # a mean of runs has none
    datasets = {run_files.read_config(folder).data.dir for folder in runs}
    if len(datasets) != 1:
        return None
    own = [folder for folder in runs if (folder / SCHEMA).is_file()]  # a baseline's has no schema
    dataset = Dataset.load(run_files.find_dataset(own[0]) if own else datasets.pop())
    return bootstrap.of_runs(dataset, ours, theirs)


def _outcome(study: Study, arm: Arm, strategy: Strategy, seeds: Seeds, folder: Path) -> Scores | Missing:
    """The scores of a run, or why there is none: its log, or what it waits for, says so."""
    run = _folder(folder, strategy, arm, seeds)
    if (run / _RESULT).is_file():
        result = read_object(run / _RESULT)
        try:
            if result["test"]["auc"] is None:
                return Missing(True, f"test AUC undefined: {undefined(result['test'], 'auc')}")
            return Scores(*(float(result[part][name]) for part, name in _SCORES))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise InputError(f"{run / _RESULT} does not hold a run's scores; remove it, and start again.") from None
    if (own := _by_log(run)) != _NOT_RUN:
        return own
    origin = _origin(study, arm, seeds, folder)
    if origin is not None and not (origin / _RESULT).is_file():
        waits, which = origin, "pretraining"
        if (before := _first_pretraining(arm, origin)) is not None and not (before / _RESULT).is_file():
            waits, which = before, "first pretraining"
        failed, why = _by_log(waits)
        return Missing(failed, f"{which} {why}")
    parts = {part: _outcome(study, study.arms[0], part, seeds, folder) for part in arm.mean_of}
    missing = {part: found for part, found in parts.items() if isinstance(found, Missing)}
    if missing:
        why = "; ".join(f"its {part} part: {found.why}" for part, found in missing.items())
        return Missing(any(found.failed for found in missing.values()), why)
    return own


def _by_log(run: Path) -> Missing:
    log = _beside(run, ".log")
    last = _last_line(log.read_bytes()) if log.is_file() else ""
    if last.startswith(_FAILED):
        return Missing(True, last)
    return Missing(False, f"not run to its end: {last}") if last else _NOT_RUN


def _last_line(text: bytes) -> str:
    return next(reversed(text.decode(errors="replace").strip().splitlines()), "").strip()


def _beside(folder: Path, suffix: str) -> Path:
    return folder.parent / f"{folder.name}{suffix}"


def _folder(folder: Path, strategy: str, arm: Arm, seeds: Seeds) -> Path:
    """The run folder of a finetuning."""
    crossed = [] if seeds.pretraining == seeds.finetuning else [f"pretraining-{seeds.pretraining}"]
    return folder.joinpath(strategy, _name(arm), *crossed, f"seed-{seeds.finetuning}")


def _origin(study: Study, arm: Arm, seeds: Seeds, folder: Path) -> Path | None:
    """The pretraining that an arm's runs start from: that of the first arm that pretrains alike."""
    if not arm.pretrain or arm.mean_of:
        return None
    alike = (other for other in study.arms if other.pretrain and not other.mean_of and _alike(other) == _alike(arm))
    return folder / "pretrain" / _name(next(alike)) / f"seed-{seeds.pretraining}"


def _first_pretraining(arm: Arm, origin: Path) -> Path | None:
    """The pretraining that an arm's pretraining starts from."""
    return origin.parent / "first" / origin.name if arm.first else None


def _alike(arm: Arm) -> str:
    """Equal for arms that pretrain alike."""
    return json.dumps([sorted(arm.values.items()), sorted(arm.first.items())], default=str)


def _check_same(job: Job) -> None:
    """Refuses a folder in which another study was run: its results would be taken for this one's."""
    path, chosen = job.folder / "config.json", job.chosen()
    if chosen and ((job.folder / "run.json").is_file() or job.baseline) and path.is_file():
        changed = chosen.config.another_run(Config.from_json(path.read_text(encoding="utf-8"), str(path)))
        for name, (new, old) in changed.items():
            raise InputError(f"{job.folder} was run with {name} = {old!r}, not {new!r}; give another --run-dir.")


def _fitted(job: Job) -> Config:
    """The values that a job's run will have, once its dataset is there."""
    part = Schema.load(place(job.config.data.dir).folder / SCHEMA).splits["train"]
    if job.strategy is None:
        return recipe.pretraining(job.config, part.rows)
    labels = number_labelled(part.labelled, job.config.finetune.label_share)
    return recipe.finetuning(job.config, job.strategy, labels, job.init_from is not None)


def _prepare(jobs: Sequence[Job]) -> None:
    """Prepares what datasets are missing; those that are there come first, so that a wrong one is told before that."""
    for job in sorted(jobs, key=lambda job: not place(job.config.data.dir).has(SCHEMA)):
        with refusing(f"arm {job.arm!r}"):
            if not place(job.config.data.dir).has(SCHEMA):
                prepare(job.config)
            check_prepared(job.config)


def _arm_config(config: Config, arm: Arm) -> Config:
    changed = config.override(arm.values)
    if prepared_by(changed) != prepared_by(config) and "data.dir" not in arm.values:
        return changed.override({"data.dir": f"{config.data.dir}-{_name(arm)}"})
    return changed


def _check_names(study: Study) -> None:
    """Refuses arms that would share a folder or have none."""
    arms: dict[str, str] = {}
    for arm in study.arms:
        name = _name(arm)
        if name in ("", ".", ".."):
            raise InputError(f"arm {arm.name!r} cannot name a folder; give it another name.")
        if name in arms:
            raise InputError(f"arms {arms[name]!r} and {arm.name!r} would share the folder {name!r}; rename one.")
        arms[name] = arm.name


def _name(arm: Arm) -> str:
    """The arm as the name of a folder."""
    return re.sub(r"[^\w.,=+-]+", "_", arm.name)


def _to_json(job: Job) -> str:
    origin = None if job.init_from is None else str(job.init_from)
    config = json.loads(job.config.to_json())
    return json.dumps({"config": config, "strategy": job.strategy, "init_from": origin, "baseline": job.baseline})


def _command(job: Job) -> list[str]:
    return [sys.executable, "-m", "alt_jax.ablate", str(job.beside(".json")), str(job.folder)]


def _run_job(path: Path, folder: Path) -> None:
    """What a process does: one run."""
    wait_until_free(folder, _SAVES_S)
    job = json.loads(path.read_text())
    config = Config.from_json(json.dumps(job["config"]), str(path))
    origin = None if job["init_from"] is None else Path(job["init_from"])
    if job["baseline"]:
        baselines.fit(config, job["baseline"], folder)
    elif job["strategy"] is None:
        stages.pretrain(config, folder, origin)
    else:
        stages.finetune(config, job["strategy"], origin, folder)


def ablate(
    config: Config,
    study: Study,
    *,
    seeds: int,
    folder: Path,
    jobs: int,
    task: tuple[int, int] = (0, 1),
    pretrainings: int = 0,
) -> str:
    """Runs what of a study is not finished, and writes and returns its table.

    Args:
      config: What the arms change.
      study: Arms and strategies.
      seeds: Runs of every arm, with seeds 0, 1, …
      folder: Where everything is kept.
      jobs: Processes at a time.
      task: (i, N): this process takes every N-th group of runs, from the i-th.
      pretrainings: As for `plan`.

    Raises:
      InputError: A dataset or an arm cannot be used; nothing was run then.
      alt_jax.errors.Stopped: A signal came, and what was running has saved.
    """
    groups = plan(config, study, seeds, folder, pretrainings)
    planned = [job for group in groups for job in group]
    for job in planned:
        _check_same(job)
    _prepare(planned)
    check(planned)
    for job in planned:
        if not job.baseline:  # which trains nothing by these values
            _check_same(replace(job, config=_fitted(job)))
    finished = sum(job.finished for job in planned)
    console.log(
        f"ablate · {len(study.arms)} arms · {len(planned)} runs, of which {finished} are finished · "
        f"{jobs} at a time · {folder}",
        stage="ablate",
        runs=len(planned),
        finished=finished,
        jobs=jobs,
        run_dir=str(folder),
    )
    run(groups[task[0] :: task[1]], jobs)
    average(study, seeds, folder)
    return write(table(study, seeds, folder, pretrainings), folder)


def _stop_with_parent() -> None:
    """Stops this run when the study's process is gone, however it went: else two would soon work in one folder."""
    os.read(sys.stdin.fileno(), 1)  # nothing is ever written, so this returns when the other end is closed
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    try:
        _run_job(Path(sys.argv[1]), Path(sys.argv[2]))
    except InputError as error:
        sys.exit(str(error))
    except Stopped as stopped:
        console.log(str(stopped))
        sys.exit(STOPPED)

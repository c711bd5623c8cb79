"""What a report says first: what pretraining brought, what it has learned, and what to try."""

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from alt_jax import bootstrap, comparison, learned
from alt_jax.bootstrap import Interval
from alt_jax.config import FITTED, Config
from alt_jax.data.dataset import Dataset
from alt_jax.errors import InputError
from alt_jax.report.asked import Asked
from alt_jax.report.sources import Logged


@dataclass(frozen=True)
class Verdict:
    """A sentence, and whether it says that something is wrong.

    Attributes:
      about: What it is about: a run, a strategy, a study.
      said: The sentence.
      bad: Whether nothing was learned, or harm was done.
    """

    about: str
    said: str
    bad: bool = False


def verdicts(found: Asked) -> list[Verdict]:
    """All that can be said of runs and studies, the comparisons first."""
    return [*_compared(found), *_learned(found), *_studied(found)]


def _compared(found: Asked) -> Iterator[Verdict]:
    """Finetunings with a pretraining against those without, on the same rows and by the same strategy."""
    groups: dict[tuple[str, str, str], list[Logged]] = {}
    for run in found.of("finetune"):
        if run.result is not None and run.result["test"]["auc"] is not None:
            strategy = str(run.run.origin.strategy)
            groups.setdefault((run.run.schema.data_hash, strategy, _model(run.run.config, strategy)), []).append(run)
    for (data, strategy, _), runs in groups.items():
        fresh = [run for run in runs if run.run.origin.init_from is None]
        origins = list(dict.fromkeys(run.run.origin.init_from for run in runs if run.run.origin.init_from))
        if origins and not fresh:
            yield Verdict(
                strategy,
                "What the pretraining brought cannot be told without a run that has none: add one of "
                f"alt-jax finetune CONFIG --strategy {strategy} --init-from none.",
                bad=True,
            )
            continue
        dataset = next((one.dataset for one in found.data.values() if one.schema.data_hash == data), None)
        for origin in origins:
            ours = [run for run in runs if run.run.origin.init_from == origin]
            yield _against(strategy, origin if len(origins) > 1 else "", ours, fresh, dataset)


def _model(config: Config, strategy: str) -> str:
    """What runs have to share for the pretraining to be what they differ in; what is fitted may differ with it."""
    parts = ("ctr.", "text.", "finetune.label_share", f"finetune.{strategy}.")
    shared = {n: value for n, value in config.flat().items() if n.startswith(parts) and not FITTED.fullmatch(n)}
    return json.dumps(shared, sort_keys=True)


def _against(
    strategy: str, origin: str, ours: Sequence[Logged], theirs: Sequence[Logged], dataset: Dataset | None
) -> Verdict:
    with_it, without = (statistics.mean(r.result["test"]["auc"] for r in side if r.result) for side in (ours, theirs))
    interval = _interval(ours, theirs, dataset)
    said = f"{with_it:.4f} test AUC with the pretraining{f' {origin}' if origin else ''}, {without:.4f} without: "
    said += f"{with_it - without:+.4f}"
    bad = False
    over = "users" if dataset is not None and "user" in dataset.schema.entities else "rows"
    if interval is not None:
        sure = interval.low > 0 or interval.high < 0
        bad = interval.high < 0
        said += f", {interval.low:+.4f} to {interval.high:+.4f} over other test {over} (95 %)"
        said += ". " if sure else ", so that these test rows cannot tell which is better. "
    else:
        said += ". "
    if min(len(ours), len(theirs)) == 1:
        said += "One run each: another seed may differ by as much."
    return Verdict(strategy, said.strip(), bad)


def _interval(ours: Sequence[Logged], theirs: Sequence[Logged], dataset: Dataset | None) -> Interval | None:
    """Of the difference; None where scores were not kept or are damaged, or the dataset is gone."""
    if dataset is None:
        return None
    try:
        return bootstrap.of_runs(dataset, *([run.run.folder for run in side] for side in (ours, theirs)))
    except InputError:  # the page does without
        return None


def _learned(found: Asked) -> Iterator[Verdict]:
    """What each finished pretraining has learned, and what it has not."""
    for run in found.of("pretrain"):
        measured = (run.result or {}).get("valid")
        if not measured:
            continue
        good, bad = learned.verdict(measured, run.run.config)
        if good:
            yield Verdict(run.name, f"On {measured['rows']:,.0f} validation rows: {good}.")
        for sentence in bad:
            yield Verdict(run.name, sentence, bad=True)


def _studied(found: Asked) -> Iterator[Verdict]:
    for study in found.studies:
        for remark in comparison.best(study.lines):
            yield Verdict(study.name, remark)

"""What came out of a study: arms compared over seeds, as Markdown, JSON, CSV and a figure."""

import csv
import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import scipy.stats
from matplotlib.figure import Figure

from alt_jax.metrics import relaimpr
from alt_jax.partial import beside

COLUMNS = ("strategy", "arm", "seeds", "test AUC", "logloss", "valid AUC", "RelaImpr", "p (paired t)")


class Scores(NamedTuple):
    """A finished run: AUC and logloss on test, AUC on validation, which a choice between arms may look at."""

    test_auc: float
    test_logloss: float
    valid_auc: float


class Missing(NamedTuple):
    """Why a run has no result: it failed, or it has not been run, or not to its end."""

    failed: bool
    why: str


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
      strategy, arm: What was run.
      seeds: The runs that finished.
      auc, logloss, valid: Their scores.
      failed: Why others have no result, by seed.
      not_run: What is still to be run, or is being run, by seed.
      relaimpr: Of the mean AUC over the strategy's first arm's (0.01 is one per cent); NaN where there is none or the
        first arm's is no better than chance.
      p: Two-sided, of a paired t-test against the first arm over the seeds that both have; NaN below two.
    """

    strategy: str
    arm: str
    seeds: list[int]
    auc: list[float]
    logloss: list[float]
    valid: list[float]
    failed: dict[int, str]
    not_run: dict[int, str]
    relaimpr: float
    p: float

    @property
    def without(self) -> str:
        """What stands where there is no result."""
        return "failed" if self.failed else "not run"

    @property
    def cells(self) -> list[str]:
        """What the table says, in the order of `COLUMNS`."""
        missing = [f"{len(x)} {what}" for x, what in ((self.failed, "failed"), (self.not_run, "not run")) if x]
        return [
            self.strategy,
            self.arm,
            f"{len(self.seeds)}" + (f" ({', '.join(missing)})" if missing else ""),
            *(_spread(values) or self.without for values in (self.auc, self.logloss, self.valid)),
            "–" if math.isnan(self.relaimpr) else f"{100 * self.relaimpr:+.2f} %",
            "–" if math.isnan(self.p) else f"{self.p:.3f}",
        ]


def compare(runs: Mapping[tuple[str, str], Mapping[int, Scores | Missing]]) -> list[Line]:
    """Compares every arm with the first one of its strategy.

    Args:
      runs: Of every strategy and arm, by seed.
    """
    lines: list[Line] = []
    first: dict[str, dict[int, float]] = {}
    for (strategy, arm), found in runs.items():
        scores = {seed: run for seed, run in found.items() if isinstance(run, Scores)}
        missing = {seed: run for seed, run in found.items() if isinstance(run, Missing)}
        auc = {seed: run.test_auc for seed, run in scores.items()}
        base = first.get(strategy, {})
        gain = relaimpr(statistics.mean(auc.values()), statistics.mean(base.values())) if auc and base else math.nan
        both = sorted(auc.keys() & base.keys())
        p = math.nan
        if len(both) > 1:
            p = float(scipy.stats.ttest_rel([auc[s] for s in both], [base[s] for s in both]).pvalue)
        lines.append(
            Line(
                strategy=strategy,
                arm=arm,
                seeds=list(scores),
                auc=list(auc.values()),
                logloss=[run.test_logloss for run in scores.values()],
                valid=[run.valid_auc for run in scores.values()],
                failed={seed: run.why for seed, run in missing.items() if run.failed},
                not_run={seed: run.why for seed, run in missing.items() if not run.failed},
                relaimpr=gain,
                p=p,
            )
        )
        first.setdefault(strategy, auc)
    return lines


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)) + "\n"


def read_csv(path: Path) -> dict[tuple[str, str], dict[int, Scores]]:
    """The finished runs in a table.csv."""
    runs: dict[tuple[str, str], dict[int, Scores]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            scores = Scores(*(float(row[name]) for name in Scores._fields))
            runs.setdefault((row["strategy"], row["arm"]), {})[int(row["seed"])] = scores
    return runs


def write(lines: Sequence[Line], folder: Path) -> str:
    """Writes table.md, table.csv, table.json and table.png.

    Returns:
      The table in Markdown, with the reasons for what is missing.
    """
    text = markdown(COLUMNS, [line.cells for line in lines])
    reasons = [
        f"- {line.strategy} {line.arm} seed {seed}: {why}"
        for line in lines
        for seed, why in sorted((line.failed | line.not_run).items())
    ]
    text += "\n" + "\n".join(reasons) + "\n" if reasons else ""
    folder.mkdir(parents=True, exist_ok=True)
    with beside(folder / "table") as new:
        (new / "table.md").write_text(text, encoding="utf-8")
        (new / "table.json").write_text(json.dumps([_plain(line) for line in lines], indent=1) + "\n", encoding="utf-8")
        with (new / "table.csv").open("w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow(["strategy", "arm", "seed", *Scores._fields])
            for line in lines:
                for seed, *values in zip(line.seeds, line.auc, line.logloss, line.valid, strict=True):
                    out.writerow([line.strategy, line.arm, seed, *values])
        _draw(lines, new / "table.png")
        for path in sorted(new.iterdir()):
            path.replace(folder / path.name)
    return text


def _draw(lines: Sequence[Line], path: Path) -> None:
    """Mean test AUC of every arm, its seeds as points, one panel a strategy."""
    strategies = list(dict.fromkeys(line.strategy for line in lines))
    arms = list(dict.fromkeys(line.arm for line in lines))
    size = (4.0 * len(strategies) + 1, 1 + 0.3 * len(arms))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(strategies), squeeze=False, sharey=True)
    for axis, strategy in zip(axes[0], strategies, strict=True):
        for line in (line for line in lines if line.strategy == strategy):
            y = arms.index(line.arm)  # the panels share their axis, though not all arms are in each
            axis.plot(line.auc, [y] * len(line.auc), "o", color="0.6", markersize=4)
            if line.auc:
                spread = statistics.stdev(line.auc) if len(line.auc) > 1 else 0.0
                axis.errorbar(statistics.mean(line.auc), y, xerr=spread, fmt="|", color="C0", capsize=3, markersize=10)
            else:
                axis.annotate(line.without, (0.5, y), xycoords=("axes fraction", "data"), ha="center", va="center")
        axis.set_yticks(range(len(arms)), arms)
        axis.set_ylim(len(arms) - 0.5, -0.5)
        axis.set_title(strategy)
        axis.set_xlabel("test AUC, mean ± std over seeds")
        axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)


def _spread(values: list[float]) -> str:
    """Mean ± sample standard deviation, nothing of nothing."""
    if not values:
        return ""
    return f"{statistics.mean(values):.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")


def _plain(line: Line) -> dict[str, object]:
    """NaN, which JSON does not have, as null."""
    values = dataclasses.asdict(line).items()
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values}

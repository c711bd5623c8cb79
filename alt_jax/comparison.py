"""What came out of a study: arms compared over seeds, as Markdown, JSON, CSV and a figure."""

import csv
import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from matplotlib.figure import Figure

from alt_jax.bootstrap import Interval
from alt_jax.metrics import relaimpr
from alt_jax.partial import beside

COLUMNS = (
    "strategy", "arm", "seeds", "test AUC", "logloss", "valid AUC", "RelaImpr", "difference (95 %)", "p (paired t)"
)  # fmt: skip
_FEWEST = 3  # seeds of which a t-test is worth its name: with two, a difference of 0.0001 had "p = 0.004"


class Seeds(NamedTuple):
    """What the pretraining of a run was drawn by, and what its finetuning; without a pretraining, twice the same."""

    pretraining: int
    finetuning: int

    def __str__(self) -> str:
        """One number where both are the same."""
        return f"{self.finetuning}" if self.pretraining == self.finetuning else f"{self.pretraining}/{self.finetuning}"

    @classmethod
    def parse(cls, text: str) -> "Seeds":
        """Reads what `str` made.

        Raises:
          ValueError: It is something else.
        """
        first, _, second = text.partition("/")
        return cls(int(first), int(second or first))


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
class ArmInfo:
    """What is known of an arm besides its runs.

    Attributes:
      against: The arm that it is compared with; empty: the first of the strategy.
      interval: Of the mean difference to that one in test AUC, over test users drawn again (`alt_jax.bootstrap`).
      took: The values that were chosen for it on validation, by name.
      point: Where it lies in a figure of curves: the curve and the place on its x axis.
    """

    against: str = ""
    interval: Interval | None = None
    took: Mapping[str, float] = dataclasses.field(default_factory=dict)
    point: tuple[str, float] | None = None


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
      strategy, arm: What was run.
      seeds: The runs that finished.
      auc, logloss, valid: Their scores.
      failed: Why others have no result, by seed.
      not_run: What is still to be run, or is being run, by seed.
      known: What else is known of the arm.
      difference: Mean AUC over the seeds that both arms have, minus that of the arm it is compared with.
      relaimpr: Of the same means (0.01 is one per cent); NaN where there are none or the other is no better than
        chance.
      p: Two-sided, of a paired t-test against that arm (see `paired_p`); NaN below three seeds.
    """

    strategy: str
    arm: str
    seeds: list[Seeds]
    auc: list[float]
    logloss: list[float]
    valid: list[float]
    failed: dict[Seeds, str]
    not_run: dict[Seeds, str]
    known: ArmInfo
    difference: float
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
            _number(self.seeds) + (f" ({', '.join(missing)})" if missing else ""),
            *(_spread(values) or self.without for values in (self.auc, self.logloss, self.valid)),
            "–" if math.isnan(self.relaimpr) else f"{100 * self.relaimpr:+.2f} %",
            self._difference(),
            "–" if math.isnan(self.p) else f"{self.p:.3f}",
        ]

    def _difference(self) -> str:
        if math.isnan(self.difference):
            return "–"
        interval = self.known.interval
        return f"{self.difference:+.4f}" + (f" ({interval.low:+.4f} to {interval.high:+.4f})" if interval else "")

    @property
    def apart(self) -> tuple[float, float]:
        """Standard deviations of the mean AUC between pretrainings and between finetunings, NaN where not crossed."""
        grid = _grid(dict(zip(self.seeds, self.auc, strict=True)))
        if grid is None:
            return math.nan, math.nan
        between = [float(grid.mean(axis=axis).std(ddof=1)) if grid.shape[1 - axis] > 1 else math.nan for axis in (1, 0)]
        return between[0], between[1]


def compare(
    runs: Mapping[tuple[str, str], Mapping[Seeds, Scores | Missing]],
    known: Mapping[tuple[str, str], ArmInfo] | None = None,
) -> list[Line]:
    """Compares every arm with the first one of its strategy, or with the one that it names.

    Args:
      runs: Of every strategy and arm, by seeds.
      known: What else there is to say of them.
    """
    lines: list[Line] = []
    known, first, aucs = known or {}, dict[str, str](), dict[tuple[str, str], dict[Seeds, float]]()
    crossed = {key: any(seeds.pretraining != seeds.finetuning for seeds in found) for key, found in runs.items()}
    for (strategy, arm), found in runs.items():
        first.setdefault(strategy, arm)
        aucs[strategy, arm] = {seeds: run.test_auc for seeds, run in found.items() if isinstance(run, Scores)}
    for (strategy, arm), found in runs.items():
        scores = {seeds: run for seeds, run in found.items() if isinstance(run, Scores)}
        missing = {seeds: run for seeds, run in found.items() if isinstance(run, Missing)}
        own = known.get((strategy, arm), ArmInfo())
        other = own.against or first[strategy]
        auc, base = aucs[strategy, arm], {} if other == arm else aucs.get((strategy, other), {})
        paired = differences(auc, base, crossed[strategy, arm], crossed.get((strategy, other), False))
        difference, gain = math.nan, math.nan
        if paired:
            difference, mean = statistics.mean(paired.values()), statistics.mean(auc[seeds] for seeds in paired)
            gain = relaimpr(mean, mean - difference)
        lines.append(
            Line(
                strategy=strategy,
                arm=arm,
                seeds=list(scores),
                auc=list(auc.values()),
                logloss=[run.test_logloss for run in scores.values()],
                valid=[run.valid_auc for run in scores.values()],
                failed={seeds: run.why for seeds, run in missing.items() if run.failed},
                not_run={seeds: run.why for seeds, run in missing.items() if not run.failed},
                known=own,
                difference=difference,
                relaimpr=gain,
                p=paired_p(paired),
            )
        )
    return lines


def differences(
    ours: Mapping[Seeds, float], theirs: Mapping[Seeds, float], ours_crossed: bool, theirs_crossed: bool
) -> dict[Seeds, float]:
    """Of the runs that both have: those with the same seeds.

    Where one side has no pretraining and the other has crossed some with its finetunings, those with the same seed of
    finetuning, on average over the other side's pretrainings.
    """
    if ours_crossed == theirs_crossed:
        return {seeds: auc - theirs[seeds] for seeds, auc in ours.items() if seeds in theirs}
    by_seed: dict[int, list[float]] = {}
    for seeds, auc in theirs.items():
        by_seed.setdefault(seeds.finetuning, []).append(auc)
    means = {seed: statistics.mean(aucs) for seed, aucs in by_seed.items()}
    return {seeds: auc - means[seeds.finetuning] for seeds, auc in ours.items() if seeds.finetuning in means}


def paired_p(paired: Mapping[Seeds, float]) -> float:
    """Two-sided p of the hypothesis that differences are 0 on average, over other pretrainings and finetunings.

    Where every run has a pretraining of its own, a paired t-test. Where P pretrainings are crossed with S finetunings,
    runs that share one are not independent: the mean's variance is taken as that of the P means over P plus that of the
    S means over S, which counts what is random in both once too often, with min(P, S) − 1 degrees of freedom.

    Returns:
      p; NaN below three seeds of either kind.
    """
    grid = _grid(paired)
    if grid is None:
        if any(seeds.pretraining != seeds.finetuning for seeds in paired):
            return math.nan  # crossed, but of no pretraining are all finetunings there
        values = list(paired.values())
        if len(values) < _FEWEST:
            return math.nan
        return float(scipy.stats.ttest_1samp(values, 0.0).pvalue)
    if min(grid.shape) < _FEWEST:
        return math.nan
    error = math.sqrt(sum(grid.mean(axis=axis).var(ddof=1) / grid.shape[1 - axis] for axis in (0, 1)))
    if error == 0:
        return math.nan
    return float(2 * scipy.stats.t.sf(abs(grid.mean()) / error, min(grid.shape) - 1))


def _grid(values: Mapping[Seeds, float]) -> np.ndarray | None:
    """Pretrainings by finetunings, where they are crossed; those pretrainings of which all finetunings are there."""
    if all(seeds.pretraining == seeds.finetuning for seeds in values):
        return None
    columns = sorted({seeds.finetuning for seeds in values})
    rows = [[values.get(Seeds(p, s)) for s in columns] for p in sorted({seeds.pretraining for seeds in values})]
    whole = [row for row in rows if None not in row]
    return np.array(whole, float).reshape(len(whole), len(columns)) if whole else None


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)) + "\n"


def table(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Header and rows; what was chosen on validation has a column where anything was."""
    header, rows = list(COLUMNS), [line.cells for line in lines]
    if any(line.known.took for line in lines):
        header.append("chosen on validation")
        for row, line in zip(rows, lines, strict=True):
            row.append(", ".join(f"{name} {value:g}" for name, value in line.known.took.items()) or "–")
    return header, rows


def remarks(lines: Sequence[Line]) -> list[str]:
    """What is to be said below the table: what the best was chosen among, and what of the spread is whose."""
    said = best(lines)
    for line in lines:
        pretraining, finetuning = line.apart
        if not math.isnan(pretraining + finetuning):
            said.append(
                f"{line.strategy} {line.arm}: standard deviation {pretraining:.4f} between pretrainings, "
                f"{finetuning:.4f} between finetunings."
            )
    return said


def best(lines: Sequence[Line]) -> list[str]:
    """Of every strategy the arm that is best on validation, and among how many it was chosen."""
    said = []
    for strategy in dict.fromkeys(line.strategy for line in lines):
        there = [line for line in lines if line.strategy == strategy and line.valid]
        if len(there) > 1:
            first = max(there, key=lambda line: statistics.mean(line.valid))
            said.append(
                f"{strategy}: of {len(there)} arms that were looked at, {first.arm!r} is best on validation "
                f"({statistics.mean(first.valid):.4f}); its test AUC is {statistics.mean(first.auc):.4f}."
            )
    return said


def read_csv(path: Path) -> dict[tuple[str, str], dict[Seeds, Scores]]:
    """The finished runs in a table.csv."""
    runs: dict[tuple[str, str], dict[Seeds, Scores]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            scores = Scores(*(float(row[name]) for name in Scores._fields))
            runs.setdefault((row["strategy"], row["arm"]), {})[Seeds.parse(row["seed"])] = scores
    return runs


def write(lines: Sequence[Line], folder: Path) -> str:
    """Writes table.md, table.csv, table.json and table.png, and curves.png where the arms are points of curves.

    Returns:
      The table in Markdown, with what is to be said of it and the reasons for what is missing.
    """
    text = markdown(*table(lines))
    below = remarks(lines) + [
        f"{line.strategy} {line.arm} seed {seeds}: {why}"
        for line in lines
        for seeds, why in sorted((line.failed | line.not_run).items())
    ]
    text += "\n" + "\n".join(f"- {remark}" for remark in below) + "\n" if below else ""
    folder.mkdir(parents=True, exist_ok=True)
    with beside(folder / "table") as new:
        (new / "table.md").write_text(text, encoding="utf-8")
        (new / "table.json").write_text(json.dumps([_plain(line) for line in lines], indent=1) + "\n", encoding="utf-8")
        with (new / "table.csv").open("w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow(["strategy", "arm", "seed", *Scores._fields])
            for line in lines:
                for seeds, *values in zip(line.seeds, line.auc, line.logloss, line.valid, strict=True):
                    out.writerow([line.strategy, line.arm, seeds, *values])
        _draw(lines, new / "table.png")
        if any(line.known.point for line in lines):
            _draw_curves(lines, new / "curves.png")
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


def _draw_curves(lines: Sequence[Line], path: Path) -> None:
    """Mean test AUC against what the arms differ in, one panel a strategy."""
    strategies = list(dict.fromkeys(line.strategy for line in lines))
    figure = Figure(figsize=(4.2 * len(strategies) + 1, 3.6), layout="constrained")
    axes = figure.subplots(1, len(strategies), squeeze=False, sharey=True)
    for axis, strategy in zip(axes[0], strategies, strict=True):
        for number, (curve, points) in enumerate(curves([x for x in lines if x.strategy == strategy]).items()):
            place = {"color": f"C{number}", "label": curve}
            axis.errorbar(*zip(*points, strict=True), fmt="o-", capsize=3, markersize=4, **place)
        axis.set_xscale("log")
        places = sorted({line.known.point[1] for line in lines if line.known.point})
        axis.set_xticks(places, [f"{100 * x:g} %" for x in places])
        axis.minorticks_off()
        axis.set_title(strategy)
        axis.set_xlabel("share of the labels")
        axis.grid(alpha=0.3)
        axis.legend()
    axes[0][0].set_ylabel("test AUC, mean ± std over seeds")
    figure.savefig(path, dpi=120)


def curves(lines: Sequence[Line]) -> dict[str, list[tuple[float, float, float]]]:
    """By curve: places, mean test AUC and standard deviation (0 of one seed), in the order of the places."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for line in lines:
        if line.known.point and line.auc:
            curve, place = line.known.point
            spread = statistics.stdev(line.auc) if len(line.auc) > 1 else 0.0
            found.setdefault(curve, []).append((place, statistics.mean(line.auc), spread))
    return {curve: sorted(points) for curve, points in found.items()}


def _number(seeds: Sequence[Seeds]) -> str:
    """How many runs; pretrainings × finetunings where they are crossed and all are there."""
    first, second = ({one[side] for one in seeds} for side in (0, 1))
    crossed = any(one.pretraining != one.finetuning for one in seeds)
    return f"{len(first)} × {len(second)}" if crossed and len(seeds) == len(first) * len(second) else f"{len(seeds)}"


def _spread(values: list[float]) -> str:
    """Mean ± sample standard deviation, nothing of nothing."""
    if not values:
        return ""
    return f"{statistics.mean(values):.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")


def _plain(line: Line) -> dict[str, object]:
    """NaN, which JSON does not have, as null, and seeds as strings."""
    found: dict[str, object] = {}
    for field in dataclasses.fields(line):
        value = getattr(line, field.name)
        if field.name == "seeds":
            value = [str(seeds) for seeds in value]
        elif field.name in ("failed", "not_run"):
            value = {str(seeds): why for seeds, why in value.items()}
        elif field.name == "known":
            value = {**dataclasses.asdict(value), "took": dict(value.took)}
        found[field.name] = None if isinstance(value, float) and math.isnan(value) else value
    return found


def from_plain(entry: Mapping[str, Any]) -> Line:
    """A line as `table.json` has it.

    Raises:
      KeyError, TypeError, ValueError, AttributeError: It is none.
    """
    values = dict(entry)
    values["seeds"] = [Seeds.parse(str(seeds)) for seeds in values["seeds"]]
    for name in ("failed", "not_run"):
        values[name] = {Seeds.parse(seeds): str(why) for seeds, why in values[name].items()}
    # A table of before these were there
    known, values["difference"] = values.get("known", {}), values.get("difference")
    interval, point = known.get("interval"), known.get("point")
    values["known"] = ArmInfo(
        known.get("against", ""),
        None if interval is None else Interval(*interval),
        known.get("took", {}),
        None if point is None else (str(point[0]), float(point[1])),
    )
    for name in ("difference", "relaimpr", "p"):
        values[name] = math.nan if values[name] is None else float(values[name])
    return Line(**values)

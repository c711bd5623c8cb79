"""What a report reads: run folders, finished or not, and the folders of studies."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alt_jax.comparison import Line, from_plain
from alt_jax.errors import InputError
from alt_jax.report.folders import TABLE, is_study, short_names
from alt_jax.run import Run


@dataclass(frozen=True)
class Logged:
    """A run, and what it has written so far.

    Attributes:
      name: Short, and no other run of the report has it.
      run: The open folder.
      result: What it wrote when it finished; None: it has not.
      records: Lines of metrics.jsonl, in order.
    """

    name: str
    run: Run
    result: dict[str, Any] | None
    records: list[dict[str, Any]]

    @property
    def what(self) -> str:
        """Stage and strategy."""
        origin = self.run.origin
        return "pretraining" if origin.stage == "pretrain" else f"{origin.strategy} finetuning"

    @property
    def state(self) -> str:
        """Whether it is finished, and how far it has come."""
        if self.result is None:
            return f"not finished, at step {self.steps:,}"
        best = self.result.get("best_step")
        return f"finished, best at step {best:,}" if isinstance(best, int) else f"finished, {self.steps:,} steps"

    @property
    def steps(self) -> int:
        """Updates that were logged."""
        return max((record["step"] for record in self.records), default=0)

    def series(self, metric: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric, where it was defined."""
        found = [(record["step"], record[metric]) for record in self.records if record.get(metric) is not None]
        return [step for step, _ in found], [value for _, value in found]

    @property
    def metrics(self) -> list[str]:
        """Names of all that was logged, in order."""
        return [name for name in dict.fromkeys(key for record in self.records for key in record) if name != "step"]

    @property
    def training_seconds(self) -> float:
        """What the updates took by the logged rows a second, without evaluations; NaN where none were logged."""
        rates = self.series("rows_per_s")[1]
        size = self.run.recipe.batch_size
        assert size is not None, "a run's config is whole"
        return sum(size / rate for rate in rates if rate) if rates else math.nan


@dataclass(frozen=True)
class Studied:
    """A study's folder and the lines of its table."""

    name: str
    folder: Path
    lines: list[Line]


def read(folders: Sequence[Path]) -> tuple[list[Logged], list[Studied]]:
    """Opens every folder as a run or a study.

    Raises:
      InputError: One is neither, or is damaged.
    """
    logged, studied = [], []
    for folder, name in zip(folders, short_names(folders), strict=True):
        if is_study(folder):
            studied.append(Studied(name, folder, _lines(folder / TABLE)))
        else:
            run = Run.load(folder)
            logged.append(Logged(name, run, run.result(), _records(folder / "metrics.jsonl")))
    return logged, studied


def _records(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl up to one that a kill cut short."""
    found: list[dict[str, Any]] = []
    if not path.is_file():
        return found
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise InputError(f"{path} has no step in line {number}; the run folder is damaged.")
        found.append(record)
    return found


def _lines(path: Path) -> list[Line]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return [from_plain(entry) for entry in table]
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"{path} is not the table of a study ({error}); run `alt-jax ablate` again.") from None

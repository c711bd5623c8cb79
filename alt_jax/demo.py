"""`alt-jax demo`: the whole story on generated data, without a network.

Generates a click log whose true click probabilities are known, prepares it, pretrains, finetunes in all three ways with
and without that pretraining, and prints one table. Everything goes through the same stages as any other experiment.
"""

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Bool

from alt_jax import console, metrics, stages
from alt_jax.config import Config, Strategy
from alt_jax.data.dataset import SCHEMA, Dataset
from alt_jax.data.prepare import prepare
from alt_jax.data.synthetic import SyntheticConfig, generate
from alt_jax.demo_recipe import RECIPE, demo_config
from alt_jax.errors import InputError
from alt_jax.evaluate import unseen
from alt_jax.run import Run
from alt_jax.run_files import write_json

LOG: Final = SyntheticConfig(users=1000, items=500, rows=20_000)
PROBABILITY: Final = "click_probability"

_STRATEGIES: Final[tuple[Strategy, ...]] = get_args(Strategy)
_PARTS = 2 + 2 * len(_STRATEGIES)
_MADE_OF = "demo.json"


def demo(folder: Path, seed: int, *, log: SyntheticConfig = LOG, recipe: Config = RECIPE) -> None:
    """Runs whatever of the demo is not finished yet, and prints its table.

    Args:
      folder: Holds `raw.parquet`, `prepared/` and, for every seed, `seed-N/` with one run folder per training.
      seed: Of the training: initial weights, batch order, masks, dropout. The generated data stay the same.
      log: The click log to generate.
      recipe: Sizes and learning rates; its data's folders and its seed are set here.

    Raises:
      InputError: The folder holds something else, or a demo of another log or recipe.
      alt_jax.errors.Stopped: A signal came; started again, the demo goes on.
    """
    if folder.is_absolute() and folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())  # one spelling, since run folders remember where their data lie
    config = demo_config(folder, seed, recipe)
    runs = folder / f"seed-{seed}"
    console.log(
        f"ALT on a generated click log: the same two towers with and without pretraining, in {_PARTS} parts.\n"
        f"Data and runs are kept in {folder}/; a part that is finished is not done again."
    )
    _heading(1, "data")
    _claim(folder, config, log)
    clock = _Clock(runs / "seconds.json")
    dataset = _data(config, log, clock)

    results = _train(config, dataset, runs, clock)
    console.log("\n" + _table(dataset, best_possible(config, dataset), results, runs, clock.seconds))


def _train(
    config: Config, dataset: Dataset, runs: Path, clock: "_Clock"
) -> dict[tuple[Strategy, bool], dict[str, Any]]:
    """Pretrains once and finetunes every strategy with and without that, as far as it is still to do."""
    _heading(2, "pretraining: align the towers on the training part, without clicks")
    pretrained = runs / "pretrain"
    if _finished(pretrained, config, dataset) is None:
        with clock.part("pretraining"):
            stages.pretrain(config, pretrained)
    results: dict[tuple[Strategy, bool], dict[str, Any]] = {}
    for number, (strategy, aligned) in enumerate(_table_order(), 3):
        _heading(number, f"finetuning: {_NAMES[strategy]}, {'pretrained' if aligned else 'no pretraining'}")
        target = runs / _run_name(strategy, aligned)
        result = _finished(target, config, dataset)
        if result is None:
            with clock.part("finetuning"):
                result = stages.finetune(config, strategy, pretrained if aligned else None, target)
        results[strategy, aligned] = result
    return results


_NAMES: Final[dict[Strategy, str]] = {"ctr": "CTR tower", "plm": "text tower", "joint": "both towers"}


def _table_order() -> Iterator[tuple[Strategy, bool]]:
    for strategy in _STRATEGIES:
        for aligned in (False, True):
            yield strategy, aligned


def _heading(number: int, what: str) -> None:
    console.log(f"\n── {number}/{_PARTS} {what} ".ljust(100, "─"))


def _claim(folder: Path, config: Config, log: SyntheticConfig) -> None:
    """Marks the folder as that of this demo; refuses one that holds anything else."""
    anywhere = dataclasses.replace(config, data=dataclasses.replace(config.data, raw="", dir=""), seed=0)
    made_of = {"log": dataclasses.asdict(log), "recipe": dataclasses.asdict(anywhere), "prepared": config.data.dir}
    made_of = json.loads(json.dumps(made_of))  # as it comes back: tuples are lists
    path = folder / _MADE_OF
    if not path.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} exists and is not a demo's folder; choose another --dir.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, made_of)
        except OSError as error:
            raise InputError(f"{folder} cannot be written ({error.strerror}); choose another --dir.") from None
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); choose another --dir.") from None
    if isinstance(found, dict) and found | {"prepared": config.data.dir} == made_of != found:
        raise InputError(
            f"This demo calls its data {found['prepared']}; start it where that path leads to it, as before."
        )
    if found != made_of:
        raise InputError(f"{folder} holds a demo of another log or recipe; choose another --dir or remove it.")


def _data(config: Config, log: SyntheticConfig, clock: "_Clock") -> Dataset:
    """Generates and prepares the log, as far as that is still to do."""
    raw, prepared = Path(config.data.raw), Path(config.data.dir)
    if raw.exists() and (prepared / SCHEMA).exists():
        dataset = Dataset.load(prepared)
        console.log(f"{prepared} is already finished.")
        return dataset
    with clock.part("data"):
        partial = raw.with_name(f".{raw.name}.{os.getpid()}.partial")
        pq.write_table(generate(log), partial)
        partial.replace(raw)
        console.log(f"generated {raw}: {log.rows:,} rows of up to {log.users:,} users and {log.items:,} items")
        return prepare(config)


def _finished(folder: Path, config: Config, dataset: Dataset) -> dict[str, Any] | None:
    """What this very run wrote when it finished, without building its model again; None: leave it to the stage."""
    if not (folder / "result.json").is_file():
        return None
    run = Run.load(folder)
    if config.another_run(run.config) or run.schema != dataset.schema:
        return None
    console.log(f"{folder} is already finished.")
    return run.result()


class _Clock:
    """Adds up the time of each kind of part over all the starts it took."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Times what is done inside."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, self.seconds)


@dataclasses.dataclass(frozen=True)
class BestPossible:
    """What the generator's own click probabilities score on the test rows: no model can expect more.

    Attributes:
      auc: On all test rows.
      logloss: Likewise.
      unseen_auc: AUC on the rows whose item is unseen in training.
    """

    auc: float
    logloss: float
    unseen_auc: float


def best_possible(config: Config, dataset: Dataset) -> BestPossible:
    """Scores the generator's click probabilities on exactly the rows that the models are tested on."""
    truth = pq.read_table(config.data.raw, columns=[PROBABILITY])[PROBABILITY].to_numpy()
    probability, label = truth[dataset.test.rows], np.asarray(dataset.test.labels)
    new = _new_items(dataset)
    return BestPossible(
        metrics.auc(label, probability),
        metrics.logloss(label, probability),
        metrics.auc(label[new], probability[new]),
    )


def auc_standard_error(auc: float, positives: int, negatives: int) -> float:
    """Standard error of an AUC by Hanley and McNeil, Radiology 143 (1982), equation 1; NaN where it is undefined."""
    if not positives or not negatives or math.isnan(auc):
        return float("nan")
    both_positive = auc / (2 - auc)  # chance that two random positives both score above a negative
    both_negative = 2 * auc**2 / (1 + auc)
    variance = (
        auc * (1 - auc)
        + (positives - 1) * (both_positive - auc**2)
        + (negatives - 1) * (both_negative - auc**2)
    )  # fmt: skip
    return math.sqrt(variance / (positives * negatives))


def _new_items(dataset: Dataset) -> Bool[np.ndarray, " N"]:
    return unseen(dataset, "test", "item")


def _noise(auc: float, labels: np.ndarray) -> float:
    """Two standard errors of an AUC."""
    positives = int(labels.sum())
    return 2 * auc_standard_error(auc, positives, len(labels) - positives)


def _table(
    dataset: Dataset,
    best: BestPossible,
    results: dict[tuple[Strategy, bool], dict[str, Any]],
    runs: Path,
    seconds: dict[str, float],
) -> str:
    """What came out, and how to read it."""
    labels, new = np.asarray(dataset.test.labels), _new_items(dataset)
    baseline = _metric(results["ctr", False], "auc")
    lines = [
        "RESULTS on the test part, which nothing was chosen on",
        "",
        f"{'':<14}{'':<16}{'AUC':>9}{'logloss':>10}{'RelaImpr':>11}{'AUC, unseen items':>20}",
    ]
    for strategy, aligned in _table_order():
        found = results[strategy, aligned]
        auc, without = _metric(found, "auc"), _metric(results[strategy, False], "auc")
        gain = f"{(auc - 0.5) / (without - 0.5) - 1:+.1%}" if aligned else "–"
        lines.append(
            f"{_NAMES[strategy] if not aligned else '':<14}{'pretrained' if aligned else 'no pretraining':<16}"
            f"{auc:>9.4f}{_metric(found, 'logloss'):>10.4f}{gain:>11}{_metric(found, 'unseen_item_auc'):>20.4f}"
        )
    spent = ", ".join(f"{name} {_duration(value)}" for name, value in seconds.items())
    lines += [
        f"{'best possible':<30}{best.auc:>9.4f}{best.logloss:>10.4f}{'':>11}{best.unseen_auc:>20.4f}",
        f"{'test rows':<30}{len(labels):>9,}{'':>21}{int(new.sum()):>20,}",
        "",
        "RelaImpr is (AUC - 0.5) / (AUC without pretraining - 0.5) - 1, within the same strategy.",
        "Unseen items occur in no training row. Best possible: the generator's own click probabilities.",
        "How to read it: this is one seed, and the test part is small. Differences in AUC below about",
        f"{_noise(baseline, labels):.3f} on all rows, or {_noise(baseline, labels[new]):.3f} on unseen items, "
        "are noise (two standard errors, Hanley-McNeil).",
        "",
        f"Run folders: {runs}/",
        f"One of them in detail: alt-jax evaluate {runs}/{_run_name('joint', True)}",
        f"Time: {_duration(sum(seconds.values()))} ({spent}).",
    ]
    return "\n".join(lines)


def _run_name(strategy: Strategy, aligned: bool) -> str:
    return f"{strategy}-{'pretrained' if aligned else 'scratch'}"


def _metric(result: dict[str, Any], name: str) -> float:
    """A test metric; `result.json` holds null where it is undefined."""
    value = result["test"][name]
    return float("nan") if value is None else float(value)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 100 else f"{seconds:.0f} s"

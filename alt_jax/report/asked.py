"""Everything that a report knows before anything is written: what was asked of every run, and what cannot be."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alt_jax import run_files, stages
from alt_jax.data.dataset import Dataset
from alt_jax.errors import InputError
from alt_jax.report import alignment, card, clicks, sources
from alt_jax.report.alignment import Aligned
from alt_jax.report.clicks import Clicks
from alt_jax.report.sources import Logged, Studied
from alt_jax.schema import Schema


@dataclass
class Data:
    """A dataset of some runs: its schema, and itself or why it cannot be opened."""

    schema: Schema
    dataset: Dataset | None
    why: str = ""
    findings: list[card.Finding] = field(default_factory=list)
    alone: dict[str, float] = field(default_factory=dict)


@dataclass
class Asked:
    """Runs and studies, and what they say.

    Attributes:
      runs, studies: Of the folders, in order.
      data: Datasets of the runs, each once.
      clicks: Of finished finetunings, by name.
      aligned: Of pretrainings, by name.
      missing: Why a run is in neither, by name.
    """

    runs: list[Logged]
    studies: list[Studied]
    data: dict[str, Data] = field(default_factory=dict)
    clicks: dict[str, Clicks] = field(default_factory=dict)
    aligned: dict[str, Aligned] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def of(self, stage: str) -> list[Logged]:
        """The runs of a stage."""
        return [run for run in self.runs if run.run.origin.stage == stage]


def ask(folders: Sequence[Path], places: Sequence[str] = ()) -> Asked:
    """Reads the folders, and asks models and datasets as far as they are there.

    Args:
      folders: Runs and studies.
      places: Where the datasets are, if not where they were.

    Raises:
      InputError: A folder is neither a run nor a study.
    """
    found = Asked(*sources.read(folders))
    for run in found.runs:
        print(f"{run.run.folder}: {run.what}, {run.state}")
        _ask(found, run, places)
    for data in found.data.values():
        _check(data)
    return found


def _ask(found: Asked, logged: Logged, places: Sequence[str]) -> None:
    """What the model of a run says about held-out rows, or why it cannot be asked."""
    run, name = logged.run, logged.name
    try:
        place = run_files.find_dataset(run.folder, places)
        if place not in found.data:
            found.data[place] = Data(run.schema, Dataset.load(place))
        data = found.data[place]
    except InputError as error:
        found.missing[name] = str(error)
        gone = f"{run.config.data.dir} {run.schema.data_hash} {run.schema.fingerprint}"
        found.data.setdefault(gone, Data(run.schema, None, str(error)))
        return
    assert data.dataset is not None, "it was opened"
    try:
        if run.origin.stage == "pretrain":
            found.aligned[name] = alignment.look(run, data.dataset)
        elif logged.result is None:
            found.missing[name] = "The run is not finished, so there are no scores yet."
        else:
            found.clicks[name] = clicks.look(stages.load_finetuned(run.folder), data.dataset)
    except InputError as error:
        found.missing[name] = str(error)


def _check(data: Data) -> None:
    if data.dataset is None:
        return
    try:
        data.findings, data.alone = card.look(data.dataset)
    except InputError as error:
        data.why = str(error)

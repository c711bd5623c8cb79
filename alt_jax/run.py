"""The run folder: what a run was, how it went, and enough to go on with it.

```
run.json        stage, strategy, what it started from; written last, so a folder that has it is whole
config.json     every value of the configuration
schema.json     of the dataset it trains on
encoder.json    the text tower's Hugging Face config
data.json       where the dataset is: by itself, and from here
checkpoints/    the newest two and the best
damaged/        checkpoints that were found to be so, and set aside
nonfinite/      batches whose loss or gradient was not finite
metrics.jsonl   one line a step and one an evaluation
tensorboard/    the same for TensorBoard
tracking.json   ids of the run at Weights & Biases and MLflow, where they are used
scores.npz      of a finetuning: the probability of every row of validation and test
result.json     written when the run is finished
```
"""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from alt_jax import cluster, console, run_files
from alt_jax.config import Config, FinetuneConfig, PretrainConfig
from alt_jax.errors import InputError
from alt_jax.models.encoder import EncoderConfig
from alt_jax.models.text import read_config
from alt_jax.run_files import LOCK, Origin, read_object, write_json
from alt_jax.schema import Schema


@dataclasses.dataclass(frozen=True)
class Run:
    """An open run folder."""

    folder: Path
    origin: Origin
    config: Config
    schema: Schema
    encoder: EncoderConfig

    def __post_init__(self) -> None:
        """Refuses a URL."""
        run_files.check_path(self.folder)

    def finished(self) -> dict[str, Any] | None:
        """What this run wrote when it finished, or None if it has not. The first of several processes looks.

        Raises:
          InputError: The folder belongs to another run.
        """
        found = None
        with cluster.together():
            if cluster.first() and (self.folder / "run.json").is_file():
                self._check_same(Run.load(self.folder))
                found = self.result()
        result: dict[str, Any] | None = cluster.from_first(found)
        return result

    @contextmanager
    def held(self) -> Iterator[None]:
        """As `start`, and inside, no other process does the same; the first of several holds the folder for all.

        A folder that was made for what then fails before anything is logged goes again.

        Raises:
          InputError: As `start` does, or the folder is in use.
        """
        made = not (self.folder / "run.json").is_file()
        self.start()
        with contextlib.ExitStack() as stack:
            with cluster.together():
                if cluster.first():
                    stack.enter_context(_lock(self.folder))
                    for left in self.folder.glob(".*.partial"):  # by a process that was killed
                        if left.is_file():
                            left.unlink()
                    stack.callback(self._unmake, made)
            yield

    def start(self) -> "Run":
        """Makes the run folder, or goes on with the one that the same command made before.

        Of several processes the first makes it, and the others see that it is there.

        Returns:
          Itself.

        Raises:
          InputError: The folder belongs to another run or to something else, cannot be written, or is not shared.
        """
        with cluster.together():
            if cluster.first():
                self._make()
        with cluster.together():
            if not (self.folder / "run.json").is_file():
                raise InputError(
                    f"{self.folder} is not where process 0 has made it; give a --run-dir on storage that all hosts see."
                )
        return self

    def _unmake(self, made: bool) -> None:
        if made and not (self.folder / "metrics.jsonl").exists():
            shutil.rmtree(self.folder)

    def _make(self) -> None:
        folder = self.folder
        if (folder / "run.json").is_file():
            self._check_same(Run.load(folder))
            run_files.write_place(folder, self.config.data.dir)
            return
        run_files.check_free(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.json").write_text(self.config.to_json() + "\n", encoding="utf-8")
            (folder / "encoder.json").write_text(json.dumps(self.encoder.to_hf(), indent=2) + "\n", encoding="utf-8")
            self.schema.save(folder / "schema.json")
            run_files.write_place(folder, self.config.data.dir)
            write_json(folder / "run.json", dataclasses.asdict(self.origin))
        except OSError as error:
            raise InputError(f"{folder} cannot be written ({error.strerror}); give another --run-dir.") from error

    @classmethod
    def load(cls, folder: Path) -> "Run":
        """Opens an existing run folder.

        Raises:
          InputError: It is not one, or one of its files is damaged.
        """
        origin = run_files.read_origin(folder)
        encoder = read_config(read_object(folder / "encoder.json"), str(folder / "encoder.json"))
        return cls(folder, origin, run_files.read_config(folder), Schema.load(folder / "schema.json"), encoder)

    def _check_same(self, other: "Run") -> None:
        """Refuses to go on with another run's folder; names what differs."""
        run_files.check_same(self.folder, self.origin, self.config)
        if self.schema != other.schema:
            raise InputError(
                f"The dataset {self.config.data.dir} is not the one {self.folder} was started on; "
                "prepare that one again or give another --run-dir."
            )
        if self.encoder.to_hf() != other.encoder.to_hf():
            raise InputError(
                f"The text tower {self.config.text.model} is not the one {self.folder} was started with; "
                "put that one back or give another --run-dir."
            )

    @property
    def recipe(self) -> PretrainConfig | FinetuneConfig:
        """How it trains: its stage's part of the configuration."""
        strategy = self.origin.strategy
        found: PretrainConfig | FinetuneConfig
        found = self.config.pretrain if strategy is None else getattr(self.config.finetune, strategy)
        return found

    def result(self) -> dict[str, Any] | None:
        """What a finished run wrote, or None.

        Raises:
          InputError: The file is damaged.
        """
        return run_files.read_result(self.folder, self.origin)

    def finish(self, result: dict[str, Any], scores: Mapping[str, np.ndarray] | None = None) -> None:
        """Marks the run finished, for all processes; of a finetuning, keeps the scores of its parts."""
        with cluster.together():
            if cluster.first():
                if scores is not None:
                    run_files.write_scores(self.folder, scores)
                write_json(self.folder / "result.json", result)

    def log(self, records: Iterable[dict[str, Any]]) -> None:
        """Appends lines to metrics.jsonl."""
        if not cluster.first():
            return
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps(console.finite(record), allow_nan=False) + "\n")

    def rewind(self, step: int) -> None:
        """Drops the lines of metrics.jsonl that belong to steps after `step`, which will be done again."""
        path = self.folder / "metrics.jsonl"
        if not cluster.first() or not path.is_file():
            return
        kept = []
        *lines, _ = path.read_bytes().split(b"\n")  # behind the last end of a line: one cut short by a kill
        for number, line in enumerate(lines, start=1):
            try:
                at = json.loads(line)["step"]
                if at > step:
                    break
                kept.append(line.decode() + "\n")
            except (ValueError, KeyError, TypeError, RecursionError):
                raise InputError(
                    f"{path}, line {number} is damaged; remove that line, and start the same command again."
                ) from None
        run_files.replace(path, "".join(kept))


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Holds a folder against other processes; a process that dies lets go of it."""
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise InputError(
            f"{folder} is in use by another process; wait until it has ended, or give another --run-dir."
        ) from None
    except NotImplementedError:  # some network file systems
        console.warn(f"{folder} cannot be locked there; see that no other process trains in it.")
    try:
        yield
    finally:
        lock.release()


def wait_until_free(folder: Path, seconds: float) -> None:
    """Waits, up to so long, for a process that still holds a run folder."""
    if (folder / LOCK).is_file():
        lock = filelock.FileLock(folder / LOCK)
        with contextlib.suppress(filelock.Timeout, NotImplementedError), lock.acquire(timeout=seconds):
            pass

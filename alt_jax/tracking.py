"""Where else the records of `metrics.jsonl` go: TensorBoard by default, Weights & Biases and MLflow by choice.

`tracking` in the config names them, and a run may change it when it goes on. `metrics.jsonl` stays the truth: what a
tracker shows is made of the same records, and a step that is done again after a kill is not shown twice. Only the first
process tracks. Weights & Biases and MLflow are set up as everywhere, by their own environment variables; the ids of
their runs are kept in RUN/tracking.json, so that a run that goes on, goes on there.
"""

import contextlib
import importlib
import importlib.util
import json
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from alt_jax import cluster, console
from alt_jax.config import Tracker
from alt_jax.errors import InputError, first_line
from alt_jax.run import Run
from alt_jax.run_files import write_json

PROJECT = "alt-jax"  # of Weights & Biases, and MLflow's experiment, where their variables name no other
_IDS = "tracking.json"
_PACKAGES: dict[Tracker, str] = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
Log = Callable[[list[dict[str, Any]]], None]


class _Open(Protocol):
    """A tracker that takes records."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Shows values of a step."""
        ...

    def flush(self) -> None:
        """Hands on what was logged."""
        ...

    def close(self, finished: bool) -> None:
        """Ends; `finished`, or it will go on."""
        ...


def check(trackers: Iterable[Tracker]) -> None:
    """Refuses trackers that are not installed, before a run folder is made.

    Raises:
      InputError: One is not.
    """
    for name in trackers:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise InputError(f"--tracking {name} needs a package; install it with pip install 'alt-jax[{name}]'.")


@contextlib.contextmanager
def tracked(run: Run, step: int) -> Iterator[Log]:
    """Yields what takes records: it appends them to `metrics.jsonl` and shows them wherever the config says.

    Args:
      run: Its folder, whose `metrics.jsonl` ends with `step` (`Run.rewind`).
      step: Updates before: 0, or of the checkpoint that the run goes on from.

    Raises:
      InputError: A tracker cannot be opened.
    """
    opened: list[_Open] = []
    with cluster.together():
        if cluster.first():
            opened = [_OPEN[name](run, step) for name in run.config.tracking]

    def log(records: list[dict[str, Any]]) -> None:
        run.log(records)
        for tracker in opened:
            for record in records:
                values = {name: value for name, value in record.items() if name != "step" and _shown(value)}
                tracker.log(record["step"], values)
            tracker.flush()

    finished = False
    try:
        yield log
        finished = True
    finally:
        for tracker in opened:
            tracker.close(finished)


def _shown(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


class _TensorBoard:
    """Scalars in RUN/tensorboard, one file for every start; written at once, not by a thread."""

    def __init__(self, run: Run, step: int) -> None:
        # Imported like the other trackers, by who tracks: what scores has no use for it.
        writer, proto, summary = (
            importlib.import_module(f"tensorboardX.{name}")
            for name in ("event_file_writer", "proto.event_pb2", "summary")
        )
        self._event, self._summary = proto.Event, summary.scalar
        folder = run.folder / "tensorboard"
        folder.mkdir(exist_ok=True)
        # Two starts may fall into one second, which is all that the writer's own name tells.
        self._events = writer.EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        # What an earlier start has shown from here on goes: TensorBoard reads it so.
        self._write(proto.Event(step=step + 1, session_log=proto.SessionLog(status=proto.SessionLog.START)))
        self.flush()

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._write(self._event(step=step, summary=self._summary(name, value)))

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._events.write_event(event)

    def flush(self) -> None:
        self._events.flush()

    def close(self, finished: bool) -> None:
        self._events.close()


class _WandB:
    """A run of Weights & Biases."""

    def __init__(self, run: Run, step: int) -> None:
        wandb = importlib.import_module("wandb")
        found = _ids(run).get("wandb") or {"id": secrets.token_hex(4)}
        _keep(run, wandb=found)
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=run.folder.name,
                id=found["id"],
                resume="allow",
                dir=str(run.folder),
                config=run.config.flat(),
                settings=wandb.Settings(silent=True) if console.is_json() else None,
            )
        except wandb.Error as error:
            raise InputError(f"--tracking wandb cannot be opened: {first_line(error)}") from None

    def log(self, step: int, values: dict[str, float]) -> None:
        # A step that is done again has the same values; the service takes no step twice.
        if step >= self._run.step:
            self._run.log(values, step=step)

    def flush(self) -> None:
        """It is sent by a process of its own."""

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class _MLflow:
    """A run of MLflow."""

    def __init__(self, run: Run, step: int) -> None:
        self._mlflow = importlib.import_module("mlflow")
        self._failure = self._mlflow.exceptions.MlflowException
        self._client, self._batch, self._last = self._mlflow.MlflowClient(), list[Any](), dict[str, int]()
        found = _ids(run).get("mlflow")
        try:
            self._id = self._begin(run) if found is None else found["run_id"]
            if found is not None:
                self._client.update_run(self._id, status="RUNNING")
                last = {name: self._client.get_metric_history(self._id, name) for name in self._metrics()}
                self._last = {name: max(point.step for point in points) for name, points in last.items()}
        except self._failure as error:
            raise InputError(f"--tracking mlflow cannot be opened: {first_line(error)}") from None

    def _begin(self, run: Run) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        where = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        made: str = self._client.create_run(where, run_name=run.folder.name).info.run_id
        _keep(run, mlflow={"run_id": made})
        params = [self._mlflow.entities.Param(key, str(value)[:500]) for key, value in run.config.flat().items()]
        for low in range(0, len(params), 100):  # as many as a request may have
            self._client.log_batch(made, params=params[low : low + 100])
        return made

    def _metrics(self) -> list[str]:
        return list(self._client.get_run(self._id).data.metrics)

    def log(self, step: int, values: dict[str, float]) -> None:
        now = int(1000 * time.time())
        for name, value in values.items():
            key = re.sub(r"[^\w\-. /]", "_", name)
            if step > self._last.get(key, -1):
                self._batch.append(self._mlflow.entities.Metric(key, value, now, step))

    def flush(self) -> None:
        try:
            for low in range(0, len(self._batch), 1000):  # as many as a request may have
                self._client.log_batch(self._id, metrics=self._batch[low : low + 1000])
        except self._failure as error:  # training is worth more than a server that is away for a while
            console.warn(f"MLflow took no metrics ({first_line(error)}); they are in metrics.jsonl.")
        self._batch = []

    def close(self, finished: bool) -> None:
        try:
            self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")
        except self._failure as error:
            console.warn(f"MLflow was not told that the run has ended ({first_line(error)}).")


_OPEN: dict[Tracker, Callable[[Run, int], _Open]] = {"tensorboard": _TensorBoard, "wandb": _WandB, "mlflow": _MLflow}


def _ids(run: Run) -> dict[str, Any]:
    path: Path = run.folder / _IDS
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); remove it to begin new runs there.") from None
    if not isinstance(found, dict) or not all(isinstance(value, dict) for value in found.values()):
        raise InputError(f"{path} is damaged; remove it to begin new runs there.")
    return found


def _keep(run: Run, **ids: dict[str, str]) -> None:
    write_json(run.folder / _IDS, _ids(run) | ids)

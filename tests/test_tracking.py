import dataclasses
import json
import struct
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from alt_jax import tracking
from alt_jax.bridge import encoder_config
from alt_jax.config import Config
from alt_jax.data.dataset import Dataset
from alt_jax.errors import InputError
from alt_jax.run import Origin, Run
from alt_jax.tracking import tracked


@pytest.fixture
def open_run(tmp_path: Path, tiny_config: Config, tiny_dataset: Dataset) -> Callable[..., Run]:
    def start(*trackers: str) -> Run:
        config = tiny_config.override({"tracking": trackers})
        encoder = encoder_config(config.text, tiny_dataset.schema)
        return Run(tmp_path / "run", Origin("pretrain"), config, tiny_dataset.schema, encoder).start()

    return start


def go(run: Run, first: int, last: int) -> None:
    """Logs steps first to last of a start that went on from the step before."""
    run.rewind(first - 1)
    with tracked(run, first - 1) as log:
        log(
            [{"step": step, "loss": 1 / step, "odd (%)": float("nan"), "none": None} for step in range(first, last + 1)]
        )


def events(folder: Path) -> list[Any]:
    """All events in the order in which TensorBoard reads them: TFRecords are length, checksum, data, checksum."""
    found = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def on_the_board(folder: Path) -> list[tuple[int, str, float]]:
    """Scalars that TensorBoard shows: a start takes what was shown from its step on away."""
    shown: list[tuple[int, str, float]] = []
    for event in events(folder):
        if event.session_log.status == SessionLog.START:
            shown = [point for point in shown if point[0] < event.step]
        shown += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return shown


def test_tensorboard_shows_every_step_once(open_run: Callable[..., Run]) -> None:
    run = open_run("tensorboard")
    go(run, 1, 7)
    go(run, 5, 6)
    shown = on_the_board(run.folder / "tensorboard")
    logged = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert shown == [(r["step"], "loss", pytest.approx(r["loss"])) for r in logged]
    assert [step for step, _, _ in shown] == [1, 2, 3, 4, 5, 6]


def test_tensorboard_has_it_before_the_end(open_run: Callable[..., Run]) -> None:
    """So that a kill loses nothing of it."""
    run = open_run("tensorboard")
    with tracked(run, 0) as log:
        log([{"step": 1, "loss": 0.5}])
        assert on_the_board(run.folder / "tensorboard") == [(1, "loss", 0.5)]


def test_none_leaves_nothing(open_run: Callable[..., Run]) -> None:
    run = open_run()
    go(run, 1, 2)
    assert not (run.folder / "tensorboard").exists()
    assert len((run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 2


def test_a_run_may_change_its_trackers(open_run: Callable[..., Run]) -> None:
    open_run("tensorboard")
    open_run()


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"install it with pip install 'alt-jax\[wandb\]'"):
        tracking.check(("wandb",))


class FakeWandB(types.ModuleType):
    """Keeps what it is given, by the run's id; a step is taken once."""

    Error = type("Error", (Exception,), {})

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: dict[str, list[tuple[int, dict[str, float]]]] = {}
        self.ended: list[int] = []

    def init(self, *, id: str, resume: str, **_: Any) -> Any:
        assert resume == "allow"
        kept = self.runs.setdefault(id, [])
        self.step = kept[-1][0] + 1 if kept else 0

        def finish(exit_code: int) -> None:
            self.ended.append(exit_code)

        return types.SimpleNamespace(
            step=self.step,
            log=lambda values, step: kept.append((step, values)),
            finish=finish,
        )


def test_wandb_goes_on_with_its_run(open_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run = open_run("wandb")
    go(run, 1, 3)
    go(run, 2, 4)
    (name,) = fake.runs
    assert json.loads((run.folder / "tracking.json").read_text(encoding="utf-8")) == {"wandb": {"id": name}}
    assert fake.runs[name] == [(step, {"loss": 1 / step}) for step in (1, 2, 3, 4)]
    assert fake.ended == [0, 0]


@dataclasses.dataclass
class Point:
    key: str
    value: float
    timestamp: int
    step: int


class FakeMLflow(types.ModuleType):
    """One server."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.failing, self.points, self.status = False, list[Point](), list[str]()
        self.exceptions = types.SimpleNamespace(MlflowException=type("MlflowException", (Exception,), {}))
        self.entities = types.SimpleNamespace(Metric=Point, Param=lambda key, value: (key, value))

    def MlflowClient(self) -> "FakeMLflow":  # noqa: N802
        return self

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str) -> str:
        return name

    def create_run(self, experiment: str, run_name: str) -> Any:
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=f"{experiment}/{run_name}"))

    def update_run(self, run: str, status: str) -> None:
        self.status.append(status)

    def get_run(self, run: str) -> Any:
        return types.SimpleNamespace(data=types.SimpleNamespace(metrics={point.key: 0 for point in self.points}))

    def get_metric_history(self, run: str, name: str) -> list[Point]:
        return [point for point in self.points if point.key == name]

    def log_batch(self, run: str, metrics: Any = (), params: Any = ()) -> None:
        assert run == "alt-jax/run"
        assert len(params) <= 100
        if self.failing:
            raise self.exceptions.MlflowException("away")
        self.points += metrics

    def set_terminated(self, run: str, status: str) -> None:
        self.status.append(status)


def test_mlflow_goes_on_with_its_run(
    open_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    run = open_run("mlflow")
    go(run, 1, 3)
    go(run, 2, 4)
    assert [(point.key, point.step, point.value) for point in fake.points] == [("loss", s, 1 / s) for s in (1, 2, 3, 4)]
    fake.failing = True
    go(run, 5, 5)
    assert "MLflow took no metrics (away)" in capsys.readouterr().err
    assert fake.status == ["FINISHED", "RUNNING", "FINISHED", "RUNNING", "FINISHED"]


@pytest.mark.parametrize("content", ["{", "[]", '{"wandb": 1}'])
def test_damaged_ids_are_refused(open_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setitem(sys.modules, "wandb", FakeWandB())
    run = open_run("wandb")
    (run.folder / "tracking.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"tracking\.json"), tracked(run, 0):
        pass

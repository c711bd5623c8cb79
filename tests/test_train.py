import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_runs import config_file, longer, trained

from alt_jax import cli, stages
from alt_jax import train as loop
from alt_jax.bridge import encoder_config
from alt_jax.checkpoint import Checkpoints, load_params, saved_steps
from alt_jax.config import Config
from alt_jax.data.batches import Batch, batch_at
from alt_jax.data.dataset import Dataset, Rows
from alt_jax.data.prepare import prepare
from alt_jax.data.prompt import Pieces
from alt_jax.errors import InputError, Stopped
from alt_jax.objectives import Mean
from alt_jax.optim import averaged
from alt_jax.pretraining import Pretrain
from alt_jax.run import Origin, Run
from alt_jax.sharding import make_mesh, replicate
from alt_jax.train import Plan, Progress, train

PER_EPOCH = 4
BATCH = 16
GRACE_S = 30  # what Kubernetes gives a process to end after SIGTERM


class Noisy:
    """Least squares with a random weight per row: a loss that depends on the batch, the step and the key."""

    def init(self, key: jax.Array) -> dict[str, Any]:
        return {"w": jax.random.normal(key, (2,))}

    def loss(self, params: Any, pieces: Pieces, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, Mean]]:
        error = batch.values.astype(jnp.float32) @ params["w"] - batch.label
        weight = jax.random.uniform(key, error.shape)
        mean = Mean(jnp.sum(weight * error**2), jnp.sum(weight))
        return mean.value, {"loss": mean}


@pytest.fixture
def rows() -> Rows:
    rng = np.random.default_rng(0)
    n = PER_EPOCH * BATCH
    return Rows(
        rng.integers(0, 5, (n, 2)).astype(np.int32), rng.integers(0, 2, n).astype(np.uint8), np.arange(n, dtype="i8")
    )


@pytest.fixture
def open_run(tmp_path: Path, tiny_config: Config, tiny_dataset: Dataset) -> Callable[[str], Run]:
    def start(name: str) -> Run:
        encoder = encoder_config(tiny_config.text, tiny_dataset.schema)
        return Run(tmp_path / name, Origin("finetune", "ctr"), tiny_config, tiny_dataset.schema, encoder).start()

    return start


Fit = Callable[..., tuple[Any, Progress]]


@pytest.fixture
def fit(rows: Rows, tiny_dataset: Dataset) -> Fit:
    """`fit(run, plan, evaluate)`: the loop on the toy task."""
    task, mesh = Noisy(), make_mesh()
    pieces = replicate(mesh, tiny_dataset.pieces)

    def go(
        run: Run,
        evaluate: Callable[[Any], dict[str, float]] | None = None,
        rows: Rows = rows,
        task: Noisy = task,
        optimizer: optax.GradientTransformation | None = None,
        **plan: Any,
    ) -> tuple[Any, Progress]:
        chosen = Plan(**{"batch_size": BATCH, "epochs": 3, "seed": 0, **plan})
        with Checkpoints(run.folder) as checkpoints:
            params = task.init(jax.random.key(0))
            how = optimizer or optax.adam(1e-2)
            return train(task, run, checkpoints, mesh, rows, pieces, params, how, chosen, evaluate=evaluate)

    return go


def records(run: Run | Path) -> list[dict[str, Any]]:
    folder = run if isinstance(run, Path) else run.folder
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def without_speed(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in record.items() if name != "rows_per_s"} for record in found]


def assert_same(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))


def test_step_n_is_n_updates(open_run: Callable[[str], Run], fit: Fit) -> None:
    run = open_run("run")
    params, _ = fit(run, epochs=2)
    assert [record["step"] for record in records(run)] == list(range(1, 2 * PER_EPOCH + 1))
    saved, step = load_params(run.folder)
    assert step == 2 * PER_EPOCH
    assert_same(saved, jax.tree.map(np.asarray, params))
    assert all(np.isfinite(record["loss"]) and record["grad_norm"] > 0 for record in records(run))


def test_an_epoch_ends_with_the_update_that_holds_its_last_row(
    open_run: Callable[[str], Run], fit: Fit, rows: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    """67 rows in batches of 16: 4.2, 8.4, 12.6 updates; a batch may hold rows of two epochs."""
    run, more = open_run("run"), Rows(*(np.concatenate([array, array[:3]]) for array in rows[:3]))
    _, progress = fit(run, scores([0.5, 0.6, 0.7]), rows=more)
    assert [record["step"] for record in records(run) if "valid/auc" in record] == [5, 9, 13]
    assert records(run)[-1] == {"step": 13, "valid/auc": 0.7}
    assert progress.best_step == 13
    compiling, compiled, *epochs = capsys.readouterr().out.splitlines()
    assert compiling == "compiling…"
    assert compiled.startswith("compiled in ")
    assert [line.split()[1] for line in epochs] == ["1/3", "2/3", "3/3"]


def scores(values: list[float], then: Callable[[int], None] = lambda count: None) -> Callable[[Any], dict[str, float]]:
    """An evaluation with prescribed outcomes."""
    left = list(values)

    def evaluate(params: Any) -> dict[str, float]:
        then(len(left))
        return {"auc": left.pop(0)}

    return evaluate


def test_stops_after_patience_and_keeps_the_best(open_run: Callable[[str], Run], fit: Fit) -> None:
    run = open_run("run")
    _, progress = fit(run, scores([0.6, 0.8, 0.7, 0.8, 0.9]), epochs=5, patience=2)
    assert progress == Progress(best_step=2 * PER_EPOCH, best_score=0.8, waited=2)
    assert records(run)[-1] == {"step": 4 * PER_EPOCH, "valid/auc": 0.8}
    assert load_params(run.folder, progress.best_step)[1] == 2 * PER_EPOCH
    assert load_params(run.folder)[1] == 4 * PER_EPOCH


@pytest.mark.parametrize(
    ("positives", "said"),
    [(0, r"\(one class\); prepare it otherwise"), (3, r"\(all scores are equal\); lower the learning rate")],
)
def test_undefined_validation_auc_is_refused(
    open_run: Callable[[str], Run], fit: Fit, positives: int, said: str
) -> None:
    """In one sentence that says why it is; nothing is saved that could be taken for the best."""
    run = open_run("run")
    with pytest.raises(InputError, match=rf"undefined at step {PER_EPOCH} {said}"):
        fit(run, lambda params: {"auc": float("nan"), "rows": 9, "positives": positives})
    assert saved_steps(run.folder) == []


def stop(number: signal.Signals, at: int) -> Callable[[int], None]:
    """Sends the process a signal when `at` evaluations are left."""
    return lambda left: os.kill(os.getpid(), number) if left == at else None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(
    open_run: Callable[[str], Run], fit: Fit, number: signal.Signals
) -> None:
    outcome = [0.9, 0.5, 0.6, 0.7]
    whole, whole_progress = fit(open_run("whole"), scores(outcome), epochs=4, patience=9)

    run = open_run("stopped")
    handler = signal.getsignal(number)
    with pytest.raises(Stopped, match=f"{number.name} at step {2 * PER_EPOCH} of {4 * PER_EPOCH}, saved"):
        fit(run, scores(outcome, stop(number, at=3)), epochs=4, patience=9)
    assert signal.getsignal(number) is handler
    run.log([{"step": 2 * PER_EPOCH + 1, "loss": 1.0}])  # as if it had been killed a little later
    params, progress = fit(run, scores(outcome[2:]), epochs=4, patience=9)
    assert_same(params, whole)
    assert progress == whole_progress
    assert progress.best_step == PER_EPOCH
    load_params(run.folder, progress.best_step)  # the best was made before the stop and is still there
    assert without_speed(records(run)) == without_speed(records(open_run("whole")))


def test_the_mean_of_the_parameters_is_validated_and_kept_and_what_is_trained_goes_on(
    open_run: Callable[[str], Run], fit: Fit
) -> None:
    mean = averaged(optax.adam(1e-2), 0.9)
    seen: list[Any] = []

    score = scores([0.5, 0.6, 0.7])

    def validate(params: Any) -> dict[str, float]:
        seen.append(np.asarray(params["w"]))
        return score(params)

    whole, _ = fit(open_run("whole"), validate, optimizer=mean)
    last, _ = fit(open_run("plain"))
    assert np.abs(np.asarray(whole["w"]) - np.asarray(last["w"])).max() > 1e-3
    np.testing.assert_array_equal(seen[-1], whole["w"])
    assert_same(load_params(open_run("whole").folder)[0], jax.tree.map(np.asarray, whole))

    run = open_run("stopped")
    with pytest.raises(Stopped):
        fit(run, scores([0.5, 0.6, 0.7], stop(signal.SIGTERM, at=2)), optimizer=mean)
    np.testing.assert_array_equal(load_params(run.folder)[0]["w"], seen[len(saved_steps(run.folder)) - 1])
    resumed, _ = fit(run, scores([0.5, 0.6, 0.7][len(saved_steps(run.folder)) :]), optimizer=mean)
    assert_same(resumed, whole)
    assert without_speed(records(run)) == without_speed(records(open_run("whole")))


@pytest.mark.parametrize("damage", ["cut", "flipped", "lost"])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(
    open_run: Callable[[str], Run], fit: Fit, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run then ends as if nothing had happened."""
    whole, run = open_run("whole"), open_run("run")
    expected, _ = fit(whole, epochs=4)
    with pytest.raises(Stopped):
        fit(run, scores([0.5] * 4, stop(signal.SIGTERM, at=2)), epochs=4)
    assert saved_steps(run.folder) == [PER_EPOCH, 2 * PER_EPOCH, 3 * PER_EPOCH]
    newest = run.folder / "checkpoints" / str(3 * PER_EPOCH)
    file = max((path for path in newest.glob("params/**/*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "lost":
        file.unlink()
    else:
        file.write_bytes(content[:-1] if damage == "cut" else content)
    params, _ = fit(run, scores([0.5] * 4), epochs=4)
    assert_same(params, expected)
    said = capsys.readouterr()
    assert f"resumed at step {2 * PER_EPOCH}" in said.out
    assert f"Checkpoint {newest} is damaged" in said.err
    assert "it was moved to" in said.err
    assert (run.folder / "damaged" / f"{newest.name}-0").is_dir()
    losses = [[record for record in without_speed(records(r)) if "loss" in record] for r in (run, whole)]
    assert losses[0] == losses[1]


def test_where_every_checkpoint_is_damaged_the_run_begins_anew(open_run: Callable[[str], Run], fit: Fit) -> None:
    run = open_run("run")
    expected, _ = fit(run, epochs=2)
    for step in saved_steps(run.folder):
        (run.folder / "checkpoints" / str(step) / "checksums.json").write_text("{")
    params, _ = fit(run, epochs=2)
    assert_same(params, expected)
    assert [record["step"] for record in records(run)] == list(range(1, 2 * PER_EPOCH + 1))


@pytest.mark.parametrize("devices", [1, 8])
def test_a_run_takes_its_first_parameters_over(devices: int) -> None:
    """There is one copy of them: a model that fills a device is not held twice. NumPy's arrays stay the caller's."""
    mesh = make_mesh(jax.local_devices()[:devices])
    for given in (np.ones((300, 1000), np.float32), replicate(mesh, np.ones((300, 1000), np.float32))):
        state = loop.initial_state(mesh, {"w": given}, optax.sgd(0.1))
        np.testing.assert_array_equal(state.params["w"], 1)
        if isinstance(given, jax.Array):
            assert given.is_deleted()
        else:
            jax.block_until_ready(jax.jit(lambda w: w + 1, donate_argnums=0)(state.params["w"]))
            np.testing.assert_array_equal(given, 1)


def test_a_run_that_goes_on_needs_no_first_parameters(
    tmp_path: Path, tiny_config: Config, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the memory for them, nor the pretraining that they came from."""
    config = tiny_config.override({"finetune.ctr.epochs": 2})
    pretrained, run = tmp_path / "pretrained", tmp_path / "run"
    shutil.copytree(trained(tiny_config).pretrain, pretrained)
    validate = stages.report

    def stop_after(*arguments: Any) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return validate(*arguments)

    monkeypatch.setattr(stages, "report", stop_after)
    with pytest.raises(Stopped):
        stages.finetune(config, "ctr", pretrained, run)
    shutil.rmtree(pretrained)
    monkeypatch.setattr(stages, "report", validate)
    monkeypatch.setattr(stages, "jit_init", lambda *_: pytest.fail("fresh parameters were made"))
    stages.finetune(config, "ctr", pretrained, run)
    assert [record["step"] for record in records(run) if "loss" in record] == list(range(1, 61))


def test_patience_counts_across_a_stop(open_run: Callable[[str], Run], fit: Fit) -> None:
    run = open_run("run")
    with pytest.raises(Stopped):
        fit(run, scores([0.9, 0.5], stop(signal.SIGTERM, at=1)), epochs=9, patience=2)
    _, progress = fit(run, scores([0.6]), epochs=9, patience=2)
    assert progress == Progress(PER_EPOCH, 0.9, 2)
    fit(run, scores([]), epochs=9, patience=2)  # and once more: nothing is left to do
    assert records(run)[-1]["step"] == 3 * PER_EPOCH


def test_checkpoints_within_an_epoch(open_run: Callable[[str], Run], fit: Fit) -> None:
    """A run that dies between two checkpoints loses no more than the steps since the last."""

    def die(left: int) -> None:
        raise RuntimeError("the power is gone")

    run = open_run("run")
    with pytest.raises(RuntimeError, match="power"):
        fit(run, scores([0.5], die), checkpoint_every=3)
    params, _ = fit(run, scores([0.5, 0.6, 0.7]), checkpoint_every=3)
    whole, _ = fit(open_run("whole"), scores([0.5, 0.6, 0.7]))
    assert_same(params, whole)
    assert without_speed(records(run)) == without_speed(records(open_run("whole")))


def test_the_host_is_a_few_steps_ahead_at_most(open_run: Callable[[str], Run]) -> None:
    """Else a signal would wait for all that has been handed to the device."""

    class UnderWay:
        done = False

        def __array__(self, *_: Any, **__: Any) -> np.ndarray:
            self.done = True
            return np.ones(())

    watch = Mock(loop._Watch)
    watch.meter = Mock()
    log, steps = loop._Log(open_run("ahead").log, 8, Mock(loop._Nonfinite), watch), [UnderWay() for _ in range(20)]
    for step, metric in enumerate(steps):
        mean = Mean(cast(Any, metric), jnp.ones(()))
        log.add(step, {"loss": mean, "grad_norm": mean})
        assert [metric.done for metric in steps[: step + 1]].count(False) <= 4


class Breaks(Noisy):
    """Its loss is not a number where a label is 7."""

    def loss(self, params: Any, pieces: Pieces, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, Mean]]:
        value, metrics = super().loss(params, pieces, batch, key)
        value *= jnp.where(jnp.any(batch.label == 7), jnp.nan, 1)
        return value, metrics | {"loss": Mean(value, jnp.ones(()))}


def with_bad(rows: Rows, steps: list[int]) -> Rows:
    """The rows, of which one in each of these updates of the first epoch breaks `Breaks`."""
    bad = rows._replace(labels=np.array(rows.labels))
    for step in steps:
        batch = batch_at(rows._replace(labels=np.arange(len(rows.labels))), seed=0, step=step - 1, batch_size=BATCH)
        bad.labels[int(batch.label[3])] = 7
    return bad


def test_an_update_that_is_not_finite_stops_the_run(open_run: Callable[[str], Run], fit: Fit, rows: Rows) -> None:
    """It is found before anything of it is saved, and its batch is kept."""
    run, bad = open_run("run"), with_bad(rows, [3])
    with pytest.raises(InputError, match=r"step 3: grad_norm, loss not finite; the batch is in .*step-3\.npz.*skip"):
        fit(run, rows=bad, task=Breaks(), checkpoint_every=1)
    assert saved_steps(run.folder) == [1, 2]
    with np.load(run.folder / "nonfinite" / "step-3.npz") as kept:
        expected = batch_at(bad, seed=0, step=2, batch_size=BATCH)
        for name, array in kept.items():
            np.testing.assert_array_equal(array, getattr(expected, name))
    params, _ = load_params(run.folder)
    assert np.isfinite(params["w"]).all()
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]  # the bad one as well, whose loss is null
    assert lines[-1]["loss"] is None


def test_an_update_that_is_not_finite_can_be_left_out(
    open_run: Callable[[str], Run], fit: Fit, rows: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parameters and the optimiser's state are as if it had not been."""
    run = open_run("run")
    with pytest.raises(Stopped):
        fit(
            run,
            scores([0.5] * 3, stop(signal.SIGTERM, at=3)),
            rows=with_bad(rows, [4]),
            task=Breaks(),
            nonfinite="skip",
        )
    whole = open_run("whole")
    fit(whole, scores([0.5] * 3), rows=rows, checkpoint_every=3, epochs=1)
    assert_same(load_params(run.folder, 4)[0], load_params(whole.folder, 3)[0])
    assert "step 4: grad_norm, loss not finite" in capsys.readouterr().err
    assert [record["loss"] is None for record in records(run) if "loss" in record] == [False, False, False, True]


def test_where_nothing_is_finite_leaving_out_ends(open_run: Callable[[str], Run], fit: Fit, rows: Rows) -> None:
    bad = rows._replace(labels=np.full_like(rows.labels, 7))
    with pytest.raises(InputError, match=r"step 10: .* and so are the 9 before; lower the learning rates"):
        fit(open_run("run"), rows=bad, task=Breaks(), nonfinite="skip")


@pytest.mark.parametrize(("batch", "said"), [(15, "multiple of 2"), (80, "larger than the 64 training rows")])
def test_batch_that_does_not_fit_is_refused(open_run: Callable[[str], Run], fit: Fit, batch: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        fit(open_run("run"), batch_size=batch)


# With the real tasks.


def test_pretraining_and_joint_learn(tiny_config: Config, tiny_dataset: Dataset) -> None:
    runs = trained(tiny_config)
    log = records(runs.pretrain)
    for name in ("loss", "icl", "mlm", "mtm"):
        first, last = (np.mean([record[name] for record in part]) for part in (log[:10], log[-10:]))
        assert last < first, name
    assert {"bce/ctr", "bce/plm", "bce/joint", "grad_norm", "rows_per_s"} <= records(runs.joint)[0].keys()


def test_a_run_is_the_same_wherever_its_shards_lie(tmp_path: Path, tiny_config: Config) -> None:
    """In a folder and behind a URL, where memory holds two of five shards at a time; and it can be evaluated."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    results, built = [], []
    for number, place in enumerate([str(tmp_path / "prepared"), "memory://bucket/prepared"]):
        data = {"data.dir": place, "data.shard_rows": 100, "data.memory_gib": 2 * 100 * 29 / 2**30}
        config = tiny_config.override({**data, "finetune.ctr.epochs": 2})
        dataset = prepare(config)
        assert len(Dataset.load(place, config.data.memory_gib).train.windows.sizes) == 5
        built.append(Pretrain.build(config, dataset, encoder_config(config.text, dataset.schema)))
        run = tmp_path / f"run{number}"
        results.append((stages.finetune(config, "ctr", None, run), load_params(run)))
        assert stages.to_json(stages.evaluate([run], "test")) == stages.to_json(results[-1][0]["test"])
    assert all(result.pop("machine")["seconds"] > 0 for result, _ in results)
    assert json.dumps(results[0][0]) == json.dumps(results[1][0])
    assert_same(results[0][1], results[1][1])
    for name in ("maskable", "lengths", "counts"):
        np.testing.assert_array_equal(getattr(built[0], name), getattr(built[1], name))
    files.store.clear()


def start(arguments: list[str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as file:
        return subprocess.Popen([sys.executable, "-m", "alt_jax", *arguments], stdout=file, stderr=file)


def wait_for_checkpoint(run: Path, after: int, process: "subprocess.Popen[bytes]", log: Path) -> int:
    """Step of the first whole checkpoint beyond `after`."""
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        found = [int(path.name) for path in run.glob("checkpoints/*") if path.name.isdigit()]
        if found and max(found) > after:
            return max(found)
        assert process.poll() is None, log.read_text(encoding="utf-8")
        time.sleep(0.005)
    process.kill()
    process.wait()
    raise AssertionError(f"no checkpoint: {log.read_text(encoding='utf-8')}")


@pytest.mark.slow
def test_killed_and_stopped_pretraining_ends_like_an_undisturbed_one(
    tmp_path: Path,
    tiny_config: Config,
    tiny_dataset: Dataset,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reference = trained(tiny_config)
    config = longer(reference.config, checkpoint_every=8)
    run, log = tmp_path / "run", tmp_path / "log"
    command = ["pretrain", config_file(tmp_path, config), "--run-dir", str(run)]

    process = start(command, log)
    reached = wait_for_checkpoint(run, 0, process, log)
    process.kill()
    assert process.wait(300) == -signal.SIGKILL
    assert not (run / "result.json").exists()

    process = start(command, log)
    wait_for_checkpoint(run, reached, process, log)
    process.terminate()
    assert process.wait(GRACE_S) == 75, log.read_text(encoding="utf-8")
    saved = load_params(run)[1]  # whole, or it would be refused
    said = log.read_text(encoding="utf-8")
    assert "Traceback" not in said
    assert f"resumed at step {reached}" in said
    assert f"stopped by SIGTERM at step {saved} of 90, saved" in said

    assert cli.run(command) == 0
    assert "resumed at step" in capsys.readouterr().out
    assert_same(load_params(run), load_params(reference.pretrain))
    assert without_speed(records(run)) == without_speed(records(reference.pretrain))

    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    monkeypatch.setattr("alt_jax.stages.make_mesh", lambda: pytest.fail("a finished run needs no devices"))
    assert cli.run(command) == 0
    assert "already finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before

"""The training loop, linear: evaluate → save → next batch → step → log. Do not change the order of operations.

Step N means N updates applied. A checkpoint of step N is written after the evaluation of step N and holds its outcome,
so a run that goes on from it repeats nothing and loses nothing.
"""

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from alt_jax import cluster, console, flops, lazy
from alt_jax.checkpoint import Checkpoints
from alt_jax.config import Nonfinite
from alt_jax.data.batches import Batch, batch_at, blank, epochs_over, updates
from alt_jax.data.dataset import Rows
from alt_jax.data.prompt import Pieces, feature_ids
from alt_jax.errors import InputError, Stopped
from alt_jax.evaluate import undefined
from alt_jax.objectives import Mean
from alt_jax.optim import Schedules, rates_at, swapped
from alt_jax.progress import Meter
from alt_jax.run import Run
from alt_jax.sharding import Rules, check_batch, layout, own_rows, place, replicate, replicated, split_rows
from alt_jax.tasks import Params, Task
from alt_jax.tracking import Log, tracked

_LOG_EVERY = 50  # steps whose metrics are fetched at once
_LOG_SECONDS = 10.0  # after which they are fetched before
_TOO_MANY = 10  # updates in a row that are not finite, after which there is nothing to hope for
T = TypeVar("T")
_AHEAD = 4  # steps that the host is ahead of the devices at most: what is under way, a signal has to wait for


class State(NamedTuple):
    """What an update changes."""

    step: jax.Array
    params: Params
    optimizer: Any


@dataclass
class Progress:
    """What the loop remembers between evaluations.

    Attributes:
      best_step: Step of the best validation score so far.
      best_score: That score.
      waited: Evaluations since then.
    """

    best_step: int = 0
    best_score: float | None = None
    waited: int = 0


@dataclass(frozen=True)
class Plan:
    """How long and how to train.

    Attributes:
      batch_size: Global batch.
      epochs: Passes over the training part, at most.
      seed: Of batch order, masks, noise and dropout.
      checkpoint_every: Steps between checkpoints besides those at the ends of epochs; 0 for none.
      patience: Evaluations without improvement after which to stop.
      lazy_tables: Whether a step reads and writes only the batch's rows of the tables of ids (`alt_jax.lazy`).
      rules: Which parameters are split over the devices.
      nonfinite: Whether a loss or gradient that is not finite stops the run, or its update is left out.
    """

    batch_size: int
    epochs: int
    seed: int
    checkpoint_every: int = 0
    patience: int = 0
    lazy_tables: bool = False
    rules: Rules = ()
    nonfinite: Nonfinite = "stop"


@dataclass(frozen=True)
class Shown:
    """What a line of progress says besides what the loop knows.

    Attributes:
      stage: Its name.
      flops: Of a step (`alt_jax.flops`), or None where they are not known.
      dtype: Of the products.
      schedules: Learning rates by group of parameters.
    """

    stage: str
    flops: float | None
    dtype: str
    schedules: Schedules


def make_step(
    task: Task, optimizer: optax.GradientTransformation, *, lazy_tables: bool = False, skip_nonfinite: bool = False
) -> Callable[[State, Pieces, Batch, jax.Array], tuple[State, dict[str, Mean]]]:
    """The update, to be jitted: loss and gradients of the global batch, one optimiser step, metrics.

    The key of an update is `fold_in(key, step)`, so what is drawn does not depend on where a run was resumed or on how
    many devices there are. With `lazy_tables` only the batch's rows of the tables of ids are read and written (see
    `alt_jax.lazy`). With `skip_nonfinite` only the number of the step changes where the loss or its gradient's norm
    is not finite; XLA then keeps the states before and after it, which takes that much more memory.
    """

    def step(state: State, pieces: Pieces, batch: Batch, key: jax.Array) -> tuple[State, dict[str, Mean]]:
        key = jax.random.fold_in(key, state.step)
        rows = lazy.touched(state.params, jnp.asarray(feature_ids(pieces, batch.values))) if lazy_tables else None
        before = state if rows is None else lazy.take(state, rows)

        def loss(params: Params) -> tuple[jax.Array, dict[str, Mean]]:
            return task.loss(params if rows is None else lazy.with_rows(params, rows), pieces, batch, key)

        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(before.params)
        norm = optax.tree.norm(grads)
        metrics["grad_norm"] = Mean(norm, jnp.ones(()))
        updates, opt_state = optimizer.update(grads, before.optimizer, before.params)
        after = State(state.step + 1, optax.apply_updates(before.params, updates), opt_state)
        if skip_nonfinite:
            finite = jnp.isfinite(value) & jnp.isfinite(norm)
            after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, before._replace(step=after.step))
        return after if rows is None else lazy.put(state, after, rows), metrics

    return step


def train(
    task: Task,
    run: Run,
    checkpoints: Checkpoints,
    mesh: Mesh,
    rows: Rows,
    pieces: Pieces,
    params: Params | None,
    optimizer: optax.GradientTransformation,
    plan: Plan,
    evaluate: Callable[[Params], dict[str, float]] | None = None,
    shown: Shown | None = None,
) -> tuple[Params, Progress]:
    """Trains, or goes on with, a run.

    Args:
      task: Loss.
      run: Its folder.
      checkpoints: Of that folder.
      mesh: Devices.
      rows: Training rows.
      pieces: Prompt pieces, replicated on the mesh.
      params: Where a run that has no checkpoint yet starts; the run takes them over (`initial_state`). None for a run
        that goes on.
      optimizer: Gradient transformation.
      plan: Length, batch, seed.
      evaluate: Called at the end of every epoch with the parameters; its "auc" decides the best step and stopping.
      shown: What progress says.

    Returns:
      The last parameters, or their mean where the optimiser keeps one, and the progress with the best step.

    Raises:
      InputError: The batch does not fit the data or the devices.
      Stopped: A signal came; everything is saved.
    """
    check_batch(mesh, plan.batch_size)
    last = updates(len(rows.labels), plan.batch_size, plan.epochs)
    key = jax.random.key(plan.seed)
    own = own_rows(mesh, plan.batch_size)
    progress, step = Progress(), 0
    resumed = checkpoints.latest()
    if resumed is None:
        assert params is not None
        state = initial_state(mesh, params, optimizer, plan.rules)
    else:
        params, opt_state, loop = checkpoints.restore(resumed, *_shapes(mesh, task, optimizer, plan.rules))
        state = State(replicate(mesh, jnp.int32(resumed)), *swapped(params, opt_state))
        progress, step = Progress(**loop), resumed
        console.log(f"resumed at step {step} of {last}", step=step, last=last)
    update = _saying_compiled(
        jax.jit(
            make_step(task, optimizer, lazy_tables=plan.lazy_tables, skip_nonfinite=plan.nonfinite == "skip"),
            donate_argnums=0,
            out_shardings=(layout(mesh, state, plan.rules), replicated(mesh)),
        )
    )
    run.rewind(step)
    read = partial(batch_at, rows, seed=plan.seed, batch_size=plan.batch_size)
    trouble = cluster.Trouble()
    shown = shown or Shown("training", None, "float32", {})
    meter = Meter(shown.stage, last * plan.batch_size, step * plan.batch_size, cluster.first())

    requests = cluster.stop_requests("stopping after this step…")
    with tracked(run, step) as record, meter, jax.set_mesh(mesh), requests as requested:
        log = _Log(record, plan.batch_size, _Nonfinite(run, plan.nonfinite, read), _Watch(shown, mesh, meter))
        while True:
            fresh = step > 0 and step != resumed
            over, before = (epochs_over(len(rows.labels), plan.batch_size, n) for n in (step, step - 1))
            epoch_ends = over > before
            score = None
            if fresh and epoch_ends:
                log.flush()
                if evaluate is not None:
                    score = _evaluate(evaluate, swapped(*state[1:])[0], record, step, progress)
                log.epoch(over, plan.epochs, progress if evaluate else None)
            stop = requested()
            save = fresh and (epoch_ends or stop or (plan.checkpoint_every and step % plan.checkpoint_every == 0))
            if save or stop:
                trouble.or_else(rows.check, lambda: None)
                trouble.tell()
            if save:
                log.flush()
                checkpoints.save(step, *swapped(*state[1:]), asdict(progress), score)
            if stop:
                raise Stopped(f"stopped by {stop} at step {step} of {last}, saved")
            if step == last or (plan.patience and progress.waited >= plan.patience):
                break
            batch = split_rows(mesh, trouble.or_else(partial(read, step=step, part=own), partial(blank, rows, own)))
            state, metrics = update(state, pieces, batch, key)
            step += 1
            log.add(step, metrics)
    return swapped(*state[1:])[0], progress


def initial_state(mesh: Mesh, params: Params, optimizer: optax.GradientTransformation, rules: Rules = ()) -> State:
    """Step 0 of a run that starts from `params`, placed by the rules.

    Arrays that are on the devices already become the state's own, so that there is no second copy of a large model: the
    caller cannot use them any more.
    """

    def start(params: Params) -> State:
        return State(jnp.int32(0), params, optimizer.init(params))

    params = place(mesh, params, rules)
    places = layout(mesh, jax.eval_shape(start, params), rules)
    return jax.jit(start, donate_argnums=0, out_shardings=places)(params)


def _saying_compiled(update: Callable[..., T]) -> Callable[..., T]:
    """The update; at its first call, which compiles it, it says so, and then how long that took."""
    first = itertools.chain([True], itertools.repeat(False))

    def call(*arguments: Any) -> T:
        with console.compiling() if next(first) else contextlib.nullcontext():
            return update(*arguments)

    return call


def _shapes(mesh: Mesh, task: Task, optimizer: optax.GradientTransformation, rules: Rules) -> tuple[Any, Any]:
    """Shapes, types and places of the parameters and the optimiser's state, of which nothing is made."""
    params = jax.eval_shape(task.init, jax.random.key(0))
    shapes = params, jax.eval_shape(optimizer.init, params)

    def of(leaf: jax.ShapeDtypeStruct, place: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    found: tuple[Any, Any] = jax.tree.map(of, shapes, layout(mesh, shapes, rules))
    return found


def _evaluate(
    evaluate: Callable[[Params], dict[str, float]], params: Params, record: Log, step: int, progress: Progress
) -> float:
    found = evaluate(params)
    score = found["auc"]
    if not np.isfinite(score):
        why = undefined(found, "auc")
        mend = "prepare it otherwise" if why == "one class" else "lower the learning rate, or choose another model"
        raise InputError(
            f"The AUC of the validation part, which decides when to stop, is undefined at step {step} ({why}); {mend}."
        )
    record([{"step": step, **{f"valid/{name}": value for name, value in found.items()}}])
    if progress.best_score is None or score > progress.best_score:
        progress.best_step, progress.best_score, progress.waited = step, score, 0
    else:
        progress.waited += 1
    return score


class _Nonfinite:
    """What becomes of updates whose loss or gradient is not finite.

    They are seen a few steps later, but before anything is evaluated or saved.
    """

    def __init__(self, run: Run, policy: Nonfinite, read: Callable[..., Batch]) -> None:
        self._run, self._policy, self._read = run, policy, read
        self._in_a_row = 0

    def see(self, step: int, metrics: dict[str, Mean], finite: bool) -> None:
        """Is told of every update in turn.

        Raises:
          InputError: This one is not finite and the run is to stop, or none of the last `_TOO_MANY` was.
        """
        self._in_a_row = 0 if finite else self._in_a_row + 1
        if finite:
            return
        bad = [name for name, mean in metrics.items() if not np.isfinite(jax.device_get(mean.total))]
        what = f"step {step}: {', '.join(bad)} not finite; the batch is in {self._keep(step)}"
        if self._policy == "stop":
            raise InputError(
                f"{what}. Lower the learning rates or what else may cause it, or leave such updates out: "
                "--nonfinite skip."
            )
        if self._in_a_row == _TOO_MANY:
            raise InputError(f"{what}, and so are the {_TOO_MANY - 1} before; lower the learning rates.")
        console.warn(f"{what}; the update was left out", step=step, not_finite=bad)

    def _keep(self, step: int) -> Path:
        """Writes the batch of an update down: value ids and labels; what is drawn follows from the seed and `step`."""
        path = self._run.folder / "nonfinite" / f"step-{step}.npz"
        if cluster.first():
            batch = self._read(step=step - 1)
            path.parent.mkdir(exist_ok=True)
            np.savez(path, values=batch.values, label=batch.label, weight=batch.weight)
        return path


class _Log:
    """Collects metrics on the device and writes them in blocks."""

    def __init__(self, record: Log, batch_size: int, nonfinite: _Nonfinite, watch: "_Watch") -> None:
        self._record, self._batch_size, self._nonfinite, self._watch = record, batch_size, nonfinite, watch
        self._pending: list[tuple[int, dict[str, Mean]]] = []
        self._running: deque[tuple[int, dict[str, Mean]]] = deque()  # of these, what may still be computed
        self._since = self._epoch_since = time.perf_counter()
        self._epoch_rows = 0
        self._last: dict[str, float | None] = {}
        self._steps = 0

    def add(self, step: int, metrics: dict[str, Mean]) -> None:
        """Keeps the metrics of an update; fetches them with those before once there are enough."""
        self._pending.append((step, metrics))
        self._running.append((step, metrics))
        if len(self._running) > _AHEAD:
            self._look()
        self._steps += 1
        if self._steps == _LOG_EVERY:
            self.flush()
        elif time.perf_counter() - self._since >= _LOG_SECONDS:
            # Of those that were looked at only: processes look at each update at the same step, whatever the time.
            self._write(len(self._pending) - len(self._running))

    def flush(self) -> None:
        """Writes everything kept so far. `rows_per_s` is the mean over the block, compilation included."""
        while self._running:
            self._look()
        self._steps = 0
        self._write(len(self._pending))

    def _write(self, count: int) -> None:
        """Writes the oldest that are kept, so many."""
        if not count:
            return
        fetched = jax.device_get(self._pending[:count])
        now = time.perf_counter()
        rate = len(fetched) * self._batch_size / (now - self._since)
        self._since = now
        self._epoch_rows += len(fetched) * self._batch_size
        records = [{"step": step, **_values(metrics), "rows_per_s": round(rate, 1)} for step, metrics in fetched]
        self._record(records)
        self._last = records[-1]
        self._pending = self._pending[count:]
        self._watch.show(fetched[-1][0], self._last, rate / self._batch_size)

    def _look(self) -> None:
        """Waits for the oldest update under way."""
        step, metrics = self._running.popleft()
        sums = {name: metrics[name].total for name in ("loss", "grad_norm")}
        try:
            self._nonfinite.see(step, metrics, all(np.isfinite(x) for x in jax.device_get(sums).values()))
        except InputError:
            self._write(len(self._pending) - len(self._running))  # up to the one that the sentence is about
            raise
        self._watch.meter.advance(self._batch_size)

    def epoch(self, epoch: int, epochs: int, progress: Progress | None) -> None:
        """Says one line about an epoch."""
        now = time.perf_counter()
        shown = {
            k: v for k, v in self._last.items() if k in ("loss", "icl", "mlm", "mtm", "icl/top1_ctr_to_text") and v
        }
        parts = [f"epoch {epoch}/{epochs}", *(f"{k} {v:.4f}" for k, v in shown.items())]
        if progress is not None and progress.best_score is not None:
            parts.append(
                f"best valid AUC {progress.best_score:.4f}" + (f" ({progress.waited} ago)" if progress.waited else "")
            )
        parts.append(f"{self._epoch_rows / (now - self._epoch_since):,.0f} rows/s")
        best = None if progress is None else progress.best_score
        facts = {"epoch": epoch, "epochs": epochs, **shown, "best_valid_auc": best}
        console.log("  ".join(parts), **facts)
        self._since, self._epoch_since, self._epoch_rows = now, now, 0


class _Watch:
    """What a line of progress says of the newest update."""

    def __init__(self, shown: Shown, mesh: Mesh, meter: Meter) -> None:
        self.meter = meter
        self._schedules = shown.schedules
        self._of_peak: float | None = None  # what a step a second would be of the peak
        if meter.wanted and shown.flops is not None:
            self._of_peak = shown.flops / flops.peak(mesh, shown.dtype)

    def show(self, step: int, values: dict[str, float | None], steps_per_s: float) -> None:
        """Losses, share of the peak, learning rates."""
        if not self.meter.wanted:
            return
        self.meter.show(
            losses={name: values[name] for name in ("loss", "icl", "mlm", "mtm") if name in values},
            share_of_peak=None if self._of_peak is None else self._of_peak * steps_per_s,
            learning_rates=rates_at(self._schedules, step),
        )


def _values(metrics: dict[str, Mean]) -> dict[str, float | None]:
    """Means on the host; None where nothing was weighed."""
    return {name: float(m.total) / float(m.weight) if m.weight else None for name, m in metrics.items()}

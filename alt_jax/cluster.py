"""The processes of a run, one for each host, as JAX's multi-controller runtime has them.

Every process runs the same command and reaches the same programs in the same order. Only the first one writes to the
run folder (checkpoints aside, of which each writes what its devices hold) and to standard output. What one process
finds wrong is raised by all, so that none waits for one that has gone.
"""

import hashlib
import itertools
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from alt_jax import console, signals
from alt_jax.errors import InputError

_HEARTBEAT_S = 30  # without a sign of life after which a process is taken for dead
T = TypeVar("T")
_ADDRESS = re.compile(r"(?P<address>.+:\d+),(?P<process>\d+)/(?P<processes>\d+)")


def join(cluster: str, wait_s: int, *, saves: bool) -> None:
    """Joins the other processes; to be called before anything else is asked of JAX.

    Where they do not come together in time, this process ends with a sentence: with exit code 2 where an address was
    given, which may be wrong, and with 1 where none was and to start again may help.

    Args:
      cluster: `none`: this process is alone. `auto`: JAX finds the others by itself (TPU pods, Slurm, Open MPI, and
        indexed jobs of Kubernetes where the package `kubernetes` is there). `HOST:PORT,I/N`: this is process I of N,
        from 0, and process 0 listens at that address.
      wait_s: Seconds to wait for the others.
      saves: Whether this command saves and stops when it is sent SIGTERM (`stop_requests`); else SIGTERM ends it.

    Raises:
      InputError: `cluster` is none of these, or JAX finds no cluster.
    """
    if cluster == "none":
        return
    where: dict[str, Any] = {}
    if cluster != "auto":
        found = _ADDRESS.fullmatch(cluster)
        if not found or int(found["process"]) >= int(found["processes"]):
            raise InputError(
                f"--cluster {cluster} is neither none nor auto nor HOST:PORT,I/N with I from 0 to N - 1; correct it."
            )
        where = {
            "coordinator_address": found["address"],
            "process_id": int(found["process"]),
            "num_processes": int(found["processes"]),
        }
    jax.config.update("jax_enable_preemption_service", saves)
    # JAX ends a process that has waited in vain without a word of what to do.
    late = threading.Timer(wait_s, _give_up, [cluster, wait_s])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            **where,
            initialization_timeout=2 * wait_s + 10,
            heartbeat_timeout_seconds=_HEARTBEAT_S,
            shutdown_timeout_seconds=_HEARTBEAT_S,
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise InputError(
            f"--cluster {cluster} finds no other processes ({reason}); give HOST:PORT,I/N, or none."
        ) from None
    finally:
        late.cancel()
    sys.excepthook = _crash
    if not first():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the end


def _crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ends the process at once: at its regular end JAX would wait for the others, and they for it."""
    console.crashed(kind, error, trace)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(1)


def _give_up(cluster: str, wait_s: int) -> None:
    console.error(
        f"alt-jax: --cluster {cluster}: not all processes came together within {wait_s} s; see that each was started "
        "(hosts that start far apart need a longer --cluster-wait), that all name the same address, of process 0, and "
        "that its port can be reached."
    )
    os._exit(1 if cluster == "auto" else 2)  # the main thread is in JAX's own code, which no exception reaches


def first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def from_first(value: Any) -> Any:
    """The first process's JSON value, in all."""
    return json.loads(gather(json.dumps(value))[0])


def gather(text: str) -> list[str]:
    """The texts of all processes, in their order."""
    if jax.process_count() == 1:
        return [text]
    own = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array([len(own)])).ravel()
    padded = np.pad(own, (0, int(lengths.max()) + 1 - len(own)))
    texts = multihost_utils.process_allgather(padded).reshape(len(lengths), -1)
    return [bytes(row[:length]).decode() for row, length in zip(texts, lengths, strict=True)]


@contextmanager
def together() -> Iterator[None]:
    """An InputError of one process inside becomes one of all; they leave together."""
    error = None
    try:
        yield
    except InputError as found:
        error = found
    said = gather("" if error is None else str(error))
    if error is not None:
        raise error
    for process, text in enumerate(said):
        if text:
            raise InputError(f"process {process} of {len(said)}: {text}")


def check_same(facts: Mapping[str, object]) -> None:
    """Refuses to begin where processes would do different things; the code that they run is compared as well.

    Args:
      facts: What all have to agree on, as JSON values by name.

    Raises:
      InputError: Two processes differ; names the first difference. Raised by all.
    """
    own = {"the code of alt-jax": code_hash(), "the version of jax": jax.__version__, **facts}
    ours, *others = (json.loads(text) for text in gather(json.dumps(own, default=str)))
    for process, theirs in enumerate(others, start=1):
        for name in ours | theirs:
            if ours.get(name) != theirs.get(name):
                raise InputError(
                    f"process {process} differs from process 0 in {name}: {theirs.get(name)!r}, not "
                    f"{ours.get(name)!r}; start the same command with the same files on every host."
                )


def code_hash() -> str:
    """SHA-256 of this package's source files, shortened."""
    root, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def stop_requests(notice: str) -> Iterator[Callable[[], str | None]]:
    """Yields a function that is to be called before every step, and names the signal where to save and stop.

    Of several processes it is enough that one is sent SIGTERM (or SIGINT): JAX's preemption service carries the news,
    and they agree on a step that none has passed yet.

    Args:
      notice: What standard error says when a signal comes.
    """
    if jax.process_count() == 1:
        with signals.stop_requests(notice) as received:
            yield lambda: received[0].name if received else None
        return
    # Calls, not steps: a signal from before the first call means JAX's number 1, also where a run is resumed.
    calls = itertools.count()
    # SIGTERM is left to JAX
    with signals.stop_requests(notice, (signal.SIGINT,), pass_on=lambda: signal.raise_signal(signal.SIGTERM)):
        yield lambda: "SIGTERM" if multihost_utils.reached_preemption_sync_point(next(calls)) else None


class Trouble:
    """What one process finds wrong while the others train on: all raise it together, and nothing after it is kept."""

    def __init__(self) -> None:
        """There is none yet."""
        self._error: InputError | None = None

    def or_else(self, work: Callable[[], T], stand_in: Callable[[], T]) -> T:
        """What `work` returns, or `stand_in` where it fails; the others would wait for this process's share for ever.

        All are asked to stop then, and have to call `tell` before they save or stop.

        Raises:
          InputError: It has failed, and there are no others.
        """
        try:
            return work()
        except InputError as error:
            if jax.process_count() == 1:
                raise
            self._error = error
            signal.raise_signal(signal.SIGTERM)
            return stand_in()

    def tell(self) -> None:
        """Raises what one process has found as an InputError of all."""
        with together():
            if self._error is not None:
                raise self._error

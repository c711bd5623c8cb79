"""Training rows in memory, some shards at a time, and the next ones fetched while these are trained on."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from alt_jax.errors import InputError

_GIB = 1 << 30
Loaded = tuple[Int[np.ndarray, "n S"], UInt8[np.ndarray, " n"]]


class Window(NamedTuple):
    """Rows of an epoch that are shuffled among themselves.

    Attributes:
      shards: Numbers of the shards, in the order in which their rows are numbered here.
      first: Position of its first row in the epoch.
      rows: How many.
      key: Seeds their order.
    """

    shards: tuple[int, ...]
    first: int
    rows: int
    key: tuple[int, ...]


def shards_at_once(sizes: Sequence[int], slots: int, memory_gib: float, name: str) -> int:
    """How many shards are shuffled together: all, or as many as fit half of the memory, since two windows share it.

    A row takes 4 bytes a slot, 1 for its label and 4 for its place in an order, of which the next is drawn meanwhile.

    Args:
      sizes: Rows of every shard.
      slots: Of a row.
      memory_gib: `data.memory_gib`.
      name: Of the dataset, for messages.

    Raises:
      InputError: Not even two shards fit.
    """
    row, budget = 4 * slots + 1, memory_gib * _GIB
    if sum(sizes) * (row + 2 * 4) <= budget:
        return len(sizes)
    pair = 2 * sizes[0] * (row + 4)
    if pair > budget:
        raise InputError(
            f"Two of the shards of {name} take {pair / _GIB:.3g} GiB, more than the {memory_gib:g} of data.memory_gib; "
            "raise that, or prepare with a smaller data.shard_rows."
        )
    return int(budget // pair)


class Windows:
    """Windows of shards, of which two are in memory: the one asked for last, and the one to be asked for next.

    Attributes:
      sizes: Rows of every shard.
      per_window: Shards of a window.
    """

    def __init__(self, sizes: Sequence[int], per_window: int, read: Callable[[str, int], np.ndarray]) -> None:
        """Reads nothing yet.

        Args:
          sizes: Rows of every shard.
          per_window: Shards of a window.
          read: Reads `values` or `labels` of the shard of a number.
        """
        self.sizes, self.per_window, self._read = tuple(sizes), per_window, read
        self._held: dict[tuple[int, ...], Future[Loaded]] = {}
        self._lock = threading.Lock()

    def load(self, window: Window, then: Window, draw: Callable[[int, tuple[int, ...]], Any]) -> Loaded:
        """Values and labels of a window, the shards one behind the other.

        Args:
          window: Which one.
          then: The one after it, which is fetched in the background.
          draw: Called there with its rows and key, so that its order is drawn as well.

        Raises:
          InputError: A shard is missing or is not as it was prepared.
        """
        with self._lock:
            self._held = {key: self._held[key] for key in (window.shards, then.shards) if key in self._held}
            for wanted in (window, then):
                if wanted.shards not in self._held:
                    self._held[wanted.shards] = self._start(wanted, draw)
                loaded = self._held[window.shards].result()  # before the next is begun
            return loaded

    def _start(self, window: Window, draw: Callable[[int, tuple[int, ...]], Any]) -> "Future[Loaded]":
        future: Future[Loaded] = Future()

        def run() -> None:
            try:
                loaded = self._fetch(window)
                draw(window.rows, window.key)
                future.set_result(loaded)
            except BaseException as error:  # raised where the window is asked for
                future.set_exception(error)

        # A daemon, so that a process that is done need not wait for what it will not read.
        threading.Thread(target=run, daemon=True, name="next window").start()
        return future

    def _fetch(self, window: Window) -> Loaded:
        arrays = []
        for part in ("values", "labels"):
            whole: np.ndarray | None = None
            low = 0
            for number in window.shards:
                shard = self._read(part, number)
                if whole is None:
                    whole = np.empty((window.rows, *shard.shape[1:]), shard.dtype)
                whole[low : low + len(shard)] = shard
                low += len(shard)
            assert whole is not None
            arrays.append(whole)
        return arrays[0], arrays[1]

"""SIGTERM and SIGINT as a request: what is running saves first, and then stops."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from alt_jax import console


@contextmanager
def stop_requests(
    notice: str,
    numbers: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT),
    *,
    pass_on: Callable[[], None] = lambda: None,
) -> Iterator[list[signal.Signals]]:
    """Yields a list that the signals add themselves to; the earlier handlers come back at the end.

    Args:
      notice: What standard error says when one comes.
      numbers: The signals.
      pass_on: Called when one comes.
    """
    received: list[signal.Signals] = []

    def handler(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))
        console.warn(notice, signal=signal.Signals(number).name)
        pass_on()

    previous = [signal.signal(number, handler) for number in numbers]
    try:
        yield received
    finally:
        for number, old in zip(numbers, previous, strict=True):
            signal.signal(number, old)

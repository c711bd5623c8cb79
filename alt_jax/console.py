"""The one place where words for people go; `alt_jax.progress` draws its line below them.

As text: information to standard output, warnings and errors to standard error. As JSON (`--log-format json`): every
line, of either stream, is one object with `time` (ISO 8601, UTC), `level`, `message` and facts by name; what Python and
its libraries log or warn of comes so too.
"""

import contextlib
import datetime
import json
import logging
import math
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Literal, Protocol

Format = Literal["text", "json"]


class Bar(Protocol):
    """What stands below the words on a terminal."""

    def clear(self) -> None:
        """Takes it away."""
        ...

    def refresh(self) -> object:
        """Draws it again."""
        ...


BARS: list[Bar] = []  # that stand there now

_LOGGER = logging.getLogger("alt_jax")


def log(text: str, **facts: Any) -> None:
    """Says something on standard output; `facts` are part of the object in JSON only."""
    _LOGGER.info(text, extra={"facts": facts})


def warn(text: str, **facts: Any) -> None:
    """Says on standard error what the user may want to mend, though the command goes on."""
    _LOGGER.warning(text, extra={"facts": facts})


def error(text: str, **facts: Any) -> None:
    """Says on standard error why the command ends."""
    _LOGGER.error(text, extra={"facts": facts})


def result(text: str, title: str, **facts: Any) -> None:
    """What the command was run for: `text` on standard output, or in JSON the facts, under a title."""
    log(title if is_json() else text, **facts)


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Says that a program is compiled inside, for which there is nothing else to see, and then how long it took."""
    log("compiling…")
    began = time.perf_counter()
    yield
    seconds = round(time.perf_counter() - began, 1)
    log(f"compiled in {seconds:.1f} s", seconds=seconds)


def use(format: Format) -> None:
    """Chooses how everything is said from now on."""
    _HANDLER.setFormatter(_as_json if format == "json" else _as_text)
    logging.captureWarnings(format == "json")
    root = logging.getLogger()
    if format == "json":
        root.addHandler(_HANDLER)
        sys.excepthook = crashed
    else:
        root.removeHandler(_HANDLER)
        if sys.excepthook is crashed:
            sys.excepthook = sys.__excepthook__


def is_json() -> bool:
    """Whether lines are JSON objects."""
    return _HANDLER.formatter is _as_json


def crashed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Says what nobody expected, with its traceback: that is Python's own, or in JSON one of the facts."""
    if not is_json():
        traceback.print_exception(kind, error, trace)
        return
    said = "".join(traceback.format_exception(kind, error, trace))
    _LOGGER.critical(f"{kind.__name__}: {error}", extra={"facts": {"traceback": said}})


class _Text(logging.Formatter):
    """The words alone."""

    def format(self, record: logging.LogRecord) -> str:
        return record.getMessage()


class _Json(logging.Formatter):
    """One object; of a fact that JSON does not know its words, and null for a number that is not finite."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        found = {"time": when, "level": record.levelname.lower(), "message": record.getMessage().strip()}
        found |= getattr(record, "facts", {} if record.name == _LOGGER.name else {"logger": record.name})
        if record.exc_info:
            found["traceback"] = self.formatException(record.exc_info)
        return json.dumps(finite(found), default=str, allow_nan=False, ensure_ascii=False)


def finite(value: Any) -> Any:
    """The same for JSON, which has no NaN: a number that is not finite is null."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Handler(logging.Handler):
    """Writes to what `sys.stdout` and `sys.stderr` are when something is said; a bar makes room and comes back."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        with _aside():
            stream.write(self.format(record) + "\n")
            stream.flush()


_as_text, _as_json = _Text(), _Json()
_HANDLER = _Handler()
_HANDLER.setFormatter(_as_text)
_LOGGER.addHandler(_HANDLER)
_LOGGER.setLevel(logging.INFO)
_LOGGER.propagate = False


@contextlib.contextmanager
def _aside() -> Iterator[None]:
    """Takes what stands on the terminal away, and puts it back."""
    for bar in BARS:
        bar.clear()
    try:
        yield
    finally:
        for bar in BARS:
            bar.refresh()

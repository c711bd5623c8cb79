"""How far a stage has come: one line on a terminal, an object every ten seconds in JSON, nothing in a pipe."""

import io
import sys
import threading
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from alt_jax import console

_JSON_EVERY = 10.0  # seconds between objects
# What stands on the line, and what is left where it has no room.
_FORMS = (
    "{desc} {percentage:3.0f}% {bar} {n_fmt}/{total_fmt}  {rate_noinv_fmt}  ETA {remaining}{postfix}",
    "{desc} {percentage:3.0f}% {bar} {rate_noinv_fmt}  ETA {remaining}{postfix}",
    "{desc} {percentage:3.0f}% {rate_noinv_fmt} ETA {remaining}{postfix}",
)
# Else tqdm makes a semaphore for processes. It may be held when a signal's handler has something to say.
tqdm.set_lock(threading.RLock())


class Meter:
    """How far a stage has come, by rows. In a pipe, as text, nothing happens.

    Args:
      stage: Its name, e.g. `finetune joint`.
      rows: Of the whole stage.
      done: Of them, before.
      first: Whether this is the process that speaks.
      unit: What is counted in place of rows.
    """

    def __init__(self, stage: str, rows: int, done: int = 0, first: bool = True, unit: str = "rows") -> None:
        self._bar: _Line | _Objects | None = None
        if first and (console.is_json() or sys.stderr.isatty()):
            self._bar = (_Objects if console.is_json() else _Line)(stage, rows, done, unit)

    @property
    def wanted(self) -> bool:
        """Whether anyone sees it."""
        return self._bar is not None

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the last state on the screen."""
        if self._bar is not None:
            self._bar.close()

    def advance(self, rows: int) -> None:
        """So many more rows are done."""
        if self._bar is not None:
            self._bar.advance(rows)

    def show(
        self,
        *,
        losses: Mapping[str, float | None],
        share_of_peak: float | None = None,
        learning_rates: Mapping[str, float] | None = None,
    ) -> None:
        """What stands beside the rows from now on.

        Args:
          losses: By name.
          share_of_peak: FLOPs a second over what a large matrix product reaches.
          learning_rates: By group of parameters.
        """
        if self._bar is None:
            return
        self._bar.facts = {"share_of_peak": share_of_peak, "learning_rates": dict(learning_rates or {}), **losses}
        words = [" ".join(f"{name} {value:.3g}" for name, value in losses.items() if value is not None)]
        if share_of_peak is not None:
            words.append(f"{share_of_peak:.0%} of peak")
        if learning_rates:
            words.append("lr " + "/".join(dict.fromkeys(map(_short, learning_rates.values()))))
        self._bar.set_postfix_str("  ".join(filter(None, words)), refresh=False)


def _short(rate: float) -> str:
    """A learning rate in two digits, as 5e-5."""
    return f"{rate:.1e}".replace(".0e", "e").replace("e-0", "e-") if rate else "0"


class _Bar(tqdm):  # type: ignore[type-arg]
    """What tqdm knows of a stage. Time before the first update does not count: the program was compiled then."""

    monitor_interval = 0  # no thread

    def __init__(self, stage: str, rows: int, done: int, unit: str, file: Any, every: float) -> None:
        self.facts: dict[str, Any] = {}
        self._begun = False
        super().__init__(
            desc=stage,
            total=rows,
            initial=done,
            file=file,
            unit=f" {unit}",
            unit_scale=unit == "rows",
            miniters=1,
            mininterval=every,
            smoothing=0.05,
            ascii=" #",
            dynamic_ncols=True,
        )

    def advance(self, rows: int) -> None:
        """So many more rows are done."""
        if not self._begun:
            self._begun = True
            self.unpause()
        self.update(rows)


class _Line(_Bar):
    """A line on the terminal, below what `console` says."""

    def __init__(self, stage: str, rows: int, done: int, unit: str) -> None:
        super().__init__(stage, rows, done, unit, sys.stderr, every=0.1)
        console.BARS.append(self)

    def close(self) -> None:
        """Leaves it where it stands."""
        if self in console.BARS:
            console.BARS.remove(self)
        super().close()

    @property
    def format_dict(self) -> Any:
        """The most that has room; a bar is of 2 to 20 columns."""
        found = super().format_dict
        found["ncols"] = width = found["ncols"] or 80
        for form in _FORMS:
            bare = form.replace("{bar}", "")
            room = width - len(self.format_meter(**{**found, "ncols": None, "bar_format": bare}))
            found["bar_format"] = form.replace("{bar}", f"{{bar:{min(20, max(2, room))}}}")
            if room >= 2:
                break
        return found


class _Objects(_Bar):
    """The same in JSON."""

    def __init__(self, stage: str, rows: int, done: int, unit: str) -> None:
        super().__init__(stage, rows, done, unit, io.StringIO(), every=_JSON_EVERY)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Says it, in place of drawing it."""
        found = self.format_dict
        unit = self.unit.strip()
        rate = found["rate"] or ((self.n - self.initial) / found["elapsed"] if self._begun else 0)
        console.log(
            "progress",
            stage=self.desc,
            of=self.total,
            **{unit: self.n, f"{unit}_per_s": round(rate, 1) if rate else None},
            eta_s=round((self.total - self.n) / rate, 1) if rate else None,
            **self.facts,
        )

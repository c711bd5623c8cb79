"""The two exceptions that the command line turns into exit codes, and help with misspelt names."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

STOPPED = 75  # exit code of a run that was asked to stop, saved, and can go on: EX_TEMPFAIL of sysexits.h


class InputError(ValueError):
    """Bad input: a file, column, config value or checkpoint that cannot be used.

    The message is one clear sentence (what is wrong, where, what to do next). The command line prints it without a
    traceback and exits with code 2.
    """


class Stopped(Exception):  # noqa: N818 - not an error: the run was asked to stop, saved, and can go on
    """A signal stopped the run after it saved. The command line exits with code 75."""


def shortened(text: str, most: int = 200) -> str:
    """The text, cut where what a file holds would make a sentence endless."""
    return text if len(text) <= most else f"{text[:most]}…"


def first_line(reason: str | BaseException) -> str:
    """What others' errors say first, as a part of a sentence; of one that says nothing, its type."""
    return shortened((str(reason).strip().splitlines() or [type(reason).__name__])[0].rstrip("."))


def nearest(name: str, known: Sequence[str]) -> str:
    """A clause that helps to correct a misspelt name: the nearest known one, or all of them."""
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {shortened(', '.join(known), 1000) or 'none'}."


def choices(name: str, known: Iterable[str]) -> str:
    """The sentences that follow an unknown name where there are few to choose from: the nearest, and all of them."""
    known = list(known)
    near = get_close_matches(name, known, n=1)
    return f"{f'did you mean {near[0]!r}? ' if near else ''}Known: {', '.join(known)}."

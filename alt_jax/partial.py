"""Folders that appear in one step: written beside their place under a hidden name, and renamed when they are whole."""

import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A new folder `.NAME.….partial` beside `target`, to be filled and renamed; otherwise it goes at the end.

    What killed processes have left of theirs goes first. Whoever writes holds a lock on his folder, which he loses with
    his life; where the file system has no such locks, nobody can tell, and what was left stays.

    Raises:
      OSError: It cannot be made.
    """
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        descriptor = _held(left)
        if descriptor is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(descriptor)
    while True:
        partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
        partial.mkdir(parents=True)
        descriptor = _held(partial)
        if partial.is_dir():  # else another process took it for one that was left, just before it was held
            break
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _held(folder: Path) -> int | None:
    """A descriptor that holds the folder until it is closed; None where another has it, or there are no locks."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # gone meanwhile, or a file of that name
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a network file system without locks
        os.close(descriptor)
        return None
    return descriptor

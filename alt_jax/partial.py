"""Folders and files that appear in one step: written beside their place under a hidden name, then renamed."""

import errno
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors

from alt_jax.errors import InputError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the file system says against `path` into one sentence."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be written ({reason}); give another place.") from error


@contextmanager
def file_for(path: Path) -> Iterator[Path]:
    """A new file `.NAME.PID.partial` beside `path`, to be filled; it takes that name in the end, if nothing is raised.

    Raises:
      InputError: It cannot be made, which is found before anything else is done, or not be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
    try:
        yield partial
        with writing(path):
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


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

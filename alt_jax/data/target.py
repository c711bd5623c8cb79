"""The folder that `prepare` writes: refused early, and replaced in one step when what goes there is whole."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alt_jax.data.dataset import ENTRIES, SCHEMA
from alt_jax.errors import InputError
from alt_jax.schema import Schema


def check_target(folder: str) -> Path:
    """The folder to write, refused early if it holds anything but an earlier prepared dataset."""
    if not folder:
        raise InputError("data.dir is empty; set it, or pass --data.dir PATH, to say where the prepared dataset goes.")
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file; choose another data.dir.")
    present = {entry.name for entry in target.iterdir()} if target.exists() else set()
    if present and (SCHEMA not in present or not present <= set(ENTRIES)):
        raise InputError(
            f"{target} is not empty and not (only) a prepared dataset; choose another data.dir or empty it."
        )
    return target


@contextmanager
def written(target: Path, replace: bool) -> Iterator[Path]:
    """A folder beside the target that takes its place at the end, so that no part of a dataset passes for one.

    Args:
      target: What `check_target` has accepted.
      replace: Whether a dataset was there when this one was begun. If not, but one is by the end, then another process
        was first; its dataset may be in use by now, so it stays.

    Raises:
      InputError: The folder cannot be written, or the other process made something else of it.
    """
    target = target.resolve()
    unique = secrets.token_hex(4)  # process ids repeat among the machines that share a folder
    partial = target.with_name(f".{target.name}.preparing-{unique}")
    replaced = target.with_name(f".{target.name}.replaced-{unique}")
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in [partial, *partial.rglob("*")]:
            _sync(path)
        if replace:
            target.rename(replaced)
        try:
            partial.rename(target)
        except OSError:
            if not (target / SCHEMA).is_file():
                raise
            if Schema.load(target / SCHEMA) != Schema.load(partial / SCHEMA):
                raise InputError(f"{target} was meanwhile prepared otherwise; choose another data.dir.") from None
        _sync(target.parent)
    except PermissionError as error:
        raise InputError(f"{target} cannot be written ({error.strerror}); choose another data.dir.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if target.exists():
            shutil.rmtree(replaced, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

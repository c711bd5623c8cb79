"""What `prepare` writes to: refused early, and a dataset there only when all of it is."""

import glob
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alt_jax import partial
from alt_jax.data.storage import ENTRIES, SCHEMA, Place, Remote, place
from alt_jax.errors import InputError
from alt_jax.schema import Schema


def check_target(name: str) -> tuple[Place, bool]:
    """The place to write to, refused early if it holds anything but an earlier prepared dataset.

    Returns:
      It, and whether there is an earlier dataset.
    """
    if not name:
        raise InputError("data.dir is empty; set it, or pass --data.dir PATH, to say where the prepared dataset goes.")
    target = place(name)
    if isinstance(target, Remote):
        present = {file.split("/")[0] for file in target.sizes()}
    else:
        if target.folder.exists() and not target.folder.is_dir():
            raise InputError(f"{name} is a file; choose another data.dir.")
        present = {entry.name for entry in target.folder.iterdir()} if target.folder.exists() else set()
    # An upload that broke off has left entries without a schema.
    begun = SCHEMA in present or isinstance(target, Remote)
    if present and not (begun and present <= set(ENTRIES)):
        raise InputError(f"{name} is not empty and not (only) a prepared dataset; choose another data.dir or empty it.")
    return target, SCHEMA in present


@contextmanager
def written(target: Place, replace: bool) -> Iterator[Path]:
    """A folder that becomes the target at the end, so that no part of a dataset passes for one.

    Args:
      target: What `check_target` has accepted.
      replace: Whether a dataset was there when this one was begun. If not, but one is by the end, then another process
        was first; its dataset may be in use by now, so it stays.

    Raises:
      InputError: The target cannot be written, or the other process made something else of it.
    """
    if isinstance(target, Remote):
        with tempfile.TemporaryDirectory(prefix="alt-jax-") as folder:
            yield Path(folder)
            _upload(Path(folder), target, replace)
    else:
        with _beside(target.folder.resolve(), replace) as folder:
            yield folder


@contextmanager
def _beside(target: Path, replace: bool) -> Iterator[Path]:
    """A folder beside the target that takes its place in one step."""
    try:
        with partial.beside(target) as folder:
            yield folder
            for path in [folder, *folder.rglob("*")]:
                _sync(path)
            if replace:  # process ids repeat among the machines that share a folder
                target.rename(target.with_name(f".{target.name}.replaced-{secrets.token_hex(4)}"))
            try:
                folder.rename(target)
            except OSError:
                if not (target / SCHEMA).is_file():
                    raise
                _check_same(Schema.load(target / SCHEMA), folder, str(target))
            _sync(target.parent)
    except PermissionError as error:
        raise InputError(f"{target} cannot be written ({error.strerror}); choose another data.dir.") from None
    finally:
        if target.exists():  # this one's, and those of processes that were killed just before their new one was there
            for replaced in target.parent.glob(f".{glob.escape(target.name)}.replaced-*"):
                shutil.rmtree(replaced, ignore_errors=True)


def _upload(folder: Path, target: Remote, replace: bool) -> None:
    """Copies a folder to where nothing can be renamed: what makes it a dataset goes first, and comes last."""
    before = target.sizes()
    if SCHEMA in before:
        if not replace:
            return _check_same(Schema.load(target.folder / SCHEMA), folder, target.name)
        target.remove(SCHEMA)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for file in sorted(files - {SCHEMA}):
        target.write(file, folder / file)
    for file in before.keys() - files:
        if file.split("/")[0] in ENTRIES:
            target.remove(file)
    target.write(SCHEMA, folder / SCHEMA)


def _check_same(found: Schema, folder: Path, name: str) -> None:
    if found != Schema.load(folder / SCHEMA):
        raise InputError(f"{name} was meanwhile prepared otherwise; choose another data.dir.")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

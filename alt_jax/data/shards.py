"""Rows on disk: a split is a number of shards of one size, the last one shorter; a shard is three NumPy files.

`train/values-00000-of-00003.npy` int32[n, S] · `train/labels-…` uint8[n] · `train/rows-…` int64[n]. What is written
depends on the rows and the size of a shard alone, not on who writes which of them. `schema.json` has the SHA-256 of
every file.
"""

import functools
import hashlib
import io
import math
import tokenize
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from alt_jax.data import storage
from alt_jax.data.storage import Folder, Place
from alt_jax.data.windows import Windows, shards_at_once
from alt_jax.errors import InputError
from alt_jax.schema import Shard, Split

PARTS: dict[str, np.dtype[Any]] = {"values": np.dtype("<i4"), "labels": np.dtype("u1"), "rows": np.dtype("<i8")}


# What NumPy raises for the header of a file that it did not write.
_NO_ARRAY = (ValueError, TypeError, IndexError, SyntaxError, tokenize.TokenError, RecursionError, OverflowError)


def shard_count(rows: int, shard_rows: int) -> int:
    """Shards of a split; one without rows has a shard without rows."""
    return max(1, math.ceil(rows / shard_rows))


def file_name(split: str, part: str, number: int, count: int) -> str:
    """Name of a shard's `values`, `labels` or `rows`, relative to the dataset."""
    return f"{split}/{part}-{number:05d}-of-{count:05d}.npy"


def write_shard(
    folder: str | Path,
    split: str,
    number: int,
    count: int,
    values: Int[np.ndarray, "n S"],
    labels: UInt8[np.ndarray, " n"],
    rows: Int[np.ndarray, " n"],
) -> Shard:
    """Writes one shard.

    Args:
      folder: The dataset's, or its URL.
      split: `train`, `valid` or `test`.
      number: Of the shard, from 0.
      count: Shards of the split.
      values: Value ids.
      labels: 0 or 1.
      rows: Row numbers in the raw table.

    Returns:
      What `schema.json` says of it.
    """
    hashes = {}
    for part, array in (("values", values), ("labels", labels), ("rows", rows)):
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.ascontiguousarray(array, PARTS[part]), (1, 0))
        content = buffer.getbuffer()
        storage.write_bytes(folder, file_name(split, part, number, count), content)
        hashes[part] = hashlib.sha256(content).hexdigest()
    return Shard(len(labels), hashes)


class ShardedArray:
    """The same array of every shard, as one. It is read-only.

    A shard is opened, and checked, when something of it is first asked for.

    Attributes:
      shape, dtype: As of a NumPy array.
    """

    def __init__(self, sizes: Sequence[int], trailing: tuple[int, ...], part: str, open_shard: "OpenShard") -> None:
        """Opens nothing yet.

        Args:
          sizes: Rows of every shard, all the same but for the last one's.
          trailing: Shape of a row.
          part: `values`, `labels` or `rows`.
          open_shard: Opens that array of the shard of a number.
        """
        self.shape: tuple[int, ...] = (sum(sizes), *trailing)
        self.dtype = PARTS[part]
        self._sizes, self._part, self._open_shard = tuple(sizes), part, open_shard
        self._opened: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.shape[0]

    def shard(self, number: int) -> np.ndarray:
        """One shard's array, memory-mapped."""
        if number not in self._opened:
            self._opened[number] = self._open_shard(self._part, number)
        return self._opened[number]

    def open(self) -> None:
        """Opens all shards now.

        Raises:
          InputError: A file is missing or is not as it was prepared.
        """
        for number in range(len(self._sizes)):
            self.shard(number)

    def take(self, rows: Int[np.ndarray, " n"], axis: int = 0) -> np.ndarray:
        """The rows of these numbers (from 0, none negative), in their order."""
        assert axis == 0
        number = rows // max(1, self._sizes[0])
        by_shard = number.astype(np.min_scalar_type(len(self._sizes))).argsort(kind="stable")  # few bits sort quickly
        within = (rows - number * self._sizes[0])[by_shard]
        sorted_, taken = (np.empty((len(rows), *self.shape[1:]), self.dtype) for _ in range(2))
        low = 0
        for n, high in enumerate(np.cumsum(np.bincount(number, minlength=1)).tolist()):
            if low < high:
                # `clip`, since NumPy would put a copy between to raise, and all are within.
                self.shard(n).take(within[low:high], axis=0, out=sorted_[low:high], mode="clip")
            low = high
        taken[by_shard] = sorted_
        return taken

    def __getitem__(self, index: Any) -> np.ndarray:
        """A slice of the rows, or those of an array of numbers; behind a comma, columns of them."""
        rows, *columns = index if isinstance(index, tuple) else (index,)
        if not isinstance(rows, slice):
            return self.take(np.asarray(rows))[(slice(None), *columns)]
        low, high, step = rows.indices(len(self))
        assert step == 1, "slices without steps only"
        size = max(1, self._sizes[0])
        first, last = (min(row // size, len(self._sizes) - 1) for row in (low, max(low, high - 1)))
        parts = [
            self.shard(number)[(slice(max(low - number * size, 0), max(high - number * size, 0)), *columns)]
            for number in range(first, last + 1)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of it, in memory."""
        return np.asarray(self[:], dtype)


Opened = dict[Path, tuple[int, int] | None]


class Rows(NamedTuple):
    """Rows of one split, memory-mapped.

    Attributes:
      values: Value id of every slot; -1 where a list is shorter than its field's slots.
      labels: 0 or 1.
      rows: Row number in the raw table, from 0.
      windows: Reads them for training, where that is not from the map.
      opened: The files that were read or are mapped, and their size and time of change when they were checked.
    """

    values: Int[np.ndarray | ShardedArray, "N S"]
    labels: UInt8[np.ndarray | ShardedArray, " N"]
    rows: Int[np.ndarray | ShardedArray, " N"]
    windows: Windows | None = None
    opened: Opened | None = None

    def check(self) -> None:
        """Looks whether every file is still the one that was checked.

        Raises:
          InputError: One was written to, or is gone.
        """
        for path, known in (self.opened or {}).items():
            if state(path) != known:
                raise InputError(
                    f"{path} has changed since it was opened; what was read since then cannot be trusted. Copy the "
                    "dataset again, or prepare it again, and start the same command again."
                )

    def open(self) -> "Rows":
        """Opens, and checks, values and labels of all shards now, which is when they are first needed otherwise.

        Returns:
          Itself.

        Raises:
          InputError: A file is missing or is not as it was prepared.
        """
        for array in (self.values, self.labels):
            if isinstance(array, ShardedArray):
                array.open()
        return self


OpenShard = Callable[[str, int], np.ndarray]


def check_files(place: Place, sizes: dict[str, int], splits: dict[str, Split], slots: int) -> None:
    """Looks whether all shards are there and not shorter than their rows. No file is read.

    Args:
      place: Where the dataset lies.
      sizes: Bytes of every file there.
      splits: As in the schema.
      slots: Columns of values.

    Raises:
      InputError: One is missing or too short.
    """
    for name, split in splits.items():
        if sum(shard.rows for shard in split.shards) != split.rows or len({s.rows for s in split.shards[:-1]}) > 1:
            raise InputError(f"{place / storage.SCHEMA} has shards of {name} that do not add up; prepare again.")
        for number, shard in enumerate(split.shards):
            for part, dtype in PARTS.items():
                file = file_name(name, part, number, len(split.shards))
                if shard.rows < 0:
                    raise InputError(f"{place / storage.SCHEMA} has a shard of {shard.rows} rows; prepare again.")
                if file not in sizes:
                    raise InputError(f"{place / file} is missing; copy the dataset again, or prepare it again.")
                if sizes[file] < shard.rows * dtype.itemsize * (slots if part == "values" else 1):
                    raise InputError(f"{place / file} is cut short; copy the dataset again, or prepare it again.")


def open_rows(place: Place, name: str, split: Split, slots: int, opened: Opened | None = None) -> Rows:
    """A split's rows. A folder's only shard is opened, and checked, at once.

    Args:
      place: Where the dataset lies.
      name: Of the split.
      split: Its entry in the schema.
      slots: Columns of values.
      opened: Takes the files that are opened, for `Rows.check`; whoever shares it checks them all.

    Raises:
      InputError: A file is missing or is not as it was prepared; where there are several shards, when it is opened.
    """
    opened = {} if opened is None else opened

    def open_shard(part: str, number: int) -> np.ndarray:
        file = file_name(name, part, number, len(split.shards))
        path, rows = place.local(file), split.shards[number].rows
        try:
            opened[path] = state(path)
            with path.open("rb") as content:
                _check_hash(place / file, hashlib.file_digest(content, "sha256"), split.shards[number], part)
            # As a plain array, of which taking rows is quicker than of NumPy's class for maps.
            array = np.asarray(np.lib.format.open_memmap(path, mode="r")) if rows else array_of(path.read_bytes())
        except (OSError, *_NO_ARRAY) as error:
            raise storage.unreadable(place / file, error) from None
        return _checked(array, place / file, part, rows, slots)

    sizes = [shard.rows for shard in split.shards]
    values, labels, numbers = (
        ShardedArray(sizes, (slots,) if part == "values" else (), part, open_shard) for part in PARTS
    )
    if len(sizes) == 1 and isinstance(place, Folder):
        return Rows(values.shard(0), labels.shard(0), numbers.shard(0), opened=opened)
    return Rows(values, labels, numbers, opened=opened)


def open_for_training(
    place: Place, name: str, split: Split, slots: int, memory_gib: float, opened: Opened | None = None
) -> Rows:
    """A split's rows, and how training reads them: from a folder's mapped files, or some shards at a time in memory.

    Args:
      place: Where the dataset lies.
      name: Of the split.
      split: Its entry in the schema.
      slots: Columns of values.
      memory_gib: What the rows may take.
      opened: As of `open_rows`.

    Raises:
      InputError: As `open_rows`, or a shard is too large for the memory.
    """
    rows, sizes = open_rows(place, name, split, slots, opened), [shard.rows for shard in split.shards]
    at_once = shards_at_once(sizes, slots, memory_gib, place / name)
    # Not from the map where memory does not hold it: row by row a disk is a thousand times slower than from end to end.
    if isinstance(place, Folder) and at_once == len(sizes):
        return rows.open()  # the first batch has rows of every shard anyway
    return rows._replace(
        windows=Windows(sizes, at_once, functools.partial(read_shard, place, name, split, slots=slots))
    )


def state(path: Path) -> tuple[int, int] | None:
    """Size and time of the last change of a file, in nanoseconds."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mtime_ns


def read_shard(place: Place, name: str, split: Split, part: str, number: int, slots: int | None = None) -> np.ndarray:
    """An array of a shard, in memory; where `slots` is given, its values have as many columns.

    Raises:
      InputError: The file is missing or is not as it was prepared.
    """
    file = file_name(name, part, number, len(split.shards))
    content = place.read(file)
    _check_hash(place / file, hashlib.sha256(content), split.shards[number], part)
    try:
        array = array_of(content)
    except ValueError as error:
        raise storage.unreadable(place / file, error) from None
    return _checked(array, place / file, part, split.shards[number].rows, slots)


def array_of(content: bytes) -> np.ndarray:
    """The array that a NumPy file holds, without a copy: whatever its header says, nothing is allocated or unpickled.

    Raises:
      ValueError: It holds none.
    """
    header = io.BytesIO(content)
    try:
        if np.lib.format.read_magic(header) != (1, 0):
            raise ValueError("its format is not 1.0")
        shape, by_column, dtype = np.lib.format.read_array_header_1_0(header)
    except _NO_ARRAY as error:
        raise ValueError(str(error)) from None
    if by_column or min(shape, default=0) < 0:
        raise ValueError("its array is of another form")
    return np.frombuffer(content, dtype, offset=header.tell()).reshape(shape)


def _checked(array: np.ndarray, file: str, part: str, rows: int, slots: int | None) -> np.ndarray:
    """The array, if it is what the schema says that it is."""
    shape = (rows, *(array.shape[1:2] if slots is None else (slots,))) if part == "values" else (rows,)
    if array.shape != shape or array.dtype != PARTS[part]:
        raise InputError(
            f"{file} holds {array.dtype}{list(array.shape)} where {storage.SCHEMA} has {PARTS[part]}{list(shape)}; "
            "prepare again."
        )
    return array


def _check_hash(file: str, digest: "hashlib._Hash", shard: Shard, part: str) -> None:
    if digest.hexdigest() != shard.sha256.get(part):
        raise InputError(
            f"{file} is not as it was prepared (its SHA-256 is not that in {storage.SCHEMA}); copy the dataset again, "
            "or prepare it again."
        )

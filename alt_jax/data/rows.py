"""The rows of a prepared dataset: written shard by shard, so that a table may be larger than memory."""

import functools
import hashlib
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from alt_jax.data import shards
from alt_jax.data.dataset import Vocabulary, hash_strings
from alt_jax.data.prompt import Pieces, prompt_lengths
from alt_jax.data.protocols import SPLITS, Split
from alt_jax.data.values import Values
from alt_jax.schema import Shard
from alt_jax.schema import Split as Prepared

_CHUNK = 1 << 20  # rows


class Part(NamedTuple):
    """A shard, and what it adds to its split.

    Attributes:
      shard: What `schema.json` says of it.
      positives: Rows with label 1.
      prompts: Rows with a prompt of 0, 1, 2, … tokens.
    """

    shard: Shard
    positives: int
    prompts: Int[np.ndarray, " L"]


def write(
    folder: Path,
    split: Split,
    names: tuple[str, ...],
    fields: list[Values],
    vocabulary: Vocabulary,
    pieces: Pieces,
    shard_rows: int,
) -> tuple[dict[str, list[Part]], str]:
    """Writes the shards of every split.

    Args:
      folder: Of the dataset.
      split: Rows and labels.
      names: Of the fields.
      fields: Their values, and which of them every row has.
      vocabulary: All their values.
      pieces: Tells how long a row's prompt is.
      shard_rows: Rows of a shard.

    Returns:
      Every split's shards, and the `data_hash`.
    """
    digest = data_digest(names, vocabulary)
    widths = tuple(found.slots for found in fields)
    first, written = 0, {}
    for name in SPLITS:
        numbers, parts = split.rows[name], []
        labels = split.positive[numbers].astype(np.uint8)
        hash_strings(digest, [name, str(len(numbers))])
        count = shards.shard_count(len(numbers), shard_rows)
        for number in range(count):
            low, high = number * shard_rows, min((number + 1) * shard_rows, len(numbers))
            values = np.empty((high - low, sum(widths)), np.int32)
            for at in range(low, high, _CHUNK):
                end = min(at + _CHUNK, high)
                values[at - low : end - low] = _value_ids(fields, first + at, first + end)
            digest.update(values.data)
            parts.append(
                write_shard(folder, name, number, count, values, labels[low:high], numbers[low:high], pieces, widths)
            )
        digest.update(labels.data)
        written[name] = parts
        first += len(numbers)
    return written, digest.hexdigest()


def write_shard(
    folder: str | Path,
    name: str,
    number: int,
    count: int,
    values: Int[np.ndarray, "n S"],
    labels: UInt8[np.ndarray, " n"],
    numbers: Int[np.ndarray, " n"],
    pieces: Pieces,
    widths: Sequence[int],
) -> Part:
    """Writes one shard; needs nothing but its rows, so that any process may.

    Args:
      folder: The dataset's, or its URL.
      name: Of the split.
      number: Of the shard, from 0.
      count: Shards of the split (`alt_jax.data.shards.shard_count`).
      values: Value ids of its rows, those from `number` · `data.shard_rows` on.
      labels: 0 or 1.
      numbers: Row numbers in the raw table.
      pieces: Tells how long a row's prompt is.
      widths: Slots of every field.
    """
    shard = shards.write_shard(folder, name, number, count, values, labels, numbers)
    prompts = np.zeros(1, np.int64)
    for low in range(0, len(values), _CHUNK):
        lengths = np.asarray(prompt_lengths(pieces, values[low : low + _CHUNK], tuple(widths)))
        prompts = _add(prompts, np.bincount(lengths))
    return Part(shard, int(labels.sum(dtype=np.int64)), prompts)


def prepared_split(parts: Iterable[Part], split_hash: str) -> Prepared:
    """A split's entry in the schema.

    Args:
      parts: Its shards, in order.
      split_hash: `alt_jax.data.protocols.split_hash`.
    """
    parts = list(parts)
    prompts = functools.reduce(_add, (part.prompts for part in parts))
    return Prepared(
        rows=sum(part.shard.rows for part in parts),
        positives=sum(part.positives for part in parts),
        hash=split_hash,
        prompts=tuple(prompts.tolist()),
        shards=tuple(part.shard for part in parts),
    )


def data_digest(names: Sequence[str], vocabulary: Vocabulary) -> "hashlib._Hash":
    """The beginning of a `data_hash`: SHA-256 over the names and values of the fields.

    Of every split, follow then its name and number of rows, by `hash_strings`, all value ids, and all labels.
    """
    digest = hashlib.sha256()
    hash_strings(digest, names)
    hash_strings(digest, vocabulary.value)
    digest.update(vocabulary.field.astype("<i4").tobytes())
    return digest


def _add(a: Int[np.ndarray, " _a"], b: Int[np.ndarray, " _b"]) -> Int[np.ndarray, " _c"]:
    """Sum of two tables of counts, of which one may be longer."""
    return np.array([x + y for x, y in itertools.zip_longest(a.tolist(), b.tolist(), fillvalue=0)], np.int64)


def _value_ids(fields: list[Values], low: int, high: int) -> Int[np.ndarray, "N S"]:
    """Value ids of rows, every field's slots side by side; -1 where a list is shorter than its slots."""
    parts, base = [], 0
    for found in fields:
        # Opened anew every time: what is mapped would count as memory until the file is closed.
        codes = np.load(found.codes, mmap_mode="r")[low:high]
        parts.append(np.where(codes < 0, -1, codes + base))
        base += len(found.strings)
    return np.concatenate(parts, axis=1).astype("<i4")

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
from alt_jax.data.prompt import Pieces, kept_and_whole
from alt_jax.data.protocols import SPLITS, UNLABELLED
from alt_jax.data.storage import Folder
from alt_jax.schema import Shard
from alt_jax.schema import Split as Prepared

_CHUNK = 1 << 20  # rows


class Part(NamedTuple):
    """A shard, and what it adds to its split.

    Attributes:
      shard: What `schema.json` says of it.
      positives: Rows with label 1.
      prompts: Rows with a prompt of 0, 1, 2, … tokens.
      unlabelled: Rows without a label.
      cut: Rows with a prompt that is cut.
      longest: Tokens of the longest prompt, were none cut.
    """

    shard: Shard
    positives: int
    prompts: Int[np.ndarray, " L"]
    unlabelled: int
    cut: int
    longest: int


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
      labels: 0 or 1, or `UNLABELLED`.
      numbers: Row numbers in the raw table.
      pieces: Tells how long a row's prompt is.
      widths: Slots of every field.
    """
    shard = shards.write_shard(folder, name, number, count, values, labels, numbers)
    prompts, cut, longest = np.zeros(1, np.int64), 0, 0
    for low in range(0, len(values), _CHUNK):
        kept, whole = (np.asarray(n) for n in kept_and_whole(pieces, values[low : low + _CHUNK], tuple(widths)))
        prompts = _add(prompts, np.bincount(kept))
        cut += int((kept < whole).sum())
        longest = max(longest, int(whole.max(initial=0)))
    return Part(shard, int((labels == 1).sum()), prompts, int((labels == UNLABELLED).sum()), cut, longest)


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
        unlabelled=sum(part.unlabelled for part in parts),
        cut=sum(part.cut for part in parts),
        shards=tuple(part.shard for part in parts),
    )


def data_hash(folder: Path, splits: dict[str, Prepared], names: Sequence[str], vocabulary: Vocabulary) -> str:
    """SHA-256 over names and values of the fields, then over name, number of rows, value ids and labels of the splits.

    It does not depend on the size of the shards, which are read again for it.
    """
    digest = hashlib.sha256()
    hash_strings(digest, names)
    hash_strings(digest, vocabulary.value)
    digest.update(vocabulary.field.astype("<i4").tobytes())
    for name in SPLITS:
        hash_strings(digest, [name, str(splits[name].rows)])
        for part in ("values", "labels"):
            for number in range(len(splits[name].shards)):
                digest.update(shards.read_shard(Folder(folder), name, splits[name], part, number).data)
    return digest.hexdigest()


def _add(a: Int[np.ndarray, " _a"], b: Int[np.ndarray, " _b"]) -> Int[np.ndarray, " _c"]:
    """Sum of two tables of counts, of which one may be longer."""
    return np.array([x + y for x, y in itertools.zip_longest(a.tolist(), b.tolist(), fillvalue=0)], np.int64)


def value_ids(codes: Iterable[Int[np.ndarray, "n _s"]], sizes: Iterable[int]) -> Int[np.ndarray, "n S"]:
    """Value ids of rows, every field's slots side by side; -1 where a list is shorter than its slots.

    Args:
      codes: Which of a field's values each row has, field by field; -1 for none.
      sizes: How many values the fields have.
    """
    parts, base = [], 0
    for own, size in zip(codes, sizes, strict=True):
        parts.append(np.where(own < 0, -1, own + base))
        base += size
    return np.concatenate(parts, axis=1).astype("<i4")

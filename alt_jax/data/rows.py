"""The rows of a prepared dataset: written some at a time, so that a table may be larger than memory."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from alt_jax.data.dataset import Vocabulary, hash_strings
from alt_jax.data.prompt import Pieces, prompt_lengths
from alt_jax.data.protocols import SPLITS, Split
from alt_jax.data.values import Values

_CHUNK = 1 << 20  # rows


class Written(NamedTuple):
    """What was written.

    Attributes:
      data_hash: SHA-256 over names, values, and the value ids and labels of every split.
      positives: Rows with label 1, by split.
      longest, mean: Tokens of the longest prompt, and of prompts on average.
    """

    data_hash: str
    positives: dict[str, int]
    longest: int
    mean: float


def write(
    folder: Path, split: Split, names: tuple[str, ...], fields: list[Values], vocabulary: Vocabulary, pieces: Pieces
) -> Written:
    """Writes `values.npy`, `labels.npy` and `rows.npy` of every split.

    Args:
      folder: Of the dataset.
      split: Rows and labels.
      names: Of the fields.
      fields: Their values, and which of them every row has.
      vocabulary: All their values.
      pieces: Tells how long a row's prompt is.
    """
    digest = hashlib.sha256()
    hash_strings(digest, names)
    hash_strings(digest, vocabulary.value)
    digest.update(vocabulary.field.astype("<i4").tobytes())
    widths = tuple(found.slots for found in fields)
    first, total, longest, positives = 0, 0, 0, {}
    for name in SPLITS:
        numbers = split.rows[name]
        labels = split.positive[numbers].astype(np.uint8)
        (folder / name).mkdir()
        np.save(folder / name / "labels.npy", labels)
        np.save(folder / name / "rows.npy", numbers.astype(np.int64, copy=False))
        hash_strings(digest, [name, str(len(numbers))])
        with (folder / name / "values.npy").open("wb") as file:
            header = {"descr": "<i4", "fortran_order": False, "shape": (len(numbers), sum(widths))}
            np.lib.format.write_array_header_1_0(file, header)
            for low in range(0, len(numbers), _CHUNK):
                values = _value_ids(fields, first + low, first + min(low + _CHUNK, len(numbers)))
                file.write(values.data)
                digest.update(values.data)
                lengths = np.asarray(prompt_lengths(pieces, values, widths))
                total, longest = total + int(lengths.sum(dtype=np.int64)), max(longest, int(lengths.max()))
        digest.update(labels.data)
        positives[name] = int(labels.sum(dtype=np.int64))
        first += len(numbers)
    return Written(digest.hexdigest(), positives, longest, total / first)


def _value_ids(fields: list[Values], low: int, high: int) -> Int[np.ndarray, "N S"]:
    """Value ids of rows, every field's slots side by side; -1 where a list is shorter than its slots."""
    parts, base = [], 0
    for found in fields:
        # Opened anew every time: what is mapped would count as memory until the file is closed.
        codes = np.load(found.codes, mmap_mode="r")[low:high]
        parts.append(np.where(codes < 0, -1, codes + base))
        base += len(found.strings)
    return np.concatenate(parts, axis=1).astype("<i4")

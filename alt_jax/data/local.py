"""The engine of one machine: one column at a time is in memory, its codes go to a file, rows are written by shards."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from alt_jax.config import FieldConfig
from alt_jax.data import fields, rows, spelling, values
from alt_jax.data.engine import SCRATCH, Engine
from alt_jax.data.prompt import Pieces
from alt_jax.data.protocols import SPLITS, Split
from alt_jax.data.rows import Part
from alt_jax.data.shards import shard_count
from alt_jax.data.sources.raw import RawData, as_text
from alt_jax.data.spelling import Spelled
from alt_jax.data.values import Tally, Values

_CHUNK = 1 << 20  # rows


class Local(Engine):
    """Files of codes, int32[U, S]: which of a field's values the rows of all splits have, one split after the other."""

    def __init__(self, raw: RawData, split: Split, folder: Path, shard_rows: int) -> None:
        """Makes a folder for the codes."""
        super().__init__(raw, split, folder, shard_rows)
        self._scratch = folder / SCRATCH
        self._scratch.mkdir()
        self._remembered = values.remembered(raw.fields)
        self._spelled: Spelled | None = None

    def tally(self, field: FieldConfig) -> Tally:
        """See `Engine`."""
        column = self.raw.table[field.column]
        field = values.read_as(field, column.type)
        self._spelled = fields.spell(column, field, self.raw.origin)
        split = self.split
        kept = list(split.rows.values())
        if field.column in self._remembered:
            needed = split.known.copy()
            needed[split.rows["train"]] = True  # of which some have no label
            kept = [np.flatnonzero(needed)]
        return values.tally(self._spelled, [split.rows["train"]], kept)._replace(type=field.type)

    def keep(self, field: FieldConfig, found: Values) -> None:
        """See `Engine`."""
        assert self._spelled is not None, "tally comes first"
        spelled = self._spelled if field.hash_buckets else spelling.as_type(self._spelled, found.type)
        codes = values.positions(spelled, pa.array(found.strings, pa.string()))
        self._spelled = None
        self._save(field, codes[:, : found.slots])

    def sequence(self, field: FieldConfig, item: Values) -> Values:
        """See `Engine`."""
        raw, split = self.raw, self.split
        assert raw.user is not None, "protocols.apply refuses it"
        assert raw.timestamp is not None, "protocols.apply refuses it"
        train = np.zeros_like(split.known)
        train[split.rows["train"]] = True
        of = replace(next(other for other in raw.fields if other.column == field.of), type=item.type)
        spelled = fields.spell(raw.table[of.column], of, raw.origin)
        items = values.positions(spelled, pa.array(item.strings, pa.string()))[:, 0]
        declared = next(other for other in raw.fields if other.column == raw.user)
        users = fields.spell(raw.table[raw.user], declared, raw.origin)
        user = values.somebody(users.strings, users.codes[:, 0])
        time = np.asarray(raw.table[raw.timestamp])
        number, missing = len(item.strings), np.array([not string for string in item.strings])
        codes = values.histories(field, user, time, items, split.label == 1, split.known, train, missing)
        counts = values.count(codes, [split.rows["train"]], number + 1)
        kept = values.count(codes, list(split.rows.values()), number + 1)
        found, place = values.of_sequence(field, item, self._titles(field, item, items), counts, kept)
        self._save(field, np.append(place, np.int32(-1))[codes])
        return found

    def write(self, fields: list[Values], pieces: Pieces) -> dict[str, list[Part]]:
        """See `Engine`."""
        widths = tuple(found.slots for found in fields)
        first, written = 0, {}
        for name in SPLITS:
            numbers, parts = self.split.rows[name], []
            labels = self.split.label[numbers]
            count = shard_count(len(numbers), self.shard_rows)
            for number in range(count):
                low, high = number * self.shard_rows, min((number + 1) * self.shard_rows, len(numbers))
                values = np.empty((high - low, sum(widths)), np.int32)
                for at in range(low, high, _CHUNK):
                    end = min(at + _CHUNK, high)
                    values[at - low : end - low] = self._value_ids(fields, first + at, first + end)
                shard = values, labels[low:high], numbers[low:high]
                parts.append(rows.write_shard(self.folder, name, number, count, *shard, pieces, widths))
            written[name] = parts
            first += len(numbers)
        return written

    def close(self) -> None:
        """See `Engine`."""
        shutil.rmtree(self._scratch)

    def _save(self, field: FieldConfig, codes: Int[np.ndarray, "N S"]) -> None:
        """Keeps the codes of raw rows as those of all splits, one after the other."""
        # `take`, since `codes[rows]` is slower, three times on long tables.
        np.save(self._file(field), np.concatenate([codes.take(rows, axis=0) for rows in self.split.rows.values()]))

    def _file(self, field: FieldConfig) -> Path:
        return self._scratch / f"{self.raw.fields.index(field)}.npy"

    def _value_ids(self, fields: list[Values], low: int, high: int) -> Int[np.ndarray, "N S"]:
        """Value ids of rows of all splits."""
        # Opened anew every time: what is mapped would count as memory until the file is closed.
        codes = [np.load(self._file(field), mmap_mode="r")[low:high] for field in self.raw.fields]
        return rows.value_ids(codes, [len(found.strings) for found in fields])

    def _titles(self, field: FieldConfig, item: Values, items: Int[np.ndarray, " N"]) -> list[str]:
        """How the prompt spells each item: what stands beside its first row in the column that the field names."""
        if not field.spelled:
            return item.strings
        title = as_text(self.raw.table[field.spelled], field.spelled, self.raw.origin)
        known = np.flatnonzero(items >= 0)[::-1]
        first = np.zeros(len(item.strings), np.int64)
        first[items[known]] = known  # the last assignment, which is the first row, stays
        titles: list[str] = pc.take(title.dictionary, pa.array(np.asarray(title.indices)[first])).to_pylist()
        return titles

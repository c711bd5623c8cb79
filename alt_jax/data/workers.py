"""What a worker of `alt_jax.data.beam` does: functions of a chunk of raw rows, or of what chunks gave, and of the job.

A group's elements come in any order, so what is made of them must not depend on it. Nothing here decides anything: the
functions that do are those of the engine of one machine.
"""

import functools
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int, UInt8

from alt_jax.config import FieldConfig
from alt_jax.data import fields, rows, storage, values
from alt_jax.data.engine import SCRATCH
from alt_jax.data.prompt import Pieces
from alt_jax.data.protocols import SPLITS, UNLABELLED
from alt_jax.data.shards import shard_count
from alt_jax.data.sources.raw import as_text
from alt_jax.data.sources.table import RowGroup, read_group
from alt_jax.data.spelling import hashes
from alt_jax.errors import InputError

NOWHERE, PAST = -1, -2  # destinations of rows that are in no split: left out, or in histories all the same


class Chunk(NamedTuple):
    """Consecutive raw rows.

    Attributes:
      number: From 0.
      first: Number of the first row.
      group: Where they lie; None: in the shared folder.
    """

    number: int
    first: int
    group: RowGroup | None


class Facts(NamedTuple):
    """What the launcher knows of a chunk's rows.

    Attributes:
      destination: Position in all splits, one after the other; or negative, see above.
      label: As `alt_jax.data.protocols.Split` has it.
      time: What rows are ordered by; zeros where there are no histories.
    """

    destination: Int[np.ndarray, " N"]
    label: UInt8[np.ndarray, " N"]
    time: Int[np.ndarray, " N"] | Float[np.ndarray, " N"]


@dataclass(frozen=True)
class Job:
    """What a worker has to know; it travels with every function.

    Attributes:
      shared: Folder or URL that launcher and workers see.
      fields: Of the raw data.
      origin: Of the raw data, for messages.
      user: Column of the user.
      schema: Columns to read, and their types.
      sizes: Rows of every split.
      shard_rows: Rows of a shard.
      parts: Into how many parts strings and users are divided.
      widths: Slots of every field; known in the third pipeline only, as is what follows.
      counts: Values of every field.
    """

    shared: str
    fields: tuple[FieldConfig, ...]
    origin: str
    user: str | None
    schema: pa.Schema
    sizes: tuple[int, ...]
    shard_rows: int
    parts: int
    widths: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()

    @property
    def sequences(self) -> list[tuple[int, FieldConfig]]:
        """The fields that are sequences, and their numbers."""
        return [(f, field) for f, field in enumerate(self.fields) if field.kind == "sequence"]

    @property
    def shards(self) -> list[tuple[str, int, int, int]]:
        """Of every shard of all splits: its split, its number there, how many the split has, and its rows."""
        return [
            (name, number, shard_count(size, self.shard_rows), min(self.shard_rows, size - number * self.shard_rows))
            for name, size in zip(SPLITS, self.sizes, strict=True)
            for number in range(shard_count(size, self.shard_rows))
        ]

    def train(self, destination: Int[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
        """Which rows are in the training part, the first of the splits."""
        return (destination >= 0) & (destination < self.sizes[0])

    def number(self, column: str) -> int:
        """Number of the field of a column."""
        return [field.column for field in self.fields].index(column)

    def by_shard(
        self, destination: Int[np.ndarray, " N"]
    ) -> Iterator[tuple[int, Int[np.ndarray, " n"], Int[np.ndarray, " n"]]]:
        """Shards of rows.

        Yields:
          A shard's position in `shards`; which of the rows go there; and their positions in it.
        """
        there = np.flatnonzero(destination >= 0)
        begin = np.cumsum((0, *self.sizes[:-1]))
        split = np.searchsorted(begin, destination[there], side="right") - 1
        within = destination[there] - begin[split]
        before = np.cumsum((0, *(shard_count(size, self.shard_rows) for size in self.sizes[:-1])))
        shard, position = before[split] + within // self.shard_rows, within % self.shard_rows
        order = np.argsort(shard, kind="stable")
        found, first = np.unique(shard[order], return_index=True)
        for number, rows_ in zip(found.tolist(), np.split(order, first)[1:], strict=True):
            yield number, there[rows_], position[rows_]

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Writes a file into the shared folder."""
        storage.write_bytes(self.shared, f"{SCRATCH}/{name}", content)

    def read(self, name: str) -> io.BytesIO:
        """A file of the shared folder."""
        return io.BytesIO(storage.place(self.shared).read(f"{SCRATCH}/{name}"))

    def written(self, folder: str) -> list[str]:
        """Names of the files below a folder of the shared folder."""
        names = (name.removeprefix(f"{SCRATCH}/") for name in storage.place(self.shared).sizes())
        return sorted(name for name in names if name.startswith(f"{folder}/"))

    @contextmanager
    def refusals(self, chunk: Chunk) -> Iterator[None]:
        """Leaves the sentence of an InputError for the launcher to say."""
        try:
            yield
        except InputError as error:
            self.write(f"refused/{chunk.number:06d}", str(error).encode())


# --- 1. values ---


def tallies(chunk: Chunk, job: Job) -> Iterator[Any]:
    """The strings of a chunk, with their counts, by number of the field and part of the strings."""
    with job.refusals(chunk):
        facts, table = _facts(job, chunk), _table(job, chunk)
        there, train = np.flatnonzero(facts.destination >= 0), np.flatnonzero(job.train(facts.destination))
        known = np.flatnonzero(facts.destination != NOWHERE)
        remembered = values.remembered(job.fields)
        for f, field in enumerate(job.fields):
            if field.kind != "sequence":
                kept = known if field.column in remembered else there
                read = values.read_as(field, job.schema.field(field.column).type)
                found = values.tally(fields.spell(table[field.column], read, job.origin), [train], [kept])
                own = np.flatnonzero(found.kept)
                columns = {
                    "value": pa.array([found.strings[i] for i in own], pa.string()),
                    "counts": found.counts[own],
                    "kept": found.kept[own],
                    "slots": np.full(len(own), found.slots),
                    "cut": found.cut * (np.arange(len(own)) == 0),  # of the chunk, so that the sum is that of all
                }
                yield from _parted(f, pa.table(columns), job.parts)


def titles(chunk: Chunk, job: Job) -> Iterator[Any]:
    """How a chunk spells items, by number of the sequence and part of the items: beside the first row of each."""
    with job.refusals(chunk):
        table = _table(job, chunk)
        for f, field in job.sequences:
            if field.spelled:
                of = job.fields[job.number(field.of)]
                items = fields.spell(table[of.column], of, job.origin)
                title = as_text(table[field.spelled], field.spelled, job.origin)
                code, row = np.unique(items.codes[:, 0], return_index=True)
                columns = {
                    "value": pa.array([items.strings[c] for c in code], pa.string()),
                    "row": chunk.first + row,
                    "title": title.take(pa.array(row)).cast(pa.string()),
                }
                yield from _parted(f, pa.table(columns), job.parts)


def _parted(f: int, table: pa.Table, parts: int) -> Iterator[Any]:
    if parts == 1:
        yield (f, 0), table
        return
    part = hashes(table["value"].to_pylist()) % np.uint64(parts)
    for number in np.unique(part).tolist():
        yield (f, number), table.filter(pa.array(part == number))


def merged_tallies(tables: Any) -> Any:
    """The sum of tallies."""
    how = {"counts": "sum", "kept": "sum", "slots": "max", "cut": "sum"}
    whole = pa.concat_tables(tables).group_by("value").aggregate(list(how.items()))
    return whole.select(["value", *(f"{name}_{way}" for name, way in how.items())]).rename_columns(["value", *how])


def merged_titles(tables: Any) -> Any:
    """Of every item the title that stands beside its first row."""
    whole = pa.concat_tables(tables).sort_by("row").group_by("value", use_threads=False)
    columns = whole.aggregate([("row", "first"), ("title", "first")])
    return columns.select(["value", "row_first", "title_first"]).rename_columns(["value", "row", "title"])


def store(element: Any, kind: str, job: Job) -> None:
    """Writes one part of the strings of one field."""
    (f, part), table = element
    content = io.BytesIO()
    pq.write_table(table, content)
    job.write(f"{kind}/{f}-{part}", content.getbuffer())


# --- 2. histories ---


def events(chunk: Chunk, job: Job) -> Iterator[Any]:
    """Rows that histories are of, or may hold, by part of their users."""
    facts, table = _facts(job, chunk), _table(job, chunk)
    assert job.user is not None, "protocols.apply refuses it"
    known = np.flatnonzero(facts.destination != NOWHERE)
    user = fields.spell(table[job.user], job.fields[job.number(job.user)], job.origin)
    part = (hashes(user.strings) % np.uint64(job.parts))[user.codes[:, 0]]
    columns = {
        "user": pa.array(user.strings, pa.string()).take(pa.array(user.codes[:, 0])),
        "row": chunk.first + np.arange(len(user.codes)),
        **facts._asdict(),
        **{f"item {of}": _positions(job, of, table)[:, 0] for of in {field.of for _, field in job.sequences}},
    }
    whole = pa.table(columns)
    for number in np.unique(part[known]).tolist():
        yield number, whole.take(pa.array(known[part[known] == number]))


def histories(element: Any, job: Job) -> Iterator[Any]:
    """Histories of the users of one part, by shard: which of the item's values, and the number behind them for none."""
    _, tables = element
    whole = pa.concat_tables(tables).sort_by("row")  # of simultaneous rows, the later in the file is the newer
    column = {name: np.asarray(whole[name]) for name in whole.column_names if name != "user"}
    users = whole["user"].combine_chunks().dictionary_encode()
    user = values.somebody(users.dictionary.to_pylist(), np.asarray(users.indices))
    known, train = column["label"] != UNLABELLED, job.train(column["destination"])
    found = []
    for _, field in job.sequences:
        item = column[f"item {field.of}"]
        missing = np.asarray(pc.equal(_strings(job.shared, job.number(field.of)), ""))
        found.append(values.histories(field, user, column["time"], item, column["label"] == 1, known, train, missing))
    codes = np.concatenate(found, axis=1)
    for shard, chosen, position in job.by_shard(column["destination"]):
        yield shard, (position, codes[chosen])


def store_histories(element: Any, job: Job) -> Iterator[Any]:
    """Writes the histories of a shard, and counts what they hold by number of the sequence."""
    shard, pieces = element
    name, _, _, size = job.shards[shard]
    (codes,) = _in_order(pieces, size)
    content = io.BytesIO()
    np.save(content, codes)
    job.write(f"histories/{shard}", content.getbuffer())
    first = 0
    for f, field in job.sequences:
        own = codes[:, first : first + field.slots]
        first += field.slots
        value, counts = np.unique(own[own >= 0], return_counts=True)
        columns = {"value": value, "counts": counts * (name == "train"), "kept": counts}
        columns |= {"slots": counts * 0 + 1, "cut": counts * 0}
        yield (f, 0), pa.table(columns)


# --- 3. rows ---


def pieces(chunk: Chunk, job: Job) -> Iterator[Any]:
    """The rows of a chunk by shard: positions, which of each field's values, labels, numbers of raw rows."""
    with job.refusals(chunk):
        facts, table = _facts(job, chunk), _table(job, chunk)
        codes = np.concatenate(
            [
                np.full((len(facts.label), width), -1, np.int32)
                if field.kind == "sequence"
                else _positions(job, field.column, table)[:, :width]
                for field, width in zip(job.fields, job.widths, strict=True)
            ],
            axis=1,
        )
        for shard, chosen, position in job.by_shard(facts.destination):
            labels = facts.label[chosen]
            yield shard, (position, codes[chosen], labels, chunk.first + chosen)


def write_shard(element: Any, job: Job) -> None:
    """Writes a shard, and what `schema.json` will say of it."""
    shard, pieces = element
    name, number, count, size = job.shards[shard]
    codes, labels, numbers = _in_order(pieces, size)
    own = np.split(codes, np.cumsum(job.widths)[:-1], axis=1)
    if job.sequences:
        made = np.load(job.read(f"histories/{shard}"))
        first = 0
        for f, field in job.sequences:
            place = np.append(_places(job.shared, f), np.int32(-1))
            own[f] = place[made[:, first : first + field.slots]]
            first += field.slots
    ids = rows.value_ids(own, job.counts)
    part = rows.write_shard(
        job.shared, name, number, count, ids, labels, numbers, _prompt_pieces(job.shared), job.widths
    )
    said = {
        "shard": [part.shard.rows, part.shard.sha256],
        "positives": part.positives,
        "unlabelled": part.unlabelled,
        "prompts": part.prompts.tolist(),
        "cut": part.cut,
        "longest": part.longest,
    }
    job.write(f"parts/{shard}", json.dumps(said).encode())


# --- what they read ---


def _in_order(pieces: Iterable[tuple[np.ndarray, ...]], size: int) -> list[np.ndarray]:
    """Arrays of a shard's rows, given in pieces, each with its rows' positions first."""
    position, *arrays = (np.concatenate(several) for several in zip(*pieces, strict=True))
    order = np.argsort(position)
    if not np.array_equal(position[order], np.arange(size)):
        raise RuntimeError(f"{len(position)} rows came for a shard of {size}.")  # Beam has lost or doubled some
    return [array[order] for array in arrays]


def _facts(job: Job, chunk: Chunk) -> Facts:
    with np.load(job.read(f"facts/{chunk.number}"), allow_pickle=False) as file:
        return Facts(*(file[name] for name in Facts._fields))


def _table(job: Job, chunk: Chunk) -> pa.Table:
    """The columns of a chunk."""
    if chunk.group is not None:
        return read_group(chunk.group, job.schema)
    strings = [field.name for field in job.schema if pa.types.is_string(field.type)]
    return pq.read_table(job.read(f"raw/{chunk.number}"), read_dictionary=strings)


def _positions(job: Job, column: str, table: pa.Table) -> Int[np.ndarray, "N S"]:
    f = job.number(column)
    return values.positions(fields.spell(table[column], job.fields[f], job.origin), _strings(job.shared, f))


# A process serves one job; it keeps what all its chunks need.


@functools.lru_cache(maxsize=64)
def _strings(shared: str, f: int) -> pa.StringArray:
    """The values of a field."""
    content = storage.place(shared).read(f"{SCRATCH}/strings/{f}")
    return pq.read_table(io.BytesIO(content))["value"].combine_chunks()


@functools.lru_cache(maxsize=64)
def _places(shared: str, f: int) -> Int[np.ndarray, " V"]:
    """Where among a sequence's values each of its items' stands."""
    return np.load(io.BytesIO(storage.place(shared).read(f"{SCRATCH}/places/{f}")))


@functools.lru_cache(maxsize=1)
def _prompt_pieces(shared: str) -> Pieces:
    with np.load(io.BytesIO(storage.place(shared).read(f"{SCRATCH}/pieces")), allow_pickle=False) as file:
        return Pieces(*(file[name] for name in Pieces._fields))

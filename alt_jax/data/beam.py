"""The engine of many machines: Apache Beam reads, counts, groups and writes, on whatever runner it is told to use.

The machine that launches the pipelines reads labels, times and the ids that a protocol goes by, divides the rows, and
decides on values as the other engine does, from counts. A pipeline's element is a chunk of raw rows (a row group of a
Parquet file; sources of other kinds are cut into chunks first) or what became of one, as arrays. There are three:

1. Values: chunk → per field its distinct strings with their counts → summed by field and part of the strings.
2. Histories, where a field is a sequence: chunk → its rows by part of the users → each user's rows in order → histories
   by shard → written, and their items counted.
3. Rows: chunk → value ids by shard → a shard in order → written by the function that the other engine uses too.

Launcher and workers share a folder or URL: there the launcher says what becomes of a chunk's rows, and workers leave
counts, histories, shards, and the sentence with which they refuse a chunk. An error raised in a worker would come back
as hundreds of lines, after a number of tries.
"""

import contextlib
import io
import json
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions
from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator
from apache_beam.runners import create_runner

from alt_jax import console
from alt_jax.config import FieldConfig
from alt_jax.data import storage, values, workers
from alt_jax.data.engine import SCRATCH, Engine
from alt_jax.data.prompt import Pieces
from alt_jax.data.protocols import SPLITS, Split
from alt_jax.data.rows import Part
from alt_jax.data.shards import PARTS, file_name
from alt_jax.data.sources.raw import Columns, RawData
from alt_jax.data.sources.table import read_group, row_groups
from alt_jax.data.values import Tally, Values
from alt_jax.data.workers import Chunk, Facts, Job
from alt_jax.errors import InputError
from alt_jax.schema import Shard

LOCAL = "FnApiRunner"  # Beam's own for one machine; of several processes, if told so
_CHUNK = 1 << 17  # rows of a chunk that is cut here
_PART = 1 << 24  # rows whose strings, or users, one worker groups at a time


def engine(runner: str, arguments: Sequence[str]) -> Callable[[RawData, Split, Path, int], Engine]:
    """What `prepare` takes; a mistake in its arguments is told before any row is read.

    Args:
      runner: A name that Beam knows; empty: `LOCAL`.
      arguments: Beam's options. Where `--temp_location` names a folder or URL, launcher and workers share one in there;
        otherwise they share the folder that takes the dataset.

    Raises:
      InputError: There is no such runner, or it lacks an option or refuses one.
    """
    runner = runner or LOCAL
    try:
        made = create_runner(runner)
    except (ValueError, ImportError, AttributeError, TypeError) as error:
        raise InputError(
            f"--runner {runner} cannot be used: {str(error).splitlines()[0].rstrip('.')}; give another."
        ) from None
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options = PipelineOptions(list(arguments))
            given = options.get_all_options(retain_unknown_options=True)
    except SystemExit:
        reason = said.getvalue().splitlines()[-1].split("error: ")[-1]
        raise InputError(f"{runner} refuses its options: {reason}; correct what follows the `--`.") from None
    if given["runner"]:
        raise InputError(f"--runner {given['runner']} belongs to alt-jax; give it before the `--`.")
    # Other runners know more options than their Python part does.
    unknown = given.keys() - options.get_all_options().keys() if runner == LOCAL else ()
    if unknown:
        raise InputError(f"{LOCAL} has no option --{min(unknown)}; correct what follows the `--`.")
    for problem in PipelineOptionsValidator(options, made).validate():
        raise InputError(f"{runner} refuses its options: {problem.rstrip('.')}; correct what follows the `--`.")
    return partial(Beam, runner=runner, arguments=list(arguments))


class Beam(Engine):
    """Two or three pipelines, one after the other."""

    def __init__(
        self, raw: RawData, split: Split, folder: Path, shard_rows: int, *, runner: str, arguments: list[str]
    ) -> None:
        """Writes nothing yet.

        Args:
          raw: Raw rows.
          split: Their splits and labels.
          folder: Takes the dataset.
          shard_rows: Rows of a shard.
          runner: As `engine` has checked it.
          arguments: Likewise.
        """
        super().__init__(raw, split, folder, shard_rows)
        self._runner, self._arguments = runner, arguments
        temporary = PipelineOptions(arguments).view_as(GoogleCloudOptions).temp_location
        self._job = Job(
            shared=f"{temporary.rstrip('/')}/alt-jax-{secrets.token_hex(8)}" if temporary else str(folder),
            fields=raw.fields,
            origin=raw.origin,
            user=raw.user,
            schema=pa.schema([]),
            sizes=tuple(len(split.rows[name]) for name in SPLITS),
            shard_rows=shard_rows,
            parts=1 + raw.table.num_rows // _PART,
        )
        self._chunks: list[Chunk] = []

    def tally(self, field: FieldConfig) -> Tally:
        """See `Engine`. The first time, those of all fields are counted."""
        if not self._chunks:
            self._chunks = self._cut()
            self._count_values()
        found = self._found("values", self._job.number(field.column))
        slots, cut = max(found["slots"].to_pylist(), default=1), sum(found["cut"].to_pylist())
        kind = values.read_as(field, self._job.schema.field(field.column).type).type
        counts = np.asarray(found["counts"]), np.asarray(found["kept"])
        return Tally(found["value"].to_pylist(), *counts, slots, cut, kind)

    def keep(self, field: FieldConfig, found: Values) -> None:
        """See `Engine`."""
        strings = pa.table({"value": pa.array(found.strings, pa.string())})
        self._write_table(f"strings/{self._job.number(field.column)}", strings)
        if field.kind != "numeric":  # whose type needs no telling
            typed = replace(field, type=found.type)
            fields = tuple(typed if other.column == field.column else other for other in self._job.fields)
            self._job = replace(self._job, fields=fields)

    def sequence(self, field: FieldConfig, item: Values) -> Values:
        """See `Engine`. The first time, the histories of all fields are made."""
        f = self._job.number(field.column)
        if not self._job.written("histories"):
            self._make_histories()
        found = self._found("sequences", f)
        counts, kept = (np.zeros(len(item.strings) + 1, np.int64) for _ in range(2))
        for total, column in ((counts, "counts"), (kept, "kept")):
            total[np.asarray(found["value"])] = np.asarray(found[column])
        titles = item.strings
        if field.spelled:
            table = self._found("titles", f)
            title_of = dict(zip(table["value"].to_pylist(), table["title"].to_pylist(), strict=True))
            titles = [title_of[string] for string in item.strings]
        sequence, place = values.of_sequence(field, item, titles, counts, kept)
        self._write_arrays(f"places/{f}", lambda file: np.save(file, place))
        return sequence

    def write(self, fields: list[Values], pieces: Pieces) -> dict[str, list[Part]]:
        """See `Engine`."""
        self._write_arrays("pieces", partial(np.savez, **pieces._asdict()))
        widths, counts = tuple(found.slots for found in fields), tuple(len(found.strings) for found in fields)
        self._job = job = replace(self._job, widths=widths, counts=counts)

        def rows(chunks: beam.PCollection) -> None:
            shards = chunks | "Rows" >> beam.FlatMap(workers.pieces, job) | "Shards" >> beam.GroupByKey()
            _ = shards | "Write" >> beam.Map(workers.write_shard, job)

        self._run(rows)
        written: dict[str, list[Part]] = {name: [] for name in SPLITS}
        for shard, (name, number, count, _) in enumerate(job.shards):
            said = json.load(job.read(f"parts/{shard}"))
            said |= {"shard": Shard(*said["shard"]), "prompts": np.array(said["prompts"], np.int64)}
            written[name].append(Part(**said))
            if job.shared != str(self.folder):
                for part in PARTS:
                    file = file_name(name, part, number, count)
                    storage.write_bytes(self.folder, file, storage.place(job.shared).read(file))
        return written

    def close(self) -> None:
        """See `Engine`."""
        shared = storage.place(self._job.shared)
        if isinstance(shared, storage.Remote):
            try:
                for name in shared.sizes():
                    shared.remove(name)
            except InputError as error:  # what is left over is no reason to lose a dataset
                console.warn(str(error))
        elif self._job.shared == str(self.folder):
            shutil.rmtree(self.folder / SCRATCH, ignore_errors=True)
        else:
            shutil.rmtree(self._job.shared, ignore_errors=True)

    def _cut(self) -> list[Chunk]:
        """Divides the raw rows into chunks, and writes what becomes of each.

        Workers read Parquet from where it lies; other rows, and all rows where only a URL is shared, are written, too.

        Raises:
          InputError: The raw rows cannot be read.
        """
        raw, split = self.raw, self.split
        columns = {field.column: None for field in raw.fields if field.kind != "sequence"}
        timed = any(field.kind == "sequence" for field in raw.fields)
        if timed:
            columns |= {column: None for column in (raw.user, *(f.spelled for f in raw.fields)) if column}
        if isinstance(raw.table, Columns) and raw.table.parts:
            groups, schema = row_groups(raw.table.parts, list(columns))
            chunks = [Chunk(number, group.first, group) for number, group in enumerate(groups)]
            sizes = [group.rows for group in groups]
            if storage.is_url(self._job.shared):
                for number, group in enumerate(groups):
                    self._write_table(f"raw/{number}", read_group(group, schema))
                chunks = [chunk._replace(group=None) for chunk in chunks]
        else:
            table = pa.table({column: _plain(raw.table[column]) for column in columns})
            schema, firsts = table.schema, range(0, table.num_rows, _CHUNK)
            chunks = [Chunk(number, first, None) for number, first in enumerate(firsts)]
            sizes = [min(_CHUNK, table.num_rows - first) for first in firsts]
            for chunk in chunks:
                self._write_table(f"raw/{chunk.number}", table.slice(chunk.first, _CHUNK))
        self._job = replace(self._job, schema=schema)

        destination = np.full(raw.table.num_rows, workers.NOWHERE, np.int64)
        destination[split.known] = workers.PAST
        begin = 0
        for numbers in split.rows.values():
            destination[numbers] = begin + np.arange(len(numbers))
            begin += len(numbers)
        time = np.asarray(raw.table[raw.timestamp]) if timed and raw.timestamp else np.zeros(len(destination), np.int8)
        for chunk, size in zip(chunks, sizes, strict=True):
            own = slice(chunk.first, chunk.first + size)
            facts = Facts(destination[own], split.label[own], time[own])
            self._write_arrays(f"facts/{chunk.number}", partial(np.savez, **facts._asdict()))
        return chunks

    def _count_values(self) -> None:
        job = self._job

        def count(chunks: beam.PCollection) -> None:
            tallies = chunks | "Count" >> beam.FlatMap(workers.tallies, job)
            tallies = tallies | "Sum" >> beam.CombinePerKey(workers.merged_tallies)
            _ = tallies | "Write values" >> beam.Map(workers.store, "values", job)
            if any(field.spelled for field in job.fields):
                titles = chunks | "Titles" >> beam.FlatMap(workers.titles, job)
                titles = titles | "First" >> beam.CombinePerKey(workers.merged_titles)
                _ = titles | "Write titles" >> beam.Map(workers.store, "titles", job)

        self._run(count)

    def _make_histories(self) -> None:
        job = self._job

        def make(chunks: beam.PCollection) -> None:
            users = chunks | "Users" >> beam.FlatMap(workers.events, job) | "Histories" >> beam.GroupByKey()
            shards = users | "By shard" >> beam.FlatMap(workers.histories, job) | "Shards" >> beam.GroupByKey()
            tallies = shards | "Write" >> beam.FlatMap(workers.store_histories, job)
            tallies = tallies | "Sum" >> beam.CombinePerKey(workers.merged_tallies)
            _ = tallies | "Write counts" >> beam.Map(workers.store, "sequences", job)

        self._run(make)

    def _run(self, build: Callable[[beam.PCollection], None]) -> None:
        """Runs a pipeline that begins with the chunks.

        Raises:
          InputError: A worker has refused a chunk.
        """
        with beam.Pipeline(self._runner, PipelineOptions(self._arguments)) as pipeline:
            build(pipeline | "Chunks" >> beam.Create(self._chunks))
        for refused in self._job.written("refused"):
            raise InputError(self._job.read(refused).read().decode())

    def _found(self, kind: str, f: int) -> pa.Table:
        """What workers have stored of a field.

        Raises:
          InputError: They have stored nothing, here.
        """
        names = [name for name in self._job.written(kind) if name.startswith(f"{kind}/{f}-")]
        if not names:
            raise InputError(
                f"{self._runner}'s workers left nothing in {self._job.shared}, so they do not share it with this "
                "machine; name a folder or URL that they do with -- --temp_location."
            )
        return pa.concat_tables([pq.read_table(self._job.read(name)) for name in names])

    def _write_table(self, name: str, table: pa.Table) -> None:
        self._write_arrays(name, partial(pq.write_table, table))

    def _write_arrays(self, name: str, write: Callable[[io.BytesIO], object]) -> None:
        content = io.BytesIO()
        write(content)
        self._job.write(name, content.getbuffer())


def _plain(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Not as a dictionary, all of which every chunk would hold."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column

"""Scores of raw rows, from a finished finetuning run or an export of one."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from jaxtyping import Float, Int
from scipy.special import expit

from alt_jax import console, sharding_rules
from alt_jax.config import Config
from alt_jax.data import histories
from alt_jax.data.dataset import Encoder
from alt_jax.data.frames import as_table
from alt_jax.data.online import OnlineEncoder
from alt_jax.data.prompt import Pieces, prompt_lengths
from alt_jax.data.sources import table
from alt_jax.data.spelling import Spelled
from alt_jax.data.table_files import check_output
from alt_jax.evaluate import Probabilities
from alt_jax.export import read_params
from alt_jax.partial import file_for, writing
from alt_jax.run import Run
from alt_jax.run_files import PARAMS
from alt_jax.sharding import make_mesh, place, replicated, split_rows
from alt_jax.sharding_rules import check_rules
from alt_jax.stages import finetune_task, load_finetuned, open_dataset
from alt_jax.tasks import Finetune, Params, text_length

# Rows that programs are compiled for, with ids alone and with a text tower; see `Scorer.batches`.
ID_SIZES, TEXT_SIZES = (1, 8, 64, 512, 4096), (1, 8, 64, 256)
_MANY = 64  # of the largest batches; tables of more rows are scored as a dataset is


class Scorer:
    """A finished model that scores raw rows.

    ```
    scorer = alt_jax.Scorer.load("runs/joint")
    scorer.score([{"user_id": "u1", "title": "A film"}, {"user_id": "u2", "title": "A film"}])
    ```

    Parameters are put on the devices once. Programs are compiled for a few sizes of batches and lengths of prompts,
    each when it is first needed or in `warm_up`, and kept for as long as the scorer is.

    Attributes:
      task: Model and strategy.
      encoder: What raw rows are encoded with.
      columns: Those that the model reads, each with a clause (`Schema.columns_of`).
    """

    def __init__(
        self, task: Finetune, params: Params, encoder: Encoder, devices: Sequence[jax.Device] | None = None
    ) -> None:
        """Puts the parameters on the devices, by default on all.

        Raises:
          InputError: The devices do not divide a table that the config splits over them.
        """
        self.task, self.encoder = task, encoder
        self.columns = encoder.schema.columns_of(task.strategy)
        self._mesh, rules = make_mesh(devices), sharding_rules.rules(task.model.config)
        check_rules(self._mesh, rules)
        self._params = place(self._mesh, params, rules)
        self._online = OnlineEncoder(encoder)
        self._program = jax.jit(task.score, out_shardings=replicated(self._mesh))
        self._reads = task.strategy != "ctr"
        devices_, sizes = self._mesh.size, TEXT_SIZES if self._reads else ID_SIZES
        self.sizes = tuple(sorted({devices_ * -(-size // devices_) for size in sizes}))
        text = encoder.schema.text
        # Prompts of nine training rows in ten, of all, and of any row.
        rows = np.cumsum(encoder.schema.splits["train"].prompts)
        common = int(np.searchsorted(rows, 0.9 * rows[-1]))
        lengths = {text_length(length) for length in (common, text.length, text.max_length)}
        self.lengths = tuple(sorted(lengths)) if self._reads else (0,)

    @property
    def config(self) -> Config:
        """What the model was trained with; CSV files are read like those that it was trained on."""
        return self.task.model.config

    @classmethod
    def load(
        cls, folder: str | Path, devices: Sequence[jax.Device] | None = None, data: Sequence[str] = ()
    ) -> "Scorer":
        """Opens a finetuning run or an export.

        Args:
          folder: Of the run, whose dataset must still be there, or of the export, which needs nothing else.
          devices: Hold the model and share out the rows; by default all.
          data: Where the run's dataset is, if not where it was.

        Raises:
          InputError: The folder is neither, or is damaged.
        """
        folder = Path(folder)
        if (folder / PARAMS).is_file():
            task = finetune_task(Run.load(folder))
            return cls(task, read_params(folder / PARAMS, task), Encoder.load(folder), devices)
        trained = load_finetuned(folder)
        return cls(trained.task, trained.params, Encoder.load(open_dataset(trained.run, data).folder), devices)

    def score(self, rows: Any, origin: str = "the table") -> Float[np.ndarray, " N"]:
        """Click probability of every raw row, in order.

        Args:
          rows: A `pyarrow.Table`, a data frame of pandas or of whatever else has Arrow's C stream (Polars, DuckDB), a
            dict of columns, or a list of dicts. Has the `columns`; others are ignored. A missing value is None.
          origin: Name of the rows, for messages.

        Raises:
          InputError: A column is missing or cannot be read as its field's kind.
        """
        raw = self._completed(as_table(rows, self.columns, origin))
        if raw.num_rows > _MANY * self.sizes[-1]:
            values, pieces = self.encoder.encode(raw, origin, prompts=self._reads)
            return Probabilities(self.task, self._mesh, pieces)(self._params, values)
        return self.score_spelled(self._online.spell(raw, origin), origin)

    def _completed(self, rows: pa.Table) -> pa.Table:
        """The rows with nothing in the columns that the model does not read."""
        for column in self.encoder.columns.keys() - self.columns.keys():
            if column in rows.column_names:
                rows = rows.drop_columns(column)
            rows = rows.append_column(column, pa.nulls(rows.num_rows))
        return rows

    def score_spelled(self, columns: Sequence[Spelled], origin: str = "the table") -> Float[np.ndarray, " N"]:
        """The same for columns that are spelled already, one for each of the schema's fields, in its order."""
        values, pieces = self._online.encode(columns, origin, prompts=self._reads)
        logits = np.empty(len(values), np.float64)
        batches = [
            (rows, self._dispatch(pieces, values[padded], length))
            for rows, padded, length in self.batches(values, pieces)
        ]
        for rows, found in batches:
            logits[rows] = np.asarray(found)[: len(rows)]
        probability: np.ndarray = expit(logits)
        return probability

    def programs(self, most: int | None = None) -> list[tuple[int, int]]:
        """Rows and prompt length of every program that tables of up to `most` rows need; None: tables of any length."""
        most = most or self.sizes[-1]
        return [(size, length) for size in self.sizes if size <= self._size(most) for length in self.lengths]

    def compile(self, size: int, length: int) -> None:
        """Compiles one of `programs`, and runs it once."""
        values = np.full((size, sum(self.encoder.schema.widths)), -1, np.int32)
        jax.block_until_ready(self._dispatch(self.encoder.pieces, values, length))

    def warm_up(self, most: int | None = None) -> None:
        """Compiles all `programs`, so that no later call has to."""
        for size, length in self.programs(most):
            self.compile(size, length)

    def batches(
        self, values: Int[np.ndarray, "N S"], pieces: Pieces
    ) -> Iterator[tuple[Int[np.ndarray, " n"], Int[np.ndarray, " B"], int]]:
        """All rows in batches of the sizes and lengths that there are programs for, at most half of each filled up.

        Yields:
          Which rows; the same, filled up with the last of them; and the length that their prompts are padded to.
        """
        lengths: Any = np.zeros(len(values), np.int32)
        if self._reads:
            lengths = prompt_lengths(pieces, values, self.encoder.schema.widths)
        order = np.argsort(lengths, kind="stable")
        low = 0
        while low < len(order):
            left = len(order) - low
            size = self._size(left)
            if size > 2 * left and size != self.sizes[0]:
                size = self.sizes[self.sizes.index(size) - 1]
            rows = order[low : low + size]
            length = next(length for length in self.lengths if length >= lengths[rows[-1]])
            yield rows, np.pad(rows, (0, size - len(rows)), mode="edge"), length
            low += len(rows)

    def _size(self, rows: int) -> int:
        """The smallest batch that holds so many rows, or else the largest there is."""
        return next((size for size in self.sizes if size >= rows), self.sizes[-1])

    def _dispatch(self, pieces: Pieces, values: Int[np.ndarray, "B S"], length: int) -> Float[jax.Array, " B"]:
        """Logits of one batch, without waiting for them."""
        inputs = self.task.inputs(pieces, values, length)
        with jax.set_mesh(self._mesh):
            logits: jax.Array = self._program(self._params, split_rows(self._mesh, inputs))
        return logits


def predict(
    folder: Path,
    rows: Path,
    output: Path,
    data: Sequence[str] = (),
    *,
    keep: Sequence[str] = (),
    history: str = "",
) -> int:
    """Scores a table of raw rows.

    Args:
      folder: A finetuning run or an export.
      rows: Has the columns that the model reads; the label is not needed. That of a sequence holds item ids, newest
        first, with the field's separator between them, or a list of them.
      output: Parquet (or CSV, by its name) with a column `score`, one line per row, in order.
      data: Where the run's dataset is, if not where it was.
      keep: Columns of the rows that stand before the scores.
      history: A log to make the sequences from, instead of columns (`alt_jax.data.histories.load`); empty: none.

    Returns:
      Number of rows.

    Raises:
      InputError: The model, the rows or the output cannot be used.
    """
    check_output(rows, output)
    with file_for(output) as partial:
        model = Scorer.load(folder, data=data)
        notices: list[str] = []
        schema, config = model.encoder.schema, model.config.data
        wanted = model.columns | dict.fromkeys(keep, "")
        if history:
            made = {field.column for field in schema.fields if field.kind == "sequence"}
            wanted = {column: clause for column, clause in wanted.items() if column not in made}
            wanted |= dict.fromkeys(histories.columns(config, schema), "")
        raw = table.read(rows, wanted, encoded=True, csv=config.csv, notices=notices)
        for notice in notices:
            console.log(f"note: {notice}")
        kept = {column: _decoded(raw[column]) for column in keep}
        if history:
            raw = histories.fill(raw, histories.load(history, config), config, schema, str(rows))
        scores = pa.table(kept | {"score": pa.array(model.score(raw, str(rows)))})
        with writing(output):
            (pq.write_table if output.suffix == ".parquet" else pyarrow.csv.write_csv)(scores, partial)
    return raw.num_rows


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column

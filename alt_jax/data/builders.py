"""Every data source as a `tensorflow-datasets` builder that needs no TensorFlow.

```
builder = Movielens1m(data_dir=...)
builder.download_and_prepare()
source = builder.as_data_source(split="ratings")   # random access, one example a rating, the raw columns

clicks = TableConfig(name="clicks", data=DataConfig(raw="clicks.parquet", fields=..., label="clicked"))
Table(config=clicks, data_dir=...).download_and_prepare()
```

An example is a row of the raw data: its number, its columns as text (a missing value is empty, a list is joined by its
field's separator), its label, and its time where there is one. Labelling and splitting are `prepare`'s.

The builders of `tensorflow-datasets` itself import TensorFlow. These write array_record files.
"""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow_datasets as tfds

from alt_jax.config import DataConfig, FieldConfig
from alt_jax.data.download import fetch
from alt_jax.data.sources import bookcrossing, goodreads, movielens, table
from alt_jax.data.sources.raw import RawData, as_text
from alt_jax.errors import InputError

_MOVIELENS = """@article{harper2015movielens,
  author = {Harper, F. Maxwell and Konstan, Joseph A.},
  title = {The MovieLens Datasets: History and Context},
  journal = {ACM Transactions on Interactive Intelligent Systems},
  volume = {5}, number = {4}, year = {2015},
}"""
_BOOKCROSSING = """@inproceedings{ziegler2005improving,
  author = {Ziegler, Cai-Nicolas and McNee, Sean M. and Konstan, Joseph A. and Lausen, Georg},
  title = {Improving Recommendation Lists Through Topic Diversification},
  booktitle = {WWW}, year = {2005},
}"""
_GOODREADS = """@inproceedings{wan2018item,
  author = {Wan, Mengting and McAuley, Julian},
  title = {Item Recommendation on Monotonic Behavior Chains},
  booktitle = {RecSys}, year = {2018},
}"""
_CHUNK = 10_000


class _Rows(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """What all builders share. A source says what its columns are and how its raw data is read."""

    SPLIT = "ratings"
    LABEL = "rating"
    TIMESTAMP: Any = None
    HOMEPAGE = ""
    CITATION = ""
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012 (the base class declares it so)

    def __init__(
        self,
        *,
        data_dir: str | os.PathLike[str] | None = None,
        config: tfds.core.BuilderConfig | None = None,
        version: str | None = None,
        file_format: str = "array_record",
    ):
        # Only array_record can be read and written without TensorFlow and at random positions.
        super().__init__(data_dir=data_dir, config=config, version=version, file_format=file_format)

    def _fields(self) -> tuple[FieldConfig, ...]:
        raise NotImplementedError

    def _read(self, dl_manager: tfds.download.DownloadManager) -> RawData:
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, Any] = {"row": np.int64, **{f.column: tfds.features.Text() for f in self._fields()}}
        features[self.LABEL] = np.float32
        if self.TIMESTAMP is not None:
            features["timestamp"] = self.TIMESTAMP
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(features),
            homepage=self.HOMEPAGE,
            citation=self.CITATION,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, Any]]]:
        return {self.SPLIT: self._generate_examples(self._read(dl_manager))}

    def _generate_examples(self, raw: RawData) -> Iterator[tuple[int, Any]]:
        columns = {f.column: _as_one_text(raw.table[f.column], f, raw.origin) for f in self._fields()}
        columns[self.LABEL] = raw.table[raw.label]
        if raw.timestamp is not None and self.TIMESTAMP is not None:
            columns["timestamp"] = raw.table[raw.timestamp]
        row = 0
        for batch in pa.table(columns).to_batches(max_chunksize=_CHUNK):
            for example in batch.to_pylist():
                yield row, {"row": row, **example}
                row += 1


def _as_one_text(column: pa.ChunkedArray, field: FieldConfig, origin: str) -> pa.Array:
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        joined = pc.binary_join(column.combine_chunks().cast(pa.list_(pa.string())), field.separator)
        column = pc.fill_null(joined, "")
    return as_text(column, field.column, origin)


def _manual(dl_manager: tfds.download.DownloadManager) -> Path | None:
    """The folder of files that were fetched by hand, if there is one."""
    try:
        return Path(dl_manager.manual_dir)
    except AssertionError:  # how the manager says that there is none
        return None


class _Movielens(_Rows, skip_registration=True):  # type: ignore[call-arg]
    """What both releases share."""

    SOURCE = ""
    TIMESTAMP = np.int64
    HOMEPAGE = "https://grouplens.org/datasets/movielens/"
    CITATION = _MOVIELENS
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Without a network, put the original zip (ml-100k.zip or ml-1m.zip) here."

    def _fields(self) -> tuple[FieldConfig, ...]:
        return movielens.FIELDS

    def _read(self, dl_manager: tfds.download.DownloadManager) -> RawData:
        release, manual = movielens.RELEASES[self.SOURCE], _manual(dl_manager)
        path = None if manual is None else manual / release.archive.name
        if path is None or not path.is_file():
            path = fetch(release.archive, Path(dl_manager.download_dir))
        return movielens.read(self.SOURCE, release, path)


class Movielens100k(_Movielens):
    """MovieLens 100K: 100,000 ratings with their user's and their movie's columns; split `ratings`."""

    SOURCE = "movielens_100k"


class Movielens1m(_Movielens):
    """MovieLens 1M: 1,000,209 ratings with their user's and their movie's columns; split `ratings`."""

    SOURCE = "movielens_1m"


class BookCrossing(_Rows):
    """BookCrossing: ratings from 0 (implicit) to 10 with their user's and their book's columns; split `ratings`."""

    HOMEPAGE = "http://www2.informatik.uni-freiburg.de/~cziegler/BX/"
    CITATION = _BOOKCROSSING
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put BX-CSV-Dump.zip here, or its three files."

    def _fields(self) -> tuple[FieldConfig, ...]:
        return bookcrossing.FIELDS

    def _read(self, dl_manager: tfds.download.DownloadManager) -> RawData:
        manual = _manual(dl_manager)
        if manual is None:
            raise InputError("BookCrossing must be fetched by hand: name the folder of BX-CSV-Dump.zip as manual_dir.")
        path = manual / "BX-CSV-Dump.zip"
        return bookcrossing.read(path if path.is_file() else manual)


class GoodReads(_Rows):
    """GoodReads: ratings from 0 (none given) to 5 with their book's columns as published; split `ratings`."""

    HOMEPAGE = "https://mengtingwan.github.io/data/goodreads.html"
    CITATION = _GOODREADS
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the seven files of the UCSD Book Graph here."

    def _fields(self) -> tuple[FieldConfig, ...]:
        return goodreads.FIELDS

    def _read(self, dl_manager: tfds.download.DownloadManager) -> RawData:
        manual = _manual(dl_manager)
        if manual is None:
            raise InputError("GoodReads must be fetched by hand: name the folder of its seven files as manual_dir.")
        return goodreads.read(manual)


@dataclasses.dataclass(eq=False)
class TableConfig(tfds.core.BuilderConfig):
    """An own table. Files are kept by its name: another table, or the same with other columns, wants another one.

    Attributes:
      data: Where the table is and what its columns mean; see `alt_jax.config.DataConfig`.
    """

    data: DataConfig = dataclasses.field(kw_only=True)


class Table(_Rows):
    """An own CSV or Parquet table: its declared columns and label, and `timestamp` if one is declared; split `rows`."""

    SPLIT = "rows"

    def __init__(
        self,
        *,
        config: TableConfig,
        data_dir: str | os.PathLike[str] | None = None,
        version: str | None = None,
        file_format: str = "array_record",
    ):
        for field in config.data.fields:
            if field.column in ("row", "timestamp"):
                raise InputError(
                    f"Column {field.column!r} of {config.data.raw} has a name that the builder gives; rename it."
                )
        self.LABEL = config.data.label
        if config.data.timestamp is not None:
            path, name = config.data.raw, config.data.timestamp
            column = table.read(Path(path), [name], csv=config.data.csv)[name]
            whole = pa.types.is_integer(table.times(column, name, path).type)
            # A plain float is stored with 32 bits, whatever its type: seconds since 1970 in steps of 128.
            self.TIMESTAMP = np.int64 if whole else tfds.features.Tensor(shape=(), dtype=np.float64, encoding="bytes")
        super().__init__(data_dir=data_dir, config=config, version=version, file_format=file_format)

    def _fields(self) -> tuple[FieldConfig, ...]:
        return tuple(f for f in self.builder_config.data.fields if f.kind != "sequence")  # a sequence is made, not read

    def _read(self, dl_manager: tfds.download.DownloadManager) -> RawData:
        return table.load(self.builder_config.data)

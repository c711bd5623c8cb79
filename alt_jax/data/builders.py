"""MovieLens as `tensorflow-datasets` builders that need no TensorFlow.

```
builder = Movielens1m(data_dir=...)
builder.download_and_prepare()
source = builder.as_data_source(split="ratings")   # random access, one example a rating, the raw columns
```

The builders of `tensorflow-datasets` itself import TensorFlow. These write array_record files.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from alt_jax.data.download import fetch
from alt_jax.data.sources.movielens import RELEASES, read

_CITATION = """@article{harper2015movielens,
  author = {Harper, F. Maxwell and Konstan, Joseph A.},
  title = {The MovieLens Datasets: History and Context},
  journal = {ACM Transactions on Interactive Intelligent Systems},
  volume = {5}, number = {4}, year = {2015},
}"""
_TEXT = ("user_id", "gender", "age", "occupation", "zipcode", "movie_id", "title", "genre")


class _Movielens(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """What both releases share."""

    SOURCE = ""
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Without a network, put the original zip (ml-100k.zip or ml-1m.zip) here."
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012 (the base class declares it so)

    def __init__(
        self,
        *,
        data_dir: str | os.PathLike[str] | None = None,
        config: None = None,
        version: str | None = None,
        file_format: str = "array_record",
    ):
        # Only array_record can be read and written without TensorFlow and at random positions.
        super().__init__(data_dir=data_dir, config=config, version=version, file_format=file_format)

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, Any] = {"row": np.int64, **{name: tfds.features.Text() for name in _TEXT}}
        features |= {"rating": np.float32, "timestamp": np.int64}
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Every rating of {RELEASES[self.SOURCE].folder} with its user's and its movie's columns.",
            features=tfds.features.FeaturesDict(features),
            homepage="https://grouplens.org/datasets/movielens/",
            citation=_CITATION,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, Any]]]:
        name = f"{RELEASES[self.SOURCE].folder}.zip"
        try:
            path = Path(dl_manager.manual_dir) / name
        except AssertionError:  # how the manager says that there is no such folder
            path = None
        if path is None or not path.is_file():
            path = fetch(RELEASES[self.SOURCE].archive, Path(dl_manager.download_dir))
        return {"ratings": self._generate_examples(path)}

    def _generate_examples(self, path: Path) -> Iterator[tuple[int, Any]]:
        raw = read(self.SOURCE, RELEASES[self.SOURCE], path)
        columns = [*_TEXT, "rating", "timestamp"]
        row = 0
        for batch in raw.table.select(columns).to_batches(max_chunksize=10_000):
            for example in batch.to_pylist():
                yield row, {"row": row, **example}
                row += 1


class Movielens100k(_Movielens):
    """MovieLens 100K: 100,000 ratings; split `ratings`."""

    SOURCE = "movielens_100k"


class Movielens1m(_Movielens):
    """MovieLens 1M: 1,000,209 ratings; split `ratings`."""

    SOURCE = "movielens_1m"

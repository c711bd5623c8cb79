"""MovieLens as `tensorflow-datasets` builders that need no TensorFlow, and the download that they share with `prepare`.

```
builder = Movielens1m(data_dir=...)
builder.download_and_prepare()
source = builder.as_data_source(split="ratings")   # random access, one example a rating, the raw columns
```

The builders of `tensorflow-datasets` itself import TensorFlow. These write array_record files.
"""

import hashlib
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from alt_jax.data.sources.movielens import RELEASES, Release, read
from alt_jax.errors import InputError

_TIMEOUT_S = 60
_BLOCK = 1 << 16
_CITATION = """@article{harper2015movielens,
  author = {Harper, F. Maxwell and Konstan, Joseph A.},
  title = {The MovieLens Datasets: History and Context},
  journal = {ACM Transactions on Interactive Intelligent Systems},
  volume = {5}, number = {4}, year = {2015},
}"""
_TEXT = ("user_id", "gender", "age", "occupation", "zipcode", "movie_id", "title", "genre")


def fetch(source: str, folder: str | Path | None = None) -> Path:
    """Downloads a release's original zip, unless it is there, and checks its size and SHA-256.

    Args:
      source: `movielens_100k` or `movielens_1m`.
      folder: Where it goes; by default where `tensorflow-datasets` keeps downloads (`TFDS_DATA_DIR` moves it).

    Returns:
      The zip.

    Raises:
      InputError: It cannot be downloaded, or what arrives is not the original.
    """
    release = RELEASES[source]
    home = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    folder = Path(folder) if folder else Path(home).expanduser() / "downloads"
    path = folder / f"{release.folder}.zip"
    if path.is_file() and _is_original(path, release):
        return path
    advice = f"download it where there is a network and pass --data.raw PATH/{release.folder}.zip."
    print(f"downloading {release.url} ({release.zip_bytes / 1e6:.1f} MB)")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A file of its own per attempt: neither a killed download nor a second one beside it can spoil the zip.
        descriptor, partial = tempfile.mkstemp(dir=folder, prefix=f".{release.folder}.")
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}); set TFDS_DATA_DIR elsewhere.") from None
    try:
        with os.fdopen(descriptor, "wb") as out, urllib.request.urlopen(release.url, timeout=_TIMEOUT_S) as response:
            received = 0
            while (block := response.read(_BLOCK)) and received <= release.zip_bytes:
                received += out.write(block)
        if not _is_original(Path(partial), release):
            raise InputError(f"{release.url} does not give the original file (by size and SHA-256); {advice}")
        os.replace(partial, path)
    except (OSError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(f"{release.url} cannot be downloaded ({reason}); {advice}") from None
    finally:
        Path(partial).unlink(missing_ok=True)
    return path


def _is_original(path: Path, release: Release) -> bool:
    if path.stat().st_size != release.zip_bytes:
        return False
    return hashlib.sha256(path.read_bytes()).hexdigest() == release.zip_sha256


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
            path = fetch(self.SOURCE, Path(dl_manager.download_dir))
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

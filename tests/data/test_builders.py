"""The builders work where TensorFlow is not installed, and the download is checked."""

import ast
import hashlib
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import bookcrossing_files
import goodreads_files
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from movielens_files import Raw, make_raw

from alt_jax.config import DataConfig, FieldConfig
from alt_jax.data import builders, sources
from alt_jax.data.download import fetch
from alt_jax.data.sources.movielens import RELEASES
from alt_jax.errors import InputError

BUILD = """
import sys
from pathlib import Path
import tensorflow_datasets as tfds
from alt_jax.config import DataConfig, FieldConfig
from alt_jax.data import builders

name, out, folder, manual = sys.argv[1:]
config = None
if name == "Table":
    fields = (FieldConfig("who"), FieldConfig("tags", kind="multi"), FieldConfig("past", kind="sequence", of="who"))
    data = DataConfig(raw=f"{manual}/t.parquet", fields=fields, label="clicked", timestamp="when")
    config = builders.TableConfig(name="clicks", data=data)
builder = getattr(builders, name)(data_dir=folder, config=config)
builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual))
source = builder.as_data_source(split="rows" if name == "Table" else "ratings")
plain = lambda v: v.decode() if isinstance(v, bytes) else getattr(v, "item", lambda: v)()
rows = [{name: plain(value) for name, value in example.items()} for example in source]
assert "tensorflow" not in sys.modules
Path(out).write_text(repr(sorted(rows, key=lambda row: row["row"])), encoding="utf-8")
"""


def built(name: str, tmp_path: Path) -> list[dict[str, object]]:
    """The examples that a builder makes in a process of its own, of what is in `tmp_path / "manual"`."""
    arguments = [name, str(tmp_path / "rows"), str(tmp_path / "tfds"), str(tmp_path / "manual")]
    done = subprocess.run([sys.executable, "-c", BUILD, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return ast.literal_eval((tmp_path / "rows").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["Movielens1m", "BookCrossing", "GoodReads"])
def test_build_and_read_without_tensorflow(tmp_path: Path, name: str):
    if name == "GoodReads":
        path = goodreads_files.make_raw().folder(tmp_path / "manual")
    else:
        (tmp_path / "manual").mkdir()
        made, file = {
            "Movielens1m": (make_raw("movielens_1m"), "ml-1m.zip"),
            "BookCrossing": (bookcrossing_files.make_raw(), "BX-CSV-Dump.zip"),
        }[name]
        path = made.zip(tmp_path / "manual" / file)
    source = {"Movielens1m": "movielens_1m", "BookCrossing": "bookcrossing", "GoodReads": "goodreads"}[name]
    raw = sources.load(DataConfig(source=source, raw=str(path)))
    columns = [f.column for f in raw.fields] + ["rating"] + ([raw.timestamp] if raw.timestamp else [])
    rows = raw.table.select(columns).to_pylist()
    expected = [{c: "" if v is None else v for c, v in row.items()} for row in rows]
    assert built(name, tmp_path) == [{**row, "row": number} for number, row in enumerate(expected)]


def test_an_own_table_is_built_from_its_declaration(tmp_path: Path):
    (tmp_path / "manual").mkdir()
    columns = {
        "who": [7, None, 9],
        "tags": [["a", "b"], [], None],
        "clicked": [1, 0, 1],
        "when": pa.array([5, 4, 6], pa.timestamp("s")),
        "other": [1, 2, 3],
    }
    pq.write_table(pa.table(columns), tmp_path / "manual" / "t.parquet")
    assert built("Table", tmp_path) == [
        {"row": 0, "who": "7", "tags": "a|b", "clicked": 1.0, "timestamp": 5e6},
        {"row": 1, "who": "", "tags": "", "clicked": 0.0, "timestamp": 4e6},
        {"row": 2, "who": "9", "tags": "", "clicked": 1.0, "timestamp": 6e6},
    ]


@pytest.mark.parametrize(
    "when",
    [
        [1_600_000_001, 1_600_000_000, 1_600_000_127],
        [2**63 - 1, 2**63 - 2, 0],  # nanoseconds are about 2**60
        [1_600_000_000.25, 0.0, -0.1],
        ["1600000001.5", "1600000001", "7"],
    ],
)
def test_timestamps_keep_every_digit(tmp_path: Path, when: list[int | float | str]):
    (tmp_path / "manual").mkdir()
    columns = {"who": [1, 2, 3], "tags": ["", "", ""], "clicked": [1, 0, 1], "when": when}
    pq.write_table(pa.table(columns), tmp_path / "manual" / "t.parquet")
    found = [row["timestamp"] for row in built("Table", tmp_path)]
    assert found == [float(time) if isinstance(time, str) else time for time in when]
    assert len({type(time) for time in found}) == 1


def test_a_missing_timestamp_is_refused(tmp_path: Path):
    pq.write_table(pa.table({"who": [1, 2], "when": [5, None]}), tmp_path / "t.parquet")
    data = DataConfig(raw=str(tmp_path / "t.parquet"), fields=(FieldConfig("who"),), timestamp="when")
    with pytest.raises(InputError, match=r"Timestamp column 'when' of .*t\.parquet is missing in data row 2"):
        builders.Table(config=builders.TableConfig(name="t", data=data), data_dir=tmp_path / "tfds")


def test_a_column_that_is_called_like_the_builders_own_is_refused():
    data = DataConfig(raw="t.csv", fields=(FieldConfig("timestamp"),))
    with pytest.raises(InputError, match=r"Column 'timestamp' of t\.csv has a name that the builder gives"):
        builders.Table(config=builders.TableConfig(name="t", data=data))


@pytest.mark.parametrize("builder", [builders.BookCrossing, builders.GoodReads])
def test_what_must_be_fetched_by_hand_is_said(tmp_path: Path, builder: type):
    (tmp_path / "empty").mkdir()
    download = tfds.download.DownloadConfig(manual_dir=tmp_path / "empty")
    with pytest.raises(InputError, match="must be fetched by hand: name the folder of"):
        builder(data_dir=tmp_path / "tfds").download_and_prepare(download_config=download)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def served(release: Raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Raw]:
    """A release whose original lies on a server of our own."""
    (tmp_path / "www").mkdir()
    data = release.zip(tmp_path / "www" / "original.zip").read_bytes()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path / "www")))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    archive = replace(
        RELEASES[release.source].archive,
        url=f"http://127.0.0.1:{server.server_port}/original.zip",
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    original = replace(RELEASES[release.source], archive=archive)
    monkeypatch.setitem(RELEASES, release.source, original)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "home"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield release
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_empty_raw_path_means_the_download(served: Raw, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    raw = sources.load(DataConfig(source=served.source))
    assert raw.table.num_rows == 100
    assert not any("SHA-256" in notice for notice in raw.notices)
    assert "downloading" in capsys.readouterr().out
    (tmp_path / "www" / "original.zip").unlink()
    assert sources.load(DataConfig(source=served.source)).table.equals(raw.table)  # from disk this time
    assert "downloading" not in capsys.readouterr().out


def test_a_failed_download_is_one_sentence_and_leaves_nothing(served: Raw, tmp_path: Path):
    page = tmp_path / "www" / "original.zip"
    data = page.read_bytes()
    for wrong in (data[:-1], data[:-1] + b"?", data + b"more"):
        page.write_bytes(wrong)
        with pytest.raises(InputError, match=r"does not give the original file .*--data\.raw"):
            fetch(RELEASES[served.source].archive)
    page.unlink()
    with pytest.raises(InputError, match=r"cannot be downloaded \(.*--data\.raw"):
        fetch(RELEASES[served.source].archive)
    assert list((tmp_path / "home" / "downloads").iterdir()) == []

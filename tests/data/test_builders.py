"""The builders work where TensorFlow is not installed, and the download is checked."""

import hashlib
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from movielens_files import Raw, make_raw

from alt_jax.config import DataConfig
from alt_jax.data import sources
from alt_jax.data.download import fetch
from alt_jax.data.sources.movielens import RELEASES
from alt_jax.errors import InputError

BUILD = """
import sys
from pathlib import Path
import tensorflow_datasets as tfds
from alt_jax.data.builders import Movielens1m

builder = Movielens1m(data_dir=sys.argv[1])
builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=sys.argv[2]))
source = builder.as_data_source(split="ratings")
rows = sorted((example["row"], example["user_id"].decode(), example["title"].decode()) for example in source)
assert "tensorflow" not in sys.modules
Path(sys.argv[3]).write_text(repr(rows), encoding="utf-8")
"""


def test_build_and_read_without_tensorflow(tmp_path: Path):
    raw = make_raw("movielens_1m")
    (tmp_path / "manual").mkdir()
    path = raw.zip(tmp_path / "manual" / "ml-1m.zip")
    arguments = [str(tmp_path / "tfds"), str(tmp_path / "manual"), str(tmp_path / "rows")]
    done = subprocess.run([sys.executable, "-c", BUILD, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    table = sources.load(DataConfig(source="movielens_1m", raw=str(path))).table
    expected = list(zip(range(100), table["user_id"].to_pylist(), table["title"].to_pylist(), strict=True))
    assert (tmp_path / "rows").read_text(encoding="utf-8") == repr(expected)


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

"""Originals from the network: fetched once, known by size and SHA-256."""

import hashlib
import os
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from alt_jax import console
from alt_jax.errors import InputError

_TIMEOUT_S = 60
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Archive:
    """An original file, where it is and how to know it."""

    name: str
    url: str
    bytes: int
    sha256: str

    def is_original(self, path: Path) -> bool:
        """Whether the file is the original, by size and SHA-256."""
        return path.stat().st_size == self.bytes and hashlib.sha256(path.read_bytes()).hexdigest() == self.sha256


def fetch(archive: Archive, folder: str | Path | None = None) -> Path:
    """Downloads an original, unless it is there, and checks it.

    Args:
      archive: What to download.
      folder: Where it goes; by default where `tensorflow-datasets` keeps downloads (`TFDS_DATA_DIR` moves it).

    Returns:
      The file.

    Raises:
      InputError: It cannot be downloaded, or what arrives is not the original.
    """
    home = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    folder = Path(folder) if folder else Path(home).expanduser() / "downloads"
    path = folder / archive.name
    if path.is_file() and archive.is_original(path):
        return path
    advice = f"download it where there is a network and pass --data.raw PATH/{archive.name}."
    console.log(f"downloading {archive.url} ({archive.bytes / 1e6:.1f} MB)", bytes=archive.bytes)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A file of its own per attempt: neither a killed download nor a second one beside it can spoil the zip.
        descriptor, partial = tempfile.mkstemp(dir=folder, prefix=f".{archive.name}.")
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}); set TFDS_DATA_DIR elsewhere.") from None
    try:
        with os.fdopen(descriptor, "wb") as out, urllib.request.urlopen(archive.url, timeout=_TIMEOUT_S) as response:
            received = 0
            while (block := response.read(_BLOCK)) and received <= archive.bytes:
                received += out.write(block)
        if not archive.is_original(Path(partial)):
            raise InputError(f"{archive.url} does not give the original file (by size and SHA-256); {advice}")
        os.replace(partial, path)
    except (OSError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(f"{archive.url} cannot be downloaded ({reason}); {advice}") from None
    finally:
        Path(partial).unlink(missing_ok=True)
    return path

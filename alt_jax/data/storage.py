"""Where a prepared dataset lies: a folder, or a URL that fsspec knows (`gs://`, `s3://`, `memory://`, …).

Of a dataset behind a URL, what is no row is copied into a folder that goes when the process ends, and so are the shards
that something other than training asks for, one by one. Training reads its shards from where they lie.
"""

import atexit
import functools
import shutil
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path

from alt_jax.errors import InputError, first_line
from alt_jax.schema import SPLITS

SCHEMA = "schema.json"  # written last: where it is, the rest is
VOCABULARY, PIECES, TOKENIZER, CONFIG = "vocabulary.parquet", "pieces.npz", "tokenizer", "config.json"
ENTRIES = (SCHEMA, VOCABULARY, PIECES, TOKENIZER, CONFIG, *SPLITS)  # of a prepared dataset


class Place(ABC):
    """A prepared dataset's files, by their names relative to it.

    Attributes:
      name: The folder or URL, as the user gave it.
    """

    name: str

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether there is a file of that name.

        Raises:
          InputError: That cannot be told.
        """

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Bytes of every file; empty where there is nothing."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A file's bytes.

        Raises:
          InputError: It cannot be read.
        """

    @property
    @abstractmethod
    def folder(self) -> Path:
        """The local folder that `local` speaks of.

        Raises:
          InputError: There is no dataset behind the URL.
        """

    @abstractmethod
    def local(self, name: str) -> Path:
        """The file, or a copy of it, in `folder`.

        Raises:
          InputError: It cannot be copied.
        """

    def __truediv__(self, name: str) -> str:
        """What to call a file in a message."""
        return f"{self.name.rstrip('/')}/{name}"


class Folder(Place):
    """A folder on a local disk."""

    def __init__(self, path: Path) -> None:
        """Does not look whether it is there."""
        self.name, self._path = str(path), path

    @property
    def folder(self) -> Path:
        """See `Place`."""
        return self._path

    def has(self, name: str) -> bool:
        """See `Place`."""
        return (self._path / name).is_file()

    def sizes(self) -> dict[str, int]:
        """See `Place`."""
        files = (path for path in self._path.rglob("*") if path.is_file())
        return {path.relative_to(self._path).as_posix(): path.stat().st_size for path in files}

    def read(self, name: str) -> bytes:
        """See `Place`."""
        try:
            return (self._path / name).read_bytes()
        except OSError as error:
            raise unreadable(self / name, error) from None

    def local(self, name: str) -> Path:
        """See `Place`."""
        return self._path / name


class Remote(Place):
    """A URL.

    Attributes:
      url: It.
    """

    def __init__(self, url: str) -> None:
        """Connects to nothing yet.

        Raises:
          InputError: fsspec does not know the URL's protocol, or lacks the package for it.
        """
        import fsspec  # noqa: PLC0415 - a tenth of a second that folders need not wait for

        self.name = self.url = url.rstrip("/")
        try:
            self._files, self._root = fsspec.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise InputError(
                f"{url} cannot be opened ({first_line(error)}); install what its protocol needs (for gs:// it is "
                "`pip install 'alt-jax[gcs]'`) or correct the URL."
            ) from None

    def has(self, name: str) -> bool:
        """See `Place`."""
        return name in self.sizes()

    def sizes(self) -> dict[str, int]:
        """See `Place`."""
        try:
            self._files.invalidate_cache()  # another process may have written meanwhile
            found = self._files.find(self._root, detail=True)
        except FileNotFoundError:
            return {}
        except Exception as error:  # every kind of storage has its own
            raise unreadable(self.url, error) from None
        return {path.removeprefix(self._root).lstrip("/"): int(entry["size"]) for path, entry in found.items()}

    def read(self, name: str) -> bytes:
        """See `Place`."""
        try:
            content: bytes = self._files.cat_file(f"{self._root}/{name}")
        except Exception as error:  # every kind of storage has its own
            raise unreadable(self / name, error) from None
        return content

    @functools.cached_property
    def folder(self) -> Path:
        """See `Place`. One dataset has one as long as the process lives, so that nothing is copied twice."""
        try:
            schema = self._files.cat_file(f"{self._root}/{SCHEMA}")
        except FileNotFoundError:
            raise InputError(
                f"{self / SCHEMA} does not exist; run `alt-jax prepare` first or correct --data.dir."
            ) from None
        except Exception as error:  # every kind of storage has its own
            raise unreadable(self / SCHEMA, error) from None
        folder = _copies(self.url, schema)
        (folder / SCHEMA).write_bytes(schema)
        return folder

    def local(self, name: str) -> Path:
        """See `Place`."""
        path = self.folder / name
        if ".." in path.parts:  # which names of objects may have, and folders would follow
            raise InputError(f"{self / name} is no name of a file of a dataset; remove it, or prepare again.")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.partial")
            try:
                self._files.get_file(f"{self._root}/{name}", str(partial))
            except Exception as error:  # every kind of storage has its own
                raise unreadable(self / name, error) from None
            partial.replace(path)
        return path

    def write(self, name: str, path: Path) -> None:
        """Writes what the file at `path` holds.

        Raises:
          InputError: It cannot be written.
        """
        import fsspec  # noqa: PLC0415 - as above

        try:
            with path.open("rb") as source, fsspec.open(self / name, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 24)
        except Exception as error:  # every kind of storage has its own
            raise _unwritable(self / name, error) from None

    def remove(self, name: str) -> None:
        """Removes a file.

        Raises:
          InputError: It cannot be removed.
        """
        try:
            self._files.rm_file(f"{self._root}/{name}")
        except Exception as error:  # every kind of storage has its own
            raise InputError(f"{self / name} cannot be removed ({first_line(error)}); remove it by hand.") from None


def place(name: str | Path) -> Place:
    """The place that a config's `data.dir` names."""
    return Remote(str(name)) if is_url(name) else Folder(Path(name))


def is_url(name: str | Path) -> bool:
    """Whether this is a URL, not a folder. `file://` is one: what it names is streamed."""
    return "://" in str(name)


def write_bytes(folder: str | Path, name: str, content: bytes | memoryview) -> None:
    """Writes a file into a folder or under a URL.

    Raises:
      InputError: It cannot be written.
    """
    try:
        if is_url(folder):
            import fsspec  # noqa: PLC0415 - as above

            with fsspec.open(f"{folder}/{name}", "wb") as file:
                file.write(content)
            return
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except Exception as error:  # every kind of storage has its own
        raise _unwritable(f"{folder}/{name}", error) from None


def unreadable(name: str, error: Exception) -> InputError:
    """What to say of a file that cannot be read."""
    reason = "it does not exist" if isinstance(error, FileNotFoundError) else first_line(error)
    return InputError(f"{name} cannot be read ({reason}); copy the dataset again, or prepare it again.")


def _unwritable(name: str, error: Exception) -> InputError:
    return InputError(f"{name} cannot be written ({first_line(error)}); make room for it, or choose another place.")


@functools.cache
def _copies(url: str, schema: bytes) -> Path:
    """The folder that takes the copies of the files of one dataset, which its `schema.json` tells from a later one."""
    folder = Path(tempfile.mkdtemp(prefix="alt-jax-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder

"""What readers of published data sets share: their files, and messages that name a line."""

import lzma
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from alt_jax.data.published import require_archive
from alt_jax.errors import InputError, shortened

_MOST = 1 << 30  # bytes of a file in a zip; the largest of the originals has 78 MB


@dataclass(frozen=True)
class Lines:
    """Where lines come from, for messages."""

    file: str

    def wrong(self, line: int, problem: str) -> InputError:
        """An error that names file and line."""
        return InputError(f"{self.file}, line {line}: {shortened(problem)}; get the original file again.")


def read_files(path: Path, folder: str, needed: Sequence[str], optional: Sequence[str] = ()) -> dict[str, bytes]:
    """Bytes of the named files of a zip, or of its unpacked folder, which may lie inside `path` as `folder`.

    Raises:
      InputError: The path, the zip or one of the needed files is missing or damaged.
    """
    names = (*needed, *optional)
    require_archive(path, folder)
    if path.is_dir():
        inside = path / folder if (path / folder).is_dir() else path
        files = {name: (inside / name).read_bytes() for name in names if (inside / name).is_file()}
    else:
        files = _read_zip(path, names)
    for name in needed:
        if name not in files:
            raise InputError(f"{path} holds no {name}; get the original {folder}.zip again.")
    return files


# What Python's zip reader and its decompressors raise; encryption and unknown methods are RuntimeErrors.
DAMAGED_ZIP = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, RuntimeError),
    UnicodeDecodeError,
)


def _read_zip(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = member.filename.rsplit("/", 1)[-1]
                if name in names and not member.filename.startswith("__MACOSX"):
                    if name in files:
                        raise InputError(f"{path} holds {name} more than once; use the original zip.")
                    if member.file_size > _MOST:  # no more than it says is ever unpacked
                        raise InputError(
                            f"{path} says that {name} has {member.file_size:,} bytes, which no original has; get the "
                            "original zip again."
                        )
                    files[name] = archive.read(member)
    except DAMAGED_ZIP as error:
        raise InputError(f"{path} is not a whole zip file ({shortened(str(error))}); get it again.") from None
    return files


def decode(data: bytes, where: Lines, notices: list[str]) -> str:
    """Text of a file whose original is Latin-1.

    Accented Latin-1 text is practically never valid UTF-8, so what decodes as UTF-8 was converted by someone, and
    reading it as Latin-1 would garble the titles: it is read as UTF-8, with a notice.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")
    if not text.isascii():
        notices.append(f"{where.file} is UTF-8 where the original is Latin-1: read as UTF-8.")
    return text


def first_duplicate(user: Int[np.ndarray, " N"], item: Int[np.ndarray, " N"]) -> tuple[int, int] | None:
    """The first two rows of the same user and item, if there are any: they could land in training and test."""
    pair = user.astype(np.int64) * (int(item.max(initial=0)) + 1) + item
    order = np.argsort(pair, kind="stable")
    again = np.flatnonzero(np.diff(pair[order]) == 0)
    if not len(again):
        return None
    return int(order[again[0]]), int(order[again[0] + 1])


def spread(
    values: Sequence[str | None] | pa.Array | pa.ChunkedArray, rows: Int[np.ndarray, " N"]
) -> pa.DictionaryArray:
    """A column of the user or item table, spread over the ratings without copying strings; missing where row is -1."""
    column = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else pa.array(values, pa.string())
    encoded = pc.dictionary_encode(column)
    codes = np.append(np.asarray(encoded.indices.fill_null(-1), np.int32), np.int32(-1))[rows]
    return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), encoded.dictionary)

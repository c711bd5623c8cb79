"""Programs that JAX has compiled, kept for the next start of the same command."""

import os
import secrets
import time
from pathlib import Path
from typing import Any

LIMIT = 2 << 30  # bytes
_PARTIAL = ".partial"
_ABANDONED = 600  # seconds after which nothing is still being written


def keep() -> None:
    """Has JAX keep every program that it compiles in the user's cache folder, and look there first.

    By environment variables: JAX reads them when it is imported, and the processes of a study inherit them. Those that
    the user has set count. Where the folder cannot be had, nothing is kept.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        try:
            folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alt-jax" / "xla"
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                return
            bound(folder, LIMIT)
        except (OSError, RuntimeError):  # RuntimeError: the user has no home
            return
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def write_whole() -> None:
    """Has JAX put every entry into place by a rename: a process that is killed meanwhile leaves no half of one.

    JAX writes into the file itself, and has no setting and no public hook for it.
    """
    from jax._src import lru_cache  # noqa: PLC0415 - imports JAX

    def put(self: Any, key: str, value: bytes) -> None:
        target = self.path / f"{key}-cache"
        if not target.exists():
            partial = self.path / f"{key}-{os.getpid()}-{secrets.token_hex(4)}{_PARTIAL}"
            partial.write_bytes(value)
            partial.replace(target)

    lru_cache.LRUCache.put = put  # type: ignore[method-assign]


def bound(folder: Path, limit: int) -> None:
    """Removes the programs that were compiled longest ago, until the others take at most `limit` bytes.

    Empty entries go too: a full disk leaves them, JAX warns of each at every start and does not write it again. So does
    what processes that were killed have left.
    JAX's own bound, jax_compilation_cache_max_size, is not used: a process that is killed between an entry and the file
    that says when it was used leaves a folder into which JAX 0.10 writes nothing any more.

    Raises:
      OSError: The folder cannot be read, or another process removed an entry at this very moment.
    """
    for path in folder.glob(f"*{_PARTIAL}"):
        if time.time() - path.stat().st_mtime > _ABANDONED:
            path.unlink()
    found = [(path.stat(), path) for path in folder.glob("*-cache")]
    size = sum(state.st_size for state, _ in found)
    for state, path in sorted(found, key=lambda entry: entry[0].st_mtime):
        if size > limit or not state.st_size:
            path.unlink()
            size -= state.st_size

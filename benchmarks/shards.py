"""An epoch of batches from a split in shards, from a map and window by window; one pass each, in its own process.

    python benchmarks/shards.py --rows 100000000 --memory 4 1 --folder WITH_ROOM

Row n of the split holds n in each of its slots, so that the pass can tell whether every row came once. Nothing of the
files is in memory at first. Lastly, how quickly rows can be read from the files at random when nothing of them is.
"""

import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import measure
import numpy as np
from evaluation import peak

from alt_jax.data import shards
from alt_jax.data.batches import batch_at, updates
from alt_jax.data.storage import Folder
from alt_jax.schema import Shard, Split


def write(folder: Path, rows: int, slots: int, shard_rows: int) -> Split:
    """A split whose row n is n everywhere."""
    count = shards.shard_count(rows, shard_rows)
    written: list[Shard] = []
    for number in range(count):
        row = np.arange(number * shard_rows, min((number + 1) * shard_rows, rows))
        values = np.repeat(row.astype(np.int32)[:, None], slots, axis=1)
        written.append(shards.write_shard(folder, "train", number, count, values, (row % 2).astype(np.uint8), row))
    return Split(rows, 0, shards=tuple(written))


def forget(folder: Path) -> None:
    """Has the operating system drop what it holds of the files."""
    for path in folder.rglob("*.npy"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def one_pass(folder: Path, split: Split, slots: int, memory_gib: float, batch_size: int) -> dict[str, object]:
    """Figures of one epoch."""
    started = time.perf_counter()
    rows = shards.open_for_training(Folder(folder), "train", split, slots, memory_gib)
    opened = time.perf_counter() - started
    came = np.zeros(split.rows, np.uint8)
    seconds = np.empty(updates(split.rows, batch_size, 1))
    for step in range(len(seconds)):
        started = time.perf_counter()
        batch = batch_at(rows, seed=0, step=step, batch_size=batch_size)
        seconds[step] = time.perf_counter() - started
        came[batch.values[: split.rows - step * batch_size, 0]] += 1  # without those of the next epoch
    return {
        "shards of a window": rows.windows.per_window if rows.windows else "all, mapped",
        "s to open and check": opened,
        "s first batch": float(seconds[0]),
        "us median batch": 1e6 * float(np.median(seconds)),
        "rows/s": split.rows / float(seconds[:-1].sum()),
        "s last batch, of two epochs": float(seconds[-1]),
        "every row once": bool((came == 1).all()),
        "GiB at the peak": (peak() - came.nbytes) / 2**30,
    }


def at_random(folder: Path, count: int = 200) -> float:
    """Rows a second, so many of every shard."""
    rng, seconds = np.random.default_rng(0), 0.0
    files = list((folder / "train").glob("values-*"))
    for path in files:
        values = np.load(path, mmap_mode="r")
        chosen = rng.integers(0, len(values), count)
        started = time.perf_counter()
        values.take(chosen, axis=0)
        seconds += time.perf_counter() - started
    return count * len(files) / seconds


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--shard-rows", type=int, default=1 << 22)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--memory", type=float, nargs="+", default=[4.0], help="data.memory_gib, one pass for each")
    parser.add_argument("--folder", type=Path, help="where there is room for the rows")
    arguments = parser.parse_args()
    figures: dict[str, object] = {"rows": arguments.rows, "slots": arguments.slots, "batch": arguments.batch}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        split = write(folder, arguments.rows, arguments.slots, arguments.shard_rows)
        for memory in arguments.memory:
            forget(folder)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found = pool.apply(one_pass, (folder, split, arguments.slots, memory, arguments.batch))
            figures |= {f"{memory:g} GiB: {what}": figure for what, figure in found.items()}
        forget(folder)
        figures["rows/s at random from a disk"] = at_random(folder)
    measure.show("shards", figures, arguments.json)


if __name__ == "__main__":
    main()

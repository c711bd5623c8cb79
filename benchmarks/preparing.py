"""`alt-jax prepare` of a generated click log: rows/s, peak memory, and the share that merely reading the file takes.

    python benchmarks/preparing.py --rows 50000000 --folder /some/disk
    python benchmarks/preparing.py --rows 100000000 --folder /some/disk --train     # then an epoch on the ids alone

The log is Parquet in row groups of a million rows, in order of time, with users, items and categories whose popularity
has a long tail. It is written to FOLDER, which also takes the prepared dataset, and is not timed; both are deleted.
`prepare` runs in a process of its own, as often as `--rounds` says; the median is shown, the peak is what the system
says of that process. `read` decodes the same columns and keeps nothing: the floor of anything that looks at every row.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import measure
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP = 1_000_000
# Column, how it is spelled, how many distinct values it draws from, and the exponent of Zipf's law of their popularity
CATEGORIES = (
    ("user", "{}", 1_000_000, 0.6),
    ("item", "item-{}", 200_000, 0.8),
    ("brand", "brand {}", 20_000, 0.9),
    ("category", "category {}", 1_000, 0.9),
    ("country", "country {}", 200, 1.2),
    ("device", "device {}", 10, 1.0),
)
CONFIG = """
from alt_jax.config import Config, DataConfig, FieldConfig


def get_config():
    fields = [FieldConfig(column) for column in {categories}] + [FieldConfig("price", kind="numeric")]
    return Config(
        data=DataConfig(
            raw={raw!r}, dir={dir!r}, protocol={protocol!r}, fields=tuple(fields), user="user", item="item",
            timestamp="time",
        )
    )
"""


def write_log(path: Path, rows: int) -> None:
    """A click log of so many rows; one row group is in memory at a time."""
    rng = np.random.default_rng(0)
    popularity = {}
    for column, _, size, exponent in CATEGORIES:
        weight = np.arange(1, size + 1) ** -exponent
        popularity[column] = (np.cumsum(weight) / weight.sum(), rng.permutation(size).astype(np.int32))
    names = {
        column: pa.array([spelling.format(value) for value in range(size)])
        for column, spelling, size, _ in CATEGORIES
        if column != "user"  # an integer, as ids of users often are
    }

    def group(first: int, count: int) -> pa.Table:
        columns: dict[str, pa.Array] = {}
        for column, (cumulative, value) in popularity.items():
            drawn = value[np.minimum(np.searchsorted(cumulative, rng.random(count)), len(value) - 1)]
            columns[column] = pa.array(drawn, pa.int64()) if column == "user" else names[column].take(pa.array(drawn))
        columns["price"] = pa.array(np.round(np.exp(rng.normal(2, 0.8, count)), 2))
        columns["time"] = pa.array(1_700_000_000 + (first + np.arange(count)) // 20)
        columns["label"] = pa.array(rng.random(count) < 0.2).cast(pa.int8())
        return pa.table(columns)

    writer = None
    for first in range(0, rows, ROW_GROUP):
        part = group(first, min(ROW_GROUP, rows - first))
        writer = writer or pq.ParquetWriter(path, part.schema)
        writer.write_table(part, row_group_size=ROW_GROUP)
    writer.close()


def run(command: Sequence[object]) -> tuple[str, float, int]:
    """What a process printed, its seconds, and the most bytes that it had in memory."""
    start = time.perf_counter()
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as process:
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command} failed")
    scale = 1 if sys.platform == "darwin" else 1024
    return printed, time.perf_counter() - start, usage.ru_maxrss * scale


def train(config: Path, folder: Path) -> dict[str, float]:
    """An epoch of a factorisation machine on the ids, and its validation and test; the whole process."""
    command = [sys.executable, "-m", "alt_jax", "finetune", config, "--strategy", "ctr", "--init-from", "none"]
    recipe = ["--finetune.ctr.epochs", 1, "--finetune.ctr.batch-size", 16384, "--finetune.ctr.tables", "lazy_adam"]
    tower = ["--ctr.tower", "fm", "--ctr.dim", 16]
    printed, seconds, peak = run([*command, *recipe, *tower, "--run-dir", folder])
    print(printed)
    trained = re.search(r"epoch 1/1 .* ([\d,]+) rows/s", printed)
    return {
        "s of finetuning, whole process": seconds,
        "rows/s of training": float(trained[1].replace(",", "")),
        "GiB at finetuning's peak": peak / 2**30,
    }


def read(path: Path, columns: Sequence[str]) -> float:
    """Seconds to decode the columns, a row group at a time."""
    start = time.perf_counter()
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            file.read_row_group(group, columns=list(columns))
    return time.perf_counter() - start


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--rows", type=int, default=50_000_000)
    parser.add_argument("--protocol", choices=("random", "time"), default="random")
    parser.add_argument("--folder", type=Path, help="where there is room for the log and the dataset")
    parser.add_argument("--train", action="store_true", help="finetune the CTR tower for an epoch as well")
    parser.set_defaults(rounds=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        raw, config, out = Path(name) / "log.parquet", Path(name) / "config.py", Path(name) / "prepared"
        write_log(raw, arguments.rows)
        categories = [column for column, *_ in CATEGORIES]
        config.write_text(CONFIG.format(categories=categories, raw=str(raw), dir=str(out), protocol=arguments.protocol))
        floors, runs = [], []
        for _ in range(arguments.rounds):
            floors.append(read(raw, [*categories, "price", "time", "label"]))
            runs.append(run([sys.executable, "-m", "alt_jax", "prepare", config]))
        printed, seconds, peak = sorted(runs, key=lambda found: found[1])[len(runs) // 2]
        print(printed)
        figures = {
            "protocol": arguments.protocol,
            "rows": arguments.rows,
            "distinct values": sum(int(n.replace(",", "")) for n in re.findall(r"([\d,]+) in training,", printed)),
            "GB of Parquet": raw.stat().st_size / 1e9,
            "GB of the dataset": sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 1e9,
            **{f"s {stage}": float(spent) for stage, spent in re.findall(r"(\w[\w ]*) ([\d.]+) s(?: ·|\n)", printed)},
            "s whole process": seconds,
            "s read": sorted(floors)[len(floors) // 2],
            "rows/s": arguments.rows / seconds,
            "read / whole": sorted(floors)[len(floors) // 2] / seconds,
            "GiB at the peak": peak / 2**30,
            **(train(config, Path(name) / "run") if arguments.train else {}),
        }
    measure.show("prepare", figures, arguments.json)


if __name__ == "__main__":
    main()

"""Seconds that pass before there is something to see: of `--help`, and of the same small run started twice.

    python benchmarks/start.py

The run is a finetuning of the CTR tower on a generated click log; each start has a process and a run folder of its own.
The first start finds an empty folder for compiled programs, the second what the first has left there.
"""

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure
import pyarrow.parquet as pq

from alt_jax import demo
from alt_jax.data.synthetic import generate

CONFIG = """
import dataclasses
from pathlib import Path
from alt_jax.demo import demo_config


def get_config():
    config = demo_config(Path({folder!r}))
    ctr = dataclasses.replace(config.finetune.ctr, epochs=1)
    return dataclasses.replace(config, finetune=dataclasses.replace(config.finetune, ctr=ctr))
"""


def seconds(*arguments: object, programs: Path) -> float:
    """Of a command in a process of its own, which keeps its compiled programs in a folder."""
    command = [sys.executable, "-m", "alt_jax", *map(str, arguments)]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(programs)}
    start = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--rows", type=int, default=2000, help="of the click log")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config, programs = folder / "config.py", folder / "programs"
        config.write_text(CONFIG.format(folder=name))
        pq.write_table(generate(dataclasses.replace(demo.LOG, rows=arguments.rows)), folder / "raw.parquet")
        helps = [seconds("--help", programs=programs) for _ in range(arguments.rounds)]
        seconds("prepare", config, programs=programs)
        starts, compiled = [], []
        for start in ("first", "second"):
            before = len(list(programs.glob("*-cache")))
            run = ("finetune", config, "--strategy", "ctr", "--init-from", "none", "--run-dir", folder / start)
            starts.append(seconds(*run, programs=programs))
            compiled.append(len(list(programs.glob("*-cache"))) - before)
    measure.show(
        "start",
        {
            "s: --help": statistics.median(helps),
            "s: --help, slowest": max(helps),
            "s: first start": starts[0],
            "s: second start": starts[1],
            "second / first": starts[1] / starts[0],
            "programs compiled by the first": compiled[0],
            "programs compiled by the second": compiled[1],
        },
        arguments.json,
    )


if __name__ == "__main__":
    main()

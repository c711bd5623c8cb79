"""Seconds that pass before there is something to see: of `--help`, refusals, and the same small run started twice.

    python benchmarks/start.py
    python benchmarks/start.py --refusals

What is refused by the arguments, the config and the paths should take no longer than `GOAL`, whatever else the command
would need. Where other work goes on beside, the seconds of a core say more than those of a clock.

The run is a finetuning of the CTR tower on a generated click log; each start has a process and a run folder of its own.
The first start finds an empty folder for compiled programs, the second what the first has left there.
"""

import dataclasses
import json
import os
import resource
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
from alt_jax.demo_recipe import demo_config

GOAL = 0.6  # seconds, on a quiet core
CONFIG = """
import dataclasses
from pathlib import Path
from alt_jax.demo_recipe import demo_config


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


def refused(*arguments: object) -> tuple[float, float]:
    """Seconds, and those of a core, of a command that is refused."""
    command = [sys.executable, "-m", "alt_jax", *map(str, arguments)]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    passed, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == (0 if "--help" in arguments else 2), done.stderr
    return passed, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def refusals(folder: Path, rounds: int) -> dict[str, float | str]:
    """What refusals take, each of them `rounds` times in turn: the median."""
    config, run, rows, new = folder / "config.py", folder / "run", folder / "raw.parquet", folder / "new"
    run.mkdir()
    for name, content in _run_files(folder).items():
        (run / name).write_text(content, encoding="utf-8")
    wrong = folder / "wrong.parquet"
    pq.write_table(pq.read_table(rows).drop_columns(["title"]), wrong)
    commands: dict[str, tuple[object, ...]] = {
        "--help": ("--help",),
        "misspelt option": ("pretrain", config, "--run-dri", new),
        "no config": ("pretrain", new, "--run-dir", new),
        "no dataset": ("pretrain", config, "--data.dir", new, "--run-dir", new),
        "no run": ("evaluate", new),
        "no raw data": ("prepare", config, "--data.dir", new, "--data.raw", new),
        "no column to prepare": ("prepare", config, "--data.dir", new, "--data.label", "lable"),
        "no column to predict": ("predict", run, wrong, "-o", folder / "scores.parquet"),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, arguments in commands.items():
            found[name].append(refused(*arguments))
    figures: dict[str, float | str] = {}
    for name, times in found.items():
        for unit, values in zip(("s", "core s"), zip(*times, strict=True), strict=True):
            figures[f"{unit}: {name}"] = statistics.median(values)
    for unit in ("s", "core s"):
        figures[f"{unit}: the slowest"] = max(figures[f"{unit}: {name}"] for name in commands)
    figures["goal"] = GOAL
    return figures


def _run_files(folder: Path) -> dict[str, str]:
    """The small files of a finished finetuning, which no weights are needed to refuse rows for."""
    score = {"auc": 0.5, "rows": 1}
    return {
        "run.json": json.dumps({"stage": "finetune", "strategy": "ctr"}),
        "result.json": json.dumps({"best_step": 1, "valid": score, "test": score}),
        "config.json": demo_config(folder).to_json(),
        "schema.json": (folder / "prepared" / "schema.json").read_text(encoding="utf-8"),
    }


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--refusals", action="store_true", help="measure these alone")
    parser.add_argument("--rows", type=int, default=2000, help="of the click log")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config, programs = folder / "config.py", folder / "programs"
        config.write_text(CONFIG.format(folder=name))
        pq.write_table(generate(dataclasses.replace(demo.LOG, rows=arguments.rows)), folder / "raw.parquet")
        seconds("prepare", config, programs=programs)
        figures = refusals(folder, arguments.rounds)
        if arguments.refusals:
            measure.show("refusals", figures, arguments.json)
            return
        starts, compiled = [], []
        for start in ("first", "second"):
            before = len(list(programs.glob("*-cache")))
            run = ("finetune", config, "--strategy", "ctr", "--init-from", "none", "--run-dir", folder / start)
            starts.append(seconds(*run, programs=programs))
            compiled.append(len(list(programs.glob("*-cache"))) - before)
    measure.show(
        "start",
        {
            **figures,
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

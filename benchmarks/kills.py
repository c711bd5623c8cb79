"""kill -9 at random moments of every command; started again, each has to end as if nothing had happened.

`tests/test_kills.py` does the same with a few kills.

    python benchmarks/kills.py --work FOLDER [--kills 200] [--seed 0] [--stages prepare pretrain finetune export ablate]

Every stage runs once undisturbed, in FOLDER/whole, and then in FOLDER/killed as often as it takes to spend its share of
the kills, and the same command is started again after each until it ends. Of two kills, one falls at a uniformly drawn
moment of the time that the undisturbed run took, the other at one of the time from the first sign of its work on: most
of a small run is imports and compilation. Whatever ends is compared: every number of a checkpoint (parameters, the
optimiser's and the loop's state) bit by bit, metrics line by line, other files byte by byte but for logs and what
TensorBoard reads, and the names of files and folders, hidden ones beside what was made included. A whole checkpoint may
be there that the undisturbed run had removed by then; so may one of the step at which a run of a study stopped because
the study was killed, and one of an earlier step had to go for it. What differs is printed, and the exit code is 1.
Compiled programs are kept in FOLDER, where kills hit them too, unless JAX_COMPILATION_CACHE_DIR names another.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pyarrow.parquet as pq

from alt_jax.checkpoint import load_params, saved_steps
from alt_jax.data.synthetic import SyntheticConfig, generate

CONFIG = """
from pathlib import Path

from alt_jax.config import CTRConfig, TextConfig
from alt_jax.demo_recipe import demo_config


def get_config():
    return demo_config(Path(".")).override({
        "text.hidden": 16, "text.intermediate": 32, "text.layers": 1, "ctr.dim": 4, "ctr.hidden": (16,),
        "ctr.tower": "fm", "ctr.options": (), "pretrain.epochs": 2, "pretrain.checkpoint_every": 5,
        "finetune.joint.epochs": 2, "finetune.joint.batch_size": 256, "pretrain.batch_size": 256,
        "finetune.ctr.epochs": 2, "finetune.ctr.batch_size": 256, "data.shard_rows": 1000,
    })
"""
STUDY = {"aligned": {}, "not": {"pretrain": False}}


class Stage(NamedTuple):
    """A command, the folder that it makes, and files that appear or change once it has done what is its own."""

    command: str
    made: str
    sign: str


STAGES = {
    "prepare": Stage("prepare config.py", "prepared", ".prepared.*"),
    "pretrain": Stage("pretrain config.py --run-dir pretrain", "pretrain", "pretrain/metrics.jsonl"),
    "finetune": Stage(
        "finetune config.py --strategy joint --init-from pretrain --run-dir joint", "joint", "joint/metrics.jsonl"
    ),
    "export": Stage("export joint exported", "exported", ".exported.*"),
    "ablate": Stage(
        "ablate config.py --study study.json --strategies ctr --seeds 1 --run-dir study",
        "study",
        "study/*/*/seed-0/metrics.jsonl",
    ),
}
_TIMED = {"rows_per_s", "seconds", "resumed_at"}


def start(command: str, folder: Path) -> "subprocess.Popen[bytes]":
    """Starts a command in a folder; what it says is appended to `log` there."""
    environment = {"JAX_COMPILATION_CACHE_DIR": str((folder.parent / "programs").absolute())}
    environment |= os.environ
    environment |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",  # compiling is all there is to wait for
        "JAX_ENABLE_COMPILATION_CACHE": "true",
    }
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "alt_jax", *command.split()], cwd=folder, env=environment, stdout=log, stderr=log
        )


def signs(pattern: str, folder: Path) -> set[tuple[Path, int]]:
    """The files of a pattern and when they were last changed."""
    found = set()
    for path in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):
            found.add((path, path.stat().st_mtime_ns))
    return found


def wait_for_work(
    process: "subprocess.Popen[bytes]", pattern: str, folder: Path, before: set[tuple[Path, int]]
) -> None:
    """Returns at the first sign of work, or when the process has ended."""
    while process.poll() is None and not signs(pattern, folder) - before:
        time.sleep(0.002)


def killed(process: "subprocess.Popen[bytes]", after: float) -> bool:
    """Whether the process had to be killed after so many seconds."""
    try:
        process.wait(after)
        return False
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_times(item) for name, item in value.items() if name not in _TIMED}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def files(folder: Path) -> dict[str, Path]:
    """By name relative to the folder; not what is within checkpoints."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        shown = "tensorboard" in name.parts  # with the times of day, and a file for every start
        if "checkpoints" not in name.parts[:-1] and not shown and path.name != "run.lock":
            found[str(name)] = path
    return found


def state(checkpoint: Path) -> tuple[Any, Any]:
    """Every number of a checkpoint: parameters and the optimiser's state, and the loop's."""
    with ocp.StandardCheckpointer() as reader:
        trees = [reader.restore((checkpoint / item).absolute()) for item in ("params", "optimizer")]
    return trees, json.loads((checkpoint / "loop" / "metadata").read_text(encoding="utf-8"))


def differences(whole: Path, other: Path) -> Iterator[str]:
    """What is not the same in two folders."""
    mine, theirs = files(whole), files(other)
    yield from (f"{name} is there only without kills" for name in mine.keys() - theirs.keys())
    yield from (f"{name} is there only after kills" for name in theirs.keys() - mine.keys())
    for name in sorted(mine.keys() & theirs.keys()):
        one, two = mine[name], theirs[name]
        if one.name == "checkpoints":
            steps, more = (saved_steps(path.parent) for path in (one, two))
            own = set(more) - set(steps) if whole.name == STAGES["ablate"].made else set()
            displaced = all(any(later > step for later in own) for step in set(steps) - set(more))
            if not displaced or {path.name for path in two.iterdir()} != set(map(str, more)):
                yield f"{name}: {sorted(path.name for path in two.iterdir())} instead of {steps}"
                continue
            for step in more:
                load_params(two.parent, step)  # refuses one that is not whole
                if step in steps:
                    (numbers, loop), (others, other_loop) = (state(path / str(step)) for path in (one, two))
                    same = jax.tree.map(lambda a, b: np.array_equal(a, b, equal_nan=True), numbers, others)
                    if loop != other_loop or not all(jax.tree.leaves(same)):
                        yield f"{name}: what is saved of step {step}"
        elif one.is_dir() or one.suffix == ".log" or one.name == "data.json":  # says where it lies itself
            continue
        elif one.suffix in (".json", ".jsonl"):
            texts = (path.read_text(encoding="utf-8") for path in (one, two))
            values = [
                [without_times(json.loads(line)) for line in (text.splitlines() if one.suffix == ".jsonl" else [text])]
                for text in texts
            ]
            if values[0] != values[1]:
                yield f"{name}: values or lines"
        elif one.read_bytes() != two.read_bytes():
            yield f"{name}: bytes"


def run_whole(stage: str, whole: Path) -> tuple[float, float]:
    """Runs a stage undisturbed; its seconds, and how many of them came after the first sign of work."""
    command, _, sign = STAGES[stage]
    began, before = time.monotonic(), signs(sign, whole)
    process = start(command, whole)
    wait_for_work(process, sign, whole, before)
    working = time.monotonic()
    if process.wait():
        sys.exit(f"{stage} fails without being killed:\n{(whole / 'log').read_text(encoding='utf-8')}")
    return time.monotonic() - began, time.monotonic() - working


def disturb(
    stage: str, whole: Path, other: Path, kills: int, rng: random.Random, *, at_work: Callable[[int], bool]
) -> tuple[int, float]:
    """Runs a stage, killed so often, and compares.

    Args:
      stage: Which one.
      whole: Where it runs undisturbed.
      other: Where it is killed.
      kills: How often.
      rng: Draws the moments.
      at_work: Whether the kill of this number waits for work.

    Returns:
      How many times it came to its end, and the seconds of the undisturbed one.
    """
    command, made, sign = STAGES[stage]
    seconds, work = run_whole(stage, whole)
    spans, ended = {False: seconds, True: work}, 0
    while not ended or kills:
        shutil.rmtree(other / made, ignore_errors=True)
        for fresh in itertools.chain([True], itertools.repeat(False)):
            before = signs(sign, other)
            process = start(command, other)
            late = at_work(kills)
            if kills and late:
                wait_for_work(process, sign, other, before)
            began = time.monotonic()
            if kills and killed(process, rng.uniform(0, spans[late])):
                kills -= 1
                continue
            if fresh and kills:  # quicker than the undisturbed one, which had to compile
                spans[late] = min(spans[late], time.monotonic() - began)
            if code := process.wait():
                sys.exit(f"{stage} ends with {code}:\n{(other / 'log').read_text(encoding='utf-8')[-3000:]}")
            break
        ended += 1
        found = list(differences(whole / made, other / made))
        found += [f"{path.name} is left beside {made}" for path in other.glob(f".{made}.*")]
        if found:
            sys.exit(f"{stage} does not end as it would have:\n" + "\n".join(found))
    return ended, seconds


def folders(work: Path) -> tuple[Path, Path]:
    """Two folders with the same data and configuration, for what is whole and what is killed."""
    made = work / "whole", work / "killed"
    for folder in made:
        folder.mkdir(parents=True)
        pq.write_table(generate(SyntheticConfig(users=100, items=50, makers=10, rows=4000)), folder / "raw.parquet")
        (folder / "config.py").write_text(CONFIG, encoding="utf-8")
        (folder / "study.json").write_text(json.dumps(STUDY), encoding="utf-8")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a new folder")
    parser.add_argument("--kills", type=int, default=200, help="of all stages together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    whole, other = folders(arguments.work)
    print("| command | kills | ended, and as if never killed | s undisturbed |\n|---|---|---|---|")
    for number, stage in enumerate(arguments.stages):
        share = arguments.kills * (number + 1) // len(arguments.stages) - arguments.kills * number // len(
            arguments.stages
        )
        ended, seconds = disturb(stage, whole, other, share, rng, at_work=lambda number: number % 2 == 0)
        print(f"| `{stage}` | {share} | {ended} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()

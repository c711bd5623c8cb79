"""kill -9 at random moments of every command; started again, each has to end as if nothing had happened.

    python benchmarks/kills.py --work FOLDER [--kills 200] [--seed 0] [--stages prepare pretrain finetune export ablate]

Every stage runs once undisturbed, in FOLDER/whole, and then in FOLDER/killed as often as it takes to spend its share of
the kills: each falls at a uniformly drawn moment of the time that the undisturbed one took, and the same command is
then started again until it ends. Whatever ends is compared: parameters bit by bit, metrics line by line, other files
byte by byte, names of files and folders too, but for hidden ones that end in `.partial`, which a killed process leaves
and nobody reads. What differs is printed, and the exit code is 1. Compiled programs are kept in FOLDER, where kills hit
them too.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow.parquet as pq

from alt_jax.checkpoint import load_params, saved_steps
from alt_jax.data.synthetic import SyntheticConfig, generate

CONFIG = """
from pathlib import Path

from alt_jax.config import CTRConfig, TextConfig
from alt_jax.demo import demo_config


def get_config():
    return demo_config(Path(".")).override({
        "text.hidden": 16, "text.intermediate": 32, "text.layers": 1, "ctr.dim": 4, "ctr.hidden": (16,),
        "ctr.tower": "fm", "ctr.options": (), "pretrain.epochs": 2, "pretrain.checkpoint_every": 5,
        "finetune.joint.epochs": 2, "finetune.joint.batch_size": 256, "pretrain.batch_size": 256,
        "finetune.ctr.epochs": 2, "finetune.ctr.batch_size": 256, "data.shard_rows": 1000,
    })
"""
STUDY = {"ids": {}, "wide": {"ctr.dim": 6}}
# Stage, its command, and what it makes.
STAGES = {
    "prepare": ("prepare config.py", "prepared"),
    "pretrain": ("pretrain config.py --run-dir pretrain", "pretrain"),
    "finetune": ("finetune config.py --strategy joint --init-from pretrain --run-dir joint", "joint"),
    "export": ("export joint exported", "exported"),
    "ablate": ("ablate config.py --study study.json --strategies ctr --seeds 1 --run-dir study", "study"),
}
_TIMED = {"rows_per_s", "seconds"}


def start(command: str, folder: Path) -> "subprocess.Popen[bytes]":
    """Starts a command in a folder; what it says is appended to `log` there."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",  # compiling is all there is to wait for
        "JAX_COMPILATION_CACHE_DIR": str((folder / "programs").absolute()),
    }
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "alt_jax", *command.split()], cwd=folder, env=environment, stdout=log, stderr=log
        )


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
    """By name relative to the folder; of checkpoints their numbers only."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") and part.endswith(".partial") for part in name.parts)
        inside = "checkpoints" in name.parts[:-1] and path.parent.name != "checkpoints"
        shown = "tensorboard" in name.parts  # with the times of day, and a file for every start
        if not hidden and not inside and not shown and path.name != "run.lock":
            found[str(name)] = path
    return found


def differences(whole: Path, other: Path) -> Iterator[str]:
    """What is not the same in two folders."""
    mine, theirs = files(whole), files(other)
    yield from (f"{name} is there only without kills" for name in mine.keys() - theirs.keys())
    yield from (f"{name} is there only after kills" for name in theirs.keys() - mine.keys())
    for name in sorted(mine.keys() & theirs.keys()):
        one, two = mine[name], theirs[name]
        if one.name == "checkpoints":
            for step in saved_steps(one.parent):
                params = (load_params(path.parent, step)[0] for path in (one, two))
                same = jax.tree.map(lambda a, b: np.array_equal(a, b, equal_nan=True), *params)
                if not all(jax.tree.leaves(same)):
                    yield f"{name}: the parameters of step {step}"
        elif one.is_dir() or one.suffix in (".log", ".png"):
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


def disturb(stage: str, whole: Path, other: Path, kills: int, rng: random.Random) -> tuple[int, float]:
    """Runs a stage, killed so often; how many times it came to its end, and the seconds of the undisturbed one."""
    command, made = STAGES[stage]
    began = time.monotonic()
    if start(command, whole).wait():
        sys.exit(f"{stage} fails without being killed:\n{(whole / 'log').read_text(encoding='utf-8')}")
    seconds, ended = time.monotonic() - began, 0
    while not ended or kills:
        shutil.rmtree(other / made, ignore_errors=True)
        while True:
            process = start(command, other)
            if kills and killed(process, rng.uniform(0, seconds)):
                kills -= 1
                continue
            if code := process.wait():
                sys.exit(f"{stage} ends with {code}:\n{(other / 'log').read_text(encoding='utf-8')[-3000:]}")
            break
        ended += 1
        if found := list(differences(whole / made, other / made)):
            sys.exit(f"{stage} does not end as it would have:\n" + "\n".join(found))
    return ended, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a new folder")
    parser.add_argument("--kills", type=int, default=200, help="of all stages together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    whole, other = arguments.work / "whole", arguments.work / "killed"
    for folder in (whole, other):
        folder.mkdir(parents=True)
        pq.write_table(generate(SyntheticConfig(users=100, items=50, makers=10, rows=4000)), folder / "raw.parquet")
        (folder / "config.py").write_text(CONFIG, encoding="utf-8")
        (folder / "study.json").write_text(json.dumps(STUDY), encoding="utf-8")
    print("| command | kills | ended, and as if never killed | s undisturbed |\n|---|---|---|---|")
    for number, stage in enumerate(arguments.stages):
        share = arguments.kills * (number + 1) // len(arguments.stages) - arguments.kills * number // len(
            arguments.stages
        )
        ended, seconds = disturb(stage, whole, other, share, rng)
        print(f"| `{stage}` | {share} | {ended} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()

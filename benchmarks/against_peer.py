"""Ours against the plain PyTorch loop of `peer_torch.py`, which runs beside it in an environment of its own, in turn.

    python benchmarks/against_peer.py DATASET --peer ENV/bin/python --task pretrain --tower tinybert --batch 128

ENV is made as `peer_torch.py` says. Both run the named task on the rows of DATASET at the same sizes, with random
weights, the batch's making included. While one is measured the other waits; the ratio is the median over the rounds.
The objective is the same too: for pretraining the paper's NCE with noise from all fields. The peer's prompts are
padded to `--length` tokens (the published recipe's 100), ours to what the data needs. Each has the environment
variables that suit it (`TUNED`), unless `--untuned` says otherwise. Peak memory is that of the whole
process: the peer's rows and prompts, our compiler and programs.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import measure
import numpy as np
from pretraining import experiment

from alt_jax.data.batches import batch_at
from alt_jax.data.dataset import Dataset
from alt_jax.evaluate import ID_BATCH, TEXT_BATCH, Probabilities
from alt_jax.models.alt import ALT
from alt_jax.optim import finetune_optimizer, pretrain_optimizer
from alt_jax.pretraining import Pretrain
from alt_jax.sharding import make_mesh, replicate, split_rows
from alt_jax.tasks import Finetune, Task
from alt_jax.train import initial_state, make_step

# Both keep the memory that they have freed; XLA also wants it in large pages, or every step meets its faults again, and
# its products of text towers are faster without YNNPACK.
TUNED = {
    "peer": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "200000000000"},
    "ours": {
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=200000000000",
        "XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type=",
    },
}
PUBLISHED = [["mtm.method", "nce"], ["mtm.noise_from", "all"]]


def training(task: Task, optimizer: Any, dataset: Dataset, batch_size: int) -> Callable[[], int]:
    """A call that takes one more step as `alt_jax.train` does, and returns the rows it learned from."""
    mesh = make_mesh()
    state = initial_state(mesh, jax.jit(task.init)(jax.random.key(0)), optimizer)
    update = jax.jit(make_step(task, optimizer), donate_argnums=0)
    pieces, key, number = replicate(mesh, dataset.pieces), jax.random.key(0), 0

    def step() -> int:
        nonlocal state, number
        batch = split_rows(mesh, batch_at(dataset.train, seed=0, step=number, batch_size=batch_size))
        with jax.set_mesh(mesh):
            state, metrics = update(state, pieces, batch, key)
        jax.block_until_ready(metrics)
        number += 1
        return batch_size

    return step


def scoring(task: Finetune, dataset: Dataset) -> Callable[[], int]:
    """A call that scores the next rows of the test part, and returns how many."""
    mesh = make_mesh()
    scorer = Probabilities(task, mesh, dataset.pieces)
    params = replicate(mesh, jax.jit(task.init)(jax.random.key(0)))
    size = 16 * ID_BATCH if task.strategy == "ctr" else 4 * TEXT_BATCH
    values, first = np.asarray(dataset.test.values), 0

    def step() -> int:
        nonlocal first
        part = np.take(values, np.arange(first, first + size), axis=0, mode="wrap")
        scorer(params, part)
        first += size
        return size

    return step


def ours(arguments: Any) -> Callable[[], int]:
    """The named task."""
    config, dataset, encoder = experiment(arguments)
    if arguments.task == "pretrain":
        task = Pretrain.build(config, dataset, encoder)
        return training(task, pretrain_optimizer(config.pretrain, 1000), dataset, arguments.batch)
    strategy, _, infers = arguments.task.partition("-")
    lengths = None if strategy == "ctr" else dataset.prompt_tokens()
    click = Finetune(ALT(config, dataset.schema, encoder), strategy, lengths)
    if infers:
        return scoring(click, dataset)
    return training(click, finetune_optimizer(getattr(config.finetune, strategy)), dataset, arguments.batch)


def serve(arguments: Any) -> None:
    """As the peer does: "ready" when warm, then one line of JSON for each line of stdin."""
    step = ours(arguments)
    warm_up = 8 if arguments.task in ("plm-infer", "joint-infer") else 2  # which meet the programs of all lengths
    for _ in range(warm_up):
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        rows, start = 0, time.perf_counter()
        while (passed := time.perf_counter() - start) < arguments.seconds:
            rows += step()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts in kB
        print(json.dumps({"rows_per_s": rows / passed, "peak_gb": peak}), flush=True)


class Turn:
    """A process that measures when it is asked to."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            command, env=os.environ | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        line = self._line()
        if line != "ready":
            raise SystemExit(f"{command[0]} said {line!r} where 'ready' was expected.")

    def __call__(self) -> dict[str, Any]:
        """One measurement."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._line())
        return found

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"A measured process ended with {self._process.wait()}; its message is above.")
        return line.strip()

    def close(self) -> None:
        """Lets it end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--peer", help="the other environment's Python")
    tasks = ("pretrain", "ctr", "plm", "joint", "ctr-infer", "plm-infer", "joint-infer")
    parser.add_argument("--task", choices=tasks, required=True)
    parser.add_argument("--tower", choices=measure.TOWERS, default="tinybert")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--length", type=int, default=100, help="tokens that the peer's prompts are padded to")
    parser.add_argument("--seconds", type=float, default=10, help="of each turn")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="ours; the peer's is float32"
    )
    parser.add_argument("--vocab", type=int, default=0, help=argparse.SUPPRESS)
    pair = ("NAME", "VALUE")
    parser.add_argument("--set", nargs=2, action="append", default=[], metavar=pair, help="any config value of ours")
    parser.add_argument("--untuned", action="store_true", help="leave the environment as it is, for both")
    parser.add_argument("--serve", action="store_true", help="measure ours alone, once for each line of stdin")
    arguments = parser.parse_args()
    arguments.set = PUBLISHED + arguments.set
    if arguments.serve:
        serve(arguments)
        return
    if not arguments.peer:
        parser.error("--peer is needed, the Python of the environment that peer_torch.py says how to make")
    here = Path(__file__).parent
    sizes = ["--task", arguments.task, "--tower", arguments.tower, "--batch", str(arguments.batch)]
    sizes += ["--seconds", str(arguments.seconds), "--serve"]
    peer = [arguments.peer, str(here / "peer_torch.py"), str(arguments.dataset), *sizes]
    mine = [sys.executable, str(here / "against_peer.py"), str(arguments.dataset), *sizes, "--dtype", arguments.dtype]
    mine += [word for pair in arguments.set for word in ("--set", *pair)]
    commands = {"peer": [*peer, "--length", str(arguments.length)], "ours": mine}
    turns = {name: Turn(command, {} if arguments.untuned else TUNED[name]) for name, command in commands.items()}
    found = [{name: turn() for name, turn in turns.items()} for _ in range(arguments.rounds)]
    for turn in turns.values():
        turn.close()
    ratios = [both["ours"]["rows_per_s"] / both["peer"]["rows_per_s"] for both in found]
    memory = {name: found[-1][name]["peak_gb"] for name in turns}
    measure.show(
        "against a plain PyTorch loop",
        {
            "task": arguments.task,
            "tower": None if arguments.task.startswith("ctr") else arguments.tower,
            "batch": arguments.batch,
            "environment": "as it is" if arguments.untuned else "tuned for each",
            "torch": found[0]["peer"]["torch"],
            **{f"rows/s of {name}": statistics.median(both[name]["rows_per_s"] for both in found) for name in turns},
            "ours / peer": statistics.median(ratios),
            "least and most": [round(min(ratios), 2), round(max(ratios), 2)],
            **{f"GB at most, {name}": peak for name, peak in memory.items()},
            "memory, ours / peer": memory["ours"] / memory["peer"],
        },
        arguments.json,
    )


if __name__ == "__main__":
    main()

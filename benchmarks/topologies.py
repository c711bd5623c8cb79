"""The losses of one pretraining on other numbers of devices and processes, which ought to be the same.

    python benchmarks/topologies.py CONFIG [--data.dir D …] --work FOLDER

Runs `alt-jax pretrain CONFIG …` once for each topology, on virtual CPU devices and with several processes on this
machine, and compares the losses of every update with those on one device. What is given beyond `--work` goes to
`alt-jax pretrain`. The numbers differ by the order in which float32 sums are taken, and by what training makes of that.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

# Processes, devices of each, and further options.
TOPOLOGIES: tuple[tuple[int, int, tuple[str, ...]], ...] = (
    (1, 1, ()),
    (1, 2, ()),
    (1, 4, ()),
    (1, 8, ()),
    (1, 8, ("--sharding.tables", "split", "--sharding.text", "split")),
    (2, 1, ()),
    (4, 1, ()),
    (2, 2, ("--sharding.tables", "split", "--sharding.text", "split")),
)
LOSSES = ("loss", "icl", "mlm", "mtm")


def losses(run: Path) -> list[dict[str, float]]:
    """By update."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: record[name] for name in LOSSES if name in record} for record in map(json.loads, lines)]


def train(command: list[str], processes: int, devices: int) -> None:
    """Runs the command once, in so many processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    places = ["none"] if processes == 1 else [f"{address},{i}/{processes}" for i in range(processes)]
    started = [
        subprocess.Popen([*command, "--cluster", place], env=environment, stdout=subprocess.DEVNULL) for place in places
    ]
    codes = [process.wait() for process in started]
    if any(codes):
        sys.exit(f"{processes} × {devices}: exit codes {codes}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder for the runs, which is emptied")
    arguments, rest = parser.parse_known_args()
    shutil.rmtree(arguments.work, ignore_errors=True)
    curves = []
    for number, (processes, devices, options) in enumerate(TOPOLOGIES):
        run = arguments.work / str(number)
        train([sys.executable, "-m", "alt_jax", "pretrain", *rest, *options, "--run-dir", str(run)], processes, devices)
        curves.append(losses(run))
    steps = [0, len(curves[0]) // 2 - 1, len(curves[0]) - 1]
    print("| processes | devices of each | split | " + " | ".join(f"loss of update {s + 1}" for s in steps), end="")
    print(" | largest relative difference |\n|---|---|---|" + "---|" * (len(steps) + 1))
    for (processes, devices, options), curve in zip(TOPOLOGIES, curves, strict=True):
        pairs = [(a[name], b[name]) for a, b in zip(curves[0], curve, strict=True) for name in a]
        worst = max(abs(b - a) / abs(a) for a, b in pairs)
        shown = " | ".join(f"{curve[s]['loss']:.5f}" for s in steps)
        print(f"| {processes} | {devices} | {'tables, text' if options else 'nothing'} | {shown} | {worst:.1e} |")


if __name__ == "__main__":
    main()

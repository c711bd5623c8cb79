"""The losses of one pretraining on other numbers of devices and processes, which ought to be the same.

    python benchmarks/topologies.py CONFIG [--data.dir D …] --work FOLDER

Runs `alt-jax pretrain CONFIG …` once for each topology, on virtual CPU devices and with several processes on this
machine, and compares the losses of every update with those on one device. The last run begins on 8 devices, is stopped
by SIGTERM after a third of its updates, goes on with 4, and after another third with 16; losses are written 50 updates
at a time, so that it goes on a little later. What is given beyond `--work` goes to `alt-jax pretrain`.

The numbers differ by the order in which float32 sums are taken, and by what training makes of that. On CPUs the order
within a device depends on how many threads XLA believes to have, at least as many as a process has devices. Here it is
told of 16 everywhere (`NPROC`).
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
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
MOVED = (8, 4, 16)  # devices, one after the other
THREADS = str(max(MOVED))
LOSSES = ("loss", "icl", "mlm", "mtm")


def losses(run: Path) -> list[dict[str, float]]:
    """By update."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: record[name] for name in LOSSES if name in record} for record in map(json.loads, lines)]


def start(command: list[str], devices: int, cluster: str = "none") -> "subprocess.Popen[bytes]":
    """Starts a process of the command."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "NPROC": THREADS}
    return subprocess.Popen([*command, "--cluster", cluster], env=environment, stdout=subprocess.DEVNULL)


def train(command: list[str], processes: int, devices: int) -> None:
    """Runs the command once, in so many processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    places = ["none"] if processes == 1 else [f"{address},{i}/{processes}" for i in range(processes)]
    codes = [process.wait() for process in [start(command, devices, place) for place in places]]
    if any(codes):
        sys.exit(f"{processes} × {devices}: exit codes {codes}")


def move(command: list[str], run: Path, updates: int) -> None:
    """Runs the command on the devices of MOVED, some of the updates on each."""
    for number, devices in enumerate(MOVED, start=1):
        process = start(command, devices)
        enough = number * updates // len(MOVED)
        while number < len(MOVED) and process.poll() is None:
            time.sleep(0.2)
            if (run / "metrics.jsonl").exists() and len(losses(run)) >= enough:
                process.send_signal(signal.SIGTERM)
                break
        if process.wait() != (0 if number == len(MOVED) else 75):
            sys.exit(f"on {devices} devices: exit code {process.returncode}; the run may be too short to be stopped")
        print(f"{devices} devices: {len(losses(run))} of {updates} updates", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder for the runs, which is emptied")
    arguments, rest = parser.parse_known_args()
    shutil.rmtree(arguments.work, ignore_errors=True)
    command, curves, names = [sys.executable, "-m", "alt_jax", "pretrain", *rest], [], []
    for number, (processes, devices, options) in enumerate(TOPOLOGIES):
        run = arguments.work / str(number)
        train([*command, *options, "--run-dir", str(run)], processes, devices)
        curves.append(losses(run))
        names.append(f"{processes} | {devices} | {'tables, text' if options else 'nothing'}")
    run = arguments.work / "moved"
    move([*command, "--run-dir", str(run)], run, len(curves[0]))
    curves.append(losses(run))
    names.append(f"1 | {', then '.join(map(str, MOVED))} | nothing")
    steps = [0, len(curves[0]) // 2 - 1, len(curves[0]) - 1]
    print("| processes | devices of each | split | " + " | ".join(f"loss of update {s + 1}" for s in steps), end="")
    print(" | largest relative difference |\n|---|---|---|" + "---|" * (len(steps) + 1))
    for name, curve in zip(names, curves, strict=True):
        pairs = [(a[loss], b[loss]) for a, b in zip(curves[0], curve, strict=True) for loss in a]
        worst = max(abs(b - a) / abs(a) for a, b in pairs)
        print(f"| {name} | " + " | ".join(f"{curve[s]['loss']:.5f}" for s in steps) + f" | {worst:.1e} |")


if __name__ == "__main__":
    main()

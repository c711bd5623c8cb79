"""What the benchmarks share: the machine's own rates, medians of runs taken in turn, output."""

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

TOWERS = {  # layers, width, heads, inner width
    "tinybert": (4, 312, 12, 1200),
    "minilm": (6, 384, 12, 1536),
    "roberta-base": (12, 768, 12, 3072),
}


def seconds(work: Callable[[], Any], at_least: float = 0.5) -> float:
    """Mean seconds of a call that ends with its results there, over calls of `at_least` seconds together."""
    count, start = 0, time.perf_counter()
    while True:
        jax.block_until_ready(work())
        count += 1
        passed = time.perf_counter() - start
        if passed >= at_least:
            return passed / count


def interleaved(works: Mapping[str, Callable[[], Any]], rounds: int, at_least: float = 0.5) -> dict[str, float]:
    """Median seconds of each, taken in turn, so that a machine that drifts drifts for all. Each is warmed up first."""
    for work in works.values():
        jax.block_until_ready(work())
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(seconds(work, at_least))
    return {name: statistics.median(found) for name, found in times.items()}


def product(rows: int, inner: int, columns: int, dtype: Any) -> tuple[Callable[[], jax.Array], float]:
    """A plain matrix product and its FLOPs."""
    a = jax.random.normal(jax.random.key(0), (rows, inner), jnp.float32).astype(dtype)
    b = jax.random.normal(jax.random.key(1), (inner, columns), jnp.float32).astype(dtype)
    multiply = jax.jit(jnp.matmul)
    return lambda: multiply(a, b), 2.0 * rows * inner * columns


def copy(size: int = 1 << 26) -> tuple[Callable[[], jax.Array], float]:
    """A pass over `size` float32 numbers that reads and writes each, and its bytes."""
    x = jnp.zeros(size, jnp.float32)
    add = jax.jit(lambda x: x + 1)
    return lambda: add(x), 8.0 * size


def parser(description: str | None) -> argparse.ArgumentParser:
    """Arguments that all benchmarks have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=5, help="times that each thing is measured, in turn")
    made.add_argument("--json", type=Path, help="also write the figures there")
    return made


def machine() -> dict[str, Any]:
    """What the figures hold for."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def show(title: str, figures: Mapping[str, Any], path: Path | None = None) -> None:
    """Prints a table, then JSON on one line; writes that to `path` too."""
    found = {"benchmark": title, **machine(), **figures}
    width = max(map(len, found))
    for name, value in found.items():
        print(f"{name:<{width}}  {f'{value:,.4g}' if isinstance(value, float) else value}")
    line = json.dumps(found)
    print(line)
    if path is not None:
        path.write_text(line + "\n")

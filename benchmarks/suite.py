"""What the tests spend their CPU time on: importing, compiling, tracing, running, other processes.

    SUITE_COSTS=costs PYTHONPATH=benchmarks ./launch/test.sh -p suite
    python benchmarks/suite.py costs

CPU time, since cores are shared; only `waiting` is what is left of the clock. Tracing is by the clock, which is all
that JAX tells, but never more than the CPU time that there was. Fixtures are charged to the test that asks first. Each
worker appends to a file of its own in the folder, so that a run that was killed leaves what it has.
"""

import argparse
import builtins
import collections
import json
import os
import resource
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

KINDS = ("importing", "compiling", "tracing", "running", "processes", "waiting")
_TRACING = ("/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration")
_SLOWEST = 40  # tests that are shown

# --- As a plugin of pytest ---

_spent: collections.Counter[str] = collections.Counter()
_within: list[str] = []


def _charged(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, with its CPU time charged to a kind, unless it is called within another that is."""

    def call(*arguments: Any, **options: Any) -> Any:
        if _within:
            return function(*arguments, **options)
        _within.append(kind)
        began = time.process_time()
        try:
            return function(*arguments, **options)
        finally:
            _within.pop()
            _spent[kind] += time.process_time() - began

    return call


def pytest_configure() -> None:
    """Asks for the folder."""
    if "SUITE_COSTS" not in os.environ:
        raise pytest.UsageError("name a folder for what is measured in SUITE_COSTS")


def pytest_collection() -> None:
    """Wraps what imports and what compiles, once conftest.py has said how JAX is to be imported."""
    import jax  # noqa: PLC0415
    from jax._src import compiler  # noqa: PLC0415 - nothing public tells compiling apart from finding a kept program

    compiler.compile_or_get_cached = _charged("compiling", compiler.compile_or_get_cached)
    builtins.__import__ = _charged("importing", builtins.__import__)  # type: ignore[assignment]

    def heard(event: str, seconds: float, **_: Any) -> None:
        if event in _TRACING:
            _spent["tracing"] += max(0.0, seconds)  # a test sets the clock back

    jax.monitoring.register_event_duration_secs_listener(heard)


def _now() -> dict[str, float]:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    clock = {"cpu": time.process_time(), "wall": time.perf_counter()}
    return clock | {"processes": children.ru_utime + children.ru_stime} | dict(_spent)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Writes down what a test has spent, its fixtures included."""
    before = _now()
    outcome = yield
    spent = {name: value - before.get(name, 0.0) for name, value in _now().items()}
    cpu, wall = spent.pop("cpu"), spent.pop("wall")
    rest = max(0.0, cpu - spent.get("importing", 0.0) - spent.get("compiling", 0.0))
    spent["tracing"] = min(spent.get("tracing", 0.0), rest)
    spent["running"] = rest - spent["tracing"]
    spent["waiting"] = max(0.0, wall - cpu)
    line = {"test": item.nodeid} | {kind: round(spent.get(kind, 0.0), 3) for kind in KINDS}
    folder = Path(os.environ["SUITE_COSTS"])
    folder.mkdir(parents=True, exist_ok=True)
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    with (folder / f"{worker}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    return outcome


# --- As a script ---


def main() -> None:
    """Prints the sums by file, and the slowest tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what SUITE_COSTS named")
    texts = [path.read_text(encoding="utf-8") for path in parser.parse_args().folder.glob("*.jsonl")]
    lines = [json.loads(line) for text in texts for line in text.splitlines()]
    by_file: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for line in lines:
        for name in ("all", line["test"].partition("::")[0]):
            by_file[name].update({kind: line[kind] for kind in KINDS} | {"tests": 1})

    def cpu(spent: dict[str, Any]) -> float:
        return sum(float(spent[kind]) for kind in KINDS if kind != "waiting")

    def cells(spent: dict[str, Any]) -> str:
        return " | ".join(f"{value:.1f}" for value in (cpu(spent), *(spent[kind] for kind in KINDS)))

    head = " | ".join(("CPU s", *KINDS))
    print(f"| file | tests | {head} |\n|{'---|' * (3 + len(KINDS))}")
    for name, spent in sorted(by_file.items(), key=lambda found: -cpu(found[1])):
        print(f"| {name} | {spent['tests']} | {cells(spent)} |")
    print(f"\n| test | {head} |\n|{'---|' * (2 + len(KINDS))}")
    for line in sorted(lines, key=cpu, reverse=True)[:_SLOWEST]:
        print(f"| {line['test']} | {cells(line)} |")


if __name__ == "__main__":
    main()

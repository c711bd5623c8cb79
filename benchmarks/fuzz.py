"""Coverage-guided fuzzing of everything that alt-jax reads, with Atheris (`pip install atheris`, on Linux).

    python benchmarks/fuzz.py --work FOLDER [--seconds 60] [--groups table movielens_1m …]

The targets are those of `tests/fuzz_targets.py`, in groups that share a process of so many seconds: the first byte of
an input says which target of its group reads the rest. A reader has to take the rest or refuse it in one sentence,
within 20 s and 2 GB; whatever else it does is a finding. Inputs that led to one stay in FOLDER/GROUP/found, and those
that reached new code in FOLDER/GROUP/corpus, where the next run begins.

    python benchmarks/fuzz.py --work FOLDER --replay FOLDER/GROUP/found/crash-…

reads one of them again. Prints a table: runs, what they reached of alt-jax' code (libFuzzer's edges) and findings.
Exit code 1 if there are any.
"""

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ |= {"JAX_PLATFORMS": "cpu", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

GROUPS = (
    *("table", "movielens_100k", "movielens_1m", "bookcrossing", "goodreads", "prepared", "study", "config", "run"),
    *("params", "checkpoint", "model", "tokenizer"),
)
_LAST = re.compile(r"^#(\d+)\s.*?cov: (\d+)", re.MULTILINE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seconds", type=int, default=60, help="of every group")
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=GROUPS)
    parser.add_argument("--replay", type=Path)
    parser.add_argument("--fuzz", choices=GROUPS, help=argparse.SUPPRESS)  # what a process of a group is started with
    options = parser.parse_args()
    if options.fuzz:
        fuzz(options.work, options.fuzz, options.seconds)
    if options.replay:
        replay(options.replay)
        return 0
    print("| readers | runs | edges | findings |\n|---|---|---|---|")
    findings = 0
    for group in options.groups:
        runs, edges, found = supervise(options.work, group, options.seconds)
        findings += len(found)
        print(f"| {group} | {runs:,} | {edges:,} | {'; '.join(sorted(found)) or 'none'} |", flush=True)
    return min(findings, 1)


def supervise(work: Path, group: str, seconds: int) -> tuple[int, int, set[str]]:
    """Fuzzes a group for so many seconds, again where a finding ended its process.

    Returns:
      Runs, the most edges that a process reached, and a line for each kind of finding.
    """
    runs, edges, found, end = 0, 0, set[str](), time.monotonic() + seconds
    while True:
        left = max(1, round(end - time.monotonic()))
        command = [sys.executable, __file__, "--work", str(work), "--fuzz", group, "--seconds", str(left)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        reached = _LAST.findall(done.stderr)
        runs, edges = runs + int((reached or [(0, 0)])[-1][0]), max([edges, *(int(e) for _, e in reached)])
        said = done.stdout + done.stderr  # Python writes what was raised to the first
        if done.returncode:
            found.add(_what(said))
            (work / group / "found").mkdir(parents=True, exist_ok=True)  # it may have ended before it made it
            (work / group / "found" / f"{len(found)}.log").write_text(said, encoding="utf-8")
        elif not reached:
            raise RuntimeError(done.stderr)
        if time.monotonic() >= end:
            return runs, edges, found


def _what(said: str) -> str:
    """The exception and its place in alt-jax, or libFuzzer's own word, e.g. for a timeout."""
    places = re.findall(r'File ".*?/(alt_jax/\S+)", line (\d+)', said)
    error = re.findall(r"^(\w[\w.]*(?:Error|Exception|Warning|Interrupt)\b.{0,80})", said, re.MULTILINE)
    other = re.findall(r"ERROR: libFuzzer: (.*)", said)
    return f"{(error or other or ['ended'])[-1]} {':'.join(places[-1]) if places else ''}".replace("|", "/").strip()


def fuzz(work: Path, group: str, seconds: int) -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris  # noqa: PLC0415

    with atheris.instrument_imports(include=["alt_jax"], enable_loader_override=False):
        import fuzz_targets  # noqa: PLC0415
    for name in ("corpus", "found"):
        (work / group / name).mkdir(parents=True, exist_ok=True)
    chosen = _chosen(fuzz_targets, group)
    for number, target in enumerate(chosen.values()):
        for n, seed in enumerate(target.seeds):
            (work / group / "corpus" / f"seed-{number}-{n}").write_bytes(bytes([number]) + seed)
    order = list(chosen.values())

    def read(data: bytes) -> None:
        if data:
            fuzz_targets.refused(order[data[0] % len(order)], data[1:])

    def change(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if not data or rng.random() < 0.4:
            return bytes(atheris.Mutate(data, most))
        target = order[data[0] % len(order)]
        return (data[:1] + fuzz_targets.mutated((data[1:], *target.seeds[: rng.randrange(2)]), rng))[:most]

    arguments = [f"-max_total_time={seconds}", "-rss_limit_mb=2000", "-timeout=20", "-print_final_stats=1"]
    arguments += [f"-artifact_prefix={work / group / 'found'}/", "-max_len=65536", str(work / group / "corpus")]
    atheris.Setup([sys.argv[0], *arguments], read, custom_mutator=change)
    atheris.Fuzz()


def replay(path: Path) -> None:
    """Reads one input; says what its reader says."""
    import fuzz_targets  # noqa: PLC0415

    data = path.read_bytes()
    order = list(_chosen(fuzz_targets, path.parents[1].name).items())
    name, target = order[data[0] % len(order)]
    print(f"{name}: {len(data) - 1:,} bytes", flush=True)
    target.read(data[1:])


def _chosen(fuzz_targets: Any, group: str) -> dict[str, Any]:
    """The targets of a group; they write into memory where there is a file system for that."""
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
    targets = fuzz_targets.made(Path(tempfile.mkdtemp(prefix="alt-jax-fuzz-", dir=shared)))
    return {name: target for name, target in targets.items() if re.split(r"[./]", name)[0] == group}


if __name__ == "__main__":
    sys.exit(main())

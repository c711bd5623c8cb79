"""Prints a Markdown table of finetuning runs: mean ± standard deviation over seeds, RelaImpr over the same baseline.

    python benchmarks/results.py runs/ml100k/seed_*

Every folder given is one seed and holds the runs `<strategy>_baseline` and `<strategy>_pretrained`.
"""

import json
import statistics
import sys
from pathlib import Path

from alt_jax.metrics import relaimpr


def cell(values: list[float]) -> str:
    """Mean ± sample standard deviation."""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def main(seeds: list[Path]) -> None:
    """Reads result.json of every run and prints the table."""
    print("| strategy | start | seeds | test AUC | logloss | RelaImpr | valid AUC |\n|---|---|---|---|---|---|---|")
    for strategy in ("ctr", "plm", "joint"):
        base = None
        for start in ("baseline", "pretrained"):
            files = [seed / f"{strategy}_{start}" / "result.json" for seed in seeds]
            results = [json.loads(file.read_text()) for file in files if file.is_file()]
            if not results:
                continue
            auc = [result["test"]["auc"] for result in results]
            gain = "–" if base is None else f"{100 * relaimpr(statistics.mean(auc), base):+.2f} %"
            base = statistics.mean(auc) if start == "baseline" else base
            logloss = cell([result["test"]["logloss"] for result in results])
            valid = cell([result["valid"]["auc"] for result in results])
            print(f"| {strategy} | {start} | {len(results)} | {cell(auc)} | {logloss} | {gain} | {valid} |")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])

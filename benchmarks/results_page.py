"""Fills the tables of docs/results.md from the runs that are kept beside it, seed by seed, as CSV.

    python benchmarks/results_page.py            # rewrites what stands between the markers
    python benchmarks/results_page.py --check    # says whether that would change anything

A marker names a CSV of `alt-jax ablate` (its table.csv), and possibly one of published figures (arm, auc, logloss):

    <!-- table: results/movielens_1m_random_drop3.csv published=results/published.csv -->
    <!-- end -->
"""

import argparse
import csv
import re
import statistics
import sys
from pathlib import Path

import scipy.stats

from alt_jax.metrics import relaimpr

PAGE = Path(__file__).parent.parent / "docs" / "results.md"
_MARKED = re.compile(r"(<!-- table: (?P<path>\S+)(?: published=(?P<published>\S+))? -->\n).*?(<!-- end -->)", re.DOTALL)


def cell(values: list[float]) -> str:
    """Mean ± sample standard deviation."""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def table(path: Path, published: Path | None) -> str:
    """Lines by strategy and arm, each compared with its strategy's first."""
    seeds: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for row in csv.DictReader(path.open()):
        values = {name: float(row[name]) for name in ("test_auc", "test_logloss", "valid_auc")}
        seeds.setdefault((row["strategy"], row["arm"]), {})[int(row["seed"])] = values
    known = {}
    if published:
        known = {row["arm"]: f"{row['auc']} / {row['logloss']}" for row in csv.DictReader(published.open())}
    columns = ["strategy", "arm", "seeds", "test AUC", "logloss", "valid AUC", "RelaImpr", "p"]
    lines = [columns + ["published"] * bool(known)]
    first: dict[str, dict[int, float]] = {}
    for (strategy, arm), runs in seeds.items():
        auc = {seed: run["test_auc"] for seed, run in runs.items()}
        gain, p = "–", "–"
        if strategy in first:
            gain = f"{100 * relaimpr(statistics.mean(auc.values()), statistics.mean(first[strategy].values())):+.2f} %"
            both = sorted(auc.keys() & first[strategy].keys())
            if len(both) > 1:
                p = f"{scipy.stats.ttest_rel([auc[s] for s in both], [first[strategy][s] for s in both]).pvalue:.3f}"
        else:
            first[strategy] = auc
        measured = [cell([run[name] for run in runs.values()]) for name in ("test_auc", "test_logloss", "valid_auc")]
        lines.append([strategy, arm, str(len(runs)), *measured, gain, p, *[known.get(arm, "–")] * bool(known)])
    rule = ["---"] * len(lines[0])
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:])) + "\n"


def fill(text: str, folder: Path) -> str:
    """The page with every marked table made anew."""

    def one(match: re.Match[str]) -> str:
        published = folder / match["published"] if match["published"] else None
        return f"{match[1]}{table(folder / match['path'], published)}{match[4]}"

    return _MARKED.sub(one, text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    text = PAGE.read_text(encoding="utf-8")
    made = fill(text, PAGE.parent)
    if parser.parse_args().check:
        sys.exit(0 if made == text else f"{PAGE} does not agree with its CSV files; run {sys.argv[0]}.")
    PAGE.write_text(made, encoding="utf-8")

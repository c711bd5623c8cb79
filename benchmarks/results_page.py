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
import sys
from pathlib import Path

from alt_jax.comparison import COLUMNS, compare, markdown, read_csv

PAGE = Path(__file__).parent.parent / "docs" / "results.md"
_MARKED = re.compile(r"(<!-- table: (?P<path>\S+)(?: published=(?P<published>\S+))? -->\n).*?(<!-- end -->)", re.DOTALL)


def table(path: Path, published: Path | None) -> str:
    """The finished runs of a study, beside published figures."""
    rows = [line.cells for line in compare(read_csv(path))]
    if published is None:
        return markdown(COLUMNS, rows)
    with published.open(encoding="utf-8") as file:
        known = {row["arm"]: f"{row['auc']} / {row['logloss']}" for row in csv.DictReader(file)}
    return markdown([*COLUMNS, "published"], [[*row, known.get(row[COLUMNS.index("arm")], "–")] for row in rows])


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

"""Fills the tables of docs/results.md and its appendix from the runs that are kept beside it, seed by seed, as CSV.

    python benchmarks/results_page.py            # rewrites what stands between the markers
    python benchmarks/results_page.py --check    # says whether that would change anything

A marker names a CSV of `alt-jax ablate` (its table.csv), and possibly one of published figures (arm, auc, logloss):

    <!-- table: results/movielens_1m_random_drop3.csv published=results/published.csv -->
    <!-- end -->

or several of the same study, to stand side by side under the last part of their names (dcnv2, deepfm):

    <!-- table: results/losses_dcnv2.csv results/losses_deepfm.csv -->
    <!-- end -->
"""

import argparse
import csv
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from alt_jax.comparison import COLUMNS, compare, markdown, read_csv

DOCS = Path(__file__).parent.parent / "docs"
PAGES = (DOCS / "results.md", DOCS / "results_first_recipe.md")
_MARKED = re.compile(
    r"(<!-- table: (?P<paths>\S+\.csv(?: \S+\.csv)*?)(?: published=(?P<published>\S+))? -->\n).*?(<!-- end -->)",
    re.DOTALL,
)


def table(path: Path, published: Path | None) -> str:
    """The finished runs of a study, beside published figures."""
    rows = [line.cells for line in compare(read_csv(path))]
    if published is None:
        return markdown(COLUMNS, rows)
    with published.open(encoding="utf-8") as file:
        known = {row["arm"]: f"{row['auc']} / {row['logloss']}" for row in csv.DictReader(file)}
    return markdown([*COLUMNS, "published"], [[*row, known.get(row[COLUMNS.index("arm")], "–")] for row in rows])


def side_by_side(paths: Sequence[Path]) -> str:
    """Mean AUC on test and on validation of the same runs in several studies."""
    studies = [{(line.strategy, line.arm): line for line in compare(read_csv(path))} for path in paths]
    names = [path.stem.rpartition("_")[2] for path in paths]
    header = ["strategy", "arm", *(f"{name}: {part}" for name in names for part in ("test", "valid"))]
    rows = []
    for key in studies[0]:
        lines = [study[key] for study in studies]
        rows.append([*key, *(f"{mean(part):.4f}" for line in lines for part in (line.auc, line.valid))])
    return markdown(header, rows)


def fill(text: str, folder: Path) -> str:
    """The page with every marked table made anew."""

    def one(match: re.Match[str]) -> str:
        paths = [folder / name for name in match["paths"].split()]
        published = folder / match["published"] if match["published"] else None
        made = table(paths[0], published) if len(paths) == 1 else side_by_side(paths)
        return f"{match[1]}{made}{match[4]}"

    return _MARKED.sub(one, text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        made = fill(text, page.parent)
        if not check:
            page.write_text(made, encoding="utf-8")
        elif made != text:
            sys.exit(f"{page} does not agree with its CSV files; run {sys.argv[0]}.")

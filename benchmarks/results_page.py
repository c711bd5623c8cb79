"""Fills the tables of docs/results.md and its appendix from the runs that are kept beside it, seed by seed, as CSV.

    python benchmarks/results_page.py            # rewrites what stands between the markers
    python benchmarks/results_page.py --check    # says whether that would change anything

A marker names a CSV of `alt-jax ablate` (its table.csv), and possibly one of published figures (arm, auc, logloss):

    <!-- table: results/movielens_1m_random_drop3.csv published=results/published.csv -->
    <!-- end -->

or several of the same study, to stand side by side under the last part of their names (dcnv2, deepfm):

    <!-- table: results/losses_dcnv2.csv results/losses_deepfm.csv -->
    <!-- end -->

A study `labels` is a line a model and a column a share of the labels, and its figure has a panel a CSV:

    <!-- shares: results/movielens_100k_labels.csv -->
    <!-- end -->

    python benchmarks/results_page.py --figure    # docs/pictures/labels.png, of all CSVs that are so marked
"""

import argparse
import csv
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from matplotlib.figure import Figure

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


_SHARES = re.compile(r"(<!-- shares: (?P<path>\S+\.csv) -->\n).*?(<!-- end -->)", re.DOTALL)
_ARM = re.compile(r"(?P<model>.*), (?P<share>[\d.]+) % of the labels")


def by_share(path: Path) -> dict[str, dict[float, list[float]]]:
    """Test AUC of every run of a study `labels`, by model and share of the labels in percent."""
    found: dict[str, dict[float, list[float]]] = {}
    for (strategy, arm), runs in read_csv(path).items():
        match = _ARM.fullmatch(arm)
        assert match, f"{path} has an arm {arm!r}, which is none of a study `labels`"
        model = match["model"] if strategy == "ctr" else f"{strategy}: {match['model']}"
        found.setdefault(model, {})[float(match["share"])] = [scores.test_auc for scores in runs.values()]
    return found


def shares(path: Path) -> str:
    """The table of a study `labels`: mean test AUC ± sample standard deviation over so many runs."""
    models = by_share(path)
    places = sorted({share for points in models.values() for share in points})

    def cell(values: list[float]) -> str:
        spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
        return f"{mean(values):.4f}{spread} ({len(values)})"

    rows = [[name, *(cell(points[p]) if p in points else "–" for p in places)] for name, points in models.items()]
    return markdown(["test AUC (runs)", *(f"{place:g} %" for place in places)], rows)


def draw(paths: Sequence[Path], to: Path) -> None:
    """AUC against the share of the labels, a panel a study."""
    figure = Figure(figsize=(4.2 * len(paths), 3.6), layout="constrained")
    for axis, path in zip(figure.subplots(1, len(paths), squeeze=False)[0], paths, strict=True):
        for model, points in by_share(path).items():
            at = sorted(points)
            spread = [stdev(points[share]) if len(points[share]) > 1 else 0.0 for share in at]
            axis.errorbar(at, [mean(points[share]) for share in at], spread, fmt="o-", capsize=3, ms=4, label=model)
        axis.set_xscale("log")
        axis.set_xticks(at, [f"{share:g} %" for share in at])
        axis.minorticks_off()
        axis.set_title(path.stem.removesuffix("_labels").replace("_", " "))
        axis.set_xlabel("share of the labels")
        axis.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.axes[0].set_ylabel("test AUC, mean ± std over runs")
    figure.savefig(to, dpi=120)


def fill(text: str, folder: Path) -> str:
    """The page with every marked table made anew."""

    def one(match: re.Match[str]) -> str:
        paths = [folder / name for name in match["paths"].split()]
        published = folder / match["published"] if match["published"] else None
        made = table(paths[0], published) if len(paths) == 1 else side_by_side(paths)
        return f"{match[1]}{made}{match[4]}"

    text = _SHARES.sub(lambda match: f"{match[1]}{shares(folder / match['path'])}{match[3]}", text)
    return _MARKED.sub(one, text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--figure", action="store_true")
    options = parser.parse_args()
    check = options.check
    if options.figure:
        text = PAGES[0].read_text(encoding="utf-8")
        marked = [DOCS / match["path"] for match in _SHARES.finditer(text)]
        draw(marked, DOCS / "pictures" / "labels.png")
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        made = fill(text, page.parent)
        if not check:
            page.write_text(made, encoding="utf-8")
        elif made != text:
            sys.exit(f"{page} does not agree with its CSV files; run {sys.argv[0]}.")

"""Figures of a report, as SVG to be put into HTML: small, one panel each, so that a page may lay them out at any width.

Their ink is the page's own text colour, and the palette is that of Okabe and Ito, which colour-blind people tell apart
and which shows on white and on black.
"""

import io
import math
import re
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import scipy.special
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alt_jax.comparison import Line
from alt_jax.report.alignment import Views
from alt_jax.report.clicks import Fused
from alt_jax.report.measures import Bin, Calibration, Curve

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_INK = "#010203"  # becomes currentColor
_STYLES = ("-", "--", ":", "-.")
_WIDTH, _HEIGHT = 4.4, 3.1  # inches; 1 inch is 72 of the SVG's units
_RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "alt-jax",
    "text.parse_math": False,  # a field may be called $x$
    "font.size": 10.0,
    "axes.labelsize": 10.0,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "legend.fontsize": 9.0,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.18,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), _INK
    ),
}


def _draw(paint: Callable[[Axes], None], height: float = _HEIGHT) -> str:
    return _figure(lambda figure: paint(figure.subplots()), height)


def _figure(paint: Callable[[Figure], None], height: float = _HEIGHT) -> str:
    """The SVG element of a figure."""
    out = io.StringIO()
    with mpl.rc_context(_RC), warnings.catch_warnings():
        # The reader's browser has the letters that Matplotlib's own font lacks
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        paint(figure)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=nothing)
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    return re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)  # HTML knows them


def curves(curves: Mapping[str, Curve], x: str, y: str, *, diagonal: bool = False, dots: bool = False) -> str:
    """Lines of several runs."""

    def paint(axes: Axes) -> None:
        if diagonal:
            axes.plot([0, 1], [0, 1], color=_INK, alpha=0.4, linewidth=0.8)
            axes.set_aspect("equal")
        for number, (name, curve) in enumerate(curves.items()):
            axes.plot(curve.x, curve.y, marker="o" if dots else None, markersize=3.5, **_look(number, name))
        if not diagonal:
            axes.margins(x=0.02)
            axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5, integer=True))
        _label(axes, x, y, legend=len(curves) > 1)

    return _draw(paint, _HEIGHT + (0.6 if diagonal else 0))


def calibration(found: Mapping[str, Calibration]) -> str:
    """Share of clicks over the predicted probability, and how many rows that is about."""

    def paint(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], color=_INK, alpha=0.4, linewidth=0.8)
        for number, (name, bins) in enumerate(found.items()):
            own, look = bins.rows > 0, _look(number, name)
            upper.plot(bins.predicted[own], bins.clicked[own], marker="o", markersize=3.5, **look)
            edges = np.linspace(0, 1, len(bins.rows) + 1)
            lower.stairs(bins.rows, edges, **{key: look[key] for key in ("color", "linestyle")})
        _label(upper, "", "clicked", legend=len(found) > 1)
        _label(lower, "predicted probability", "rows")
        lower.set_xlim(0, 1)
        lower.yaxis.set_major_locator(mpl.ticker.MaxNLocator(2, integer=True))

    return _figure(paint, _HEIGHT + 0.6)


def frequency(what: str, found: Mapping[str, list[Bin]]) -> str:
    """AUC by how often training saw a row's user or item; where there is one class, nothing is drawn."""

    def paint(axes: Axes) -> None:
        for number, (name, bins) in enumerate(found.items()):
            shift = 0.12 * (number - (len(found) - 1) / 2)
            at = np.arange(len(bins)) + shift
            axes.plot(at, [one.auc for one in bins], marker="o", markersize=4.5, **_look(number, name))
        bins = next(iter(found.values()))
        axes.set_xticks(range(len(bins)), [f"{one.name.replace(' or more', '+')}" for one in bins])
        axes.set_xlim(-0.5, len(bins) - 0.5)
        axes.axhline(0.5, color=_INK, alpha=0.4, linewidth=0.8)
        _label(axes, f"training rows of the {what}", "test AUC", legend=len(found) > 1)

    return _draw(paint)


def fused(found: Mapping[str, Fused]) -> str:
    """Validation AUC over α, and where each run has it."""

    def paint(axes: Axes) -> None:
        for number, (name, fused) in enumerate(found.items()):
            axes.plot(*fused.mixtures, **_look(number, name))
            axes.plot(fused.alpha, fused.mixed, "o", color=PALETTE[number % len(PALETTE)], markersize=7)
        for alpha in (0, 1):
            axes.axvline(alpha, color=_INK, alpha=0.4, linewidth=0.8)
        _label(axes, "α: 0 is the text tower alone, 1 the CTR tower alone", "validation AUC", legend=len(found) > 1)

    return _draw(paint)


def similarity(views: Views, rows: int = 64) -> str:
    """What ICL makes of the similarities of some rows: the softmax of every line, from 0 to the largest one."""

    def paint(axes: Axes) -> None:
        some = np.linspace(0, len(views.similarity) - 1, min(rows, len(views.similarity))).astype(int)
        shown = scipy.special.softmax(views.similarity[np.ix_(some, some)], axis=1)
        image = axes.imshow(shown, cmap="cividis", interpolation="nearest", vmin=0, vmax=max(float(shown.max()), 1e-6))
        axes.grid(False)
        axes.figure.colorbar(image, ax=axes, shrink=0.85, label="probability")
        _label(axes, "row, as text", "row, as ids")

    return _draw(paint, _HEIGHT + 0.4)


def plane(ctr: Float[np.ndarray, "N 2"], text: Float[np.ndarray, "N 2"], partners: int = 40, most: int = 400) -> str:
    """Both views of every row on a plane; some partners are tied together."""

    def paint(axes: Axes) -> None:
        for n in np.linspace(0, len(ctr) - 1, min(partners, len(ctr))).astype(int).tolist():
            ends = np.stack([ctr[n], text[n]])
            axes.plot(ends[:, 0], ends[:, 1], color=_INK, alpha=0.35, linewidth=0.6)
        for number, (name, points) in enumerate((("ids", ctr), ("text", text))):
            some = points[np.linspace(0, len(points) - 1, min(most, len(points))).astype(int)]
            axes.scatter(some[:, 0], some[:, 1], s=7, alpha=0.6, linewidths=0, color=PALETTE[number], label=name)
        _label(axes, "first component", "second component", legend=True)

    return _draw(paint, _HEIGHT + 0.4)


def bars(
    names: Sequence[str],
    groups: Mapping[str, Sequence[float]],
    x: str,
    *,
    marks: Sequence[float] | None = None,
    start: float = 0.0,
    end: float | None = None,
) -> str:
    """Horizontal bars side by side; NaN has none.

    Args:
      names: What each line is about.
      groups: Bars of every line.
      x: What is drawn, and its unit.
      marks: A stroke across every line.
      start: Where bars begin.
      end: Of the axis.
    """
    width = 0.8 / len(groups)

    def paint(axes: Axes) -> None:
        y = np.arange(len(names))
        for number, (name, values) in enumerate(groups.items()):
            length = np.asarray(values, float) - start
            at = y + width * (number - (len(groups) - 1) / 2)
            look: Any = {"color": PALETTE[number % len(PALETTE)], "label": _legend(name)}
            axes.barh(at, np.nan_to_num(length), height=width * 0.92, left=start, **look)
        if marks is not None:
            real = [(mark, n) for n, mark in enumerate(marks) if not math.isnan(mark)]
            axes.plot([m for m, _ in real], [n for _, n in real], "|", color=_INK, markersize=15, markeredgewidth=1.6)
        axes.set_yticks(y, [_short(name) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(start, end)
        axes.grid(False, axis="y")
        _label(axes, x, "")
        if len(groups) > 1:
            _legend_above(axes)

    return _draw(paint, 1.0 + (0.17 + 0.13 * len(groups)) * len(names))


def study(lines: Sequence[Line]) -> str:
    """A strategy's arms: mean and standard deviation over seeds, each seed as a point, from the first arm's mean."""
    base = statistics.mean(lines[0].auc) if lines[0].auc else 0.5

    def paint(axes: Axes) -> None:
        for y, line in enumerate(lines):
            if not line.auc:
                axes.annotate(line.without, (0.5, y), xycoords=("axes fraction", "data"), ha="center", va="center")
                continue
            gains = [auc - base for auc in line.auc]
            mean, spread = statistics.mean(gains), statistics.stdev(gains) if len(gains) > 1 else 0.0
            axes.barh(y, mean, height=0.62, color=PALETTE[0 if y else 2], alpha=0.55)
            if len(gains) > 1:
                axes.errorbar(mean, y, xerr=spread, fmt="none", ecolor=_INK, capsize=4, elinewidth=1.2)
            axes.plot(gains, [y] * len(gains), "o", color=PALETTE[1], markersize=4)
        axes.axvline(0, color=_INK, linewidth=0.8)
        axes.set_yticks(range(len(lines)), [_short(line.arm) for line in lines])
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.grid(False, axis="y")
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4))
        _label(axes, f"test AUC − {base:.4f}", "")

    return _draw(paint, 0.9 + 0.32 * len(lines))


def histogram(shares: Float[np.ndarray, " L"]) -> str:
    """How long prompts are."""

    def paint(axes: Axes) -> None:
        there = np.flatnonzero(shares)
        low, high = (int(there[0]), int(there[-1])) if len(there) else (0, 1)
        axes.bar(np.arange(low, high + 1), 100 * shares[low : high + 1], width=0.9, color=PALETTE[0])
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(6, integer=True))
        _label(axes, "tokens of a prompt", "rows, %")

    return _draw(paint, 2.4)


def _look(number: int, name: str) -> dict[str, Any]:
    """Colour, stroke and label of the line of a number."""
    stroke = _STYLES[number // len(PALETTE) % len(_STYLES)]
    return {"color": PALETTE[number % len(PALETTE)], "linestyle": stroke, "label": _legend(name)}


def _legend(name: str) -> str:
    """Matplotlib takes a label that begins with a stroke for none."""
    return f" {_short(name)}" if name.startswith("_") else _short(name)


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _label(axes: Axes, x: str, y: str, *, legend: bool = False) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if legend:
        axes.legend(handlelength=1.4)


def _legend_above(axes: Axes) -> None:
    axes.figure.legend(loc="outside upper center", ncols=3, handlelength=1.2)

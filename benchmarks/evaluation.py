"""Metrics of many scores: seconds, scores/s and peak memory, beside a plain sort of the same array.

    python benchmarks/evaluation.py --scores 100000000

Scores are float32 sigmoids, so that many tie, and labels are drawn by them. Each thing runs once a round, in turn.
"""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import measure
import numpy as np

from alt_jax import metrics


def chunks(count: int, size: int = 1 << 20) -> Iterator[slice]:
    """Slices of at most `size` rows: what is drawn or looked at at a time."""
    return (slice(low, min(low + size, count)) for low in range(0, count, size))


def clicks(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels uint8[N], about a quarter of them 1, and calibrated probabilities float32[N]."""
    rng = np.random.default_rng(0)
    label, score = np.empty(count, np.uint8), np.empty(count, np.float32)
    for part in chunks(count):
        logit = 1.5 * rng.standard_normal(len(score[part]), np.float32) - 1.5
        score[part] = 1 / (1 + np.exp(-logit))
        label[part] = rng.random(len(logit), np.float32) < score[part]
    return label, score


def distinct(score: np.ndarray) -> int:
    """How many different scores there are."""
    ordered = np.sort(score)
    return 1 + sum(int((np.diff(ordered[part.start : part.stop + 1]) > 0).sum()) for part in chunks(len(ordered)))


def peak() -> int:
    """Most bytes that this process has had in memory."""
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--scores", type=int, default=10_000_000)
    parser.set_defaults(rounds=1)
    arguments = parser.parse_args()
    label, score = clicks(arguments.scores)
    inputs, before = label.nbytes + score.nbytes, peak()
    works: dict[str, Callable[[], float | np.ndarray]] = {
        "auc": lambda: metrics.auc(label, score),
        "logloss": lambda: metrics.logloss(label, score),
        "ece": lambda: metrics.ece(label, score),
        "sort": lambda: np.sort(score),
    }
    values: dict[str, float] = {}
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(arguments.rounds):
        for name, work in works.items():
            start = time.perf_counter()
            found = work()
            times[name].append(time.perf_counter() - start)
            if isinstance(found, float):
                values[name] = found
            del found  # else the sorted copy would be in the next round's peak
    most, seconds = peak(), {name: statistics.median(spent) for name, spent in times.items()}
    measure.show(
        "evaluation",
        {
            "scores": arguments.scores,
            "distinct scores": distinct(score),
            **values,
            **{f"s: {name}": spent for name, spent in seconds.items()},
            **{f"scores/s: {name}": arguments.scores / spent for name, spent in seconds.items()},
            "auc / sort": seconds["auc"] / seconds["sort"],
            "GB of inputs": inputs / 1e9,
            "GB with inputs, before": before / 1e9,
            "GB at the peak": most / 1e9,
            "peak / inputs": most / inputs,
        },
        arguments.json,
    )


if __name__ == "__main__":
    main()

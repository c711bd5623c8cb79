"""Static bounds on sums over rows drawn by chance, so that arrays have room for all but a vanishing share of batches.

By Chernoff, P(x₁ + … + x_n > t) ≤ E[exp(s x)]ⁿ exp(−s t) for every s > 0. The rows of an epoch are drawn without
replacement, which makes it rarer still (Hoeffding, JASA 1963, theorem 4).
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

_CHANCE = 1e-12  # of a sum beyond the bound
_S = (1e-4, 10.0)  # between which s is looked for: every one gives a bound, and the least is wanted


def sum_bound(log_moment: Callable[[float], float], rows: int, largest: float) -> float:
    """What a sum over so many rows exceeds with a chance of 1e-12 at most.

    Args:
      log_moment: s ↦ log E[exp(s x)] of one row's term.
      rows: n.
      largest: Of one row's term.
    """

    def bound(s: float) -> float:
        return (rows * log_moment(s) - math.log(_CHANCE)) / s

    coarse = np.geomspace(*_S, 16)
    best = int(np.argmin([bound(s) for s in coarse.tolist()]))
    fine = np.geomspace(coarse[max(best - 1, 0)], coarse[min(best + 1, 15)], 16)
    return min(rows * largest, *map(bound, fine.tolist()))


def log_mean_exp(x: Float[np.ndarray, " N"], weight: Int[np.ndarray, " N"]) -> float:
    """Log of the weighted mean of exp(x)."""
    top = float(x.max())
    return top + math.log(np.exp(x - top) @ weight / weight.sum())

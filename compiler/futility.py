"""chance(): how likely it still is that something ships, were the rest of the budget spent on finding out.

Predictive power, as in clinical trials that stop for futility (Spiegelhalter, Freedman and Blackburn, Monitoring
clinical trials: conditional or predictive power?, 1986). Of a point whose difference to the baseline is believed to be
N(m, v), and on which n more common examples with a paired variance of 2 s2 can be had,

    v' = 1 / (1 / v + n / (2 s2))        what will be left of the doubt
    P = Phi((m - z sqrt(v')) / sqrt(v - v'))        since m moves by N(0, v - v') and must end above z sqrt(v')

The sum over the points that still race is at least the probability that any of them passes. Each is given all of the
rest, so that the sum errs towards going on.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from .surrogate import Surrogate


def chance(surrogate: Surrogate, rows: Sequence[int], home: int, rest: float, guard: float) -> float:
    """Return an upper bound to the probability that one of `rows` passes the guard in the end.

    Args:
        surrogate: What is believed; its row `home` should stand apart, as in the verdict.
        rows: The points that still race.
        home: The baseline's row.
        rest: Metric calls that are left.
        guard: The probability at which a point passes.
    """
    if not rows:
        return 0.0
    sums = surrogate.sums
    beliefs = surrogate.differences(rows, home)
    mean, variance = np.array([(belief.mean, belief.sd**2) for belief in beliefs]).T
    known, base = sums.counts[list(rows)], sums.counts[home]
    ends = np.minimum(float(sums.sizes.sum()), (rest + known + base) / 2)
    more = np.maximum(0.0, ends - np.minimum(known, base))
    after = 1 / (1 / variance + more / (2 * sums.variance))
    moves = np.sqrt(np.maximum(variance - after, 1e-12 * variance))
    return float(stats.norm.cdf((mean - stats.norm.ppf(guard) * np.sqrt(after)) / moves).sum())

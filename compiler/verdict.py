"""verdict(): what a search found, and whether it is good enough to ship."""

import numpy as np

from .contract import SearchOptions, SearchResult
from .explore import fitting_columns
from .scores import Floats, Scores
from .space import Point
from .study import annotate, record
from .surrogate import Belief, Surrogate

POOLED = 20
"""Examples that the pooled noise counts as, beside those on which the winner met the baseline."""


def verdict(scores: Scores, home: Point, options: SearchOptions, seed: int, reason: str) -> SearchResult:
    """Return the result of what was told: the best point by posterior mean, shipped where the guard lets it pass."""
    best, belief, beliefs = _best(scores, home)
    ships = best != home and belief.probability >= options.guard and belief.mean > options.min_gain
    trials, study = record(scores, home, best, beliefs.tolist(), seed)
    result = SearchResult(
        best=best,
        shipped=best if ships else home,
        estimate=belief.mean,
        interval=belief.interval,
        probability=belief.probability,
        spent=scores.spent,
        trials=trials,
        study=study,
        reason=reason,
        space=scores.space,
    )
    annotate(result, home)
    return result


def _best(scores: Scores, home: Point) -> tuple[Point, Belief, Floats]:
    """Return the best point, and what is believed of its difference, or of the best other point's, to the baseline.

    And the mean of what is believed of every row's.
    """
    base = scores.rows.get(home)
    others = [row for row in range(len(scores.points)) if scores.told[row] and row != base]
    if base is None or not scores.told[base] or not others:
        return home, Belief(0.0, 0.0), np.zeros(len(scores.points))
    columns, sums = fitting_columns(scores.space), scores.sums()
    surrogate = Surrogate.fit(sums, columns)
    leader = max(others, key=lambda row: (surrogate.means[row], -row))
    # The noise of this pair, which the pooled one may miss: a winner that answers other examples than the rest.
    met = scores.paired(leader, base)
    variance = float(((met - met.mean()) ** 2).sum()) / 2 + POOLED * sums.variance
    again = Surrogate.fit(sums, columns, None, variance / (len(met) - 1 + POOLED))
    belief = again.differences([leader], base, max(1.0, len(met) - 1.0))[0]
    return (scores.points[leader] if belief.mean > 0 else home), belief, surrogate.means - surrogate.means[base]

"""verdict(): what a search found, and whether it is good enough to ship."""

import math
from functools import partial

from optuna.study import Study

from .contract import SearchOptions, SearchResult
from .explore import fitting_columns
from .scores import Scores
from .space import Point
from .study import annotate, record, trials
from .surrogate import Belief, Surrogate

POOLED = 20
"""Examples that the pooled noise counts as, beside those on which the winner met the baseline."""

SLOPES = 1.5
"""The coefficient of variation, from example to example, of how much a difference between points shows there.

An easy example shows none, whoever answers it, and a borderline one shows much: so effects that were learnt on n
examples are off by a common factor with a standard deviation of about SLOPES / sqrt(n), however many points tell it.
"""

LEAST = 1e-6
"""The least precision of what others tell, in units of what the pair itself tells."""


def verdict(scores: Scores, home: Point, options: SearchOptions, seed: int, reason: str) -> SearchResult:
    """Return the result of what was told: the best point by posterior mean, shipped where the guard lets it pass."""
    leader, belief = favourite(scores, home)
    best = home if leader is None or belief.mean <= 0 else scores.points[leader]
    ships = best != home and belief.probability >= options.guard and belief.mean > options.min_gain
    return SearchResult(
        best=best,
        shipped=best if ships else home,
        estimate=belief.mean,
        interval=belief.interval,
        probability=belief.probability,
        spent=scores.spent,
        trials=trials(scores, home),
        recorded=partial(recorded, scores, home, seed),
        reason=reason,
        space=scores.space,
        favourite=home if leader is None else scores.points[leader],
    )


def recorded(scores: Scores, home: Point, seed: int, result: SearchResult) -> Study:
    """Return the study of a result, with what is believed of every point's difference to the baseline."""
    base, beliefs = scores.rows.get(home), list[float]()
    if base is not None and scores.outcomes:
        means = Surrogate.fit(scores.sums(), fitting_columns(scores.space), apart=base).means
        beliefs = (means - means[base]).tolist()
    study = record(scores, home, result.best, beliefs, seed)
    annotate(study, result, home)
    return study


def favourite(scores: Scores, home: Point) -> tuple[int | None, Belief]:
    """Return the row of the best point but the baseline, and what is believed of its difference to the baseline.

    None where nothing can be compared. The belief combines what the pair says itself, on the examples that both met,
    with what the model infers from all other points: the former needs no model, the latter makes up for selection.
    """
    base = scores.rows.get(home)
    others = [] if base is None else [row for row, met in enumerate(scores.met(base).tolist()) if met and row != base]
    if base is None or not others:
        return None, Belief(0.0, 0.0)
    columns, sums = fitting_columns(scores.space), scores.sums()
    surrogate = Surrogate.fit(sums, columns, apart=base)
    leader = max(others, key=lambda row: (surrogate.means[row], -row))
    # The noise of this pair, which the pooled one may miss: a winner that answers other examples than the rest.
    met = scores.paired(leader, base)
    squares = float(((met - met.mean()) ** 2).sum())
    noise = (squares / 2 + POOLED * sums.variance) / (len(met) - 1 + POOLED)
    again = Surrogate.fit(sums, columns, None, noise, base)
    model = again.differences([leader], base)[0]
    doubt = SLOPES**2 / again.breadth([leader, base])
    freedom = max(1.0, len(met) - 1.0)
    return leader, weighed(model, Belief(float(met.mean()), math.sqrt(2 * noise / len(met)), freedom), doubt)


def weighed(model: Belief, direct: Belief, doubt: float) -> Belief:
    """Return `model`, a belief that contains `direct`, with what it has from elsewhere doubted.

    Taking `direct` out of `model` (precisions subtract) leaves what the other points and the prior say, I with a
    variance V. As it was learnt on few examples it is off by a factor with variance `doubt`, so that its variance is
    V + doubt I^2; then `direct` is put back. Where nothing is believed to be different, nothing is doubted.
    """
    own = 1 / direct.sd**2
    rest = 1 / model.sd**2 - own
    if rest < LEAST * own:
        return Belief(model.mean, max(model.sd, direct.sd), direct.freedom)
    inferred = (model.mean / model.sd**2 - direct.mean * own) / rest
    weight = 1 / (1 / rest + doubt * inferred**2)
    precision = own + weight
    return Belief((direct.mean * own + inferred * weight) / precision, precision**-0.5, direct.freedom)

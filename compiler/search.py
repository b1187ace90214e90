"""search(): screening and racing over a SearchSpace, on any Oracle.

Every comparison is paired: candidates meet on the same examples, in the order of one permutation. Screening asks Optuna
for points, a window at a time, and scores them on a first rung of examples; racing doubles the examples and halves the
field, the baseline always among it; the last fifth of the budget is winner against baseline. The guard ships the winner
only where the posterior says that it is better. (Optuna: Akiba et al., KDD 2019. Successive halving: Jamieson and
Talwalkar, AISTATS 2016.)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import optuna
from scipy import stats

from .rng import generator, integer
from .space import Point, SearchSpace

SamplerName = Literal["tpe", "random", "gp"]


@dataclass(frozen=True)
class Block:
    """What an oracle answers: one entry for each example asked for, in that order."""

    scores: tuple[float, ...]
    costs: tuple[float, ...] = ()
    causes: tuple[str, ...] = ()


@runtime_checkable
class Oracle(Protocol):
    """What the search sees of the world: how many examples there are, and scores of points on them."""

    @property
    def examples(self) -> int:
        """How many examples there are."""
        ...

    def submit(self, point: Point, examples: Sequence[int], replicate: int) -> "Future[Block]":
        """Score a point on examples; the future may be fulfilled in any order."""
        ...


@dataclass(frozen=True)
class SearchOptions:
    """How the search goes about it.

    Attributes:
        sampler: Optuna's sampler for the screening.
        window: Points asked for before the first is told; fixed, so that decisions don't depend on the concurrency.
        rung: Examples of the first comparison; None lets the budget decide.
        finalists: How many points race.
        guard: The winner ships where the probability that it beats the baseline is at least this.
        min_gain: A gain below this, in the metric's unit, isn't worth shipping.
        stop: Asked between steps; a reason ends the search early.
        watch: Called after each trial with (trials so far, best mean so far).
    """

    sampler: SamplerName = "tpe"
    window: int = 8
    rung: int | None = None
    finalists: int = 8
    guard: float = 0.975
    min_gain: float = 0.0
    stop: Callable[[], str | None] = lambda: None
    watch: Callable[[int, float], None] = lambda trials, best: None


@dataclass(frozen=True)
class Trial:
    """One point that was scored: its mean on `n` examples and the mean paired difference to the baseline there."""

    point: Point
    n: int
    mean: float
    difference: float


@dataclass(frozen=True)
class SearchResult:
    """What the search found.

    Attributes:
        best: The best point by posterior mean, before the guard.
        shipped: `best`, or the baseline where the guard refuses it.
        estimate: The posterior mean of the difference between best and baseline.
        interval: Its central 95 % interval.
        probability: The posterior probability that best beats the baseline.
        spent: Metric calls.
        trials: The points that were scored, in the order of the search.
        study: The Optuna study.
        reason: Why the search ended.
    """

    best: Point
    shipped: Point
    estimate: float
    interval: tuple[float, float]
    probability: float
    spent: int
    trials: tuple[Trial, ...]
    study: Any = field(repr=False, compare=False)
    reason: str


class _Scores:
    """The scores so far, by point, along one permutation of the examples."""

    def __init__(self, oracle: Oracle, order: Sequence[int], budget: int) -> None:
        self.oracle = oracle
        self.order = list(order)
        self.budget = budget
        self.spent = 0
        self.known: dict[Point, list[float]] = {}

    def affordable(self, wanted: Mapping[Point, int]) -> bool:
        """Say whether the budget has room to know each point on so many examples."""
        return self.spent + sum(max(0, n - len(self.known.get(p, ()))) for p, n in wanted.items()) <= self.budget

    def extend(self, wanted: Mapping[Point, int]) -> None:
        """Score each point on the first `n` examples of the order, those it lacks; told in the order asked."""
        asked = []
        for point, n in wanted.items():
            have = len(self.known.setdefault(point, []))
            lacking = self.order[have : min(n, len(self.order))]
            if lacking:
                self.spent += len(lacking)
                asked.append((point, self.oracle.submit(point, lacking, 0)))
        for point, future in asked:
            block = future.result()
            if any(math.isnan(score) for score in block.scores):
                raise ValueError(f"`scores are numbers`, but the oracle gave NaN at {point}.")
            self.known[point] += block.scores

    def paired(self, point: Point, baseline: Point) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the differences to the baseline on their common examples."""
        n = min(len(self.known.get(point, ())), len(self.known.get(baseline, ())))
        mine, theirs = self.known[point][:n], self.known[baseline][:n]
        return np.asarray(mine, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)

    def mean(self, point: Point) -> float:
        """Return the mean score of a point, 0 where it has none."""
        return float(np.mean(self.known[point])) if self.known.get(point) else 0.0


def search(
    space: SearchSpace,
    oracle: Oracle,
    *,
    budget: int,
    seed: int,
    options: SearchOptions | None = None,
    baseline: Point | None = None,
) -> SearchResult:
    """Return the best point of `space` that `budget` metric calls can find.

    Args:
        space: The points.
        oracle: What scores them.
        budget: Metric calls, the baseline's included.
        seed: Same seed, same decisions, at any concurrency of the oracle.
        options: How.
        baseline: The point to beat; by default the point of zeros.
    """
    chosen = options or SearchOptions()
    home = space.baseline if baseline is None else baseline
    order = [int(i) for i in generator(seed, "search.order").permutation(oracle.examples)]
    scores = _Scores(oracle, order, budget)
    study = _study(chosen.sampler, seed)
    if space.size < 2 or oracle.examples == 0 or budget < 2:
        return _nothing(home, scores, study, "there is nothing to choose from")
    rung = chosen.rung or _rung(budget, oracle.examples, space.size)
    reason = _screen(space, scores, study, home, rung, chosen)
    finalists = _race(scores, home, rung, chosen)
    posterior = Posterior.fit(scores, home)
    best = max((p for p in finalists if p != home), key=lambda p: posterior.mean(p), default=home)
    mean, sd = posterior.of(best)
    probability = float(stats.norm.sf(0.0, loc=mean, scale=sd)) if best != home else 0.0
    shipped = best if probability >= chosen.guard and mean > chosen.min_gain else home
    return SearchResult(
        best=best,
        shipped=shipped,
        estimate=mean,
        interval=(mean - 1.959964 * sd, mean + 1.959964 * sd),
        probability=probability,
        spent=scores.spent,
        trials=_trials(scores, home),
        study=study,
        reason=reason,
    )


def _rung(budget: int, examples: int, size: int) -> int:
    """Return how many examples the first comparison takes: enough to tell, few enough to see many points."""
    points = min(size, max(8, int(budget**0.5)))
    return max(1, min(examples, max(8, int(0.5 * budget / points))))


def _study(sampler: SamplerName, seed: int) -> Any:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    number = integer(seed, "search.sampler") % 2**32
    kinds: dict[str, Callable[[], Any]] = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=number, multivariate=True, constant_liar=True),
        "random": lambda: optuna.samplers.RandomSampler(seed=number),
        "gp": lambda: optuna.samplers.GPSampler(seed=number),
    }
    return optuna.create_study(direction="maximize", sampler=kinds[sampler]())


def _screen(
    space: SearchSpace, scores: _Scores, study: Any, home: Point, rung: int, options: SearchOptions
) -> str:
    """Score points on the first rung until half of the budget is spent; return why it ended."""
    distributions = {
        slot.name: optuna.distributions.CategoricalDistribution(list(range(slot.levels))) for slot in space.slots
    }
    limit = max(2 * rung, int(0.55 * scores.budget))
    repeats = 0
    study.enqueue_trial(dict(zip(distributions, home, strict=True)))
    while len(scores.known) < space.size and repeats < 20:
        stop = options.stop()
        if stop is not None:
            return stop
        asked: list[tuple[Any, Point]] = []
        fresh: dict[Point, int] = {}
        for _ in range(options.window):
            room = scores.spent + rung * (len(fresh) + 1) <= limit
            if not room and (fresh or scores.known):
                break
            trial = study.ask(distributions)
            point = tuple(int(trial.params[slot.name]) for slot in space.slots)
            asked.append((trial, point))
            if not space.allows(point):
                repeats += 1
            elif point not in scores.known:
                fresh[point] = rung
        if not asked:
            return "half of the budget is spent on screening"
        repeats = repeats + 1 if not fresh else 0
        scores.extend(fresh)
        for trial, point in asked:
            if scores.known.get(point):
                trial.report(scores.mean(point), step=len(scores.known[point]))
                study.tell(trial, scores.mean(point))
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
        options.watch(len(scores.known), max(scores.mean(p) for p in scores.known))
    return "every point was scored" if len(scores.known) >= space.size else "the sampler repeats itself"


def _race(scores: _Scores, home: Point, rung: int, options: SearchOptions) -> list[Point]:
    """Double the examples and halve the field, by posterior mean; the last fifth is winner against baseline."""
    total = len(scores.order)
    # The baseline meets everybody, so it must be known wherever they are.
    if not scores.known.get(home) and scores.affordable({home: rung}):
        scores.extend({home: rung})
    field_ = [p for p in scores.known if p != home]
    n = rung
    reserve = int(0.2 * scores.budget)
    keep = options.finalists
    while field_:
        posterior = Posterior.fit(scores, home)
        field_ = sorted(field_, key=lambda p: (-posterior.mean(p), p))[:keep]
        n = min(total, 2 * n)
        wanted = {home: n, **dict.fromkeys(field_, n)}
        if options.stop() is not None or len(field_) == 1 or not _fits(scores, wanted, reserve):
            break
        scores.extend(wanted)
        options.watch(len(scores.known), max(scores.mean(p) for p in scores.known))
        if n == total and keep == 1:
            break
        keep = max(1, math.ceil(len(field_) / 2))
    if field_ and options.stop() is None:
        last = {home: total, field_[0]: total}
        while not scores.affordable(last) and min(last.values()) > 1:
            last = {point: max(1, int(0.8 * count)) for point, count in last.items()}
        scores.extend(last)
    return field_


def _fits(scores: _Scores, wanted: Mapping[Point, int], reserve: int) -> bool:
    cost = sum(max(0, n - len(scores.known.get(p, ()))) for p, n in wanted.items())
    return scores.spent + cost <= scores.budget - reserve


@dataclass(frozen=True)
class Posterior:
    """Beliefs about each point's difference to the baseline: normal, shrunk towards the mean of all points.

    The variance between points is estimated and may be zero (DerSimonian and Laird, 1986): where nothing separates the
    points, every estimate falls back to their common mean.
    """

    beliefs: Mapping[Point, tuple[float, float]]

    @classmethod
    def fit(cls, scores: _Scores, home: Point) -> "Posterior":
        """Fit to the paired differences of every point that met the baseline."""
        rows = [(p, scores.paired(p, home)) for p in scores.known if p != home]
        rows = [(p, d) for p, d in rows if len(d) > 0]
        if not rows:
            return cls({})
        pooled = _pooled_variance([d for _, d in rows])
        means = np.array([float(d.mean()) for _, d in rows])
        noise = np.array([pooled / len(d) for _, d in rows])
        weights = 1 / noise
        common = float(np.sum(weights * means) / np.sum(weights))
        q = float(np.sum(weights * (means - common) ** 2))
        scale = float(np.sum(weights) - np.sum(weights**2) / np.sum(weights))
        tau2 = max(0.0, (q - (len(rows) - 1)) / scale) if scale > 0 else 0.0
        # The common mean is itself pulled to no difference: most changes to a prompt change little.
        spread = tau2 + 1e-12
        share = spread / (spread + noise)
        centre = common * len(rows) / (len(rows) + 1)
        # Every difference holds the same baseline's noise, so averaging points can't bring this below half of theirs.
        doubt = max(1 / float(np.sum(weights)), 0.5 * float(np.min(noise)))
        beliefs = {
            p: (float(centre + s * (m - centre)), math.sqrt(float(s * v + (1 - s) ** 2 * doubt)))
            for (p, _), m, v, s in zip(rows, means, noise, share, strict=True)
        }
        return cls(beliefs)

    def of(self, point: Point) -> tuple[float, float]:
        """Return mean and standard deviation of the difference; (0, tiny) for the baseline itself."""
        return self.beliefs.get(point, (0.0, 1e-6))

    def mean(self, point: Point) -> float:
        """Return the mean of the difference."""
        return self.of(point)[0]


def _pooled_variance(rows: Sequence[np.ndarray[Any, np.dtype[np.float64]]]) -> float:
    squares = sum(float(((d - d.mean()) ** 2).sum()) for d in rows)
    freedom = sum(len(d) - 1 for d in rows)
    # One discordant example in the pool keeps the variance above zero.
    return (squares + 0.25) / (freedom + 1)


def _trials(scores: _Scores, home: Point) -> tuple[Trial, ...]:
    rows = []
    for point, values in scores.known.items():
        if values:
            difference = scores.paired(point, home)
            rows.append(Trial(point, len(values), scores.mean(point), float(difference.mean()) if len(difference) else 0.0))
    return tuple(rows)


def _nothing(home: Point, scores: _Scores, study: Any, reason: str) -> SearchResult:
    return SearchResult(home, home, 0.0, (0.0, 0.0), 0.0, scores.spent, (), study, reason)

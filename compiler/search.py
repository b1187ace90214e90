"""search(): screening and racing over a SearchSpace, on any Oracle.

Every comparison is paired: candidates meet on the same examples, in the order of one permutation. Screening asks Optuna
for points, a window at a time, and scores them on a first rung of examples; racing doubles the examples and halves the
field, the baseline always among it; the last fifth of the budget is winner against baseline. The guard ships the winner
only where the posterior says that it is better. (Optuna: Akiba et al., KDD 2019. Successive halving: Jamieson and
Talwalkar, AISTATS 2016.)
"""

import math
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import optuna

from ..signatures.errors import RequestError
from .rng import generator, integer
from .space import Point, SearchSpace
from .surrogate import Surrogate

MOST_POINTS = 20_000
"""Of a space whose points the surrogate ranks one by one."""

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
        stop: Asked before each step, with the metric calls it would take; a reason ends the search early.
        watch: Called after each trial with (trials so far, best mean so far).
    """

    sampler: SamplerName = "tpe"
    window: int = 16
    rung: int | None = None
    finalists: int = 8
    guard: float = 0.975
    min_gain: float = 0.0
    stop: Callable[[int], str | None] = lambda evaluations: None
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


@dataclass(frozen=True)
class _Asked:
    """A block in flight."""

    point: Point
    future: "Future[Block]"


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
        return self.spent + self.cost(wanted) <= self.budget

    def cost(self, wanted: Mapping[Point, int]) -> int:
        """Return the metric calls that knowing each point on so many examples takes."""
        return sum(max(0, min(n, len(self.order)) - len(self.known.get(p, ()))) for p, n in wanted.items())

    def begin(self, point: Point, n: int) -> "_Asked | None":
        """Ask for a point on those of the first `n` examples that it lacks; None where it lacks none."""
        have = len(self.known.setdefault(point, []))
        lacking = self.order[have : min(n, len(self.order))]
        if not lacking:
            return None
        self.spent += len(lacking)
        return _Asked(point, self.oracle.submit(point, lacking, 0))

    def end(self, asked: "_Asked | None") -> None:
        """Take in what was asked for; called in the order asked."""
        if asked is None:
            return
        block = asked.future.result()
        if any(math.isnan(score) for score in block.scores):
            raise ValueError(f"`scores are numbers`, but the oracle gave NaN at {asked.point}.")
        self.known[asked.point] += block.scores

    def extend(self, wanted: Mapping[Point, int]) -> None:
        """Score each point on the first `n` examples of the order, those it lacks; told in the order asked."""
        for asked in [self.begin(point, n) for point, n in wanted.items()]:
            self.end(asked)

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
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))  # a line a trial is too much
    try:
        return _search(space, oracle, budget, seed, options or SearchOptions(), baseline)
    finally:
        optuna.logging.set_verbosity(verbosity)


def _search(
    space: SearchSpace, oracle: Oracle, budget: int, seed: int, chosen: SearchOptions, baseline: Point | None
) -> SearchResult:
    home = space.baseline if baseline is None else baseline
    order = [int(i) for i in generator(seed, "search.order").permutation(oracle.examples)]
    scores = _Scores(oracle, order, budget)
    study = _study(chosen.sampler, seed)
    if space.size < 2 or oracle.examples == 0 or budget < 2:
        return _nothing(home, scores, study, "there is nothing to choose from")
    rung = chosen.rung or _rung(budget, oracle.examples, space.size)
    reason = _screen(space, scores, study, home, rung, chosen)
    finalists = _race(space, scores, home, rung, chosen)
    surrogate = _fit(scores, home)
    if not finalists:
        return _nothing(home, scores, study, reason)
    beliefs = dict(zip(finalists, surrogate.beliefs(finalists), strict=True))
    best = max(finalists, key=lambda p: (beliefs[p].mean, len(scores.known[p])))
    belief = beliefs[best]
    shipped = best if belief.probability >= chosen.guard and belief.mean > chosen.min_gain else home
    return SearchResult(
        best=best,
        shipped=shipped,
        estimate=belief.mean,
        interval=belief.interval,
        probability=belief.probability,
        spent=scores.spent,
        trials=_trials(scores, home),
        study=study,
        reason=reason,
    )


def _rung(budget: int, examples: int, size: int) -> int:
    """Return how many examples the first comparison takes: enough to tell, few enough to see many points."""
    points = min(size, max(8, int(budget**0.5)))
    return max(1, min(examples, budget // 2, max(8, int(0.5 * budget / points))))


def _study(sampler: SamplerName, seed: int) -> Any:
    if sampler == "gp" and find_spec("torch") is None:
        raise RequestError("the sampler gp needs torch, which isn't installed: run `pip install torch`, or take tpe.")
    number = integer(seed, "search.sampler") % 2**32
    kinds: dict[str, Callable[[], Any]] = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=number, multivariate=True, constant_liar=True),
        "random": lambda: optuna.samplers.RandomSampler(seed=number),
        "gp": lambda: optuna.samplers.GPSampler(seed=number),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # multivariate TPE says so each time
        return optuna.create_study(direction="maximize", sampler=kinds[sampler]())


def _screen(space: SearchSpace, scores: _Scores, study: Any, home: Point, rung: int, options: SearchOptions) -> str:
    """Score points on the first rung until half of the budget is spent; return why it ended."""
    distributions = {
        slot.name: optuna.distributions.CategoricalDistribution(list(range(slot.levels))) for slot in space.slots
    }
    limit = max(2 * rung, int(0.55 * scores.budget))
    study.enqueue_trial(dict(zip(distributions, home, strict=True)))
    flying: deque[tuple[Any, Point, _Asked | None]] = deque()
    repeats, reason = 0, ""
    while True:
        while not reason and len(flying) < options.window:
            reason = _ended(space, scores, rung, limit, repeats, options)
            if reason:
                break
            trial = study.ask(distributions)
            point = tuple(int(trial.params[slot.name]) for slot in space.slots)
            fresh = space.allows(point) and point not in scores.known
            repeats = 0 if fresh else repeats + 1
            flying.append((trial, point, scores.begin(point, rung) if fresh else None))
        if not flying:
            return reason
        _retire(study, scores, *flying.popleft())
        options.watch(len(scores.known), max(scores.mean(p) for p in scores.known))


def _ended(space: SearchSpace, scores: _Scores, rung: int, limit: int, repeats: int, options: SearchOptions) -> str:
    """Return why screening asks for no more, or nothing; what is in flight is still told."""
    stop = options.stop(rung) if scores.known else None
    if stop is not None:
        return stop
    if len(scores.known) >= space.size:
        return "every point was scored"
    if repeats >= 20 * options.window:
        return "the sampler repeats itself"
    if scores.known and scores.spent + rung > limit:
        return "half of the budget is spent on screening"
    return ""


def _retire(study: Any, scores: _Scores, trial: Any, point: Point, asked: _Asked | None) -> None:
    """Take in the oldest block in flight and tell the study; a point asked for again is told what is known of it."""
    scores.end(asked)
    if scores.known.get(point):
        trial.report(scores.mean(point), step=len(scores.known[point]))
        study.tell(trial, scores.mean(point))
    else:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)


def _race(space: SearchSpace, scores: _Scores, home: Point, rung: int, options: SearchOptions) -> list[Point]:
    """Double the examples and halve the field, by posterior mean; the last fifth is winner against baseline.

    The surrogate may enter a point that screening never drew. Returns the points that were scored as far as any.
    """
    total = len(scores.order)
    # The baseline meets everybody, so it must be known wherever they are.
    if not scores.known.get(home) and scores.affordable({home: rung}):
        scores.extend({home: rung})
    n, keep = rung, options.finalists
    reserve = int(0.2 * scores.budget)
    racing: list[Point] = []
    while True:
        surrogate = _fit(scores, home)
        racing = _favourites(space, surrogate, home, keep) if not racing else _leaders(racing, surrogate, keep)
        n = min(total, 2 * n)
        wanted = {home: n, **dict.fromkeys(racing, n)}
        if not racing or options.stop(scores.cost(wanted)) is not None or not _fits(scores, wanted, reserve):
            break
        scores.extend(wanted)
        options.watch(len(scores.known), max(scores.mean(p) for p in scores.known if scores.known[p]))
        if keep == 1:
            break
        keep = max(1, math.ceil(len(racing) / 2))
    racing = [p for p in racing if scores.known.get(p)] or [p for p in scores.known if p != home and scores.known[p]]
    racing = _leaders(racing, _fit(scores, home), options.finalists)
    last = {home: total, racing[0]: total} if racing else {}
    while last:
        if scores.affordable(last) and options.stop(scores.cost(last)) is None:
            scores.extend(last)
            break
        fewer = {point: int(0.8 * count) for point, count in last.items()}
        last = fewer if scores.cost(fewer) else {}
    return racing


def _leaders(points: Sequence[Point], surrogate: Surrogate, count: int) -> list[Point]:
    means = {p: b.mean for p, b in zip(points, surrogate.beliefs(points), strict=True)}
    return sorted(points, key=lambda p: (-means[p], p))[:count]


def _fits(scores: _Scores, wanted: Mapping[Point, int], reserve: int) -> bool:
    return scores.spent + scores.cost(wanted) <= scores.budget - reserve


def _fit(scores: _Scores, home: Point) -> Surrogate:
    met = {p: scores.paired(p, home) for p in scores.known if p != home and scores.known[p]}
    return Surrogate.fit({p: d for p, d in met.items() if len(d)}, home)


def _favourites(space: SearchSpace, surrogate: Surrogate, home: Point, count: int) -> list[Point]:
    """Return the points of which most is expected, scored or not; all of a small space, one-slot changes of a large."""
    if space.size <= MOST_POINTS:
        pool = [point for point in space.points() if point != home]
    else:
        seen = {p: b.mean for p, b in zip(surrogate.points, surrogate.beliefs(surrogate.points), strict=True)}
        best = sorted(seen, key=lambda p: (-seen[p], p))[:count]
        pool = sorted({*best, *(q for p in best for q in _neighbours(space, p))} - {home})
    means = {p: b.mean for p, b in zip(pool, surrogate.beliefs(pool), strict=True)} if pool else {}
    return sorted(means, key=lambda p: (-means[p], p))[:count]


def _neighbours(space: SearchSpace, point: Point) -> list[Point]:
    changed = [
        (*point[:index], level, *point[index + 1 :])
        for index, slot in enumerate(space.slots)
        for level in range(slot.levels)
        if level != point[index]
    ]
    return [other for other in changed if space.allows(other)]


def _trials(scores: _Scores, home: Point) -> tuple[Trial, ...]:
    rows = []
    for point, values in scores.known.items():
        if values:
            difference = scores.paired(point, home)
            rows.append(
                Trial(point, len(values), scores.mean(point), float(difference.mean()) if len(difference) else 0.0)
            )
    return tuple(rows)


def _nothing(home: Point, scores: _Scores, study: Any, reason: str) -> SearchResult:
    return SearchResult(home, home, 0.0, (0.0, 0.0), 0.0, scores.spent, (), study, reason)

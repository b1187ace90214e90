"""What the search is told and what it answers: SearchOptions, SearchResult, Interrupted."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .sampler import SamplerName
from .space import Point, SearchSpace
from .study import Trial


@dataclass(frozen=True)
class SearchOptions:
    """How the search goes about it.

    Attributes:
        sampler: What explores: `additive` is ours; `tpe`, `random` and `gp` are Optuna's.
        window: Metric calls asked for before the first is told, at most a sixth of the budget, and a quarter of it in
            the duel; a balanced design, which no answer changes, is asked for at once. Fixed, so that
            decisions don't depend on the concurrency, and five to ten times what is in flight, since blocks are told
            in the order asked.
        block: Examples of a block; None: 5 under a budget of 2,500 metric calls, else 10.
        finalists: How many points race at first.
        guard: The winner ships where the probability that it beats the baseline is at least this.
        min_gain: A gain below this, in the metric's unit, isn't worth shipping.
        renewals: Numbers of blocks asked at which `renew` is called, ascending.
        stop: Asked before each block, with the metric calls it would take; a reason ends the search early.
        watch: Called after each block with (points scored so far, mean of the favourite).
    """

    sampler: SamplerName = "additive"
    window: int = 640
    block: int | None = None
    finalists: int = 12
    guard: float = 0.975
    min_gain: float = 0.0
    renewals: tuple[int, ...] = ()
    stop: Callable[[int], str | None] = lambda evaluations: None
    watch: Callable[[int, float], None] = lambda trials, best: None


@dataclass(frozen=True)
class SearchResult:
    """What the search found.

    Attributes:
        best: The best point by posterior mean, before the guard; it may be the baseline.
        shipped: `best`, or the baseline where the guard refuses it.
        estimate: The posterior mean of the difference between best and baseline; where the baseline itself is best,
            this and the next two are of the best other point.
        interval: Its central 95 % interval.
        probability: The posterior probability that it is above zero.
        spent: Metric calls.
        trials: The points that were scored, in the order of the search.
        study: An Optuna study with a trial for each of them.
        reason: Why the search ended.
        space: The space at the end, which the points refer to; empty where nothing was searched.
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
    space: SearchSpace = field(default=SearchSpace(()), repr=False)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while the search ran.

    Attributes:
        result: What is known from the blocks that were told.
    """

    def __init__(self, result: SearchResult) -> None:
        super().__init__("the search was interrupted")
        self.result = result

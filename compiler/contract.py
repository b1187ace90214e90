"""What the search is told and what it answers: SearchOptions, SearchResult, Interrupted."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from optuna.study import Study

from .sampler import SamplerName
from .space import Point, SearchSpace
from .study import Trial


@dataclass(frozen=True)
class SearchOptions:
    """How the search goes about it.

    Attributes:
        sampler: What explores: `additive` is ours; `tpe`, `random` and `gp` are Optuna's.
        window: Metric calls asked for before the first is told, at most a sixth of the budget; a balanced design,
            which no answer changes, is asked for at once. Fixed, so that decisions don't depend on the concurrency,
            and some five times what is in flight, since blocks are told in the order asked.
        block: Examples of a block; None: 5 under a budget of 2,500 metric calls, else 10.
        finalists: How many points race at first.
        guard: The winner ships where the probability that it beats the baseline is at least this.
        min_gain: A gain below this, in the metric's unit, isn't worth shipping.
        price: What a metric call costs that can reuse nothing, in the unit of the oracle's costs. With it the budget is
            counted in such calls: a block is charged in full when it is asked for, and when it is told what it cost,
            so that more metric calls fit in where some are cheap. None: a metric call is a metric call.
        renewals: Numbers of blocks asked at which `renew` is called, ascending.
        stop: Asked before each block, with the metric calls it would take; a reason ends the search early.
        watch: Called after each block with (points scored so far, mean of the favourite).
        ending: Called once, when nothing more will be asked and blocks are still in flight.
    """

    sampler: SamplerName = "additive"
    window: int = 320
    block: int | None = None
    finalists: int = 12
    guard: float = 0.975
    min_gain: float = 0.0
    price: float | None = None
    renewals: tuple[int, ...] = ()
    stop: Callable[[int], str | None] = lambda evaluations: None
    watch: Callable[[int, float], None] | None = None
    ending: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class SearchResult:
    """What the search found.

    Attributes:
        best: The best point by posterior mean, before the guard; it may be the baseline.
        shipped: `best`, or the baseline where the guard refuses it.
        estimate: The posterior mean of the difference between `favourite` and baseline in the population that the
            examples were drawn from.
        interval: Its central 95 % interval.
        probability: The posterior probability that it is above zero.
        spent: Metric calls; more than the budget only where `SearchOptions.price` is given.
        trials: The points that were scored, in the order of the search.
        recorded: Makes `study` of this.
        reason: Why the search ended.
        space: The space at the end, which the points refer to; empty where nothing was searched.
        favourite: What the last three are of: `best`, or the best other point where the baseline itself is best; the
            baseline where nothing was compared with it.
    """

    best: Point
    shipped: Point
    estimate: float
    interval: tuple[float, float]
    probability: float
    spent: int
    trials: tuple[Trial, ...]
    recorded: Callable[["SearchResult"], Study] = field(repr=False, compare=False)
    reason: str
    space: SearchSpace = field(default=SearchSpace(()), repr=False)
    favourite: Point = ()

    @cached_property
    def study(self) -> Study:
        """An Optuna study with a trial for each point, made when it is first looked at, since that takes a while."""
        return self.recorded(self)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while the search ran.

    Attributes:
        result: What is known from the blocks that were told.
    """

    def __init__(self, result: SearchResult) -> None:
        super().__init__("the search was interrupted")
        self.result = result

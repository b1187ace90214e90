"""search(): one stream of blocks over a SearchSpace, on any Oracle.

The search asks for blocks of examples a window ahead and is told results in the order asked, so that decisions depend
on the seed alone and a slow answer holds nobody up. There is no barrier: phases change at fixed shares of the budget
asked for, while blocks of the phase before are still in flight.

- explore: a balanced design, then what the explorer proposes (Thompson sampling on the additive surrogate);
- race: the favourites, fewer and fewer, and the baseline on the same blocks;
- duel: the favourite and the baseline on every block.

The guard ships the winner only where the posterior says that it is better than the baseline.
"""

import heapq
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .additive import Belief, Place, Surrogate
from .explore import Additive, Draw, Explorer, Listing, fitting_columns, open_rows, shallowest
from .oracle import Block, Exhausted, Oracle, Table, as_oracle
from .rng import generator
from .sampler import OptunaExplorer, SamplerName, check_sampler
from .scores import Ints, Scores
from .space import Point, SearchSpace
from .study import Trial, record

__all__ = ["Block", "Exhausted", "Interrupted", "Oracle", "SamplerName", "SearchOptions", "SearchResult", "search"]

EXPLORE, RACE = 0.55, 0.8
"""Shares of the budget, of what was asked for, at which exploring and racing end."""

DESIGN = 0.35
"""The share of the budget that the balanced design may take."""

SHORT = 2_500
"""Metric calls below which blocks are small."""

ENOUGH = 40
"""Examples on which a point of a space that will grow is known well enough to wait."""

WORTH, HOPE = 0.01, 0.003
"""A gain that is worth having, and an expected gain that is worth going on for; in units of the scores' scale."""

WINDOW = 0.125
"""The most of the budget that is in flight: whoever asks for more at once learns too late from the answers."""


@dataclass(frozen=True)
class SearchOptions:
    """How the search goes about it.

    Attributes:
        sampler: What explores: `additive` is ours; `tpe`, `random` and `gp` are Optuna's.
        window: Metric calls asked for before the first is told; fixed, so that decisions don't depend on the
            concurrency, and some five times what is in flight, since blocks are told in the order asked.
        block: Examples of a block; None: 5 under a budget of 2,500 metric calls, else 10.
        finalists: How many points race at first.
        guard: The winner ships where the probability that it beats the baseline is at least this.
        min_gain: A gain below this, in the metric's unit, isn't worth shipping.
        renewals: Numbers of blocks asked at which `renew` is called, ascending.
        stop: Asked before each block, with the metric calls it would take; a reason ends the search early.
        watch: Called after each block with (points scored so far, mean of the favourite).
    """

    sampler: SamplerName = "additive"
    window: int = 320
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
        space: The space at the end, which the points refer to.
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
    space: SearchSpace = field(repr=False)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while the search ran.

    Attributes:
        result: What is known from the blocks that were told.
    """

    def __init__(self, result: SearchResult) -> None:
        super().__init__("the search was interrupted")
        self.result = result


def search(
    space: SearchSpace,
    oracle: Oracle | Table,
    *,
    budget: int,
    seed: int,
    options: SearchOptions | None = None,
    baseline: Point | None = None,
    renew: Callable[[], Mapping[str, int]] | None = None,
) -> SearchResult:
    """Return the best point of `space` that `budget` metric calls can find.

    Args:
        space: The points.
        oracle: What scores them: an Oracle, or an object with `examples` and `score(point, examples)`.
        budget: Metric calls, the baseline's included.
        seed: Same seed, same decisions, at any concurrency of the oracle.
        options: How.
        baseline: The point to beat; by default the point of zeros.
        renew: Called once for each entry of `options.renewals`, when so many blocks were asked for or the space has
            nothing left worth asking. It returns how many levels were appended to each slot; it may take its time,
            what was asked for goes on. A slot that is new stands behind the others, with level 0 for known points.

    Raises Interrupted on Ctrl-C, ValueError where a score isn't a finite number.
    """
    chosen = options or SearchOptions()
    check_sampler(chosen.sampler)
    home = space.baseline if baseline is None else tuple(baseline)
    if not space.allows(home):
        raise ValueError(f"`the baseline is a point of the space` must hold, but got {home}.")
    stream = _Stream(space, as_oracle(oracle), budget, seed, chosen, home, renew)
    try:
        stream.run()
    except KeyboardInterrupt:
        stream.reason = "interrupted"
        stream.drop()
        stream.scores.recount()
        raise Interrupted(stream.result()) from None
    return stream.result()


class _Stream:
    """One search under way."""

    def __init__(
        self,
        space: SearchSpace,
        oracle: Oracle,
        budget: int,
        seed: int,
        options: SearchOptions,
        home: Point,
        renew: Callable[[], Mapping[str, int]] | None,
    ) -> None:
        self.oracle, self.budget, self.seed, self.options = oracle, budget, seed, options
        self.renew, self.renewals = renew, deque(options.renewals if renew is not None else ())
        order = [int(index) for index in generator(seed, "search.order").permutation(oracle.examples)]
        block = options.block or (5 if budget < SHORT else 10)
        self.scores = Scores(space, order, max(1, min(block, budget // 8)))
        self.rng = generator(seed, "search.explore")
        self.home = home
        self.explorer: Explorer = (
            Additive(self.scores, self.rng)
            if options.sampler == "additive"
            else OptunaExplorer(options.sampler, self.scores, seed)
        )
        self._settle()
        self.flying: deque[tuple[int, int, Future[Block]]] = deque()
        self.window = max(1, min(options.window, int(WINDOW * budget)))
        self.ahead = self.blocks_asked = self.blocks_told = self.fitted = self.fits = 0
        self.surrogate: Surrogate | None = None
        self.place: Place | None = None
        self.reason = ""

    def _settle(self) -> None:
        self.columns = fitting_columns(self.scores.space)
        self.listing = Listing(self.scores.space)
        self.surrogate, self.fitted = None, 0
        self.ranking: list[Point] = []

    # The loop.

    def run(self) -> None:
        """Ask and tell until nothing is worth asking or may be."""
        if self.oracle.examples == 0 or self.budget < 2:
            self.reason = "there is nothing to choose from"
        while not self.reason:
            if self.renewals and self.blocks_asked >= self.renewals[0]:
                self._renew()
            point = self._next()
            if point is None and self.renewals:
                self._renew()
            elif point is not None:
                self._ask(point)
            elif self.flying:
                self._tell()
            else:
                self.reason = self.reason or "nothing is left worth asking"
        while self.flying:
            self._tell()

    def _ask(self, point: Point) -> None:
        cost = self.scores.cost(point)
        if self.scores.spent + cost > self.budget:
            self.reason = self.reason or "the budget is spent"
            return
        stop = self.options.stop(cost)
        if stop is not None:
            self.reason = stop
            return
        while self.flying and self.ahead + cost > self.window:
            self._tell()
            if self.reason:
                return
        examples = self.scores.ask(point)
        row = self.scores.rows[point]
        self.blocks_asked += 1
        self.ahead += cost
        try:
            future = self.oracle.submit(point, examples, 0)
        except Exhausted as error:
            future = Future()
            future.set_exception(error)
        self.flying.append((row, cost, future))

    def _tell(self) -> None:
        """Wait for the oldest block in flight."""
        row, cost, future = self.flying[0]
        try:
            block = future.result()
        except Exhausted as error:
            self.reason = f"the oracle is exhausted: {error}" if str(error) else "the oracle is exhausted"
            self.drop()
            return
        self.flying.popleft()
        self.ahead -= cost
        self.scores.tell(row, block.scores)
        self.blocks_told += 1
        self.explorer.told(row)
        self.options.watch(int((self.scores.told > 0).sum()), self.scores.mean(self._leader()))

    def drop(self) -> None:
        """Forget what is in flight: asked for and paid, never told."""
        for _, _, future in self.flying:
            future.cancel()
        self.flying.clear()

    def _renew(self) -> None:
        self.renewals.popleft()
        assert self.renew is not None
        grown = self.renew()
        if any(grown.values()):
            space = self.scores.space.grown(grown)
            self.scores.grow(space)
            self.home = (*self.home, *(0,) * (len(space.slots) - len(self.home)))
            self.explorer.grow(space)
            self._settle()

    # What to ask for next.

    def _next(self) -> Point | None:
        """Return the point whose next block to ask for; decided by the seed and what was told so far."""
        spent = self.scores.spent
        if self.scores.space.size < 2 and not self.renewals:
            self.reason = "there is nothing to choose from"
            return None
        if self.scores.depth(self.home) < min(2, self.scores.blocks):
            return self.home
        if self._refit() and self.fits % 4 == 0 and self._hopeless():
            self.reason = "nothing separates the candidates"
            return None
        if self.renewals:
            return self._while_waiting()
        if spent < EXPLORE * self.budget:
            room = int((DESIGN * self.budget - spent) / self.scores.size)
            return self.explorer.propose(self.surrogate, room) or self._race(1.0)
        if spent < RACE * self.budget:
            return self._race((spent / self.budget - EXPLORE) / (RACE - EXPLORE))
        return self._duel()

    def _refit(self) -> bool:
        """Fit the surrogate again when enough was told since the last time; say whether it was."""
        if self.blocks_told - self.fitted < max(4, self.blocks_told // 16):
            return False
        self.fitted = self.blocks_told
        self.fits += 1
        self.surrogate = Surrogate.fit(self.scores.sums(), self.columns, self.place or (4, 3))
        self.place = self.surrogate.best
        self.ranking = []
        return True

    def _hopeless(self) -> bool:
        """Say whether no point is likely to beat the baseline by as much as is worth having."""
        assert self.surrogate is not None
        if self.renewals or self.scores.outcomes < DESIGN * self.budget:
            return False
        home = self.scores.rows[self.home]
        top = np.array([self.surrogate.top(self.columns)])
        gains = []
        for _ in range(64):
            draw = Draw(self.surrogate.pick(self.rng), self.scores, self.rng)
            best = float(draw.rows.max())
            if not self.listing.points:
                best = max(best, float(draw.unknown(top)[0]))
            gains.append(best - float(draw.rows[home]))
        scale = self.surrogate.scale
        now = max(0.0, float(self.surrogate.means.max() - self.surrogate.means[home]))
        likely = float(np.mean(np.array(gains) > WORTH * scale))
        return likely < 0.05 and float(np.mean(gains)) - now < HOPE * scale

    def _while_waiting(self) -> Point | None:
        """Return a point that isn't known well enough for now; all of a small space, then the baseline."""
        enough = -(-ENOUGH // self.scores.size)
        room = int(DESIGN * self.budget - self.scores.spent) // self.scores.size
        point = self.explorer.propose(self.surrogate, room) if self.surrogate is None or room > 0 else None
        if point is not None and self.scores.depth(point) < min(enough, self.scores.blocks):
            return point
        point = shallowest(self.scores, self.listing)
        if point is not None and self.scores.depth(point) < enough:
            return point
        most = int(0.1 * self.budget / self.scores.size)
        return self.home if self.scores.depth(self.home) < min(most, self.scores.blocks) else None

    def _race(self, progress: float) -> Point | None:
        """Return whoever of the favourites, or the baseline, was asked for least."""
        if self.surrogate is None:
            return self._duel()
        count = max(2, round(self.options.finalists ** (1 - progress) * 2**progress))
        may = open_rows(self.scores)
        arms = [self.home, *self._favourites()[:count]]
        waiting = [point for point in arms if point not in self.scores.rows or may[self.scores.rows[point]]]
        return min(waiting, key=self.scores.depth, default=None) or self._duel()

    def _favourites(self) -> list[Point]:
        """Return the points of which most is expected, never asked for or not; ranked once for each fit."""
        assert self.surrogate is not None
        if not self.ranking:
            points, means = self.scores.points, self.surrogate.means
            values = {points[row]: float(mean) for row, mean in enumerate(means)}
            if self.listing.points:
                fresh = [point for point in self.listing.points if point not in values]
            else:
                top = self.surrogate.top(self.columns)
                fresh = [top] if top not in values else []
            additive = self.surrogate.effects[self.columns.at(np.array(fresh or [self.home]))].sum(axis=1)
            values |= zip(fresh, additive.tolist(), strict=False)
            values.pop(self.home, None)
            most = max(2, self.options.finalists)
            self.ranking = heapq.nsmallest(most, values, key=lambda point: (-values[point], point))
        return self.ranking

    def _duel(self) -> Point | None:
        """Return the favourite or the baseline, whoever was asked for less; then whoever may yet be better."""
        scores = self.scores
        if self.surrogate is None and scores.space.size > len(self.listing.points) and self.flying:
            return None
        pair = [point for point in (self.home, scores.points[self._leader()]) if scores.depth(point) < scores.blocks]
        if pair:
            return min(pair, key=scores.depth)
        if self.surrogate is None:
            return shallowest(scores, self.listing)
        may = open_rows(scores)
        for _ in range(20):
            row = int(np.argmax(Draw(self.surrogate.pick(self.rng), scores, self.rng).rows))
            if may[row]:
                return scores.points[row]
        return None

    def _leader(self) -> int:
        """Return the row of which most is expected, the baseline apart; the baseline's where there is no other."""
        home = self.scores.rows.get(self.home, 0)
        if self.surrogate is None:
            return home
        means = self.surrogate.means.copy()
        told = self.scores.told[: len(means)] > 0
        means[~told] = -np.inf
        if home < len(means):
            means[home] = -np.inf
        row = int(np.argmax(means)) if len(means) else home
        return row if means[row] > -np.inf else home

    # The end.

    def result(self) -> SearchResult:
        """Return what is known."""
        scores = self.scores
        best, belief = self._verdict()
        ships = best != self.home and belief.probability >= self.options.guard and belief.mean > self.options.min_gain
        home = scores.rows.get(self.home)
        trials, study = record(scores, home, self.seed)
        return SearchResult(
            best=best,
            shipped=best if ships else self.home,
            estimate=belief.mean,
            interval=belief.interval,
            probability=belief.probability,
            spent=scores.spent,
            trials=trials,
            study=study,
            reason=self.reason,
            space=scores.space,
        )

    def _verdict(self) -> tuple[Point, Belief]:
        """Return the best point and what is believed of its difference to the baseline."""
        scores = self.scores
        home = scores.rows.get(self.home)
        told = [row for row in range(len(scores.points)) if scores.told[row]]
        if home not in told or len(told) < 2:
            return self.home, Belief(0.0, 0.0)
        assert home is not None
        sums = scores.sums()
        surrogate = Surrogate.fit(sums, self.columns)
        means = surrogate.means
        leader = max((row for row in told if row != home), key=lambda row: (means[row], -row))
        belief = self._belief(surrogate, leader, home)
        return (scores.points[leader] if belief.mean > 0 else self.home), belief

    def _belief(self, surrogate: Surrogate, row: int, home: int) -> Belief:
        """Return the belief about one difference, with the noise of that pair where it is known better."""
        sums = self.scores.sums()
        met = self.scores.paired(row, home)
        n = len(met)
        squares = float(((met - met.mean()) ** 2).sum())
        known = 20
        variance = (squares / 2 + known * sums.variance) / (n - 1 + known)
        again = Surrogate.fit(sums, self.columns, surrogate.best, variance)
        return again.differences([row], home, max(1.0, n - 1.0))[0]

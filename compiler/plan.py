"""Plan: which block to ask for next. Decided by the seed, what was asked and what was told so far.

- explore: a balanced design, then what the explorer proposes (Thompson sampling on the additive surrogate);
- race: the favourites, fewer and fewer, and the baseline on the same blocks;
- duel: the favourite and the baseline on every block.
"""

import heapq
import math
from statistics import NormalDist

import numpy as np

from .cost import Costs
from .explore import Draw, Explorer, Listing, fitting_columns, open_rows, shallowest
from .scores import Scores
from .space import Point, SearchSpace
from .surrogate import START, Place, Surrogate

EXPLORE, RACE = 0.55, 0.8
"""Shares of the budget, of what was asked for, at which exploring and racing end."""

DESIGN = 0.35
"""The share of the budget that the balanced design may take."""

ENOUGH = 40
"""Examples on which a point of a space that will grow is known well enough to wait."""

FEWEST, PART = 8, 10
"""The surrogate is fitted again when so many more blocks, and such a part of all, were told."""

REPEATS = 9
"""Times that an example is asked again at most; then the model's dice are a tenth of what they were."""

HOPE, WORTH, DRAWS = 0.0015, 0.01, 32
"""A gain that must be expected to ship, or one that must be expected to be found, for the search to go on, in units of
the scores' scale; and draws for it."""

NORMAL = NormalDist()


class Plan:
    """The phases of one search.

    Attributes:
        home: The baseline.
        reason: Why nothing more should be asked for, or nothing.
    """

    def __init__(
        self,
        scores: Scores,
        explorer: Explorer,
        budget: int,
        finalists: int,
        home: Point,
        rng: np.random.Generator,
        stochastic: bool = False,
        costs: Costs | None = None,
        guard: float = 0.975,
    ) -> None:
        self.scores, self.explorer, self.budget, self.finalists = scores, explorer, budget, finalists
        self.home, self.rng, self.reason = home, rng, ""
        self.stochastic, self.costs = stochastic, costs
        self.bar = NORMAL.inv_cdf(min(max(guard, 1e-9), 1 - 1e-9))
        self.blocks_told = self.doubts = 0
        self.fits = 0
        self.place: Place | None = None
        self._settle()

    def _settle(self) -> None:
        self.columns = fitting_columns(self.scores.space)
        self.listing = Listing(self.scores.space)
        self.surrogate: Surrogate | None = None
        self.fitted = 0
        self.ranking: list[Point] = []

    def grow(self, space: SearchSpace) -> None:
        """Move to a grown space."""
        self.scores.grow(space)
        self.home = (*self.home, *(0,) * (len(space.slots) - len(self.home)))
        self.explorer.grow(space)
        if self.costs is not None:
            self.costs.grow()
        self._settle()

    def told(self, row: int) -> None:
        """Hear that a block of a row was told."""
        self.blocks_told += 1
        self.explorer.told(row)

    def next(self, waiting: bool, flying: bool) -> Point | None:
        """Return the point whose next block to ask for.

        None where nothing is worth asking before more is told, or ever where `reason` says so. `waiting` says that
        the space will grow, `flying` that blocks are in flight.
        """
        spent = self.scores.charged
        if self.scores.space.size < 2 and not waiting:
            self.reason = "there is nothing to choose from"
            return None
        if self.scores.depth(self.home) < min(max(2, self.scores.starts), self.scores.blocks):
            return self.home  # on every block that anybody begins with
        if self._refit() and self.fits % 2 == 0 and not waiting and self._hopeless():
            self.reason = "nothing separates the candidates"
            return None
        if waiting:
            return self._while_waiting()
        if spent < EXPLORE * self.budget:
            room = int((DESIGN * self.budget - spent) / self.scores.size)
            return self.explorer.propose(self.surrogate, room) or self._race(1.0, flying)
        if spent < RACE * self.budget:
            return self._race((spent / self.budget - EXPLORE) / (RACE - EXPLORE), flying)
        return self._duel(flying)

    def designing(self) -> bool:
        """Say whether the next block is one of the balanced design: then no answer could change it."""
        return self.explorer.designs and self.scores.charged + self.scores.size <= DESIGN * self.budget

    def _refit(self) -> bool:
        """Fit the surrogate again when enough was told since the last time; say whether it was."""
        if self.blocks_told - self.fitted < max(FEWEST, self.blocks_told // PART):
            return False
        self.fitted = self.blocks_told
        self.fits += 1
        self.surrogate = Surrogate.fit(self.scores.sums(), self.columns, self.place or START)
        self.place = self.surrogate.best
        self.ranking = []
        if self.costs is not None:
            self.costs.learn()
        return True

    def _hopeless(self) -> bool:
        """Say, twice in a row, that going on is expected to ship next to nothing and to find little.

        In each of some draws the best point has a gain. At the end it is known with the noise of the pair on all
        examples, and ships where it is far enough above that for the guard. What may be found is what the best points
        of the draws have on the average above the favourite.
        """
        assert self.surrogate is not None
        if self.scores.outcomes < DESIGN * self.budget:
            return False
        scale, home = self.surrogate.scale, self.scores.rows[self.home]
        noise = math.sqrt(2 * self.surrogate.variance / len(self.scores.order))
        top, shipped, found = np.array([self.surrogate.top(self.columns)]), 0.0, 0.0
        for _ in range(DRAWS):
            draw = Draw(self.surrogate.pick(self.rng), self.scores, self.rng)
            best = float(draw.rows.max())
            if not self.listing.points:
                best = max(best, float(draw.unknown(top)[0]))
            gain = best - float(draw.rows[home])
            found += gain
            shipped += gain * NORMAL.cdf(gain / noise - self.bar)
            if shipped > HOPE * scale * DRAWS:
                self.doubts = 0
                return False
        now = max(0.0, float(self.surrogate.means.max() - self.surrogate.means[home]))
        self.doubts = self.doubts + 1 if found / DRAWS - now < WORTH * scale else 0
        return self.doubts > 1

    def _while_waiting(self) -> Point | None:
        """Return a point that isn't known well enough for now; all of a small space, then the baseline."""
        enough = -(-ENOUGH // self.scores.size)
        room = int(DESIGN * self.budget - self.scores.charged) // self.scores.size
        point = self.explorer.propose(self.surrogate, room) if self.surrogate is None or room > 0 else None
        if point is not None and self.scores.depth(point) < min(enough, self.scores.blocks):
            return point
        point = shallowest(self.scores, self.listing)
        if point is not None and self.scores.depth(point) < enough:
            return point
        most = int(0.1 * self.budget / self.scores.size)
        return self.home if self.scores.depth(self.home) < min(most, self.scores.blocks) else None

    def _race(self, progress: float, flying: bool) -> Point | None:
        """Return whoever of the favourites, or the baseline, was asked for least."""
        if self.surrogate is None:
            return self._duel(flying)
        count = max(2, round(self.finalists ** (1 - progress) * 2**progress))
        may = open_rows(self.scores)
        arms = [self.home, *self._favourites()[:count]]
        waiting = [point for point in arms if point not in self.scores.rows or may[self.scores.rows[point]]]
        return min(waiting, key=self.scores.depth, default=None) or self._duel(flying)

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
            most = max(2, self.finalists)
            self.ranking = heapq.nsmallest(most, values, key=lambda point: (-values[point], point))
        return self.ranking

    def _duel(self, flying: bool) -> Point | None:
        """Return the favourite or the baseline, whoever was asked for less; then whoever may yet be better."""
        scores = self.scores
        if self.surrogate is None and scores.space.size > len(self.listing.points) and flying:
            return None
        pair = [point for point in (self.home, scores.points[self.leader()]) if scores.depth(point) < scores.blocks]
        if pair:
            return min(pair, key=scores.depth)
        if self.surrogate is None:
            return shallowest(scores, self.listing)
        may = open_rows(scores)
        for _ in range(20):
            row = int(np.argmax(Draw(self.surrogate.pick(self.rng), scores, self.rng).rows))
            if may[row]:
                return scores.points[row]
        return self._repeat()

    def _repeat(self) -> Point | None:
        """Return the baseline or a finalist, every example of which is known, to be asked for again.

        Of a deterministic oracle nobody: the same answer would be no news.
        """
        scores = self.scores
        if not self.stochastic or self.surrogate is None or scores.depth(self.home) < scores.blocks:
            return None
        values = Draw(self.surrogate.pick(self.rng), scores, self.rng).rows
        finalist = scores.points[int(np.argmax(np.where(scores.told == scores.blocks, values, -np.inf)))]
        point = min((self.home, finalist), key=scores.repeats)
        return point if scores.repeats(point) < REPEATS * scores.blocks else None

    def leader(self) -> int:
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

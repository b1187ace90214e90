"""Explorer: which point the search should know more about. A balanced design first, then Thompson sampling.

The design gives every level the same number of points. After it each decision draws a world from the surrogate (the
levels' effects, the points' own) and asks for the point that is best in it, or half of the time for the best other one:
top-two Thompson sampling (Russo, Simple Bayesian algorithms for best-arm identification, 2020).
"""

from typing import Protocol

import numpy as np

from .columns import Columns
from .cost import Costs
from .scores import Floats, Ints, Scores
from .space import Point, SearchSpace
from .surrogate import Cell, Surrogate

MOST_POINTS = 2_048
"""Of a product whose points are all drawn one by one; listed points always are."""

NEIGHBOURS = 4
"""One-slot changes that each draw considers, of its additive best and of its best known point."""


FRESH = 16
"""Random points of a list that each draw considers: the luckiest of all that are unknown would always win."""


class Explorer(Protocol):
    """What proposes points while the search explores.

    Attributes:
        designs: Whether it begins with a design that no answer changes, so that all of it may be asked for at once.
    """

    designs: bool

    def propose(self, surrogate: Surrogate | None, room: int) -> Point | None:
        """Return a point whose next block to ask for; None where every point is known as far as may be.

        Asked for each block. `surrogate` is None before anything was told; `room` is how many more blocks the design
        may take.
        """
        ...

    def told(self, row: int) -> None:
        """Hear that a block of a row was told; called in the order asked."""
        ...

    def grow(self, space: SearchSpace) -> None:
        """Move to a grown space, to which the scores have moved already."""
        ...


def fitting_columns(space: SearchSpace) -> Columns:
    """Return the columns of a space: of listed points, levels that only one of them has get none."""
    sizes = [slot.levels for slot in space.slots]
    told = None if space.feasible is None else np.array(space.feasible).reshape(space.size, len(sizes))
    columns = Columns.spanning(sizes, told)
    return (
        columns.described([slot.features for slot in space.slots]) if any(s.features for s in space.slots) else columns
    )


class Listing:
    """All points of a space that is small enough, or none."""

    def __init__(self, space: SearchSpace) -> None:
        listed = space.feasible is not None or space.size <= MOST_POINTS
        self.points: list[Point] = list(space.points()) if listed else []
        self.levels: Ints = np.array(self.points, dtype=np.int64).reshape(len(self.points), len(space.slots))
        self.places = {point: place for place, point in enumerate(self.points)}


class Additive:
    """The explorer of the additive surrogate."""

    designs = True

    def __init__(self, scores: Scores, rng: np.random.Generator, costs: Costs | None = None) -> None:
        self.scores, self.rng, self.costs = scores, rng, costs
        self.favourite = 0
        self.grow(scores.space)

    def grow(self, space: SearchSpace) -> None:
        """Move to a grown space."""
        self.space = space
        self.columns = fitting_columns(space)
        self.listing = Listing(space)

    def told(self, row: int) -> None:
        """Nothing to do: the surrogate reads the scores."""

    def propose(self, surrogate: Surrogate | None, room: int) -> Point | None:
        """Return a point of the design while it has room, then one by top-two Thompson sampling."""
        if room > 0 or surrogate is None:
            point = balanced(self.scores, self.listing, self.rng)
            if point is not None:
                return point
        if surrogate is None:
            return shallowest(self.scores, self.listing)
        self.favourite = int(np.argmax(surrogate.means))
        first = self._best(surrogate.pick(self.rng), None)
        if first is None or self.rng.random() < 0.5:
            return first
        for _ in range(10):
            second = self._best(surrogate.pick(self.rng), None)
            if second != first:
                return second
        return self._best(surrogate.pick(self.rng), first) or first

    def _best(self, cell: Cell, but: Point | None) -> Point | None:
        """Draw a world and return its best point that may be asked for; the best for its price, where prices differ."""
        draw = Draw(cell, self.scores, self.rng)
        may = open_rows(self.scores)
        known = np.where(may, draw.rows, -np.inf)
        if but in self.scores.rows:
            known[self.scores.rows[but]] = -np.inf
        row = int(np.argmax(known)) if len(known) else -1
        value = float(known[row]) if row >= 0 else -np.inf
        best = self.scores.points[row] if value > -np.inf else None
        fresh = [(point, other) for point, other in self._fresh(draw, best) if point != but]
        if self.costs is not None and self.costs.learnt is not None:
            bargain = self._bargain(self.costs, float(draw.rows[self.favourite]), known, fresh)
            if bargain is not None:
                return bargain
        for point, other in fresh:
            if other > value:
                best, value = point, other
        return best

    def _bargain(self, costs: Costs, bar: float, known: Floats, fresh: list[tuple[Point, float]]) -> Point | None:
        """Return the point with the most gain over the favourite for its price; None where none has any.

        `bar` is what the draw says of the favourite. With equal prices that is the best point of the draw.
        """
        scores = self.scores
        rows = np.flatnonzero(known > bar)
        points = [scores.points[row] for row in rows]
        gains = (known[rows] - bar) / costs.expected(scores.levels[rows], scores.upcoming[rows], rows)
        better = [(point, value) for point, value in fresh if value > bar]
        if better:
            levels = np.array([point for point, _ in better])
            prices = costs.expected(levels, np.full(len(better), scores.debut))
            points += [point for point, _ in better]
            gains = np.concatenate([gains, (np.array([value for _, value in better]) - bar) / prices])
        return points[int(np.argmax(gains))] if points else None

    def _fresh(self, draw: "Draw", best: Point | None) -> list[tuple[Point, float]]:
        """Return points that were never asked for, and what this world says of them."""
        if self.listing.points:
            unknown = [place for place, point in enumerate(self.listing.points) if point not in self.scores.rows]
            if not unknown:
                return []
            additive = draw.additive(self.listing.levels[unknown])
            some = [int(np.argmax(additive)), *self.rng.integers(len(unknown), size=FRESH).tolist()]
            values = draw.unknown(self.listing.levels[[unknown[place] for place in some]])
            return [
                (self.listing.points[unknown[place]], float(value)) for place, value in zip(some, values, strict=True)
            ]
        top = tuple(int(np.argmax(draw.effects[of])) for of in self.columns.of)
        pool = {top: None}
        slots = self.rng.integers(len(top), size=2 * NEIGHBOURS).tolist()
        levels = self.rng.integers([self.space.slots[slot].levels for slot in slots]).tolist()
        for place, (slot, level) in enumerate(zip(slots, levels, strict=True)):
            centre = top if place < NEIGHBOURS else best or top
            pool[(*centre[:slot], level, *centre[slot + 1 :])] = None
        fresh = [point for point in pool if point not in self.scores.rows]
        if not fresh:
            return []
        return list(zip(fresh, draw.unknown(np.array(fresh)).tolist(), strict=True))


class Draw:
    """One world drawn from a cell of the surrogate: a value for each point, up to a common constant.

    Blocks in flight count as told where doubt is concerned, so that a point isn't asked for again and again while its
    results are on their way.
    """

    def __init__(self, cell: Cell, scores: Scores, rng: np.random.Generator) -> None:
        self.cell, self.rng = cell, rng
        theta = cell.sample(rng)
        self.effects = cell.effects(theta)
        design, omega2 = cell.own.design, cell.own.omega2
        fitted = len(design.sums.blocks)
        later = self.effects[design.columns.at(scores.levels[fitted:])].sum(axis=1)
        counts = np.asarray(scores.edges, dtype=np.float64)[scores.asked]
        doubt = np.sqrt(omega2 / (1 + omega2 * design.weight * counts))
        means = np.concatenate([cell.rows(theta), later])
        self.rows: Floats = means + doubt * rng.standard_normal(len(means))

    def unknown(self, levels: Ints) -> Floats:
        """Return values of points that were never asked for."""
        own = float(np.sqrt(self.cell.own.omega2))
        values: Floats = self.additive(levels) + own * self.rng.standard_normal(len(levels))
        return values

    def additive(self, levels: Ints) -> Floats:
        """Return the sums of the levels' effects."""
        values: Floats = self.effects[self.cell.own.design.columns.at(levels)].sum(axis=1)
        return values


def open_rows(scores: Scores) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Say of each row whether more of it may be asked: not beyond the last block, nor far ahead of what was told."""
    rows: np.ndarray[tuple[int], np.dtype[np.bool_]] = (scores.asked < scores.blocks) & (
        scores.asked <= 2 * scores.told + 1
    )
    return rows


def balanced(scores: Scores, listing: Listing, rng: np.random.Generator) -> Point | None:
    """Return a point that was never asked for, of the levels that were asked for least; None where there is none."""
    counts = [
        np.bincount(scores.levels[:, slot], minlength=size.levels) + rng.random(size.levels) * 0.5
        for slot, size in enumerate(scores.space.slots)
    ]
    if listing.points:
        unknown = [place for place, point in enumerate(listing.points) if point not in scores.rows]
        if not unknown:
            return None
        levels = listing.levels[unknown]
        load = sum((count[levels[:, slot]] for slot, count in enumerate(counts)), np.zeros(len(unknown)))
        return listing.points[unknown[int(np.argmin(load))]]
    point = tuple(int(np.argmin(count)) for count in counts)
    for _ in range(20):
        if point not in scores.rows:
            return point
        slot = int(rng.integers(len(point)))
        point = (*point[:slot], int(rng.integers(len(counts[slot]))), *point[slot + 1 :])
    return None


def shallowest(scores: Scores, listing: Listing) -> Point | None:
    """Return the listed point that was asked for least, None where all were asked for everything."""
    depths = [(scores.depth(point), place) for place, point in enumerate(listing.points)]
    depth, place = min(depths, default=(scores.blocks, 0))
    return listing.points[place] if depth < scores.blocks else None

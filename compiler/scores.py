"""Scores: what was asked and told, by point, along one permutation of the examples, in blocks.

Points take turns to begin with one of the first few blocks, and then meet the others in order. So what many points that
are hardly known say together is said of many examples, any two points that are known better share all blocks but one,
and every comparison is paired. Scores are kept as bytes, and what the surrogate needs as running sums: nothing that
decides looks at single outcomes.
"""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .space import Point, SearchSpace

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]


def told_blocks(told: Ints, starts: Ints, blocks: int) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Return which blocks rows were told, [rows, blocks]: each its first, then the others in order, so many in all."""
    places = np.arange(blocks)[None, :]
    many, first = told[:, None], starts[:, None]
    aside = (first >= many) & (many > 0)
    return np.where(aside, (places < many - 1) | (places == first), places < many)


@dataclass(frozen=True, eq=False)
class Sums:
    """The sufficient statistics of the additive model.

    Attributes:
        levels: Of each row (a point) its level in each slot, [rows, slots].
        blocks: How many blocks each row was told.
        totals: The sum of each row's scores, each less `centre`.
        block_totals: The sum of each block's scores over all rows, each less `centre`.
        sizes: Examples in each block.
        variance: The pooled variance of a score around its example's and its row's mean: what pairing can't remove.
        scale: The spread of the scores, 1 for 0/1.
        starts: The block that each row began with; None where all began with the first.
    """

    levels: Ints
    blocks: Ints
    totals: Floats
    block_totals: Floats
    sizes: Floats
    variance: float
    scale: float
    starts: Ints | None = field(default=None, kw_only=True)

    @property
    def mask(self) -> Floats:
        """Which blocks each row was told, [rows, blocks]: its first, and after that from the first one on."""
        starts = np.zeros_like(self.blocks) if self.starts is None else self.starts
        return told_blocks(self.blocks, starts, len(self.sizes)).astype(np.float64)

    @property
    def counts(self) -> Floats:
        """How many examples each row was told."""
        return np.concatenate([[0.0], np.cumsum(self.sizes)])[self.blocks]


class Scores:
    """The scores so far. A row is a point, in the order in which points were first asked for.

    Attributes:
        space: The points.
        order: The permutation of the examples.
        size: Examples of a block; the last may be smaller.
        starts: How many blocks points take turns to begin with; after that each meets the others in order.
        edges: Where in the permutation each block begins, and where the last one ends.
        points: The points that were asked for.
        rows: The row of each.
        spent: Metric calls asked for.
        saved: How many of those weren't paid, where the price of a whole one is known.
        outcomes: Metric calls told.
    """

    def __init__(self, space: SearchSpace, order: Sequence[int], size: int, starts: int = 1) -> None:
        self.space = space
        self.order = [int(index) for index in order]
        self.size = size
        self.edges: list[int] = [*range(0, len(self.order), size), len(self.order)]
        self.points: list[Point] = []
        self.rows: dict[Point, int] = {}
        self.spent = 0
        self.saved = 0.0
        self.outcomes = 0
        self.starts = max(1, min(starts, len(self.order) // size))
        self._starts = np.zeros(64, dtype=np.int64)
        self._asked = np.zeros(64, dtype=np.int64)
        self._told = np.zeros(64, dtype=np.int64)
        self._totals = np.zeros(64)
        self._levels = np.zeros((64, len(space.slots)), dtype=np.int64)
        self._values: list[array[float]] = []
        # By row: repeats of its blocks that were asked for and told, the first block's first.
        self._repeats: dict[int, list[int]] = {}
        self._block_totals = np.zeros(self.blocks)
        # By example: how many rows were told, the sum and the sum of squares.
        self._seen = np.zeros((3, len(self.order)))
        self._least, self._most = math.inf, -math.inf

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return len(self.edges) - 1

    @property
    def asked(self) -> Ints:
        """How many blocks of each row were asked for."""
        return self._asked[: len(self.points)]

    @property
    def told(self) -> Ints:
        """How many blocks of each row were told."""
        return self._told[: len(self.points)]

    @property
    def levels(self) -> Ints:
        """The level of each row in each slot."""
        return self._levels[: len(self.points)]

    def row(self, point: Point) -> int:
        """Return the row of a point, a new one where it was never asked for."""
        if point not in self.rows:
            row = len(self.points)
            if row == len(self._asked):
                self._asked = np.concatenate([self._asked, np.zeros_like(self._asked)])
                self._told = np.concatenate([self._told, np.zeros_like(self._told)])
                self._starts = np.concatenate([self._starts, np.zeros_like(self._starts)])
                self._totals = np.concatenate([self._totals, np.zeros_like(self._totals)])
                self._levels = np.concatenate([self._levels, np.zeros_like(self._levels)])
            self.rows[point] = row
            self.points.append(point)
            self._values.append(array("d"))
            self._levels[row] = point
            self._starts[row] = row % self.starts
        return self.rows[point]

    def block(self, row: int, step: int) -> int:
        """Return the block that a row is asked as its `step`-th: its first one, then the others in order."""
        first = int(self._starts[row])
        return first if step == 0 else step - 1 if step <= first else step

    def _places(self, row: int) -> Ints:
        """Return where in the permutation a row's scores are, in the order told."""
        told, first, edges = int(self._told[row]), int(self._starts[row]), self.edges
        if first == 0 or told == 0:
            return np.arange(edges[told])
        before, after = np.arange(edges[min(first, told - 1)]), np.arange(edges[first + 1], edges[max(told, first + 1)])
        return np.concatenate([np.arange(edges[first], edges[first + 1]), before, after])

    def depth(self, point: Point) -> int:
        """Return how many blocks of a point were asked for."""
        return int(self._asked[self.rows[point]]) if point in self.rows else 0

    def cost(self, point: Point) -> int:
        """Return the metric calls of a point's next block, 0 where it has none left."""
        step = self.depth(point)
        if step >= self.blocks:
            return 0
        block = self.block(self.rows[point], step) if point in self.rows else 0
        return self.edges[block + 1] - self.edges[block]

    def ask(self, point: Point) -> list[int]:
        """Return the examples of a point's next block and count them as spent."""
        row = self.row(point)
        block = self.block(row, int(self._asked[row]))
        self._asked[row] += 1
        examples = self.order[self.edges[block] : self.edges[block + 1]]
        self.spent += len(examples)
        return examples

    @property
    def charged(self) -> float:
        """What was asked for so far comes to, in metric calls at the full price."""
        return self.spent - self.saved

    @property
    def upcoming(self) -> Ints:
        """Which block each row would be asked next; beyond the last where it has none."""
        asked, starts = self.asked, self._starts[: len(self.points)]
        return np.where(asked == 0, starts, np.where(asked <= starts, asked - 1, asked))

    @property
    def debut(self) -> int:
        """Which block a point that was never asked for would begin with."""
        return len(self.points) % self.starts

    def repeats(self, point: Point) -> int:
        """Return how many blocks of a point were asked for again."""
        return self._repeats.get(self.rows[point], [0])[0]

    def next_repeat(self, point: Point) -> int:
        """Return the metric calls of a point's next repeat."""
        block = self.repeats(point) % self.blocks
        return self.edges[block + 1] - self.edges[block]

    def repeat(self, point: Point) -> tuple[list[int], int]:
        """Return the examples of a point's next repeat and its number, from 1, and count them as spent.

        All blocks are repeated once before the first is repeated twice.
        """
        counts = self._repeats.setdefault(self.rows[point], [0, 0])
        times, block = divmod(counts[0], self.blocks)
        counts[0] += 1
        examples = self.order[self.edges[block] : self.edges[block + 1]]
        self.spent += len(examples)
        return examples, times + 1

    def average(self, row: int, scores: Sequence[float]) -> None:
        """Take in a row's oldest repeat that is in flight: an example's score becomes the mean of its repeats.

        It stays one example: a repeat tells more about the model's dice and nothing about other examples.
        """
        counts = self._repeats[row]
        times, block = divmod(counts[1], self.blocks)
        values = self._checked(row, block, scores)
        first = int(np.argmax(self._places(row) == self.edges[block]))
        size = self.edges[block + 1] - self.edges[block]
        known = np.frombuffer(self._values[row], dtype=np.float64)[first : first + size]
        mean = (known * (times + 1) + values) / (times + 2)
        counts[1] += 1
        low, high = self.edges[block], self.edges[block + 1]
        self._totals[row] += float((mean - known).sum())
        self._block_totals[block] += float((mean - known).sum())
        self._seen[1:, low:high] += np.stack([mean - known, mean**2 - known**2])
        self.outcomes += len(values)
        known[:] = mean

    def tell(self, row: int, scores: Sequence[float]) -> None:
        """Take in a row's oldest block that is in flight."""
        block = self.block(row, int(self._told[row]))
        values = self._checked(row, block, scores)
        self._values[row].extend(values)
        self._count(row, block, values)

    def _checked(self, row: int, block: int, scores: Sequence[float]) -> Floats:
        low, high = self.edges[block], self.edges[block + 1]
        values = np.asarray(scores, dtype=np.float64)
        if len(values) != high - low:
            raise ValueError(f"`one score for each example` must hold, but got {len(values)} for {high - low}.")
        if not np.isfinite(values).all():
            raise ValueError(f"`scores are numbers`, but the oracle gave {list(scores)} at {self.points[row]}.")
        return values

    def _count(self, row: int, block: int, values: Floats) -> None:
        low, high = self.edges[block], self.edges[block + 1]
        self._told[row] += 1
        self._totals[row] += values.sum()
        self._block_totals[block] += values.sum()
        seen = self._seen[:, low:high]
        seen[0] += 1
        seen[1] += values
        seen[2] += values**2
        self._least, self._most = min(self._least, float(values.min())), max(self._most, float(values.max()))
        self.outcomes += len(values)

    def recount(self) -> None:
        """Sum everything up again: Ctrl-C may have come in the middle of taking a block in."""
        for sums in (self._told, self._totals, self._block_totals, self._seen):
            sums[...] = 0
        self.outcomes = 0
        for row in range(len(self.points)):
            values, step, first = self.values(row), 0, 0
            while first < len(values):
                block = self.block(row, step)
                size = self.edges[block + 1] - self.edges[block]
                self._count(row, block, values[first : first + size])
                first, step = first + size, step + 1

    def grow(self, space: SearchSpace) -> None:
        """Move to a grown space: every known point has level 0 in the slots that are new."""
        more = len(space.slots) - len(self.space.slots)
        self.space = space
        self.points = [(*point, *(0,) * more) for point in self.points]
        self.rows = {point: row for row, point in enumerate(self.points)}
        self._levels = np.pad(self._levels, ((0, 0), (0, more)))

    def values(self, row: int) -> Floats:
        """Return a row's scores, in the order told."""
        return np.frombuffer(self._values[row], dtype=np.float64) if len(self._values[row]) else np.zeros(0)

    def mean(self, row: int) -> float:
        """Return the mean score of a row, 0 where it has none."""
        count = len(self._values[row])
        return float(self._totals[row]) / count if count else 0.0

    def met(self, other: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Say of each row whether it was told about an example that row `other` was told about too."""
        mask = told_blocks(self.told, self._starts[: len(self.points)], self.blocks)
        common: np.ndarray[tuple[int], np.dtype[np.bool_]] = (mask & mask[other]).any(axis=1)
        return common

    def paired(self, row: int, other: int) -> Floats:
        """Return the differences of two rows on their common examples."""
        mine, theirs = self.values(row), self.values(other)
        if self._starts[row] == self._starts[other]:
            n = min(len(mine), len(theirs))
            return mine[:n] - theirs[:n]
        known = np.full(len(self.order), np.nan)
        known[self._places(other)] = theirs
        differences: Floats = mine - known[self._places(row)]
        return differences[~np.isnan(differences)]

    def sums(self) -> Sums:
        """Return the statistics of what was told."""
        rows = len(self.points)
        counts, sums, squares = self._seen
        sizes = np.diff(np.array(self.edges, dtype=np.float64))
        edges = np.concatenate([[0.0], np.cumsum(sizes)])
        n = edges[self.told]
        centre = float(sums.sum() / max(1.0, counts.sum()))
        totals = self._totals[:rows] - centre * n
        block_counts = np.array([counts[low] for low in self.edges[:-1]])
        spread = float(squares.sum() / max(1.0, counts.sum())) - centre**2
        width = self._most - self._least if self.outcomes else 0.0
        scale = min(width, 6 * math.sqrt(max(0.0, spread))) or max(abs(centre), 1.0)
        found = Sums(
            levels=self.levels.copy(),
            blocks=self.told.copy(),
            totals=totals,
            block_totals=self._block_totals - centre * sizes * block_counts,
            sizes=sizes,
            variance=0.0,
            scale=scale,
            starts=self._starts[:rows].copy() if self.starts > 1 else None,
        )
        return replace(found, variance=self._residual_variance(found, n, scale))

    def _residual_variance(self, found: Sums, n: Floats, scale: float) -> float:
        """Pool the squares within examples, less those between rows; a little prior, so that it is never zero.

        The prior is a sixteenth of the squared scale, one discordant pair in eight, and counts as one row of it.
        """
        counts, sums, squares = self._seen
        shared = counts > 1
        within = float((squares[shared] - sums[shared] ** 2 / counts[shared]).sum())
        means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
        expected = np.add.reduceat(means, self.edges[:-1]) if len(means) else np.zeros(0)
        surplus = self._totals[: len(n)] - found.mask @ expected
        between = float((surplus[n > 0] ** 2 / n[n > 0]).sum())
        freedom = float((counts[shared] - 1).sum()) - max(0, int((n > 0).sum()) - 1)
        return (max(0.0, within - between) + scale**2 / 16) / (max(0.0, freedom) + 1)

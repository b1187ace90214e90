"""Costs: what a point's next block is expected to cost, learnt from what blocks that were told cost.

A program's predictors stand in the order of the space's slots, so that what an earlier point with the same levels in
the first k slots asked on a block can be reused up to there (the evaluator's cache does). A metric call costs

    c0 + sum over slots s >= k of (w_s + v_s[level]),    w and v by ridge regression, v shrunk to nothing

where k counts the leading slots shared with an earlier point on the same block. That is right for a chain of
predictors, and roughly right, since it is learnt, where two of them are independent. Earlier means asked earlier:
costs are logical, charged to who needs a call first, so that nothing here depends on who was served first.

Where all blocks cost the same per metric call nothing is learnt and nothing is steered.
"""

from array import array

import numpy as np

from .scores import Floats, Ints, Scores
from .space import Point

EVEN = 0.01
"""Costs of a metric call that differ by less, relative to the largest, are the same."""

FEW = 8
"""Blocks that must have been told before anything is learnt."""

LOOSE, TIGHT = 0.01, 2.0
"""Ridge penalties, in blocks, of a slot's mean and of a level's deviation from it."""

LEAST = 0.05
"""The least that a metric call is expected to cost, in units of the dearest: nothing is for free."""


class Costs:
    """Expected costs of a metric call, by point."""

    def __init__(self, scores: Scores) -> None:
        self.scores = scores
        self.observed: tuple[array[int], array[int], array[float]] = array("q"), array("q"), array("d")
        self.learnt: Floats | None = None
        self._least, self._most = np.inf, 0.0
        self.grow()

    def grow(self) -> None:
        """Move to a grown space: shared slots are found anew."""
        slots = self.scores.space.slots
        self.first = 1 + len(slots) + np.cumsum([0, *(slot.levels for slot in slots)])
        self.matrix, self.right, self.summed = np.zeros((self.first[-1],) * 2), np.zeros(self.first[-1]), 0
        self.learnt = None
        self.nodes: dict[tuple[int, int], int] = {}
        self.paths = np.zeros((max(64, 2 * len(self.scores.points)), len(slots)), dtype=np.int64)
        self.known = 0
        self.met = np.zeros((256, self.scores.blocks), dtype=bool)
        self.count = 1
        for point in self.scores.points:
            self._walk(point)
        for row, depth in enumerate(self.scores.asked.tolist()):
            for step in range(depth):
                self.met[self.paths[row], self.scores.block(row, step)] = True

    def _walk(self, point: Point) -> None:
        """Enter a point into the tree of levels, slot by slot."""
        if self.known == len(self.paths):
            self.paths = np.concatenate([self.paths, np.zeros_like(self.paths)])
        node = 0
        for slot, level in enumerate(point):
            after = self.nodes.setdefault((node, level), self.count)
            self.count += after == self.count
            if self.count > len(self.met):
                self.met = np.concatenate([self.met, np.zeros_like(self.met)])
            self.paths[self.known, slot] = node = after
        self.known += 1

    def asked(self, row: int) -> int:
        """Take in that a row's block was asked for, after the scores have; return how many slots it shares."""
        if row == self.known:
            self._walk(self.scores.points[row])
        block = self.scores.block(row, int(self.scores.asked[row]) - 1)
        met = self.met[self.paths[row], block]
        self.met[self.paths[row], block] = True
        return int(np.logical_and.accumulate(met).sum())

    def told(self, row: int, shared: int, cost: float) -> None:
        """Take in what a metric call of a row's block cost on the average."""
        rows, depths, costs = self.observed
        rows.append(row)
        depths.append(shared)
        costs.append(cost)
        self._least, self._most = min(self._least, cost), max(self._most, cost)

    @property
    def differ(self) -> bool:
        """Whether there is anything to steer by."""
        return len(self.observed[0]) >= FEW and self._most - self._least > EVEN * self._most

    def learn(self) -> None:
        """Fit to what was told; called when the surrogate is."""
        if not self.differ:
            return
        rows, shared, costs = (np.array(kept[self.summed :]) for kept in self.observed)
        slots, width = len(self.scores.space.slots), len(self.right)
        x = np.zeros((len(rows), width))
        x[:, 0] = 1
        for slot in range(slots):
            run = np.flatnonzero(shared <= slot)
            x[run, 1 + slot] = 1
            x[run, self.first[slot] + self.scores.levels[rows[run], slot]] = 1
        self.matrix += x.T @ x
        self.right += x.T @ costs
        self.summed += len(rows)
        penalty, prior = np.full(width, TIGHT), np.zeros(width)
        penalty[: 1 + slots] = LOOSE
        prior[: 1 + slots] = self.right[0] / self.matrix[0, 0] / (1 + slots)
        self.learnt = np.linalg.solve(self.matrix + np.diag(penalty), self.right + penalty * prior)

    def expected(self, levels: Ints, blocks: Ints, rows: Ints | None = None) -> Floats:
        """Return what a metric call of points' next blocks is expected to cost, [points].

        Args:
            levels: Their levels, [points, slots].
            blocks: Which block each would be asked next.
            rows: Their rows, or None where they were never asked for.
        """
        assert self.learnt is not None
        slots = levels.shape[1]
        paths = self._paths(levels) if rows is None else self.paths[rows]
        hits = (paths >= 0) & self.met[paths, blocks[:, None]]
        new = ~np.logical_and.accumulate(hits, axis=1)
        each = self.learnt[1 : 1 + slots] + self.learnt[self.first[:-1] + levels]
        values: Floats = np.maximum(self.learnt[0] + (new * each).sum(axis=1), LEAST * self._most)
        return values

    def _paths(self, levels: Ints) -> Ints:
        paths = np.full(levels.shape, -1, dtype=np.int64)
        for place, point in enumerate(levels.tolist()):
            node = 0
            for slot, level in enumerate(point):
                after = self.nodes.get((node, level))
                if after is None:
                    break
                paths[place, slot] = node = after
        return paths

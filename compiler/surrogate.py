"""Surrogate: beliefs about every point, from block sums.

    y = d[example] + sum over slots s of a_s[level] + g[point] + e,    a ~ N(0, tau^2), g ~ N(0, omega^2), e ~ N(0, s2)

The examples' difficulties d (one a block is enough: whoever was told a block was told all of it) have a flat prior, so
that only comparisons within a block count. Every level and every point is exchangeable: who is worse than most is
believed to be worse. The baseline is one of them while the search goes on; for the verdict its own effect has a wide
prior, since it is what the user wrote and no draw of what strategies propose. tau and omega aren't fitted but averaged
over a grid that reaches nearly zero, weighted by the marginal likelihood; while the search goes on, over the
neighbourhood of the best cell.

g is integrated out of the normal equations (Sherman-Morrison within a point), so that a fit costs (levels + blocks)^3
and a decision O(levels), however many outcomes are known. (Lindley and Smith, Bayes estimates for the linear model,
1972; Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, section 5.2.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import linalg, stats

from .columns import SHARES, Columns
from .scores import Floats, Ints, Sums

POTRF, POTRS, TRTRS = linalg.get_lapack_funcs(("potrf", "potrs", "trtrs"), dtype=np.float64)
"""Cholesky factor, solution by it, triangular solution: for small matrices SciPy's checks take longer than the work."""

GRID = (0.0015, 0.005, 0.012, 0.025, 0.045, 0.07, 0.1, 0.14, 0.2)
"""Standard deviations of levels and points, in units of the scores' scale."""

NEGLIGIBLE = 7.0
"""A cell whose log likelihood is so far below the best one's doesn't count."""

FLAT = 0.1
"""The prior standard deviation of a point that isn't exchangeable with the others, in units of the scores' scale."""

CHUNK = 1024
"""Rows whose levels are spelt out at a time."""

MOST_CELLS = 16
"""Cells that an average is over."""

Place = tuple[int, int, int]
"""A cell of the grid: the places of tau and of omega in GRID, and of the features' share in SHARES."""

START: Place = (4, 3, 0)
"""Where the first fit begins."""


@dataclass(frozen=True)
class Belief:
    """What is believed of a difference between two points."""

    mean: float
    sd: float
    freedom: float = 1e6

    @property
    def probability(self) -> float:
        """The probability of a difference above zero; by Student's t, since few examples tell the noise."""
        return float(stats.t.cdf(self.mean / self.sd, self.freedom)) if self.sd > 0 else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The central 95 % interval."""
        width = float(stats.t.ppf(0.975, self.freedom)) * self.sd
        return self.mean - width, self.mean + width


class Design:
    """What all cells of one fit share. The own effect of row `apart`, where there is one, has a flat prior."""

    def __init__(self, sums: Sums, columns: Columns, variance: float | None = None, apart: int | None = None) -> None:
        self.sums, self.columns, self.apart = sums, columns, apart
        self.weight = 1 / (sums.variance if variance is None else variance)
        self.counts = sums.counts
        self.at = columns.at(sums.levels)
        mask = sums.mask
        self.used = int(np.flatnonzero(mask.any(axis=0)).max(initial=-1)) + 1
        self.mask = mask[:, : self.used]
        self.sizes = sums.sizes[: self.used]

    def onehot(self, rows: Ints) -> Floats:
        """Return a row of ones and zeros for each of `rows`: which levels it has."""
        ones = np.zeros((len(rows), self.columns.width + 1))
        ones[np.arange(len(rows))[:, None], self.at[rows]] = 1
        return ones[:, : self.columns.width]

    def normal(self, omega2: float) -> "Normal":
        """Return the normal equations of effects and difficulties, each point's own effect integrated out."""
        w, n, width, totals = self.weight, self.counts, self.columns.width, self.sums.totals
        sizes, mask = w * self.sizes, self.mask
        own = np.full(len(n), omega2)
        if self.apart is not None:
            own[self.apart] = (FLAT * self.sums.scale) ** 2
        q = 1 / (1 + own * w * n)
        kappa = own * q
        matrix = np.zeros((width + self.used, width + self.used))
        right = np.zeros(len(matrix))
        for first in range(0, len(n), CHUNK):
            part = slice(first, first + CHUNK)
            x = self.onehot(np.arange(len(n))[part])
            matrix[:width, width:] += (x * q[part, None]).T @ mask[part] * sizes
            right[:width] += x.T @ (w * q[part] * totals[part])
            x *= np.sqrt(w * n[part] * q[part])[:, None]
            matrix[:width, :width] += x.T @ x
        matrix[width:, :width] = matrix[:width, width:].T
        within = (mask * kappa[:, None]).T @ mask * np.outer(sizes, sizes)
        matrix[width:, width:] = np.diag(sizes * mask.sum(axis=0)) - within
        right[width:] = w * self.sums.block_totals[: self.used] - w * sizes * (mask.T @ (kappa * totals))
        loss = -float((kappa * (w * totals) ** 2).sum()) - float(np.log(q).sum())
        return Normal(Shrinkage(self, omega2, own, q), matrix, right, loss)


@dataclass(frozen=True, eq=False)
class Shrinkage:
    """What one omega does to the points' own effects.

    Attributes:
        design: What was told.
        omega2: The variance of the points' own effects.
        prior: The same for each row: omega2, or what is flat.
        shrink: For each row 1 / (1 + prior n / s2): how much of its own effect is still the prior's.
    """

    design: Design
    omega2: float
    prior: Floats
    shrink: Floats


@dataclass(frozen=True, eq=False)
class Normal:
    """The normal equations under one omega.

    Attributes:
        own: What omega does to the points' own effects.
        matrix: The precision that the scores give.
        right: The right side.
        loss: What of -2 log likelihood depends on omega alone.
    """

    own: Shrinkage
    matrix: Floats
    right: Floats
    loss: float

    def cell(self, tau2: float, share: int = 0) -> "Cell":
        """Return the posterior under one tau and one share of the features."""
        design = self.own.design
        width = design.columns.width
        precision = self.matrix.copy()
        prior = np.full(len(precision), 1e-6 / design.sums.scale**2)
        prior[:width] = 1 / tau2
        extra = 0.0
        if design.columns.features is not None:
            among, extra = design.columns.priors[share]
            precision[:width, :width] += among / tau2
            prior[:width] = 0
        precision[np.diag_indices(len(precision))] += prior
        factor, failed = POTRF(precision.T, lower=1, clean=1)
        if failed:
            raise np.linalg.LinAlgError(f"`the precision is positive definite` must hold, but minor {failed} isn't.")
        mean, _ = POTRS(factor, self.right, lower=1)
        log_weight = -0.5 * (
            self.loss
            - float(self.right @ mean)
            + width * float(np.log(tau2))
            + extra
            + 2 * float(np.log(np.diagonal(factor)).sum())
        )
        return Cell(self.own, mean, factor, log_weight)


@dataclass(frozen=True, eq=False)
class Cell:
    """The posterior under one pair of variances.

    Attributes:
        own: What omega does to the points' own effects.
        mean: The posterior mean of effects and difficulties.
        factor: The Cholesky factor of their posterior precision.
        log_weight: The log marginal likelihood, up to a constant.
    """

    own: Shrinkage
    mean: Floats
    factor: Floats
    log_weight: float

    def effects(self, theta: Floats) -> Floats:
        """Return the levels' effects among `theta`, a zero behind them for levels without a column."""
        return np.append(theta[: self.own.design.columns.width], 0.0)

    def rows(self, theta: Floats) -> Floats:
        """Return the mean of every row given effects and difficulties."""
        design, own = self.own.design, self.own
        additive: Floats = self.effects(theta)[design.at].sum(axis=1)
        difficulty = design.mask @ (design.sizes * theta[design.columns.width :])
        surplus = design.sums.totals - difficulty - design.counts * additive
        values: Floats = additive + own.prior * design.weight * own.shrink * surplus
        return values

    def sample(self, rng: np.random.Generator) -> Floats:
        """Draw effects and difficulties."""
        noise = rng.standard_normal(len(self.mean))
        shift, _ = TRTRS(self.factor, noise, lower=1, trans=1)
        drawn: Floats = self.mean + shift
        return drawn

    def spreads(self, rows: Sequence[int], home: int) -> Floats:
        """Return the posterior variance of each row's difference to `home`."""
        design, own = self.own.design, self.own
        chosen = np.array([*rows, home])
        q = own.shrink[chosen][:, None]
        prior = own.prior[chosen]
        kept = prior[:, None] * design.weight * q * design.mask[chosen] * design.sizes
        functional = np.concatenate([q * design.onehot(chosen), -kept], axis=1)
        functional = functional[:-1] - functional[-1]
        half = linalg.solve_triangular(self.factor, functional.T, lower=True, check_finite=False)
        left = prior * own.shrink[chosen]
        residual = left[:-1] + left[-1]
        variance: Floats = (half**2).sum(axis=0) + np.where(chosen[:-1] == home, 0.0, residual)
        return variance


@dataclass(frozen=True, eq=False)
class Surrogate:
    """The posterior over points, averaged over cells of the grid.

    Attributes:
        cells: The cells.
        weights: Their posterior weights.
        best: The place of the likeliest cell.
    """

    cells: tuple[Cell, ...]
    weights: Floats
    best: Place

    @classmethod
    def fit(
        cls,
        sums: Sums,
        columns: Columns,
        around: Place | None = None,
        variance: float | None = None,
        apart: int | None = None,
    ) -> "Surrogate":
        """Fit to what was told.

        Averaged over every cell that matters; or, while the search goes on, over the cells beside `around` and a few
        steps uphill of it. `variance` stands in for the pooled one; the row `apart` isn't exchangeable with the others.
        """
        design = Design(sums, columns, variance, apart)
        cells = _Cells(design)
        best, steps = around or START, 3 if around else len(GRID) ** 2
        for _ in range(steps):
            peak = max([best, *cells.beside(best)], key=cells.weigh)
            if peak == best:
                break
            best = peak
        if around is None:
            cells.flood(best)
        kept = cells.kept()
        weights = np.exp(np.array([cell.log_weight - kept[0].log_weight for cell in kept]))
        return cls(tuple(kept), weights / weights.sum(), best)

    @cached_property
    def means(self) -> Floats:
        """The posterior mean of every row, up to a common constant."""
        return self._average([cell.rows(cell.mean) for cell in self.cells])

    @cached_property
    def effects(self) -> Floats:
        """The posterior mean of every level's effect, by column."""
        return self._average([cell.effects(cell.mean) for cell in self.cells])

    def _average(self, values: Sequence[Floats]) -> Floats:
        mean: Floats = np.average(np.stack(values), axis=0, weights=self.weights)
        return mean

    @property
    def scale(self) -> float:
        """The spread of the scores, 1 for 0/1."""
        return self.cells[0].own.design.sums.scale

    @property
    def variance(self) -> float:
        """The variance of a score around its example's and its point's mean."""
        return 1 / self.cells[0].own.design.weight

    def breadth(self, but: Sequence[int]) -> float:
        """Return how many examples' worth of examples the rows other than `but` were told (Kish's effective number).

        A hundred rows that all met the same five examples know five examples well and the population badly.
        """
        design = self.cells[0].own.design
        rows = design.mask.sum(axis=0) - design.mask[list(but)].sum(axis=0)
        told = float((design.sizes * rows).sum())
        return max(1.0, told**2 / max(1.0, float((design.sizes * rows**2).sum())))

    def top(self, columns: Columns) -> tuple[int, ...]:
        """Return the level of each slot that is expected to be best."""
        return tuple(int(np.argmax(self.effects[of])) for of in columns.of)

    def pick(self, rng: np.random.Generator) -> Cell:
        """Draw a cell by its weight."""
        return self.cells[int(np.searchsorted(np.cumsum(self.weights), rng.random() * (1 - 1e-12)))]

    def differences(self, rows: Sequence[int], home: int, freedom: float = 1e6) -> list[Belief]:
        """Return what is believed of each row's difference to `home`."""
        mean, second = np.zeros(len(rows)), np.zeros(len(rows))
        for weight, cell in zip(self.weights, self.cells, strict=True):
            values = cell.rows(cell.mean)
            shift = values[list(rows)] - values[home]
            mean += weight * shift
            second += weight * (cell.spreads(rows, home) + shift**2)
        sd = np.sqrt(np.maximum(second - mean**2, 0.0))
        return [Belief(float(m), float(s), freedom) for m, s in zip(mean, sd, strict=True)]


class _Cells:
    """The cells that were looked at, the heaviest of them at hand: each has a factor of (levels + blocks)^2."""

    def __init__(self, design: Design) -> None:
        self.design = design
        self.normals: dict[int, Normal] = {}
        self.weights: dict[Place, float] = {}
        self.cells: dict[Place, Cell] = {}

    def weigh(self, place: Place) -> float:
        """Return the log weight of a cell."""
        if place not in self.weights:
            tau, omega, share = place
            scale = self.design.sums.scale
            if omega not in self.normals:
                self.normals[omega] = self.design.normal((GRID[omega] * scale) ** 2)
            cell = self.normals[omega].cell((GRID[tau] * scale) ** 2, share)
            self.weights[place], self.cells[place] = cell.log_weight, cell
            if len(self.cells) > MOST_CELLS:
                del self.cells[min(self.cells, key=lambda place: (self.weights[place], place))]
        return self.weights[place]

    def kept(self) -> list[Cell]:
        """Return the cells that matter, the heaviest first."""
        heaviest = sorted(self.cells, key=lambda place: (-self.weights[place], place))
        top = self.weights[heaviest[0]]
        return [self.cells[place] for place in heaviest if self.weights[place] > top - NEGLIGIBLE]

    def beside(self, place: Place) -> list[Place]:
        """Return the cells beside one."""
        tau, omega, share = place
        steps = [(tau - 1, omega, share), (tau + 1, omega, share), (tau, omega - 1, share), (tau, omega + 1, share)]
        found = [step for step in steps if all(0 <= coordinate < len(GRID) for coordinate in step[:2])]
        if self.design.columns.features is not None:
            found += [(tau, omega, other) for other in range(len(SHARES)) if other != share]
        return found

    def flood(self, start: Place) -> None:
        """Weigh every cell that is connected to `start` by cells that matter, in a fixed order."""
        seen, border = {start}, [start]
        while border:
            for place in self.beside(border.pop()):
                if place not in seen:
                    seen.add(place)
                    if self.weigh(place) > self.weigh(start) - NEGLIGIBLE:
                        border.append(place)

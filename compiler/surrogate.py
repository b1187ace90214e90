"""Surrogate: beliefs about every point's difference to the baseline, from paired scores.

The difference of a point is the sum of its levels' effects and a residual of its own, both normal with a mean of zero,
so that nothing is believed to help until the scores say so:

    f(p) = sum over slots s of a_s[p_s] + g_p,   a ~ N(0, tau^2),  g ~ N(0, omega^2)

The mean paired difference y_p on the first n_p examples has noise from the point and from the baseline. Points share
the baseline's part: cov(y_p, y_q) = (v / 2) (1 / max(n_p, n_q) + [p = q] / n_p), v being the pooled variance of paired
differences. The variances aren't fitted but averaged over a grid that reaches nearly zero, weighted by the marginal
likelihood (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, section 5.2).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import linalg, stats

from .space import Point

Floats = np.ndarray[Any, np.dtype[np.float64]]

GRID = (0.0015, 0.005, 0.015, 0.04, 0.08, 0.15, 0.3)
"""Standard deviations, in units of the scores' own spread where that isn't 1."""


@dataclass(frozen=True)
class Belief:
    """What is believed of one point's difference to the baseline."""

    mean: float
    sd: float
    freedom: float = 1e6

    @property
    def probability(self) -> float:
        """The probability of a difference above zero; by Student's t, since few rows tell the noise."""
        return float(stats.t.cdf(self.mean / self.sd, self.freedom)) if self.sd > 0 else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The central 95 % interval."""
        width = float(stats.t.ppf(0.975, self.freedom)) * self.sd
        return self.mean - width, self.mean + width


@dataclass(frozen=True, eq=False)
class Cell:
    """The posterior under one pair of variances.

    Attributes:
        log_weight: The log marginal likelihood, up to a constant.
        tau2: The variance of the levels' effects.
        omega2: The variance of the residuals.
        weighted: The inverse covariance of the scored points times y.
        factor: Its Cholesky factor.
    """

    log_weight: float
    tau2: float
    omega2: float
    weighted: Floats
    factor: Floats


@dataclass(frozen=True)
class Surrogate:
    """The posterior over points; `beliefs` also answers for points that were never scored."""

    home: Point
    points: tuple[Point, ...]
    cells: tuple[Cell, ...]
    freedom: float = 1e6

    @classmethod
    def fit(cls, differences: Mapping[Point, Floats], home: Point) -> "Surrogate":
        """Fit to the paired differences of every point that met the baseline on a common prefix of examples."""
        rows = [(point, values) for point, values in differences.items() if point != home and len(values)]
        if not rows:
            return cls(home, (), ())
        points = tuple(point for point, _ in rows)
        y = np.array([values.mean() for _, values in rows])
        n = np.array([len(values) for _, values in rows], dtype=np.float64)
        variance, spread = pooled_variance([values for _, values in rows])
        noise = variance / 2 * (1 / np.maximum.outer(n, n) + np.diag(1 / n))
        shared = _shared(points, points, home)
        cells = [
            _cell((tau * spread) ** 2, (omega * spread) ** 2, shared, noise, y)
            for tau in GRID
            for omega in (GRID if len(home) > 1 else GRID[:1])
            if omega <= tau
        ]
        top = max(cell.log_weight for cell in cells)
        # Every point is scored on the same examples, so more points don't make the noise better known.
        freedom = max(1.0, float(n.max()) - 1)
        return cls(home, points, tuple(cell for cell in cells if cell.log_weight > top - 10), freedom)

    def beliefs(self, asked: Sequence[Point]) -> list[Belief]:
        """Return what is believed of each point."""
        if not self.points:
            return [Belief(0.0, 1.0) for _ in asked]
        cross = _shared(asked, self.points, self.home)
        own = np.array([[p == q for q in self.points] for p in asked], dtype=np.float64)
        size = np.array([sum(a != b for a, b in zip(p, self.home, strict=True)) for p in asked], dtype=np.float64)
        away = np.array([p != self.home for p in asked], dtype=np.float64)
        top = max(cell.log_weight for cell in self.cells)
        weights = np.exp(np.array([cell.log_weight - top for cell in self.cells]))
        mean, second = np.zeros(len(asked)), np.zeros(len(asked))
        for weight, cell in zip(weights / weights.sum(), self.cells, strict=True):
            k = cell.tau2 * cross + cell.omega2 * own
            m = k @ cell.weighted
            half = linalg.solve_triangular(cell.factor, k.T, lower=True)
            var = np.maximum(cell.tau2 * size + cell.omega2 * away - (half**2).sum(axis=0), 1e-12)
            mean += weight * m
            second += weight * (var + m**2)
        sd = np.sqrt(np.maximum(second - mean**2, 1e-12))
        return [Belief(float(a), float(b), self.freedom) for a, b in zip(mean, sd, strict=True)]


def _cell(tau2: float, omega2: float, shared: Floats, noise: Floats, y: Floats) -> Cell:
    factor = np.asarray(np.linalg.cholesky(tau2 * shared + omega2 * np.eye(len(y)) + noise), dtype=np.float64)
    weighted = linalg.cho_solve((factor, True), y)
    likelihood = -0.5 * float(y @ weighted) - float(np.log(np.diag(factor)).sum())
    return Cell(likelihood, tau2, omega2, weighted, factor)


def _shared(left: Sequence[Point], right: Sequence[Point], home: Point) -> Floats:
    """Return for each pair how many slots have the same level, other than the baseline's."""
    a, b, zero = np.array(left), np.array(right), np.array(home)
    shared: Floats = ((a[:, None, :] == b[None, :, :]) & (a[:, None, :] != zero)).sum(axis=2).astype(np.float64)
    return shared


def pooled_variance(rows: Sequence[Floats]) -> tuple[float, float]:
    """Return the pooled variance of paired differences, never zero, and the scale of the scores.

    A quarter of one discordant example is added: where no example told two points apart, more might.
    """
    scale = max([1e-9, *(float(np.abs(values).max()) for values in rows)])
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in rows)
    freedom = sum(len(values) - 1 for values in rows)
    return (squares + 0.25 * scale**2) / (freedom + 1), scale

"""Columns: where the levels of all slots stand among the effects that the surrogate fits, and what their features say.

    a_s ~ N(0, tau^2 R),    R = (1 - share) I + share F F'

F holds the features of a slot's levels, standardised and scaled so that F F' has a mean diagonal of one: a linear model
of the features and a deviation of each level's own, with the variance tau^2 between them. The share isn't known; the
surrogate averages over none and most, so that features which say nothing cost little.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from .scores import Floats, Ints

SHARES = (0.0, 0.8)
"""Shares of the levels' variance that their features may explain, where they have any."""


@dataclass(frozen=True, eq=False)
class Columns:
    """Where the levels stand among the effects; a level that says nothing of its own shares the last column, zero.

    Attributes:
        of: For each slot the column of each level.
        width: How many columns, without the one of zeros.
        features: The levels' features, [width, features], each slot's apart; None where there are none.
    """

    of: tuple[Ints, ...]
    width: int
    features: Floats | None = None

    @classmethod
    def spanning(cls, sizes: Sequence[int], told: Ints | None = None) -> "Columns":
        """Give a column to every level, or to those that two or more of the points `told` share."""
        kept = [
            np.ones(size, dtype=bool) if told is None else np.bincount(told[:, slot], minlength=size) > 1
            for slot, size in enumerate(sizes)
        ]
        width = int(sum(keep.sum() for keep in kept))
        first = 0
        of = []
        for keep in kept:
            places = np.full(len(keep), width, dtype=np.int64)
            places[keep] = first + np.arange(int(keep.sum()))
            first += int(keep.sum())
            of.append(places)
        return cls(tuple(of), width)

    def described(self, features: Sequence[Any]) -> "Columns":
        """Return the columns with the features of each slot's levels, [levels, any], or None where it has none.

        Standardised over the slot's levels, what is unknown or the same for all being zero, and scaled so that they
        explain a variance of one on the average. (A linear model of the features with exchangeable deviations.)
        """
        parts = []
        for of, raw in zip(self.of, features, strict=True):
            if raw is None:
                continue
            rows = np.array(raw, dtype=np.float64)
            known = np.isfinite(rows)
            rows = np.where(known, rows, 0.0)
            rows = np.where(known, rows - rows.sum(axis=0) / np.maximum(1, known.sum(axis=0)), 0.0)
            spread = np.sqrt((rows**2).sum(axis=0))
            rows = rows[:, spread > 0] / spread[spread > 0]
            if not rows.size:
                continue
            part = np.zeros((self.width + 1, rows.shape[1]))
            part[of] = rows * math.sqrt(len(rows) / rows.shape[1])
            parts.append(part[:-1])
        return replace(self, features=np.concatenate(parts, axis=1)) if parts else self

    @cached_property
    def priors(self) -> list[tuple[Floats, float]]:
        """For each of SHARES the inverse of the levels' covariance, in units of tau^2, and its log determinant."""
        assert self.features is not None
        found: list[tuple[Floats, float]] = []
        described = (self.features != 0).any(axis=1)
        for share in SHARES:
            covariance = share * self.features @ self.features.T
            covariance[np.diag_indices(self.width)] += np.where(described, 1 - share, 1.0)
            inverse: Floats = np.asarray(np.linalg.inv(covariance), dtype=np.float64)
            found.append((inverse, float(np.linalg.slogdet(covariance)[1])))
        return found

    def at(self, levels: Ints) -> Ints:
        """Return the columns of points given by their levels, [points, slots]."""
        if not self.of:
            return np.zeros((len(levels), 0), dtype=np.int64)
        return np.stack([of[levels[:, slot]] for slot, of in enumerate(self.of)], axis=1)

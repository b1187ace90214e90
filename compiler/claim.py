"""compare_with_claim(): whether scores on other rows agree with the mean that an artifact claims.

0/1 scores: the hybrid score interval for a difference of independent proportions, method 10 of Newcombe (1998),
"Interval estimation for the difference between independent proportions", Statistics in Medicine 17, 873-890.
Graded scores: the t interval of a difference of means; the claim's own spread isn't in the file, so that of the new
rows stands for both. Equivalence is two one-sided tests (Schuirmann 1987, J. Pharmacokinetics Biopharmaceutics 15,
657-680): equal within a margin at 5 % where the 90 % interval lies inside it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, stdev

from ..signatures.canonical import JsonValue
from ..signatures.errors import DataError


@dataclass(frozen=True)
class Comparison:
    """A claimed mean beside the mean of new scores, in the metric's own units.

    Attributes:
        claimed: The mean that is claimed.
        claimed_n: The rows it was measured on.
        found: The mean of the new scores.
        n: How many they are.
        difference: found - claimed.
        interval: 95 % confidence interval of the difference of the two expectations.
        within: The smallest margin within which the two are shown equal, at 5 %.
        method: How the interval was computed.
    """

    claimed: float
    claimed_n: int
    found: float
    n: int
    difference: float
    interval: tuple[float, float]
    within: float
    method: str

    @property
    def differs(self) -> bool:
        """Whether the interval excludes no difference: the claim and the new rows contradict each other."""
        return not self.interval[0] <= 0 <= self.interval[1]

    def to_json(self) -> dict[str, JsonValue]:
        """Return the comparison as JSON data."""
        return {
            "claimed": self.claimed,
            "claimed_n": self.claimed_n,
            "found": self.found,
            "n": self.n,
            "difference": self.difference,
            "interval": list(self.interval),
            "equal_within": self.within,
            "method": self.method,
        }


def compare_with_claim(claimed: float, claimed_n: int, scores: Sequence[float]) -> Comparison:
    """Return how new scores compare with a mean that was measured on `claimed_n` other rows.

    Raises:
        DataError: If there are fewer than two scores, or nothing was measured.
    """
    if claimed_n < 1 or len(scores) < 2:
        raise DataError(
            f"A comparison breaks `a claim on at least one row, and at least two new rows`: found {claimed_n} and "
            f"{len(scores)}; give more rows."
        )
    found = math.fsum(scores) / len(scores)
    hits = claimed * claimed_n
    binary = all(score in (0, 1) for score in scores) and 0 <= claimed <= 1 and abs(hits - round(hits)) < 1e-6
    if binary:
        intervals = [newcombe_interval(claimed, claimed_n, found, len(scores), level=level) for level in (0.95, 0.9)]
        method = "Newcombe hybrid score interval"
    else:
        intervals = [_t_interval(claimed, claimed_n, scores, level=level) for level in (0.95, 0.9)]
        method = "t interval, spread of the new rows"
    return Comparison(
        claimed=claimed,
        claimed_n=claimed_n,
        found=found,
        n=len(scores),
        difference=found - claimed,
        interval=intervals[0],
        within=max(abs(bound) for bound in intervals[1]),
        method=method,
    )


def newcombe_interval(first: float, n: int, second: float, m: int, *, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of `second - first`, two proportions of independent samples of `n` and `m` rows."""
    (low1, high1), (low2, high2) = (_wilson(share, count, level) for share, count in ((first, n), (second, m)))
    difference = second - first
    return (
        difference - math.hypot(second - low2, high1 - first),
        difference + math.hypot(high2 - second, first - low1),
    )


def _wilson(share: float, n: int, level: float) -> tuple[float, float]:
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def _t_interval(claimed: float, n: int, scores: Sequence[float], *, level: float) -> tuple[float, float]:
    from scipy.stats import t

    count = len(scores)
    difference = math.fsum(scores) / count - claimed
    span = max(1.0, max(*scores, claimed) - min(*scores, claimed))
    half = float(t.ppf((1 + level) / 2, count - 1)) * stdev(scores) * math.sqrt(1 / n + 1 / count)
    # Rows that all agree say nothing about rare ones that don't: the width that a score interval has there.
    z = NormalDist().inv_cdf((1 + level) / 2)
    half = max(half, span * z * z / (min(n, count) + z * z)) if half <= 1e-9 * span else half
    return difference - half, difference + half

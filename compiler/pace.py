"""Pace: how many evaluations may run at a time; a number of the user's, or what the server bears."""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ..programs.lm import Cause

_STRAY: Final[frozenset[Cause]] = frozenset({"server", "timeout", "connection", "bad_reply"})
"""Causes that a server under load gives, and now and then one that isn't: a few of them in a round mean nothing."""

_CROWDED: Final = frozenset({503, 529})
"""Statuses by which a server says that it has too much to do, as it does with 429; 529 is Anthropic's."""

_RISE: Final = math.log(1.3)
"""How much slower the calls get, beyond their noise, before the server counts as crowded (in logarithms)."""

_ERRORS: Final = 1.5
"""How many standard errors of either mean count as its noise."""

_RELIEF: Final = math.log(1.3)
"""How much faster they must be once fewer run; else it wasn't the crowd that made them slow."""


@dataclass(frozen=True, slots=True)
class _Trial:
    """A lower limit that was set because calls got slower; taken back if that doesn't make them faster."""

    before: float
    limit: int
    ceiling: int | None


class Pace:
    """A limit on what runs at a time that follows the server; thread-safe, about a microsecond a call.

    It doubles until the server first says no, then goes half of the way back to where that was, again and again, and
    beyond it in small steps. A 429 or a 503 lowers it, as do several failures of another kind in one round: to a half,
    or to three quarters where only a small step went too far. What was in flight then is let through before the next
    decrease, so that a burst of refusals counts once. The limit grows only when it was reached.

    Slower calls lower it too. Latency is heavy-tailed, and it depends on the prompt as much as on the crowd, so that

    - what is compared are means of logarithms, a round's with the lowest round's, each with its standard errors;
    - a lower limit is a trial: where fewer calls at a time aren't any faster, it is taken back, and the calls are
      what they are now.

    The rounds are counted in completions, so that no clock is needed. The growth is that of TCP, with BIC's way back:
    Xu, Harfoush, Rhee, Binary Increase Congestion Control, INFOCOM 2004. What says how far to go down on slow calls
    is Little's law.

    Attributes:
        on_growth: Called after the limit grew, in the thread that reported; it must not block.
    """

    def __init__(self, fixed: int | None = None, *, least: int = 1, first: int = 16, most: int = 128) -> None:
        if fixed is not None:
            least = first = most = fixed
        if not 1 <= least <= most:
            raise ValueError(f"Pace: `1 <= least <= most` must hold, but got least={least}, most={most}")
        self._fixed = fixed is not None
        self._least, self._most = least, most
        self._limit = min(max(first, least), most)
        self._lock = threading.Lock()
        self._flying = 0
        self._ceiling: int | None = None  # where the server last said no; None until it does
        self._grown = True  # since the last decrease
        self._passing = self._limit  # completions that are no measure of this limit: see _raise()
        self._recovering = False  # the limit was lowered, and what was in flight is still coming down
        self._trial: _Trial | None = None
        self._fastest = math.inf
        self._peak = self._done = self._failures = 0
        self._sum = self._squares = 0.0
        self.on_growth: Callable[[], None] | None = None

    @property
    def limit(self) -> int:
        """How many may run now."""
        return self._limit

    @property
    def most(self) -> int:
        """The largest limit there may be."""
        return self._most

    def started(self) -> None:
        """Count one more that runs; what is counted is what the limit is for, such as evaluations."""
        with self._lock:
            self._flying += 1
            if self._flying > self._peak:
                self._peak = self._flying

    def ended(self) -> None:
        """Count one that runs no more."""
        with self._lock:
            self._flying -= 1

    def succeeded(self, seconds: float) -> None:
        """Tell of one call that the server answered, and how long that took, without what was waited before it."""
        if self._fixed:
            return
        with self._lock:
            before = self._limit
            if self._pass():
                return
            value = math.log(max(seconds, 1e-6))
            self._done += 1
            self._sum += value
            self._squares += value * value
            if self._done >= self._size():
                self._end_round()
            grew = self._limit > before
        if grew and self.on_growth is not None:
            self.on_growth()

    def failed(self, cause: Cause, status: int | None = None) -> None:
        """Tell of one call that failed, retried or not; only what load may bring about matters here.

        Args:
            cause: Why.
            status: The HTTP status, where there was one.
        """
        refused = cause == "rate_limited" or status in _CROWDED
        if self._fixed or not (refused or cause in _STRAY):
            return
        with self._lock:
            if self._recovering:
                self._pass()
                return
            self._failures += 1
            if refused or self._failures > max(2, self._size() / 16):
                self._trial = None
                # One small step too far is taken back; a leap, and what a step down didn't help, is halved.
                share = 0.75 if self._grown and self._ceiling is not None else 0.5
                self._lower(int(min(self._limit, self._peak) * share))

    def _pass(self) -> bool:
        """Say whether a completion belongs to an earlier limit."""
        if not self._passing:
            return False
        self._passing -= 1
        if not self._passing:
            self._recovering = False
            self._begin_round()
        return True

    def _begin_round(self) -> None:
        self._done = self._failures = 0
        self._sum = self._squares = 0.0
        self._peak = self._flying

    def _size(self) -> int:
        """Return how many completions make a round."""
        if self._trial is not None:
            return max(self._limit, 64)
        # On the way up to what is known to be borne there's no need to measure well.
        quick = self._ceiling is not None and 2 * self._limit <= self._ceiling
        return self._limit if quick else max(self._limit, 32)

    def _end_round(self) -> None:
        used = self._peak >= self._limit
        mean, error = self._measure()
        trial, self._trial = self._trial, None
        self._begin_round()
        if trial is not None and mean > trial.before - _RELIEF:
            self._fastest, self._ceiling = mean + _ERRORS * error, trial.ceiling
            self._raise(trial.limit)
        elif mean - _ERRORS * error > self._fastest + _RISE:
            self._trial = _Trial(mean, self._limit, self._ceiling)
            share = math.exp(self._fastest - mean)
            self._lower(int(self._limit * min(max(share, 0.25), 0.5)))
        else:
            self._fastest = min(self._fastest, mean + _ERRORS * error)
            if used:
                self._raise(self._limit + self._step())

    def _measure(self) -> tuple[float, float]:
        """Return the mean logarithm of the round's seconds and its standard error, infinite for a small round."""
        count = self._done
        mean = self._sum / count
        if count < 16:
            return mean, math.inf
        variance = max(self._squares / count - mean * mean, 0.0)
        return mean, math.sqrt(variance / (count - 1))

    def _step(self) -> int:
        if self._ceiling is None:
            return self._limit
        small = max(1, self._limit // 16)
        return min(self._limit, max(small, (self._ceiling - self._limit) // 2))

    def _raise(self, limit: int) -> None:
        grown = min(limit, self._most) - self._limit
        if grown <= 0:
            return
        self._limit += grown
        self._grown = True
        # Of those that start together the quick ones end first: wait until the slow ones count as well.
        self._passing = min(2 * grown, self._limit)

    def _lower(self, limit: int) -> None:
        if self._grown:
            self._ceiling = self._limit  # several decreases in a row are one event, such as an outage
        self._grown = False
        self._limit = min(self._limit, max(limit, self._least))
        self._passing = max(self._flying - 1, 0)
        self._recovering = self._passing > 0
        self._begin_round()

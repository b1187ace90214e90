"""Outage: a server that answered before and has stopped to. Who was refused waits, and now and then one of them asks.

A pause costs time and a few attempts, and no score. It ends with the first answer; after `patience` seconds the calls
fail, and the run with them.
"""

import threading
import time
from collections.abc import Callable

from ..programs.lm import LMError

QUICK = 1.0
"""Seconds between two questions at a silent server, in the first minutes."""

SLOW = 15.0
"""Later on."""

MINUTES = 300.0
"""Seconds after which questions become rare."""


class Outage:
    """Whether one server is away, and whose turn it is to ask again.

    Args:
        patience: Seconds to wait at most.
        notice: Told a sentence when a pause begins and when it ends.
        clock: Monotonic seconds.
    """

    def __init__(
        self, patience: float, notice: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._patience = patience
        self._notice = notice
        self._clock = clock
        self._lock = threading.Lock()
        self._answered = False
        self._since: float | None = None
        self._next = 0.0
        self._pause = 0.0
        self._why: LMError | None = None
        self._shut: LMError | None = None

    def now(self) -> float:
        """Return the clock's seconds."""
        return self._clock()

    def turn(self) -> float:
        """Return 0 where the caller may ask now, else the seconds after which to come again.

        Raises:
            LMError: If patience is over, or the server has refused the key or the model: whoever waits fails at once,
                and not one after the other.
        """
        if self._shut is not None:
            raise self._shut.with_attempts(1)
        if self._since is None:
            return 0.0
        with self._lock:
            if self._since is None:
                return 0.0
            now = self._clock()
            left = self._since + self._patience - now
            if left <= 0 and self._why is not None:
                raise self.final(self._why).with_attempts(1)
            if now < self._next:
                return min(self._next - now, left, 0.25)
            self._pause = SLOW if now - self._since > MINUTES else min(QUICK, 2 * self._pause)
            self._next = now + self._pause
            return 0.0

    def answered(self, asked: float) -> None:
        """Note an answer to a call that was made at `asked`: the server is there.

        One that was under way when the pause began says nothing of the server now.
        """
        if self._answered and self._since is None:
            return
        with self._lock:
            self._answered = True
            if self._since is not None and asked >= self._since:
                gone = self._clock() - self._since
                self._since = None
                self._notice(f"The server answers again after {gone:.0f} s.")

    def silent(self, error: LMError) -> bool:
        """Note that a call got no answer in all its attempts; say whether to wait for the server.

        Nobody waits for a server that never answered, nor for one that refuses for good.
        """
        if not error.retryable:
            return False
        with self._lock:
            if not self._answered or self._patience <= 0:
                return False
            now, self._why = self._clock(), error
            if self._since is None:
                self._since, self._pause = now, QUICK / 4
                self._next = now + max(self._pause, error.retry_after or 0.0)
                self._notice(f"{error} Waiting for the server, {self._patience:.0f} s at most; Ctrl-C keeps the run.")
            return now - self._since < self._patience

    def final(self, error: LMError) -> LMError:
        """Return the error that ends the work: a server that has answered is away, its address isn't wrong."""
        if error.cause in ("auth", "unknown_model"):
            self._shut = error
        if error.cause != "connection" or not self._answered:
            return error
        return LMError(str(error), cause="server", attempts=error.attempts)

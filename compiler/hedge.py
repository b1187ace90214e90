"""Hedge: the slowest calls are sent once more, and the first answer counts.

Dean and Barroso, The Tail at Scale (CACM 2013): a second request after a high percentile of the usual wait cuts the
tail for a few per cent more calls. Theirs is the 95th; ours is the 90th, since a row of a program is several calls one
after the other (docs/performance.md). Both calls are counted; the one that comes second is only written down.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from ..programs.lm import LM, Reply, Request

MOST_THREADS = 2048
"""Two for each call that may be in flight; they are started when they are needed."""

SLOW = 0.9
"""The share of calls that are quicker than a slow one."""

ENOUGH = 20
"""Waits that must be known before a call counts as slow."""


@dataclass(frozen=True)
class Second:
    """What a second call needs to know.

    Attributes:
        admit: Says whether it may be made, and counts it.
        late: Told of the answer that came second, or of what came instead of one.
    """

    admit: Callable[[], bool]
    late: Callable[[Reply | BaseException], None]


class Hedge:
    """Sends a slow call a second time.

    Args:
        lm: What is asked.
    """

    def __init__(self, lm: LM) -> None:
        self._lm = lm
        self._waits: deque[float] = deque(maxlen=200)
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="vitrify-hedge")

    def note(self, seconds: float) -> None:
        """Note how long an answer took."""
        with self._lock:
            self._waits.append(seconds)

    def patience(self) -> float | None:
        """Return how long nine tenths of the last calls took at most, in seconds; None while too few are known."""
        with self._lock:
            if len(self._waits) < ENOUGH:
                return None
            return sorted(self._waits)[int(SLOW * len(self._waits))]

    def complete(self, request: Request, again: Second) -> Reply:
        """Return the first answer of one call, or of two where the first is slow."""
        patience = self.patience()
        if patience is None:
            return self._lm.complete(request)
        first = self._pool.submit(self._lm.complete, request)
        done, _ = wait([first], timeout=patience)
        if done or not again.admit():
            return first.result()
        second = self._pool.submit(self._lm.complete, request)
        done, _ = wait([first, second], return_when=FIRST_COMPLETED)
        winner = first if first in done else second
        other = second if winner is first else first
        if winner.exception() is not None:
            winner, other = other, winner
        try:
            return winner.result()
        finally:
            other.add_done_callback(lambda done: again.late(_answer(done)))

    async def acomplete(self, request: Request, again: Second) -> Reply:
        """Return what `complete` returns, without blocking the loop."""
        patience = self.patience()
        if patience is None:
            return await self._lm.acomplete(request)
        first = asyncio.ensure_future(_held(self._lm.acomplete(request)))
        done, _ = await asyncio.wait([first], timeout=patience)
        if done or not again.admit():
            return await first
        second = asyncio.ensure_future(_held(self._lm.acomplete(request)))
        done, _ = await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED)
        winner = first if first in done else second
        other = second if winner is first else first
        if winner.exception() is not None:
            winner, other = other, winner
        try:
            return await winner
        finally:
            other.add_done_callback(lambda done: again.late(_answer(done)))

    def close(self) -> None:
        """Wait for nobody."""
        self._pool.shutdown(wait=False, cancel_futures=True)


async def _held(answer: Awaitable[Reply]) -> Reply:
    return await answer


def _answer(done: "Future[Reply] | asyncio.Future[Reply]") -> Reply | BaseException:
    return asyncio.CancelledError() if done.cancelled() else done.exception() or done.result()

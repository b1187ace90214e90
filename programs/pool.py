"""Pool: the connections to one server that belong to one event loop."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from typing import Any, cast

from .connections import Connections
from .lm import Reply
from .proxied import Proxied
from .site import Site, interrupted


class Pool:
    """The connections to one site on one loop; everything but `abandon` is called on that loop.

    Attributes:
        keeper: What ends with the loop, and closes the pool then; None where the loop is our own.
    """

    def __init__(self, site: Site) -> None:
        self.keeper: AsyncGenerator[None, None] | None = None
        self._site = site
        self._closed = False
        self._connections: Connections | Proxied | None = None
        self._closing: asyncio.Task[None] | None = None
        self._due: dict[asyncio.Task[Any], float] = {}
        self._late: dict[asyncio.Task[Any], int] = {}
        self._alarm: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._interrupted: dict[asyncio.Task[Any], int] = {}

    async def post(self, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        """Return status, headers and content of the server's answer, or raise what `Connections.post` raises.

        TimeoutError is an answer that didn't come in time.
        """
        connections = self._open() if self._connections is None or self._closed else self._connections
        task, site = cast("asyncio.Task[Any]", asyncio.current_task()), self._site
        loop = task.get_loop()
        self._due[task] = due = loop.time() + site.timeout
        if self._alarm is None:
            self._alarm = loop.call_at(due, self._overdue, loop)
        try:
            return await connections.post(body)
        except asyncio.CancelledError:
            # As in asyncio.timeout: a cancellation of our own ends here, one by somebody else goes on.
            before = self._late.get(task)
            if before is None or task.uncancel() > before:
                raise
            raise TimeoutError from None
        finally:
            self._due.pop(task, None)
            self._late.pop(task, None)

    def _overdue(self, loop: asyncio.AbstractEventLoop) -> None:
        """Cancel the attempts whose time is over; one timer for all, where aiohttp has two for each."""
        self._alarm = None
        now = loop.time()
        while self._due:
            task, due = next(iter(self._due.items()))  # all have the same time, so the first ends first
            if due > now:
                self._alarm = loop.call_at(due, self._overdue, loop)
                return
            del self._due[task]
            self._late[task] = task.cancelling()
            task.cancel()

    def _open(self) -> Connections | Proxied:
        if self._closed:
            raise interrupted(self._site.name)
        if self._site.proxy is None:
            self._connections = Connections(self._site, asyncio.get_running_loop())
        else:
            self._connections = Proxied(self._site)
        return self._connections

    async def run(self, answer: Coroutine[Any, Any, Reply]) -> Reply:
        """Return what `answer` gives; when the pool is closed meanwhile, give up and raise LMError."""
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._tasks.add(task)
        try:
            return await answer
        except asyncio.CancelledError:
            before = self._interrupted.get(task)
            if before is None or task.uncancel() > before:
                raise
            raise interrupted(self._site.name) from None
        finally:
            self._tasks.discard(task)
            self._interrupted.pop(task, None)

    async def close(self) -> None:
        """Fail the calls in flight and drop the connections; may be called again, and while it is at work."""
        self._closed = True
        for task in self._tasks - self._interrupted.keys():
            self._interrupted[task] = task.cancelling()
            task.cancel()
        if self._alarm is not None:
            self._alarm.cancel()
        while self._connections is not None:
            if self._closing is None or self._closing.done():
                self._closing = asyncio.create_task(self._drop(self._connections))
            await asyncio.wait({self._closing})

    async def _drop(self, connections: Connections | Proxied) -> None:
        await connections.close()
        self._connections = None

    def abandon(self) -> None:
        """Let go of the connections where the loop is closed already; from any thread, and without a word about it."""
        self._closed = True
        connections, self._connections = self._connections, None
        if connections is None:
            return
        closing = connections.close()
        try:
            closing.send(None)  # without its loop there is nothing that it could wait for
        except (StopIteration, RuntimeError):  # RuntimeError: the loop is closed, says asyncio
            pass
        finally:
            closing.close()


class GuestPools:
    """The pools that live on loops of other people: each is closed with its loop, or with its client."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._pools: dict[asyncio.AbstractEventLoop, Pool] = {}
        self._lock = threading.Lock()
        self._closed = False

    def get(self, loop: asyncio.AbstractEventLoop) -> Pool | None:
        """Return the loop's pool, if it has one."""
        return self._pools.get(loop)

    async def open(self, loop: asyncio.AbstractEventLoop) -> Pool:
        """Give the running loop a pool."""
        pool = Pool(self._site)
        with self._lock:
            if self._closed:
                raise interrupted(self._site.name)
            for other in [other for other in self._pools if other.is_closed()]:
                self._pools.pop(other).abandon()
            self._pools[loop] = pool
        # A loop ends its asynchronous generators before it closes (asyncio.run does, and what else runs loops with
        # care): the one moment at which somebody else's loop tells us that it is over.
        pool.keeper = _kept(pool, lambda: self._pools.pop(loop, None))
        await anext(pool.keeper)
        return pool

    def close(self) -> None:
        """Close all of them, each on its loop; from any thread."""
        with self._lock:
            self._closed = True
            pools, self._pools = self._pools, {}
        for loop, pool in pools.items():
            try:
                # Not by ending the keeper: the loop may be about to, and twice at a time is an error.
                loop.call_soon_threadsafe(_close, loop, pool)
            except RuntimeError:  # closed
                pool.abandon()


async def _kept(pool: Pool, forget: Callable[[], object]) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        forget()
        await pool.close()


def _close(loop: asyncio.AbstractEventLoop, pool: Pool) -> None:
    loop.create_task(pool.close())

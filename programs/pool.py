"""Pool: the connections to one server that belong to one event loop."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from .lm import LMError, Reply

if TYPE_CHECKING:
    import aiohttp


@dataclass(frozen=True)
class Site:
    """Where requests go.

    Attributes:
        name: the model, for messages.
        url: the address that is posted to.
        headers: sent with every request.
        timeout: seconds for one attempt, from connecting to the last byte.
        proxy: the proxy to it, if there is one.
    """

    name: str
    url: str
    headers: Mapping[str, str]
    timeout: float
    proxy: str | None


class Pool:
    """The connections to one site on one loop; everything but `abandon` is called on that loop.

    Attributes:
        keeper: What ends with the loop, and closes the pool then; None where the loop is our own.
    """

    def __init__(self, site: Site) -> None:
        self.keeper: AsyncGenerator[None, None] | None = None
        self._site = site
        self._closed = False
        self._session: aiohttp.ClientSession | None = None
        self._closing: asyncio.Task[None] | None = None
        self._due: dict[asyncio.Task[Any], float] = {}
        self._late: dict[asyncio.Task[Any], int] = {}
        self._alarm: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._interrupted: dict[asyncio.Task[Any], int] = {}

    async def post(self, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        """Return status, headers and content of the server's answer, or raise aiohttp's errors or TimeoutError."""
        session = self._open() if self._session is None or self._closed else self._session
        task, site = cast("asyncio.Task[Any]", asyncio.current_task()), self._site
        loop = task.get_loop()
        self._due[task] = due = loop.time() + site.timeout
        if self._alarm is None:
            self._alarm = loop.call_at(due, self._overdue, loop)
        try:
            async with session.post(site.url, data=body, allow_redirects=False, proxy=site.proxy) as response:
                return response.status, response.headers, await response.read()
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

    def _open(self) -> "aiohttp.ClientSession":
        if self._closed:
            raise interrupted(self._site.name)
        import aiohttp

        site = self._site
        # No limit on connections: who calls owns the concurrency.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30.0),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=site.headers,
            # The whole has its time in `post`; a connection is missed before that.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=min(0.9 * site.timeout, 15.0)),
        )
        return self._session

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
        while self._session is not None:
            if self._closing is None or self._closing.done():
                self._closing = asyncio.create_task(self._drop(self._session))
            await asyncio.wait({self._closing})

    async def _drop(self, session: "aiohttp.ClientSession") -> None:
        await session.close()
        self._session = None

    def abandon(self) -> None:
        """Let go of the connections where the loop is closed already; from any thread, and without a word about it."""
        self._closed = True
        session, self._session = self._session, None
        if session is None:
            return
        closing = session.close()
        try:
            closing.send(None)  # without its loop there is nothing that it could wait for
        except StopIteration:
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


def interrupted(name: str) -> LMError:
    """Return the error of a call whose client is closed meanwhile."""
    return LMError(f"{name}: the client was closed while the call was in flight.", cause="connection", retryable=False)


def proxy_for(url: str) -> str | None:
    """Return the proxy that the environment names for an address; never one for this machine itself.

    Read once per client: aiohttp's `trust_env` looks at the environment for every request, and into ~/.netrc.
    """
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    host = parts.hostname or ""
    if host == "localhost" or host.startswith("127.") or host == "::1" or proxy_bypass(host):
        return None
    proxies = getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")

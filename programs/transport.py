"""One event loop on a thread of its own, with one pool of connections, for callers on any thread or loop."""

import asyncio
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from .lm import LMError, Reply, Request

if TYPE_CHECKING:
    import aiohttp

Answer = Callable[[Request, "Transport"], Awaitable[Reply]]
"""Turns a request into a reply or an LMError, on the transport's loop."""


class Transport:
    """Runs `answer` for requests from any thread and any loop.

    Args:
        name: the model, for messages and the thread's name.
        url: where `post` goes; decides on the proxy.
        headers: sent with every request.
        timeout: seconds for one attempt, from connecting to the last byte.
        answer: returns what answers, or None when its owner is gone; called on the loop.
    """

    def __init__(
        self, name: str, url: str, headers: Mapping[str, str], timeout: float, answer: Callable[[], Answer | None]
    ) -> None:
        self.pid = os.getpid()
        self._name = name
        self._url = url
        self._headers = headers
        self._timeout = timeout
        self._answer = answer
        self._proxy = proxy_for(url)
        self._session: aiohttp.ClientSession | None = None
        self._inbox: deque[_Call] = deque()
        self._awake = False
        self._outboxes: WeakKeyDictionary[asyncio.AbstractEventLoop, _Outbox] = WeakKeyDictionary()
        self._calls: set[_Call] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"vitrify {name}", daemon=True)
        self._thread.start()

    def is_current_thread(self) -> bool:
        """Whether the caller is on the loop's own thread."""
        return threading.current_thread() is self._thread

    def complete(self, request: Request) -> Reply:
        """Return the reply; blocks this thread. Ctrl-C while waiting gives the call up."""
        done = threading.Lock()
        done.acquire()
        call = _Call(request, lambda _: done.release())
        self._submit(call)
        try:
            done.acquire()
        except BaseException:
            self._abandon(call)
            raise
        return call.result()

    async def acomplete(self, request: Request) -> Reply:
        """Return the reply; may be awaited on any other loop. Cancelling it cancels the call."""
        loop = asyncio.get_running_loop()
        outbox = self._outboxes.get(loop)
        if outbox is None:
            outbox = self._outboxes[loop] = _Outbox()
        call = _Call(request, outbox.put)
        call.future = loop.create_future()
        self._submit(call)
        try:
            await call.future
        except asyncio.CancelledError:
            self._abandon(call)
            raise
        return call.result()

    async def post(self, body: bytes) -> "tuple[int, Mapping[str, str], bytes]":
        """Return status, headers and content of the server's answer; runs on the loop, raises aiohttp's errors."""
        if self._session is None:
            import aiohttp

            # No limit on connections: who calls owns the concurrency.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30.0),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=self._timeout, sock_connect=min(self._timeout, 15.0)),
            )
        async with self._session.post(self._url, data=body, allow_redirects=False, proxy=self._proxy) as response:
            return response.status, response.headers, await response.read()

    def close(self) -> None:
        """Fail what is in flight, drop the connections, stop the thread; does nothing in a forked child."""
        if self.pid != os.getpid() or self._loop.is_closed():
            return
        try:
            self._loop.call_soon_threadsafe(self._loop.stop)
        except RuntimeError:  # closed meanwhile
            return
        if not self.is_current_thread():
            self._thread.join(timeout=10.0)

    def _submit(self, call: "_Call") -> None:
        self._inbox.append(call)
        if not self._awake:
            # One wake-up (a system call) for all that arrive before the loop looks; it clears the flag, then looks.
            self._awake = True
            try:
                self._loop.call_soon_threadsafe(self._drain)
            except RuntimeError:  # closed meanwhile
                self._fail_inbox()
        elif self._loop.is_closed():
            self._fail_inbox()

    def _drain(self) -> None:
        """Start a task for every call in the inbox; runs on the loop."""
        self._awake = False
        while self._inbox:
            call = self._inbox.popleft()
            if not call.abandoned:
                self._calls.add(call)
                call.task = self._loop.create_task(self._serve(call))

    async def _serve(self, call: "_Call") -> None:
        """Answer one call and settle it, whatever happens."""
        try:
            answer = self._answer()
            if answer is None:  # the client is gone, and with it everyone who could wait
                raise self._interrupted()
            call.reply = await answer(call.request, self)
        except asyncio.CancelledError:
            call.error = self._interrupted()
            raise
        except BaseException as error:  # noqa: BLE001 (handed to who waits)
            call.error = error
        finally:
            self._calls.discard(call)
            call.wake(call)

    def _abandon(self, call: "_Call") -> None:
        """Cancel a call that nobody waits for any more; from the waiter's thread."""
        call.abandoned = True
        try:
            self._loop.call_soon_threadsafe(lambda: call.task is None or call.task.cancel())
        except RuntimeError:  # closed: nothing is left to cancel
            return

    def _run(self) -> None:
        """Be the thread: run the loop until it is stopped, then leave nothing open and nobody waiting."""
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._shut())
            self._loop.close()
            self._fail_inbox()

    async def _shut(self) -> None:
        """Cancel the calls in flight and close the pool."""
        tasks = [call.task for call in self._calls if call.task is not None]
        for call in self._calls:
            # A task that is cancelled before it began never reaches its own `finally`.
            call.error = self._interrupted()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for call in list(self._calls):
            call.wake(call)
        if self._session is not None:
            await self._session.close()

    def _fail_inbox(self) -> None:
        """Fail the calls that came when the loop was closing."""
        while self._inbox:
            try:
                call = self._inbox.popleft()
            except IndexError:  # another thread took it
                return
            call.error = self._interrupted()
            call.wake(call)

    def _interrupted(self) -> LMError:
        return LMError(
            f"{self._name}: the client was closed while the call was in flight.", cause="connection", retryable=False
        )


class _Call:
    """One request on its way; `wake` tells the waiter that `reply` or `error` is there."""

    __slots__ = ("__weakref__", "abandoned", "error", "future", "reply", "request", "task", "wake")

    def __init__(self, request: Request, wake: "Callable[[_Call], None]") -> None:
        self.request = request
        self.wake = wake
        self.abandoned = False
        self.future: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] | None = None
        self.reply: Reply | None = None
        self.error: BaseException | None = None

    def result(self) -> Reply:
        """Return the reply, or raise the error."""
        if self.reply is not None:
            return self.reply
        assert self.error is not None
        raise self.error


class _Outbox:
    """What is to be told to the waiters on one other loop: one wake-up for all that is ready by then."""

    def __init__(self) -> None:
        self._ready: deque[_Call] = deque()
        self._awake = False

    def put(self, call: _Call) -> None:
        """Tell the call's waiter; from the transport's thread."""
        assert call.future is not None
        self._ready.append(call)
        if not self._awake:
            self._awake = True
            try:
                call.future.get_loop().call_soon_threadsafe(self._tell)
            except RuntimeError:  # that loop is closed, and its waiters with it
                self._awake = False

    def _tell(self) -> None:
        self._awake = False
        while self._ready:
            future = self._ready.popleft().future
            if future is not None and not future.done():
                future.set_result(None)


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

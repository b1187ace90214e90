"""One event loop on a thread of its own, for callers on any thread or loop."""

import asyncio
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

from .lm import Reply, Request
from .pool import GuestPools, Pool
from .site import Site, interrupted

Answer = Callable[[Request, Pool], Awaitable[Reply]]
"""Turns a request into a reply or an LMError, on the pool's loop."""

SETTLED: Final = 64
"""Calls from one loop after which it gets connections of its own: a loop that makes one call and ends shares those of
the transport, handshakes and all, and one that makes many is spared two changes of thread for each."""

T = TypeVar("T")


class Transport:
    """Runs `answer` for requests from any thread and any loop.

    Args:
        site: where requests go.
        answer: returns what answers, or None when its owner is gone; called on the loop.
    """

    def __init__(self, site: Site, answer: Callable[[], Answer | None]) -> None:
        self.pid = os.getpid()
        self._name = site.name
        self._answer = answer
        self._pool = Pool(site)
        self._guests = GuestPools(site)
        self._inbox: deque[_Call] = deque()
        self._awake = False
        self._closing = False
        self._outboxes: WeakKeyDictionary[asyncio.AbstractEventLoop, _Outbox] = WeakKeyDictionary()
        self._calls: set[_Call] = set()
        self._settled: list[_Call] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"vitrify {site.name}", daemon=True)
        self._thread.start()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop."""
        return self._loop

    def is_current_thread(self) -> bool:
        """Whether the caller is on the loop's own thread."""
        return threading.current_thread() is self._thread

    async def pool_here(self) -> Pool | None:
        """Return the pool of the running loop; None for one that hasn't asked often enough to have its own."""
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return self._pool
        pool = self._guests.get(loop)
        if pool is None and self._outbox(loop).calls >= SETTLED:
            return await self._guests.open(loop)
        return pool

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run a coroutine on the loop; closing the transport cancels it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

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
        outbox = self._outbox(loop)
        outbox.calls += 1
        call = _Call(request, outbox.put)
        call.future = loop.create_future()
        self._submit(call)
        try:
            await call.future
        except asyncio.CancelledError:
            self._abandon(call)
            raise
        return call.result()

    def _outbox(self, loop: asyncio.AbstractEventLoop) -> "_Outbox":
        outbox = self._outboxes.get(loop)
        if outbox is None:
            outbox = self._outboxes[loop] = _Outbox()
        return outbox

    def close(self) -> None:
        """Fail what is in flight, drop the connections, stop the thread; does nothing in a forked child."""
        if self.pid != os.getpid():
            return
        self._guests.close()
        try:
            self._loop.call_soon_threadsafe(self._loop.stop)
        except RuntimeError:  # closed
            return
        if not self.is_current_thread():
            self._thread.join(timeout=10.0)

    def _submit(self, call: "_Call") -> None:
        self._inbox.append(call)
        if not self._awake:
            # One wake-up (a system call, at which Python changes threads) for all that comes while the loop is awake.
            self._awake = True
            try:
                self._loop.call_soon_threadsafe(self._drain)
            except RuntimeError:  # closed meanwhile
                self._fail_inbox()
        elif self._loop.is_closed():
            self._fail_inbox()

    def _drain(self) -> None:
        """Start a task for every call in the inbox, and look again until nothing came; runs on the loop."""
        if self._closing:  # who is in the inbox is told at the end
            return
        if not self._inbox:
            self._awake = False
            if not self._inbox:  # whoever puts a call there from here on wakes the loop
                return
            self._awake = True
        while self._inbox:
            call = self._inbox.popleft()
            if not call.abandoned:
                self._calls.add(call)
                call.task = self._loop.create_task(self._serve(call))
        self._loop.call_soon(self._drain)

    async def _serve(self, call: "_Call") -> None:
        """Answer one call and settle it, whatever happens."""
        try:
            answer = self._answer()
            if answer is None:  # the client is gone, and with it everyone who could wait
                raise interrupted(self._name)
            call.reply = await answer(call.request, self._pool)
        except asyncio.CancelledError:
            call.error = interrupted(self._name)
            raise
        except BaseException as error:  # noqa: BLE001 (handed to who waits)
            call.error = error
        finally:
            self._calls.discard(call)
            if not self._settled:
                self._loop.call_soon(self._tell)
            self._settled.append(call)

    def _tell(self) -> None:
        """Wake those who wait for what has been settled: at the end of the loop's turn, not each in the midst of it."""
        settled, self._settled = self._settled, []
        for call in settled:
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
        """End what runs here and close the pool."""
        self._closing = True
        for call in self._calls:
            # A task that is cancelled before it began never reaches its own `finally`.
            call.error = interrupted(self._name)
            if call.task is not None:
                call.task.cancel()
        await self._pool.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            # What was submitted has been told by the pool; what doesn't end at that is cancelled.
            _, late = await asyncio.wait(others, timeout=0.1)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self._tell()
        for call in list(self._calls):
            call.wake(call)

    def _fail_inbox(self) -> None:
        """Fail the calls that came when the loop was closing."""
        while self._inbox:
            try:
                call = self._inbox.popleft()
            except IndexError:  # another thread took it
                return
            call.error = interrupted(self._name)
            call.wake(call)


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
        self.calls = 0
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

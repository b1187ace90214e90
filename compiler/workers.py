"""Workers: the one queue of a compile, by priority; equal priorities in the order they were asked."""

import asyncio
import contextlib
import heapq
import itertools
import queue
import threading
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextvars import Context, ContextVar
from typing import Any, TypeVar

T = TypeVar("T")


class _Item(Future[Any]):
    """Work that waits for its turn, and the future of it."""

    def __init__(self, make: Callable[[], Any], loop: asyncio.AbstractEventLoop | None) -> None:
        super().__init__()
        self.make: Callable[[], Any] | None = make
        self.loop = loop
        self.task: asyncio.Task[Any] | None = None
        self.back: _Item | None = None  # who gets the place: one that gave it away for a while

    def cancel(self) -> bool:
        """Cancel what hasn't begun, and let go of what it holds: its entry may stay in the queue for a while."""
        cancelled = super().cancel()
        if cancelled:
            self.make = None
        return cancelled

    def settle(self, result: Any, error: BaseException | None) -> None:
        """Fulfil the future, unless it was given up meanwhile."""
        with contextlib.suppress(InvalidStateError):
            if error is None:
                self.set_result(result)
            else:
                self.set_exception(error)


_MINE: ContextVar[_Item | None] = ContextVar("_MINE", default=None)
"""What the running task does."""

FIRST = -1
"""The priority of who comes back to a place that was given away."""


class Workers:
    """Work from one queue, the smallest priority first, never more than `limit()` at a time.

    Work is a function, which gets a thread, or a coroutine on somebody's event loop, which needs none. Each is run in
    a context (contextvars) of its own, empty at first. Threads are started when there's work for them and no idle
    one. They are daemons: a call that hangs can't keep the process from ending. After a fork the child has none of
    them and mustn't touch its copy; it makes its own.

    Args:
        limit: How many may run now, or a function that says so: asked whenever something is submitted or ends, and on
            `widen()`. It is called under a lock, so it is quick and knows nothing of the workers. At 0 nothing begins.
            Where it falls, what has begun goes on.
        most: More than so many never run, whatever `limit` says.
    """

    def __init__(self, limit: int | Callable[[], int], most: int | None = None) -> None:
        fixed = limit if isinstance(limit, int) else None
        self._limit: Callable[[], int] = (lambda: fixed) if fixed is not None else limit  # type: ignore[assignment]  # no int any more
        self._most = most if most is not None else fixed
        self._heap: list[tuple[int, int, _Item]] = []
        self._order = itertools.count()
        self._lock = threading.Lock()
        self._running: set[_Item] = set()
        self._aside: set[_Item] = set()
        self._mine = threading.local()  # `item`: what a thread of ours does
        self._empty = threading.Condition(self._lock)
        self._handed: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()  # to idle threads
        self._idle = 0
        self._threads: list[threading.Thread] = []
        self._closed = False

    @property
    def running(self) -> int:
        """How many have begun and not ended, those that gave their place away not counted."""
        return len(self._running)

    @property
    def threads(self) -> int:
        """How many threads were started."""
        return len(self._threads)

    def submit(self, work: Callable[[], T], *, priority: int = 0) -> "Future[T]":
        """Run `work` in a thread, after everything of a smaller priority."""
        return self._submit(_Item(work, None), priority)

    def submit_async(
        self, loop: asyncio.AbstractEventLoop, make: Callable[[], Coroutine[Any, Any, T]], *, priority: int = 0
    ) -> "Future[T]":
        """Run the coroutine that `make` returns as a task on `loop`, which runs in a thread of somebody else.

        `make` is called on the loop when its turn has come.
        """
        return self._submit(_Item(make, loop), priority)

    def aside(self, coming: "Future[T]") -> T:
        """Wait for what other work brings, without a place meanwhile; called in a thread of `submit`.

        Whoever comes back goes before all that wait. A thread that the work itself started keeps the place: others of
        its threads may be at work.
        """
        item: _Item | None = getattr(self._mine, "item", None)
        if item is None or coming.done():
            return coming.result()
        self._leave(item)
        try:
            return coming.result()
        finally:
            back = self._return(item)
            if back is not None:
                back.result()

    async def aaside(self, coming: "Future[T]") -> T:
        """Do the same in a task of `submit_async`."""
        item = _MINE.get()
        if item is None or coming.done():
            return await asyncio.shield(asyncio.wrap_future(coming))
        self._leave(item)
        try:
            return await asyncio.shield(asyncio.wrap_future(coming))
        finally:
            back = self._return(item)
            if back is not None:
                await asyncio.wrap_future(back)

    def _leave(self, item: _Item) -> None:
        """Give an item's place to others."""
        with self._lock:
            self._running.discard(item)
            self._aside.add(item)
            begun = self._fill()
        self._launch(begun, item.loop)

    def _return(self, item: _Item) -> "Future[Any] | None":
        """Ask for a place again; returns None where there is one at once, else what waits for it."""
        with self._lock:
            self._aside.discard(item)
            if self._closed or len(self._running) < self._room():
                self._running.add(item)
                return None
            back = _Item(lambda: None, item.loop)
            back.back = item
            self._aside.add(item)
            heapq.heappush(self._heap, (FIRST, next(self._order), back))
            return back

    def widen(self) -> None:
        """Begin what a raised limit has room for."""
        with self._lock:
            begun = self._fill()
        self._launch(begun)

    def _submit(self, item: _Item, priority: int) -> "Future[Any]":
        with self._lock:
            if self._closed:
                raise RuntimeError("the workers are closed")
            heapq.heappush(self._heap, (priority, next(self._order), item))
            begun = self._fill()
        self._launch(begun)
        return item

    def _fill(self) -> list[_Item]:
        """Take from the queue what may run now; with the lock held."""
        if not self._heap:
            return []
        room = self._room()
        begun = []
        while self._heap and len(self._running) < room:
            item = heapq.heappop(self._heap)[2]
            if item.set_running_or_notify_cancel():
                self._take(item)
                begun.append(item)
        return begun

    def _room(self) -> int:
        room = self._limit()
        return room if self._most is None else min(room, self._most)

    def _take(self, item: _Item) -> None:
        """Give a place to an item, or back to the one that it stands for; with the lock held."""
        self._running.add(item.back or item)
        self._aside.discard(item.back or item)

    def _launch(self, items: list[_Item], here: asyncio.AbstractEventLoop | None = None) -> None:
        """Bring items to a thread or to their loop; `here` is the loop that this code runs on."""
        for item in items:  # it grows where one fails to begin
            if item.back is not None and item.loop is None:
                item.settle(None, None)
            elif item.loop is None:
                items += self._hand(item)
            elif item.loop is here:
                items += self._begin(item)
            else:
                try:
                    item.loop.call_soon_threadsafe(self._launch, [item], item.loop, context=Context())
                except RuntimeError as error:  # the loop is closed
                    item.settle(None, error)
                    items += self._release(item.back or item)

    def _hand(self, item: _Item) -> list[_Item]:
        """Give an item to an idle thread or a new one; returns what begins in its stead where there can be none."""
        with self._lock:
            if self._idle > 0:
                self._idle -= 1
                self._handed.put(item)
                return []
            name = f"vitrify-{len(self._threads)}"
            thread = threading.Thread(target=self._serve, name=name, daemon=True)
            self._threads.append(thread)
        try:
            thread.start()
        except RuntimeError as error:  # the system gives no more of them
            with self._lock:
                self._threads.remove(thread)
                if self._threads:
                    self._idle -= 1  # below 0: so many items wait for a thread to become idle
                    self._handed.put(item)
                    return []
            item.settle(None, error)
            return self._release(item)
        self._handed.put(item)  # not as an argument: a thread keeps those
        return []

    def _serve(self) -> None:
        item = self._handed.get()
        while item is not None:
            make, item.make = item.make, None
            result: Any = None
            failure: BaseException | None = None
            self._mine.item = item
            try:
                result = Context().run(make)  # type: ignore[arg-type]  # begun once, so there is one
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the future
                failure = error
            self._mine.item = None
            item.settle(result, failure)
            make = result = failure = None  # nothing is kept alive while waiting for more
            with self._lock:
                begun = self._vacate(item)
                item = next((other for other in begun if other.loop is None and other.back is None), None)
                if item is not None:
                    begun.remove(item)
                elif self._closed and self._idle >= 0:
                    return
                else:
                    self._idle += 1
            self._launch(begun)
            if item is None:
                item = self._handed.get()

    def _begin(self, item: _Item) -> list[_Item]:
        """Make the task, on its loop; returns what begins in its stead where there is none."""
        if item.back is not None:
            item.settle(None, None)
            return []
        make, item.make = item.make, None
        if item.loop is None or make is None or item.done():  # given up between the queue and the loop
            return self._release(item)
        context = Context()
        context.run(_MINE.set, item)
        try:
            item.task = item.loop.create_task(context.run(make), context=context)
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the future
            item.settle(None, error)
            return self._release(item)
        item.task.add_done_callback(lambda task: self._end(item, task), context=context)
        return []

    def _end(self, item: _Item, task: "asyncio.Task[Any]") -> None:
        """Pass on what became of a task, and begin what has room now; on its loop."""
        item.task = None
        if task.cancelled():
            item.settle(None, CancelledError())
        else:
            error = task.exception()
            item.settle(None if error is not None else task.result(), error)
        self._launch(self._release(item), item.loop)

    def _release(self, item: _Item) -> list[_Item]:
        """Give a place back; returns what begins in its stead."""
        with self._lock:
            return self._vacate(item)

    def _vacate(self, item: _Item) -> list[_Item]:
        """Give a place back, with the lock held."""
        self._running.discard(item)
        self._aside.discard(item)
        if not self._running and not self._aside:
            self._empty.notify_all()
        return self._fill()

    def close(self, *, wait: bool) -> None:
        """Cancel what hasn't begun and let the threads end.

        With `wait`, what has begun is waited for; so this isn't called from inside of any. Without, it is given up: its
        futures raise CancelledError at once, tasks are cancelled, and threads are left to themselves.
        """
        with self._lock:
            self._closed = True
            waiting = [item for _, _, item in self._heap]
            self._heap.clear()
            # Who comes back to a place has begun, and may end.
            back = [item for item in waiting if item.back is not None and item.set_running_or_notify_cancel()]
            for item in back:
                self._take(item)
        self._launch(back)
        for item in waiting:
            if item.back is None:
                item.cancel()
                item.set_running_or_notify_cancel()
        with self._lock:
            running = [*self._running, *self._aside]
        if not wait:
            self._abandon(running)
        with self._lock:
            while wait and (self._running or self._aside):
                self._empty.wait()
            for _ in range(self._idle):
                self._handed.put(None)
            self._idle = 0
            threads = list(self._threads)
        for thread in threads if wait else ():
            thread.join()

    def _abandon(self, items: Iterable[_Item]) -> None:
        for item in items:
            item.settle(None, CancelledError())
            if item.loop is not None:
                with contextlib.suppress(RuntimeError):  # its loop is closed: there's nothing left to cancel
                    item.loop.call_soon_threadsafe(_cancel, item)


def _cancel(item: _Item) -> None:
    if item.task is not None:
        item.task.cancel()

"""Workers: the one queue of a compile, by priority; equal priorities in the order they were asked."""

import itertools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
_Item = tuple[int, int, "Future[Any] | None", Callable[[], Any]]


class Workers:
    """Threads that take work from one queue, the smallest priority first.

    The threads are daemons: a call that hangs can't keep the process from ending.
    """

    def __init__(self, count: int) -> None:
        self._queue: queue.PriorityQueue[_Item] = queue.PriorityQueue()
        self._order = itertools.count()
        self._threads = [threading.Thread(target=self._work, name=f"vitrify-{i}", daemon=True) for i in range(count)]
        self._closed = False
        self._lock = threading.Lock()

    def submit(self, work: Callable[[], T], *, priority: int = 0) -> "Future[T]":
        """Run `work` in a thread, after everything of a smaller priority."""
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the workers are closed")
            if self._threads and not self._threads[0].is_alive():
                for thread in self._threads:
                    thread.start()
            self._queue.put((priority, next(self._order), future, work))
        return future

    def _work(self) -> None:
        while True:
            _, _, future, work = self._queue.get()
            if future is None:
                return
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the future
                future.set_exception(error)
            else:
                future.set_result(result)
            del future, work  # nothing is kept alive while waiting for more

    def close(self, *, wait: bool) -> None:
        """Cancel what hasn't begun and let the threads end; `wait` for what has begun."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            with_threads = bool(self._threads) and self._threads[0].ident is not None
        while True:
            try:
                _, _, future, _ = self._queue.get_nowait()
            except queue.Empty:
                break
            if future is not None:
                future.cancel()
        if with_threads:
            for _ in self._threads:
                self._queue.put((-1, next(self._order), None, _nothing))
            for thread in self._threads if wait else ():
                thread.join()


def _nothing() -> None:
    """Stand in the queue's last items."""

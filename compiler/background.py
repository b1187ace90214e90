"""Background: a pass that runs beside the search, in a thread of its own, on the same queue."""

import contextvars
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


class Background(Generic[T]):
    """Some work under way.

    Args:
        name: Of the thread.
        work: What is to be done; DSPy's settings are those of the caller.
        alarm: Told of an exception at once, so that nobody goes on for nothing.
    """

    def __init__(self, name: str, work: Callable[[], T], alarm: Callable[[BaseException], None]) -> None:
        self._future: Future[T] = Future()
        self._alarm = alarm
        context = contextvars.copy_context()
        # A daemon: on Ctrl-C nobody waits for it.
        threading.Thread(target=context.run, args=(self._run, work), name=f"vitrify-{name}", daemon=True).start()

    def _run(self, work: Callable[[], T]) -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever asks for the result
            self._future.set_exception(error)
            self._alarm(error)
        else:
            self._future.set_result(result)

    @property
    def future(self) -> "Future[T]":
        """The result that is coming."""
        return self._future


class Coming(Sequence[T]):
    """A sequence whose items are still under way: who looks waits for them."""

    def __init__(self, future: "Future[tuple[T, ...]]") -> None:
        self._future = future

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: Any) -> Any:
        return self._future.result()[index]

    def __len__(self) -> int:
        return len(self._future.result())

    def __iter__(self) -> Iterator[T]:
        return iter(self._future.result())

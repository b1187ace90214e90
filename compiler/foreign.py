"""Foreign language models: those that the user's code calls by itself are metered and kept like any other.

A metric may hold a judge with a language model of its own; `forward()` may call a `dspy.LM` directly, or enter
`dspy.context(lm=...)`. Such a model isn't handed through anything of ours. While a compile runs, `dspy.BaseLM.__call__`
therefore asks whether an evaluation is in force, and sends the call through its meter. A plain thread that is started
inside an evaluation gets the evaluation's settings, as `dspy.Parallel` would give them. Outside of evaluations nothing
changes, and when the last compile ends the methods are put back.

A thread that outlives the evaluation it was started in (of a pool that is kept for the next one) can't be told for whom
it works: the call is refused by name.
"""

import contextlib
import contextvars
import threading
from collections.abc import Iterator
from typing import Any

import dspy
from dspy.clients._deprecation import adapter_message_call

from ..programs.bridge import EngineLM
from .metered import Scope

_LOCK = threading.Lock()  # compiles in several threads share the classes that are changed
_ACTIVE: list[tuple[Any, Any, Any]] = []


@contextlib.contextmanager
def metering_foreign_calls() -> Iterator[None]:
    """Meter the calls of foreign language models inside evaluations, for as long as the context lasts."""
    with _LOCK:
        original = _ACTIVE[0] if _ACTIVE else (dspy.BaseLM.__call__, dspy.BaseLM.acall, threading.Thread.start)
        if not _ACTIVE:
            dspy.BaseLM.__call__, dspy.BaseLM.acall = _calls(*original[:2])
            threading.Thread.start = _start(original[2])  # type: ignore[method-assign]  # put back below
        _ACTIVE.append(original)
    try:
        yield
    finally:
        with _LOCK:
            original = _ACTIVE.pop()
            if not _ACTIVE:
                dspy.BaseLM.__call__, dspy.BaseLM.acall, threading.Thread.start = original  # type: ignore[method-assign]  # as it was


def _calls(call: Any, acall: Any) -> tuple[Any, Any]:
    """Return the two methods that ask first whether an evaluation is in force."""

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807 - it becomes the method of that name
        metered = _metered(self)
        if metered is None:
            return call(self, *args, **kwargs)
        with adapter_message_call(metered, kwargs.get("messages")):  # DSPy has had its say on the call itself
            return metered(*args, **kwargs)

    async def acall_(self: Any, *args: Any, **kwargs: Any) -> Any:
        metered = _metered(self)
        if metered is None:
            return await acall(self, *args, **kwargs)
        with adapter_message_call(metered, kwargs.get("messages")):
            return await metered.acall(*args, **kwargs)

    return __call__, acall_


def _start(start: Any) -> Any:
    """Return the method that hands an evaluation's settings to the threads that are started inside it."""

    def started(self: threading.Thread) -> None:
        if dspy.settings.get("vitrify_scope") is not None and not self.name.startswith("vitrify"):
            context, run = contextvars.copy_context(), self.run
            self.run = lambda: context.run(run)  # type: ignore[method-assign]  # of this one thread
        start(self)

    return started


def _metered(lm: Any) -> Any:
    """Return the metered stand-in for a language model, or None where it is to be called as it is."""
    scope: Scope | None = dspy.settings.get("vitrify_scope")
    if scope is None or isinstance(lm, EngineLM) or scope.meter is None:
        return None
    return scope.meter(lm)

"""Foreign language models: those that the user's code calls by itself are metered and kept like any other.

A metric may hold a judge with a language model of its own; `forward()` may call a `dspy.LM` directly, or enter
`dspy.context(lm=...)`. Such a model isn't handed through anything of ours. While a compile runs, `dspy.BaseLM.__call__`
therefore asks whether an evaluation is in force, and sends the call through its meter. Outside of evaluations nothing
changes, and when the last compile ends the method is put back. (Plain threads don't carry DSPy's settings: what they
call isn't seen.)
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import dspy
from dspy.clients._deprecation import adapter_message_call

from ..programs.bridge import EngineLM
from .metered import Scope

_LOCK = threading.Lock()  # compiles in several threads share the class that is changed
_ACTIVE: list[tuple[Any, Any]] = []


@contextlib.contextmanager
def metering_foreign_calls() -> Iterator[None]:
    """Meter the calls of foreign language models inside evaluations, for as long as the context lasts."""
    with _LOCK:
        original = _ACTIVE[0] if _ACTIVE else (dspy.BaseLM.__call__, dspy.BaseLM.acall)
        if not _ACTIVE:
            dspy.BaseLM.__call__, dspy.BaseLM.acall = _calls(*original)
        _ACTIVE.append(original)
    try:
        yield
    finally:
        with _LOCK:
            original = _ACTIVE.pop()
            if not _ACTIVE:
                dspy.BaseLM.__call__, dspy.BaseLM.acall = original


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


def _metered(lm: Any) -> Any:
    """Return the metered stand-in for a language model, or None where it is to be called as it is."""
    if isinstance(lm, EngineLM):
        return None
    scope: Scope | None = dspy.settings.get("vitrify_scope")
    return None if scope is None or scope.meter is None else scope.meter(lm)

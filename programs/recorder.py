"""Record: the calls with effects of a run, as they are written down, and the evaluation that makes them."""

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from typing import Any, Final, Protocol

from ..signatures.canonical import JsonValue
from ..signatures.errors import VitrifyError, WorkError


class Unknown(Enum):
    """What a record says of a call that it has no result of."""

    MISSING = "missing"
    BEGUN = "begun"


MISSING: Final = Unknown.MISSING
"""The call was never begun."""

BEGUN: Final = Unknown.BEGUN
"""The call was begun, and what became of it isn't known."""


class Unrepeatable(WorkError):
    """A call with side effects was begun before the run was interrupted, and isn't made again."""


class RecordedFailure(RuntimeError):
    """A call with side effects failed before the run was interrupted; its exception's class is none of Python's own."""


class Recorder(Protocol):
    """Where calls are written down; its methods are called from any thread and take a lock of their own."""

    def recall(self, key: str) -> "JsonValue | Unknown":
        """Return what `finish` was given for this key, in this process or an earlier one; quick, from memory."""
        ...

    def begin(self, key: str, name: str) -> None:
        """Write down that a call begins; when this returns, a killed process doesn't lose it."""
        ...

    def finish(self, key: str, value: JsonValue) -> None:
        """Write down what became of a call, begun or not; when this returns, a killed process doesn't lose it."""
        ...


class Record:
    """The calls of one run, over its recorder; equal calls in flight are joined."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._flights: dict[str, Future[None]] = {}
        self._owners: dict[str, Callable[..., Any]] = {}
        self._lock = threading.Lock()

    def claim(self, key: str) -> "JsonValue | Unknown | Future[None]":
        """Return what is recorded, or a future to wait for before asking again; MISSING makes the caller the maker.

        The maker must call `release`.
        """
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None:
                return flight
            known = self.recorder.recall(key)
            if known is MISSING:
                self._flights[key] = Future()
            return known

    def release(self, key: str) -> None:
        """Wake those who wait for this call."""
        with self._lock:
            flight = self._flights.pop(key)
        flight.set_result(None)

    def owned(self, name: str, function: Callable[..., Any]) -> bool:
        """Say whether `function` is the one that asked first under this name."""
        with self._lock:
            return self._owners.setdefault(name, function) is function


class Evaluation:
    """What one evaluation has asked for.

    Attributes:
        record: The run's.
        identity: Which evaluation: candidate, example, replicate. The same one, run again, has the same.
        refusal: The first call that couldn't be made or recorded; it sticks where the user's code swallows it.
    """

    def __init__(self, record: Record, identity: str) -> None:
        self.record = record
        self.identity = identity
        self.refusal: VitrifyError | None = None
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def count(self, call: str) -> int:
        """Return how many such calls there were before, and count one more."""
        with self._lock:
            number = self._counts.get(call, 0)
            self._counts[call] = number + 1
            return number

    def refuse(self, error: VitrifyError) -> None:
        """Remember the first refusal."""
        with self._lock:
            self.refusal = self.refusal or error


_EVALUATION: ContextVar[Evaluation | None] = ContextVar("vitrify_effects", default=None)
SETTING: Final = "vitrify_effects"
"""The name under which an evaluator passes the Evaluation to dspy.context: dspy.Parallel carries that, and no other."""


@contextmanager
def recording(record: Record, identity: str) -> Iterator[Evaluation]:
    """Record the calls made inside, as those of this evaluation.

    It follows asyncio tasks. A thread of the user's own isn't seen, as with `dspy.context`; one of dspy.Parallel is,
    where the evaluator also sets `dspy.context(**{SETTING: evaluation})`.
    """
    evaluation = Evaluation(record, identity)
    token = _EVALUATION.set(evaluation)
    try:
        yield evaluation
    finally:
        _EVALUATION.reset(token)


def evaluation_in_force() -> Evaluation | None:
    """Return the evaluation that the running code belongs to, without importing DSPy."""
    own = _EVALUATION.get()
    if own is not None:
        return own
    settings = getattr(sys.modules.get("dspy"), "settings", None)
    found = settings.get(SETTING, None) if settings is not None else None
    return found if isinstance(found, Evaluation) else None

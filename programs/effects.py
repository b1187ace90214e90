"""Effects: lookups and calls with side effects in a user's program, made once in a run however often it is killed.

    @vitrify.cached
    def search(query: str, k: int = 3) -> list[str]: ...      # its result depends on its arguments alone

    @vitrify.once
    async def book(room: str) -> str: ...                     # it changes something outside

Outside of a compile both are the functions that they wrap.
"""

import builtins
import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar, cast

from ..signatures.canonical import JsonValue, same_json
from ..signatures.errors import ProgramError, VitrifyError, WorkError
from .recorder import BEGUN, MISSING, Evaluation, Record, RecordedFailure, Unknown, Unrepeatable, evaluation_in_force

P = ParamSpec("P")
R = TypeVar("R")


_INSIDE: ContextVar[frozenset[str]] = ContextVar("vitrify_effects_inside", default=frozenset())
"""The calls that the running code is part of."""


def cached(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a lookup (retrieval, search) whose result depends on its arguments alone.

    In a compile each distinct call is made once a run, and taken from the run's record after an interruption.
    Arguments and result are JSON values. Of a method's object only public attributes that are texts, numbers or
    booleans tell calls apart, and so for what a nested function has from outside. An exception isn't recorded: who
    asks next makes the call again.
    """
    return _wrapped(function, once=False)


def once(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a call with side effects: an evaluation that is taken up again doesn't repeat it.

    In a compile the n-th call with the same arguments in an evaluation (candidate, example, replicate) is made at most
    once, ever, and then answered from the run's record. Arguments and result are JSON values. An exception is an
    answer too: it is raised again, as itself where it is one of Python's own, else as RecordedFailure. What was begun
    before a kill and has no result raises Unrepeatable; so does what a VitrifyError or a cancellation cut short. What
    a thread of the program's own calls isn't recorded (see `recording`).
    """
    return _wrapped(function, once=True)


def _wrapped(function: Callable[P, R], *, once: bool) -> Callable[P, R]:
    mark = "once" if once else "cached"
    if not callable(function) or isinstance(function, staticmethod) or not hasattr(function, "__qualname__"):
        raise ProgramError(
            f"vitrify.{mark} `marks a function`, but got {type(function).__name__}; under @classmethod and "
            "@staticmethod it is the inner one."
        )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ProgramError(
            f"vitrify.{mark} `marks a function that returns its result`, but {function.__qualname__} is a generator; "
            "return a list."
        )
    kind = _Kind(function, once)

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def later(*args: P.args, **kwargs: P.kwargs) -> Any:
            call = kind.call(args, kwargs)
            if call is None:
                return await function(*args, **kwargs)
            while isinstance(known := call.claim(), Future):
                import asyncio  # not before it is needed: it is most of what this module would load

                await asyncio.shield(asyncio.wrap_future(known))
            if known is not MISSING:
                return call.answer(known)
            with call.making():
                return call.keep(await function(*args, **kwargs))

        return cast("Callable[P, R]", later)

    @functools.wraps(function)
    def now(*args: P.args, **kwargs: P.kwargs) -> R:
        call = kind.call(args, kwargs)
        if call is None:
            return function(*args, **kwargs)
        while isinstance(known := call.claim(), Future):
            known.result()
        if known is not MISSING:
            return cast("R", call.answer(known))
        with call.making():
            return call.keep(function(*args, **kwargs))

    return now


class _Kind:
    """A marked function: its name, and what a call of it is."""

    def __init__(self, function: Callable[..., Any], once: bool) -> None:
        self.function = function
        self.once = once
        self.shown = function.__qualname__
        self.name = f"{function.__module__}.{function.__qualname__}"
        self.signature = inspect.signature(function)
        first = next(iter(self.signature.parameters), None)
        *_, owner, _ = ["<locals>", *function.__qualname__.split(".")]
        self.object = first if first in ("self", "cls") and owner != "<locals>" else None

    def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> "_Call | None":
        """Return the call, or None where it is none of a compile's, or one that Python refuses anyway."""
        evaluation = evaluation_in_force()
        if evaluation is None:
            return None
        try:
            arguments = dict(self.signature.bind(*args, **kwargs).arguments)
        except TypeError:
            return None
        owner = arguments.pop(self.object, None) if self.object is not None else None
        try:
            known = ["once" if self.once else "cached", self.name, self._text(arguments)]
            if self.once:
                known = [*known, evaluation.identity]
                known.append(str(evaluation.count(_digest(known))))
            else:
                known += [_about(owner), self._surroundings(evaluation.record)]
        except VitrifyError as error:
            evaluation.refuse(error)
            raise
        key = _digest(known)
        if key in _INSIDE.get():
            return None  # it calls itself: waiting for itself would be for ever
        return _Call(self, evaluation, key, arguments)

    def _text(self, arguments: dict[str, Any]) -> str:
        for name, value in arguments.items():
            kind = self.signature.parameters[name].kind
            whole = list(value) if kind is inspect.Parameter.VAR_POSITIONAL else value
            if not _is_json(whole):
                raise ProgramError(
                    f"{self.shown} was called with {name}={_short(value)}: `arguments and result of a function marked "
                    "vitrify.cached or vitrify.once are JSON values`; pass text, numbers, lists and dicts."
                )
        return json.dumps(arguments, sort_keys=True)

    def _surroundings(self, record: Record) -> str:
        """Return what a nested function has from outside, as text."""
        cells = getattr(self.function, "__closure__", None) or ()
        names = getattr(getattr(self.function, "__code__", None), "co_freevars", ())
        values = {}
        for name, cell in zip(names, cells, strict=False):
            try:
                values[name] = cell.cell_contents
            except ValueError:  # not yet assigned
                continue
        text = json.dumps({name: value for name, value in values.items() if _plain(value)}, sort_keys=True)
        whole = all(_plain(value) for value in values.values())
        if not whole and not record.owned(f"{self.name} {text}", self.function):
            raise ProgramError(
                f"There are several functions {self.shown}: `a function marked vitrify.cached is known by its module, "
                "its name and the texts and numbers around it`; pass what tells them apart as an argument."
            )
        return text


class _Call:
    """One call of a marked function in an evaluation."""

    def __init__(self, kind: _Kind, evaluation: Evaluation, key: str, arguments: Mapping[str, Any]) -> None:
        self._kind = kind
        self._evaluation = evaluation
        self._record = evaluation.record
        self._key = key
        self._arguments = arguments

    def claim(self) -> "JsonValue | Unknown | Future[None]":
        """See `Record.claim`."""
        with self._sticking():
            known = self._record.claim(self._key)
            if known is not BEGUN:
                return known
            shown = ", ".join(f"{name}={_short(value)}" for name, value in self._arguments.items())
            raise Unrepeatable(
                f"{self._kind.shown}({shown}) was begun before the run was interrupted, and its result isn't known: `a "
                "call marked vitrify.once is made at most once`; see what it did, then start anew with another run "
                "directory, or mark it vitrify.cached if repeating it does no harm."
            )

    def answer(self, known: "JsonValue | Unknown") -> Any:
        """Return the recorded result, or raise the recorded failure."""
        if isinstance(known, dict) and "value" in known:
            return json.loads(json.dumps(known["value"]))  # the caller's own: it may change it
        if isinstance(known, dict) and isinstance(known.get("error"), dict):
            raise _failure(self._kind.shown, cast("dict[str, Any]", known["error"]))
        with self._sticking():
            raise WorkError(
                f"The run's record of {self._kind.shown} is damaged; start anew with another run directory."
            )

    @contextmanager
    def making(self) -> Iterator[None]:
        """Make the call inside: it is written down before and, by `keep` or as a failure, after."""
        token = _INSIDE.set(_INSIDE.get() | {self._key})
        try:
            if self._kind.once:
                with self._sticking():
                    self._record.recorder.begin(self._key, self._kind.name)
            try:
                yield
            except VitrifyError:
                raise  # of the compile, not of the function
            except Exception as error:
                if self._kind.once:
                    self._finish({"error": _described(error)})
                raise
        finally:
            _INSIDE.reset(token)
            self._record.release(self._key)

    def keep(self, result: R) -> R:
        """Write the result down and return it."""
        if not _is_json(result):
            with self._sticking():
                raise ProgramError(
                    f"{self._kind.shown} returned {_short(result)}: `arguments and result of a function marked "
                    "vitrify.cached or vitrify.once are JSON values`; return text, numbers, lists and dicts."
                )
        self._finish({"value": json.loads(json.dumps(result))})
        return result

    def _finish(self, value: JsonValue) -> None:
        with self._sticking():
            self._record.recorder.finish(self._key, value)

    @contextmanager
    def _sticking(self) -> Iterator[None]:
        try:
            yield
        except VitrifyError as error:
            self._evaluation.refuse(error)
            raise


def _digest(parts: list[str]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _plain(value: Any) -> bool:
    return type(value) in (str, int, float, bool) or value is None


def _about(owner: Any) -> str:
    """Return what tells the objects of a method apart, as text."""
    if owner is None:
        return ""
    own = owner if isinstance(owner, type) else type(owner)
    held = {} if isinstance(owner, type) else getattr(owner, "__dict__", {})
    plain = {name: value for name, value in list(held.items()) if not name.startswith("_") and _plain(value)}
    return json.dumps([f"{own.__module__}.{own.__qualname__}", plain], sort_keys=True)


def _is_json(value: Any) -> bool:
    try:
        return same_json(value)
    except RecursionError:
        return False


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - it is the user's
        text = type(value).__name__
    return text if len(text) <= 80 else text[:77] + "..."


def _described(error: Exception) -> JsonValue:
    # A lone surrogate in a message is no reason to lose what became of the call.
    message = str(error).encode(errors="replace").decode()
    arguments = list(error.args) if _is_json(list(error.args)) else [message]
    kind = type(error)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return {"type": name, "message": message, "args": arguments}


def _failure(shown: str, error: Mapping[str, Any]) -> Exception:
    """Return the exception that was recorded."""
    name, message = str(error.get("type")), str(error.get("message"))
    own = getattr(builtins, name, None)
    if isinstance(own, type) and issubclass(own, Exception):
        try:
            return own(*error.get("args", [message]))
        except TypeError:
            pass
    return RecordedFailure(f"{shown} raised {name}: {message}")

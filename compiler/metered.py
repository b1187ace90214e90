"""MeteredLM: a language model whose every call goes through the ledger and the meter, charged to an evaluation."""

import asyncio
import random
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from ..programs.lm import LM, LMError, Reply, Request, Retry
from ..signatures.canonical import digest
from ..signatures.prompt import Capabilities
from .budget import Meter
from .ledger import Ledger
from .outcome import Cost


class Scope:
    """What one evaluation asked for; a refusal sticks to it even where the user's code swallows the exception.

    Attributes:
        meter: Returns the metered stand-in for a language model that the user's code calls by itself.
        refusal: The first failure of the infrastructure, or None.
    """

    def __init__(self, meter: "Callable[[Any], Any] | None" = None) -> None:
        self.meter = meter
        self._seen: dict[str, Reply] = {}
        self._lock = threading.Lock()
        self._reparsed = 0
        self.refusal: Exception | None = None

    def charge(self, key: str, reply: Reply) -> None:
        """Charge a reply to this evaluation, once for each distinct request."""
        with self._lock:
            self._seen.setdefault(key, reply)

    def refuse(self, error: Exception) -> None:
        """Remember the first failure of the infrastructure."""
        with self._lock:
            self.refusal = self.refusal or error

    def reparsed(self, path: str) -> None:
        """Count a reply that couldn't be parsed and was asked for again in another format."""
        with self._lock:
            self._reparsed += 1

    @property
    def cost(self) -> Cost:
        """What was asked for so far."""
        with self._lock:
            return Cost({key: reply.usage for key, reply in self._seen.items()}, self._reparsed)


class MeteredLM:
    """An LM that asks the ledger first, then the meter, then the model; equal requests in flight are joined.

    Every attempt at the server is counted: those that `retry` asks for here, and those that a client makes itself.
    """

    def __init__(
        self,
        inner: LM,
        ledger: Ledger,
        meter: Meter,
        scope: Callable[[], Scope | None],
        retry: Retry = Retry(attempts=1),  # noqa: B008 (frozen)
    ) -> None:
        self._inner = inner
        self._ledger = ledger
        self._meter = meter
        self._scope = scope
        self._retry = retry
        self._closed = threading.Event()
        self._flying: dict[str, Future[Reply]] = {}
        self._lock = threading.Lock()
        self.name = inner.name
        self.endpoint = inner.endpoint

    @property
    def capabilities(self) -> Capabilities:
        """What the model can do."""
        return self._inner.capabilities

    def key(self, request: Request) -> str:
        """Return the identity of a request at this server."""
        return digest([self.endpoint, request.key])

    def complete(self, request: Request) -> Reply:
        """Return the reply, paid at most once."""
        key, scope = self.key(request), self._scope()
        known, mine = self._join(key)
        if mine is not None:
            try:
                known = self._settle(key, mine, self._ask(request))
            except BaseException as error:
                self._fail(key, mine, scope, error)
                raise
        try:
            reply = known if isinstance(known, Reply) else known.result()
        except Exception as error:
            self._refuse(scope, error)
            raise
        if scope is not None:
            scope.charge(key, reply)
        return reply

    async def acomplete(self, request: Request) -> Reply:
        """Return the reply, paid at most once, without blocking the loop."""
        key, scope = self.key(request), self._scope()
        known, mine = self._join(key)
        if mine is not None:
            try:
                known = self._settle(key, mine, await self._aask(request))
            except BaseException as error:
                self._fail(key, mine, scope, error)
                raise
        try:
            reply = known if isinstance(known, Reply) else await asyncio.shield(asyncio.wrap_future(known))
        except Exception as error:
            self._refuse(scope, error)
            raise
        if scope is not None:
            scope.charge(key, reply)
        return reply

    def _ask(self, request: Request) -> Reply:
        """Return the model's reply; the meter admits every attempt."""
        attempt = 1
        while True:
            self._meter.admit()
            try:
                reply = self._inner.complete(request)
            except LMError as error:
                if self._closed.wait(self._pause(attempt, error)):
                    raise
                attempt += 1
            else:
                self._meter.repeated(reply.attempts - 1)
                return reply if attempt == 1 else replace(reply, attempts=reply.attempts + attempt - 1)

    async def _aask(self, request: Request) -> Reply:
        attempt = 1
        while True:
            self._meter.admit()
            try:
                reply = await self._inner.acomplete(request)
            except LMError as error:
                await asyncio.sleep(self._pause(attempt, error))
                attempt += 1
            else:
                self._meter.repeated(reply.attempts - 1)
                return reply if attempt == 1 else replace(reply, attempts=reply.attempts + attempt - 1)

    def _pause(self, attempt: int, error: LMError) -> float:
        """Return the seconds to wait before the next attempt, or raise the error that there is none."""
        if self._closed.is_set():
            raise error  # given up by us, as by a kill: what was in flight may be asked again
        self._meter.repeated(error.attempts - 1)
        self._meter.failed()
        delay = self._retry.delay(attempt, error, random.random())
        if delay is None:
            self._ledger.add_failure(attempt)
            raise error if attempt == 1 else error.with_attempts(attempt)
        return delay

    def _join(self, key: str) -> "tuple[Any, Future[Reply] | None]":
        """Return a reply or the future of one in flight; or, second, the future that the caller must fulfil."""
        with self._lock:
            reply = self._ledger.reply(key)
            if reply is not None:
                self._meter.served()
                return reply, None
            flying = self._flying.get(key)
            if flying is not None:
                return flying, None
            mine: Future[Reply] = Future()
            self._flying[key] = mine
            return mine, mine

    def _settle(self, key: str, mine: "Future[Reply]", reply: Reply) -> Reply:
        self._meter.paid(reply.usage)
        self._ledger.add_reply(key, reply)
        with self._lock:
            self._flying.pop(key, None)
        mine.set_result(reply)
        return reply

    def _fail(self, key: str, mine: "Future[Reply]", scope: Scope | None, error: BaseException) -> None:
        with self._lock:
            self._flying.pop(key, None)
        mine.set_exception(error)
        mine.exception()  # nobody may be waiting for it
        self._refuse(scope, error)

    def _refuse(self, scope: Scope | None, error: BaseException) -> None:
        # A prompt that doesn't fit is the candidate's own fault, not the server's.
        overflow = isinstance(error, LMError) and error.cause == "context_overflow"
        if scope is not None and isinstance(error, Exception) and not overflow:
            scope.refuse(error)

    def close(self) -> None:
        """Close the model's connections, and wait for no further attempt."""
        self._closed.set()
        self._inner.close()

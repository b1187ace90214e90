"""MeteredLM: a language model whose every call goes through the ledger and the meter, charged to an evaluation."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ..programs.lm import LM, LMError, Reply, Request
from ..signatures.canonical import digest
from ..signatures.prompt import Capabilities
from .budget import Meter
from .ledger import Ledger
from .outcome import Cost


class Scope:
    """What one evaluation asked for; a refusal sticks to it even where the user's code swallows the exception."""

    def __init__(self) -> None:
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
        total = Cost(reparsed=self._reparsed)
        for reply in self._seen.values():
            total += Cost(1, reply.usage)
        return total


class MeteredLM:
    """An LM that asks the ledger first, then the meter, then the model; equal requests in flight are joined."""

    def __init__(self, inner: LM, ledger: Ledger, meter: Meter, scope: Callable[[], Scope | None]) -> None:
        self._inner = inner
        self._ledger = ledger
        self._meter = meter
        self._scope = scope
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
                self._meter.admit()
                known = self._settle(key, mine, self._inner.complete(request))
            except BaseException as error:
                self._fail(key, mine, scope, error)
                raise
        try:
            reply = known if isinstance(known, Reply) else known.result()
        except Exception as error:
            self._refuse(scope, error)
            raise
        self._meter.charge(key, reply.usage)
        if scope is not None:
            scope.charge(key, reply)
        return reply

    async def acomplete(self, request: Request) -> Reply:
        """Return the reply, paid at most once, without blocking the loop."""
        key, scope = self.key(request), self._scope()
        known, mine = self._join(key)
        if mine is not None:
            try:
                self._meter.admit()
                known = self._settle(key, mine, await self._inner.acomplete(request))
            except BaseException as error:
                self._fail(key, mine, scope, error)
                raise
        try:
            reply = known if isinstance(known, Reply) else await asyncio.wrap_future(known)
        except Exception as error:
            self._refuse(scope, error)
            raise
        self._meter.charge(key, reply.usage)
        if scope is not None:
            scope.charge(key, reply)
        return reply

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
        """Close the model's connections."""
        self._inner.close()

"""MeteredLM: a language model whose every call goes through the ledger and the meter, charged to an evaluation.

One call is a generator, `_steps`, that says what it waits for: the server, a pause, another call's reply. Two drivers
run it, one in the caller's thread and one on the caller's loop.
"""

import asyncio
import random
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..programs.lm import LM, LMError, Reply, Request, Retry, Usage
from ..signatures.canonical import digest
from ..signatures.errors import RequestError
from ..signatures.prompt import Capabilities
from .budget import BudgetExhausted, Price, Role
from .hedge import Hedge, Second
from .ledger import Ledger
from .meter import Asked, Charge, Meter
from .outage import Outage
from .outcome import Cost
from .pace import Pace

if TYPE_CHECKING:
    from ..programs.cache import ReplyCache
    from .workers import Workers

Steps = Generator["float | Future[Reply] | None", Any, Reply]
"""What a call waits for: seconds, another call's reply, or (None) the server's."""


class Scope:
    """What one evaluation asked for; a refusal sticks to it even where the user's code swallows the exception.

    Attributes:
        meter: Returns the metered stand-in for a language model that the user's code calls by itself.
        role: Who its calls are made for.
        certifying: Whether the sealed test needs them.
        refusal: The first failure of the infrastructure, or None.
        over: Whether the evaluation has ended; who still calls then belongs to nobody.
        places: Where a place is given away while the evaluation waits for another one's call, or None.
    """

    def __init__(
        self,
        meter: "Callable[[Any], Any] | None" = None,
        role: Role = "task",
        *,
        certifying: bool = False,
        places: "Workers | None" = None,
    ) -> None:
        self.meter = meter
        self.role: Role = role
        self.certifying = certifying
        self.places = places
        self._seen: dict[str, Charge] = {}
        self._lock = threading.Lock()
        self._reparsed = 0
        self.refusal: Exception | None = None
        self.over = False

    def charge(self, key: str, charge: Charge) -> None:
        """Charge a request to this evaluation, once for each distinct one."""
        with self._lock:
            self._seen.setdefault(key, charge)

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
            return Cost(dict(self._seen), self._reparsed)


@dataclass
class Flights:
    """The calls in flight, by key; shared by all models of a run, so that equal requests are paid once."""

    calls: dict[str, "Future[Reply]"] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class Manners:
    """How a model's server is treated.

    Attributes:
        retry: How failed attempts are repeated.
        price: Dollars per token, where it is known.
        patience: Seconds to wait for a server that answered before.
        hedge: Whether the slowest calls are sent once more.
        weighed: Whether a limit is in tokens or dollars, so that each call's need is estimated.
        pace: Told how the server fares.
        cache: Replies that other runs paid for.
        notice: Told a sentence that somebody who watches should read.
    """

    retry: Retry = Retry(attempts=1)  # noqa: RUF009 (frozen)
    price: Price | None = None
    patience: float = 0.0
    hedge: bool = False
    weighed: bool = False
    pace: Pace | None = None
    cache: "ReplyCache | None" = None
    notice: Callable[[str], None] = lambda sentence: None


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
        manners: Manners = Manners(),
        flights: Flights | None = None,
    ) -> None:
        self._inner = inner
        self._ledger = ledger
        self._meter = meter
        self._scope = scope
        self._manners = manners
        self._outage = Outage(manners.patience, manners.notice)
        self._hedge = Hedge(inner) if manners.hedge else None
        self._closed = threading.Event()
        self._flights = flights or Flights()
        self._density = 1.0
        self.name = inner.name
        self.endpoint = inner.endpoint

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that the model's client runs on, or None where it has none."""
        loop: asyncio.AbstractEventLoop | None = getattr(self._inner, "loop", None)
        return loop

    @property
    def capabilities(self) -> Capabilities:
        """What the model can do."""
        return self._inner.capabilities

    def key(self, request: Request) -> str:
        """Return the identity of a request at this server."""
        return digest([self.endpoint, request.key])

    def complete(self, request: Request) -> Reply:
        """Return the reply, paid at most once."""
        scope = self._scope()
        steps = self._steps(request, scope)
        resume: Callable[[Any], Any] = steps.send
        value: Any = None
        try:
            while True:
                step = resume(value)
                resume = steps.send
                try:
                    if step is None:
                        value = self._ask(request, scope)
                    elif isinstance(step, float):
                        value = self._closed.wait(step)
                    else:
                        places = None if scope is None else scope.places
                        value = step.result() if places is None else places.aside(step)
                except BaseException as error:  # noqa: BLE001 - the generator decides
                    resume, value = steps.throw, error
        except StopIteration as done:
            reply: Reply = done.value
            return reply

    async def acomplete(self, request: Request) -> Reply:
        """Return the reply, paid at most once, without blocking the loop."""
        return await self.acomplete_for(request, self._scope())

    async def acomplete_for(self, request: Request, scope: Scope | None) -> Reply:
        """Return the reply, charged to the evaluation that `scope` stands for."""
        steps = self._steps(request, scope)
        resume: Callable[[Any], Any] = steps.send
        value: Any = None
        try:
            while True:
                step = resume(value)
                resume = steps.send
                try:
                    if step is None:
                        value = await self._aask(request, scope)
                    elif isinstance(step, float):
                        await asyncio.sleep(step)
                        value = None
                    else:
                        places = None if scope is None else scope.places
                        coming = asyncio.shield(asyncio.wrap_future(step)) if places is None else places.aaside(step)
                        value = await coming
                except BaseException as error:  # noqa: BLE001 - the generator decides
                    resume, value = steps.throw, error
        except StopIteration as done:
            reply: Reply = done.value
            return reply

    def _ask(self, request: Request, scope: Scope | None) -> Reply:
        if self._hedge is None:
            return self._inner.complete(request)
        return self._hedge.complete(request, self._second(request, scope))

    async def _aask(self, request: Request, scope: Scope | None) -> Reply:
        if self._hedge is None:
            return await self._inner.acomplete(request)
        return await self._hedge.acomplete(request, self._second(request, scope))

    def _steps(self, request: Request, scope: Scope | None) -> Steps:
        """Make one call: from the ledger, with another evaluation's call, or paid."""
        key = self.key(request)
        if scope is not None and scope.over:
            raise LMError(
                f"{self.name} was called from a thread that outlives its evaluation: `a call belongs to one "
                "evaluation`, and a pool that is kept between calls of forward() can't say to which; make the pool in "
                "forward(), or use dspy.Parallel.",
                cause="bad_request",
            )
        try:
            known, mine = self._join(key)
            if mine is None:
                reply: Reply = known if isinstance(known, Reply) else (yield known)
            else:
                try:
                    reply = self._shared(key) or (yield from self._paid(request, key, scope))
                except BaseException as error:
                    with self._flights.lock:
                        self._flights.calls.pop(key, None)
                    mine.set_exception(error)
                    mine.exception()  # nobody may be waiting for it
                    raise
                with self._flights.lock:
                    self._flights.calls.pop(key, None)
                mine.set_result(reply)
        except Exception as error:
            # A prompt that doesn't fit is the candidate's own fault, not the server's.
            if scope is not None and not (isinstance(error, LMError) and error.cause == "context_overflow"):
                scope.refuse(error)
            raise
        if scope is not None:
            price = self._manners.price
            scope.charge(key, Charge(reply.usage, scope.role, None if price is None else price.of(reply.usage)))
        return reply

    def _join(self, key: str) -> "tuple[Any, Future[Reply] | None]":
        """Return a reply or the future of one in flight; or, second, the future that the caller must fulfil."""
        with self._flights.lock:
            flying = self._flights.calls.get(key)
            if flying is not None:
                return flying, None
            if not self._ledger.knows(key):
                mine: Future[Reply] = Future()
                self._flights.calls[key] = mine
                return mine, mine
        self._meter.served()
        return self._ledger.reply(key), None

    def _shared(self, key: str) -> Reply | None:
        """Return a reply that another run paid for, written down as this run's."""
        cache = self._manners.cache
        reply = None if cache is None else cache.get(key)
        if reply is not None:
            self._ledger.add_shared(key, reply)
            self._meter.served()
        return reply

    def _paid(self, request: Request, key: str, scope: Scope | None) -> Steps:
        """Ask the server until it answers; the meter admits every attempt."""
        asked, attempt = self._asked(request, scope), 1
        if self._meter.priced and self._manners.price is None:
            raise RequestError(
                f"`budget.dollars` needs a price, and nobody knows that of {self.name}, which program or metric "
                "call; give it in dollars per million prompt and completion tokens with Options(price=(0.15, 0.60)) "
                "or --price 0.15,0.60."
            )
        while True:
            if self._closed.is_set():
                # Nothing is written down for a call that nobody makes any more.
                raise LMError(f"{self.name}: the run was stopped.", cause="connection", retryable=False)
            while (wait := self._outage.turn()) > 0:
                yield wait
            while not self._meter.admit(asked):
                yield 0.02
            self._ledger.add_attempt(key, asked.role, self.name, certifying=asked.certifying)
            began = self._outage.now()
            try:
                reply: Reply = yield None
            except LMError as error:
                if self._closed.is_set():
                    raise  # given up by us, as by a kill: what was in flight may be asked again
                wait = self._failed(key, asked, attempt, error)
                attempt += 1
                if wait > 0:
                    yield wait
            except BaseException:
                self._meter.settle(asked, None)
                raise
            else:
                self._answered(request, key, asked, reply, began)
                return reply if attempt == 1 else replace(reply, attempts=reply.attempts + attempt - 1)

    def _asked(self, request: Request, scope: Scope | None) -> Asked:
        need = Usage()
        if self._manners.weighed:
            size = sum(len(str(message.get("content") or "").encode()) for message in request.messages)
            most = request.params.get("max_tokens") or request.params.get("max_completion_tokens") or 0
            need = Usage(int(size * self._density) + 64, int(most) if isinstance(most, int | float) else 0)
        if scope is None:
            return Asked(price=self._manners.price, need=need)
        return Asked(scope.role, scope.certifying, self._manners.price, need)

    def _answered(self, request: Request, key: str, asked: Asked, reply: Reply, began: float) -> None:
        """Write the reply down and count it; nobody has seen it before."""
        seconds = self._outage.now() - began
        self._meter.settle(asked, reply.usage, reply.attempts)
        self._ledger.add_reply(key, asked.role, self.name, reply, seconds)
        self._outage.answered(began)
        if self._manners.pace is not None:
            self._manners.pace.succeeded(seconds)
        if self._hedge is not None:
            self._hedge.note(seconds)
        if self._manners.cache is not None:
            self._manners.cache.put(key, reply)
        if self._manners.weighed and reply.usage.prompt_tokens:
            # Tokens a byte, with a margin: one at first, since no tokenizer needs more.
            size = sum(len(str(message.get("content") or "").encode()) for message in request.messages)
            seen = 1.25 * reply.usage.prompt_tokens / max(1, size)
            self._density = seen if self._density == 1.0 else max(self._density, seen)

    def _failed(self, key: str, asked: Asked, attempt: int, error: LMError) -> float:
        """Count an attempt that came to nothing; return the seconds to wait, or raise the error that there is none."""
        self._meter.settle(asked, None, error.attempts)
        self._ledger.add_failure(key, asked.role, self.name, error.cause, error.attempts)
        if self._manners.pace is not None:
            self._manners.pace.failed(error.cause, error.status)
        delay = self._manners.retry.delay(attempt, error, random.random())
        if delay is not None:
            return delay
        if self._outage.silent(error):
            return 0.0
        error = self._outage.final(error)
        raise error if attempt == 1 else error.with_attempts(attempt)

    def _second(self, request: Request, scope: Scope | None) -> Second:
        """Return how a slow call is sent once more, counted like any other."""
        key, asked = self.key(request), self._asked(request, scope)

        def admit() -> bool:
            try:
                if self._closed.is_set() or not self._meter.admit(asked):
                    return False
            except BudgetExhausted:
                return False
            self._ledger.add_attempt(key, asked.role, self.name, certifying=asked.certifying)
            return True

        def late(answer: Reply | BaseException) -> None:
            if self._closed.is_set():
                return
            if isinstance(answer, Reply):
                self._meter.settle(asked, answer.usage)
                self._ledger.add_hedged(key, asked.role, self.name, answer.usage)
            else:
                attempts = answer.attempts if isinstance(answer, LMError) else 1
                self._meter.settle(asked, None, attempts)
                cause = answer.cause if isinstance(answer, LMError) else "connection"
                self._ledger.add_failure(key, asked.role, self.name, cause, attempts)

        return Second(admit, late)

    def close(self) -> None:
        """Close the model's connections, and wait for no further attempt."""
        self._closed.set()
        if self._hedge is not None:
            self._hedge.close()
        self._inner.close()

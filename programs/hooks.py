"""Hooked: a language model whose every call is told to a hook, for logs, meters and traces."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..signatures.errors import RequestError
from ..signatures.prompt import Capabilities
from .lm import LM, LMError, Reply, Request

logger = logging.getLogger("vitrify")


@dataclass(frozen=True, slots=True)
class LMCall:
    """One call of a frozen program to its language model, once it is over.

    Attributes:
        program: The artifact's name.
        sha256: The artifact's digest.
        request: What was asked.
        reply: What came; None where the call failed.
        error: Why there is no reply.
        began: When it began, in nanoseconds since 1970, as OpenTelemetry counts.
        seconds: How long it took, retries included.
        endpoint: Which server was asked, without credentials.
    """

    program: str
    sha256: str
    request: Request
    reply: Reply | None
    error: Exception | None
    began: int
    seconds: float
    endpoint: str


Hook = Callable[[LMCall], object]
"""Told of every call, in the thread or task that made it, as soon as it is over; from any number of them at once."""


class Hooked:
    """Another model, whose calls are told to a hook; what a hook raises is logged and changes nothing."""

    def __init__(self, inner: LM, hook: Hook, *, program: str, sha256: str) -> None:
        self._inner = inner
        self._hook = hook
        self._artifact = (program, sha256)
        self.name = inner.name
        self.endpoint = inner.endpoint

    @property
    def inner(self) -> LM:
        """The model itself."""
        return self._inner

    @property
    def capabilities(self) -> Capabilities:
        """What the model can do."""
        return self._inner.capabilities

    def complete(self, request: Request) -> Reply:
        """Return the reply, or raise LMError; either is told."""
        at, began = time.time_ns(), time.perf_counter()
        try:
            reply = self._inner.complete(request)
        except LMError as error:
            self._tell(request, None, error, at, began)
            raise
        self._tell(request, reply, None, at, began)
        return reply

    async def acomplete(self, request: Request) -> Reply:
        """Return the reply, or raise LMError; either is told."""
        at, began = time.time_ns(), time.perf_counter()
        try:
            reply = await self._inner.acomplete(request)
        except LMError as error:
            self._tell(request, None, error, at, began)
            raise
        self._tell(request, reply, None, at, began)
        return reply

    def _tell(self, request: Request, reply: Reply | None, error: Exception | None, at: int, began: float) -> None:
        seconds = time.perf_counter() - began
        try:
            self._hook(LMCall(*self._artifact, request, reply, error, at, seconds, self.endpoint))
        except Exception as problem:  # noqa: BLE001 - whatever a user's hook raises: a call is worth more than its log
            logger.warning("the hook of %s raised %s: %s", self._artifact[0], type(problem).__name__, problem)

    def close(self) -> None:
        """Close the model's connections."""
        self._inner.close()


def resolve_hook(hook: Any) -> Hook:
    """Return the hook that a callable or the name `opentelemetry` stands for."""
    if hook == "opentelemetry":
        from .telemetry import opentelemetry_hook

        return opentelemetry_hook()
    if isinstance(hook, str) or not callable(hook):
        raise RequestError(f"`hook` is `opentelemetry`, or is called with each LMCall: got {hook!r:.80}.")
    found: Hook = hook
    return found

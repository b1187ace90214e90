"""Tallied: a language model that counts what it is asked."""

import threading

from .programs.lm import LM, Reply, Request, Usage
from .signatures.prompt import Capabilities


class Tallied:
    """Another model, with the requests and tokens of everything that goes through it.

    Attributes:
        calls: Requests that were answered.
        usage: Their tokens.
    """

    def __init__(self, inner: LM) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self.name = inner.name
        self.endpoint = inner.endpoint
        self.calls = 0
        self.usage = Usage()

    @property
    def capabilities(self) -> Capabilities:
        """What the model can do."""
        return self._inner.capabilities

    def complete(self, request: Request) -> Reply:
        """Return the reply, counted."""
        return self._count(self._inner.complete(request))

    async def acomplete(self, request: Request) -> Reply:
        """Return the reply, counted."""
        return self._count(await self._inner.acomplete(request))

    def _count(self, reply: Reply) -> Reply:
        with self._lock:
            self.calls += 1
            self.usage += reply.usage
        return reply

    def close(self) -> None:
        """Close the model's connections."""
        self._inner.close()

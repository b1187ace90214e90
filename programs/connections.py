"""Connections: those of one event loop to one server, each for one request after the other.

They write and read HTTP/1.1 themselves, because of a call through aiohttp's session two thirds were aiohttp's; see
docs/decisions/0007.
"""

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, cast

from aiohappyeyeballs import start_connection

from .response import Broken, Response
from .site import Site, interrupted

KEPT: Final = 30.0
"""Seconds for which a connection without a request stays open."""

RESTED: Final = 0.5
"""Seconds without a request after which a connection may have ended without the loop's knowing."""

NAMED: Final = 10.0
"""Seconds for which a name's addresses serve all who connect."""

SMALL: Final = 16_384
"""Bytes of a request that a system takes at once."""

TURNS: Final = 20
"""Turns of the loop in which connections that were dropped have told it so; TLS takes three."""


class Unconnected(ConnectionError):
    """No connection could be made; `why` says it in a word or two."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Untrusted(Exception):
    """The server can't prove who it is, or doesn't speak TLS."""


class Connections:
    """The connections to one site; called on their loop alone."""

    def __init__(self, site: Site, loop: asyncio.AbstractEventLoop) -> None:
        self._site = site
        self._loop = loop
        self._open: set[_Connection] = set()
        self._idle: deque[_Connection] = deque()  # the one that has waited longest first
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False
        self._named: asyncio.Task[list[Any]] | None = None
        self._until = 0.0
        # One for all: it is emptied before the loop turns to the next. asyncio's own way takes 256 KB from the system
        # for whatever comes, and gives them back.
        # It holds all that asyncio's TLS unpacks at a time (256 KB and a part of a record): what would be left for the
        # loop's next turn is lost where the connection ends in that.
        self._buffer = memoryview(bytearray(327_680))

    async def post(self, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        """Return status, headers (names in small letters) and content of the answer.

        Raises:
            Unconnected: If there is no connection to be had.
            Untrusted: If TLS fails.
            OSError: If the connection ends before the answer does, or brings something else; Broken is one.
            ValueError: If the headers of the site can't be sent.

        """
        # One buffer, one system call.
        request = b"%b%d\r\n\r\n%b" % (self._site.head, len(body), body)
        if self._idle and self._loop.time() - self._idle[-1].since > RESTED:
            for _ in range(4):  # where the loop was blocked, ends that came meanwhile are read first; TLS takes three
                await asyncio.sleep(0)
        connection = self._kept() or await self._connect()
        response = await connection.ask(request)
        # A refusal may come before a large request is out; the rest of that would stand before the next one.
        if response.kept and not self._closed and (response.status == 200 or len(request) <= SMALL):
            self._keep(connection)
        else:
            connection.drop()
        if response.status == 200:
            return 200, {}, response.content
        try:
            content = response.content
        except Broken:
            content = b""  # what was refused is said by the status
        return response.status, response.headers, content

    async def close(self) -> None:
        """Drop all connections; requests in flight fail."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._named is not None:
            self._named.cancel()
        self._idle.clear()
        for connection in list(self._open):
            connection.drop()
        for _ in range(TURNS):
            if not self._open:
                return
            await asyncio.sleep(0)

    def _kept(self) -> "_Connection | None":
        """Return an open connection that waits, the one that was used last; None if there is none."""
        oldest = self._loop.time() - KEPT
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.since > oldest:
                return connection
            connection.drop()
        return None

    def _keep(self, connection: "_Connection") -> None:
        connection.since = self._loop.time()
        self._idle.append(connection)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(KEPT, self._sweep)

    def _sweep(self) -> None:
        """Drop the connections that nobody needed for long."""
        self._sweeper = None
        oldest = self._loop.time() - KEPT
        while self._idle and (not self._idle[0].usable or self._idle[0].since <= oldest):
            self._idle.popleft().drop()
        if self._idle:
            self._sweeper = self._loop.call_at(self._idle[0].since + KEPT, self._sweep)

    async def _addresses(self) -> list[Any]:
        """Return the server's addresses, asked for once for all who connect now."""
        now = self._loop.time()
        asked = self._named
        if asked is None or now >= self._until or (asked.done() and (asked.cancelled() or asked.exception())):
            site = self._site
            asked = self._loop.create_task(_lookup(self._loop, site.host, site.port))
            asked.add_done_callback(lambda task: task.cancelled() or task.exception())
            self._named, self._until = asked, now + NAMED
        return await asyncio.shield(asked)

    async def _connect(self) -> "_Connection":
        if self._closed:
            raise interrupted(self._site.name)
        site = self._site
        try:
            async with asyncio.timeout(site.connect_limit):
                # Not by create_connection's own way, which asks for the name each time, and isn't uvloop's.
                infos = await self._addresses()
                sock = await start_connection(infos, happy_eyeballs_delay=0.25, loop=self._loop)
                try:
                    transport, connection = await self._loop.create_connection(
                        lambda: _Connection(self._loop, self._open, self._buffer),
                        sock=sock,
                        ssl=site.tls,
                        server_hostname=site.host if site.tls else None,
                    )
                except BaseException:
                    sock.close()
                    raise
        except ssl.SSLError as error:
            raise Untrusted(f"{type(error).__name__}: {error}") from None
        except TimeoutError:
            raise Unconnected("no answer") from None
        except OSError as error:
            raise Unconnected(error.strerror or "failed") from None
        if self._closed:
            connection.drop()
            raise interrupted(site.name)
        # A reply may take minutes, in which routers forget a connection that says nothing.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return connection


async def _lookup(loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[Any]:
    try:  # an address needs no thread
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        return await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)


class _Connection(asyncio.BufferedProtocol):
    """One connection: one request at a time.

    Attributes:
        since: When its last response was complete, by the loop's clock.
    """

    __slots__ = ("_buffer", "_ended", "_loop", "_open", "_response", "_transport", "_waiter", "since")

    def __init__(self, loop: asyncio.AbstractEventLoop, opened: "set[_Connection]", buffer: memoryview) -> None:
        self.since = 0.0
        self._ended = False
        self._loop = loop
        self._open = opened
        self._buffer = buffer
        self._transport: asyncio.Transport | None = None
        self._response: Response | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def usable(self) -> bool:
        """Whether it is open, as far as is known."""
        return self._transport is not None and not self._ended and not self._transport.is_closing()

    def drop(self) -> None:
        """Let go of it."""
        if self._transport is not None:
            self._transport.abort()

    async def ask(self, request: bytes) -> Response:
        """Send a request and return the response to it."""
        if self._transport is None:
            raise Broken("the connection was lost")
        self._response = response = Response()
        self._waiter = waiter = self._loop.create_future()
        self._transport.write(request)
        try:
            await waiter
        except BaseException:
            self.drop()  # what comes later belongs to nobody
            raise
        finally:
            self._response = self._waiter = None
        return response

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Be open."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by name
        self._open.add(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to put what comes."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Read on; nothing comes that wasn't asked for."""
        response, waiter = self._response, self._waiter
        if response is None or waiter is None or waiter.done():
            self.drop()
            return
        try:
            if response.feed(bytes(self._buffer[:nbytes])):
                waiter.set_result(None)
        except Broken as error:
            waiter.set_exception(error)

    def eof_received(self) -> None:
        """Be told that nothing more comes: what is still to be sent needn't be waited for."""
        self._ended = True
        self._over(complete=True)

    def connection_lost(self, exc: Exception | None) -> None:
        """Be closed: the end of a response without a length, and an early one of any other."""
        self._transport = None
        self._open.discard(self)
        self._over(complete=exc is None)

    def _over(self, *, complete: bool) -> None:
        response, waiter = self._response, self._waiter
        if response is None or waiter is None or waiter.done():
            return
        if complete and response.end():
            waiter.set_result(None)
        else:
            waiter.set_exception(Broken("the connection was lost"))

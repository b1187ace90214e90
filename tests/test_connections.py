"""Connections, on real sockets: which are used again, what is sent, TLS, proxies, and what failures are called."""

import asyncio
import contextlib
import gc
import logging
import shutil
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from vitrify.programs import connections
from vitrify.programs.connections import Connections, Unconnected, Untrusted
from vitrify.programs.lm import LMError, Request, Retry
from vitrify.programs.openai import OpenAICompatible
from vitrify.programs.response import Broken
from vitrify.programs.site import Site

from tests.server import Fault, ScriptedServer

ONCE = Retry(attempts=1)
HEADERS = {"Content-Type": "application/json"}
OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b"
Peer = Callable[[int, bytes], "bytes | None"]


@pytest.fixture(autouse=True)
def nothing_left(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing is left open: neither a warning of Python's nor a word in asyncio's log."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        yield
        gc.collect()
    assert [str(item.message) for item in seen] == []
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


class Server:
    """Answers each request with what `peer` gives for its number and body; None or `CLOSE` at the end closes."""

    CLOSE = b"<close>"

    def __init__(self, peer: Peer) -> None:
        self.accepted = 0
        self.heads: list[bytes] = []
        self.lost = 0
        self._peer = peer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(int(head.lower().rpartition(b"content-length: ")[2].split(b"\r")[0]))
                self.heads.append(head)
                answer = self._peer(len(self.heads) - 1, body)
                if answer is not None:
                    writer.write(answer.removesuffix(self.CLOSE))
                if answer is None or answer.endswith(self.CLOSE):
                    break
        self.lost += 1
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def echo(number: int, body: bytes) -> bytes:
    return OK % (len(body), body)


@contextlib.asynccontextmanager
async def opened(peer: Peer = echo, **changes: Any) -> AsyncIterator[tuple[Server, Connections]]:
    server = Server(peer)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1/chat/completions"
    options: dict[str, Any] = {"headers": HEADERS, "timeout": 5.0, "proxy": None, "url": url, **changes}
    made = Connections(Site("openai/local", **options), asyncio.get_running_loop())
    try:
        yield server, made
    finally:
        await made.close()
        assert not made._open
        listening.close()
        await listening.wait_closed()


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(main(), 10.0)

    asyncio.run(bounded())


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0.001)


def test_one_connection_serves_one_request_after_the_other() -> None:
    async def main() -> None:
        async with opened() as (server, made):
            for number in range(5):
                assert await made.post(b"%d" % number) == (200, {}, b"%d" % number)
            assert server.accepted == 1
            texts = [b"x" * number for number in (1, 70_000, 3, 2_000_000)]
            answers = await asyncio.gather(*map(made.post, texts))
            assert [answer[2] for answer in answers] == texts and server.accepted == 4

    run(main)


def test_headers_of_a_refusal_are_there_by_small_names() -> None:
    refusal = b"HTTP/1.1 429 Slow Down\r\nRETRY-AFTER: 7\r\nContent-Length: 2\r\n\r\nno"

    async def main() -> None:
        async with opened(lambda number, body: refusal) as (_, made):
            assert await made.post(b"") == (429, {"retry-after": "7", "content-length": "2"}, b"no")

    run(main)


def test_a_refusal_is_heard_whatever_its_body() -> None:
    refusal = b"HTTP/1.1 401 No\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n\r\n%b"
    answers = [refusal % (b"gzip", 0, b""), refusal % (b"br", 3, b"abc")]

    async def main() -> None:
        async with opened(lambda number, body: answers[number]) as (_, made):
            for _ in answers:
                status, _headers, content = await made.post(b"")
                assert (status, content) == (401, b"")

    run(main)


def test_a_refusal_of_a_large_request_ends_the_connection() -> None:
    """It may have come before the request was out, the rest of which would stand before the next one."""
    refusal = b"HTTP/1.1 429 Slow Down\r\nContent-Length: 0\r\n\r\n"

    async def main() -> None:
        async with opened(lambda number, body: refusal) as (server, made):
            for size, accepted in ((10, 1), (100_000, 1), (10, 2)):
                assert (await made.post(b"x" * size))[0] == 429 and server.accepted == accepted

    run(main)


def test_a_name_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all who connect at a time one asks for the addresses; the others wait for that."""
    asked: list[str] = []
    known = socket.getaddrinfo

    def slow(host: Any, *more: Any, **named: Any) -> Any:
        if host == "model.example" and not named.get("flags"):
            asked.append(host)
            time.sleep(0.05)
            return known("127.0.0.1", *more, **named)
        return known(host, *more, **named)

    async def main() -> None:
        async with opened() as (_, made):
            port = made._site.port
            named = Connections(Site("m", f"http://model.example:{port}/v1", HEADERS, 4.0, None), made._loop)
            monkeypatch.setattr(socket, "getaddrinfo", slow)
            answers = await asyncio.gather(*(named.post(b"%d" % number) for number in range(60)))
            assert [answer[2] for answer in answers] == [b"%d" % number for number in range(60)]
            await named.close()

    run(main)
    assert asked == ["model.example"]


def test_a_name_of_many_letters() -> None:
    site = Site("m", "https://straße.example/v1", {}, 1.0, None)
    assert site.host == "xn--strae-oqa.example" and b"Host: xn--strae-oqa.example\r\n" in site.head
    assert Site("m", "https://bücher.example:8443/v1", {}, 1.0, None).host == "xn--bcher-kva.example"


LEFT: dict[str, Peer] = {
    "said so": lambda n, body: (
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    ),
    "said nothing, and closed it": lambda n, body: echo(n, body) + Server.CLOSE,
    "sent more than it announced": lambda n, body: echo(n, body) + echo(n, b"somebody else's"),
    "ended the reply by closing": lambda n, body: b"HTTP/1.1 200 OK\r\n\r\n" + body + Server.CLOSE,
    "speaks HTTP/1.0": lambda n, body: b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body),
}


@pytest.mark.parametrize("peer", LEFT.values(), ids=list(LEFT))
def test_a_connection_is_left_where_the_server(peer: Peer) -> None:
    async def main() -> None:
        async with opened(peer) as (server, made):
            for number in range(4):
                assert (await made.post(b"%d" % number))[2] == b"%d" % number
                await turns()
            assert server.accepted == 4

    run(main)


def test_what_comes_unasked_is_nobodys_reply() -> None:
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reader.readuntil(b"\r\n\r\n1")
        writer.write(OK % (3, b"one"))
        await reader.read()  # until the client closes
        writer.close()

    async def main() -> None:
        listening = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
        made = Connections(Site("m", url, HEADERS, 5.0, None), asyncio.get_running_loop())
        assert (await made.post(b"1"))[2] == b"one"
        writers[0].write(OK % (3, b"two"))
        await turns()
        assert (await made.post(b"1"))[2] == b"one" and len(writers) == 2
        await made.close()
        listening.close()
        await listening.wait_closed()

    run(main)


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc<close>", b"what?\r\n\r\n"])
def test_what_is_no_whole_response_is_broken(answer: bytes | None) -> None:
    async def main() -> None:
        async with opened(lambda n, body: echo(n, body) if n else answer) as (server, made):
            with pytest.raises(Broken):
                await made.post(b"1")
            assert (await made.post(b"2"))[2] == b"2" and server.accepted == 2

    run(main)


def test_a_request_given_up_takes_its_connection_with_it() -> None:
    async def main() -> None:
        async with opened(lambda n, body: echo(n, body) if n else b"HTTP/1.1 200 OK\r\nContent-Le") as (server, made):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await made.post(b"1")
            assert (await made.post(b"2"))[2] == b"2"
            await turns()
            assert (server.accepted, server.lost, len(made._open)) == (2, 1, 1)

    run(main)


def test_a_connection_that_nobody_needs_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "KEPT", 0.05)

    async def main() -> None:
        async with opened() as (server, made):
            await asyncio.gather(*(made.post(b"%d" % number) for number in range(3)))
            assert len(made._open) == 3
            for _ in range(10):
                await made.post(b"again")
                await asyncio.sleep(0.01)
            assert len(made._open) == 1
            await asyncio.sleep(0.1)
            assert not made._open and not made._idle and made._sweeper is None
            await made.post(b"again")
            assert server.accepted == 4

    run(main)


def test_closing_fails_what_is_in_flight() -> None:
    async def main() -> None:
        async with opened(lambda n, body: b"") as (server, made):
            flying = [asyncio.create_task(made.post(b"%d" % number)) for number in range(3)]
            while len(server.heads) < 3:
                await asyncio.sleep(0.001)
            await made.close()
            found = await asyncio.gather(*flying, return_exceptions=True)
            assert [type(error) for error in found] == [Broken] * 3
            with pytest.raises(LMError, match="was closed"):
                await made.post(b"later")

    run(main)


def sent(url: str, **headers: str) -> list[str]:
    """Return the lines of a request's head."""
    return Site("m", url, headers, 1.0, None).head.decode().split("\r\n")


def test_the_head_of_a_request() -> None:
    assert sent("http://host:80/v1/chat/completions", Accept="x") == [
        "POST /v1/chat/completions HTTP/1.1", "Host: host:80", "Accept-Encoding: gzip, deflate", "User-Agent: vitrify",
        "Accept: x", "Content-Length: ",
    ]  # fmt: skip
    assert sent("https://user:p%40ss@[::1]/a b/é%20/c")[:3] == [
        "POST /a%20b/%C3%A9%20/c HTTP/1.1", "Host: [::1]", "Authorization: Basic dXNlcjpwQHNz"
    ]  # fmt: skip
    assert "Host: xn--bcher-kva.example" in sent("http://bücher.example/")
    lines = sent(
        "http://host/", **{"user-agent": "mine", "HOST": "other", "content-length": "7", "Connection": "close"}
    )
    assert lines[1:] == ["HOST: other", "Accept-Encoding: gzip, deflate", "user-agent: mine", "Content-Length: "]
    site = [Site("m", f"{scheme}://host/", {}, 30.0, None) for scheme in ("http", "https")]
    assert [(one.port, one.tls is None, one.connect_limit) for one in site] == [(80, True, 15.0), (443, False, 15.0)]


@pytest.mark.parametrize(
    "header", [{"X": "a\r\nY: b"}, {"X": "a\0"}, {"X:": "a"}, {"": "a"}, {"X Y": "a"}, {"X\n": "a"}]
)
def test_a_header_that_would_be_two_is_never_sent(header: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="no header may hold"):
        sent("http://host/", **header)
    with ScriptedServer() as server:
        lm = OpenAICompatible("openai/local", api_base=server.url, api_key="none", headers=header, retry=ONCE)
        with pytest.raises(LMError, match="can't talk to") as caught:
            lm.complete(ask())
        lm.close()
        assert (caught.value.cause, caught.value.retryable, server.requests) == ("connection", False, [])


def test_a_key_beside_a_user_in_the_address_is_refused() -> None:
    with ScriptedServer() as server:
        base = server.url.replace("//", "//user:hunter22@")
        lm = OpenAICompatible("openai/local", api_base=base, api_key="none", retry=ONCE)
        with pytest.raises(LMError, match="can't talk to .*a key is given as well") as caught:
            lm.complete(ask())
        assert "hunter22" not in str(caught.value)
        lm.close()
        alone = OpenAICompatible("openai/local", api_base=base, retry=ONCE)
        assert alone.complete(ask()).text == "hello"
        alone.close()
        assert server.requests[0].headers["Authorization"] == "Basic dXNlcjpodW50ZXIyMg=="


def ask() -> Request:
    return Request("openai/local", ({"role": "user", "content": "hello"},))


def test_a_server_that_accepts_nothing_is_missed_in_time() -> None:
    """Its queue is full: connections hang."""

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            full = stack.enter_context(socket.socket())
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            for _ in range(3):
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(full.getsockname())
            url = f"http://127.0.0.1:{full.getsockname()[1]}/"
            made = Connections(Site("m", url, {}, 0.1, None), asyncio.get_running_loop())
            began = time.monotonic()
            with pytest.raises(Unconnected, match="no answer"):
                await made.post(b"")
            assert time.monotonic() - began < 2.0
            await made.close()

    run(main)


def test_a_name_that_nobody_knows() -> None:
    async def main() -> None:
        made = Connections(Site("m", "http://nowhere.invalid/", {}, 5.0, None), asyncio.get_running_loop())
        with pytest.raises(Unconnected):
            await made.post(b"")
        await made.close()

    run(main)


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a certificate of this machine's own, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    words = ["req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-days", "2"]
    words += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([openssl, *words, "-out", certificate, "-keyout", key], check=True, capture_output=True)
    return certificate, key


@contextlib.contextmanager
def secured(certificate: tuple[Path, Path], peer: Peer) -> Iterator[tuple[Server, str]]:
    """Give a server that speaks TLS, on a thread of its own."""
    import ssl

    server, ready, over = Server(peer), threading.Event(), threading.Event()
    found: list[int] = []

    async def main() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
        # A client that doesn't trust us says so by an alert, of which asyncio's server would tell the log.
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        found.append(listening.sockets[0].getsockname()[1])
        ready.set()
        while not over.is_set():
            await asyncio.sleep(0.005)
        listening.close()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert ready.wait(5.0)
    try:
        yield server, f"https://127.0.0.1:{found[0]}/v1"
    finally:
        over.set()
        thread.join(5.0)


REPLY = b'{"choices":[{"message":{"content":"%b"}}]}' % (b"hello" * 40_000)  # more than a connection's buffer


def test_tls_with_a_server_that_is_trusted(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    with secured(certificate, lambda n, body: OK % (len(REPLY), REPLY) if n < 5 else b"") as (server, url):
        lm = OpenAICompatible("openai/local", api_base=url, api_key="none", timeout=2.0, retry=ONCE)
        assert [lm.complete(ask()).text for _ in range(5)] == ["hello" * 40_000] * 5
        assert server.accepted == 1
        threading.Timer(0.1, lm.close).start()
        with pytest.raises(LMError, match="was closed"):
            lm.complete(ask())


def test_a_large_reply_over_tls_before_the_connection_ends(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that was received counts, where the end comes with it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    text = b"h" * 1_000_000
    reply = b'{"choices":[{"message":{"content":"%b"}}]}' % text
    answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(reply), reply)
    with secured(certificate, lambda number, body: answer + Server.CLOSE) as (_, url):
        lm = OpenAICompatible("openai/local", api_base=url, api_key="none", timeout=5.0, retry=ONCE)
        assert [len(lm.complete(ask()).text or "") for _ in range(10)] == [len(text)] * 10
        lm.close()


def test_tls_with_a_server_that_is_not_trusted(certificate: tuple[Path, Path]) -> None:
    with secured(certificate, echo) as (server, url):
        lm = OpenAICompatible("openai/local", api_base=url, api_key="none", timeout=2.0)
        with pytest.raises(LMError, match="can't talk to .*CERTIFICATE_VERIFY_FAILED") as caught:
            lm.complete(ask())
        lm.close()
        assert (caught.value.cause, caught.value.retryable, caught.value.attempts) == ("connection", False, 1)
        assert server.heads == []


def test_tls_with_a_server_that_speaks_none() -> None:
    with ScriptedServer() as server:
        base = server.url.replace("http:", "https:")
        lm = OpenAICompatible("openai/local", api_base=base, api_key="none", timeout=2.0, retry=ONCE)
        with pytest.raises(LMError, match="can't (talk|connect) to"):
            lm.complete(ask())
        lm.close()


def test_tls_that_fails_has_its_own_name(certificate: tuple[Path, Path]) -> None:
    async def main(url: str) -> None:
        made = Connections(Site("m", url, {}, 5.0, None), asyncio.get_running_loop())
        with pytest.raises(Untrusted):
            await made.post(b"")
        await made.close()

    with secured(certificate, echo) as (_, url):
        run(lambda: main(url))


# Proxies


@contextlib.contextmanager
def through(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Iterator[OpenAICompatible]:
    """Give a client whose only way is a proxy: the server itself, which is asked for another's address."""
    for name in ("HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", server.url.removesuffix("/v1"))
    lm = OpenAICompatible(
        "openai/local", api_base="http://model.example/v1", **{"api_key": "k", "retry": ONCE, **options}
    )
    yield lm
    lm.close()


def test_without_a_proxy_aiohttp_is_never_imported() -> None:
    code = (
        "import sys; from vitrify.programs.openai import OpenAICompatible; from vitrify.programs.lm import Request\n"
        "lm = OpenAICompatible('openai/local', api_base=sys.argv[1], api_key='none')\n"
        "print(lm.complete(Request('openai/local', ({'role': 'user', 'content': 'hello'},))).text)\n"
        "lm.close(); print('aiohttp' in sys.modules)"
    )
    with ScriptedServer() as server:
        ran = subprocess.run([sys.executable, "-c", code, server.url], capture_output=True, text=True, timeout=20)
    assert (ran.stdout.split(), ran.stderr) == (["hello", "False"], "")


def test_a_proxy_is_asked_for_the_servers_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer() as server, through(server, monkeypatch) as lm:
        assert [lm.complete(ask()).text for _ in range(3)] == ["hello"] * 3
        assert server.requests[0].headers["Host"] == "model.example"
        assert server.requests[0].headers["Authorization"] == "Bearer k"


@pytest.mark.parametrize(
    ("fault", "cause", "said"),
    [
        (Fault.status_code(429, retry_after="7"), "rate_limited", "asks to wait 7 s"),
        (Fault("drop"), "connection", "dropped the connection"),
        (Fault("truncate"), "connection", "dropped the connection"),
        (Fault("hang"), "timeout", "didn't answer within"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_failures_through_a_proxy_have_the_same_names(
    fault: Fault, cause: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ScriptedServer(faults={0: fault}) as server, through(server, monkeypatch, timeout=0.3) as lm:
        with pytest.raises(LMError, match=said) as caught:
            lm.complete(ask())
        assert (caught.value.cause, caught.value.retryable) == (cause, True)
        assert lm.complete(ask()).text == "hello"


def test_a_proxy_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer() as server:
        pass
    with through(server, monkeypatch) as lm, pytest.raises(LMError, match="can't connect to") as caught:
        lm.complete(ask())
    assert (caught.value.cause, caught.value.retryable) == ("connection", True)

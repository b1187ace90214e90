"""Responses are read as they were written, however they come; what breaks the rules is refused."""

import gzip
import http.client
import io
import zlib
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vitrify.programs.response import HEAD_LIMIT, UNPACKED_LIMIT, Broken, Response

CASES = (str.lower, str.upper, str.title)
NAMES = ("Date", "Server", "X-Request-Id", "Set-Cookie", "Retry-After", "Via")


@st.composite
def written(draw: st.DrawFn) -> tuple[bytes, int, bytes, bool, bool]:
    """Return a response's bytes, its status and content, whether it is kept, and whether the connection ends it."""
    content = draw(st.binary(max_size=300))
    packed = draw(st.sampled_from((None, "gzip", "deflate", "raw")))
    body = {None: content, "gzip": gzip.compress(content), "deflate": zlib.compress(content)}.get(packed, b"")
    if packed == "raw":
        packer = zlib.compressobj(wbits=-15)
        body = packer.compress(content) + packer.flush()
    status = draw(st.integers(200, 599).filter(lambda number: number not in (204, 304)))
    fields = [
        (draw(st.sampled_from(NAMES)), draw(st.text("ab ,;=:\t", max_size=9))) for _ in range(draw(st.integers(0, 3)))
    ]
    framing = draw(st.sampled_from(("length", "chunked", "end")))
    if packed:
        fields.append(("Content-Encoding", "deflate" if packed == "raw" else packed))
    close = draw(st.booleans())
    if close:
        fields.append(("Connection", draw(st.sampled_from(("close", "Close")))))
    if framing == "length":
        fields.append(("Content-Length", str(len(body))))
    elif framing == "chunked":
        fields.append(("Transfer-Encoding", draw(st.sampled_from(("chunked", "Chunked")))))
        cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=3)))
        pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
        sizes = draw(st.sampled_from(("%x", "%X", "%04x"))), draw(st.sampled_from((b"", b";a=b", b" ; c")))
        body = b"".join(b"%b%b\r\n%b\r\n" % ((sizes[0] % len(p)).encode(), sizes[1], p) for p in pieces if p)
        body += b"0\r\n" + draw(st.sampled_from((b"", b"X-Sum: 1\r\n", b"A: b\r\nC: d\r\n"))) + b"\r\n"
    drawn = draw(st.permutations(fields))
    head = "".join(
        f"{draw(st.sampled_from(CASES))(name)}:{' ' * draw(st.integers(0, 2))}{value}\r\n" for name, value in drawn
    )
    first = draw(st.sampled_from((b"", b"HTTP/1.1 100 Continue\r\n\r\n")))
    line = f"HTTP/1.1 {status}{draw(st.sampled_from(('', ' ', ' Fine So Far')))}\r\n"
    return (
        first + line.encode() + head.encode() + b"\r\n" + body,
        status,
        content,
        not close and framing != "end",
        framing == "end",
    )


@given(written(), st.data())
def test_a_response_is_read_however_it_comes(case: tuple[bytes, int, bytes, bool, bool], data: st.DataObject) -> None:
    raw, status, content, kept, endless = case
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    if data.draw(st.booleans()):
        pieces = [bytes([byte]) for byte in raw]
    response = Response()
    said = [response.feed(piece) for piece in pieces if piece]
    if endless:
        assert not any(said) and response.end()
    else:
        assert said == [False] * (len(said) - 1) + [True]
    assert (response.status, response.content, response.kept) == (status, content, kept)


class Wire:
    """A socket as far as http.client asks for one."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def makefile(self, *args: Any, **kwargs: Any) -> io.BytesIO:
        return io.BytesIO(self._raw)


@given(written())
def test_pythons_own_client_reads_the_same(case: tuple[bytes, int, bytes, bool, bool]) -> None:
    raw = case[0]
    theirs = http.client.HTTPResponse(cast(Any, Wire(raw)), method="POST")
    theirs.begin()
    ours = Response()
    ours.feed(raw)
    assert (ours.status, b"".join(ours._parts)) == (theirs.status, theirs.read())
    expected: dict[str, str] = {}
    for name, value in theirs.getheaders():
        key = name.lower()
        expected[key] = f"{expected[key]}, {value.strip()}" if key in expected else value.strip()
    assert expected == dict(ours.headers)


@given(written(), st.data())
def test_a_response_that_is_cut_short_is_never_complete(case: Any, data: st.DataObject) -> None:
    raw, endless = case[0], case[4]
    response = Response()
    if not endless and not response.feed(raw[: data.draw(st.integers(0, len(raw) - 1))]):
        assert not response.end()


@given(
    st.binary(max_size=200),
    st.sampled_from((b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n")),
)
def test_no_bytes_raise_anything_but_broken(raw: bytes, start: bytes) -> None:
    response = Response()
    try:
        if response.feed(start + raw):
            assert 200 <= response.status < 600
    except Broken:
        pass


OK = b"HTTP/1.1 200 OK\r\n"
BROKEN = {
    "no HTTP": b"SSH-2.0-OpenSSH\r\n\r\n",
    "another version": b"HTTP/2 200\r\n\r\n",
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
    "a status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "a status below 100": b"HTTP/1.1 099 OK\r\n\r\n",
    "line ends without \\r": b"HTTP/1.1 200 OK\nContent-Length: 0\n\r\n\r\n",
    "a header without a name": OK + b": x\r\n\r\n",
    "a space before the colon": OK + b"Content-Length : 3\r\n\r\nabc",
    "a folded header": OK + b"X: a\r\n b\r\n\r\n",
    "a NUL in a header": OK + b"X: a\0b\r\n\r\n",
    "a bare \\r in a header": OK + b"X: a\rContent-Length: 3\r\n\r\nabc",
    "two lengths": OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "two lengths in one": OK + b"Content-Length: 3, 4\r\n\r\nabcd",
    "a length below 0": OK + b"Content-Length: -3\r\n\r\n",
    "a length with a sign": OK + b"Content-Length: +3\r\n\r\nabc",
    "an empty length": OK + b"Content-Length: \r\n\r\n",
    "an immense length": OK + b"Content-Length: 99999999999999999999\r\n\r\n",
    "a coding before chunked": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "chunked twice": OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunked in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a chunk without a size": OK + b"Transfer-Encoding: chunked\r\n\r\n\r\n",
    "a chunk with a bad size": OK + b"Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n",
    "a chunk of an immense size": OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 16 + b"\r\n",
    "a chunk longer than it says": OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n",
    "an endless chunk line": OK + b"Transfer-Encoding: chunked\r\n\r\n3;" + b"x" * (HEAD_LIMIT + 9),
    "an endless head": OK + b"X: " + b"x" * HEAD_LIMIT,
    "an endless head with an end": OK + b"X: " + b"x" * HEAD_LIMIT + b"\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("raw", BROKEN.values(), ids=list(BROKEN))
def test_what_breaks_the_rules_is_refused(raw: bytes) -> None:
    for pieces in ([raw], [raw[:20], raw[20:]]):
        with pytest.raises(Broken):
            response = Response()
            for piece in pieces:
                response.feed(piece)


@pytest.mark.parametrize("raw", [b"Content-Encoding: br", b"Content-Encoding: gzip, gzip", b"Content-Encoding: gzip"])
def test_what_cannot_be_unpacked_is_refused(raw: bytes) -> None:
    response = Response()
    assert response.feed(OK + raw + b"\r\nContent-Length: 3\r\n\r\nabc") and response.status == 200
    with pytest.raises(Broken):
        print(response.content)


def test_a_packed_body_of_several_members() -> None:
    body = gzip.compress(b"one ") + gzip.compress(b"two")
    response = Response()
    assert response.feed(OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    assert response.content == b"one two"


def test_a_body_that_unpacks_to_far_too_much_is_refused() -> None:
    body = zlib.compress(bytes(UNPACKED_LIMIT + 1))
    response = Response()
    assert response.feed(OK + b"Content-Encoding: deflate\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    with pytest.raises(Broken, match="too large"):
        print(response.content)


KEPT = {
    b"HTTP/1.1 204 No Content\r\n\r\n": True,
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n": True,
    b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n": False,
    b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n": True,
    OK + b"Content-Length: 3, 3\r\n\r\nabc": True,
    OK + b"Content-Length: 3\r\n\r\nabcHTTP/1.1 200": False,  # more than was announced
    OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nx": False,
    OK + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n": False,  # two ends
    OK + b"Connection: keep-alive, Close\r\nContent-Length: 0\r\n\r\n": False,
}


@pytest.mark.parametrize(("raw", "kept"), KEPT.items(), ids=str)
def test_only_a_connection_that_both_ends_agree_on_is_kept(raw: bytes, kept: bool) -> None:
    response = Response()
    assert response.feed(raw) and response.kept is kept
    assert response.content in (b"", b"abc")


def test_a_coding_that_is_none_and_a_name_that_comes_twice() -> None:
    response = Response()
    assert response.feed(OK + b"Content-Encoding: identity\r\nVia: a\r\nvia:b \r\nContent-Length: 1\r\n\r\nx")
    assert (response.content, response.headers["via"]) == (b"x", "a, b")

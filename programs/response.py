"""Response: one HTTP/1.1 response to a POST, read from its bytes as they come.

Source: RFC 9112, of which this is what a client needs that asks one thing at a time: informational responses are
skipped, and a body ends by its length, its last chunk, or the connection's end (section 6.3). What breaks the rules is
refused, not guessed at: a connection whose two ends count differently gives one caller another's reply.
"""

import re
import zlib
from collections.abc import Mapping
from typing import Final

HEAD_LIMIT: Final = 65_536
"""The most bytes of a response's head, and of a chunk's line."""

UNPACKED_LIMIT: Final = 1 << 26
"""The most bytes that a packed body may unpack to; no reply of a language model comes near."""

_HEAD: Final = re.compile(
    rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\r\n\0]*)?((?:\r\n[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\r\n\0]*)*)"
)
# What decides where the body ends and what becomes of the connection; a line of a head begins after a line's end.
_FRAMING: Final = re.compile(
    rb"\r\n(content-length|transfer-encoding|content-encoding|connection):[ \t]*([^\r\n]*)", re.IGNORECASE
)
_FIELD: Final = re.compile(rb"\r\n([^:]+):[ \t]*([^\r\n]*)")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n\0]*)?")


class Broken(ConnectionError):
    """The connection ended too early, or what came over it is no HTTP/1.1."""


class Response:
    """One response; `feed` it bytes until it says that it is complete.

    Attributes:
        status: The status code; 0 until the head is there.
        kept: Whether the connection may be used again.
    """

    __slots__ = ("_begun", "_buffer", "_chunked", "_encoding", "_fields", "_missing", "_parts", "kept", "status")

    def __init__(self) -> None:
        self.status = 0
        self.kept = False
        self._buffer = b""
        self._begun = False
        self._fields = b""
        self._encoding = b""
        self._chunked = False
        self._missing = 0
        self._parts: list[bytes] = []

    @property
    def headers(self) -> Mapping[str, str]:
        """The header fields, by their names in small letters; of a repeated one all values, with commas between."""
        found: dict[str, str] = {}
        for name, value in _FIELD.findall(self._fields):
            key, text = name.decode("latin-1").lower(), value.decode("latin-1").strip()
            found[key] = f"{found[key]}, {text}" if key in found else text
        return found

    @property
    def content(self) -> bytes:
        """The body, unpacked where the server packed it; Broken if it can't be."""
        content = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        return _unpacked(content, self._encoding) if self._encoding else content

    def feed(self, data: bytes) -> bool:
        """Take in what came, and say whether the response is complete.

        Raises:
            Broken: If it is no response, or ends otherwise than it says.
        """
        if not self._begun:
            rest = self._head(data)
            if rest is None:
                return False
            data = rest
        if self._chunked:
            return self._chunks(data)
        if self._missing < 0:  # until the connection ends
            self._parts.append(data)
            return False
        missing = self._missing - len(data)
        if missing < 0:  # more than was announced
            self.kept = False
            data = data[:missing]
            missing = 0
        self._missing = missing
        self._parts.append(data)
        return missing == 0

    def end(self) -> bool:
        """Say whether the response is complete now that the connection has ended."""
        return self._begun and not self._chunked and self._missing < 0

    def _head(self, data: bytes) -> bytes | None:
        """Read the head, and return what follows it; None while it isn't whole."""
        if self._buffer:
            data = self._buffer + data
        while True:
            head, found, data = data.partition(b"\r\n\r\n")
            if len(head) > HEAD_LIMIT:
                raise Broken("the response's head is too long")
            if not found:
                self._buffer = head
                return None
            parsed = _HEAD.fullmatch(head)
            if parsed is None or parsed[2] == b"101":  # nobody asked for another protocol
                raise Broken("the response's head breaks the rules of HTTP/1.1")
            self.status = int(parsed[2])
            if self.status >= 200:
                break
        self._buffer = b""
        self._fields = parsed[3]
        self._frame(parsed[1] == b"1")
        self._begun = True
        return data

    def _frame(self, modern: bool) -> None:
        """Find out where the body ends, and whether the connection stays open after it."""
        lengths: set[bytes] = set()
        transfer = packed = connection = b""
        for name, value in _FRAMING.findall(self._fields):
            kind, value = name.lower(), value.strip().lower()
            if kind == b"content-length":
                lengths.update(part.strip() for part in value.split(b","))
            elif kind == b"transfer-encoding":
                transfer += b"," + value if transfer else value
            elif kind == b"content-encoding":
                packed += b"," + value if packed else value
            else:
                connection += b"," + value
        self.kept = b"close" not in connection if modern else b"keep-alive" in connection
        if packed and packed != b"identity":
            self._encoding = packed
        if self.status in (204, 304):
            return
        if transfer:
            if transfer != b"chunked" or not modern:
                raise Broken("the response has an unknown transfer coding")
            self._chunked = True
            if lengths:  # it has two ends, one of which is somebody's trick
                self.kept = False
        elif lengths:
            length = lengths.pop()
            if lengths or not length.isdigit() or len(length) > 15:
                raise Broken("the response's length is none")
            self._missing = int(length)
        else:
            self._missing = -1
            self.kept = False

    def _chunks(self, data: bytes) -> bool:
        """Take in a piece of a chunked body.

        What is missing of the chunk at hand counts its line's end with it; what isn't whole yet waits in the buffer.
        """
        data, at = self._buffer + data, 0
        while True:
            if self._missing > 0:
                piece = data[at : at + self._missing]
                at += len(piece)
                self._missing -= len(piece)
                self._parts.append(piece)
                if self._missing:
                    break
                self._missing = -2
            if self._missing == -2:
                if len(data) - at < 2:
                    break
                if data[at : at + 2] != b"\r\n":
                    raise Broken("a chunk of the response is longer than it says")
                at, self._missing = at + 2, 0
            end = data.find(b"\r\n", at)
            if end < 0:
                if len(data) - at > HEAD_LIMIT:
                    raise Broken("a line between the response's chunks is too long")
                break
            line, at = data[at:end], end + 2
            if self._missing == -3:  # trailers; the first empty line is the response's end
                if line:
                    continue
                if at < len(data):
                    self.kept = False
                return True
            parsed = _CHUNK.fullmatch(line)
            if parsed is None:
                raise Broken("a chunk of the response has no length")
            self._missing = int(parsed[1], 16) or -3
        self._buffer = data[at:]
        return False


def _unpacked(content: bytes, encoding: bytes) -> bytes:
    """Return a body as it was before the server packed it."""
    if encoding not in (b"gzip", b"x-gzip", b"deflate"):
        raise Broken("the response has an unknown content coding")
    if not content:
        return content
    try:
        parts = []
        while content:  # gzip may have several members
            packed = zlib.decompressobj(47)  # gzip's head or zlib's
            parts.append(packed.decompress(content, UNPACKED_LIMIT))
            if packed.unconsumed_tail:
                raise Broken("the response is too large")
            if not packed.eof:
                raise zlib.error
            content = packed.unused_data if encoding != b"deflate" else b""
        return b"".join(parts)
    except zlib.error:
        if encoding != b"deflate":
            raise Broken("the response can't be unpacked") from None
    try:
        return zlib.decompress(content, -15)  # none, as old servers mean by deflate
    except zlib.error:
        raise Broken("the response can't be unpacked") from None

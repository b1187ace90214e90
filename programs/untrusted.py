"""untrusted_json(): the JSON value in a file that anybody may have written, within bounds of memory and time.

A parser makes a Python object of some sixty bytes out of two bytes of text, and nests as deep as the text does. So the
text is measured first, in one pass over its bytes: how many values it has, and how deep they nest.
"""

import json
import re
from typing import Any

from ..signatures.canonical import no_constant, unique_keys
from ..signatures.errors import ArtifactError

MOST_BYTES = 16 * 1024 * 1024
"""Of a file; a larger one isn't read, so that a hostile file can't fill the memory."""
MOST_DEPTH = 150
"""Of nested brackets; the parsers would otherwise run out of stack."""
MOST_VALUES = 500_000
"""Of commas and opening brackets, so of values, in a file: each value takes far more memory than its text."""

_STRING = re.compile(rb'"[^"]*"?')
_NO_MARK = bytes(set(range(256)) - set(b'[]{},"'))


def untrusted_json(data: bytes, name: str) -> Any:
    """Return the JSON value in `data`; `name` says in errors which file it was.

    Raises:
        ArtifactError: If the bytes aren't UTF-8 or no JSON (NaN, a key twice, anything after the value, a byte order
            mark), or hold too many values or too deep ones.
    """
    if not data:
        raise ArtifactError(f"{name} is empty; take the original file, or compile again.")
    _measure(data, name)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ArtifactError(
            f"{name} isn't UTF-8 (byte {error.start}); it is damaged: take the original file."
        ) from error
    try:
        return json.loads(text, object_pairs_hook=unique_keys, parse_constant=no_constant)
    except RecursionError as error:  # the caller's own stack is almost used up
        raise ArtifactError(f"{name} nests too deep to be read here; read it from a shallower place.") from error
    except ValueError as error:
        raise ArtifactError(
            f"{name} is no valid JSON ({one_line(error)}); it is cut off or damaged: take the original file."
        ) from error


def one_line(said: object) -> str:
    """Return what is said on one line, at most 160 characters that a terminal prints: a file's keys may hold any."""
    return printable(" ".join(str(said)[:2000].split())[:160])


def printable(text: str) -> str:
    """Return a text with its control characters escaped, so that a terminal shows them and doesn't obey them."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _measure(data: bytes, name: str) -> None:
    """Raise ArtifactError for a text with too many or too deep values; where it is no JSON, for what comes before."""
    marks = data.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _NO_MARK)
    # A value has at most a key and itself to quote; taking more strings out would itself take memory.
    many = marks.count(b'"') > 4 * MOST_VALUES
    bare = b"" if many else _STRING.sub(b"", marks)
    depth = 0
    for bracket in bare.translate(None, b",")[: 2 * MOST_VALUES]:
        depth += 1 if bracket in b"[{" else -1
        if depth > MOST_DEPTH:
            raise ArtifactError(
                f"{name} nests too deep: `an artifact nests at most {MOST_DEPTH} levels`; take the original file."
            )
    if many or bare.count(b",") + bare.count(b"[") + bare.count(b"{") > MOST_VALUES:
        raise ArtifactError(
            f"{name} holds too many values: `an artifact has at most {MOST_VALUES}`; take the original file."
        )

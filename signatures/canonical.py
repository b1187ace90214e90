"""Canonical JSON (RFC 8785) and the digest of it: one value, one text, one name."""

import hashlib
import json
from collections.abc import Callable, Mapping
from json.encoder import encode_basestring
from typing import Any, TypeAlias, cast

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"

_LARGEST_INT = 2**53
_DEEPEST = 200
_MOST_VALUES = 100_000


class NotCanonical(ValueError):
    """A value without a canonical JSON text; the message names its path."""


def canonical_json(value: object) -> str:
    """Return the RFC 8785 text of a JSON value.

    Keys are sorted by UTF-16 code units, numbers are written as ECMAScript writes them and strings with the fewest
    escapes. Tuples count as arrays. Whatever two readers could take for different values is refused with
    `NotCanonical`: NaN and infinities, integers that a double doesn't hold, lone surrogates, keys that aren't strings,
    nesting deeper than 200.

    Source: https://www.rfc-editor.org/rfc/rfc8785
    """
    out: list[str] = []
    _write(value, out.append, [])
    return "".join(out)


def canonical_members(table: Mapping[str, object]) -> dict[str, str]:
    """Return the texts `"key":value` of an object's canonical JSON, by key and in its order.

    Joined by commas and in braces they are `canonical_json(table)`; without one of them, that of the table without it.
    """
    members = {}
    for key in table:
        _check_text(key, [])
    for key in sorted(table, key=_utf16):
        out: list[str] = []
        _write(table[key], out.append, [key])
        members[key] = f"{_string(key, [])}:{''.join(out)}"
    return members


def digest(value: object) -> str:
    """Return the sha256 of the value's canonical JSON in UTF-8, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def json_text(value: object) -> str:
    """Return a JSON text that keeps what canonical JSON merges: `1.0` and `1`, the order of keys, large integers."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def from_json_text(text: str) -> JsonValue:
    """Return the value that `json_text` wrote."""
    return cast("JsonValue", json.loads(text))


def checked_json_text(text: str) -> JsonValue:
    """Return the value in a JSON text that a stranger may have written.

    ValueError for what two readers could differ on (a key that stands twice, NaN, infinities), for nesting deeper than
    200 and for more than about 100,000 values.
    """
    if text.count(",") + text.count("[") + text.count("{") > _MOST_VALUES:
        raise ValueError(f"it has more than {_MOST_VALUES} values")
    try:
        value = json.loads(text, object_pairs_hook=unique_keys, parse_constant=no_constant)
    except RecursionError:
        raise ValueError("it nests too deep") from None
    deepest, level = 0, [value]
    while level:
        deepest += 1
        if deepest > _DEEPEST:
            raise ValueError("it nests too deep")
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    return cast("JsonValue", value)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's pairs as a dictionary; ValueError if a key stands twice. A hook of `json.loads`."""
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key!r:.60} stands twice in one object")
            seen.add(key)
    return table


def no_constant(name: str) -> Any:
    """Raise ValueError for NaN and infinities, which are no JSON. A hook of `json.loads`."""
    raise ValueError(f"{name} is no JSON value")


def same_json(value: Any) -> bool:
    """Say whether the value is a JSON value that `json_text` keeps exactly: no subclass, no tuple, no NaN."""
    if value is None or type(value) in (bool, int):
        return True
    if type(value) is str:
        return _encodable(value)
    if type(value) is float:
        return value - value == 0  # finite
    if type(value) is list:
        return all(same_json(item) for item in value)
    if type(value) is dict:
        return all(type(key) is str and _encodable(key) and same_json(item) for key, item in value.items())
    return False


def _write(value: Any, put: Callable[[str], None], path: list[str | int]) -> None:
    if isinstance(value, str):
        put(_string(value, path))
    elif value is None:
        put("null")
    elif value is True:
        put("true")
    elif value is False:
        put("false")
    elif isinstance(value, int):
        put(_integer(value, path))
    elif isinstance(value, float):
        put(_number(value, path))
    elif isinstance(value, (list, tuple)):
        _write_array(value, put, path)
    elif isinstance(value, dict):
        _write_object(value, put, path)
    else:
        raise NotCanonical(f"{_where(path)} breaks `value is JSON`: found {type(value).__name__}; convert it first")


def _write_array(value: "list[Any] | tuple[Any, ...]", put: Callable[[str], None], path: list[str | int]) -> None:
    _check_depth(path)
    put("[")
    for index, item in enumerate(value):
        if index:
            put(",")
        path.append(index)
        _write(item, put, path)
        path.pop()
    put("]")


def _write_object(value: dict[Any, Any], put: Callable[[str], None], path: list[str | int]) -> None:
    _check_depth(path)
    for key in value:
        if not isinstance(key, str):
            raise NotCanonical(f"{_where(path)} breaks `every key is a string`: found {key!r:.60}; convert it first")
        _check_text(key, path)
    put("{")
    for index, key in enumerate(sorted(value, key=_utf16)):
        if index:
            put(",")
        path.append(key)
        put(_string(key, path))
        put(":")
        _write(value[key], put, path)
        path.pop()
    put("}")


def _utf16(key: str) -> bytes:
    return key.encode("utf-16-be")


def _string(text: str, path: list[str | int]) -> str:
    _check_text(text, path)
    # Python's escapes without `ensure_ascii` are exactly those of RFC 8785, section 3.2.2.2. `json.dumps` would make an
    # encoder for every text, which takes ten times as long.
    return encode_basestring(text)


def _check_text(text: str, path: list[str | int]) -> None:
    if not _encodable(text):
        raise NotCanonical(f"{_where(path)} breaks `text is valid Unicode`: it has a lone surrogate; repair the text")


def _encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_depth(path: list[str | int]) -> None:
    if len(path) >= _DEEPEST:
        raise NotCanonical(f"{_where(path[:3])}... breaks `nesting <= {_DEEPEST}`; flatten the value")


def _integer(value: int, path: list[str | int]) -> str:
    text = int.__repr__(value)
    # RFC 8785 writes the double 3e16 as `30000000000000000`, which Python reads as an integer: such a one stays itself.
    if -_LARGEST_INT <= value <= _LARGEST_INT or (abs(value) < 10**21 and _number(float(value), path) == text):
        return text
    rule = "-2**53 <= integer <= 2**53"
    raise NotCanonical(f"{_where(path)} breaks `{rule}`: found {value!r:.60}; write it as a string")


def _number(value: float, path: list[str | int]) -> str:
    """Write a double as ECMAScript's Number::toString does (ECMA-262, 6.1.6.1.20)."""
    if value - value != 0:
        raise NotCanonical(f"{_where(path)} breaks `number is finite`: found {value!r}; use null or a string")
    if value == 0:
        return "0"
    # `repr` gives the shortest digits that round-trip, as ECMAScript demands; only the layout differs.
    mantissa, _, exponent = float.__repr__(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(exponent or 0) if whole != "0" else len(digits) - len(fraction) + int(exponent or 0)
    digits = digits.rstrip("0")
    sign = "-" if value < 0 else ""
    count = len(digits)
    if count <= point <= 21:
        return sign + digits + "0" * (point - count)
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    tail = f".{digits[1:]}" if count > 1 else ""
    return f"{sign}{digits[0]}{tail}e{point - 1:+d}"


def _where(path: list[str | int]) -> str:
    return "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)

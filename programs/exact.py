"""Exact JSON: values such that canonical JSON, which merges `1.0` with `1` and sorts keys, keeps what a prompt shows.

A prompt shows the order of an object's keys and tells `1.0` from `1`, so an artifact must not lose either.
"""

from typing import Any, cast

from ..signatures.canonical import JsonValue, from_json_text
from ..signatures.errors import ArtifactError

_OBJECT, _NUMBER = "$object", "$number"
_LARGEST_INT = 2**53


def exact(value: JsonValue) -> JsonValue:
    """Return the value as an artifact holds it; `from_exact` is the inverse.

    An object whose keys aren't sorted becomes `{"$object": [[key, value], ...]}`; a number that canonical JSON would
    merge with another, or can't write, becomes `{"$number": "1.0"}`.
    """
    if isinstance(value, dict):
        keys = [key.encode("utf-16-be", "surrogatepass") for key in value]
        if keys == sorted(keys) and not any(key.startswith("$") for key in value):
            return {key: exact(item) for key, item in value.items()}
        return {_OBJECT: [[key, exact(item)] for key, item in value.items()]}
    if isinstance(value, list):
        return [exact(item) for item in value]
    merged = isinstance(value, float) and value.is_integer() and abs(value) < 1e21
    large = isinstance(value, int) and abs(value) > _LARGEST_INT
    return {_NUMBER: repr(value)} if merged or large else value


def from_exact(value: JsonValue) -> JsonValue:
    """Return the value that `exact` was given; anything else that uses its marks is an ArtifactError."""
    if isinstance(value, list):
        return [from_exact(item) for item in value]
    if not isinstance(value, dict):
        return value
    if not any(key.startswith("$") for key in value):
        return {key: from_exact(item) for key, item in value.items()}
    if list(value) == [_OBJECT]:
        return _object(value[_OBJECT])
    if list(value) == [_NUMBER]:
        return _number(value[_NUMBER])
    raise ArtifactError(f"`an object with marks is $object or $number alone`, found {str(list(value))[:60]}.")


def _object(pairs: JsonValue) -> JsonValue:
    table: dict[str, JsonValue] = {}
    for pair in pairs if isinstance(pairs, list) else [None]:
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str) or pair[0] in table:
            raise ArtifactError(f"`$object has pairs of a name, each once, and a value`, found {str(pair)[:60]!r}.")
        table[pair[0]] = from_exact(pair[1])
    return table


def _number(text: JsonValue) -> JsonValue:
    try:
        number: Any = from_json_text(cast(str, text))
    except (TypeError, ValueError):
        number = None
    # Only as `exact` writes it: one text for one number, and neither NaN nor an infinity.
    if type(number) not in (int, float) or exact(number) != {_NUMBER: text}:
        raise ArtifactError(f"`$number is the text of a number`, found {str(text)[:60]!r}.")
    return cast(JsonValue, number)

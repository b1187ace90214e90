"""The text of a run-time value in a prompt, byte for byte as DSPy 3.4 writes it.

DSPy dispatches on what the value is when the prompt is written, not on the field's annotation: a list in a `str`
field becomes a numbered list, a model becomes JSON, `None` becomes `None`.
Source: dspy/adapters/utils.py, `serialize_for_json` and `format_field_value`.
"""

import functools
import json
from typing import TYPE_CHECKING, Any

from .canonical import JsonValue, same_json

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_PLAIN_DEPTH = 50
"""Of nesting that is looked through for what isn't plain JSON; far deeper values are written otherwise by pydantic."""


def jsonable(value: Any) -> JsonValue:
    """Return the value as JSON data, as DSPy's `serialize_for_json` does.

    What pydantic can't serialize inside the value becomes its `str`; if it can't handle the value at all, the whole
    value becomes its `str`. Like DSPy's, the result may hold NaN.
    """
    kind: Any = type(value)
    if kind is str:
        return value  # type: ignore[no-any-return]  # `kind is str` doesn't narrow
    try:
        return _serializer(kind).dump_python(value, mode="json", fallback=str)  # type: ignore[no-any-return]
    except Exception:  # noqa: BLE001 - DSPy's rule: whatever pydantic refuses, for whatever reason, becomes its text
        return str(value)


def render_value(value: Any, *, text_field: bool) -> str:
    """Return the value's text in a prompt; `text_field` says whether the field's annotation is exactly `str`.

    Raises what DSPy raises for a list in a text field whose items aren't text (TypeError, mostly).
    """
    if type(value) is str:
        return value
    if text_field and isinstance(value, list):
        return _numbered(value)
    data = value if _is_plain(value, _PLAIN_DEPTH) else jsonable(value)
    if isinstance(data, (dict, list)):
        return json.dumps(data, ensure_ascii=False)
    return str(data)


def _is_plain(value: Any, depth: int) -> bool:
    """Say whether the value is JSON data already, so that pydantic, slow to import, would give back the same."""
    if type(value) is list:
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value)
    if type(value) is dict:
        return depth > 0 and all(
            type(key) is str and same_json(key) and _is_plain(item, depth - 1) for key, item in value.items()
        )
    return same_json(value)


@functools.lru_cache(maxsize=512)
def _serializer(kind: type) -> "TypeAdapter[Any]":
    # A pure function of the class, remembered because building an adapter costs fifty times its use.
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _numbered(items: list[Any]) -> str:
    if not items:
        return "N/A"
    if len(items) == 1:
        return _quoted(items[0])
    return "\n".join(f"[{index}] {_quoted(item)}" for index, item in enumerate(items, start=1))


def _quoted(blob: Any) -> str:
    if "\n" not in blob and "«" not in blob and "»" not in blob:
        return f"«{blob}»"
    indented = blob.replace("\n", "\n    ")
    return f"«««\n    {indented}\n»»»"

"""Reply text -> the typed values that DSPy 3.4's adapters would return, or a ParseError that says what was expected.

Source: dspy/adapters/chat_adapter.py and json_adapter.py (`parse`), utils.py (`parse_value`, `find_enum_member`,
`apply_output_field_defaults`).
"""

import enum
import json
import re
import types
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from .contract import annotation_name
from .literals import literal
from .prompt import Format
from .rebuild import builds_always, default_value, python_types
from .signature import FieldSpec, SignatureSpec

if TYPE_CHECKING:
    import pydantic

_LARGEST = 1_000_000
_DEEPEST = 100
_HEADER = re.compile(r"\[\[ ## (\w+) ## \]\]")
_MISSING = "it is missing from the reply"


class ParseError(Exception):
    """A reply that gives no values for the signature. Not a ValueError: DSPy's ReAct ends its loop on those.

    Attributes:
        field: The output field that couldn't be read; None if the reply as a whole couldn't.
        expected: What should have been there.
        text: The reply.

    """

    def __init__(self, field: str | None, expected: str, text: str, problem: str = "it can't be read") -> None:
        self.field = field
        self.expected = expected
        self.text = text
        where = "the reply" if field is None else f"output field `{field}`"
        super().__init__(f"{where} breaks `{expected}`: {problem}. The reply was: {text!r:.300}")


class ReplyParser:
    """Reads replies to one signature, in either format.

    It returns what DSPy returns and fails where DSPy fails, with one exception: text that is longer than 1,000,000
    characters, or whose brackets nest more than 100 deep where JSON is read and isn't valid, is refused at once.
    (DSPy's time grows with the square of that depth, 0.3 s at 5,000; how deep it can read depends on its caller.)
    """

    def __init__(self, spec: SignatureSpec, types: Mapping[str, Any] | None = None) -> None:
        if types is None:
            built = python_types(field.type for field in spec.outputs)
            types = dict(zip((field.name for field in spec.outputs), built, strict=True))
        self._fields = {field.name: _OutputField(field, types[field.name]) for field in spec.outputs}

    def parse(self, text: str | None, format: Format) -> dict[str, Any]:
        """Return the values of the output fields, in the signature's order, or raise ParseError."""
        if not text:
            raise ParseError(None, "a reply with text", text or "", "it is empty")
        if len(text) > _LARGEST:
            raise ParseError(None, f"at most {_LARGEST:,} characters", text, f"it has {len(text):,}")
        found = self._chat(text) if format == "chat" else self._json(text)
        values = {}
        for name, field in self._fields.items():
            if name in found:
                values[name] = found[name]
            elif field.optional:
                values[name] = field.fallback()
            else:
                raise ParseError(name, field.expected, text, _MISSING)
        return values

    def _chat(self, text: str) -> dict[str, Any]:
        sections: list[tuple[str | None, list[str]]] = [(None, [])]
        for line in text.splitlines():
            if "[[ ## " in line and (match := _HEADER.match(line.strip())):
                # As in DSPy: the header is found in the stripped line, and its length cut off the unstripped one.
                rest = line[match.end() :].strip()
                sections.append((match.group(1), [rest] if rest else []))
            else:
                sections[-1][1].append(line)
        found: dict[str, Any] = {}
        for name, lines in sections:
            if name is not None and name not in found and name in self._fields:
                found[name] = self._value(name, "\n".join(lines).strip(), text)
        return found

    def _json(self, text: str) -> dict[str, Any]:
        expected = f"a JSON object with the fields {', '.join(self._fields)}"
        try:
            data = _repair(text)
            if not isinstance(data, dict) and (inner := _first_object(text)):
                data = _repair(inner)
        except Exception as error:  # json_repair raises what it happens to meet; DSPy fails on each
            raise ParseError(None, expected, text, _problem(error)) from error
        if not isinstance(data, dict):
            raise ParseError(None, expected, text, f"found {type(data).__name__}")
        return {name: self._value(name, value, text) for name, value in data.items() if name in self._fields}

    def _value(self, name: str, value: Any, text: str) -> Any:
        field = self._fields[name]
        try:
            return field.parse(value)
        except Exception as error:  # so do pydantic and ast
            raise ParseError(name, field.expected, text, _problem(error)) from error


class _OutputField:
    """One output field: how its value is read, and what stands for it when it is missing."""

    def __init__(self, spec: FieldSpec, annotation: Any) -> None:
        self._default = spec.default
        self._annotation = annotation
        self._text = annotation is str
        self._enum: Any = annotation if isinstance(annotation, enum.EnumMeta) else None
        self._literals = get_args(annotation) if get_origin(annotation) is Literal else None
        args = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else ()
        self._text_or_none = str in args and type(None) in args
        self.optional = spec.default is not None or _allows_none(annotation)
        self.expected = f"{spec.name}: {annotation_name(annotation)}"
        if not builds_always(spec.type):
            _ = self._adapter  # now, so that a type that can't be built is refused where it is read

    @cached_property
    def _adapter(self) -> "pydantic.TypeAdapter[Any]":
        # Importing pydantic takes longer than loading a program, and many need no adapter at all.
        from pydantic import TypeAdapter

        return TypeAdapter(self._annotation)

    def fallback(self) -> Any:
        """Return the value of an optional field that is missing."""
        return None if self._default is None else default_value(self._default, self._annotation)

    def parse(self, value: Any) -> Any:
        """Return the typed value of the text, or of the JSON value, that the reply gives."""
        if self._text:
            return str(value)
        if self._enum is not None:
            return _member(self._enum, value)
        if self._literals is not None:
            if value in self._literals:
                return value
            if isinstance(value, str):
                value = _unwrapped(value)
                if value in self._literals:
                    return value
        if not isinstance(value, str) or self._text_or_none:
            return self._adapter.validate_python(value)
        candidate = _repair(value)
        if candidate == "" and value != "":
            try:
                candidate = literal(value)
            except (ValueError, SyntaxError):
                candidate = value
        return self._adapter.validate_python(candidate)


def _member(kind: Any, identifier: Any) -> Any:
    """Return the member of that value or, failing that, of that name."""
    for member in kind:
        if member.value == identifier:
            return member
    return kind.__members__[identifier]


def _unwrapped(text: str) -> str:
    """Return a literal without what models like to put around it: blanks, `Literal[...]`, quotes."""
    text = text.strip()
    if text.startswith(("Literal[", "str[")) and text.endswith("]"):
        text = text[text.find("[") + 1 : -1]
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    return text


def _first_object(text: str) -> str:
    """Return the leftmost text in balanced braces, or nothing.

    DSPy searches for the recursive regular expression `\\{(?:[^{}]|(?R))*\\}`, which is this in quadratic time.
    """
    opened: list[int] = []
    start, end = len(text), 0
    for brace in re.finditer(r"[{}]", text):
        if brace.group() == "{":
            opened.append(brace.start())
        elif opened and (left := opened.pop()) < start:
            start, end = left, brace.end()
    return text[start:end]


def _repair(text: str) -> Any:
    if text.count("{") + text.count("[") + text.count("(") > _DEEPEST and _depth(text) > _DEEPEST:
        try:
            return json.loads(text)  # which json_repair tries first, too
        except ValueError as error:
            raise ValueError(f"its brackets nest more than {_DEEPEST} deep, and it isn't valid JSON") from error
    import json_repair

    return json_repair.loads(text)


def _depth(text: str) -> int:
    """Return how deep brackets nest, those inside strings counted too."""
    depth = deepest = 0
    for character in re.findall(r"[\[\]{}()]", text):
        if character in "[{(":
            depth += 1
            deepest = max(deepest, depth)
        elif depth:
            depth -= 1
    return deepest


def _allows_none(annotation: Any) -> bool:
    if annotation is None or annotation is type(None):
        return True
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return bool(args) and _allows_none(args[0])
    if origin in (Union, types.UnionType):
        return any(_allows_none(arg) for arg in args)
    return False


def _problem(error: Exception) -> str:
    import pydantic

    if isinstance(error, pydantic.ValidationError):
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        return f"{first['msg']}{f' at {place}' if place else ''}, found {first['input']!r:.80}"
    if isinstance(error, KeyError):
        return f"found {error.args[0]!r:.80}" if error.args else "found nothing"
    return f"{type(error).__name__}: {error!s:.200}"

"""Record: frozen data whose annotations are its schema, read out of JSON and held to it.

Pydantic would do this too, and takes longer to import than a frozen program takes to load. What is refused, and in
which words, is what pydantic's strict models with `extra="forbid"` say of the same annotations; a test compares the
two. The grammar of annotations is small: `Any`, `str`, `bool`, `int`, `float`, `Literal`, `X | None`, `list`, `dict`
with text as keys, `tuple` of fixed length, records, `Annotated` with a `Pattern` or a `Rule`, and unions of records
that a `Tag` tells apart. `schema.py` writes the same annotations as JSON Schema.
"""

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, dataclass_transform, get_args, get_origin

Place = tuple[str | int, ...]
"""Keys and indices that lead to a value."""

_SCALARS: Mapping[Any, str] = {str: "string", bool: "boolean", int: "integer"}


class Pattern(NamedTuple):
    """The regular expression that a text matches as a whole."""

    regex: str


class Rule(NamedTuple):
    """A check beyond the type: raises ValueError, or returns the value.

    Attributes:
        check: The check.
        schema: The same in JSON Schema, as text, for readers in other languages.
    """

    check: Callable[[Any], Any]
    schema: str

    def __call__(self, value: Any) -> Any:
        """Return the value, or raise ValueError."""
        return self.check(value)


class Grammar(NamedTuple):
    """The grammar of data that another reader checks: `signature`, `plan` or `flow`. For `schema.py` alone."""

    name: str


class Tag(NamedTuple):
    """The field whose Literal tells the records of a union apart."""

    field: str


class Mismatch(ValueError):
    """JSON data that isn't what a record's annotations say.

    Attributes:
        where: Keys and indices of the first value that is wrong; in a union, also its tag.
    """

    def __init__(self, where: Place, problem: str) -> None:
        super().__init__(problem)
        self.where = where


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Record:
    """Frozen data: made with every field by name, equal where its fields are, and read with `from_json`."""

    kinds: ClassVar[Mapping[str, Any]] = {}
    """The annotation of every field, inherited ones first."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """The values of fields that needn't be given."""

    def __init_subclass__(cls) -> None:
        own = cls.__annotations__
        cls.kinds = {**cls.kinds, **own}
        cls.defaults = {**cls.defaults, **{name: vars(cls)[name] for name in own if name in vars(cls)}}

    def __init__(self, **values: Any) -> None:
        cls = type(self)
        given = {**cls.defaults, **values}
        if given.keys() != cls.kinds.keys():
            name = min(given.keys() ^ cls.kinds.keys())
            raise TypeError(f"{cls.__name__} {'has no' if name in given else 'lacks its'} field {name!r}")
        self.__dict__.update({name: given[name] for name in cls.kinds})

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Return the record that JSON data holds.

        Raises:
            Mismatch: If a field is missing or of another type, or a key is none of the fields.
        """
        record: Self = _record(cls, data, ())
        return record

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON data, records in it too; `from_json` is the inverse."""
        return {name: _plain(value) for name, value in self.__dict__.items()}

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__}.{name}: `a record doesn't change`")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__}.{name}: `a record doesn't change`")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), *self.__dict__.values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def _record(cls: Any, data: Any, where: Place) -> Any:
    """Return an instance of the record class `cls`: its fields in order, then keys that it doesn't know."""
    if type(data) is not dict:
        raise Mismatch(where, "Input should be an object")
    values = {}
    for name, kind in cls.kinds.items():
        if name in data:
            values[name] = _read(kind, data[name], (*where, name))
        elif name not in cls.defaults:
            raise Mismatch((*where, name), "Field required")
    for key in data:
        if key not in cls.kinds:
            raise Mismatch((*where, key), "Extra inputs are not permitted")
    return cls(**values)


def _read(kind: Any, value: Any, where: Place) -> Any:
    """Return a value out of JSON as one of this annotation, or raise Mismatch."""
    if kind is Any:
        return value
    if kind in _SCALARS:
        # Exactly: a boolean is no integer.
        if type(value) is not kind:
            raise Mismatch(where, f"Input should be a valid {_SCALARS[kind]}")
        return value
    if kind is float:
        if type(value) not in (int, float):
            raise Mismatch(where, "Input should be a valid number")
        return float(value)
    if isinstance(kind, type) and issubclass(kind, Record):
        return _record(kind, value, where)
    return _generic(get_origin(kind), get_args(kind), value, where)


def _generic(origin: Any, args: tuple[Any, ...], value: Any, where: Place) -> Any:
    if origin is Annotated:
        return _annotated(args[0], args[1:], value, where)
    if origin is Literal:
        if type(value) is not str or value not in args:
            *head, last = (repr(item) for item in args)
            raise Mismatch(where, f"Input should be {', '.join(head)}{' or ' if head else ''}{last}")
        return value
    if origin is dict:
        if type(value) is not dict:
            raise Mismatch(where, "Input should be an object")
        return {key: _read(args[1], item, (*where, key)) for key, item in value.items()}
    if origin in (list, tuple):
        if type(value) is not list:
            raise Mismatch(where, "Input should be a valid array")
        if origin is list:
            return [_read(args[0], item, (*where, index)) for index, item in enumerate(value)]
        return _tuple(args, value, where)
    options = [option for option in args if option is not type(None)]
    if len(options) == 1 and len(args) == 2:
        return None if value is None else _read(options[0], value, where)
    raise TypeError(f"{origin!r} of {args!r} is no annotation of a record")


def _tuple(kinds: tuple[Any, ...], value: list[Any], where: Place) -> Any:
    if len(value) > len(kinds):
        raise Mismatch(where, f"Tuple should have at most {len(kinds)} items after validation, not {len(value)}")
    found = tuple(_read(kinds[index], item, (*where, index)) for index, item in enumerate(value))
    if len(found) < len(kinds):
        raise Mismatch((*where, len(found)), "Field required")
    return found


def _annotated(kind: Any, rules: tuple[Pattern | Rule | Grammar | Tag, ...], value: Any, where: Place) -> Any:
    for rule in rules:
        if isinstance(rule, Tag):
            return _tagged(rule.field, get_args(kind), value, where)
    value = _read(kind, value, where)
    for rule in rules:
        if isinstance(rule, Pattern):
            if re.fullmatch(rule.regex, value) is None:
                raise Mismatch(where, f"String should match pattern '^{rule.regex}$'")
        elif isinstance(rule, Rule):
            try:
                value = rule(value)
            except ValueError as error:
                raise Mismatch(where, f"Value error, {error}") from error
    return value


def _tagged(field: str, records: tuple[Any, ...], value: Any, where: Place) -> Any:
    if type(value) is not dict:
        raise Mismatch(where, "Input should be an object")
    if field not in value:
        raise Mismatch(where, f"Unable to extract tag using discriminator '{field}'")
    by_tag = {tag: record for record in records for tag in get_args(record.kinds[field])}
    tag = value[field]
    if type(tag) is not str or tag not in by_tag:
        known = ", ".join(f"'{known}'" for known in by_tag)
        raise Mismatch(
            where, f"Input tag '{tag}' found using '{field}' does not match any of the expected tags: {known}"
        )
    return _record(by_tag[tag], value, (*where, tag))

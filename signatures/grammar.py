"""The closed type grammar: every type a signature may have, as frozen data that goes through JSON without loss.

Numbers and other literals inside the grammar are held as JSON texts, because `1 == True == 1.0` in Python and
`1.0` is `1` in canonical JSON, while a prompt tells them apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from .canonical import JsonValue, checked_json_text, from_json_text, json_text, same_json
from .errors import ArtifactError, nearest

SCALARS = ("str", "bool", "int", "float", "none", "any", "date", "datetime", "list", "dict", "tuple")
ENUM_BASES = ("Enum", "str", "int", "StrEnum", "IntEnum")
META_FORMS = ("raw", "field", "string", "strict", "allow_inf_nan", "interval", "none")
FACTORIES: Mapping[str, Any] = {"list": list, "dict": dict, "str": str, "int": int, "float": float, "bool": bool}

CONFIG = frozenset({
    "allow_inf_nan", "arbitrary_types_allowed", "coerce_numbers_to_str", "extra", "from_attributes", "frozen",
    "hide_input_in_errors", "loc_by_alias", "populate_by_name", "revalidate_instances", "serialize_by_alias",
    "str_max_length", "str_min_length", "str_strip_whitespace", "str_to_lower", "str_to_upper", "strict", "title",
    "use_attribute_docstrings", "use_enum_values", "validate_assignment", "validate_by_alias", "validate_by_name",
    "validate_default", "validate_return", "ser_json_inf_nan", "ser_json_timedelta", "ser_json_bytes",
    "val_json_bytes",
})  # fmt: skip
"""Settings of a model that are plain data and say how it validates or serializes. Others run code, change the schema,
or (`regex_engine`) match patterns in a time that grows exponentially with a text's length."""
FIELD_OPTIONS = (
    "alias", "validation_alias", "serialization_alias", "title", "description", "examples", "exclude", "discriminator",
    "deprecated", "json_schema_extra", "frozen", "validate_default",
)  # fmt: skip
BOUNDS = ("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length")
STRING_BOUNDS = ("strip_whitespace", "to_upper", "to_lower", "strict", "min_length", "max_length", "pattern")
OPTIONS = frozenset({
    *FIELD_OPTIONS, *BOUNDS, *STRING_BOUNDS, "allow_inf_nan", "max_digits", "decimal_places", "union_mode",
    "coerce_numbers_to_str",
})  # fmt: skip
"""Constraints and descriptions of a value."""
MOST_NODES = 2000
"""Of one type."""

Options: TypeAlias = tuple[tuple[str, str], ...]  # names and the JSON texts of their values
_DEEPEST = 60


@dataclass(frozen=True)
class Unsupported:
    """What the grammar doesn't capture, with the reason in one sentence; such a thing is left to DSPy itself."""

    reason: str


@dataclass(frozen=True)
class TypeSpec:
    """A type of the grammar; one of the classes below."""

    def to_json(self) -> JsonValue:
        """Return the type as JSON data; `type_from_json` is the inverse."""
        raise NotImplementedError


@dataclass(frozen=True)
class Scalar(TypeSpec):
    """A type without parameters: a plain value, any JSON value, or a bare `list`, `dict` or `tuple`."""

    name: str

    def to_json(self) -> JsonValue:
        """Return the scalar's name."""
        return self.name


@dataclass(frozen=True)
class LiteralType(TypeSpec):
    """One of some strings, integers, booleans or None, given as JSON texts."""

    texts: tuple[str, ...]

    @property
    def values(self) -> "tuple[str | int | bool | None, ...]":
        """The values themselves."""
        return tuple(cast("str | int | bool | None", from_json_text(text)) for text in self.texts)

    def to_json(self) -> JsonValue:
        """Return `{"kind": "literal", "values": [...]}`."""
        return {"kind": "literal", "values": list(self.values)}


@dataclass(frozen=True)
class EnumType(TypeSpec):
    """An enumeration; `members` are names and JSON texts of values in order, aliases included."""

    name: str
    doc: str | None
    base: str
    members: Options

    def to_json(self) -> JsonValue:
        """Return `{"kind": "enum", ...}`."""
        members: list[JsonValue] = [[name, from_json_text(text)] for name, text in self.members]
        return {"kind": "enum", "name": self.name, "doc": self.doc, "base": self.base, "members": members}


@dataclass(frozen=True)
class ListType(TypeSpec):
    """A list of one type."""

    items: TypeSpec

    def to_json(self) -> JsonValue:
        """Return `{"kind": "list", "items": ...}`."""
        return {"kind": "list", "items": self.items.to_json()}


@dataclass(frozen=True)
class DictType(TypeSpec):
    """A mapping."""

    keys: TypeSpec
    values: TypeSpec

    def to_json(self) -> JsonValue:
        """Return `{"kind": "dict", "keys": ..., "values": ...}`."""
        return {"kind": "dict", "keys": self.keys.to_json(), "values": self.values.to_json()}


@dataclass(frozen=True)
class TupleType(TypeSpec):
    """A tuple of fixed length or, if `variadic`, of any number of its one item type."""

    items: tuple[TypeSpec, ...]
    variadic: bool = False

    def to_json(self) -> JsonValue:
        """Return `{"kind": "tuple", "items": [...], "variadic": ...}`."""
        return {"kind": "tuple", "items": [item.to_json() for item in self.items], "variadic": self.variadic}


@dataclass(frozen=True)
class UnionType(TypeSpec):
    """One of several types, in the order written; an optional type has `none` among them."""

    options: tuple[TypeSpec, ...]

    def to_json(self) -> JsonValue:
        """Return `{"kind": "union", "options": [...]}`."""
        return {"kind": "union", "options": [option.to_json() for option in self.options]}


@dataclass(frozen=True)
class Meta:
    """A constraint in `Annotated` metadata: the form it was written in, and its options as JSON texts.

    Forms: `raw` is annotated_types' or pydantic's own (`Gt(gt=0)`), `field` is `Field(...)`, `string` is
    `StringConstraints(...)`; `strict`, `allow_inf_nan` and `interval` are those classes, and `none` is the None that
    `conint()` leaves behind. The form matters because DSPy prints the object's repr.
    """

    form: str
    options: Options

    def to_json(self) -> JsonValue:
        """Return `{"form": ..., "options": {name: JSON text}}`."""
        return {"form": self.form, "options": dict(self.options)}


@dataclass(frozen=True)
class AnnotatedType(TypeSpec):
    """A type with constraints."""

    type: TypeSpec
    metadata: tuple[Meta, ...]

    def to_json(self) -> JsonValue:
        """Return `{"kind": "annotated", "type": ..., "metadata": [...]}`."""
        metadata: list[JsonValue] = [meta.to_json() for meta in self.metadata]
        return {"kind": "annotated", "type": self.type.to_json(), "metadata": metadata}


@dataclass(frozen=True)
class Default:
    """The value of a field that isn't given.

    `value`: text is JSON. `factory`: text names a built-in class that is called anew each time. `member`: text is the
    JSON list [enumeration, member].
    """

    kind: Literal["value", "factory", "member"]
    text: str

    def to_json(self) -> JsonValue:
        """Return `{kind: text}`."""
        return {self.kind: self.text}


@dataclass(frozen=True)
class ModelField:
    """A field of a model; `options` are the arguments of pydantic's `Field` as JSON texts."""

    name: str
    type: TypeSpec
    default: Default | None
    options: Options

    def to_json(self) -> JsonValue:
        """Return `{"name": ..., "type": ..., "default": ..., "options": {...}}`."""
        default = None if self.default is None else self.default.to_json()
        return {"name": self.name, "type": self.type.to_json(), "default": default, "options": dict(self.options)}


@dataclass(frozen=True)
class ModelType(TypeSpec):
    """A pydantic model that only declares; `config` holds its settings as JSON texts."""

    name: str
    doc: str | None
    config: Options
    fields: tuple[ModelField, ...]

    def to_json(self) -> JsonValue:
        """Return `{"kind": "model", ...}`."""
        fields: list[JsonValue] = [item.to_json() for item in self.fields]
        return {"kind": "model", "name": self.name, "doc": self.doc, "config": dict(self.config), "fields": fields}


@dataclass(frozen=True)
class RefType(TypeSpec):
    """The nearest enclosing model of that name: how a recursive type ends."""

    name: str

    def to_json(self) -> JsonValue:
        """Return `{"kind": "ref", "name": ...}`."""
        return {"kind": "ref", "name": self.name}


def type_from_json(data: JsonValue) -> TypeSpec:
    """Return the type that `to_json` wrote; anything else, unknown keys included, is an ArtifactError."""
    return _Reader().type(data, "type", ())


class _Reader:
    """Reads one type out of JSON; every check names the place."""

    def __init__(self) -> None:
        self._nodes = 0

    def type(self, data: JsonValue, where: str, enclosing: tuple[str, ...]) -> TypeSpec:
        self._nodes += 1
        if self._nodes > MOST_NODES:
            raise ArtifactError(f"{where[:80]} breaks `a type has at most {MOST_NODES} parts`; take the original file.")
        if where.count(".") > _DEEPEST:
            raise ArtifactError(f"{where[:80]}... breaks `types nest at most {_DEEPEST} deep`; flatten the type.")
        if isinstance(data, str):
            if data not in SCALARS:
                raise ArtifactError(f"{where} breaks `known type`: found {data!r:.60}; {nearest(data, SCALARS)}")
            return Scalar(data)
        if not isinstance(data, dict):
            raise ArtifactError(f"{where} breaks `a type is a name or an object`: found {data!r:.60}.")
        kind = data.get("kind")
        kinds = ("literal", "enum", "list", "dict", "tuple", "union", "annotated", "model", "ref")
        if kind not in kinds:
            raise ArtifactError(f"{where}.kind breaks `known kind`: found {kind!r:.60}; {nearest(str(kind), kinds)}")
        read = getattr(self, f"_{kind}")
        return cast("TypeSpec", read(data, where, enclosing))

    def _literal(self, data: JsonValue, where: str, enclosing: tuple[str, ...]) -> TypeSpec:
        (values,) = keys_of(data, where, "values", kind="literal")
        return LiteralType(tuple(self._atom(value, f"{where}.values") for value in _some(values, where)))

    def _enum(self, data: JsonValue, where: str, enclosing: tuple[str, ...]) -> TypeSpec:
        name, doc, base, members = keys_of(data, where, "name", "doc", "base", "members", kind="enum")
        if base not in ENUM_BASES:
            raise ArtifactError(f"{where}.base breaks `one of {', '.join(ENUM_BASES)}`: found {base!r:.60}.")
        pairs = []
        for member in _some(members, where):
            if not isinstance(member, list) or len(member) != 2:
                raise ArtifactError(f"{where}.members breaks `a member is [name, value]`: found {member!r:.60}.")
            pairs.append((_own_name(member[0], where), self._atom(member[1], where)))
        return EnumType(text_of(name, where), _doc_of(doc, where), base, tuple(pairs))

    def _list(self, data: JsonValue, where: str, enclosing: tuple[str, ...]) -> TypeSpec:
        (items,) = keys_of(data, where, "items", kind="list")
        return ListType(self.type(items, f"{where}.items", enclosing))

    def _dict(self, data: JsonValue, where: str, enclosing: tuple[str, ...]) -> TypeSpec:
        keys, values = keys_of(data, where, "keys", "values", kind="dict")
        return DictType(self.type(keys, f"{where}.keys", enclosing), self.type(values, f"{where}.values", enclosing))

    def _tuple(self, data: JsonValue, where: str, enclosing: tuple[str, ...]) -> TypeSpec:
        items, variadic = keys_of(data, where, "items", "variadic", kind="tuple")
        read = tuple(self.type(item, f"{where}.items", enclosing) for item in list_of(items, where))
        if not isinstance(variadic, bool) or (variadic and len(read) != 1):
            raise ArtifactError(f"{where}.variadic breaks `true with exactly one item type`: found {variadic!r:.60}.")
        return TupleType(read, variadic)

    def _union(self, data: JsonValue, where: str, enclosing: tuple[str, ...]) -> TypeSpec:
        (options,) = keys_of(data, where, "options", kind="union")
        return UnionType(tuple(self.type(item, f"{where}.options", enclosing) for item in list_of(options, where)))

    def _annotated(self, data: JsonValue, where: str, enclosing: tuple[str, ...]) -> TypeSpec:
        inner, metadata = keys_of(data, where, "type", "metadata", kind="annotated")
        metas = []
        for item in list_of(metadata, where):
            form, options = keys_of(item, f"{where}.metadata", "form", "options")
            if form not in META_FORMS:
                raise ArtifactError(f"{where}.form breaks `one of {', '.join(META_FORMS)}`: found {form!r:.60}.")
            metas.append(Meta(form, _options_of(options, OPTIONS, where)))
        return AnnotatedType(self.type(inner, f"{where}.type", enclosing), tuple(metas))

    def _model(self, data: JsonValue, where: str, enclosing: tuple[str, ...]) -> TypeSpec:
        name, doc, config, fields = keys_of(data, where, "name", "doc", "config", "fields", kind="model")
        inside = (*enclosing, text_of(name, where))
        read = tuple(self._field(item, f"{where}.{index}", inside) for index, item in enumerate(list_of(fields, where)))
        return ModelType(text_of(name, where), _doc_of(doc, where), _options_of(config, CONFIG, where), read)

    def _field(self, data: JsonValue, where: str, enclosing: tuple[str, ...]) -> ModelField:
        name, inner, default, options = keys_of(data, where, "name", "type", "default", "options")
        spec = self.type(inner, where, enclosing)
        return ModelField(
            _own_name(name, where), spec, default_from_json(default, where), _options_of(options, OPTIONS, where)
        )

    def _ref(self, data: JsonValue, where: str, enclosing: tuple[str, ...]) -> TypeSpec:
        (name,) = keys_of(data, where, "name", kind="ref")
        if name not in enclosing:
            raise ArtifactError(f"{where}.name breaks `a reference names an enclosing model`: found {name!r:.60}.")
        return RefType(name)

    def _atom(self, value: JsonValue, where: str) -> str:
        if value is not None and not isinstance(value, (str, bool, int)):
            raise ArtifactError(f"{where} breaks `a string, integer, boolean or null`: found {value!r:.60}.")
        return json_text(value)


def default_from_json(data: JsonValue, where: str) -> Default | None:
    """Return the default that `Default.to_json` wrote, or None for null."""
    if data is None:
        return None
    if not isinstance(data, dict) or len(data) != 1:
        raise ArtifactError(f"{where}.default breaks `one of value, factory, member`: found {data!r:.60}.")
    [(kind, text)] = data.items()
    text = text_of(text, f"{where}.default")
    if kind == "value" and same_json(_parsed(text, where)):
        return Default("value", text)
    if kind == "factory" and text in FACTORIES:
        return Default("factory", text)
    if kind == "member" and isinstance(_parsed(text, where), list):
        return Default("member", text)
    raise ArtifactError(f"{where}.default breaks `value, factory or member with its text`: found {data!r:.60}.")


def keys_of(data: JsonValue, where: str, *keys: str, kind: str | None = None) -> list[JsonValue]:
    """Return the values of exactly these keys of an object, in order; a missing or unknown key is an ArtifactError."""
    if not isinstance(data, dict):
        raise ArtifactError(f"{where} breaks `an object`: found {data!r:.60}.")
    expected = {*keys, "kind"} if kind else set(keys)
    unknown, missing = sorted(data.keys() - expected), sorted(expected - data.keys())
    if unknown:
        raise ArtifactError(f"{where} breaks `known keys only`: found {unknown[0]!r:.60}; {nearest(unknown[0], keys)}")
    if missing:
        raise ArtifactError(f"{where} breaks `every key is present`: {missing[0]!r} is missing.")
    return [data[key] for key in keys]


def list_of(data: JsonValue, where: str) -> list[JsonValue]:
    """Return the data if it is a list."""
    if not isinstance(data, list):
        raise ArtifactError(f"{where} breaks `a list`: found {data!r:.60}.")
    return data


def text_of(data: JsonValue, where: str) -> str:
    """Return the data if it is a string."""
    if not isinstance(data, str):
        raise ArtifactError(f"{where} breaks `a string`: found {data!r:.60}.")
    return data


def _doc_of(data: JsonValue, where: str) -> str | None:
    return None if data is None else text_of(data, where)


def _some(data: JsonValue, where: str) -> list[JsonValue]:
    found = list_of(data, where)
    if not found:
        raise ArtifactError(f"{where} breaks `a literal or enumeration has at least one value`: found none.")
    return found


def _own_name(data: JsonValue, where: str) -> str:
    name = text_of(data, where)
    # `__base__` or `__init__` would reach what makes the class.
    if name.startswith("__"):
        raise ArtifactError(
            f"{where} breaks `a field or member doesn't begin with two underscores`: found {name!r:.60}."
        )
    return name


def _options_of(data: JsonValue, known: frozenset[str], where: str) -> Options:
    if not isinstance(data, dict):
        raise ArtifactError(f"{where} breaks `options are an object`: found {data!r:.60}.")
    if unknown := sorted(data.keys() - known):
        raise ArtifactError(
            f"{where} breaks `known options only`: found {unknown[0]!r:.60}; {nearest(unknown[0][:60], sorted(known))}"
        )
    options = tuple(sorted((name, text_of(text, f"{where}.{name}")) for name, text in data.items()))
    for name, text in options:
        _parsed(text, f"{where}.{name}")
    return options


def _parsed(text: str, where: str) -> JsonValue:
    try:
        return checked_json_text(text)
    except ValueError as error:
        raise ArtifactError(f"{where} breaks `the text of a JSON value`: found {text!r:.60}.") from error

"""Python annotation -> type of the grammar, or a refusal; what is only nearly in the grammar is refused."""

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping
from datetime import date, datetime
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pydantic
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from .canonical import json_text, same_json
from .grammar import (
    BOUNDS,
    CONFIG,
    FACTORIES,
    FIELD_OPTIONS,
    MOST_NODES,
    OPTIONS,
    STRING_BOUNDS,
    AnnotatedType,
    Default,
    DictType,
    EnumType,
    ListType,
    LiteralType,
    Meta,
    ModelField,
    ModelType,
    Options,
    RefType,
    Scalar,
    TupleType,
    TypeSpec,
    UnionType,
)
from .rebuild import enumeration

_SCALARS: Mapping[Any, str] = {
    str: "str", bool: "bool", int: "int", float: "float", type(None): "none", Any: "any", date: "date",
    datetime: "datetime", list: "list", dict: "dict", tuple: "tuple",
}  # fmt: skip
_BARE = {typing.List: "list", typing.Dict: "dict", typing.Tuple: "tuple"}  # noqa: UP006 - the old spellings are the keys
_LARGEST_INT = 2**53


class Refused(Exception):
    """The annotation is outside the grammar; the message is the reason."""


class Lowering:
    """One annotation on its way into the grammar: counts its nodes and knows the models it is inside of."""

    def __init__(self) -> None:
        self._nodes = 0
        self._inside: list[type] = []

    def lower(self, annotation: Any) -> TypeSpec:
        """Return the annotation's type, or raise `Refused`."""
        self._nodes += 1
        if self._nodes > MOST_NODES:
            raise Refused(f"the type has more than {MOST_NODES} parts")
        if annotation is None:
            return Scalar("none")
        if isinstance(annotation, type) or annotation is Any:
            for known, name in _SCALARS.items():
                if annotation is known:
                    return Scalar(name)
        if any(annotation is bare for bare in _BARE):
            raise Refused(f"`{annotation}` without parameters prints unlike `{_BARE[annotation]}`")
        origin = get_origin(annotation)
        if origin is not None:
            return self._generic(annotation, origin, get_args(annotation))
        if isinstance(annotation, type):
            return self._class(annotation)
        raise Refused(f"`{annotation!r:.80}` is not a type the grammar knows")

    def _generic(self, annotation: Any, origin: Any, args: tuple[Any, ...]) -> TypeSpec:
        if origin is Literal:
            return LiteralType(tuple(_atom(value, "a literal's value") for value in args))
        if origin is Annotated:
            return AnnotatedType(self.lower(args[0]), tuple(_meta(item) for item in args[1:]))
        if origin is Union or origin is types.UnionType:
            return UnionType(tuple(self.lower(option) for option in args))
        if origin is list and len(args) == 1:
            return ListType(self.lower(args[0]))
        if origin is dict and len(args) == 2:
            return DictType(self.lower(args[0]), self.lower(args[1]))
        if origin is tuple:
            if len(args) == 2 and args[1] is Ellipsis:
                return TupleType((self.lower(args[0]),), variadic=True)
            return TupleType(tuple(self.lower(item) for item in args))
        raise Refused(f"`{annotation!r:.80}` is not a type the grammar knows")

    def _class(self, kind: Any) -> TypeSpec:
        name = kind.__name__
        if any(base.__module__.partition(".")[0] == "dspy" for base in kind.__mro__):
            raise Refused(f"`{name}` is a type of DSPy's own, which changes the request itself")
        if issubclass(kind, enum.Enum):
            return _enumeration(kind)
        if issubclass(kind, pydantic.BaseModel):
            return self._model(kind)
        if dataclasses.is_dataclass(kind):
            raise Refused(f"`{name}` is a dataclass; write a pydantic model")
        if typing.is_typeddict(kind):
            raise Refused(f"`{name}` is a TypedDict; write a pydantic model")
        raise Refused(f"`{name}` is not a type the grammar knows")

    def _model(self, kind: type[pydantic.BaseModel]) -> TypeSpec:
        if kind in self._inside:
            # The innermost model of this name is what a reference means.
            named = [model for model in self._inside if model.__name__ == kind.__name__]
            if named[-1] is not kind:
                raise Refused(f"two models around each other are called `{kind.__name__}`")
            return RefType(kind.__name__)
        _check_declares_only(kind)
        config = _options({name: value for name, value in kind.model_config.items() if value is not None}, CONFIG, kind)
        self._inside.append(kind)
        fields = tuple(self._field(kind, name, info) for name, info in kind.model_fields.items())
        self._inside.pop()
        return ModelType(kind.__name__, kind.__doc__, config, fields)

    def _field(self, kind: type, name: str, info: FieldInfo) -> ModelField:
        where = f"`{kind.__name__}.{name}`"
        options = {key: getattr(info, key, None) for key in FIELD_OPTIONS}
        for key in ("field_title_generator", "exclude_if"):
            if getattr(info, key, None) is not None:
                raise Refused(f"{where} has `{key}`, which is code")
        spec = self.lower(info.annotation)
        # `conint()` and its like leave None among the metadata.
        metas = tuple(_meta(item) for item in info.metadata if item is not None)
        if metas:
            spec = AnnotatedType(spec, metas)
        given = {key: value for key, value in options.items() if value is not None}
        return ModelField(name, spec, default_of(info, info.annotation, where), _options(given, OPTIONS, where))


def default_of(info: FieldInfo, annotation: Any, where: str) -> Default | None:
    """Return the default of a field as data, None if it has none; raise `Refused` for what isn't data."""
    if info.default_factory is not None:
        for name, factory in FACTORIES.items():
            if info.default_factory is factory:
                return Default("factory", name)
        raise Refused(f"{where} has a default factory that is code: {info.default_factory!r:.60}")
    if info.default is PydanticUndefined or info.default is Ellipsis:
        return None
    if isinstance(info.default, enum.Enum):
        member = info.default
        if enumeration(annotation, type(member).__name__) is not type(member):
            raise Refused(f"{where} has a default of another type than its own: {member!r:.60}")
        return Default("member", json_text([type(member).__name__, member.name]))
    if not same_json(info.default):
        raise Refused(f"{where} has a default that is no JSON value: {info.default!r:.60}")
    return Default("value", json_text(info.default))


def _enumeration(kind: type[enum.Enum]) -> EnumType:
    where = f"enumeration `{kind.__name__}`"
    if issubclass(kind, enum.Flag):
        raise Refused(f"{where} is a flag")
    if vars(kind).keys() & {"__get_pydantic_core_schema__", "__get_pydantic_json_schema__"}:
        raise Refused(f"{where} has a pydantic schema of its own")
    if kind._missing_.__func__ is not enum.Enum._missing_.__func__:  # type: ignore[attr-defined]  # typeshed lacks it
        raise Refused(f"{where} runs code of its own to find a member (`_missing_`)")
    mixin = getattr(kind, "_member_type_", object)
    if issubclass(kind, (enum.StrEnum, enum.IntEnum)):
        base = "StrEnum" if issubclass(kind, enum.StrEnum) else "IntEnum"
    elif mixin in (object, str, int):
        base = "Enum" if mixin is object else mixin.__name__
    else:
        raise Refused(f"{where} mixes in `{mixin.__name__}`")
    members = tuple((name, _atom(member.value, where)) for name, member in kind.__members__.items())
    if not members:
        raise Refused(f"{where} has no members")
    return EnumType(kind.__name__, kind.__doc__, base, members)


def _check_declares_only(kind: type[pydantic.BaseModel]) -> None:
    """Refuse a model that runs code of its own when it validates or serializes."""
    where = f"model `{kind.__name__}`"
    if issubclass(kind, pydantic.RootModel):
        raise Refused(f"{where} is a root model")
    decorators = kind.__pydantic_decorators__
    for group in dataclasses.fields(decorators):
        if found := getattr(decorators, group.name):
            raise Refused(f"{where} runs code: `{next(iter(found))}` is one of its {group.name.replace('_', ' ')}")
    if kind.__private_attributes__:
        raise Refused(f"{where} has private attributes")
    if kind.__pydantic_custom_init__ or kind.__pydantic_post_init__:
        raise Refused(f"{where} runs code when it is made (`__init__` or `model_post_init`)")
    for name in ("__get_pydantic_core_schema__", "__get_pydantic_json_schema__"):
        if getattr(kind, name).__func__ is not getattr(pydantic.BaseModel, name).__func__:
            raise Refused(f"{where} overrides `{name}`")


def _meta(item: Any) -> Meta:
    kind = type(item)
    if isinstance(item, FieldInfo):
        return _field_meta(item)
    if isinstance(item, pydantic.StringConstraints):
        given = {name: getattr(item, name, None) for name in STRING_BOUNDS}
        return Meta("string", _options({k: v for k, v in given.items() if v is not None}, OPTIONS, repr(item)))
    if isinstance(item, pydantic.Strict):
        return Meta("strict", _options({"strict": item.strict}, OPTIONS, repr(item)))
    if isinstance(item, pydantic.AllowInfNan):
        return Meta("allow_inf_nan", _options({"allow_inf_nan": item.allow_inf_nan}, OPTIONS, repr(item)))
    if item is None:
        return Meta("none", ())
    bounds = {name: getattr(item, name) for name in BOUNDS if getattr(item, name, None) is not None}
    if kind.__module__ == "annotated_types" and kind.__name__ == "Interval":
        return Meta("interval", _options(bounds, OPTIONS, repr(item)))
    if kind.__module__ == "annotated_types" and bounds:
        return Meta("raw", _options(bounds, OPTIONS, repr(item)))
    if kind.__name__ == "_PydanticGeneralMetadata" and kind.__module__.startswith("pydantic."):
        return Meta("raw", _options(vars(item), OPTIONS, repr(item)))
    raise Refused(f"the annotation `{item!r:.60}` is not a constraint the grammar knows")


def _field_meta(info: FieldInfo) -> Meta:
    if info.default is not PydanticUndefined or info.default_factory is not None or info.annotation is not None:
        raise Refused(f"`{info!r:.80}` is more than a constraint")
    given = {name: getattr(info, name, None) for name in FIELD_OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    for item in info.metadata:
        inner = _meta(item)
        if inner.form != "raw":
            raise Refused(f"`{info!r:.80}` holds a constraint of another form")
        given.update({name: getattr(item, name) for name, _ in inner.options})
    return Meta("field", _options(given, OPTIONS, repr(info)))


def _options(values: Mapping[str, Any], known: frozenset[str], where: Any) -> Options:
    for name, value in values.items():
        if name not in known or not same_json(value):
            raise Refused(f"{where if isinstance(where, str) else where.__name__} has `{name}` = {value!r:.60}")
    return tuple(sorted((name, json_text(value)) for name, value in values.items()))


def _atom(value: Any, where: str) -> str:
    if type(value) is int and not -_LARGEST_INT <= value <= _LARGEST_INT:
        raise Refused(f"{where} is an integer beyond 2**53")
    if (value is not None and type(value) not in (str, int, bool)) or not same_json(value):
        raise Refused(f"{where} is neither text, nor an integer, nor a boolean, nor None: {value!r:.60}")
    return json_text(value)

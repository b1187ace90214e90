"""Type of the grammar -> Python annotation that validates the same values, where the user's classes are not at hand."""

import enum
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from typing import TYPE_CHECKING, Annotated, Any, ForwardRef, Literal, Union, get_args, get_origin

from .canonical import from_json_text
from .errors import ArtifactError
from .grammar import (
    FACTORIES,
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

if TYPE_CHECKING:
    import pydantic

# Subscripted with types that are known at run time only, which a type checker can't follow.
_LIST: Any = list
_DICT: Any = dict
_TUPLE: Any = tuple
_UNION: Any = Union
_LITERAL: Any = Literal
_ANNOTATED: Any = Annotated
_SCALARS: Mapping[str, Any] = {
    "str": str, "bool": bool, "int": int, "float": float, "none": type(None), "any": Any, "date": date,
    "datetime": datetime, "list": list, "dict": dict, "tuple": tuple,
}  # fmt: skip
_ENUM_BASES: Mapping[str, tuple[type, ...]] = {
    "Enum": (enum.Enum,), "str": (str, enum.Enum), "int": (int, enum.Enum), "StrEnum": (enum.StrEnum,),
    "IntEnum": (enum.IntEnum,),
}  # fmt: skip


def python_types(specs: Iterable[TypeSpec]) -> list[Any]:
    """Return the Python annotations of several types, in order; equal models and enumerations become one class."""
    rebuild = _Rebuild()
    built = [rebuild.build(spec, {}) for spec in specs]
    rebuild.finish()
    return built


def builds_always(spec: TypeSpec) -> bool:
    """Say whether pydantic surely builds a validator for the type, so that building it can wait for a first value."""
    match spec:
        case Scalar():
            return True
        case LiteralType(texts):
            return bool(texts)
        case EnumType(members=members):
            return bool(members)
        case ListType(items):
            return builds_always(items)
        case DictType(keys, values):
            return builds_always(keys) and builds_always(values)
        case TupleType(items, _) | UnionType(items):
            return all(map(builds_always, items))
    return False


class _Rebuild:
    def __init__(self) -> None:
        self._classes: dict[Any, Any] = {}
        self._names: dict[str, Any] = {}  # what forward references stand for
        self._recursive: list[type[pydantic.BaseModel]] = []

    def build(self, spec: TypeSpec, scope: Mapping[str, str]) -> Any:
        """Return the annotation; `scope` gives the forward reference of each enclosing model."""
        match spec:
            case Scalar(name):
                return _SCALARS[name]
            case LiteralType():
                return _LITERAL[spec.values]
            case ListType(items):
                return _LIST[self.build(items, scope)]
            case DictType(keys, values):
                return _DICT[self.build(keys, scope), self.build(values, scope)]
            case TupleType(items, variadic):
                built = tuple(self.build(item, scope) for item in items)
                return _TUPLE[(built[0], ...)] if variadic else _TUPLE[built]
            case UnionType(options):
                return _UNION[tuple(self.build(option, scope) for option in options)]
            case AnnotatedType(inner, metadata):
                arguments = (self.build(inner, scope), *(item for meta in metadata for item in _metadata(meta)))
                return _ANNOTATED[arguments]
            case RefType(name):
                return ForwardRef(scope[name])
            case EnumType():
                if spec not in self._classes:
                    self._classes[spec] = _enumeration(spec)
                return self._classes[spec]
            case ModelType():
                return self._model(spec, scope)
        raise TypeError(f"not a type of the grammar: {spec!r}")

    def _model(self, spec: ModelType, scope: Mapping[str, str]) -> Any:
        import warnings

        import pydantic

        free = _references(spec, frozenset())
        key = (spec, tuple(sorted((name, scope[name]) for name in free)))
        if key in self._classes:
            return self._classes[key]
        reference = f"Model{len(self._classes)}_"
        self._classes[key] = ForwardRef(reference)
        inside = {**scope, spec.name: reference}
        fields: dict[str, Any] = {field.name: self._field(field, inside) for field in spec.fields}
        config = pydantic.ConfigDict(**_values(spec.config))  # type: ignore[typeddict-item]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the user's class has given its warnings already
            model = pydantic.create_model(spec.name, __config__=config, __doc__=spec.doc, __module__=__name__, **fields)
        self._classes[key] = self._names[reference] = model
        if free or _references(spec, frozenset(), own=True):
            self._recursive.append(model)
        return model

    def _field(self, field: ModelField, scope: Mapping[str, str]) -> Any:
        import pydantic

        annotation = self.build(field.type, scope)
        arguments = _values(field.options)
        if field.default is not None and field.default.kind == "factory":
            arguments["default_factory"] = FACTORIES[field.default.text]
        elif field.default is not None:
            arguments["default"] = default_value(field.default, annotation)
        return annotation, pydantic.Field(**arguments)

    def finish(self) -> None:
        """Resolve the forward references of recursive models."""
        for model in self._recursive:
            model.model_rebuild(force=True, _types_namespace=self._names)


def enumeration(annotation: Any, name: str) -> Any:
    """Return the enumeration of that name in an annotation, its models not searched, or None."""
    if isinstance(annotation, enum.EnumMeta):
        return annotation if annotation.__name__ == name else None
    if get_origin(annotation) is Literal:
        return None
    for arg in get_args(annotation):
        if found := enumeration(arg, name):
            return found
    return None


def default_value(default: Default, annotation: Any) -> Any:
    """Return a default's value, new each time; a member is one of the enumeration in the field's annotation."""
    if default.kind == "value":
        return from_json_text(default.text)
    if default.kind == "factory":
        return FACTORIES[default.text]()
    match from_json_text(default.text):
        case [str(owner), str(name)]:
            kind = enumeration(annotation, owner)
            if kind is not None and name in kind.__members__:
                return kind.__members__[name]
    raise ArtifactError(f"default {default.text} breaks `names a member of the field's enumeration`; compile anew.")


def _enumeration(spec: EnumType) -> Any:
    members = [(name, from_json_text(text)) for name, text in spec.members]
    bases = _ENUM_BASES[spec.base]
    base: Any = bases[-1]
    mixin = {"type": bases[0]} if len(bases) == 2 else {}
    try:
        built = base(spec.name, members, module=__name__, **mixin)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"enumeration `{spec.name}` breaks `members that Python accepts`: {error}.") from error
    built.__doc__ = spec.doc
    return built


def _metadata(meta: Meta) -> list[Any]:
    import pydantic

    options: dict[str, Any] = _values(meta.options)
    if meta.form == "raw":
        return list(pydantic.Field(**options).metadata)
    if meta.form == "none":
        return [None]
    if meta.form == "interval":
        # annotated_types is pydantic's dependency, not ours; `conint` makes the object.
        return [item for item in get_args(pydantic.conint(**options)) if type(item).__name__ == "Interval"]
    if meta.form == "string":
        return [pydantic.StringConstraints(**options)]
    if meta.form == "strict":
        return [pydantic.Strict(**options)]
    if meta.form == "allow_inf_nan":
        return [pydantic.AllowInfNan(**options)]
    return [pydantic.Field(**options)]


def _values(options: Options) -> dict[str, Any]:
    return {name: from_json_text(text) for name, text in options}


def _references(spec: TypeSpec, bound: frozenset[str], *, own: bool = False) -> frozenset[str]:
    """Return the names that references inside the type leave open; with `own`, also those to the type itself."""
    match spec:
        case RefType(name):
            return frozenset() if name in bound else frozenset({name})
        case ModelType(name=name, fields=fields):
            inside = bound if own else bound | {name}
            return frozenset().union(*(_references(field.type, inside) for field in fields))
        case ListType(items):
            return _references(items, bound)
        case DictType(keys, values):
            return _references(keys, bound) | _references(values, bound)
        case TupleType(items, _):
            return frozenset().union(*(_references(item, bound) for item in items))
        case UnionType(options):
            return frozenset().union(*(_references(option, bound) for option in options))
        case AnnotatedType(inner, _):
            return _references(inner, bound)
    return frozenset()

"""The type grammar's front: Python annotations in, frozen data out, and back.

`lower_type` is sound by construction: what it accepts has been rebuilt from the data alone and found to print, to
describe itself and to validate as the original does. What the data can't carry falls out there.
"""

import enum
from collections.abc import Callable
from typing import Any

import pydantic

from .annotations import Lowering, Refused
from .contract import annotation_name
from .grammar import (
    AnnotatedType,
    Default,
    DictType,
    EnumType,
    ListType,
    LiteralType,
    Meta,
    ModelField,
    ModelType,
    RefType,
    Scalar,
    TupleType,
    TypeSpec,
    UnionType,
    Unsupported,
    type_from_json,
)
from .rebuild import python_types

__all__ = [
    "AnnotatedType",
    "Default",
    "DictType",
    "EnumType",
    "ListType",
    "LiteralType",
    "Meta",
    "ModelField",
    "ModelType",
    "RefType",
    "Scalar",
    "TupleType",
    "TypeSpec",
    "UnionType",
    "Unsupported",
    "lower_type",
    "python_type",
    "python_types",
    "type_from_json",
]

_UNPRINTED = frozenset({"metadata", "ref", "generic_origin"})


def lower_type(annotation: Any) -> TypeSpec | Unsupported:
    """Return the annotation as a type of the grammar, or the reason why it isn't one."""
    try:
        spec = Lowering().lower(annotation)
        rebuilt = python_type(spec)
        difference = _difference(annotation, rebuilt)
    except Refused as refusal:
        return Unsupported(f"{refusal}.")
    except RecursionError:
        return Unsupported("the type is nested too deeply.")
    except Exception as error:  # noqa: BLE001 - pydantic has many ways to refuse a type; each means: leave it to DSPy
        return Unsupported(f"pydantic can't describe `{annotation!r:.60}`: {error!s:.120}.")
    if difference:
        return Unsupported(f"`{annotation_name(annotation):.60}` is more than the grammar holds: {difference}.")
    return spec


def python_type(spec: TypeSpec) -> Any:
    """Return a Python annotation that validates and describes the same values as the original did."""
    return python_types([spec])[0]


def _difference(original: Any, rebuilt: Any) -> str:
    if annotation_name(original) != annotation_name(rebuilt):
        return "its name prints differently when rebuilt"
    ours, theirs = pydantic.TypeAdapter(rebuilt), pydantic.TypeAdapter(original)
    if ours.json_schema() != theirs.json_schema() or repr(ours.json_schema()) != repr(theirs.json_schema()):
        return "its JSON schema differs when rebuilt"
    if not _Validators(theirs.core_schema, ours.core_schema).alike():
        return "it validates differently when rebuilt"
    return ""


class _Validators:
    """Two pydantic core schemas, compared but for the identity of the classes they make.

    A JSON schema doesn't show validators that are code; the core schema does, as functions that can't be equal.
    """

    def __init__(self, left: Any, right: Any) -> None:
        self._left = left
        self._right = right
        self._definitions = (_definitions(left), _definitions(right))
        self._paired: set[tuple[str, str]] = set()

    def alike(self) -> bool:
        """Say whether the two validate alike."""
        return self._alike(self._left, self._right)

    def _alike(self, left: Any, right: Any) -> bool:
        if type(left) is not type(right) and not (isinstance(left, (type, enum.Enum))):
            return False
        if isinstance(left, dict):
            return self._alike_schemas(left, right)
        if isinstance(left, (list, tuple)):
            return len(left) == len(right) and all(map(self._alike, left, right))
        if isinstance(left, enum.Enum):
            same_class = type(left).__name__ == type(right).__name__
            return same_class and left.name == right.name and repr(left.value) == repr(right.value)
        if isinstance(left, type):
            return left is right or (
                left.__name__ == right.__name__ and issubclass(left, (pydantic.BaseModel, enum.Enum))
            )
        if isinstance(left, Callable):  # type: ignore[arg-type]
            return left is right
        return repr(left) == repr(right)

    def _alike_schemas(self, left: dict[str, Any], right: dict[str, Any]) -> bool:
        if left.get("type") == "definitions":
            return self._alike(left["schema"], right.get("schema"))
        if left.get("type") == right.get("type") == "definition-ref":
            pair = (left["schema_ref"], right["schema_ref"])
            if pair in self._paired:
                return True
            self._paired.add(pair)
            return self._alike(self._definitions[0].get(pair[0]), self._definitions[1].get(pair[1]))
        keys = [key for key in left if key not in _UNPRINTED]
        if keys != [key for key in right if key not in _UNPRINTED]:
            return False
        return all(self._alike(left[key], right[key]) for key in keys)


def _definitions(schema: Any) -> dict[str, Any]:
    if schema.get("type") != "definitions":
        return {}
    return {definition["ref"]: definition for definition in schema["definitions"]}

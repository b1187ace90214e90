"""Kinds and constants: what sealing knows of a value without running the program."""

import ast
from collections.abc import Mapping
from typing import Any

from ..signatures.canonical import same_json
from ..signatures.grammar import AnnotatedType, DictType, ListType, LiteralType, Scalar, TupleType, TypeSpec
from .flow import Expr

Kind = Mapping[str, TypeSpec | None] | TypeSpec | None
"""What is known of a value: the fields of a prediction, the type of an output, or nothing."""

PLAIN: Mapping[str, type] = {"str": str, "int": int, "float": float, "bool": bool}
"""Types whose values format alike everywhere."""

MISSING = object()


def constant_of(node: ast.expr) -> Any:
    """Return the constant that an expression is, a negative number included, or something that is none."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = constant_of(node.operand)
        return -inner if type(inner) in (int, float) else MISSING
    return node.value if isinstance(node, ast.Constant) else MISSING


def is_constant(value: Any) -> bool:
    """Say whether a file can hold the value: text, a finite number, a boolean or None, and no subclass of these."""
    if type(value) is int:
        return abs(value) < 10**300
    return type(value) in (str, float, bool, type(None)) and same_json(value)


def is_frozen(value: Any) -> bool:
    """Say whether the value is a tuple of constants."""
    return type(value) is tuple and all(is_constant(item) or is_frozen(item) for item in value)


def written(value: Any) -> Expr:
    """Return a constant, or a tuple of them, as an expression."""
    return {"tuple": tuple(written(item) for item in value)} if isinstance(value, tuple) else {"const": value}


def kind_of(value: Any) -> TypeSpec | None:
    """Return what is known of a constant."""
    return Scalar(type(value).__name__) if type(value) in PLAIN.values() else None


def bare(kind: TypeSpec | None) -> TypeSpec | None:
    """Return a type without its constraints."""
    return bare(kind.type) if isinstance(kind, AnnotatedType) else kind


def item_kind(kind: TypeSpec | None, index: Any) -> TypeSpec | None:
    """Return what is known of an item of a value of this kind."""
    if isinstance(kind, ListType) and type(index) is int:
        return kind.items
    if isinstance(kind, TupleType) and type(index) is int and (kind.variadic or -1 < index < len(kind.items)):
        return kind.items[0 if kind.variadic else index]
    return kind.values if isinstance(kind, DictType) else None


def formats_alike(kind: TypeSpec | None) -> bool:
    """Say whether an f-string shows a value of this kind alike wherever the program runs."""
    inner = bare(kind)
    return isinstance(inner, LiteralType) or (isinstance(inner, Scalar) and inner.name in (*PLAIN, "date"))

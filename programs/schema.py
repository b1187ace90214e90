"""artifact_schema(): the JSON Schema of the artifact, generated from the records' annotations and their docstrings.

`docs/artifact.schema.json` is this, written by `make schema`; a test holds the two together. JSON Schema can't say what
holds between two fields (rules.py), what a text inside must be, nor the digest: what it accepts may still be refused,
and what it refuses always is.

Source: https://json-schema.org/draft/2020-12
"""

import ast
import inspect
import json
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from ..signatures.grammar import CONFIG, ENUM_BASES, FACTORIES, META_FORMS, OPTIONS, SCALARS
from . import artifact
from .records import Grammar, Pattern, Record, Rule, Tag

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_NULL: Schema = {"type": "null"}
_NUMBER = r"^-?([0-9]+|[0-9]+\.0|[0-9](\.[0-9]+)?e\+(1[6-9]|20))$"
"""An integer, or an integral float below 1e21, as Python prints them."""
_BASIC: dict[Any, Schema] = {
    str: _TEXT, bool: {"type": "boolean"}, int: {"type": "integer"}, float: {"type": "number"}, Any: {},
}  # fmt: skip


def artifact_schema() -> Schema:
    """Return the JSON Schema (draft 2020-12) of a whole artifact."""
    docs = _field_docs()
    definitions: dict[str, Schema] = {}
    top = _record(artifact.Artifact, docs, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:vitrify:artifact:1",
        "title": "vitrify/1",
        **top,
        "$defs": {**definitions, **_signature(), **_plan(), **_flow(), "exact": _exact()},
    }


def write_schema(path: str | Path) -> None:
    """Write the schema where it is committed."""
    Path(path).write_text(schema_text(), encoding="utf-8")


def schema_text() -> str:
    """Return the schema as it is committed."""
    return json.dumps(artifact_schema(), indent=2, ensure_ascii=True) + "\n"


# The records ---------------------------------------------------------------------------------------------------------


def _record(record: type[Record], docs: dict[str, dict[str, str]], definitions: dict[str, Schema]) -> Schema:
    properties = {}
    for name, kind in record.kinds.items():
        said = next((docs[base.__name__][name] for base in record.__mro__ if name in docs.get(base.__name__, {})), "")
        found = _kind(kind, docs, definitions)
        properties[name] = {"description": said, **found} if said else found
    # A tag is always written, though a record has it by itself.
    required = [
        name for name, kind in record.kinds.items() if name not in record.defaults or get_origin(kind) is Literal
    ]
    return {"description": _said(inspect.getdoc(record)), **_closed(properties, required)}


def _kind(kind: Any, docs: dict[str, dict[str, str]], definitions: dict[str, Schema]) -> Schema:
    if kind in _BASIC:
        return dict(_BASIC[kind])
    if isinstance(kind, type) and issubclass(kind, Record):
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = {}  # its place, before those inside it
            definitions[kind.__name__] = _record(kind, docs, definitions)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _annotated(args[0], args[1:], docs, definitions)
    if origin is Literal:
        return {"const": args[0]} if len(args) == 1 else {"enum": list(args)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _kind(args[1], docs, definitions)}
    if origin is list:
        return {"type": "array", "items": _kind(args[0], docs, definitions)}
    if origin is tuple:
        return {
            "type": "array", "prefixItems": [_kind(item, docs, definitions) for item in args], "items": False,
            "minItems": len(args),
        }  # fmt: skip
    options = [_NULL if option is type(None) else _kind(option, docs, definitions) for option in args]
    return {"anyOf": options}


def _annotated(
    kind: Any, rules: tuple[Any, ...], docs: dict[str, dict[str, str]], definitions: dict[str, Schema]
) -> Schema:
    found: Schema = {}
    for rule in rules:
        match rule:
            case Grammar(name):
                grammar = {"$ref": f"#/$defs/{name}"}
                found = {"anyOf": [grammar, _NULL]} if type(None) in get_args(kind) else grammar
            case Tag():
                found["oneOf"] = [_kind(option, docs, definitions) for option in get_args(kind)]
            case Pattern(regex):
                found = {**_kind(kind, docs, definitions), **found, "pattern": f"^{regex}$"}
            case Rule(_, schema):
                found = {**_kind(kind, docs, definitions), **found, **json.loads(schema)}
    return found


def _field_docs() -> dict[str, dict[str, str]]:
    """Return the docstrings below the fields of the records, by class and field."""
    tree = ast.parse(inspect.getsource(artifact))
    docs: dict[str, dict[str, str]] = {}
    for item in tree.body:
        if isinstance(item, ast.ClassDef):
            fields = docs.setdefault(item.name, {})
            for field, below in zip(item.body, item.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    text = below.value if isinstance(below, ast.Expr) else None
                    if isinstance(text, ast.Constant) and isinstance(text.value, str):
                        fields[field.target.id] = _said(text.value)
    return docs


def _said(text: str | None) -> str:
    return " ".join((text or "").split())


# What readers of their own check -------------------------------------------------------------------------------------


def _closed(properties: dict[str, Schema], required: list[str] | None = None) -> Schema:
    required = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _pair(first: Schema, second: Schema) -> Schema:
    return {"type": "array", "prefixItems": [first, second], "items": False, "minItems": 2}


def _one_of_keys(**keys: Schema) -> Schema:
    """Return the schema of an object with exactly one of these keys."""
    return {"oneOf": [_closed({key: schema}) for key, schema in keys.items()]}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, _NULL]}


def _exact() -> Schema:
    """Return the schema of a value such that canonical JSON loses neither `1.0` nor the order of keys."""
    this = {"$ref": "#/$defs/exact"}
    plain = {"type": "object", "propertyNames": {"not": {"pattern": "^\\$"}}, "additionalProperties": this}
    marks = [
        _closed({"$object": _array(_pair(_TEXT, this))}),
        _closed({"$number": {"type": "string", "pattern": _NUMBER}}),
    ]
    return {
        "description": "A JSON value; an object whose order counts and a number that canonical JSON would merge or "
        "lose are marked.",
        "anyOf": [{"type": ["null", "boolean", "number", "string"]}, _array(this), plain, *marks],
    }


def _signature() -> dict[str, Schema]:
    this = {"$ref": "#/$defs/type"}
    atom: Schema = {"type": ["string", "integer", "boolean", "null"]}
    own_name: Schema = {"type": "string", "not": {"pattern": "^__"}}

    def options(known: frozenset[str]) -> Schema:
        return {"type": "object", "propertyNames": {"enum": sorted(known)}, "additionalProperties": _TEXT}

    def of_kind(kind: str, **properties: Schema) -> Schema:
        return _closed({"kind": {"const": kind}, **properties})

    meta = _closed({"form": {"enum": list(META_FORMS)}, "options": options(OPTIONS)})
    default = _or_null(_one_of_keys(value=_TEXT, factory={"enum": sorted(FACTORIES)}, member=_TEXT))
    member = _closed({"name": own_name, "type": this, "default": default, "options": options(OPTIONS)})
    kinds = [
        {"enum": list(SCALARS)},
        of_kind("literal", values={**_array(atom), "minItems": 1}),
        of_kind(
            "enum", name=_TEXT, doc=_or_null(_TEXT), base={"enum": list(ENUM_BASES)},
            members={**_array(_pair(own_name, atom)), "minItems": 1},
        ),
        of_kind("list", items=this),
        of_kind("dict", keys=this, values=this),
        of_kind("tuple", items=_array(this), variadic={"type": "boolean"}),
        of_kind("union", options=_array(this)),
        of_kind("annotated", type=this, metadata=_array(meta)),
        of_kind("model", name=_TEXT, doc=_or_null(_TEXT), config=options(CONFIG), fields=_array(member)),
        of_kind("ref", name=_TEXT),
    ]  # fmt: skip
    field = _closed({
        "name": _TEXT, "role": {"enum": ["input", "output"]}, "type": this, "description": _TEXT, "constraints": _TEXT,
        "default": default,
    })  # fmt: skip
    signature = _closed({"name": _TEXT, "instruction": _TEXT, "fields": _array(field)})
    return {"signature": signature, "type": {"oneOf": kinds}}


def _plan() -> dict[str, Schema]:
    message = _closed({"role": {"enum": ["system", "user", "assistant"]}, "content": _TEXT})
    hole = _closed({"name": _TEXT, "text": {"type": "boolean"}, "default": _or_null(_TEXT)})
    plan = _closed({
        "format": {"enum": ["chat", "json"]}, "messages": _array(message), "holes": _array(hole),
        "requirements": _TEXT, "response_schema": _or_null(_TEXT),
    })  # fmt: skip
    return {"plan": plan}


def _flow() -> dict[str, Schema]:
    expr = {"$ref": "#/$defs/expression"}
    named = _array(_pair(_TEXT, expr))
    parameter = _closed({"name": _TEXT, "required": {"type": "boolean"}, "default": {"$ref": "#/$defs/exact"}})
    flow = _closed({
        "parameters": _array(parameter), "steps": _array(_closed({"let": _TEXT, "value": expr})), "returns": expr,
    })  # fmt: skip
    expression = _one_of_keys(
        name=_TEXT, const={"$ref": "#/$defs/exact"}, field=_pair(expr, _TEXT),
        item=_pair(expr, {"type": ["string", "integer"]}), list=_array(expr), tuple=_array(expr), dict=named,
        text=_array(expr), call=_closed({"path": _TEXT, "inputs": named}),
        flow=_closed({"flow": {"$ref": "#/$defs/flow"}, "inputs": named}), prediction=named,
    )  # fmt: skip
    return {"flow": flow, "expression": expression}

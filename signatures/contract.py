"""The output contract: how types are named and described to the model, byte for byte as DSPy 3.4 does.

Source: dspy/adapters/utils.py (`get_annotation_name`, `translate_field_type`), dspy/adapters/json_adapter.py
(`_get_structured_outputs_response_format`) and dspy/clients/legacy_requests.py (`_strict_json_schema`), MIT licence.
"""

import enum
import json
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, cast, get_args, get_origin

from .canonical import JsonValue


def annotation_name(annotation: Any) -> str:
    """Return the annotation's name as DSPy prints it: `X | None` is `Union[X, NoneType]`."""
    origin = get_origin(annotation)
    if origin is types.UnionType:
        origin = Union
    if origin is None:
        return str(annotation.__name__) if hasattr(annotation, "__name__") else str(annotation)
    args = get_args(annotation)
    if origin is Literal:
        inner = ", ".join(_literal(arg) if isinstance(arg, str) else annotation_name(arg) for arg in args)
    else:
        inner = ", ".join(annotation_name(arg) for arg in args)
    return f"{annotation_name(origin)}[{inner}]"


def output_hole(name: str, annotation: Any) -> str:
    """Return the template text of an output field: `{name}` and a note on what may be written there."""
    note = _note(annotation)
    return f"{{{name}}}" + (f"{' ' * 8}# note: the value you produce {note}" if note else "")


def response_schema(fields: Mapping[str, tuple[Any, Any]]) -> "dict[str, JsonValue] | None":
    """Return the JSON schema of all output fields in OpenAI's strict form, or None where DSPy asks for any object.

    `fields` gives each field's annotation and default, `...` for none. None is for open mappings (a field that is a
    `dict[...]`) and for what pydantic can't describe.
    """
    if any(get_origin(annotation) is dict for annotation, _ in fields.values()):
        return None
    import pydantic

    try:
        config = pydantic.ConfigDict(extra="forbid")
        definitions = cast("dict[str, Any]", dict(fields))
        model = pydantic.create_model("DSPyProgramOutputs", __config__=config, **definitions)
        schema = model.model_json_schema()
    except (ValueError, pydantic.PydanticInvalidForJsonSchema, pydantic.PydanticSchemaGenerationError):
        return None
    for part in schema.get("properties", {}).values():
        part.pop("json_schema_extra", None)
    _require_all(schema)
    return cast("dict[str, JsonValue]", _strict(schema, schema))


def _literal(text: str) -> str:
    if "'" not in text:
        return f"'{text}'"
    if '"' not in text:
        return f'"{text}"'
    escaped = text.replace("'", "\\'")
    return f"'{escaped}'"


def _note(annotation: Any) -> str:
    if annotation is str:
        return ""
    if annotation is bool:
        return "must be True or False"
    if annotation is int or annotation is float:
        return f"must be a single {annotation.__name__} value"
    if isinstance(annotation, enum.EnumMeta):
        members: list[Any] = list(annotation)
        return "must be one of: " + "; ".join(str(member.value) for member in members)
    if get_origin(annotation) is Literal:
        return "must exactly match (no extra characters) one of: " + "; ".join(str(arg) for arg in get_args(annotation))
    import pydantic

    schema = _type_first(pydantic.TypeAdapter(annotation).json_schema())
    return f"must adhere to the JSON schema: {json.dumps(schema, ensure_ascii=False)}"


def _type_first(part: Any) -> Any:
    if isinstance(part, dict):
        items = sorted(part.items(), key=lambda item: (item[0] != "type", item[0]))
        return {key: _type_first(value) for key, value in items}
    if isinstance(part, list):
        return [_type_first(item) for item in part]
    return part


def _require_all(part: Any) -> None:
    """Close the objects that DSPy closes: those reached by properties, by items and by definitions."""
    if part.get("type") == "object":
        properties = part.setdefault("properties", {})
        part["required"] = list(properties)
        part["additionalProperties"] = False
        for sub in properties.values():
            if isinstance(sub, dict):
                _require_all(sub)
    if part.get("type") == "array" and isinstance(part.get("items"), dict):
        _require_all(part["items"])
    for key in ("$defs", "definitions"):
        for sub in part.get(key, {}).values():
            _require_all(sub)


def _strict(schema: Any, root: dict[str, Any]) -> Any:
    """Shape a schema as strict structured outputs take it: the rules of the OpenAI SDK's `to_strict_json_schema`."""
    if not isinstance(schema, dict):
        return schema
    out = dict(schema)
    for key in ("$defs", "definitions"):
        if isinstance(out.get(key), dict):
            out[key] = {name: _strict(sub, root) for name, sub in out[key].items()}
    if out.get("type") == "object" and "additionalProperties" not in out:
        out["additionalProperties"] = False
    if isinstance(out.get("properties"), dict):
        out["required"] = list(out["properties"])
        out["properties"] = {name: _strict(sub, root) for name, sub in out["properties"].items()}
    if isinstance(out.get("items"), dict):
        out["items"] = _strict(out["items"], root)
    if isinstance(out.get("anyOf"), list):
        out["anyOf"] = [_strict(item, root) for item in out["anyOf"]]
    if isinstance(out.get("allOf"), list):
        if len(out["allOf"]) == 1:
            out.update(_strict(out.pop("allOf")[0], root))
        else:
            out["allOf"] = [_strict(item, root) for item in out["allOf"]]
    if "default" in out and out["default"] is None:
        del out["default"]
    reference = out.get("$ref")
    if isinstance(reference, str) and len(out) > 1:
        resolved = _resolve(root, reference)
        if isinstance(resolved, dict):
            out = {**_strict(resolved, root), **{key: value for key, value in out.items() if key != "$ref"}}
    return out


def _resolve(root: dict[str, Any], reference: str) -> Any:
    if not reference.startswith("#/"):
        raise ValueError(f"reference {reference!r} breaks `references are internal`")
    node: Any = root
    for part in reference[2:].split("/"):
        node = node.get(part) if isinstance(node, dict) else None
        if node is None:
            raise ValueError(f"reference {reference!r} breaks `references resolve`")
    return node

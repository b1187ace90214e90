"""PromptPlan: the request of a predictor, partially evaluated.

System message, demonstrations, field markers and output contract are rendered once; holes are left for the inputs.
The bytes are those of DSPy 3.4's ChatAdapter and JSONAdapter with default options.
Source: dspy/adapters/base.py, chat_adapter.py, json_adapter.py and utils.py.
"""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from json.encoder import encode_basestring
from typing import Any, Literal, TypeAlias, cast

from .canonical import JsonValue, canonical_json, checked_json_text, digest, from_json_text, json_text
from .contract import annotation_name, output_hole, response_schema
from .errors import ArtifactError
from .grammar import keys_of, list_of, text_of
from .rebuild import default_value, python_types
from .signature import FieldSpec, SignatureSpec
from .values import jsonable, render_value

Format: TypeAlias = Literal["chat", "json"]

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_MARKER = "<<CUSTOM-TYPE-START-IDENTIFIER>>"
_TOOL_OPTIONS = ("tools", "tool_choice", "parallel_tool_calls")
_INTRODUCTION = "All interactions will be structured in the following way, with the appropriate values filled in."
_PARTIAL = "This is an example of the task, though some input or output fields are not supplied."
_NOT_SUPPLIED = "Not supplied for this particular example. "


class NeedsAdapter(Exception):
    """The plan can't render this value as DSPy would; run DSPy's adapter itself."""


@dataclass(frozen=True)
class Capabilities:
    """What a language model is known to accept; unknown is False, as in DSPy."""

    response_format: bool = False
    response_schema: bool = False
    function_calling: bool = False
    reasoning: bool = False

    @classmethod
    def of(cls, lm: Any) -> "Capabilities":
        """Read them off anything with the attributes of a DSPy LM: `supported_params`, `supports_response_schema`..."""
        return cls(
            response_format="response_format" in (getattr(lm, "supported_params", None) or ()),
            response_schema=bool(getattr(lm, "supports_response_schema", False)),
            function_calling=bool(getattr(lm, "supports_function_calling", False)),
            reasoning=bool(getattr(lm, "supports_reasoning", False)),
        )


@dataclass(frozen=True)
class Hole:
    """Where an input goes: the field, whether it is text (`str` exactly), and the text of its default."""

    name: str
    text: bool
    default: str | None


@dataclass(frozen=True)
class PromptPlan:
    """The messages of a predictor with holes for its inputs.

    Attributes:
        format: DSPy's adapter whose bytes these are.
        messages: Role and content of the messages before the last: the system's, then demonstrations.
        holes: The inputs of the last message, in order.
        requirements: How the last message ends.
        response_schema: JSON text of the strict schema of the reply; None if any JSON object is asked for. It is a text
            because models write their fields in the order of the schema's keys, which canonical JSON would sort.

    """

    format: Format
    messages: tuple[tuple[str, str], ...]
    holes: tuple[Hole, ...]
    requirements: str
    response_schema: str | None

    @classmethod
    def build(
        cls,
        spec: SignatureSpec,
        *,
        format: Format = "chat",
        demos: Sequence[Mapping[str, Any]] = (),
        types: Mapping[str, Any] | None = None,
    ) -> "PromptPlan":
        """Render everything that doesn't depend on the inputs.

        `demos` are rows of field values, as in DSPy: complete ones come last, those without any input or any output
        are left out. `types` are the user's own annotations by field name; without them they are rebuilt.

        Raises:
            NeedsAdapter: A demonstration holds what DSPy would turn into content blocks, or text that isn't Unicode.

        """
        if format not in ("chat", "json"):
            raise ValueError(f"PromptPlan.build breaks `format is chat or json`: found {format!r}.")
        if types is None:
            types = dict(zip((f.name for f in spec.fields), python_types(f.type for f in spec.fields), strict=True))
        writer = _Writer(spec, format, types)
        messages = (("system", writer.system()), *writer.demonstrations(demos))
        for role, content in messages:
            _check(content, marker=role == "user")
        holes = tuple(Hole(f.name, types[f.name] is str, _default_text(f, types[f.name])) for f in spec.inputs)
        schema = writer.response_schema() if format == "json" else None
        return cls(format, messages, holes, writer.requirements(), schema)

    def render(self, inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the messages for these inputs; the list and its dictionaries are the caller's own.

        An input that isn't given takes its default, or is left out; names that aren't fields are ignored.

        Raises:
            NeedsAdapter: The text holds DSPy's custom-type marker, or isn't Unicode.

        """
        parts: list[str] = []
        for name, head, text, default in self._holes:
            if name in inputs:
                value = inputs[name]
                parts.append(head)
                parts.append(value if type(value) is str else render_value(value, text_field=text))
                parts.append("\n\n")
            elif default is not None:
                parts += (head, default, "\n\n")
        parts.append(self.requirements)
        content = "".join(parts)
        if _MARKER in content or not content.isascii():
            _check(content, marker=True)
        messages = [message.copy() for message in self._before]
        messages.append({"role": "user", "content": content})
        return messages

    def request_messages(self, inputs: Mapping[str, Any]) -> "Messages":
        """Return what `render` returns, for a request: what is always the same needn't be written as JSON again."""
        messages = Messages(self.render(inputs))
        messages.plan = self
        return messages

    def request_params(self, config: Mapping[str, Any], capabilities: Capabilities) -> dict[str, Any]:
        """Return what DSPy's adapter passes to the language model beside the messages.

        The schema in `response_format` is shared between calls; don't change it.
        """
        params = dict(config)
        if self.format == "chat":
            for name in _TOOL_OPTIONS:
                params.pop(name, None)
            return params
        if capabilities.response_format:
            params["response_format"] = self._schema if capabilities.response_schema else {"type": "json_object"}
        if params.get("parallel_tool_calls") is not None:
            params.setdefault("tool_choice", "auto")
        return params

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of the plan's canonical JSON."""
        return digest(self.to_json())

    def to_json(self) -> JsonValue:
        """Return the plan as JSON data; `from_json` is the inverse."""
        return {
            "format": self.format,
            "messages": [{"role": role, "content": content} for role, content in self.messages],
            "holes": [{"name": hole.name, "text": hole.text, "default": hole.default} for hole in self.holes],
            "requirements": self.requirements,
            "response_schema": self.response_schema,
        }

    @classmethod
    def from_json(cls, data: JsonValue) -> "PromptPlan":
        """Return the plan that `to_json` wrote; anything else, unknown keys included, is an ArtifactError."""
        keys = ("format", "messages", "holes", "requirements", "response_schema")
        kind, messages, holes, requirements, schema = keys_of(data, "plan", *keys)
        if kind not in ("chat", "json"):
            raise ArtifactError(f"plan.format breaks `chat or json`: found {kind!r:.60}.")
        if schema is not None:
            _check_schema(text_of(schema, "plan.response_schema"))
        return cls(
            cast("Format", kind),
            tuple(_message_from_json(item) for item in list_of(messages, "plan.messages")),
            tuple(_hole_from_json(item) for item in list_of(holes, "plan.holes")),
            text_of(requirements, "plan.requirements"),
            cast("str | None", schema),
        )

    @cached_property
    def _opening(self) -> str:
        return "".join(f"{_ENCODER.encode(message)}," for message in self._before)

    @cached_property
    def _canonical_opening(self) -> str:
        return "".join(f"{canonical_json(message)}," for message in self._before)

    @cached_property
    def _holes(self) -> tuple[tuple[str, str, bool, str | None], ...]:
        return tuple((hole.name, f"[[ ## {hole.name} ## ]]\n", hole.text, hole.default) for hole in self.holes)

    @cached_property
    def _before(self) -> tuple[dict[str, Any], ...]:
        return tuple({"role": role, "content": content} for role, content in self.messages)

    @cached_property
    def _schema(self) -> dict[str, Any]:
        if self.response_schema is None:
            return {"type": "json_object"}
        schema = from_json_text(self.response_schema)
        return {"type": "json_schema", "json_schema": {"name": "DSPyProgramOutputs", "schema": schema, "strict": True}}


class Messages(tuple[dict[str, Any], ...]):
    """The messages of a plan and its inputs, of which all but the last are written as JSON once for all.

    Attributes:
        plan: The plan.
    """

    plan: PromptPlan

    @property
    def json(self) -> str:
        """Their JSON text, as it is sent."""
        return f'[{self.plan._opening}{{"role":"user","content":{encode_basestring(self[-1]["content"])}}}]'

    @property
    def canonical(self) -> str:
        """Their canonical JSON."""
        return f'[{self.plan._canonical_opening}{{"content":{encode_basestring(self[-1]["content"])},"role":"user"}}]'


class _Writer:
    """Writes the parts of a plan in one of the two formats."""

    def __init__(self, spec: SignatureSpec, format: Format, types: Mapping[str, Any]) -> None:
        self._spec = spec
        self._json = format == "json"
        self._types = types

    def system(self) -> str:
        """Return the system message."""
        # DSPy indents the lines of the instruction below a sentence of its own.
        lines = ["", *textwrap.dedent(self._spec.instruction).splitlines()]
        objective = ("\n" + " " * 8).join(lines)
        return (
            f"Your input fields are:\n{self._descriptions(self._spec.inputs)}\n"
            f"Your output fields are:\n{self._descriptions(self._spec.outputs)}\n"
            f"{self._structure()}\n"
            f"In adhering to this structure, your objective is: {objective}"
        )

    def demonstrations(self, demos: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
        """Return the messages of the demonstrations, partial ones first."""
        complete: list[tuple[str, str]] = []
        partial: list[tuple[str, str]] = []
        for demo in demos:
            if all(field.name in demo and demo[field.name] is not None for field in self._spec.fields):
                complete += (("user", self._demo_inputs(demo, "")), ("assistant", self._demo_outputs(demo)))
            elif self._gives_any(demo, self._spec.inputs) and self._gives_any(demo, self._spec.outputs):
                partial += (("user", self._demo_inputs(demo, _PARTIAL)), ("assistant", self._demo_outputs(demo)))
        return partial + complete

    def requirements(self) -> str:
        """Return the end of the last message: which fields to write, and how."""
        if self._json:
            fields = ", then ".join(f"`{f.name}`{self._must(f)}" for f in self._spec.outputs)
            return f"Respond with a JSON object in the following order of fields: {fields}."
        fields = ", then ".join(f"`[[ ## {f.name} ## ]]`{self._must(f)}" for f in self._spec.outputs)
        return (
            f"Respond with the corresponding output fields, starting with the field {fields}"
            ", and then ending with the marker for `[[ ## completed ## ]]`."
        )

    def response_schema(self) -> str | None:
        """Return the JSON text of the strict schema of the reply, None for any object."""
        fields = {f.name: (self._types[f.name], _schema_default(f, self._types[f.name])) for f in self._spec.outputs}
        schema = response_schema(fields)
        return None if schema is None else json_text(schema)

    def _descriptions(self, fields: Sequence[FieldSpec]) -> str:
        lines = []
        for index, field in enumerate(fields, start=1):
            line = f"{index}. `{field.name}` ({annotation_name(self._types[field.name])}): {field.description}"
            lines.append(line + (f"\nConstraints: {field.constraints}" if field.constraints else ""))
        return "\n".join(lines).strip()

    def _structure(self) -> str:
        inputs = self._block({field.name: f"{{{field.name}}}" for field in self._spec.inputs})
        holes = {field.name: output_hole(field.name, self._types[field.name]) for field in self._spec.outputs}
        if not self._json:
            parts = [_INTRODUCTION, inputs, self._block(holes), "[[ ## completed ## ]]\n"]
        else:
            parts = [_INTRODUCTION, "Inputs will have the following structure:", inputs]
            parts += ["Outputs will be a JSON object with the following fields.", _object(holes)]
        return "\n\n".join(parts).strip()

    def _must(self, field: FieldSpec) -> str:
        annotation = self._types[field.name]
        return "" if annotation is str else f" (must be formatted as a valid Python {annotation_name(annotation)})"

    def _demo_inputs(self, demo: Mapping[str, Any], prefix: str) -> str:
        parts = [prefix]
        for field in self._spec.inputs:
            if field.name in demo:
                parts.append(f"[[ ## {field.name} ## ]]\n{self._text(field.name, demo[field.name])}")
        return "\n\n".join([*parts, ""]).strip()

    def _demo_outputs(self, demo: Mapping[str, Any]) -> str:
        # The sentence for a missing value can occur in partial demonstrations only; None is a value here.
        values = {f.name: demo.get(f.name, _NOT_SUPPLIED) for f in self._spec.outputs}
        if self._json:
            return _object(values)
        return self._block(values) + "\n\n[[ ## completed ## ]]\n"

    def _block(self, values: Mapping[str, Any]) -> str:
        parts = [f"[[ ## {name} ## ]]\n{self._text(name, value)}" for name, value in values.items()]
        return "\n\n".join(parts).strip()

    def _text(self, name: str, value: Any) -> str:
        return render_value(value, text_field=self._types[name] is str)

    def _gives_any(self, demo: Mapping[str, Any], fields: Sequence[FieldSpec]) -> bool:
        return any(field.name in demo for field in fields)


def _object(values: dict[str, Any]) -> str:
    return json.dumps(jsonable(values), indent=2, ensure_ascii=False)


def _default_text(field: FieldSpec, annotation: Any) -> str | None:
    """Return the text of an input's default; DSPy doesn't call the default factories of inputs."""
    if field.default is None or field.default.kind == "factory":
        return None
    return render_value(default_value(field.default, annotation), text_field=annotation is str)


def _schema_default(field: FieldSpec, annotation: Any) -> Any:
    if field.default is None or field.default.kind == "factory":
        return ...
    return default_value(field.default, annotation)


def _check(content: str, *, marker: bool) -> None:
    if marker and _MARKER in content:
        raise NeedsAdapter(f"the text breaks `no {_MARKER}`: DSPy turns it into content blocks; run DSPy's adapter.")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise NeedsAdapter("the text breaks `valid Unicode`: it has a lone surrogate; run DSPy's adapter.") from error


def _check_schema(text: str) -> None:
    try:
        schema = checked_json_text(text)
    except ValueError:
        schema = None
    if not isinstance(schema, dict):
        raise ArtifactError(f"plan.response_schema breaks `the text of a JSON object`: found {text!r:.60}.")


def _message_from_json(data: JsonValue) -> tuple[str, str]:
    role, content = keys_of(data, "plan.messages", "role", "content")
    if role not in ("system", "user", "assistant"):
        raise ArtifactError(f"plan.messages.role breaks `system, user or assistant`: found {role!r:.60}.")
    return role, text_of(content, "plan.messages.content")


def _hole_from_json(data: JsonValue) -> Hole:
    name, text, default = keys_of(data, "plan.holes", "name", "text", "default")
    if not isinstance(text, bool):
        raise ArtifactError(f"plan.holes.text breaks `true or false`: found {text!r:.60}.")
    default = None if default is None else text_of(default, "plan.holes.default")
    return Hole(text_of(name, "plan.holes.name"), text, default)

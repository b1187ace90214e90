"""Reads a prompt as DSPy's ChatAdapter or JSONAdapter writes it: the contract, the demonstrations, the input."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, Literal, cast

from ..signatures.canonical import JsonValue
from ..signatures.literals import literal

Kind = Literal["text", "label", "int", "float", "json"]

_HEADER: Final = re.compile(r"^\s*\[\[ ## (\w+) ## \]\]")
_STRUCTURE: Final = "All interactions will be structured in the following way"
_OBJECTIVE: Final = "In adhering to this structure, your objective is:"
_JSON_OUTPUT: Final = "Outputs will be a JSON object with the following fields."
_NOTE: Final = "# note: the value you produce "
_REMINDERS: Final = (
    "Respond with the corresponding output fields, starting with the field",
    "Respond with a JSON object",
)
_ABSENT: Final = "Not supplied for this particular example"


@dataclass(frozen=True, slots=True)
class OutputField:
    """A field that the reply must hold.

    Attributes:
        name: the field's name.
        kind: how its value is found: a label of a closed set, a number, text, or JSON by a schema.
        description: what the prompt says about it.
        labels: the allowed values of a label field, in the contract's order.
        enum: whether the labels come without their types, as an enum's values do.
        schema: the JSON schema of a json field.
    """

    name: str
    kind: Kind
    description: str = ""
    labels: tuple[JsonValue, ...] = ()
    enum: bool = False
    schema: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Contract:
    """What the system message asks for.

    Attributes:
        inputs: the input fields' names, in order.
        outputs: the output fields, in order.
        objective: the instruction.
        as_json: whether the reply is to be a JSON object, and not sections under markers.
    """

    inputs: tuple[str, ...]
    outputs: tuple[OutputField, ...]
    objective: str
    as_json: bool


@dataclass(frozen=True, slots=True)
class Demonstration:
    """An example in the prompt: what is there of its inputs and outputs."""

    inputs: Mapping[str, str]
    outputs: Mapping[str, JsonValue]


def text_of(message: Mapping[str, JsonValue]) -> str:
    """Return a message's text; that of its text blocks if it has blocks."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [block.get("text") for block in content if isinstance(block, dict)]
        return "\n".join(text for text in texts if isinstance(text, str))
    return ""


def read_contract(system: str) -> Contract | None:
    """Return the contract that a system message states; None if it isn't in DSPy's form."""
    start = system.find(_STRUCTURE)
    if start < 0:
        return None
    described, structure = system[:start], system[start:]
    end = structure.find(_OBJECTIVE)
    objective = structure[end + len(_OBJECTIVE) :] if end >= 0 else ""
    structure = structure[:end] if end >= 0 else structure
    inputs_text, _, outputs_text = described.partition("Your output fields are:")
    inputs = tuple(name for name, _, _ in _fields(inputs_text))
    as_json = _JSON_OUTPUT in structure
    notes = _json_notes(structure) if as_json else _chat_notes(structure)
    outputs = tuple(_output(name, kind, text, notes.get(name, "")) for name, kind, text in _fields(outputs_text))
    if not outputs:
        return None
    lines = [line[8:] if line.startswith(" " * 8) else line for line in objective.splitlines()]
    return Contract(inputs, outputs, "\n".join(lines).strip(), as_json)


def read_demonstrations(messages: Sequence[Mapping[str, JsonValue]], contract: Contract) -> tuple[Demonstration, ...]:
    """Return the pairs of user and assistant messages as demonstrations, in order."""
    found = []
    for asked, answered in pairwise(messages):
        if asked.get("role") == "user" and answered.get("role") == "assistant":
            outputs = _outputs(text_of(answered), contract)
            if outputs:
                found.append(Demonstration(read_input(text_of(asked), contract), outputs))
    return tuple(found)


def read_input(content: str, contract: Contract) -> dict[str, str]:
    """Return the input fields' texts in a user message, without the reminder of the format at its end."""
    for reminder in _REMINDERS:
        cut = content.rfind("\n" + reminder)
        if cut < 0 and content.startswith(reminder):
            cut = 0
        if cut >= 0:
            content = content[:cut]
            break
    known = set(contract.inputs)
    return {name: text for name, text in _sections(content, known).items() if name in known}


def _sections(content: str, known: set[str]) -> dict[str, str]:
    """Return the text below each marker of a known field; an unknown marker is text, as in a pasted prompt."""
    sections: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in content.split("\n"):
        match = _HEADER.match(line) if "[[ ##" in line else None
        if match and (match.group(1) in known or match.group(1) == "completed") and match.group(1) not in sections:
            rest = line[match.end() :].strip()
            current = sections[match.group(1)] = [rest] if rest else []
        elif current is not None:
            current.append(line)
    return {name: "\n".join(lines).strip() for name, lines in sections.items()}


def _outputs(content: str, contract: Contract) -> dict[str, JsonValue]:
    """Return the output values that an assistant message supplies, as values of their fields' kinds."""
    raw: Mapping[str, JsonValue]
    if contract.as_json:
        data = _loads(content)
        raw = data if isinstance(data, dict) else {}
    else:
        raw = dict(_sections(content, {output.name for output in contract.outputs}))
    values: dict[str, JsonValue] = {}
    for output in contract.outputs:
        value = raw.get(output.name, _ABSENT)
        if isinstance(value, str):
            if value.strip().startswith(_ABSENT):
                continue
            value = _typed(value, output)
        if value is not _ABSENT:
            values[output.name] = value
    return values


def _typed(text: str, output: OutputField) -> JsonValue:
    """Return a demonstration's text as a value of the field; the text itself where it doesn't fit."""
    if output.kind == "label":
        for label in output.labels:
            if str(label) == text.strip():
                return label
        return text
    if output.kind == "text":
        return text
    if text.strip() in ("None", "True", "False"):
        return {"None": None, "True": True, "False": False}[text.strip()]
    value = _loads(text)
    return text if value is _FAILED else value


_FAILED: Final = cast(JsonValue, object())


def _loads(text: str) -> JsonValue:
    """Return the JSON value that a text holds, or `_FAILED`."""
    try:
        return cast(JsonValue, json.loads(text))
    except (ValueError, RecursionError):
        return _FAILED


def _fields(text: str) -> list[tuple[str, str, str]]:
    """Return (name, type, description) of every field in a numbered list of fields."""
    found: list[tuple[str, str, str]] = []
    for line in text.split("\n"):
        head = f"{len(found) + 1}. `"
        name, tick, rest = line[len(head) :].partition("` (") if line.startswith(head) else ("", "", "")
        if tick and name.isidentifier():
            end = _closing(rest)
            found.append((name, rest[:end], rest[end + 1 :].lstrip(":").strip()))
        elif found and line.strip():
            last = found[-1]
            found[-1] = (last[0], last[1], f"{last[2]}\n{line.strip()}")
    return found


def _closing(text: str) -> int:
    """Return where the parenthesis closes that was opened before `text`, quotes and nesting respected."""
    depth, quote = 1, ""
    for position, character in enumerate(text):
        if quote:
            if character == quote and text[position - 1] != "\\":
                quote = ""
        elif character in "'\"":
            quote = character
        elif character == "(":
            depth += 1
        elif character == ")":
            depth -= 1
            if depth == 0:
                return position
    return len(text)


def _chat_notes(structure: str) -> dict[str, str]:
    """Return what the structure says of each field's value, in the chat form."""
    notes = {}
    for line in structure.split("\n"):
        match = re.match(r"\{(\w+)\}\s+" + re.escape(_NOTE), line)
        if match:
            notes[match.group(1)] = line[match.end() :]
    return notes


def _json_notes(structure: str) -> dict[str, str]:
    """Return what the structure says of each field's value, in the JSON form."""
    template = structure[structure.find(_JSON_OUTPUT) + len(_JSON_OUTPUT) :].strip()
    data = _loads(template)
    if not isinstance(data, dict):
        return {}
    return {name: note.partition(_NOTE)[2] for name, note in data.items() if isinstance(note, str)}


def _output(name: str, annotation: str, description: str, note: str) -> OutputField:
    """Return the output field that its type and its note describe."""
    if note.startswith("must be True or False"):
        return OutputField(name, "label", description, (True, False))
    if note.startswith("must exactly match"):
        labels = _literals(annotation) or tuple(note.partition("one of: ")[2].split("; "))
        return OutputField(name, "label", description, labels)
    if note.startswith("must be one of: "):
        return OutputField(name, "label", description, tuple(note.partition("one of: ")[2].split("; ")), enum=True)
    if note.startswith("must be a single int"):
        return OutputField(name, "int", description)
    if note.startswith("must be a single float"):
        return OutputField(name, "float", description)
    if note.startswith("must adhere to the JSON schema: "):
        schema = _loads(note.partition("schema: ")[2])
        return _by_schema(name, description, schema if isinstance(schema, dict) else {})
    return OutputField(name, "text", description)


def _by_schema(name: str, description: str, schema: Mapping[str, Any]) -> OutputField:
    """Return the field of a JSON schema; an optional label, number or text is treated as what it is when present."""
    options = [part for part in schema.get("anyOf", [schema]) if part.get("type") != "null"]
    if len(options) == 1:
        only = options[0]
        if "enum" in only and only.get("type", "string") in ("string", "integer", "number", "boolean"):
            return OutputField(name, "label", description, tuple(only["enum"]))
        if only.get("type") == "boolean":
            return OutputField(name, "label", description, (True, False))
        plain = set(only) <= {"type", "title", "description"}
        if plain and only.get("type") in ("string", "integer", "number"):
            kinds: dict[str, Kind] = {"string": "text", "integer": "int", "number": "float"}
            return OutputField(name, kinds[only["type"]], description)
    return OutputField(name, "json", description, schema=schema)


def _literals(annotation: str) -> tuple[JsonValue, ...]:
    """Return the values in `Literal[...]`, typed; none if the text can't be read as Python."""
    if not annotation.startswith("Literal[") or not annotation.endswith("]"):
        return ()
    try:
        values = literal(f"({annotation[8:-1]},)")
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ()
    return tuple(values)

"""The typed signature of a predictor as frozen, fingerprinted data."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from .canonical import JsonValue, canonical_json, digest
from .errors import ArtifactError
from .grammar import Default, TypeSpec, default_from_json, keys_of, list_of, text_of, type_from_json


@dataclass(frozen=True)
class FieldSpec:
    """A field of a signature.

    Attributes:
        name: The field's name.
        role: Whether the caller gives it or the model writes it.
        type: Its type.
        description: What the prompt says of it; empty if the author wrote nothing.
        constraints: DSPy's sentence on numeric bounds and lengths; empty if there are none.
        default: Input: the value of a field that isn't given. Output: the value of a field missing from the reply.

    """

    name: str
    role: Literal["input", "output"]
    type: TypeSpec
    description: str = ""
    constraints: str = ""
    default: Default | None = None

    def to_json(self) -> JsonValue:
        """Return the field as JSON data."""
        return {
            "name": self.name,
            "role": self.role,
            "type": self.type.to_json(),
            "description": self.description,
            "constraints": self.constraints,
            "default": None if self.default is None else self.default.to_json(),
        }

    @classmethod
    def from_json(cls, data: JsonValue, where: str = "field") -> "FieldSpec":
        """Return the field that `to_json` wrote; anything else is an ArtifactError."""
        keys = ("name", "role", "type", "description", "constraints", "default")
        name, role, spec, description, constraints, default = keys_of(data, where, *keys)
        if role not in ("input", "output"):
            raise ArtifactError(f"{where}.role breaks `input or output`: found {role!r:.60}.")
        return cls(
            name=text_of(name, f"{where}.name"),
            role="input" if role == "input" else "output",
            type=type_from_json(spec),
            description=text_of(description, f"{where}.description"),
            constraints=text_of(constraints, f"{where}.constraints"),
            default=default_from_json(default, where),
        )


@dataclass(frozen=True)
class SignatureSpec:
    """A signature: its name, the instruction as DSPy renders it, and its fields, inputs before outputs."""

    name: str
    instruction: str
    fields: tuple[FieldSpec, ...]

    @cached_property
    def inputs(self) -> tuple[FieldSpec, ...]:
        """The fields that the caller gives, in order."""
        return tuple(field for field in self.fields if field.role == "input")

    @cached_property
    def outputs(self) -> tuple[FieldSpec, ...]:
        """The fields that the model writes, in order."""
        return tuple(field for field in self.fields if field.role == "output")

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of the canonical JSON: equal for equal signatures only."""
        return digest(self.to_json())

    def to_json(self) -> JsonValue:
        """Return the signature as JSON data."""
        return {
            "name": self.name,
            "instruction": self.instruction,
            "fields": [field.to_json() for field in self.fields],
        }

    @classmethod
    def from_json(cls, data: JsonValue) -> "SignatureSpec":
        """Return the signature that `to_json` wrote; anything else, unknown keys included, is an ArtifactError."""
        name, instruction, fields = keys_of(data, "signature", "name", "instruction", "fields")
        read = tuple(
            FieldSpec.from_json(field, f"signature.fields[{index}]")
            for index, field in enumerate(list_of(fields, "signature.fields"))
        )
        names = [field.name for field in read]
        if len(set(names)) != len(names):
            raise ArtifactError(f"signature.fields breaks `field names differ`: found {names!r:.200}.")
        roles = [field.role for field in read]
        if roles != sorted(roles):
            raise ArtifactError("signature.fields breaks `inputs come before outputs`; don't edit artifacts by hand.")
        return cls(text_of(name, "signature.name"), text_of(instruction, "signature.instruction"), read)

    def with_instruction(self, text: str) -> "SignatureSpec":
        """Return this signature with another instruction, cleaned as DSPy's `with_instructions` cleans it.

        DSPy takes an empty text for no text, and writes its own sentence about the fields.
        """
        if text == self.instruction:
            # DSPy's clean-up isn't idempotent (`a`, then an indented line); what is rendered already stays as it is.
            return self
        return replace(self, instruction=inspect.cleandoc(text) if text else self._stock_instruction())

    def differences(self, other: "SignatureSpec") -> tuple[str, ...]:
        """Return what differs from this signature to the other, a line each; empty for equal signatures only."""
        return tuple(self._differences(other))

    def _stock_instruction(self) -> str:
        inputs = ", ".join(f"`{field.name}`" for field in self.inputs)
        outputs = ", ".join(f"`{field.name}`" for field in self.outputs)
        return f"Given the fields {inputs}, produce the fields {outputs}."

    def _differences(self, other: "SignatureSpec") -> Iterator[str]:
        if self.name != other.name:
            yield f"name: `{self.name}` became `{other.name}`"
        if self.instruction != other.instruction:
            yield f"instruction: {self.instruction!r:.120} became {other.instruction!r:.120}"
        mine, theirs = ({field.name: field for field in spec.fields} for spec in (self, other))
        for name in (name for name in mine if name not in theirs):
            yield f"field `{name}`: removed"
        for name in (name for name in theirs if name not in mine):
            yield f"field `{name}`: added"
        for name, field in mine.items():
            if name in theirs:
                yield from _field_differences(field, theirs[name])
        common = [name for name in mine if name in theirs]
        if common != [name for name in theirs if name in mine]:
            yield f"order of fields: `{', '.join(mine)}` became `{', '.join(theirs)}`"


def _field_differences(old: FieldSpec, new: FieldSpec) -> Iterator[str]:
    where = f"field `{old.name}`"
    if old.type != new.type:
        before, after = (canonical_json(field.type.to_json()) for field in (old, new))
        yield f"{where}: type {before:.200} became {after:.200}"
    if old.default != new.default:
        texts = (None if default is None else default.text for default in (old.default, new.default))
        yield "{}: default {} became {}".format(where, *texts)
    for name in ("role", "description", "constraints"):
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            yield f"{where}: {name} {before!r:.120} became {after!r:.120}"

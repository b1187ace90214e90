"""Candidate: what the search chooses for every predictor, as data."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..signatures.canonical import JsonValue, digest
from ..signatures.grammar import Scalar, TypeSpec
from ..signatures.prompt import Format
from ..signatures.rebuild import python_types
from ..signatures.signature import FieldSpec, SignatureSpec
from ..signatures.values import jsonable, render_value
from .exact import exact, from_exact

if TYPE_CHECKING:
    from pydantic import TypeAdapter

DECODING = frozenset(
    {"temperature", "max_tokens", "max_completion_tokens", "top_p", "stop", "seed", "presence_penalty",
     "frequency_penalty", "logit_bias", "reasoning_effort", "top_k", "min_p", "n", "rollout_id"}
)  # fmt: skip
"""The sampling parameters that may be written to a file; a config with any other key stays with the program."""

Demo = Mapping[str, JsonValue]
"""One demonstration: values by field name, as JSON; a field that is absent wasn't supplied."""


def is_text(field: FieldSpec) -> bool:
    """Say whether a field holds text, `str` exactly: lists in it are rendered as numbered lists."""
    return field.type == Scalar("str")


def fits(field: FieldSpec, value: Any) -> bool:
    """Say whether a field may have this value: a label outside its Literal can't be shown, and is never answered."""
    if is_text(field):
        return True
    from pydantic import ValidationError

    try:
        _adapter(field.type).validate_python(value)
    except ValidationError:
        return False
    return True


@functools.lru_cache(maxsize=256)  # of a pure function: building an adapter takes a thousand times as long as asking it
def _adapter(kind: TypeSpec) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(python_types([kind])[0])


def demo_of(signature: SignatureSpec, values: Mapping[str, Any]) -> Demo:
    """Return `values` as a demonstration of `signature`: its fields alone, as JSON that renders to the same text."""
    kept: dict[str, JsonValue] = {}
    for spec in (*signature.inputs, *signature.outputs):
        if spec.name not in values:
            continue
        value = values[spec.name]
        as_json = jsonable(value)
        text_field = is_text(spec)
        # A tuple in a `str` field renders as JSON, but the list it becomes would render as a numbered list.
        text = render_value(value, text_field=text_field)
        kept[spec.name] = as_json if _renders_to(text, as_json, text_field=text_field) else text
    return MappingProxyType(kept)


def _renders_to(text: str, value: JsonValue, *, text_field: bool) -> bool:
    try:
        return render_value(value, text_field=text_field) == text
    except (TypeError, AttributeError):  # a numbered list is made of texts only
        return False


@dataclass(frozen=True)
class PredictorParams:
    """What may be chosen for one predictor.

    Attributes:
        instruction: The task description, in place of the signature's docstring.
        demos: The demonstrations, in the order of the prompt.
        format: The reply format, `chat` or `json`.
        decoding: Sampling parameters sent with every request of this predictor (`temperature`, ...).
    """

    instruction: str
    demos: tuple[Demo, ...] = ()
    format: Format = "chat"
    decoding: Mapping[str, JsonValue] = field(default_factory=lambda: MappingProxyType({}))

    def to_json(self) -> dict[str, JsonValue]:
        """Return the parameters as JSON."""
        return {
            "instruction": self.instruction,
            "demos": [{name: exact(item) for name, item in demo.items()} for demo in self.demos],
            "format": self.format,
            "decoding": dict(self.decoding),
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> "PredictorParams":
        # Nothing in it changes, and bound predictors, which carry it, are deep-copied by BestOfN and Refine.
        return self

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "PredictorParams":
        """Return the parameters that `to_json` wrote."""
        return cls(
            instruction=value["instruction"],
            demos=tuple(MappingProxyType({k: from_exact(v) for k, v in demo.items()}) for demo in value["demos"]),
            format=value["format"],
            decoding=MappingProxyType(dict(value["decoding"])),
        )


@dataclass(frozen=True)
class Candidate:
    """A choice of parameters for the predictors of a program, by path; its id is a hash of its content."""

    params: Mapping[str, PredictorParams]

    def __getitem__(self, path: str) -> PredictorParams:
        """Return the parameters of the predictor at `path`."""
        return self.params[path]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Candidate":
        return self

    @cached_property
    def id(self) -> str:
        """The sha256 of the candidate's canonical JSON."""
        return digest(self.to_json())

    def with_params(self, path: str, **changes: Any) -> "Candidate":
        """Return a candidate that differs at `path` in the named parameters."""
        return Candidate({**self.params, path: replace(self.params[path], **changes)})

    def to_json(self) -> dict[str, JsonValue]:
        """Return the candidate as JSON, by path."""
        return {path: params.to_json() for path, params in sorted(self.params.items())}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Candidate":
        """Return the candidate that `to_json` wrote."""
        return cls({path: PredictorParams.from_json(params) for path, params in value.items()})

    def differences(self, other: "Candidate") -> Sequence[str]:
        """Return the paths and parameter names in which `other` differs, readable, one a line."""
        lines = []
        for path in sorted(set(self.params) | set(other.params)):
            mine, theirs = self.params.get(path), other.params.get(path)
            if mine is None or theirs is None:
                lines.append(f"{path}: {'added' if mine is None else 'removed'}")
                continue
            lines += [
                f"{path}.{name}"
                for name in ("instruction", "demos", "format", "decoding")
                if getattr(mine, name) != getattr(theirs, name)
            ]
        return lines

"""dspy.Signature -> SignatureSpec: lossless, fingerprinted, diffed, and refused where DSPy must render itself."""

import enum
import json
import os
from typing import Annotated, Any, Literal

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")

import dspy
import pydantic
import pytest
from dspy.adapters.types.decision import Noul
from hypothesis import given
from hypothesis import strategies as st
from vitrify.signatures.canonical import canonical_json, from_json_text
from vitrify.signatures.errors import ArtifactError
from vitrify.signatures.lower import annotations, lower
from vitrify.signatures.signature import SignatureSpec
from vitrify.signatures.types import Default, Scalar, Unsupported
from vitrify.signatures.values import jsonable, render_value

from .strategies import json_values, profile, signatures, texts, wild


class Team(str, enum.Enum):  # noqa: UP042 - the spelling most users know
    CARDS = "cards"
    OTHER = "other"


class Triage(dspy.Signature):
    """Route a customer message to the team that owns it.

    Be   quick.
    """

    team: Team = dspy.OutputField(desc="who", default=Team.OTHER)
    message: str = dspy.InputField()
    urgent: Literal["yes", "no"] = dspy.OutputField()
    history: list[str] | None = dspy.InputField(default=None, max_length=3)
    tags: list[str] = dspy.OutputField(default_factory=list)


def spec_of(signature: Any) -> SignatureSpec:
    spec = lower(signature)
    assert isinstance(spec, SignatureSpec), spec
    return spec


def test_a_signature() -> None:
    spec = spec_of(Triage)
    assert "Triage" == spec.name
    assert Triage.instructions == spec.instruction
    assert ["message", "history"] == [field.name for field in spec.inputs]
    assert ["team", "urgent", "tags"] == [field.name for field in spec.outputs]
    message, history, team, _, tags = spec.fields
    assert (Scalar("str"), "", None) == (message.type, message.description, message.default)
    assert ("maximum length: 3", Default("value", "null")) == (history.constraints, history.default)
    assert ("who", Default("member", '["Team", "OTHER"]')) == (team.description, team.default)
    assert Default("factory", "list") == tags.default
    assert {"message": str, "history": list[str] | None} == dict(list(annotations(Triage).items())[:2])


def test_strings_and_their_custom_types() -> None:
    spec = spec_of("question: str, n: int -> answer: list[float], team: Team")
    assert ["question", "n", "answer", "team"] == [field.name for field in spec.fields]
    assert Team is annotations("question -> team: Team")["team"]


@profile(150)
@given(st.data())
def test_signatures_go_through_json(data: st.DataObject) -> None:
    signature = data.draw(signatures())
    spec = lower(signature)
    if isinstance(spec, Unsupported):
        return
    again = SignatureSpec.from_json(from_json_text(canonical_json(spec.to_json())))
    assert spec == again
    assert spec.fingerprint == again.fingerprint
    assert () == spec.differences(again)
    # Another instruction is what DSPy makes of it.
    text = data.draw(texts)
    theirs, ours = lower(signature.with_instructions(text)), spec.with_instruction(text)
    if text != spec.instruction and isinstance(theirs, SignatureSpec):
        assert theirs.instruction == ours.instruction
        assert theirs.fields == ours.fields
    assert (spec == ours) == (not spec.differences(ours))


def test_what_is_rendered_already_is_not_cleaned_again() -> None:
    spec = spec_of(dspy.Signature("a -> b", "\n  first\n    second"))
    assert "first\n  second" == spec.instruction
    assert spec is spec.with_instruction(spec.instruction)


def test_differences_are_readable() -> None:
    old = spec_of("question, context -> answer: int")
    new = spec_of(dspy.Signature("context, hint -> answer: float", "Do it."))
    lines = "\n".join(old.differences(new))
    for part in (
        "instruction: ",
        "field `question`: removed",
        "field `hint`: added",
        'field `answer`: type "int" became "float"',
    ):
        assert part in lines
    swapped = spec_of(dspy.Signature("a, b -> c", "x")).differences(spec_of(dspy.Signature("b, a -> c", "x")))
    assert ("order of fields: `a, b, c` became `b, a, c`",) == swapped


class Refusing(dspy.Signature):
    """Each output has a reason of its own."""

    question: str = dspy.InputField()


@pytest.mark.parametrize(
    ("field", "annotation", "reason"),
    [
        (dspy.OutputField(), dspy.Image, "DSPy's own"),
        (dspy.OutputField(), Annotated[bool, Noul], "DSPy's own"),
        (dspy.OutputField(default_factory=lambda: [1]), list[int], "code"),
        (dspy.OutputField(default=object()), Any, "no JSON value"),
        (dspy.OutputField(default=(1, 2)), Any, "no JSON value"),
        (dspy.OutputField(default=Team.CARDS), str, "another type"),
        (dspy.OutputField(desc=["a"]), str, "no text"),
        (dspy.OutputField(desc="\ud800"), str, "surrogate"),
    ],
)
def test_refusals(field: Any, annotation: Any, reason: str) -> None:
    found = lower(Refusing.append("out", field, annotation))
    assert isinstance(found, Unsupported)
    assert reason in found.reason


def test_two_classes_of_one_name() -> None:
    left = pydantic.create_model("Same", a=(int, ...))
    right = pydantic.create_model("Same", b=(int, ...))
    signature = Refusing.append("left", dspy.OutputField(), left).append("right", dspy.OutputField(), right)
    # Only the schema of the whole reply tells them apart, by names that hold their modules.
    assert isinstance(lower(signature), Unsupported)


def test_inputs_that_predict_takes_for_itself() -> None:
    assert isinstance(lower("config -> answer"), Unsupported)
    assert isinstance(lower("question -> config"), SignatureSpec)


def test_json_is_closed() -> None:
    good: Any = spec_of(Triage).to_json()
    field = good["fields"][0]
    for bad in (
        {**good, "more": 1},
        {key: value for key, value in good.items() if key != "name"},
        {**good, "fields": [{**field, "role": "tool"}]},
        {**good, "fields": [{**field, "type": "set"}]},
        {**good, "fields": [{**field, "default": {"value": "{"}}]},
        {**good, "fields": [{**field, "default": {"value": "NaN"}}]},
        {**good, "fields": [{**field, "default": {"code": "1"}}]},
        {**good, "fields": [field, field]},
        {**good, "fields": list(reversed(good["fields"]))},
        {**good, "instruction": None},
        "signature",
    ):
        with pytest.raises(ArtifactError, match="breaks `"):
            SignatureSpec.from_json(bad)


@profile(400)
@given(wild)
def test_values_are_rendered_as_dspy_does(value: Any) -> None:
    from dspy.adapters.utils import format_field_value, serialize_for_json

    assert repr(serialize_for_json(value)) == repr(jsonable(value))
    for annotation in (str, Any):
        info = dspy.InputField()
        info.annotation = annotation
        try:
            theirs: Any = format_field_value(info, value)
        except (TypeError, AttributeError) as error:
            with pytest.raises(type(error)):
                render_value(value, text_field=annotation is str)
        else:
            assert theirs == render_value(value, text_field=annotation is str)
    json.dumps(jsonable(value))


def nested(depth: int, kind: type) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value] if kind is list else {"k": value}
    return value


class Text(str):
    """Text that prints as something else where its class shows."""

    def __repr__(self) -> str:
        return "Text()"

    __str__ = __repr__


class Number(int):
    def __repr__(self) -> str:
        return "Number()"

    __str__ = __repr__


def in_itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


PLAIN = [
    0, -1, 2**70, True, None, 1.0, -0.0, 1e16, 1e-7, float("nan"), float("-inf"), [], {}, [1.0, True, None, "é\n"],
    {"b": 1, "a": [2.5, {"": None}]}, {1: 2}, {None: 1}, {True: 1}, {1.5: 1}, {"a": float("nan")}, ["\ud800"],
    {"\ud800": 1}, [Text("a")], {Text("a"): 1}, [Number(1)], Number(1), (1, [2]), [(1,)], [{1}], [b"a"],
    [shared := ["x"], shared], {"a": shared, "b": shared}, in_itself(),
    *(nested(depth, kind) for depth in (5, 49, 50, 51, 52, 254, 255, 256, 257, 400) for kind in (list, dict)),
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(PLAIN)))
def test_plain_data_is_rendered_as_dspy_does(index: int) -> None:
    from dspy.adapters.utils import format_field_value

    info = dspy.InputField()
    info.annotation = Any
    assert format_field_value(info, PLAIN[index]) == render_value(PLAIN[index], text_field=False)


@profile(300)
@given(json_values)
def test_json_data_is_rendered_as_dspy_does(value: Any) -> None:
    from dspy.adapters.utils import format_field_value

    info = dspy.InputField()
    info.annotation = Any
    assert format_field_value(info, value) == render_value(value, text_field=False)

"""The type grammar: lossless through JSON, closed, and sound against the user's own types."""

import contextlib
import dataclasses
import enum
import typing
from datetime import date
from decimal import Decimal
from typing import Annotated, Any, Literal, TypedDict

import dspy
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from vitrify.signatures.canonical import canonical_json, from_json_text
from vitrify.signatures.contract import annotation_name
from vitrify.signatures.errors import ArtifactError
from vitrify.signatures.grammar import ENUM_BASES, SCALARS, LiteralType
from vitrify.signatures.rebuild import builds_always
from vitrify.signatures.types import TypeSpec, Unsupported, lower_type, python_type, python_types, type_from_json
from vitrify.signatures.values import jsonable

from .strategies import annotations, json_values, profile, values


def outcome(annotation: Any, value: Any) -> Any:
    """Return what pydantic makes of the value as data, or that it refuses it."""
    try:
        return repr(jsonable(pydantic.TypeAdapter(annotation).validate_python(value)))
    except pydantic.ValidationError as error:
        return [(item["type"], item["msg"]) for item in error.errors(include_url=False)]


@profile(250)
@given(st.data())
def test_types_go_through_json_and_validate_the_same(data: st.DataObject) -> None:
    annotation = data.draw(annotations)
    spec = lower_type(annotation)
    if isinstance(spec, Unsupported):
        assert spec.reason.endswith(".")
        return
    # Through canonical text, as in an artifact.
    again = type_from_json(from_json_text(canonical_json(spec.to_json())))
    assert spec == again
    rebuilt: Any = python_type(again)
    assert annotation_name(annotation) == annotation_name(rebuilt)
    original: Any = pydantic.TypeAdapter(annotation)
    assert original.json_schema() == pydantic.TypeAdapter(rebuilt).json_schema()
    assert spec == lower_type(rebuilt)
    for _ in range(4):
        value = data.draw(st.one_of(values(annotation), values(annotation), json_values))
        assert outcome(annotation, value) == outcome(rebuilt, value)


class Color(enum.Enum):
    RED = "r"
    BLUE = "b"


class Odd(enum.Enum):
    A = "a"

    @classmethod
    def _missing_(cls, value: object) -> "Odd":
        return cls.A


class Checked(BaseModel):
    a: int

    @pydantic.field_validator("a")
    @classmethod
    def _positive(cls, value: int) -> int:
        return abs(value)


class Serialized(BaseModel):
    a: int

    @pydantic.field_serializer("a")
    def _text(self, value: int) -> str:
        return str(value)


class Computed(BaseModel):
    a: int

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def b(self) -> int:
        return self.a


class PostInit(BaseModel):
    a: int

    def model_post_init(self, context: Any) -> None:
        self.a += 1


class OwnInit(BaseModel):
    a: int

    def __init__(self, **data: Any) -> None:
        super().__init__(**{"a": 1, **data})


class OwnSchema(BaseModel):
    a: int

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> Any:
        return {"type": "string"}


class Hidden(BaseModel):
    a: int
    _b: int = 3


class Factory(BaseModel):
    a: list[int] = Field(default_factory=lambda: [1])


class Root(pydantic.RootModel[list[int]]):
    pass


class Holds(BaseModel):
    inner: Checked


class Before(BaseModel):
    a: Annotated[int, pydantic.BeforeValidator(lambda value: 1)]


class Point(TypedDict):
    x: int


@dataclasses.dataclass
class Data:
    x: int


T = typing.TypeVar("T")


@pytest.mark.parametrize(
    "annotation",
    [
        dspy.Image, dspy.Tool, list[dspy.Tool], dspy.ToolCalls, dspy.History, dspy.Code, dspy.Reasoning, dspy.File,
        dspy.Image | None, dict[str, dspy.Audio], Odd, Checked, Serialized, Computed, PostInit, OwnInit, OwnSchema,
        Hidden, Factory, Root, Holds, Before, list[Before], Point, Data, set, set[int], frozenset[int], bytes, complex,
        Decimal, object, typing.Callable, typing.Sequence[int], T, list[T],  # type: ignore[valid-type]
        "str", list["str"], typing.NewType("N", int), pydantic.EmailStr, pydantic.AnyUrl, pydantic.Json,
        Annotated[int, "note"], Annotated[int, pydantic.AfterValidator(abs)], Literal[b"x"], Literal[Color.RED],
        Literal[2**60], enum.Flag("F", "A B"), enum.Enum("Big", {"A": 1.5}), enum.Enum("Pair", {"A": (1, 2)}),
        dspy.Signature, type, ..., *(getattr(typing, name) for name in ("List", "Dict", "Tuple")),
    ],
)  # fmt: skip
def test_outside_the_grammar(annotation: Any) -> None:
    found = lower_type(annotation)
    assert isinstance(found, Unsupported), found
    assert found.reason.endswith(".")


class Leaf(BaseModel):
    """A leaf."""

    model_config = pydantic.ConfigDict(extra="forbid", populate_by_name=True)
    color: Color = Color.BLUE
    when: date | None = None
    size: int = Field(3, gt=0, le=9, description="how big", alias="theSize")
    names: list[str] = Field(default_factory=list, max_length=2, examples=[["x"]])


class Left(BaseModel):
    right: "Right | None" = None
    leaves: list[Leaf] = []


class Right(BaseModel):
    left: Left
    kids: "dict[str, Right]" = {}


Left.model_rebuild()


@pytest.mark.parametrize("annotation", [Leaf, list[Leaf], Left, Right, dict[str, Left], tuple[Leaf, Leaf | None]])
def test_models(annotation: Any) -> None:
    spec = lower_type(annotation)
    assert isinstance(spec, TypeSpec), spec
    assert spec == type_from_json(from_json_text(canonical_json(spec.to_json())))
    rebuilt = python_type(spec)
    leaf: Any = {"theSize": 4, "color": "r", "when": "2024-01-02"}
    given: list[Any] = [
        leaf,
        [leaf],
        {"leaves": [leaf]},
        {"left": {"leaves": [leaf], "right": {"left": {}}}, "kids": {}},
        {"a": {}},
        {},
    ]
    for value in given:
        assert outcome(annotation, value) == outcome(rebuilt, value)


def test_equal_classes_are_rebuilt_once() -> None:
    spec = lower_type(Leaf)
    many = lower_type(list[Leaf])
    assert isinstance(spec, TypeSpec)
    assert isinstance(many, TypeSpec)
    one, several = python_types([spec, many])
    assert typing.get_args(several) == (one,)


@pytest.mark.parametrize(
    "data",
    [
        "string", 3, None, [], {}, {"kind": "set"}, {"kind": "list"}, {"kind": "list", "items": "str", "more": 1},
        {"kind": "literal", "values": [1.5]}, {"kind": "literal", "values": "a"}, {"kind": "ref", "name": "A"},
        {"kind": "tuple", "items": ["str", "int"], "variadic": True}, {"kind": "tuple", "items": [], "variadic": 0},
        {"kind": "enum", "name": "E", "doc": None, "base": "Flag", "members": []},
        {"kind": "enum", "name": "E", "doc": None, "base": "Enum", "members": [["a"]]},
        {"kind": "annotated", "type": "int", "metadata": [{"form": "code", "options": {}}]},
        {"kind": "annotated", "type": "int", "metadata": [{"form": "raw", "options": {"gt": "{"}}]},
        {"kind": "model", "name": "M", "doc": None, "config": {}, "fields": [{}]},
        {"kind": "model", "name": "M", "doc": None, "config": [], "fields": []},
        {"kind": "model", "name": "M", "doc": None, "config": {}, "fields": [
            {"name": "a", "type": "int", "default": {"factory": "eval"}, "options": {}}]},
    ],
)  # fmt: skip
def test_json_is_closed(data: Any) -> None:
    with pytest.raises(ArtifactError, match="breaks `"):
        type_from_json(data)


def test_json_is_bounded() -> None:
    data: Any = "str"
    for _ in range(3000):
        data = {"kind": "list", "items": data}
    with pytest.raises(ArtifactError, match="deep"):
        type_from_json(data)


_ATOMS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-2, 2), st.sampled_from(["", "a", "b", "1", "\x00", "é🙂"])
)
_NAMES = st.sampled_from(["A", "B", "a", "name", "value", "mro", "_x", "__x__", "1", "", "class", "None", "é"])
_WRITTEN = st.recursive(
    st.one_of(
        st.sampled_from(SCALARS),
        st.builds(lambda values: {"kind": "literal", "values": values}, st.lists(_ATOMS, max_size=4)),
        st.builds(
            lambda base, name, members: {"kind": "enum", "name": name, "doc": None, "base": base, "members": members},
            st.sampled_from(ENUM_BASES), _NAMES, st.lists(st.tuples(_NAMES, _ATOMS).map(list), max_size=4),
        ),
    ),
    lambda inner: st.one_of(
        st.builds(lambda items: {"kind": "list", "items": items}, inner),
        st.builds(lambda keys, values: {"kind": "dict", "keys": keys, "values": values}, inner, inner),
        st.builds(lambda items: {"kind": "tuple", "items": items, "variadic": False}, st.lists(inner, max_size=3)),
        st.builds(lambda item: {"kind": "tuple", "items": [item], "variadic": True}, inner),
        st.builds(lambda options: {"kind": "union", "options": options}, st.lists(inner, max_size=3)),
    ),
    max_leaves=6,
)  # fmt: skip


@profile(1000)
@given(_WRITTEN)
def test_a_validator_that_may_be_built_late_can_be_built(written: Any) -> None:
    try:
        spec = type_from_json(written)
    except ArtifactError:  # a name that no class may have, or no value
        return
    if not builds_always(spec):
        return
    try:
        annotation: Any = python_type(spec)
    except Exception:  # which is when the file is read
        return
    pydantic.TypeAdapter(annotation)


@pytest.mark.parametrize("kind", ["list", "union", "tuple"])
def test_a_deep_type_whose_validator_may_be_built_late_can_be_built(kind: str) -> None:
    wraps: dict[str, Any] = {
        "list": lambda inner: {"kind": "list", "items": inner},
        "union": lambda inner: {"kind": "union", "options": ["int", {"kind": "list", "items": inner}]},
        "tuple": lambda inner: {"kind": "tuple", "items": ["none", inner], "variadic": False},
    }
    spec, written = type_from_json("str"), "str"
    with contextlib.suppress(ArtifactError):  # as deep as types may be
        while True:
            spec, written = type_from_json(wraps[kind](written)), wraps[kind](written)
    assert builds_always(spec)
    pydantic.TypeAdapter(python_type(spec))


def test_what_pydantic_may_refuse_is_built_when_it_is_read() -> None:
    for annotation in (Leaf, Annotated[int, Field(gt=1)], list[Left], dict[str, Leaf | None]):
        spec = lower_type(annotation)
        assert not isinstance(spec, Unsupported) and not builds_always(spec)
    assert not builds_always(LiteralType(()))
    no_values: Any = {"kind": "literal", "values": []}
    no_members: Any = {"kind": "enum", "name": "E", "doc": None, "base": "Enum", "members": []}
    for empty in (no_values, no_members):
        with pytest.raises(ArtifactError, match="at least one value"):
            type_from_json(empty)

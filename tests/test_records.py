"""Records: pydantic's strict models of the same annotations accept and refuse the same, in the same words."""

import copy
import functools
import json
import operator
import pickle
import random
import re
from typing import Annotated, Any, Literal, get_args, get_origin

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vitrify.programs.artifact import Artifact, EvidenceRecord, InputRecord, SealedProgram
from vitrify.programs.records import Grammar, Mismatch, Pattern, Record, Rule, Tag
from vitrify.signatures.canonical import NotCanonical, canonical_json

from tests.strategies import json_values, profile


@functools.cache
def twin(kind: Any) -> Any:
    """Return what pydantic makes of an annotation of a record."""
    if isinstance(kind, type) and issubclass(kind, Record):
        config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)
        fields: dict[str, Any] = {name: (twin(item), kind.defaults.get(name, ...)) for name, item in kind.kinds.items()}
        return pydantic.create_model(kind.__name__, __config__=config, **fields)
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        rules = [
            pydantic.Field(discriminator=rule.field) if isinstance(rule, Tag)
            else pydantic.Field(pattern=f"^{rule.regex}$") if isinstance(rule, Pattern)
            else pydantic.AfterValidator(rule.check)
            for rule in args[1:]
            if not isinstance(rule, Grammar)
        ]  # fmt: skip
        return Annotated[(twin(args[0]), *rules)] if rules else twin(args[0])
    if origin in (list, dict, tuple):
        return origin[tuple(map(twin, args))]
    if origin is None or origin is Literal:
        return kind
    return functools.reduce(operator.or_, map(twin, args))


def ours(record: type[Record], text: str) -> tuple[Any, ...]:
    try:
        return ("read", repr(record.from_json(json.loads(text)).to_json()))
    except Mismatch as error:
        return ("refused", error.where, str(error))


def pydantics(record: type[Record], text: str) -> tuple[Any, ...]:
    model: Any = twin(record)  # type: ignore[arg-type]  # a class is hashable, whatever its instances are
    try:
        return ("read", repr(model.model_validate_json(text).model_dump(mode="json")))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        return ("refused", first["loc"], first["msg"])


def agree(record: type[Record], value: Any) -> tuple[Any, ...] | None:
    """Return what both say of a value; None for one that no file holds."""
    try:
        text = canonical_json(value)
    except NotCanonical:
        return None
    said = ours(record, text)
    assert pydantics(record, text) == said
    return said


def places(value: Any, depth: int, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if len(path) < depth:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, item in items:
            found += places(item, depth, (*path, key))
    return found


ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 1.5, 1e300, 2**53, 10**20, "", "chat", "json", "class", "sealed", "vitrify/1",
    "0" * 64, "0" * 64 + "\n", "A" * 64, [], {}, [0, 1], [0.5, 1.5], [0, 1, 2], ["x"], [[]], [{}], {"x": 1},
    {"kind": "class"}, {"kind": None}, {"kind": ["sealed"]}, {"temperature": 1}, {"api_base": "x"},
)  # fmt: skip


def mutated(value: Any, generator: random.Random, strange: Any, depth: int = 5) -> Any:
    """Return a copy with something at one to three places, none too deep, removed, doubled, moved or replaced."""
    edited = copy.deepcopy(value)
    for _ in range(generator.randint(1, 3)):
        everywhere = places(edited, depth)
        if not everywhere:
            return edited
        *above, last = generator.choice(everywhere)
        owner = functools.reduce(operator.getitem, above, edited)
        new: Any = generator.choice([strange, generator.choice(ODD), generator.choice(ODD)])
        match generator.randrange(4):
            case 0:
                del owner[last]
            case 1 if isinstance(owner, list):
                owner.insert(last, copy.deepcopy(owner[last]))
            case 1:
                owner[generator.choice(["kind", "name", "zzz", "", "a.b", last])] = new
            case _:
                owner[last] = new
    return edited


@given(st.randoms(use_true_random=False), json_values)
@profile(400)
def test_an_edited_artifact_is_held_to_the_schema_as_pydantic_would(
    artifact: Artifact, generator: random.Random, strange: Any
) -> None:
    agree(Artifact, mutated(artifact.to_json(), generator, strange))


class Cat(Record):
    """One record of a union."""

    kind: Literal["cat"] = "cat"
    lives: int


class Dog(Record):
    """Another, with two tags."""

    kind: Literal["dog", "puppy"]
    tricks: dict[str, list[int]]


def _even(value: int) -> int:
    if value % 2:
        raise ValueError(f"{value} is odd")
    return value


class Small(Record):
    """Every annotation that a record may have."""

    anything: Any
    text: str
    truth: bool
    count: Annotated[int, Rule(_even, '{"multipleOf": 2}')]
    share: float = 0.5
    choice: Literal["a", "b", "it's"]
    one: Literal["x"] = "x"
    maybe: float | None = None
    name: Annotated[str, Pattern("[a-c]+")] | None
    pair: tuple[int, str]
    pets: list[Annotated[Cat | Dog, Tag("kind")]]
    pet: Cat | None
    table: dict[str, float]


SMALL: dict[str, Any] = {
    "anything": [1.5, {"a": None}], "text": "t", "truth": True, "count": 2, "choice": "b", "name": "abc",
    "pair": [1, "x"], "pets": [{"kind": "cat", "lives": 9}, {"kind": "puppy", "tricks": {"sit": [1]}}],
    "pet": {"kind": "cat", "lives": 0}, "table": {"x": 1, "y": 2.5},
}  # fmt: skip


@given(st.randoms(use_true_random=False), json_values)
@profile(1000)
def test_every_annotation_is_read_as_pydantic_reads_it(generator: random.Random, strange: Any) -> None:
    agree(Small, mutated(SMALL, generator, strange))


@given(json_values)
@profile(200)
def test_any_json_is_read_as_pydantic_reads_it(value: Any) -> None:
    agree(Small, value)
    agree(Cat, value)


@pytest.mark.parametrize("name", list(SMALL))
def test_every_odd_value_of_every_field(name: str) -> None:
    for odd in ODD:
        said = agree(Small, {**SMALL, name: odd})
        assert said is not None
        assert "read" == said[0] or name == said[1][0]


def test_what_is_read_is_what_was_written() -> None:
    small = Small.from_json(SMALL)
    assert small == Small.from_json(json.loads(json.dumps(small.to_json())))
    assert 0.5 == small.share and "x" == small.one and small.maybe is None
    assert (1, "x") == small.pair
    assert isinstance(small.pets[1], Dog)
    assert float is type(small.table["x"])
    assert list(Small.kinds) == list(small.to_json())


def test_the_first_of_several_errors_is_said() -> None:
    for broken in ({**SMALL, "zzz": 1, "text": 1}, {**SMALL, "zzz": 1, "aaa": 2}, {**SMALL, "text": 1, "truth": 1}, {}):
        said = agree(Small, broken)
        assert said is not None and "refused" == said[0]


# Made in code ---------------------------------------------------------------------------------------------------------


def test_a_record_is_made_of_all_its_fields_and_no_others() -> None:
    with pytest.raises(TypeError, match="InputRecord lacks its field 'required'"):
        InputRecord(name="x")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="InputRecord has no field 'extra'"):
        InputRecord(name="x", required=True, extra=1)  # type: ignore[call-arg]
    assert "sealed" == SealedProgram(flow={}, import_path=None, source_sha256=None).kind


def test_a_record_does_not_change() -> None:
    record = InputRecord(name="x", required=True)
    with pytest.raises(AttributeError, match="`a record doesn't change`"):
        record.name = "y"  # type: ignore[misc]
    with pytest.raises(AttributeError, match="`a record doesn't change`"):
        del record.name
    with pytest.raises(AttributeError):
        record.other = "y"
    assert "InputRecord(name='x', required=True)" == repr(record)


def test_records_are_equal_where_their_fields_are() -> None:
    record = InputRecord(name="x", required=True)
    assert record == InputRecord(required=True, name="x")
    assert hash(record) == hash(InputRecord(required=True, name="x"))
    assert record != InputRecord(name="x", required=False)
    assert record != {"name": "x", "required": True}


def test_records_are_copied_and_sent_to_other_processes(artifact: Artifact) -> None:
    for again in (copy.copy(artifact), copy.deepcopy(artifact), pickle.loads(pickle.dumps(artifact))):
        assert artifact == again
        assert artifact.to_bytes() == again.to_bytes()
    assert EvidenceRecord is type(artifact.evidence)


def test_an_annotation_outside_the_grammar_is_an_error_of_the_programmer() -> None:
    class Odd(Record):
        """A record with a union that nothing tells apart."""

        value: int | str

    with pytest.raises(TypeError, match=re.escape("is no annotation of a record")):
        Odd.from_json({"value": 1})

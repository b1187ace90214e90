"""A reply gives DSPy's own values, or an error where DSPy has one; DSPy is the oracle."""

import contextlib
import logging
import os
import time
from typing import Any, Literal

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")

import dspy
import pydantic
import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st
from vitrify.signatures.lower import annotations, lower
from vitrify.signatures.reply import ParseError, ReplyParser, _first_object
from vitrify.signatures.signature import SignatureSpec
from vitrify.signatures.types import Unsupported
from vitrify.signatures.values import jsonable

from .strategies import NASTY, profile, replies, signatures

logging.getLogger("dspy").setLevel(logging.CRITICAL)

COUNTS: dict[str, int] = {}


def count(name: str) -> None:
    COUNTS[name] = COUNTS.get(name, 0) + 1


def dspy_values(signature: Any, text: Any, format: str) -> Any:
    """Return what DSPy's adapter makes of a reply, or the exception."""
    adapter = dspy.ChatAdapter() if format == "chat" else dspy.JSONAdapter()
    try:
        [values] = adapter._call_postprocess(signature, signature, [text], None, {})
    except Exception as error:
        return error
    return values


def our_values(spec: SignatureSpec, types: Any, text: Any, format: Any) -> Any:
    try:
        return ReplyParser(spec, types).parse(text, format)
    except ParseError as error:
        return error


def alike(theirs: Any, ours: Any) -> bool:
    """Say whether two values are the same: type for type, models and NaN included."""
    if type(theirs) is not type(ours):
        return False
    if isinstance(theirs, pydantic.BaseModel):
        return alike(dict(theirs), dict(ours)) and theirs.model_fields_set == ours.model_fields_set
    if isinstance(theirs, dict):
        return list(theirs) == list(ours) and all(alike(theirs[key], ours[key]) for key in theirs)
    if isinstance(theirs, (list, tuple)):
        return len(theirs) == len(ours) and all(map(alike, theirs, ours))
    return theirs is ours or theirs == ours or (theirs != theirs and ours != ours)


def check(signature: Any, spec: SignatureSpec, text: Any, format: str) -> None:
    theirs = dspy_values(signature, text, format)
    for types in (annotations(signature), None):
        ours = our_values(spec, types, text, format)
        if isinstance(ours, ParseError) and "nest more than" in str(ours):
            count("refused for its depth")
        elif isinstance(theirs, Exception):
            assert isinstance(ours, ParseError), (theirs, ours)
            count("both raise")
        elif types is None:
            # Rebuilt classes can't be equal to the user's; what they hold is.
            assert not isinstance(ours, ParseError), ours
            assert repr(jsonable(theirs)) == repr(jsonable(ours))
            count("equal data")
        else:
            assert not isinstance(ours, ParseError), ours
            assert alike(theirs, ours), (theirs, ours)
            count("equal values")


@profile(350)
@given(st.data())
def test_values_are_equal(data: st.DataObject) -> None:
    signature = data.draw(signatures())
    spec = lower(signature)
    if isinstance(spec, Unsupported):
        count("unsupported")
        return
    for _ in range(4):
        format, text = data.draw(replies(signature))
        check(signature, spec, text, format)


def test_generators_reach_what_they_should() -> None:
    if not COUNTS:
        pytest.skip("runs after test_values_are_equal")
    print(COUNTS)
    assert COUNTS["equal values"] > 0.3 * sum(COUNTS.values()) / 2
    assert COUNTS["both raise"] > 100


SIMPLE = {
    "text": dspy.Signature("question -> answer"),
    "typed": dspy.Signature("question -> answer: list[int], score: float"),
    "union": dspy.Signature("question -> answer: Optional[str], score: Union[int, list[int], None]"),
    "literal": dspy.Signature("question -> answer: Literal['a', 'null', '1'], score: Literal[1, 2, True]"),
    "any": dspy.Signature("question -> answer: Any, score: dict[str, Any]"),
}


@pytest.mark.parametrize("name", SIMPLE)
@pytest.mark.parametrize("format", ["chat", "json"])
def test_the_same_of_hand_picked_replies(name: str, format: Literal["chat", "json"]) -> None:
    from .strategies import HOSTILE

    signature = SIMPLE[name]
    spec = lower(signature)
    assert isinstance(spec, SignatureSpec)
    for answer in [*HOSTILE, *NASTY]:
        scores = ["1", "[1, 2]", "null", "", '{"a": [1]}', "Literal[1]", "'2'", "1.5", "True"]
        for score in scores if len(answer) < 100 else scores[:1]:
            check(signature, spec, f"[[ ## answer ## ]]\n{answer}\n\n[[ ## score ## ]] {score}", format)
            check(signature, spec, f'{{"answer": {answer}, "score": {score}}}', format)
        check(signature, spec, answer, format)


@pytest.mark.parametrize("text", [None, "", " "])
def test_no_text(text: str | None) -> None:
    for name, signature in SIMPLE.items():
        spec = lower(signature)
        assert isinstance(spec, SignatureSpec), name
        check(signature, spec, text, "chat")
        check(signature, spec, text, "json")


def test_the_error_says_what_was_expected() -> None:
    spec = lower("question -> answer: int")
    assert isinstance(spec, SignatureSpec)
    parser = ReplyParser(spec)
    with pytest.raises(ParseError, match="output field `answer` breaks `answer: int`") as caught:
        parser.parse("[[ ## answer ## ]]\nmany", "chat")
    assert ("answer", "answer: int", "[[ ## answer ## ]]\nmany") == (
        caught.value.field,
        caught.value.expected,
        caught.value.text,
    )
    assert not isinstance(caught.value, ValueError)
    with pytest.raises(ParseError, match="missing from the reply"):
        parser.parse("nothing", "chat")


@pytest.mark.parametrize("piece", ["{", "[", "(", '{"a":', "{a", '{"a": 1} ', "[],{", '"', "\\", "}{"])
def test_long_and_deep_replies_are_refused_or_read_in_bounded_time(piece: str) -> None:
    spec = lower("question -> answer: list[int]")
    assert isinstance(spec, SignatureSpec)
    parser = ReplyParser(spec)
    start = time.perf_counter()
    for text in (piece * 5000, "[[ ## answer ## ]]\n" + piece * 5000):
        for format in ("chat", "json"):
            with pytest.raises(ParseError):
                parser.parse(text, format)
    with pytest.raises(ParseError, match="characters"):
        parser.parse("x" * 1_000_001, "chat")
    assert time.perf_counter() - start < 5


@profile(300)
@given(st.text("{}a", max_size=30))
def test_first_object_is_the_recursive_expression(text: str) -> None:
    match = regex.search(r"\{(?:[^{}]|(?R))*\}", text, regex.DOTALL)
    assert (match.group(0) if match else "") == _first_object(text)


def test_literals_are_read_in_many_threads_at_once() -> None:
    """CPython's parser shares its depth between threads, and raises SystemError for texts that are fine (gh-106905)."""
    import ast
    import threading
    from concurrent.futures import ThreadPoolExecutor

    from vitrify.signatures.literals import literal

    text = repr([{"a": [(1, 2.5, None, "x")] * 5}] * 20)
    value, stop = ast.literal_eval(text), threading.Event()

    def foreign() -> None:
        while not stop.is_set():
            with contextlib.suppress(SystemError):
                ast.parse(text)

    others = [threading.Thread(target=foreign) for _ in range(2)]
    for thread in others:
        thread.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            assert all(found == value for found in pool.map(literal, [text] * 400))
    finally:
        stop.set()
        for thread in others:
            thread.join()

"""Canonical JSON is RFC 8785's, and refuses what two readers could take for different values."""

import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vitrify.signatures.canonical import NotCanonical, canonical_json, digest, from_json_text, json_text, same_json

from .strategies import profile

# RFC 8785, appendix B: IEEE 754 bits and the text.
NUMBERS = [
    ("0000000000000000", "0"),
    ("8000000000000000", "0"),
    ("0000000000000001", "5e-324"),
    ("8000000000000001", "-5e-324"),
    ("7fefffffffffffff", "1.7976931348623157e+308"),
    ("ffefffffffffffff", "-1.7976931348623157e+308"),
    ("4340000000000000", "9007199254740992"),
    ("c340000000000000", "-9007199254740992"),
    ("4430000000000000", "295147905179352830000"),
    ("44b52d02c7e14af5", "9.999999999999997e+22"),
    ("44b52d02c7e14af6", "1e+23"),
    ("44b52d02c7e14af7", "1.0000000000000001e+23"),
    ("444b1ae4d6e2ef4e", "999999999999999700000"),
    ("444b1ae4d6e2ef4f", "999999999999999900000"),
    ("444b1ae4d6e2ef50", "1e+21"),
    ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
    ("3eb0c6f7a0b5ed8d", "0.000001"),
    ("41b3de4355555553", "333333333.3333332"),
    ("41b3de4355555554", "333333333.33333325"),
    ("41b3de4355555555", "333333333.3333333"),
    ("41b3de4355555556", "333333333.3333334"),
    ("41b3de4355555557", "333333333.33333343"),
    ("becbf647612f3696", "-0.0000033333333333333333"),
    ("43143ff3c1cb0959", "1424953923781206.2"),
]


@pytest.mark.parametrize(("bits", "text"), NUMBERS)
def test_numbers_of_the_specification(bits: str, text: str) -> None:
    [number] = struct.unpack(">d", bytes.fromhex(bits))
    assert text == canonical_json(number)


def test_the_example_of_the_specification() -> None:
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"\u002f",
        "literals": [None, True, False],
    }
    expected = (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    assert expected == canonical_json(value)


def test_keys_are_sorted_by_utf16() -> None:
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    expected = ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    assert expected == list(json.loads(canonical_json(dict.fromkeys(keys))))


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": [1, {"b": math.nan}]}, r"\$\.a\[1\]\.b"),
        ([math.inf], r"\$\[0\]"),
        ({"a": 2**53 + 1}, r"\$\.a"),
        ({"a": "\ud800"}, r"\$\.a"),
        ({"\ud800": 1}, r"\$ "),
        ({"a": {1: 2}}, r"\$\.a"),
        ({"a": {1, 2}}, r"\$\.a"),
        ({"a": b"x"}, r"\$\.a"),
    ],
)
def test_refusals_name_the_path(value: Any, where: str) -> None:
    with pytest.raises(NotCanonical, match=where):
        canonical_json(value)


def test_depth_is_bounded() -> None:
    value: Any = []
    for _ in range(1000):
        value = [value]
    with pytest.raises(NotCanonical, match="nesting"):
        canonical_json(value)


exact = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**53), 2**53),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(),
    ),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
)


@profile(300)
@given(exact)
def test_text_is_the_value_s(value: Any) -> None:
    text = canonical_json(value)
    assert text == canonical_json(json.loads(text))
    assert digest(value) == digest(json.loads(text))
    assert same_json(value)
    assert repr(value) == repr(from_json_text(json_text(value)))


@profile(100)
@given(st.dictionaries(st.text(), exact))
def test_order_of_keys_is_no_difference(value: dict[str, Any]) -> None:
    assert canonical_json(value) == canonical_json(dict(reversed(value.items())))

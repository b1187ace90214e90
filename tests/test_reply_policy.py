"""DSPy's silent second request after a reply it can't parse: a policy, and counted."""

import functools

from .plain_and_bound import check, in_turn, run, scripted  # first: it sets what DSPy reads when it is imported

import dspy  # isort: skip
from vitrify.programs.bind import bind
from vitrify.programs.planned import ReplyPolicy
from vitrify.programs.program import lower_program

BAD_CHAT, GOOD_JSON = "nonsense", '{"a": "fine"}'


def test_the_second_request_is_dspys_and_counted() -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}]
    for config in ({}, {"tools": tools}):
        plain = dspy.Predict("q -> a", **config)
        lm = functools.partial(scripted, in_turn(BAD_CHAT, GOOD_JSON), params=("response_format",), schema=True)
        seen = check(plain, {"q": "x"}, lm=lm)
        assert 2 == len(seen.requests) and ["self"] == seen.scope
        # Where DSPy itself runs the predictor, it is counted as well.
        seen = check(plain, {"q": "<<CUSTOM-TYPE-START-IDENTIFIER>>"}, lm=lm)
        assert 2 == len(seen.requests) and ["self"] == seen.scope
    both_bad = check(dspy.Predict("q -> a"), {"q": "x"}, lm=lambda: scripted(in_turn(BAD_CHAT)))
    assert "AdapterParseError" == both_bad.output and 2 == len(both_bad.requests)
    empty = check(dspy.Predict("q -> a"), {"q": "x"}, lm=lambda: scripted(in_turn("")))
    assert "AdapterParseError" == empty.output
    json_only = check(
        dspy.Predict("q -> a"), {"q": "x"}, lm=lambda: scripted(in_turn("no")), adapter=dspy.JSONAdapter()
    )
    assert 1 == len(json_only.requests) and [] == json_only.scope


def test_a_policy_without_a_second_request() -> None:
    plain = dspy.Predict("q -> a")
    spec = lower_program(plain)
    bound = bind(plain, spec, spec.baseline, policy=ReplyPolicy(second_format=None))
    for mode in ("sync", "async"):
        for q in ("x", "<<CUSTOM-TYPE-START-IDENTIFIER>>"):
            seen = run(bound, {"q": q}, scripted(in_turn(BAD_CHAT, GOOD_JSON)), mode=mode)
            assert ("AdapterParseError", 1, []) == (seen.output, len(seen.requests), seen.scope)


def test_counting_needs_no_scope() -> None:
    plain = dspy.Predict("q -> a")
    spec = lower_program(plain)
    lm = scripted(in_turn(BAD_CHAT, GOOD_JSON))
    assert "fine" == bind(plain, spec, spec.baseline)(q="x", lm=lm).a

"""A program as data: its predictors by path, found without running it."""

import functools
import operator
import re
from typing import Any

from .plain_and_bound import run, scripted  # first: it sets what DSPy reads when it is imported

import dspy  # isort: skip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vitrify.programs.bind import bind
from vitrify.programs.candidate import Candidate, PredictorParams, demo_of
from vitrify.programs.planned import Planned
from vitrify.programs.program import lower_program, walk
from vitrify.signatures.errors import ProgramError
from vitrify.signatures.lower import lower
from vitrify.signatures.signature import SignatureSpec


class Never(dspy.Module):
    """A module that fails the test when it runs."""

    def forward(self, question: str, style: str = "plain", *, depth: int = 1) -> Any:
        raise AssertionError("it was run")


def module(**attributes: Any) -> Any:
    found = Never()
    for name, value in attributes.items():
        setattr(found, name, value)
    return found


def predict(text: str = "q -> a", **config: Any) -> Any:
    return dspy.Predict(text, **config)


def test_paths() -> None:
    shared = predict()
    program = module(
        first=shared,
        cot=dspy.ChainOfThought("q -> a"),
        steps=[predict(), {"deep": (predict(), shared)}],
        table={1: predict(), "1": predict(), "x": [shared]},
        agent=dspy.ReAct("q -> a", tools=[abs]),
        inner=module(inner=module(p=predict())),
        nothing=[1, "x", None, {"y": 2}],
    )
    found = {item.path: item for item in walk(program)}
    assert [
        "first", "cot.predict", "steps[0]", "steps[1]['deep'][0]", "table[1]", "table['1']", "agent.react",
        "agent.extract.predict", "inner.inner.p",
    ] == list(found)  # fmt: skip
    assert ("steps[1]['deep'][1]", "table['x'][0]") == found["first"].aliases
    assert not any(item.frozen for item in found.values())
    # DSPy's own names are ours, where DSPy finds a predictor at all.
    mine = set(found) | {alias for item in found.values() for alias in item.aliases}
    for name, predictor in program.named_predictors():
        if "table" not in name:
            assert name in mine and found[name].predictor is predictor


def test_a_compiled_sub_module_is_bound_but_is_no_slot() -> None:
    program = module(free=predict(), done=module(p=predict(), also=[dspy.ChainOfThought("q -> a")]), shared=predict())
    program.done._compiled = True
    program.done.shared = program.shared
    program._compiled = True  # the root's own mark says only that DSPy compiled it before
    spec = lower_program(program)
    assert {"free": True, "done.p": False, "done.also[0].predict": False, "done.shared": True} == {
        item.path: item.tunable for item in spec.predictors
    }
    bound: Any = bind(program, spec, spec.baseline)
    assert isinstance(bound.done.p, Planned) and bound.done.shared is bound.shared


def test_a_cycle_ends() -> None:
    program = module(p=predict())
    program.me = program
    program.child = module(parent=program, p=predict())
    assert ["p", "child.p"] == [item.path for item in walk(program)]
    spec = lower_program(program)
    bound: Any = bind(program, spec, spec.baseline)
    assert bound.me is bound is bound.child.parent and bound is not program


def test_a_spec() -> None:
    signature = dspy.Signature("q: str, n: int -> a: bool", "Do {it}.")
    config = {"temperature": 0.4, "api_key": "sk-secret", "stop": ["x"], "max_tokens": object()}
    program = module(p=dspy.Predict(signature, **config))
    program.p.demos = [dspy.Example(q="x", n=1, a=True, augmented=True), {"q": (1, 2)}]
    spec = lower_program(program)
    assert ("Never", f"{__name__}:Never") == (spec.name, spec.import_path) and spec.source_sha256 is not None
    assert [("question", True), ("style", False), ("depth", False)] == [(i.name, i.required) for i in spec.inputs]
    (item,) = spec.predictors
    assert isinstance(item.signature, SignatureSpec) and lower(signature) == item.signature
    assert ("Do {it}.", "chat") == (item.level0.instruction, item.level0.format)
    assert ({"q": "x", "n": 1, "a": True}, {"q": "[1, 2]"}) == tuple(dict(d) for d in item.level0.demos)
    assert {"temperature": 0.4, "stop": ["x"]} == dict(item.level0.decoding)
    assert "sk-secret" not in repr(spec) and "sk-secret" not in str(spec.baseline.to_json())
    bound: Any = bind(program, spec, spec.baseline)
    assert list(program.p.config.items()) == list(bound.p.config.items())
    # A candidate without a parameter of level 0 sends none.
    bound = bind(program, spec, spec.baseline.with_params("p", decoding={}))
    assert {"api_key", "max_tokens"} == set(bound.p.config)
    with pytest.raises(ProgramError, match="only p"):
        spec.predictor("q")


def test_the_inputs_of_kwargs_are_the_first_predictors() -> None:
    agent = dspy.ReAct("q, n: int -> a", tools=[abs])
    for program in (predict("q, n: int -> a"), dspy.ChainOfThought("q, n: int -> a"), agent):
        assert [("q", True), ("n", True)] == [(i.name, i.required) for i in lower_program(program).inputs]


@pytest.mark.parametrize(
    ("adapter", "level", "reason"),
    [
        (None, "chat", None),
        (dspy.ChatAdapter(), "chat", None),
        (dspy.JSONAdapter(), "json", None),
        (dspy.ChatAdapter(use_json_adapter_fallback=False), "chat", "options of its own"),
        (dspy.XMLAdapter(), "chat", "XMLAdapter"),
    ],
)
def test_the_adapter_in_force_is_level_0(adapter: Any, level: str, reason: str | None) -> None:
    (item,) = lower_program(predict(), adapter=adapter).predictors
    assert level == item.level0.format and (reason is None) is item.tunable
    assert reason is None or reason in (item.reason or "")


class Nothing(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p = predict()


def test_refusals() -> None:
    with pytest.raises(ProgramError, match="must be a dspy.Module, got str"):
        lower_program("x")
    with pytest.raises(ProgramError, match="call it to make an instance"):
        lower_program(Never)
    with pytest.raises(ProgramError, match="has no predictors"):
        lower_program(Never())
    with pytest.raises(ProgramError, match=re.escape("defines forward() or aforward()")):
        lower_program(Nothing())


def test_a_demonstration_that_is_no_json_leaves_the_predictor_to_dspy() -> None:
    program = predict()
    program.demos = [dspy.Example(q=float("nan"), a="x")]
    (item,) = lower_program(program).predictors
    assert not item.tunable and "isn't JSON" in (item.reason or "")
    expected, actual = (
        run(p, {"q": "x"}, scripted())
        for p in (program, bind(program, lower_program(program), lower_program(program).baseline))
    )
    assert expected == actual


def test_a_large_list_is_walked_and_copied_quickly() -> None:
    program = module(p=predict(), passages=["text"] * 300_000)
    spec = lower_program(program)
    bound: Any = bind(program, spec, spec.baseline)
    assert bound.passages == program.passages and bound.passages is not program.passages


def test_a_candidate_is_data() -> None:
    demos: Any = ({"q": {"z": 1, "a": [{"y": 1, "b": {"$object": []}}]}, "a": None}, {"q": "x"})
    one = Candidate({"p": PredictorParams("Do.", demos, "json", {"temperature": 0, "stop": ["x"]})})
    read = Candidate.from_json(one.to_json())
    assert one.id == read.id and list(read["p"].demos[0]["q"]) == ["z", "a"]  # type: ignore[arg-type]
    assert dict(read["p"].demos[0]) == demos[0]
    other = one.with_params("p", instruction="Do it.")
    assert one.id != other.id and ["p.instruction"] == other.differences(one) and [] == list(one.differences(read))
    added = Candidate({**one.params, "q": one["p"]})
    assert ["q: removed"] == list(added.differences(one)) and ["q: added"] == list(one.differences(added))
    spec = lower("q: str, n: int -> a")
    assert isinstance(spec, SignatureSpec)
    assert {"q": ["a"], "a": "b"} == dict(demo_of(spec, {"a": "b", "q": ["a"], "other": 1}))


# Random structures: walk() finds exactly the predictors that can be reached, and binding keeps sharing.

LEAVES = st.sampled_from(["new", "old 0", "old 1", "old 2", "text", "chain"])
SHAPES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.sampled_from(["a", "b", 1, "1"]), inner, max_size=3),
        st.dictionaries(st.sampled_from(["x", "y", "z"]), inner, max_size=3).map(lambda d: ("module", d)),
    ),
    max_leaves=12,
)


def build(shape: Any, pool: list[Any], made: list[Any]) -> Any:
    """Return the shape as a program; every predictor that can be reached from it is added to `made`."""
    if shape == "text":
        return "text"
    if shape == "chain":
        chain = dspy.ChainOfThought("q -> a")
        made.append(chain.predict)
        return chain
    if isinstance(shape, str):
        found = predict() if shape == "new" else pool[int(shape[-1])]
        made.append(found)
        return found
    if isinstance(shape, tuple) and shape[0] == "module" and isinstance(shape[1], dict):
        return module(**{name: build(item, pool, made) for name, item in shape[1].items()})
    if isinstance(shape, dict):
        return {key: build(item, pool, made) for key, item in shape.items()}
    return type(shape)(build(item, pool, made) for item in shape)


def at(program: Any, path: str) -> Any:
    return functools.reduce(
        lambda value, step: value[eval(step[1:-1])] if step[0] == "[" else getattr(value, step),
        re.findall(r"\[[^\]]*\]|\w+", path),
        program,
    )


@settings(max_examples=60, deadline=None)
@given(SHAPES)
def test_walk_finds_what_is_there_and_binding_keeps_sharing(shape: Any) -> None:
    made: list[Any] = []
    program = module(content=build(shape, [predict() for _ in range(3)], made))
    located = walk(program)
    assert {id(item) for item in made} == {id(item.predictor) for item in located}
    assert len(located) == len({id(item) for item in made})
    every = [path for item in located for path in (item.path, *item.aliases)]
    assert len(made) == len(every) == len(set(every))
    for item in located:
        assert all(operator.is_(item.predictor, at(program, path)) for path in (item.path, *item.aliases))
    if not located:
        return
    spec = lower_program(program)
    bound = bind(program, spec, spec.baseline)
    again = walk(bound)
    assert [(i.path, i.aliases) for i in located] == [(i.path, i.aliases) for i in again]
    assert all(isinstance(item.predictor, Planned) for item in again)

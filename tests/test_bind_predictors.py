"""Predictors that are not plain texts in a plain Predict: rich values, images, decisions, subclasses."""

from typing import Any, Literal

from .plain_and_bound import chat, check, in_turn, run, scripted  # first: it sets what DSPy reads when it is imported

import dspy  # isort: skip
import pydantic
import pytest
from dspy.adapters.types.decision import Noul
from vitrify.programs.bind import bind
from vitrify.programs.candidate import Candidate
from vitrify.programs.planned import Planned
from vitrify.programs.program import lower_program


class Person(pydantic.BaseModel):
    name: str
    age: int


class About(dspy.Signature):
    """Describe."""

    person: Person = dspy.InputField()
    kind: Literal["a", "b"] = dspy.OutputField()
    other: Person = dspy.OutputField()


def test_demonstrations_with_pydantic_values() -> None:
    plain = dspy.Predict(About)
    ada = Person(name="Ada", age=36)
    plain.demos = [dspy.Example(person=ada, kind="a", other=ada), {"person": {"age": 1, "name": "x"}, "kind": "b"}]
    said = chat(kind="b", other={"name": "Bob", "age": 3})
    seen = check(plain, {"person": ada}, lm=lambda: scripted(in_turn(said)))
    assert "Bob" in seen.output[1] and "Ada" in str(seen.requests)
    # The same demonstrations out of a file render to the same text, key order included.
    spec = lower_program(plain)
    read = Candidate.from_json(spec.baseline.to_json()).with_params("self", decoding={"top_p": 1})
    bound = bind(plain, spec, read)
    assert seen.requests[0]["messages"] == run(bound, {"person": ada}, scripted(in_turn(said))).requests[0]["messages"]


@pytest.mark.parametrize("text", ["<<CUSTOM-TYPE-START-IDENTIFIER>>[{}]<<CUSTOM-TYPE-END-IDENTIFIER>>", "\ud800"])
def test_text_that_only_dspy_renders(text: str) -> None:
    check(dspy.Predict("q -> a"), {"q": text})
    plain = dspy.Predict("q -> a")
    plain.demos = [dspy.Example(q=text, a="x")]
    check(plain, {"q": "x"})


class Seeing(dspy.Signature):
    """See."""

    picture: dspy.Image = dspy.InputField()
    q: str = dspy.InputField()
    a: str = dspy.OutputField()


def test_an_image_is_rendered_by_dspy() -> None:
    plain = dspy.ChainOfThought(Seeing)
    spec = lower_program(plain)
    assert spec.predictors[0].reason and not spec.predictors[0].tunable
    seen = check(plain, {"picture": dspy.Image("https://x.test/a.png"), "q": "what?"})
    assert "https://x.test/a.png" in str(seen.requests)
    bound = bind(plain, spec, spec.baseline.with_params("predict", format="json", instruction="Look."))
    by_hand = dspy.ChainOfThought(Seeing.with_instructions("Look."))
    inputs = {"picture": dspy.Image("https://x.test/a.png"), "q": "what?"}
    expected = run(by_hand, inputs, scripted(), adapter=dspy.JSONAdapter())
    assert expected.requests == run(bound, inputs, scripted()).requests


class Judging(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.judge = dspy.Predict(dspy.Signature("text -> spam: bool", "Judge."))
        self.rate = dspy.Predict(Rating)

    def forward(self, text: str) -> Any:
        self.rate(text=text)
        return self.judge(text=text)

    async def aforward(self, text: str) -> Any:
        return self.forward(text)


class Rating(dspy.Signature):
    """Rate."""

    text: str = dspy.InputField()
    spam: Noul = dspy.OutputField(desc="whether it is spam")


def test_decision_types_and_criteria_are_dspys() -> None:
    plain = Judging()
    plain.rate.fields = {"spam": {"threshold": 0.2}}
    spec = lower_program(plain)
    assert ["judge"] == [item.path for item in spec.predictors if item.tunable]
    replies = in_turn(chat(spam={"noul": 0.3}), chat(spam=True))
    seen = check(plain, {"text": "x"}, lm=lambda: scripted(replies))
    assert 2 == len(seen.trace)
    bound: Any = bind(plain, spec, spec.baseline)
    bound.rate.fields["spam"]["threshold"] = 0.9
    assert 0.2 == plain.rate.fields["spam"]["threshold"]


class Loud(dspy.Predict):
    def forward(self, **kwargs: Any) -> Any:
        return super().forward(**{key: value.upper() for key, value in kwargs.items()})

    async def aforward(self, **kwargs: Any) -> Any:
        return await super().aforward(**{key: value.upper() for key, value in kwargs.items()})


class Quiet(dspy.Predict):
    def __init__(self, signature: str) -> None:
        super().__init__(signature)
        self.helper = dspy.Predict("q -> h")
        self.memo: dict[str, Any] = {"again": self.helper}

    def greet(self) -> str:
        return "hi " + type(self).__name__


class Named(dspy.Predict):
    def __init__(self, signature: str) -> None:
        super().__init__(signature)
        self.path = "my own"


def test_subclasses_of_predict() -> None:
    for kind in (Loud, Quiet, Named):
        check(kind("q -> a"), {"q": "x"})
    spec = lower_program(Loud("q -> a"))
    assert "Loud overrides forward()" == spec.predictors[0].reason
    plain: Any = Quiet("q -> a")
    bound: Any = bind(plain, lower_program(plain), lower_program(plain).baseline)
    assert isinstance(bound, Planned) and isinstance(bound, Quiet) and "hi Quiet" == bound.greet()
    assert isinstance(bound.helper, Planned) and bound.helper is bound.memo["again"] is not plain.helper
    named: Any = bind(Named("q -> a"), lower_program(Named("q -> a")), lower_program(Named("q -> a")).baseline)
    assert "my own" == named.path and Named is type(named)

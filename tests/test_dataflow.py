"""Sealing: which programs are only data flow, and what changes them from outside."""

import enum
import re
import sys
from datetime import date
from pathlib import Path
from typing import Any, Literal

import dspy
import pydantic
import pytest
from vitrify.programs.dataflow import Flow, Unsealed
from vitrify.programs.flow import calls_of

from tests.sealing import HEAD, load_source, program_of, sealed

SEALING = {
    "one call": """
        def forward(self, q):
            return self.p(q=q)
    """,
    "a docstring, annotations and a chain": """
        def forward(self, q: str) -> dspy.Prediction:
            '''Do it.'''
            first = self.p(q=q)
            second: dspy.Prediction = self.cot(q=first.a)
            return dspy.Prediction(a=second.a, why=second.reasoning, first=first["a"])
    """,
    "calls inside calls": """
        def forward(self, q):
            return self.p(q=self.cot(q=self.p(q=q).a).a)
    """,
    "lists, dicts and paths": """
        def forward(self, q):
            one = self.steps[0](q=q)
            two = self.steps[-1](q=one.a)
            three = self.by_name["one"](q=[one.a, two.a])
            four = self.by_name[1](q={"b": three.a, "a": (one.a, 1, -2.5, True, None)})
            return Prediction(a=four.a)
    """,
    "constants and attributes of self": """
        def forward(self, q):
            greeting = "Hi"
            out = self.p(q=f"{self.prefix}{greeting} {self.n}{1.0}")
            return dspy.Prediction(a=out.a, pair=self.pair, n=self.n, none=self.module)
    """,
    "text of every plain type": """
        def forward(self, q: str, k: int = 3):
            r = self.r(q=q)
            text = f"{r.a} {r.n} {r.x} {r.yes} {r.kind} {r.day} {q} {k} {{braces}}"
            again = f"<{text}>"
            return self.p(q=again)
    """,
    "fields of models and items of lists": """
        def forward(self, q):
            r = self.r(q=q)
            out = self.p(q=f"{r.item.name} {r.item.tags[0]} {r.some[-1]} {r.table['a']} {r['items'][0].name}")
            return out
    """,
    "a sub-module": """
        def forward(self, q):
            out = self.inner(q=q)
            more = self.inner(q=out.a, prefix="A: ")
            return dspy.Prediction(a=more.a)
    """,
    "a sub-module's predictor": """
        def forward(self, q):
            return self.inner.p(q=q)
    """,
    "another name for self and defaults": """
        def forward(me, q, *, limit=5, mark="x", flag=False, none=None):
            out = me.p(q=q)
            return dspy.Prediction(a=out.a, limit=limit, mark=mark, flag=flag, none=none)
    """,
    "a prediction by another name": """
        def forward(self, q):
            out = self.p(q=q)
            same = out
            return same
    """,
    "an output that DSPy's predictions also have as a method": """
        def forward(self, q):
            r = self.r(q=q)
            return dspy.Prediction(found=r["items"])
    """,
    "a value of unknown type passed on": """
        def forward(self, q):
            return self.p(q=q["text"][0])
    """,
}  # fmt: skip


@pytest.mark.parametrize("name", SEALING)
def test_seals(name: str, tmp_path: Path) -> None:
    flow = sealed(program_of(SEALING[name], tmp_path))
    assert isinstance(flow, Flow), flow
    assert flow == Flow.from_json(flow.to_json())
    assert list(calls_of(flow))


def test_bare_predictors_seal() -> None:
    for program in (dspy.Predict("q, k -> a"), dspy.ChainOfThought("q, k -> a")):
        flow = sealed(program)
        assert isinstance(flow, Flow)
        assert ["q", "k"] == [p.name for p in flow.parameters]


def test_an_inherited_forward_seals(tmp_path: Path) -> None:
    text = HEAD + "class Mid(Base):\n    def forward(self, q):\n        return self.p(q=q)\n\nclass P(Mid):\n    pass\n"
    assert isinstance(sealed(load_source(text, tmp_path).P()), Flow)


# What isn't in the source --------------------------------------------------------------------------------------------

PLAIN = "def forward(self, q):\n    return self.p(q=q)"


def replaced_on_the_instance(program: Any) -> None:
    program.forward = lambda q: None


def replaced_on_the_class(program: Any) -> None:
    def forward(self: Any, q: Any) -> Any:
        return self.cot(q=q)

    type(program).forward = forward


def renamed_and_replaced(program: Any) -> None:
    replaced_on_the_class(program)
    type(program).forward.__qualname__ = "P.forward"


def other_code(program: Any) -> None:
    def forward(self: Any, q: Any) -> Any:
        return self.cot(q=q)

    type(program).forward.__code__ = forward.__code__


def wrapped(program: Any) -> None:
    type(program).forward.__wrapped__ = len


def own_lm(program: Any) -> None:
    program.p.lm = dspy.LM("openai/x")


def own_setting(program: Any) -> None:
    program.p.config["tools"] = []


def completions(program: Any) -> None:
    program.p.config["n"] = 3


def criteria(program: Any) -> None:
    program.p.fields = {"a": {"criteria": "x"}}


def callbacks(program: Any) -> None:
    program.callbacks = [object()]


def predictor_callbacks(program: Any) -> None:
    program.p.callbacks = [object()]


def predictor_forward(program: Any) -> None:
    program.p.forward = lambda **given: None


def strange_predictor(program: Any) -> None:
    class Mine(dspy.Predict):
        pass

    program.p = Mine("q -> a")


def descriptor(program: Any) -> None:
    type(program).p = property(lambda self: self.cot, lambda self, value: None)


def history(program: Any) -> None:
    program.p = dspy.Predict(dspy.Signature("q: dspy.History -> a"))


OUTSIDE = {
    replaced_on_the_instance: "isn't a plain method",
    replaced_on_the_class: "put there from outside",
    renamed_and_replaced: "put there from outside",
    other_code: "put there from outside",
    wrapped: "put there from outside",
    own_lm: "has a language model of its own",
    own_setting: "has the setting 'tools'",
    completions: "has more than one completion",
    criteria: "runs through DSPy",
    callbacks: "has callbacks",
    predictor_callbacks: "has callbacks",
    predictor_forward: "runs through DSPy",
    strange_predictor: "overrides|is no predictor",
    descriptor: "is no predictor or module",
    history: "runs through DSPy",
}


@pytest.mark.parametrize("change", OUTSIDE)
def test_refuses_what_is_changed_from_outside(change: Any, tmp_path: Path) -> None:
    program = program_of(PLAIN, tmp_path)
    assert isinstance(sealed(program), Flow)
    change(program)
    found = sealed(program)
    assert isinstance(found, Unsealed)
    assert re.search(OUTSIDE[change], found.reason), found.reason


def test_refuses_a_chain_of_thought_with_a_forward_of_its_own(tmp_path: Path) -> None:
    program = program_of("def forward(self, q):\n    return self.cot(q=q)", tmp_path)
    program.cot.forward = lambda **given: dspy.Prediction(a="x")
    assert isinstance(sealed(program), Unsealed)


def test_refuses_a_sub_module_that_refuses(tmp_path: Path) -> None:
    program = program_of("def forward(self, q):\n    return self.inner(q=q)", tmp_path)
    type(program.inner).__call__ = lambda self, **given: None
    found = sealed(program)
    assert isinstance(found, Unsealed)
    assert "Inner overrides __call__()" == found.reason


def test_refuses_a_source_that_was_edited_after_it_was_loaded(tmp_path: Path) -> None:
    program = program_of(PLAIN, tmp_path)
    path = Path(sys.modules[type(program).__module__].__file__ or "")
    path.write_text(path.read_text().replace("return self.p(q=q)", "return self.cot(q=q)"))
    found = sealed(program)
    assert isinstance(found, Unsealed)
    assert "isn't what runs" in found.reason


def test_refuses_a_program_without_source() -> None:
    scope: dict[str, Any] = {"__name__": "nowhere"}
    exec(HEAD + "class P(Base):\n    def forward(self, q):\n        return self.p(q=q)\n", scope)
    found = sealed(scope["P"]())
    assert isinstance(found, Unsealed)
    assert "can't be read" in found.reason


def test_refuses_modules_that_call_each_other(tmp_path: Path) -> None:
    program = program_of("def forward(self, q):\n    return self.inner(q=q)", tmp_path)
    program.inner.p = program
    program.other = dspy.Predict("q -> a")
    found = sealed(program)
    assert isinstance(found, Unsealed)
    assert "calls itself" in found.reason


def test_refuses_what_nests_deeper_than_a_file_may(tmp_path: Path) -> None:
    calls = "q"
    for _ in range(40):
        calls = f"self.p(q={calls}).a"
    found = sealed(program_of(f"def forward(self, q):\n    return self.p(q={calls})", tmp_path))
    assert isinstance(found, Unsealed)
    assert "nest too deep" in found.reason


class Tagged(dspy.Module):
    """Its annotations hold classes of the test's own."""

    class Level(enum.Enum):
        LOW = "low"

    class Box(pydantic.BaseModel):
        size: int
        due: date

    def __init__(self) -> None:
        super().__init__()
        signature = dspy.Signature(
            {
                "q": (str, dspy.InputField()),
                "level": (self.Level, dspy.OutputField()),
                "box": (self.Box, dspy.OutputField()),
                "team": (Literal["a", "b"], dspy.OutputField()),
            }
        )
        self.p = dspy.Predict(signature)
        self.last = dspy.Predict("text, level -> a")

    def forward(self, q: str) -> dspy.Prediction:
        out = self.p(q=q)
        return self.last(text=f"{out.box.size} by {out.box.due}, {out.team}", level=out.level)


def test_a_class_of_a_test_file_seals() -> None:
    assert isinstance(sealed(Tagged()), Flow)


def test_a_parameter_type_counts_only_where_nobody_says_better(tmp_path: Path) -> None:
    head = HEAD.replace('prefix="Q: "):', 'prefix: str = "Q: "):').replace("self.p(q=q)", 'self.p(q=f"{prefix}")')
    assert isinstance(
        sealed(program_of("def forward(self, q):\n    return self.inner(q=q)", tmp_path, head=head)), Flow
    )
    body = "def forward(self, q):\n    return self.inner(q=q, prefix=self.r(q=q).some)"
    found = sealed(program_of(body, tmp_path, head=head))
    assert isinstance(found, Unsealed)
    assert "isn't known to be text" in found.reason

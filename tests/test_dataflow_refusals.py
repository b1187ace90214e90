"""Sealing: what is more than data flow, and what is said of it."""

import re
import textwrap
from pathlib import Path

import pytest
from vitrify.programs.dataflow import Unsealed

from tests.sealing import HEAD, program_of, sealed

REFUSED = {
    # name: (body of forward, what is said)
    "a method of text": ('return self.p(q=f"{q}".strip())', "is no predictor or module"),
    "isinstance": ("x = isinstance(q, str)\nreturn self.p(q=x)", "passes positional"),
    "is None": ("return self.p(q=q is None)", "more than data flow"),
    "len": ("return self.p(q=len(q))", "passes positional"),
    "except": ("try:\n    return self.p(q=q)\nexcept ValueError:\n    return None", "is no assignment: try:"),
    "changed state": ("self.n += 1\nreturn self.p(q=q)", "is no assignment"),
    "assigned attribute": ("self.n = 2\nreturn self.p(q=q)", "assigns to self.n"),
    "assigned item": ("self.many[0] = q\nreturn self.p(q=q)", "assigns to self.many"),
    "if": ("if q:\n    return self.p(q=q)\nreturn self.cot(q=q)", "is no assignment: if q:"),
    "a conditional expression": ("return self.p(q=q if q else 'x')", "more than data flow"),
    "for": ("for i in [1]:\n    x = self.p(q=q)\nreturn x", "is no assignment: for"),
    "while": ("while True:\n    return self.p(q=q)", "is no assignment: while"),
    "a list comprehension": ("return self.p(q=[x for x in q])", "more than data flow"),
    "a dict comprehension": ("return self.p(q={x: x for x in q})", "more than data flow"),
    "a generator": ("return self.p(q=tuple(x for x in q))", "passes positional"),
    "a lambda": ("return self.p(q=(lambda: q)())", "is no predictor or module"),
    "a walrus": ("return self.p(q=(y := q))", "more than data flow"),
    "a rebound local": ("x = self.p(q=q)\nx = self.p(q=x.a)\nreturn x", "binds 'x' twice"),
    "a rebound input": ("q = self.p(q=q)\nreturn q", "binds 'q' twice"),
    "rebound self": ("self = self.inner\nreturn self.p(q=q)", "binds 'self' twice"),
    "a global": ("return self.p(q=CONSTANT)", "'CONSTANT' is neither an input nor a local name"),
    "a global dict": ("return self.p(q=FLAGS['on'])", "'FLAGS' is neither"),
    "a call of a function": ("return self.p(q=helper(value=q))", "is no predictor or module"),
    "a call of a method": ("return self.p(q=self.inner.forward(q=q).a)", "is no predictor or module"),
    "positional arguments": ("return self.inner(q)", "passes positional or unpacked arguments"),
    "unpacked arguments": ("return self.p(**{'q': q})", "passes positional or unpacked arguments"),
    "config=": ("return self.p(q=q, config={'temperature': 1})", "is called with config="),
    "lm=": ("return self.p(q=q, lm=None)", "is called with lm="),
    "demos=": ("return self.p(q=q, demos=[])", "is called with demos="),
    "signature=": ("return self.p(q=q, signature='q -> b')", "is called with signature="),
    "prediction=": ("return self.p(q=q, prediction='x')", "is called with prediction="),
    "del": ("x = q\ndel x\nreturn self.p(q=q)", "is no assignment: del x"),
    "a statement of its own": ("self.p(q=q)\nreturn self.p(q=q)", "is no assignment: self.p"),
    "global": ("global CONSTANT\nreturn self.p(q=q)", "is no assignment: global"),
    "an import": ("import os\nreturn self.p(q=q)", "is no assignment: import os"),
    "assert": ("assert q\nreturn self.p(q=q)", "is no assignment: assert"),
    "with": ("with dspy.context():\n    return self.p(q=q)", "is no assignment: with"),
    "a nested function": ("def inner():\n    return q\nreturn self.p(q=q)", "is no assignment: def inner"),
    "several targets": ("x = y = self.p(q=q)\nreturn x", "is no assignment: x = y"),
    "an unpacked tuple": ("x, y = (1, 2)\nreturn self.p(q=x)", "assigns to"),
    "dspy shadowed by a local": ("dspy = self.p(q=q)\nreturn dspy.Prediction(a=q)", "is no predictor or module"),
    "dspy shadowed later": ("x = dspy.Prediction(a=q)\ndspy = 1\nreturn x", "is no predictor or module"),
    "no return": ("x = self.p(q=q)", "has no return at its end"),
    "returns text": ("x = self.p(q=q)\nreturn x.a", "returns something else than a prediction"),
    "returns a tuple": ("return (self.p(q=q), 1)", "is a whole prediction"),
    "returns nothing": ("return", "is no assignment: return"),
    "arithmetic": ("return self.p(q=q + 'x')", "more than data flow"),
    "a comparison": ("return self.p(q=q > 1)", "more than data flow"),
    "a slice": ("return self.p(q=q[1:])", "is no constant"),
    "an index that is no constant": ("return self.p(q=self.r(q=q).some[q])", "is no constant"),
    "a whole prediction as input": ("return self.p(q=self.p(q=q))", "is a whole prediction: name one of its fields"),
    "a whole prediction in a prediction": ("return dspy.Prediction(a=self.p(q=q))", "is a whole prediction"),
    "a whole prediction in a list": ("return self.p(q=[self.p(q=q)])", "is a whole prediction"),
    "a whole prediction in text": ("x = self.p(q=q)\nreturn self.p(q=f'{x}')", "is a whole prediction"),
    "a whole prediction in a sub-module": ("x = self.p(q=q)\nreturn self.inner(q=x)", "is a whole prediction"),
    "an unknown field": ("return self.p(q=self.p(q=q).b)", "is no output field"),
    "a field of an input": ("return self.p(q=q.text)", "is no output field"),
    "the value of an enumeration": ("return self.p(q=self.r(q=q).color.value)", "is no output field"),
    "a method of every prediction": (
        "return self.p(q=self.r(q=q).items)", r"is a method of every prediction: write \['items'\]",
    ),
    "text of an enumeration": ("return self.p(q=f'{self.r(q=q).color}')", "isn't known to be text"),
    "text of a list": ("return self.p(q=f'{self.r(q=q).some}')", "isn't known to be text"),
    "text of an optional": ("return self.p(q=f'{self.r(q=q).maybe}')", "isn't known to be text"),
    "text of an input without type": ("return self.p(q=f'{q}')", "isn't known to be text"),
    "a format": ("return self.p(q=f'{self.n:03d}')", "has a conversion or a format"),
    "a conversion": ("return self.p(q=f'{self.n!r}')", "has a conversion or a format"),
    "bytes": ("return self.p(q=b'x')", "is no constant that a file can hold"),
    "an infinite number": ("return self.p(q=1e999)", "is no constant that a file can hold"),
    "a lone surrogate": (r"return self.p(q='\ud800')", "is no constant that a file can hold"),
    "a key that is no text": ("return self.p(q={1: 'x'})", "is no text constant"),
    "an unpacked dict": ("return self.p(q={**q})", "is no text constant"),
    "a set": ("return self.p(q={1, 2})", "more than data flow"),
    "a starred item": ("return self.p(q=[*q])", "more than data flow"),
    "a list of self": ("return self.p(q=self.many)", "self.many is no constant"),
    "an enumeration of self": ("return self.p(q=self.color)", "self.color is no constant"),
    "NaN of self": ("return self.p(q=self.nan)", "self.nan is no constant"),
    "an attribute that isn't there": ("return self.p(q=self.nothing)", "self.nothing is no constant"),
    "an attribute of a sub-module": ("return self.p(q=self.inner.threshold)", "self.inner is no constant"),
    "a predictor that isn't there": ("return self.nothing(q=q)", "is no predictor or module"),
    "a predictor made on the way": ("return dspy.Predict('q -> a')(q=q)", "is no predictor or module"),
    "itself": ("return self(q=q)", "calls itself"),
    "an argument the sub-module hasn't": ("return self.inner(q=q, other=1)", "doesn't fit Inner.forward"),
    "an argument the sub-module needs": ("return self.inner(prefix='x')", "doesn't fit Inner.forward"),
    "Prediction(base=...)": ("return dspy.Prediction(base={'a': 1})", "takes base= for itself"),
    "Prediction with a hidden field": ("return dspy.Prediction(dspy_x=1)", "takes dspy_x= for itself"),
    "another class of dspy": ("return dspy.Example(a=q)", "is no predictor or module"),
    "yield": ("yield self.p(q=q)", "is no assignment"),
    "a private name": ("return self.p(q=self.__n)", "is no constant"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_with_file_and_line(name: str, tmp_path: Path) -> None:
    body, message = REFUSED[name]
    found = sealed(program_of("def forward(self, q):\n" + textwrap.indent(body, "    "), tmp_path))
    assert isinstance(found, Unsealed)
    assert re.search(message, found.reason), found.reason
    if name != "itself":
        line = int(re.search(r"\(sealing_\d+\.py, line (\d+)\)$", found.reason)[1])  # type: ignore[index]
        assert 0 <= line - (HEAD.count("\n") + 2) <= body.count("\n") + 1


CLASSES = {
    # name: (body of the class, what is said)
    "decorated": ("@decorated\ndef forward(self, q):\n    return self.p(q=q)", "forward"),
    "registered": ("@registered\ndef forward(self, q):\n    return self.p(q=q)", "is decorated"),
    "a static method": ("@staticmethod\ndef forward(q):\n    return q", "isn't a plain method"),
    "a lambda": ("forward = lambda self, q: self.p(q=q)", "put there from outside"),
    "an alias": ("def run(self, q):\n    return self.p(q=q)\nforward = run", "put there from outside"),
    "a partial": ("forward = functools.partialmethod(helper)", "isn't a plain method"),
    "__call__": (
        "def __call__(self, **k):\n    return 1\ndef forward(self, q):\n    return self.p(q=q)",
        r"overrides __call__\(\)",
    ),
    "acall": (
        "async def acall(self, **k):\n    return 1\ndef forward(self, q):\n    return self.p(q=q)",
        r"overrides acall\(\)",
    ),
    "__getattr__": (
        "def __getattr__(self, name):\n    return 1\ndef forward(self, q):\n    return self.p(q=q)",
        r"defines __getattr__\(\)",
    ),
    "__getattribute__": (
        "def __getattribute__(self, name):\n    return super().__getattribute__(name)\n"
        "def forward(self, q):\n    return self.p(q=q)", r"overrides __getattribute__\(\)",
    ),
    "aforward": (
        "async def aforward(self, q):\n    return 1\ndef forward(self, q):\n    return self.p(q=q)",
        r"defines aforward\(\) besides",
    ),
    "an async forward": ("async def forward(self, q):\n    return await self.p.acall(q=q)", "is no plain function"),
    "a property as predictor": (
        "@property\ndef q2(self):\n    return self.p\ndef forward(self, q):\n    return self.q2(q=q)",
        "is no predictor or module",
    ),
    "a property as constant": (
        "@property\ndef c(self):\n    return 1\ndef forward(self, q):\n    return self.p(q=self.c)",
        "self.c is no constant",
    ),
    "a class's own predictor": (
        "k = dspy.Predict('q -> a')\ndef forward(self, q):\n    return self.k(q=q)", "is no predictor",
    ),
    "*args": ("def forward(self, q, *more):\n    return self.p(q=q)", "takes variadic positional arguments"),
    "**kwargs": ("def forward(self, **given):\n    return self.p(q=1)", "takes variadic keyword arguments"),
    "positional only": ("def forward(self, q, /):\n    return self.p(q=q)", "positional-only"),
    "a mutable default": ("def forward(self, q, k=[]):\n    return self.p(q=q)", "the default of 'k' is no constant"),
    "an enumeration as default": ("def forward(self, q, k=Color.RED):\n    return self.p(q=q)", "the default of 'k'"),
    "a super call": ("def forward(self, q):\n    return super().forward(q=q)", "is no predictor or module"),
    "a closure": (
        "def make(value):\n    def forward(self, q):\n        return self.p(q=value)\n    return forward\n"
        "forward = make('x')", "put there from outside",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
def test_refuses_classes(name: str, tmp_path: Path) -> None:
    body, message = CLASSES[name]
    found = sealed(program_of(body, tmp_path))
    assert isinstance(found, Unsealed)
    assert re.search(message, found.reason), found.reason

"""Programs out of temporary files, for the tests of sealing."""

import importlib.util
import sys
import textwrap
from pathlib import Path
from typing import Any

from vitrify.programs.dataflow import Flow, Unsealed, seal_program
from vitrify.programs.program import lower_program

HEAD = """
import dspy
import functools
from dspy import Prediction
from typing import Any, Literal, Optional
from datetime import date
import pydantic
import enum

CONSTANT = "x"
FLAGS = {"on": True}

class Color(enum.Enum):
    RED = "red"

class Item(pydantic.BaseModel):
    name: str
    tags: list[str]

class Rich(dspy.Signature):
    '''Do it.'''
    q: str = dspy.InputField()
    a: str = dspy.OutputField()
    n: int = dspy.OutputField()
    x: float = dspy.OutputField()
    yes: bool = dspy.OutputField()
    kind: Literal["u", "v", None] = dspy.OutputField()
    day: date = dspy.OutputField()
    color: Color = dspy.OutputField()
    item: Item = dspy.OutputField()
    some: list[str] = dspy.OutputField()
    table: dict[str, int] = dspy.OutputField()
    maybe: Optional[str] = dspy.OutputField()
    items: list[Item] = dspy.OutputField()

def helper(value):
    return value

def decorated(function):
    @functools.wraps(function)
    def wrapper(self, *args, **kwargs):
        return function(self, *args, **kwargs)
    return wrapper

def registered(function):
    return function

class Inner(dspy.Module):
    def __init__(self):
        super().__init__()
        self.p = dspy.Predict("q -> a")
        self.threshold = 3

    def forward(self, q, prefix="Q: "):
        out = self.p(q=q)
        return dspy.Prediction(a=out.a)

class Base(dspy.Module):
    def __init__(self):
        super().__init__()
        self.p = dspy.Predict("q -> a")
        self.r = dspy.Predict(Rich)
        self.cot = dspy.ChainOfThought("q -> a")
        self.inner = Inner()
        self.steps = [dspy.Predict("q -> a"), dspy.Predict("q -> a")]
        self.by_name = {"one": dspy.Predict("q -> a"), 1: dspy.Predict("q -> a")}
        self.prefix = "Hello "
        self.n = 1
        self.many = ["a"]
        self.pair = ("a", (1, 2.0))
        self.color = Color.RED
        self.nan = float("nan")
        self.module = None

"""
counter = iter(range(10_000))


def load_source(text: str, folder: Path) -> Any:
    """Import a module out of a temporary file."""
    name = f"sealing_{next(counter)}"
    path = folder / f"{name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def program_of(body: str, folder: Path, *, head: str = HEAD) -> Any:
    """Return P() of a module that ends in `class P(Base)` with this body."""
    source = head + "class P(Base):\n" + textwrap.indent(textwrap.dedent(body), "    ")
    return load_source(source, folder).P()


def sealed(program: Any) -> Flow | Unsealed:
    return seal_program(program, lower_program(program))

"""forward_of(): what runs when a module is called, as a function and as a syntax tree that is checked to be its own."""

import ast
import inspect
import linecache
import types
from collections.abc import Iterator
from typing import Any

from ..signatures.literals import parsing


class Refusal(Exception):
    """A construct outside the grammar of data flow; the message says what and, where it can, the file and line."""


def forward_of(module: Any) -> tuple[types.FunctionType, ast.FunctionDef]:
    """Return a module's forward and its syntax tree, where nothing stands between it and its callers."""
    function = _plain_forward(module)
    return function, _tree(function)


def _plain_forward(module: Any) -> types.FunctionType:
    import dspy

    cls = type(module)
    for name in ("__call__", "acall", "__getattribute__", "batch"):
        if getattr(cls, name) is not getattr(dspy.Module, name):
            raise Refusal(f"{cls.__name__} overrides {name}()")
    if "__getattr__" in dir(cls):
        raise Refusal(f"{cls.__name__} defines __getattr__()")
    if "aforward" in dir(cls) or "aforward" in vars(module):
        raise Refusal(f"{cls.__name__} defines aforward() besides forward()")
    if module.callbacks:
        raise Refusal(f"{cls.__name__} has callbacks")
    owner = next((base for base in cls.__mro__ if "forward" in vars(base)), cls)
    function = vars(owner).get("forward")
    if "forward" in vars(module) or not isinstance(function, types.FunctionType):
        raise Refusal(f"{cls.__name__}.forward isn't a plain method of its class")
    names = {function.__qualname__, function.__code__.co_qualname}
    if names != {f"{owner.__qualname__}.forward"} or vars(function):
        raise Refusal(f"{cls.__name__}.forward is {function.__code__.co_qualname}, which was put there from outside")
    return function


def _tree(function: types.FunctionType) -> ast.FunctionDef:
    """Return the syntax tree of a function.

    The whole file is compiled, since Python 3.11 compiles calls on a name differently where the file imports it.
    """
    try:
        file = inspect.getsourcefile(function) or ""
        lines = linecache.getlines(file, function.__globals__)
        parsed = parsing(lambda: ast.parse("".join(lines)))
        whole = parsing(lambda: compile(parsed, file, "exec", dont_inherit=True))
    except (OSError, TypeError, ValueError, SyntaxError, RecursionError) as error:
        raise Refusal(f"the source of {function.__qualname__} can't be read") from error
    live = function.__code__
    found = [code for code in _codes(whole) if code.co_qualname == live.co_qualname]
    again = [code for code in found if code.co_firstlineno == live.co_firstlineno]
    if not again or _shape(again[0]) != _shape(live):
        raise Refusal(
            f"the source of {function.__qualname__} can't be read, or isn't what runs: it was changed after it was "
            "loaded"
        )
    first = live.co_firstlineno
    for node in ast.walk(parsed):
        if isinstance(node, ast.FunctionDef) and node.name == function.__name__:
            if node.lineno == first:
                return node
            if node.decorator_list and node.decorator_list[0].lineno == first:
                raise Refusal(f"{function.__qualname__} is decorated")
    raise Refusal(f"{function.__qualname__} is no plain function")


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    for item in code.co_consts:
        if isinstance(item, types.CodeType):
            yield item
            yield from _codes(item)


def _shape(code: types.CodeType) -> tuple[Any, ...]:
    # repr tells 1 from 1.0 and from True, inside tuples too.
    consts = tuple(_shape(item) if isinstance(item, types.CodeType) else repr(item) for item in code.co_consts)
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_flags, consts

"""literal() and parsing(): Python's parser, asked from any thread.

CPython 3.11 counts the depth of its syntax trees per interpreter, not per thread: two threads that parse at the same
time can make `ast.literal_eval` raise SystemError ("AST constructor recursion depth mismatch", gh-106905) for a text
that is fine. A lock keeps our own calls apart; what other code parses meanwhile is met by trying again.
"""

import ast
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_PARSING = threading.Lock()  # the parser's state is the interpreter's, so one lock for all is what it takes
_TRIES = 20


def parsing(parse: Callable[[], T]) -> T:
    """Return what `parse` makes of a text with Python's parser; ValueError if that fails again and again."""
    with _PARSING:
        for _ in range(_TRIES):
            try:
                return parse()
            except SystemError:
                continue
    raise ValueError(f"Python's parser failed {_TRIES} times")


def literal(text: str) -> Any:
    """Return the value of a Python literal; ValueError, SyntaxError, MemoryError or RecursionError if none."""
    return parsing(lambda: ast.literal_eval(text))

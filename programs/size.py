"""size_of(): how often a flow writes its inputs and its predictors' outputs down, at most.

Forty steps of which each writes the one before twice say the first value a million million times, in a file of two
kilobytes. So what a flow may build is counted before it runs: a text, list or dictionary is as large as its parts, an
input or output of a predictor is one, a constant one for each value and each thousand characters in it, and what a step
or a call is given counts each time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .flow import Expr, Flow

MOST_SIZE = 100_000


class TooLarge(Exception):
    """The flow may build more than `MOST_SIZE` parts."""


@dataclass(frozen=True)
class _Size:
    """A value's size, and that of its parts by field or index where they are known."""

    total: int
    parts: Mapping[str | int, "_Size"] = field(default_factory=dict)


_ONE = _Size(1)


def size_of(flow: "Flow") -> int:
    """Return how many parts a call of the flow writes down at most; TooLarge beyond `MOST_SIZE`."""
    counting = _Counting()
    counting.flow(flow, {})
    return counting.total


class _Counting:
    """The parts of one flow, those inside it too; every expression is looked at once."""

    def __init__(self) -> None:
        self.total = 0

    def flow(self, flow: "Flow", given: Mapping[str, _Size]) -> _Size:
        scope = {parameter.name: given.get(parameter.name, _ONE) for parameter in flow.parameters}
        for name, value in flow.steps:
            scope[name] = self._counted(self._size(value, scope))
        return self._counted(self._size(flow.returns, scope))

    def _counted(self, size: _Size) -> _Size:
        self.total += size.total
        if self.total > MOST_SIZE:
            raise TooLarge
        return size

    def _size(self, expr: "Expr", scope: Mapping[str, _Size]) -> _Size:
        [(kind, body)] = expr.items()
        if kind == "name":
            return scope[body]
        if kind == "const":
            return _constant(body)
        if kind in ("field", "item"):
            owner = self._size(body[0], scope)
            return owner.parts.get(body[1], owner)
        if kind in ("list", "tuple", "text", "dict", "prediction"):
            return self._built(kind, body, scope)
        inputs = {name: self._counted(self._size(item, scope)) for name, item in body["inputs"].items()}
        return _ONE if kind == "call" else self.flow(body["flow"], inputs)

    def _built(self, kind: str, body: Any, scope: Mapping[str, _Size]) -> _Size:
        pairs = enumerate(body) if kind in ("list", "tuple", "text") else body if kind == "dict" else body.items()
        parts = {key: self._size(item, scope) for key, item in pairs}
        # Of a dictionary that names a key twice only the last counts when it is read, but each is evaluated.
        size = _Size(1 + sum(part.total for part in parts.values()), {} if kind == "text" else parts)
        if size.total > MOST_SIZE:
            raise TooLarge
        return size


def _constant(value: Any) -> _Size:
    total, todo = 0, [value]
    while todo:
        item = todo.pop()
        total += 1 + (len(item) // 1000 if isinstance(item, str) else 0)
        if isinstance(item, (list, dict)):
            todo += item if isinstance(item, list) else item.values()
    return _Size(total)

"""Flow: the data flow of a sealed program as closed data, and its execution."""

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from ..signatures.canonical import JsonValue
from ..signatures.errors import ArtifactError, RequestError, WorkError
from .exact import exact, from_exact
from .prediction import is_model
from .size import MOST_SIZE, TooLarge, size_of

Expr = Mapping[str, Any]
"""One expression, an object with one key:

`name` a local or an input; `const` a JSON value; `field` [expr, name]; `item` [expr, index or key];
`list`, `tuple` [expr, ...]; `dict` [[key, expr], ...]; `text` [expr, ...] concatenated;
`call` {path, inputs}; `flow` {flow, inputs}; `prediction` {name: expr}.
"""

Calls = Generator[tuple[str, dict[str, Any]], dict[str, Any], Any]
"""Yields (path, inputs) for each predictor call, is sent the outputs, and returns a value."""

TEXT_TYPES = (str, int, float, bool, date, type(None))
"""What an f-string may hold: values that format alike wherever the program runs."""

MOST_TEXT = 10_000_000
"""Characters of one text; a few steps that double a text would otherwise fill the memory."""


@dataclass(frozen=True)
class Parameter:
    """One input of a flow; `default` counts only where it isn't required."""

    name: str
    required: bool
    default: JsonValue = None


@dataclass(frozen=True)
class Flow:
    """Assignments in order, and what is returned."""

    parameters: tuple[Parameter, ...]
    steps: tuple[tuple[str, Expr], ...]
    returns: Expr = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the flow as JSON."""
        return {
            "parameters": [
                {"name": p.name, "required": p.required, "default": exact(p.default)} for p in self.parameters
            ],
            "steps": [{"let": name, "value": _to_json(value)} for name, value in self.steps],
            "returns": _to_json(self.returns),
        }

    @classmethod
    def from_json(cls, data: Any, where: str = "program.flow") -> "Flow":
        """Return the flow that `to_json` wrote; anything else is an ArtifactError."""
        parameters, steps, returns = _keys(data, where, "parameters", "steps", "returns")
        read: list[Parameter] = []
        known: set[str] = set()
        for item in _list(parameters, where):
            name, required, default = _keys(item, where, "name", "required", "default")
            if not isinstance(required, bool) or name in known:
                raise ArtifactError(f"{where}: `an input has a name of its own, and is required or not`: {name!r:.60}.")
            read.append(Parameter(_name(name, where), required, from_exact(default)))
            known.add(name)
        lines = []
        fields: set[str] = set()
        for item in _list(steps, where):
            target, value = _keys(item, where, "let", "value")
            lines.append((_name(target, where), _checked(value, known, where)))
            if target in known:
                raise ArtifactError(f"{where}: `a name is bound once`, but {target!r:.60} is bound twice.")
            known.add(target)
            if _gives_fields(lines[-1][1], fields):
                fields.add(target)
        last = _checked(returns, known, where)
        if not _gives_fields(last, fields):
            raise ArtifactError(f"{where}: `a flow returns a prediction`, but this one returns something else.")
        return cls(tuple(read), tuple(lines), last)

    def check_size(self) -> None:
        """Raise ArtifactError if a call could write values down so often that it took hours, or all memory."""
        try:
            size_of(self)
        except TooLarge as error:
            raise ArtifactError(
                f"program.flow: `a flow builds at most {MOST_SIZE} parts`, this one more; it was written by hand: "
                "compile again."
            ) from error

    def execute(self, inputs: Mapping[str, Any]) -> Calls:
        """Run the flow; drive the generator by answering each predictor call."""
        scope: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.name in inputs:
                scope[parameter.name] = inputs[parameter.name]
            elif parameter.required:
                raise RequestError(f"the input {parameter.name!r} is missing: `every required input is given`.")
            else:
                scope[parameter.name] = parameter.default
        unknown = sorted(set(inputs) - {p.name for p in self.parameters})
        if unknown:
            known = ", ".join(p.name for p in self.parameters)
            raise RequestError(f"the input {unknown[0]!r} is none of the program's; it takes {known or 'none'}.")
        for name, value in self.steps:
            scope[name] = yield from _evaluate(value, scope)
        return (yield from _evaluate(self.returns, scope))


class Fields(dict[str, Any]):
    """The outputs of a predictor or of a `dspy.Prediction(...)`."""


def _evaluate(expr: Expr, scope: Mapping[str, Any]) -> Calls:
    kind, body = next(iter(expr.items()))
    if kind == "name":
        return scope[body]
    if kind == "const":
        return body
    if kind in ("field", "item"):
        owner = yield from _evaluate(body[0], scope)
        return _field(owner, body[1]) if kind == "field" else _item(owner, body[1])
    if kind in ("list", "tuple", "text"):
        values = []
        for item in body:
            values.append((yield from _evaluate(item, scope)))
        if kind == "text":
            return _joined(values)
        return values if kind == "list" else tuple(values)
    if kind == "dict":
        table = {}
        for key, item in body:
            table[key] = yield from _evaluate(item, scope)
        return table
    if kind == "prediction":
        fields = Fields()
        for name, item in body.items():
            fields[name] = yield from _evaluate(item, scope)
        return fields
    inputs = {}
    for name, item in body["inputs"].items():
        inputs[name] = yield from _evaluate(item, scope)
    if kind == "call":
        return Fields((yield (body["path"], inputs)))
    return (yield from body["flow"].execute(inputs))


def _gives_fields(expr: Expr, known: set[str]) -> bool:
    """Say whether an expression is a prediction; `known` are the names that are."""
    [(kind, body)] = expr.items()
    return kind in ("call", "flow", "prediction") or (kind == "name" and body in known)


def _field(owner: Any, name: str) -> Any:
    if isinstance(owner, Fields) and name in owner:
        return owner[name]
    if is_model(owner) and name in type(owner).model_fields:
        return getattr(owner, name)
    raise WorkError(f"the flow reads the field {name!r:.60} of a {type(owner).__name__}, which has none of that name.")


def _item(owner: Any, key: str | int) -> Any:
    try:
        return owner[key]
    except (LookupError, TypeError) as error:
        raise WorkError(
            f"the flow reads item {key!r:.60} of {owner!r:.60}: {type(error).__name__}: {str(error)[:60]}."
        ) from error


def _joined(values: list[Any]) -> str:
    for value in values:
        if not isinstance(value, TEXT_TYPES):
            raise RequestError(f"`text is made of str, int, float, bool and date`, got {type(value).__name__}.")
    text = [format(value) for value in values]
    if sum(map(len, text)) > MOST_TEXT:
        raise RequestError(f"`a text has at most {MOST_TEXT} characters`, got more.")
    return "".join(text)


def _to_json(expr: Expr) -> dict[str, Any]:
    kind, body = next(iter(expr.items()))
    if kind == "const":
        return {kind: exact(body)}
    if kind in ("field", "item"):
        return {kind: [_to_json(body[0]), body[1]]}
    if kind in ("list", "tuple", "text"):
        return {kind: [_to_json(item) for item in body]}
    if kind == "dict":
        return {kind: [[key, _to_json(item)] for key, item in body]}
    if kind == "prediction":
        # A list of pairs: the order of a prediction's fields shows, and canonical JSON sorts keys.
        return {kind: [[name, _to_json(item)] for name, item in body.items()]}
    if kind in ("call", "flow"):
        inputs = [[name, _to_json(item)] for name, item in body["inputs"].items()]
        head = {"path": body["path"]} if kind == "call" else {"flow": body["flow"].to_json()}
        return {kind: {**head, "inputs": inputs}}
    return {kind: body}


def _checked(data: Any, known: set[str], where: str) -> Expr:
    """Return an expression read from a file, every part of it checked."""
    if not isinstance(data, dict) or len(data) != 1:
        raise ArtifactError(f"{where}: `an expression is an object with one key`, found {str(data)[:60]!r}.")
    kind, body = next(iter(data.items()))
    if kind == "name":
        if not isinstance(body, str) or body not in known:
            raise ArtifactError(f"{where}: `a name is bound before it is used`, found {str(body)[:60]!r}.")
        return {kind: body}
    if kind == "const":
        return {kind: from_exact(body)}
    if kind in ("field", "item"):
        parts = _list(body, where)
        if len(parts) != 2 or type(parts[1]) not in ((str,) if kind == "field" else (str, int)):
            raise ArtifactError(f"{where}: `{kind} has an expression and a name`, found {str(body)[:60]!r}.")
        return {kind: (_checked(parts[0], known, where), parts[1])}
    if kind in ("list", "tuple", "text"):
        return {kind: tuple(_checked(item, known, where) for item in _list(body, where))}
    if kind in ("dict", "prediction"):
        pairs = _pairs(body, known, where)
        return {kind: pairs if kind == "dict" else _once(pairs, where)}
    if kind == "call":
        path, inputs = _keys(body, where, "path", "inputs")
        return {kind: {"path": _name(path, where), "inputs": _once(_pairs(inputs, known, where), where)}}
    if kind == "flow":
        flow, inputs = _keys(body, where, "flow", "inputs")
        return {kind: {"flow": Flow.from_json(flow, where), "inputs": _once(_pairs(inputs, known, where), where)}}
    raise ArtifactError(f"{where}: nobody knows the expression {kind[:40]!r}; it was written by another version.")


def _pairs(data: Any, known: set[str], where: str) -> tuple[tuple[str, Expr], ...]:
    pairs = []
    for item in _list(data, where):
        parts = _list(item, where)
        if len(parts) != 2:
            raise ArtifactError(f"{where}: `a pair has two parts`, found {str(item)[:60]!r}.")
        pairs.append((_name(parts[0], where), _checked(parts[1], known, where)))
    return tuple(pairs)


def _once(pairs: tuple[tuple[str, Expr], ...], where: str) -> dict[str, Expr]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ArtifactError(f"{where}: `a name is given once`, but {[name for name, _ in pairs]!r:.60} repeats one.")
    return table


def _keys(data: Any, where: str, *names: str) -> list[Any]:
    if not isinstance(data, dict) or set(data) != set(names):
        raise ArtifactError(f"{where}: `an object with {', '.join(names)}`, found {str(data)[:60]!r}.")
    return [data[name] for name in names]


def _list(data: Any, where: str) -> list[Any]:
    if not isinstance(data, list):
        raise ArtifactError(f"{where}: `a list`, found {str(data)[:60]!r}.")
    return data


def _name(data: Any, where: str) -> str:
    if not isinstance(data, str):
        raise ArtifactError(f"{where}: `a name is text`, found {str(data)[:60]!r}.")
    return data


def calls_of(flow: Flow) -> Iterator[str]:
    """Yield the predictor paths that a flow calls, each as often as it is called."""
    for _, value in flow.steps:
        yield from _calls(value)
    yield from _calls(flow.returns)


def _calls(expr: Expr) -> Iterator[str]:
    [(kind, body)] = expr.items()
    if kind in ("field", "item"):
        yield from _calls(body[0])
    elif kind in ("list", "tuple", "text"):
        for item in body:
            yield from _calls(item)
    elif kind == "dict":
        for _, item in body:
            yield from _calls(item)
    elif kind in ("prediction", "call", "flow"):
        for item in (body if kind == "prediction" else body["inputs"]).values():
            yield from _calls(item)
        if kind == "call":
            yield body["path"]
        elif kind == "flow":
            yield from calls_of(body["flow"])


__all__ = ["Expr", "Fields", "Flow", "Parameter", "calls_of"]

"""Metrics: what a prediction is worth, asked as DSPy asks, answered as a Score."""

import contextlib
import functools
import importlib.util
import inspect
import math
import numbers
import os
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..signatures.canonical import digest
from ..signatures.errors import MetricError, VitrifyError, WorkError, nearest
from .data import Example
from .importing import load_object
from .stock import STOCK, StockMetric, contains, exact, f1, numeric

__all__ = [
    "Metric",
    "MetricBug",
    "MetricSpec",
    "Score",
    "StockMetric",
    "call_metric",
    "contains",
    "exact",
    "f1",
    "numeric",
    "required_labels",
    "resolve_metric",
]

_SHAPE = "metric(example, prediction, trace=None)"
_STOCK_VERSION = 1  # part of a stock metric's digest: raise it when a score changes


@dataclass(frozen=True)
class Score:
    """What a metric says of one prediction: a finite number, better when larger, and words for the proposer."""

    value: float
    feedback: str | None = None


class Metric(Protocol):
    """Anything that DSPy takes for a metric; called with a `dspy.Example` and the program's prediction."""

    def __call__(self, example: Any, prediction: Any, /) -> Any:
        """Return a bool, a number, a Score, or a mapping or prediction with `score` and perhaps `feedback`."""
        ...


class MetricBug(WorkError):
    """The user's metric raised; the compile stops and names the example.

    Attributes:
        example_id: the example's id.
        row: its 1-based row in the data.
    """

    def __init__(self, message: str, example_id: str = "", row: int = 0) -> None:
        super().__init__(message)
        self.example_id = example_id
        self.row = row


@dataclass(frozen=True)
class MetricSpec:
    """A metric, resolved: how it is called and what is recorded of it.

    Attributes:
        name: for messages and the artifact; without paths.
        call: the metric itself.
        digest: sha256 of its source, or None where there is none to read.
        arity: positional arguments it can use: 2, 3 with the trace, 5 for GEPA's feedback metrics.
        needs: how many of them it insists on.
        trace_by_name: whether the trace goes in as `trace=`.
    """

    name: str
    call: Callable[..., Any]
    digest: str | None = None
    arity: int = 3
    needs: int = 2
    trace_by_name: bool = False


def resolve_metric(
    spec: "str | Metric | Callable[..., Any] | MetricSpec", *, base_dir: str | os.PathLike[str] | None = None
) -> MetricSpec:
    """Return the metric that a callable or a name stands for.

    Args:
        spec: A callable, "exact:field", "f1:field", "numeric:field", "contains:field", "package.module:function" or
            "path/to/file.py:function".
        base_dir: Where relative paths start; the working directory unless given.

    Raises:
        MetricError: For a name that means nothing, a file that can't be imported, or what can't be called so.
    """
    if isinstance(spec, MetricSpec):
        return spec
    if not isinstance(spec, str):
        return _of_callable(spec, _callable_name(spec))
    head, colon, field = spec.partition(":")
    if head in STOCK:
        if not colon or not field:
            raise MetricError(
                f"The metric `{spec}` breaks `{head}:field`: no field; write one, such as `{head}:answer`."
            )
        return _of_callable(_stock(head, field), spec)
    if not colon:
        raise MetricError(
            f"The metric `{spec}` breaks `name:field or file.py:function`: no colon; {nearest(spec, list(STOCK))}"
        )
    if "/" not in head and not _importable(head):
        raise MetricError(
            f"The metric `{spec}` breaks `name:field, file.py:function or module:function`: there is no metric and "
            f"no module `{head}`; {nearest(head, list(STOCK))}"
        )
    found = load_object(spec, kind="metric", base_dir=base_dir)
    target, _, name = spec.rpartition(":")
    # Without the folder: the name goes into the artifact, which is the same wherever it was made.
    return _of_callable(found, f"{Path(target).name}:{name}")


def required_labels(spec: "str | Metric | Callable[..., Any] | MetricSpec") -> tuple[str, ...]:
    """Return the labels that a metric is known to read: a stock metric's field, nothing for any other."""
    call = resolve_metric(spec).call
    return (call.field,) if isinstance(call, StockMetric) else ()


def call_metric(
    metric: "MetricSpec | Metric | Callable[..., Any]", example: Example, prediction: Any, trace: Any, *, lm: Any = None
) -> Score:
    """Return the score of one prediction, asking the metric as DSPy does.

    Args:
        metric: The metric.
        example: The example; the metric gets it as a `dspy.Example`.
        prediction: What the program returned.
        trace: None to evaluate; DSPy's trace, a list, while bootstrapping.
        lm: A `dspy.BaseLM` for metrics that ask a model themselves; whatever is in force unless given.

    Raises:
        MetricBug: If the metric raised; the cause is its exception.
        MetricError: If it returned something that is no score.
    """
    spec = resolve_metric(metric)
    try:
        with _model(lm):
            if isinstance(spec.call, StockMetric):
                return Score(float(spec.call(example, prediction, trace)))
            found = _ask(spec, example.to_dspy(), prediction, trace)
    except VitrifyError:
        raise  # a refused call is no bug of the metric's
    except Exception as error:  # whatever the user's metric raises
        raise MetricBug(
            f"The metric `{spec.name}` raised {type(error).__name__} on row {example.row}: "
            f"{str(error)[:300] or 'no message'}. `a metric returns a score for every prediction`; mend it and run "
            "again: what was paid is kept.",
            example.id,
            example.row,
        ) from error
    return _score(found, spec, example)


def _ask(spec: MetricSpec, example: Any, prediction: Any, trace: Any) -> Any:
    if spec.trace_by_name:
        return spec.call(example, prediction, trace=trace)
    # At evaluation DSPy passes two arguments, and leaves `trace` at its default; bootstrapping, it passes three.
    count = spec.needs if trace is None or spec.arity == 2 else max(spec.needs, 3)
    return spec.call(*(example, prediction, trace, None, None)[:count])


def _model(lm: Any) -> contextlib.AbstractContextManager[Any]:
    if lm is None:
        return contextlib.nullcontext()
    import dspy

    context: contextlib.AbstractContextManager[Any] = dspy.context(lm=lm)
    return context


def _score(found: Any, spec: MetricSpec, example: Example) -> Score:
    value, feedback = found, None
    if isinstance(found, Score):
        value, feedback = found.value, found.feedback
    elif isinstance(found, Mapping):
        value, feedback = found.get("score", found), found.get("feedback")
    elif not isinstance(found, (numbers.Number, np.generic, str)) and hasattr(found, "score"):
        value, feedback = found.score, getattr(found, "feedback", None)
    if isinstance(value, (np.generic, np.ndarray)) and np.ndim(value) == 0:
        value = value.item()
    if not isinstance(value, numbers.Real) or not _finite(value):
        if inspect.iscoroutine(found):
            found.close()  # else Python warns that nobody awaited it
        raise MetricError(
            f"The metric `{spec.name}` breaks `a score is a finite number, a bool, or has one as score`: on row "
            f"{example.row} it returned {type(found).__name__} {found!r:.120}; return a number."
        )
    return Score(float(value), None if feedback is None else str(feedback))


def _finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


def _stock(kind: str, field: str) -> StockMetric:
    makers: dict[str, Callable[[str], StockMetric]] = {
        "exact": exact, "f1": f1, "numeric": numeric, "contains": contains,
    }  # fmt: skip
    return makers[kind](field)


def _of_callable(found: Any, name: str) -> MetricSpec:
    if isinstance(found, type):
        raise MetricError(
            f"The metric `{name}` breaks `{_SHAPE}`: it is a class; give an instance of it or a function."
        )
    if not callable(found):
        raise MetricError(f"The metric `{name}` breaks `{_SHAPE}`: found {type(found).__name__} {found!r:.60}.")
    if isinstance(found, StockMetric):
        return MetricSpec(name, found, _stock_digest(found))
    arity, needs, by_name = _shape(found, name)
    return MetricSpec(name, found, _source_digest(found), arity, needs, by_name)


def _shape(found: Callable[..., Any], name: str) -> tuple[int, int, bool]:
    """Return how many positional arguments a metric takes (2, 3 or 5), how many it insists on, and whether `trace=`."""
    try:
        # A dspy.Module's __call__ says nothing; its forward does (taken from the class: DSPy warns of any other way).
        forward = getattr(type(found), "forward", None)
        signature = inspect.signature(found if forward is None else types.MethodType(forward, found))
    except (TypeError, ValueError):
        return 3, 2, False
    parameters = list(signature.parameters.values())
    positional = [item for item in parameters if item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD)]
    star = any(item.kind is item.VAR_POSITIONAL for item in parameters)
    needs = sum(item.default is item.empty for item in positional)
    others = [
        item.name
        for item in parameters
        if item.kind is item.KEYWORD_ONLY and item.default is item.empty and item.name != "trace"
    ]
    if (len(positional) < 2 and not star) or needs > 5 or others:
        raise MetricError(
            f"The metric `{name}` breaks `{_SHAPE}`: its signature is `{name.split(':')[-1]}{signature}`."
        )
    by_position = len(positional) > 2 and positional[2].name == "trace"
    by_name = "trace" in signature.parameters and not by_position and needs <= 2
    # A third argument with a default of its own, such as `frac=1.0`, isn't the trace, whatever DSPy would pass.
    third = len(positional) > 2 and (
        positional[2].name == "trace" or positional[2].default in (None, positional[2].empty)
    )
    arity = 5 if needs > 3 else 3 if star or third else 2
    return arity, max(needs, 2), by_name


def _callable_name(found: Any) -> str:
    if isinstance(found, StockMetric):
        return found.name
    inner = _unwrapped(found)
    name = getattr(inner, "__qualname__", None) or type(inner).__qualname__
    return str(name).rpartition("<locals>.")[2]


def _unwrapped(found: Any) -> Any:
    while isinstance(found, functools.partial):
        found = found.func
    return found


def _source_digest(found: Any) -> str | None:
    inner = _unwrapped(found)
    if not isinstance(inner, (types.FunctionType, types.MethodType, type)):
        inner = type(inner)
    try:
        return digest(inspect.getsource(inner))
    except (OSError, TypeError):
        return None


def _stock_digest(metric: StockMetric) -> str:
    return digest(["stock", _STOCK_VERSION, metric.kind, metric.field, metric.tolerance])


def _importable(module: str) -> bool:
    """Say whether a module seems to be there, without importing a parent of it."""
    if "." in module or Path(module).is_dir() or Path(f"{module}.py").is_file():
        return True
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # already imported, and without a spec: `__main__`
        return True

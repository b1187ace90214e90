"""bind(): a runnable copy of a program whose predictors execute their plans."""

import copy
import functools
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..signatures.errors import ProgramError
from ..signatures.prompt import NeedsAdapter
from .candidate import Candidate, PredictorParams
from .program import ATOMIC, Located, ProgramSpec, overridden, walk

if TYPE_CHECKING:
    import dspy

    from .planned import ReplyPolicy


def bind(
    program: "dspy.Module", spec: ProgramSpec, candidate: Candidate, *, policy: "ReplyPolicy | None" = None
) -> "dspy.Module":
    """Return a runnable copy of `program` in which every predictor carries the candidate's parameters.

    Modules, and the containers that hold them or belong to them, are copied; everything else (clients, locks, indexes,
    language models) is shared with the original, which is left untouched. Sharing inside the program is kept: one
    predictor reachable by two paths is one predictor in the copy.

    Args:
        program: The module that `spec` was lowered from.
        spec: Its data.
        candidate: Parameters by path; a path that isn't in it keeps what the user wrote.
        policy: What a bound predictor does when a reply can't be parsed; by default what DSPy does.

    Raises:
        ProgramError: If the candidate names a path that the program doesn't have.
    """
    located = walk(program)
    unknown = sorted(set(candidate.params) - {item.path for item in located})
    if unknown:
        known = ", ".join(item.path for item in located)
        raise ProgramError(f"`a candidate names predictors of the program`: {unknown[0]} is none of {known}.")
    memo: dict[int, Any] = {}
    for item in located:
        params = candidate.params.get(item.path)
        memo[id(item.predictor)] = _bound_predictor(item, spec, params, policy)
    for item in located:
        _clone_extras(item.predictor, memo)
    bound: dspy.Module = _clone(program, memo)
    return bound


def _bound_predictor(
    located: Located, spec: ProgramSpec, params: PredictorParams | None, policy: "ReplyPolicy | None"
) -> "dspy.Predict":
    from .planned import DSPY_POLICY, plan_predictor, unplanned_predictor

    predictor = spec.predictor(located.path)
    chosen, policy = params or predictor.level0, policy or DSPY_POLICY
    if predictor.reason is None:
        try:
            return plan_predictor(located.predictor, predictor, chosen, policy)
        except NeedsAdapter:
            pass  # a demonstration holds what only DSPy's adapter renders
    alone = overridden(located.predictor) is not None
    return unplanned_predictor(located.predictor, predictor, chosen, policy, alone=alone)


def _clone_extras(original: Any, memo: dict[int, Any]) -> None:
    """Clone what a subclass of `dspy.Predict` holds beside its own: there may be modules in it."""
    from .planned import ATTRIBUTES, PREDICT_ATTRIBUTES

    bound = memo[id(original)]
    for name, value in vars(original).items():
        if name not in PREDICT_ATTRIBUTES and (name not in ATTRIBUTES or type(bound) is type(original)):
            bound.__dict__[name] = _clone(value, memo)


def _clone(value: Any, memo: dict[int, Any]) -> Any:
    """Return a copy of `value`: modules and their containers anew, what calls into them redirected, the rest shared."""
    import dspy

    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, dspy.Module):
        return _clone_module(value, memo)
    if type(value) in (list, dict, tuple, set):
        return _clone_container(value, memo)
    if isinstance(value, list | dict | tuple):
        return _clone_special(value, memo)
    if isinstance(value, types.MethodType):
        owner = _clone(value.__self__, memo) if isinstance(value.__self__, dspy.Module) else value.__self__
        return value if owner is value.__self__ else types.MethodType(value.__func__, owner)
    if isinstance(value, functools.partial):
        redirected = functools.partial(
            _clone(value.func, memo), *_clone(value.args, memo), **_clone(value.keywords, memo)
        )
        redirected.__dict__.update(value.__dict__)
        return redirected
    if isinstance(value, dspy.Tool):
        func = _clone(value.func, memo)
        return value if func is value.func else value.model_copy(update={"func": func})
    return value


def _clone_module(module: Any, memo: dict[int, Any]) -> Any:
    clone = object.__new__(type(module))
    memo[id(module)] = clone
    for name, item in vars(module).items():
        if name == "history":
            clone.__dict__[name] = []
        elif name == "callbacks":
            clone.__dict__[name] = list(item)
        else:
            clone.__dict__[name] = _clone(item, memo)
    return clone


def _clone_container(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, list):
        items: list[Any] = []
        memo[id(value)] = items
        items.extend([item if type(item) in ATOMIC else _clone(item, memo) for item in value])
        return items
    if isinstance(value, dict):
        table: dict[Any, Any] = {}
        memo[id(value)] = table
        table.update({k: item if type(item) in ATOMIC else _clone(item, memo) for k, item in value.items()})
        return table
    if isinstance(value, tuple):
        return tuple(_clone(item, memo) for item in value)
    return set(value)


def _clone_special(value: Any, memo: dict[int, Any]) -> Any:
    """Return a copy of an OrderedDict, a named tuple, ... that holds modules; without modules it is shared."""
    if isinstance(value, tuple):
        items = [_clone(item, memo) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    changed = {key: new for key in keys if (new := _clone(value[key], memo)) is not value[key]}
    if not changed:
        return value
    clone = copy.copy(value)
    memo[id(value)] = clone
    for key, item in changed.items():
        clone[key] = item
    return clone


def parameters_of(bound: "dspy.Module") -> Mapping[str, PredictorParams]:
    """Return the parameters that a bound program's predictors carry now, by path."""
    from .planned import Planned

    return {item.path: item.predictor.params for item in walk(bound) if isinstance(item.predictor, Planned)}

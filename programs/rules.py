"""check_rules(): what must hold between the fields of an artifact, beyond the type of each.

Two readers that take one of two equal names, or one of two prompts, would run two programs out of one file; and a few
small parts that multiply would take hours. Neither can be said of one field alone.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .records import Mismatch, Place

MOST_PREDICTORS = 1000
MOST_CANARIES = 16
"""Of one predictor: each renders its whole prompt at load."""
MOST_TYPE_VALUES = 50_000
"""JSON values in all signatures together: pydantic takes some 50 microseconds for each."""
MOST_PATTERNS = 32
"""Regular expressions in all signatures together: the worst take 0.1 s and 10 MB each to compile."""


def check_rules(data: Mapping[str, Any]) -> None:
    """Raise Mismatch unless the fields of an artifact's JSON, each of the right type, fit each other."""
    predictors = data["predictors"]
    if len(predictors) > MOST_PREDICTORS:
        raise Mismatch(("predictors",), f"at most {MOST_PREDICTORS} predictors, found {len(predictors)}")
    _once((item["name"] for item in data["inputs"]), ("inputs",))
    _once((path for item in predictors for path in (item["path"], *item["aliases"])), ("predictors",))
    for index, item in enumerate(predictors):
        _check_predictor(item, ("predictors", index))
    problem = signatures_problem([item["signature"] for item in predictors if item["signature"] is not None])
    if problem:
        raise Mismatch(("predictors",), problem)
    asked = Counter(canary["path"] for canary in data["canaries"])
    known = {item["path"] for item in predictors}
    for path, count in asked.items():
        if count > MOST_CANARIES:
            raise Mismatch(("canaries",), f"at most {MOST_CANARIES} canaries of one predictor, found {count}")
        if path not in known:
            raise Mismatch(("canaries",), f"a canary names {path!r:.60}, which is no predictor")


def signatures_problem(signatures: Sequence[Mapping[str, Any]]) -> str:
    """Return why these signatures, as JSON, are too much for one file, or nothing; asked before a compile too."""
    values, patterns, todo = 0, 0, list(signatures)
    while todo and values <= MOST_TYPE_VALUES:
        item: Any = todo.pop()
        values += 1
        if isinstance(item, dict):
            patterns += "pattern" in item
            todo += item.values()
        elif isinstance(item, list):
            todo += item
    if values > MOST_TYPE_VALUES:
        return f"the signatures have at most {MOST_TYPE_VALUES} parts in all, found more"
    if patterns > MOST_PATTERNS:
        return f"the signatures have at most {MOST_PATTERNS} patterns in all, found {patterns}"
    return ""


def _once(names: Iterable[str], where: Place) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise Mismatch(where, f"every name is there once, but {name!r:.60} is there {count} times")


def _check_predictor(record: Mapping[str, Any], where: Place) -> None:
    signature, plan, second = record["signature"], record["plan"], record["second_plan"]
    if plan is None:
        if second is not None:
            raise Mismatch((*where, "second_plan"), "there is a second plan only beside a plan")
        return
    if signature is None:
        raise Mismatch((*where, "plan"), "there is a plan only beside a signature")
    inputs = [
        field.get("name")
        for field in _list(signature.get("fields"))
        if isinstance(field, dict) and field.get("role") == "input"
    ]
    for name, item, format in (("plan", plan, record["format"]), ("second_plan", second, "json")):
        if item is None:
            continue
        if item.get("format") != format:
            raise Mismatch((*where, name, "format"), f"this plan's format is {format}")
        holes = [hole.get("name") for hole in _list(item.get("holes")) if isinstance(hole, dict)]
        if holes != inputs:
            raise Mismatch((*where, name, "holes"), "the holes are the signature's inputs, in their order")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []

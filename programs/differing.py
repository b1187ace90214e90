"""differences(): what changed from one artifact to another, complete: equal artifacts alone have none."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher, unified_diff
from typing import Any, Final, Literal

from ..signatures.canonical import canonical_json
from ..signatures.errors import VitrifyError
from ..signatures.prompt import NeedsAdapter, PromptPlan
from ..signatures.signature import SignatureSpec
from .artifact import Artifact
from .exact import from_exact

Kind = Literal["changed", "added", "removed", "text"]

_ABSENT: Final = object()
_NOT_SHOWN: Final = frozenset({"plan", "second_plan", "demos", "instruction", "path"})
"""Of a predictor: what is compared in a way of its own."""

_PARTS: Final = ("format", "name", "program", "inputs", "predictors", "model", "selection", "evidence", "provenance")


@dataclass(frozen=True)
class Change:
    """One difference.

    Attributes:
        part: What it belongs to: `program`, `predictor route`, `evidence`, ...
        name: What changed, a path of keys: `instruction`, `signature.fields.team.type`, `compiled`.
        kind: `changed` and `text` have both sides, `added` only the second, `removed` only the first.
        before: The first artifact's value, as JSON; None where there is none.
        after: The second's.
    """

    part: str
    name: str
    kind: Kind
    before: Any = None
    after: Any = None

    def to_json(self) -> dict[str, Any]:
        """Return the change as JSON data."""
        return {"part": self.part, "name": self.name, "kind": self.kind, "before": self.before, "after": self.after}

    def lines(self) -> list[str]:
        """Return a text's change as the lines of a diff, each with its sign; unchanged lines are left out."""
        told = list(unified_diff(str(self.before).split("\n"), str(self.after).split("\n"), n=0, lineterm=""))
        return [line for line in told[2:] if not line.startswith("@@")]


def differences(first: Artifact, second: Artifact) -> tuple[Change, ...]:
    """Return what changed, in the order of the file: program, predictors, model, evidence, provenance and the rest.

    The digests themselves aren't compared: they differ exactly where anything else does.
    """
    mine, theirs = first.to_json(), second.to_json()
    names = [*_PARTS, *(name for name in {**mine, **theirs} if name not in _PARTS)]
    found: list[Change] = []
    for name in names:
        before, after = mine.get(name, _ABSENT), theirs.get(name, _ABSENT)
        if name == "sha256" or _same(before, after):
            continue
        found += _predictors(before, after) if name == "predictors" else _walk(name, "", before, after)
    return tuple(found)


def _predictors(before: Sequence[Any], after: Sequence[Any]) -> Iterator[Change]:
    mine, theirs = ({record["path"]: record for record in records} for records in (before, after))
    for path in {**mine, **theirs}:
        part = f"predictor {path}"
        if path not in theirs:
            yield Change(part, "predictor", "removed", before=mine[path]["instruction"])
        elif path not in mine:
            yield Change(part, "predictor", "added", after=theirs[path]["instruction"])
        else:
            yield from _predictor(part, mine[path], theirs[path])
    if mine.keys() == theirs.keys() and list(mine) != list(theirs):
        yield Change("predictors", "order", "changed", list(mine), list(theirs))


def _predictor(part: str, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[Change]:
    if mine["instruction"] != theirs["instruction"]:
        yield Change(part, "instruction", "text", mine["instruction"], theirs["instruction"])
    yield from _demonstrations(part, mine["demos"], theirs["demos"])
    for name in {**mine, **theirs}:
        if name not in _NOT_SHOWN:
            yield from _walk(part, name, mine.get(name, _ABSENT), theirs.get(name, _ABSENT))
    for name, shown in (("plan", "prompt"), ("second_plan", "prompt after an unreadable reply")):
        if not _same(mine[name], theirs[name]) and not (_follows(mine, name) and _follows(theirs, name)):
            yield from _prompt(part, shown, mine[name], theirs[name])


def _demonstrations(part: str, before: Sequence[Any], after: Sequence[Any]) -> Iterator[Change]:
    mine, theirs = ([canonical_json(demo) for demo in demos] for demos in (before, after))
    gone, left = list(mine), []
    for text, demo in zip(theirs, after, strict=True):
        if text in gone:
            gone.remove(text)
        else:
            left.append(demo)
    if mine != theirs and not gone and not left:
        yield Change(part, "demonstrations", "changed", f"{len(before)}, in this order", "the same in another order")
    for demo in before:
        text = canonical_json(demo)
        if text in gone:
            gone.remove(text)
            yield Change(part, "demonstration", "removed", before=_plain(demo))
    for demo in left:
        yield Change(part, "demonstration", "added", after=_plain(demo))


def _follows(record: Mapping[str, Any], name: str) -> bool:
    """Say whether a prompt is what the record's other fields render to: then their differences say everything."""
    if record[name] is None or record["signature"] is None:
        return record[name] is None
    try:
        signature = SignatureSpec.from_json(record["signature"]).with_instruction(record["instruction"])
        demos = [{key: from_exact(value) for key, value in demo.items()} for demo in record["demos"]]
        plan = PromptPlan.build(signature, format="json" if name == "second_plan" else record["format"], demos=demos)
        return plan == PromptPlan.from_json(record[name])
    except (VitrifyError, NeedsAdapter, TypeError, ValueError, AttributeError):
        return False  # a signature or a value written by hand: the prompt itself is shown


def _prompt(part: str, name: str, before: Any, after: Any) -> Iterator[Change]:
    """Yield what changed in a rendered prompt: which of its messages, and whatever else it holds."""
    if before is None or after is None:
        yield Change(part, name, "changed", _rendered(before), _rendered(after))
        return
    rest = [{key: value for key, value in plan.items() if key != "messages"} for plan in (before, after)]
    yield from _walk(part, name, *rest)
    said = [[f"{item['role']}: {item['content']}" for item in plan["messages"]] for plan in (before, after)]
    matched = SequenceMatcher(None, said[0], said[1], autojunk=False)
    for tag, low, high, start, stop in matched.get_opcodes():
        if tag != "equal":
            yield Change(part, f"{name} messages", "text", "\n".join(said[0][low:high]), "\n".join(said[1][start:stop]))


def _rendered(plan: Any) -> str:
    return "rendered by DSPy" if plan is None else f"{len(plan['messages'])} messages, rendered"


def _walk(part: str, name: str, before: Any, after: Any) -> Iterator[Change]:
    """Yield the innermost differences between two JSON values."""
    if _same(before, after):
        return
    if isinstance(before, dict) and isinstance(after, dict) and not any(key.startswith("$") for key in before):
        for key in {**before, **after}:
            yield from _walk(part, f"{name}.{key}".strip("."), before.get(key, _ABSENT), after.get(key, _ABSENT))
        return
    if isinstance(before, list) and isinstance(after, list):
        mine, theirs = _named(before), _named(after)
        if mine is not None and theirs is not None and (list(mine) == list(theirs) or mine.keys() != theirs.keys()):
            yield from _walk(part, name, mine, theirs)
            return
        if len(before) == len(after) and any(isinstance(item, dict | list) for item in before):
            for index, (one, other) in enumerate(zip(before, after, strict=True)):
                yield from _walk(part, f"{name}.{index}".strip("."), one, other)
            return
    name = name or part
    if before is _ABSENT:
        yield Change(part, name, "added", after=_plain(after))
    elif after is _ABSENT:
        yield Change(part, name, "removed", before=_plain(before))
    elif isinstance(before, str) and isinstance(after, str) and "\n" in before + after:
        yield Change(part, name, "text", before, after)
    else:
        yield Change(part, name, "changed", _plain(before), _plain(after))


def _named(items: list[Any]) -> dict[str, Any] | None:
    """Return a list of objects with different names by name; None where it is no such list."""
    if not all(isinstance(item, dict) and isinstance(item.get("name"), str) for item in items):
        return None
    table = {item["name"]: item for item in items}
    return table if len(table) == len(items) else None


def _same(before: Any, after: Any) -> bool:
    # As the files say it: `1.0` and `true` are equal to `1` in Python, and other bytes.
    if before is _ABSENT or after is _ABSENT:
        return before is after
    return canonical_json(before) == canonical_json(after)


def _plain(value: Any) -> Any:
    """Return a value as a prompt shows it, without the marks that keep numbers and the order of keys."""
    if isinstance(value, dict) and any(isinstance(key, str) and key.startswith("$") for key in value):
        return from_exact(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value

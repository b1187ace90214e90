"""Canaries: inputs with the messages that they must render to, checked where a program is loaded.

The text of a plan can't change. What is rendered at run time can: the values of inputs, which pydantic writes, and
whole prompts of predictors that DSPy itself runs. A library that writes them differently would change the program
without a word; a canary makes that an error that shows the difference.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..signatures.canonical import NotCanonical, canonical_json, digest, from_json_text, same_json
from ..signatures.errors import ArtifactError
from ..signatures.prompt import NeedsAdapter, PromptPlan
from .artifact import Artifact, Canary, MessageRecord
from .exact import exact, from_exact
from .untrusted import printable

MOST_TEXT = 100_000
"""Characters of a canary's messages; longer ones aren't recorded."""
_SHOWN = 40
_ADDRESS = re.compile(r" at 0x[0-9a-f]{6,}")


def planned_canary(path: str, plan: PromptPlan, inputs: Mapping[str, Any]) -> Canary | None:
    """Return the canary of these inputs, None where a file can't hold it or the plan can't render it."""
    try:
        written = {name: exact(value) for name, value in inputs.items()}
        # Rendered from what the file will hold, since that is what `load` renders.
        messages = plan.render(_given(from_json_text(canonical_json(written))))
    except (NotCanonical, NeedsAdapter, TypeError, ValueError):
        return None
    return _canary(path, written, messages, messages[len(plan.messages) :])


def dspy_canary(path: str, predictor: Any, adapter: Any, inputs: Mapping[str, Any]) -> Canary | None:
    """Return the canary of a predictor that DSPy runs, None where its prompt can't be recorded.

    Args:
        path: Where the predictor is.
        predictor: The bound `dspy.Predict`.
        adapter: DSPy's adapter that is in force.
        inputs: JSON values; without any it guards what doesn't depend on them.
    """
    # A set or an object in a demonstration is written differently in another process.
    if not all(same_json(value) for demo in predictor.demos for value in dict(demo).values()):
        return None
    try:
        written = {name: exact(value) for name, value in inputs.items()}
        messages = dspy_messages(predictor, adapter, _given(from_json_text(canonical_json(written))))
        if any(_ADDRESS.search(str(message["content"])) for message in messages):
            return None
        return _canary(path, written, messages, messages)
    except Exception:  # noqa: BLE001 - an adapter of the user's own raises what it likes; then there is nothing to guard
        return None


def dspy_messages(predictor: Any, adapter: Any, inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the messages that DSPy's adapter renders for a predictor and these inputs."""
    messages: list[dict[str, Any]] = adapter.format(
        signature=predictor.signature, demos=predictor.demos, inputs=dict(inputs)
    )
    return messages


def check_canaries(artifact: Artifact, name: str) -> None:
    """Raise ArtifactError, with a diff, unless every canary of a plan renders to the messages that were recorded."""
    plans = {r.path: PromptPlan.from_json(r.plan) for r in artifact.predictors if r.plan is not None}
    for canary in artifact.canaries:
        plan = plans.get(canary.path)
        if plan is None:
            continue
        try:
            messages: Any = plan.render(_given(canary.inputs))
        except (NeedsAdapter, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ArtifactError(
                f"{name}: the canary of {canary.path!r:.60} can't be written ({printable(str(error)[:120])}); "
                "compile again."
            ) from error
        _compare(artifact, name, canary, messages, messages[len(plan.messages) :], "pydantic")


def check_dspy_canaries(artifact: Artifact, predictors: Mapping[str, Any], adapter: Any, name: str) -> None:
    """Raise ArtifactError, with a diff, unless DSPy renders the recorded messages for the predictors that it runs.

    `predictors` are the bound ones by path, `adapter` is the one in force.
    """
    planned = {record.path for record in artifact.predictors if record.plan is not None}
    for canary in artifact.canaries:
        if canary.path in planned:
            continue
        try:
            messages = dspy_messages(predictors[canary.path], adapter, _given(canary.inputs))
        except Exception as error:  # whatever the changed library raises
            raise ArtifactError(
                f"{name}: DSPy no longer renders the prompt of {canary.path} ({type(error).__name__}: "
                f"{printable(str(error)[:200])}); install the recorded version ({_version(artifact, 'dspy')}), or "
                "compile again."
            ) from error
        _compare(artifact, name, canary, messages, messages, "dspy")


def difference(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> str:
    """Return what differs between two lists of messages, as a unified diff of at most 40 lines."""
    then, now = _lines(before), _lines(after)
    lines = list(difflib.unified_diff(then, now, "compiled", "now", lineterm="", n=1))
    shown = [f"  {printable(line[:200])}" for line in lines[:_SHOWN]]
    return "\n".join([*shown, *([f"  ... and {len(lines) - _SHOWN} lines more"] if len(lines) > _SHOWN else [])])


def _lines(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    return [line for message in messages for line in (f"[{message['role']}]", *str(message["content"]).splitlines())]


def _compare(artifact: Artifact, name: str, canary: Canary, messages: Any, tail: Any, library: str) -> None:
    recorded = [message.to_json() for message in canary.messages]
    if tail != recorded:
        raise ArtifactError(
            f"{name}: {canary.path} renders other messages than when it was compiled: `what is measured is what "
            f"ships`; a library that writes prompts ({library}) has changed: install the recorded version "
            f"({_version(artifact, library)}), or compile again.\n{difference(recorded, tail)}"
        )
    if digest(messages) != canary.sha256:
        raise ArtifactError(
            f"{name}: the canary of {canary.path} has another hash than the one recorded; its plan was "
            "written by hand: compile again."
        )


def _canary(path: str, inputs: dict[str, Any], messages: Any, tail: Any) -> Canary | None:
    if not all(message.keys() == {"role", "content"} and type(message["content"]) is str for message in messages):
        return None  # blocks of an image, or calls of tools
    if sum(len(message["content"]) for message in tail) > MOST_TEXT:
        return None
    recorded = [MessageRecord(role=message["role"], content=message["content"]) for message in tail]
    return Canary(path=path, inputs=inputs, messages=recorded, sha256=digest(messages))


def _given(inputs: Any) -> dict[str, Any]:
    return {key: from_exact(value) for key, value in inputs.items()}


def _version(artifact: Artifact, library: str) -> str:
    return printable(artifact.provenance.versions.get(library, "unknown")[:40])

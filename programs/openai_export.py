"""openai_requests(): an artifact's prompts as chat completion requests with placeholders for the inputs."""

from collections.abc import Sequence
from typing import Any

from ..signatures.errors import ArtifactError
from ..signatures.prompt import Capabilities, PromptPlan
from .artifact import Artifact, PredictorRecord

FORMAT = "vitrify-openai/1"


def openai_requests(artifact: Artifact) -> tuple[dict[str, Any], list[str]]:
    """Return the first request of every predictor by path, and sentences on what such requests can't say.

    A placeholder is `{{input}}`: braces alone stand in prompts themselves. Where even that occurs in the text, it is
    `{{input_1}}`, ...; each request lists its own.

    Raises:
        ArtifactError: If a predictor has no prompt in the file.
    """
    bare = [record.path for record in artifact.predictors if record.plan is None]
    if bare:
        raise ArtifactError(
            f"{artifact.name} has no prompt for {bare[0]}, which DSPy renders: `a request is a rendered prompt`; "
            "export --to dspy instead."
        )
    recorded = Capabilities(**artifact.model.capabilities.to_json())
    requests = {record.path: _request(artifact, record, recorded) for record in artifact.predictors}
    exported = {"format": FORMAT, "program": artifact.name, "sha256": artifact.sha256, "requests": requests}
    return exported, _notes(artifact)


def _request(artifact: Artifact, record: PredictorRecord, capabilities: Capabilities) -> dict[str, Any]:
    plan = PromptPlan.from_json(record.plan)
    said = "\n".join([*(content for _, content in plan.messages), plan.requirements])
    placeholders = {hole.name: _placeholder(hole.name, said) for hole in plan.holes}
    # As the inputs of a call: what stands around a value is the same, and a text is written as it is.
    messages = plan.render(placeholders)
    decoding = {**artifact.model.decoding, **record.decoding}
    params = plan.request_params({k: v for k, v in decoding.items() if k not in ("rollout_id", "n")}, capabilities)
    model = artifact.model.name.removeprefix("openai/")
    body = {"model": model, "messages": messages, **{k: v for k, v in params.items() if v is not None}}
    outputs = [field["name"] for field in (record.signature or {}).get("fields", []) if field["role"] == "output"]
    return {"body": body, "placeholders": placeholders, "reply": plan.format, "outputs": outputs}


def _placeholder(name: str, text: str) -> str:
    tried, count = f"{{{{{name}}}}}", 0
    while tried in text:
        count += 1
        tried = f"{{{{{name}_{count}}}}}"
    return tried


def _notes(artifact: Artifact) -> list[str]:
    """Return what the requests leave to whoever sends them, in sentences."""
    plans = [PromptPlan.from_json(record.plan) for record in artifact.predictors]
    notes = []
    if len(plans) > 1:
        notes.append(
            f"How {_listed([record.path for record in artifact.predictors])} feed each other isn't in the requests: "
            f"{artifact.name} is more than one call."
        )
    if any(record.second_plan is not None for record in artifact.predictors):
        notes.append("The further request in JSON after a reply that can't be read isn't exported.")
    optional = sorted({hole.name for plan in plans for hole in plan.holes if hole.default is not None})
    if optional:
        notes.append(f"{_listed(optional)} may be left out of a call, and a placeholder may not: fill in the default.")
    other = sorted({hole.name for plan in plans for hole in plan.holes if not hole.text})
    if other:
        notes.append(f"{_listed(other)} may be other than text: write such a value as JSON, as DSPy does.")
    provider = artifact.model.name.partition("/")[0] if "/" in artifact.model.name else ""
    if provider != "openai":
        notes.append(f"The model is {artifact.model.name}: name one that your server knows.")
    return notes


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]

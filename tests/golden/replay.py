"""Runs a golden artifact on recorded replies and says what it asked and what came out, as JSON."""

import enum
from collections.abc import Mapping
from datetime import date
from typing import Any

import pydantic
from vitrify.programs.artifact import Artifact
from vitrify.programs.embedded import Embedded
from vitrify.programs.lm import Capabilities, Reply, Request, Usage
from vitrify.programs.models import Model
from vitrify.programs.runtime import run_artifact
from vitrify.signatures.errors import VitrifyError

Body = dict[str, Any]


class Recorded:
    """Answers with recorded replies, or with the embedded model's, which it then records.

    Its capabilities are none: what the artifact recorded must decide what is asked.
    """

    endpoint = ""
    capabilities = Capabilities()

    def __init__(self, name: str, replies: list[str] | None) -> None:
        self.name = name
        self.asked: list[Request] = []
        self.replies = list(replies or ())
        self._left = None if replies is None else list(replies)
        self._embedded = Embedded()

    def complete(self, request: Request) -> Reply:
        self.asked.append(request)
        if self._left is not None:
            return Reply(self._left.pop(0), Usage(), self.name)
        reply = self._embedded.complete(request)
        self.replies.append(reply.text or "")
        return reply

    async def acomplete(self, request: Request) -> Reply:
        return self.complete(request)

    def close(self) -> None:
        pass


def plain(value: Any) -> Any:
    """Return an output as JSON data: models as objects, members as their values, dates in ISO 8601."""
    if isinstance(value, pydantic.BaseModel):
        return {name: plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def body_of(request: Request) -> Body:
    """Return what is posted for a request, but for what the client renames for a model."""
    return {"model": request.model, "messages": [dict(message) for message in request.messages], **request.params}


def expected(artifact: Artifact, inputs: dict[str, Any], replies: list[str] | None, program: Any) -> dict[str, Any]:
    """Return one run: inputs, replies, requests, and outputs or the kind of error."""
    lm = Recorded(artifact.model.name, replies)
    # As `load` does where it is told no other model.
    run = run_artifact(artifact, Model(lm, dict(artifact.model.decoding)), program=program, name="golden")
    said: dict[str, Any] = {}
    try:
        said["outputs"] = plain(dict(run(**inputs).items()))
    except VitrifyError as error:
        said["error"] = type(error).__name__
    return {"inputs": inputs, "replies": lm.replies, "requests": [body_of(item) for item in lm.asked], **said}

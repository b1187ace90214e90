"""A program of one predictor on the helpdesk's messages, a model that counts, and small options: for several tests."""

import json
from pathlib import Path
from typing import Any, Literal

import dspy
from vitrify.programs.embedded import Embedded
from vitrify.programs.lm import LMError, Reply, Request

import vitrify

ROOT = Path(__file__).resolve().parent.parent
TICKETS = [json.loads(line) for line in (ROOT / "examples/helpdesk/tickets.jsonl").read_text().splitlines()]
Team = Literal["delivery", "returns", "billing", "account", "product", "warranty", "store", "privacy"]


class Route(dspy.Signature):
    """Find the team that should answer a customer's message."""

    message: str = dspy.InputField()
    team: Team = dspy.OutputField()


class Desk(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.route = dspy.Predict(Route)

    def forward(self, message: str) -> dspy.Prediction:
        return self.route(message=message)


class Counting(Embedded):
    """The embedded model, counting what it is asked; after `dies_at` requests its server is gone."""

    def __init__(self, dies_at: int | None = None, cause: Any = "server") -> None:
        super().__init__()
        self.asked: list[str] = []
        self.dies_at = dies_at
        self.cause = cause

    def complete(self, request: Request) -> Reply:
        self.asked.append(request.key)
        if self.dies_at is not None and len(self.asked) > self.dies_at:
            raise LMError("the server is gone", cause=self.cause, retryable=False)
        return super().complete(request)


def small(**more: Any) -> vitrify.Options:
    return vitrify.Options(**{"instructions": 2, "demo_sets": 3, "max_demos": 8, "concurrency": 4, **more})

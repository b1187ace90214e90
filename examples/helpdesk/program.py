"""A help desk in two steps: which of eight teams owns a message, and how urgent it is.

    vitrify compile examples/helpdesk/program.py:Helpdesk --data examples/helpdesk/tickets.jsonl \\
        --metric examples/helpdesk/program.py:routed --lm embedded -o helpdesk.json
    vitrify run helpdesk.json -i message="I want to send the shoes back, where do I print the return label?"
"""

from typing import Any, Literal

import dspy

Team = Literal["delivery", "returns", "billing", "account", "product", "warranty", "store", "privacy"]
Urgency = Literal["low", "normal", "high"]


class Route(dspy.Signature):
    """Find the team that should answer a customer's message."""

    message: str = dspy.InputField()
    team: Team = dspy.OutputField()


class Prioritise(dspy.Signature):
    """Say how urgent a customer's message is."""

    message: str = dspy.InputField()
    team: str = dspy.InputField()
    urgency: Urgency = dspy.OutputField()


class Helpdesk(dspy.Module):
    """A message in, a team and an urgency out."""

    def __init__(self) -> None:
        super().__init__()
        self.triage = dspy.Predict(Route)
        self.prioritise = dspy.Predict(Prioritise)

    def forward(self, message: str) -> dspy.Prediction:
        """Route the message, then rank it."""
        route = self.triage(message=message)
        rank = self.prioritise(message=message, team=route.team)
        return dspy.Prediction(team=route.team, urgency=rank.urgency)


def routed(example: dspy.Example, pred: dspy.Prediction, trace: Any = None) -> float | bool:
    """Half a point for the right team, half for the right urgency; for a demonstration both must be right."""
    team, urgency = pred.team == example.team, pred.urgency == example.urgency
    if trace is not None:
        return team and urgency
    return (team + urgency) / 2

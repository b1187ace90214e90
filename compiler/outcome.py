"""Outcome: what became of one evaluation; a failed call is a recorded cause, never a silent zero."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..programs.lm import LMError, Usage
from ..signatures.errors import WorkError
from .meter import Charge

TraceStep = tuple[str, Mapping[str, Any], Mapping[str, Any]]
"""One predictor call of a trace: path, inputs, outputs."""


@dataclass(frozen=True)
class Cost:
    """What an evaluation asked of the language model, counted logically: one request once, however it was served.

    Attributes:
        requests: The distinct requests by key, and what each took.
        reparsed: Requests that were needed because a reply couldn't be parsed.
    """

    requests: Mapping[str, Charge] = field(default_factory=dict)
    reparsed: int = 0

    @property
    def calls(self) -> int:
        """How many distinct requests there were."""
        return len(self.requests)

    @property
    def usage(self) -> Usage:
        """Their tokens."""
        return sum((charge.usage for charge in self.requests.values()), Usage())


@dataclass(frozen=True)
class Scored:
    """The program answered and the metric gave a score."""

    score: float
    feedback: str | None
    prediction: Any
    trace: tuple[TraceStep, ...]
    cost: Cost
    seconds: float = 0.0
    cause: Literal["scored"] = "scored"


@dataclass(frozen=True)
class Malformed:
    """The model answered, and no value could be read from it: counts as the metric's failure value."""

    message: str
    cost: Cost
    score: float = 0.0
    feedback: str | None = None
    prediction: Any = None
    trace: tuple[TraceStep, ...] = ()
    seconds: float = 0.0
    cause: Literal["malformed"] = "malformed"


Outcome = Scored | Malformed
"""What the search may see. Refusals and bugs are exceptions: they end the run, and are never a score."""


class Refused(WorkError):
    """The language model's server failed; the evaluation has no outcome and the run can be taken up again."""

    def __init__(self, error: LMError) -> None:
        super().__init__(str(error))
        self.error = error
        # A wrong key or an unknown model is a wrong request, however late it is noticed.
        if error.cause in ("auth", "unknown_model", "bad_request", "connection"):
            self.exit_code = 2


class ProgramBug(WorkError):
    """The user's program raised; the compile stops and names the example."""

"""Budget: what a compile may spend, in calls, tokens, dollars and seconds; and what spending is counted in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..programs.lm import Usage
from ..signatures.errors import RequestError, WorkError

Role = Literal["task", "prompt"]
"""Who a call is made for: the prompt model's proposals, or everything else."""


@dataclass(frozen=True)
class Budget:
    """What a compile may spend at most; None is no limit.

    Attributes:
        calls: Calls to language models, all of them together.
        tokens: Prompt and completion tokens together.
        dollars: Money, by the prices of the models.
        seconds: Wall-clock seconds until the search stops; certification still runs.
        task: Calls, tokens and dollars of everything but the prompt model, within what all may spend.
        prompt: Those of the prompt model, within what all may spend.
    """

    calls: int | None = None
    tokens: int | None = None
    dollars: float | None = None
    seconds: float | None = None
    task: "Budget | None" = None
    prompt: "Budget | None" = None

    def __post_init__(self) -> None:
        for name in ("calls", "tokens", "dollars", "seconds"):
            value = getattr(self, name)
            kinds = int if name in ("calls", "tokens") else int | float
            if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or not value >= 0):
                kind = "a whole number" if kinds is int else "a number"
                raise RequestError(f"budget: `{name}` is {kind} of at least 0, got {value!r}.")
        for name in ("task", "prompt"):
            part = getattr(self, name)
            if part is None:
                continue
            if not isinstance(part, Budget) or part.seconds is not None or part.task or part.prompt:
                raise RequestError(
                    f"budget: `{name}` is a Budget of calls, tokens or dollars, got {part!r}; seconds are the run's."
                )

    def of(self, role: Role) -> "Budget":
        """Return the part for one role; without one, no limit."""
        return (self.task if role == "task" else self.prompt) or Budget()

    @property
    def priced(self) -> bool:
        """Whether a limit is in dollars, so that prices must be known."""
        return any(part.dollars is not None for part in (self, self.of("task"), self.of("prompt")))

    @property
    def weighed(self) -> bool:
        """Whether a limit is in tokens or dollars, so that replies must have a longest length."""
        return self.priced or any(part.tokens is not None for part in (self, self.of("task"), self.of("prompt")))


@dataclass(frozen=True)
class Price:
    """Dollars per token of one model."""

    prompt: float
    completion: float

    def of(self, usage: Usage) -> float:
        """Return what `usage` costs in dollars."""
        return usage.prompt_tokens * self.prompt + usage.completion_tokens * self.completion


@dataclass(frozen=True, slots=True)
class Spending:
    """Calls, their tokens and their price.

    Attributes:
        calls: How many.
        usage: Tokens.
        dollars: Money; of calls to models without a known price nothing is in it.
    """

    calls: int = 0
    usage: Usage = field(default_factory=Usage)
    dollars: float = 0.0

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens together."""
        return self.usage.prompt_tokens + self.usage.completion_tokens

    def __add__(self, other: "Spending") -> "Spending":
        return Spending(self.calls + other.calls, self.usage + other.usage, self.dollars + other.dollars)


LONGEST_REPLY = 2048
"""Tokens of a reply at most, where a budget is in tokens or dollars and the user gave no `max_tokens`."""


def bounded(decoding: Mapping[str, Any], *, reasoning: bool) -> Mapping[str, Any]:
    """Return sampling parameters with a longest reply, so that what a call takes has a bound."""
    if decoding.get("max_tokens") is not None:
        return decoding
    return {**decoding, "max_tokens": 8 * LONGEST_REPLY if reasoning else LONGEST_REPLY}


class BudgetExhausted(WorkError):
    """A call would exceed the budget; it wasn't made."""

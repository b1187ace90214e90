"""Budget: what a compile may spend, and the meter that says what it has."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..programs.lm import Usage
from ..signatures.errors import RequestError, WorkError


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

    @property
    def priced(self) -> bool:
        """Whether a limit is in dollars, so that prices must be known."""
        return any(part is not None and part.dollars is not None for part in (self, self.task, self.prompt))

    @property
    def weighed(self) -> bool:
        """Whether a limit is in tokens or dollars, so that replies must have a longest length."""
        parts = [part for part in (self, self.task, self.prompt) if part is not None]
        return self.priced or any(part.tokens is not None for part in parts)


@dataclass(frozen=True)
class Price:
    """Dollars per token of one model."""

    prompt: float
    completion: float

    def of(self, usage: Usage) -> float:
        """Return what `usage` costs in dollars."""
        return usage.prompt_tokens * self.prompt + usage.completion_tokens * self.completion


class BudgetExhausted(WorkError):
    """A call would exceed the budget; it wasn't made."""


@dataclass
class Meter:
    """Counts calls, tokens and money, and refuses the call that would exceed the budget.

    Physical: a call served from the ledger costs nothing here.
    """

    budget: Budget
    price: Price | None = None
    clock: Callable[[], float] = time.monotonic
    calls: int = 0
    replayed: int = 0
    wasted: int = 0
    earlier: tuple[int, Usage] = (0, Usage())
    usage: Usage = field(default_factory=Usage)
    _started: float = field(default=0.0, init=False)
    _total: Usage = field(default_factory=Usage, init=False)
    _distinct: dict[str, Usage] = field(default_factory=dict, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        self._started = self.clock()

    @property
    def seconds(self) -> float:
        """Seconds since the meter was made."""
        return self.clock() - self._started

    @property
    def dollars(self) -> float | None:
        """Money spent so far, or None where the model has no known price."""
        return None if self.price is None else self.price.of(self.usage)

    def admit(self) -> None:
        """Count one call that is about to be made.

        Raises:
            BudgetExhausted: If the budget has no room for it.
        """
        with self._lock:
            if self.budget.calls is not None and self.calls >= self.budget.calls:
                raise BudgetExhausted(
                    f"The budget of {self.budget.calls} calls is spent; raise `budget.calls` and run again with the "
                    "same run directory: nothing that was paid is asked for twice."
                )
            spent = self._spent(self.usage, 0.0, 0.0)
            if spent is not None:
                raise BudgetExhausted(
                    f"The budget is spent ({spent}); raise it and run again with the same run directory: nothing that "
                    "was paid is asked for twice."
                )
            self.calls += 1

    def resume(self, paid: tuple[int, int, Usage]) -> None:
        """Begin with what earlier processes paid in this run directory: a budget is the run's, not the process's.

        Args:
            paid: Attempts at servers, how many of them came to nothing, and tokens.
        """
        self.calls, self.wasted, self.usage = paid
        self.earlier = (self.calls, self.usage)

    def repeated(self, attempts: int) -> None:
        """Count attempts that the client made by itself, after the one that was admitted."""
        with self._lock:
            self.calls += attempts
            self.wasted += attempts

    def failed(self) -> None:
        """Count an admitted attempt that came to nothing."""
        with self._lock:
            self.wasted += 1

    def paid(self, usage: Usage) -> None:
        """Add the tokens of a call that was made."""
        with self._lock:
            self.usage = self.usage + usage

    def charge(self, requests: Mapping[str, Usage]) -> None:
        """Count requests logically: each once, however often it was needed and whoever answered it.

        Called when an evaluation retires, in the order asked, so that what was spent at a decision doesn't depend on
        who finished first.
        """
        for key, usage in requests.items():
            if key not in self._distinct:
                self._distinct[key] = usage
                self._total = self._total + usage

    @property
    def logical(self) -> tuple[int, Usage]:
        """Distinct requests and their tokens: the same for a compile whether it was interrupted or not."""
        return len(self._distinct), self._total

    def served(self) -> None:
        """Count a call that the ledger answered."""
        with self._lock:
            self.replayed += 1

    def over(self, reserve: float, calls: int = 0, *, wasted: int = 0) -> str | None:
        """Return why the search must end now, or None; seconds don't count here.

        Decided by logical quantities, so that a run that is taken up again decides as the undisturbed one would.

        Args:
            reserve: The share of tokens and dollars that is kept for certification, 0 to 1.
            calls: The calls that are kept for it.
            wasted: Attempts that came to nothing, where they are to count.
        """
        asked, usage = self.logical
        spent = asked + wasted
        if self.budget.calls is not None and spent + calls > self.budget.calls:
            return f"{spent} of {self.budget.calls} calls are spent, and {calls} are kept for the sealed test"
        # What is kept is a share, and no less than what those calls cost on average.
        return self._spent(usage, reserve, calls / asked if asked else 0.0)

    def late(self) -> str | None:
        """Return why the search must end now, by the clock."""
        if self.budget.seconds is not None and self.seconds > self.budget.seconds:
            return f"{self.budget.seconds:g} seconds are over"
        return None

    def _spent(self, usage: Usage, share: float, again: float) -> str | None:
        """Say what is spent but for a share of the budget, or for `again` times `usage`."""
        tokens, limit = usage.prompt_tokens + usage.completion_tokens, self.budget.tokens
        if limit is not None and tokens > limit - max(limit * share, tokens * again):
            return f"{tokens} of {limit} tokens are spent"
        dollars, most = None if self.price is None else self.price.of(usage), self.budget.dollars
        if most is not None and dollars is not None and dollars > most - max(most * share, dollars * again):
            return f"${dollars:.4f} of ${most:.2f} are spent"
        return None

"""Meter: what a run has spent. The physical side refuses the call that would exceed; the logical side decides.

Physical: attempts at servers, those that failed included, over all the processes of a run. Tokens and dollars are held
for a call while it is in flight: its prompt by an estimate, its reply by `max_tokens`.

Logical: distinct requests, each counted once at the earliest evaluation in ask order that needs it, whoever answered.
What the search decides by is the same in an interrupted run as in an undisturbed one.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ..programs.lm import Usage
from .budget import Budget, BudgetExhausted, Price, Role, Spending

NOTHING = Spending()


@dataclass(frozen=True, slots=True)
class Asked:
    """One call that is about to be made.

    Attributes:
        role: Who it is made for.
        certifying: Whether the sealed test needs it, so that it may take what is kept for that.
        price: Of the model, where it is known.
        need: The most tokens it may take; nothing where no limit is in tokens or dollars.
    """

    role: Role = "task"
    certifying: bool = False
    price: Price | None = None
    need: Usage = Usage()  # noqa: RUF009 (frozen)

    @property
    def dollars(self) -> float:
        """The most that it may cost."""
        return 0.0 if self.price is None else self.price.of(self.need)


@dataclass(frozen=True, slots=True)
class Charge:
    """One distinct request that an evaluation needed."""

    usage: Usage
    role: Role = "task"
    dollars: float | None = None


@dataclass
class Account:
    """What one role has spent, and what is held for its calls in flight."""

    spent: Spending = NOTHING
    held_tokens: int = 0
    held_dollars: float = 0.0


class Meter:
    """Counts calls, tokens and money, and refuses the call that would exceed the budget.

    Args:
        budget: The limits.
        clock: Monotonic seconds.
    """

    def __init__(self, budget: Budget, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.budget = budget
        self._parts: dict[Role, Budget] = {"task": budget.of("task"), "prompt": budget.of("prompt")}
        self.priced = budget.priced
        self.replayed = 0
        self.wasted = 0
        self.lost = 0
        self.unpriced = False
        self._clock = clock
        self._began = clock()
        self._accounts: dict[Role, Account] = {"task": Account(), "prompt": Account()}
        self._earlier = NOTHING
        self._kept = NOTHING
        self._certified = 0
        self._charged: set[bytes] = set()
        self._logical: dict[Role, Spending] = {"task": NOTHING, "prompt": NOTHING}
        self._lock = threading.Lock()

    # Physical.

    @property
    def spent(self) -> Spending:
        """Attempts at servers, and the tokens and dollars of the replies, over all processes of the run."""
        return self._accounts["task"].spent + self._accounts["prompt"].spent

    @property
    def calls(self) -> int:
        """Attempts at servers over all processes of the run."""
        return self.spent.calls

    @property
    def here(self) -> tuple[int, int]:
        """Attempts and tokens of this process."""
        spent = self.spent
        return spent.calls - self._earlier.calls, spent.tokens - self._earlier.tokens

    @property
    def seconds(self) -> float:
        """Seconds since the meter was made."""
        return self._clock() - self._began

    def resume(self, role: Role, spent: Spending, *, wasted: int, lost: int, certified: int) -> None:
        """Add what earlier processes of the run spent: a budget is the run's, not the process's.

        Args:
            role: Whom it was spent for.
            spent: Attempts, and what the replies took.
            wasted: Attempts that failed.
            lost: Attempts that were in flight at a kill.
            certified: Attempts that the sealed test needed.
        """
        account = self._accounts[role]
        account.spent += spent
        self.wasted += wasted
        self.lost += lost
        self._earlier += spent
        self._certified += certified

    def keep(self, spending: Spending) -> None:
        """Keep calls, tokens and dollars for the sealed test; what earlier processes took of them is taken off."""
        with self._lock:
            left = max(0, spending.calls - self._certified)
            share = left / max(1, spending.calls)
            prompt, completion = spending.usage.prompt_tokens, spending.usage.completion_tokens
            usage = Usage(int(prompt * share), int(completion * share))
            self._kept = Spending(left, usage, spending.dollars * share)

    def admit(self, asked: Asked) -> bool:
        """Count one call that is about to be made; False where there is room only once others have come back.

        Raises:
            BudgetExhausted: If the budget has no room for it.
        """
        with self._lock:
            wait = False
            for name, limit, accounts in self._limits(asked.role):
                spent = sum((account.spent for account in accounts), NOTHING)
                kept = NOTHING if asked.certifying or name == "budget.prompt" else self._kept
                if limit.calls is not None and spent.calls + 1 > limit.calls - kept.calls:
                    raise _exhausted(name, "calls", limit.calls, kept.calls)
                room = None if limit.tokens is None else limit.tokens - kept.tokens - spent.tokens - _sum(asked.need)
                if room is not None and room < 0:
                    raise _exhausted(name, "tokens", limit.tokens, kept.tokens, _sum(asked.need))
                wait = wait or (room is not None and room < sum(account.held_tokens for account in accounts))
                money = None if limit.dollars is None else limit.dollars - kept.dollars - spent.dollars - asked.dollars
                if money is not None and money < 0:
                    raise _exhausted(name, "dollars", limit.dollars, round(kept.dollars, 4), round(asked.dollars, 5))
                wait = wait or (money is not None and money < sum(account.held_dollars for account in accounts))
            if wait:
                return False
            account = self._accounts[asked.role]
            account.spent += Spending(1)
            account.held_tokens += _sum(asked.need)
            account.held_dollars += asked.dollars
            if asked.certifying:
                self._certified += 1
                self._kept = Spending(max(0, self._kept.calls - 1), self._kept.usage, self._kept.dollars)
            return True

    def settle(self, asked: Asked, usage: Usage | None, attempts: int = 1) -> None:
        """Count what an admitted call took; None is a call that brought no reply.

        Args:
            asked: As it was admitted.
            usage: The reply's tokens.
            attempts: How often the client asked by itself, the admitted attempt included.
        """
        took = usage or Usage()
        dollars = 0.0 if asked.price is None else asked.price.of(took)
        with self._lock:
            account = self._accounts[asked.role]
            account.held_tokens -= _sum(asked.need)
            account.held_dollars -= asked.dollars
            account.spent += Spending(attempts - 1, took, dollars)
            self.wasted += attempts - (usage is not None)
            if asked.certifying:
                kept = self._kept
                prompt = max(0, kept.usage.prompt_tokens - took.prompt_tokens)
                completion = max(0, kept.usage.completion_tokens - took.completion_tokens)
                self._kept = Spending(kept.calls, Usage(prompt, completion), max(0.0, kept.dollars - dollars))

    def served(self) -> None:
        """Count a call that the ledger answered."""
        with self._lock:
            self.replayed += 1

    def _limits(self, role: Role) -> Iterator[tuple[str, Budget, list[Account]]]:
        yield "budget", self.budget, list(self._accounts.values())
        yield f"budget.{role}", self._parts[role], [self._accounts[role]]

    # Logical.

    def charge(self, requests: Mapping[str, Charge]) -> None:
        """Count requests, each once, however often it was needed and whoever answered it.

        Called when an evaluation retires, in the order asked, so that what was spent at a decision doesn't depend on
        who finished first.
        """
        for key, charge in requests.items():
            short = bytes.fromhex(key[:32])
            if short not in self._charged:
                self._charged.add(short)
                self.unpriced = self.unpriced or charge.dollars is None
                self._logical[charge.role] += Spending(1, charge.usage, charge.dollars or 0.0)

    @property
    def logical(self) -> Spending:
        """Distinct requests: the same for a compile whether it was interrupted or not."""
        return self._logical["task"] + self._logical["prompt"]

    def over(self, calls: int = 0, *, wasted: int = 0) -> str | None:
        """Return why the search must end now, or None; seconds don't count here.

        Decided by logical quantities, so that a run that is taken up again decides as the undisturbed one would.

        Args:
            calls: Calls that must still fit, the sealed test's among them; tokens and dollars by the average so far.
            wasted: Attempts that came to nothing, where they are to count.
        """
        for limit, so_far in ((self.budget, self.logical), (self._parts["task"], self._logical["task"])):
            asked = so_far.calls + wasted
            if limit.calls is not None and asked + calls > limit.calls:
                return f"{asked} of {limit.calls} calls are spent, and {calls} are kept for the sealed test"
            again = 1 + calls / max(1, so_far.calls)
            if limit.tokens is not None and so_far.tokens * again > limit.tokens:
                return f"{so_far.tokens} of {limit.tokens} tokens are spent"
            if limit.dollars is not None and so_far.dollars * again > limit.dollars:
                return f"${so_far.dollars:.4f} of ${limit.dollars:.2f} are spent"
        return None

    def late(self) -> str | None:
        """Return why the search must end now, by the clock."""
        if self.budget.seconds is not None and self.seconds > self.budget.seconds:
            return f"{self.budget.seconds:g} seconds are over"
        return None


def _sum(usage: Usage) -> int:
    return usage.prompt_tokens + usage.completion_tokens


def _exhausted(name: str, unit: str, limit: float | None, kept: float, need: float = 1) -> BudgetExhausted:
    what = "" if name == "budget" else f" of {name}"
    reserve = f", {kept} of them kept for the sealed test" if kept else ""
    call = "" if unit == "calls" else f" (a call takes at least room for {need}: its prompt and `max_tokens`)"
    return BudgetExhausted(
        f"The budget of {limit} {unit}{what} is spent{reserve}{call}. Raise `{name}.{unit}` and run again with the "
        "same run directory: nothing that was paid is asked for twice."
    )

"""Stream: the blocks of one search, asked a window ahead and told in the order asked."""

import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

from .contract import SearchOptions, SearchResult
from .cost import Costs
from .explore import Additive
from .oracle import Block, Exhausted, Oracle
from .plan import Plan
from .renewal import RenewalView, view
from .rng import generator
from .sampler import OptunaExplorer
from .scores import Scores
from .space import Point, SearchSpace, Slot
from .verdict import verdict

SHORT = 2_500
"""Metric calls below which blocks are small."""

STARTS, TINY = 4, 300
"""Blocks that points take turns to begin with; one under so many metric calls, since the baseline is asked for all."""

WINDOW = 1 / 6
"""The most of the budget that is in flight: whoever asks for more at once learns too late from the answers."""


@dataclass(frozen=True, slots=True)
class Flight:
    """A block in flight.

    Attributes:
        row: The point's row.
        cost: Metric calls.
        replicate: 0, or how often the same was asked before.
        shared: Slots in which an earlier point had the same on this block.
        future: What it will be.
    """

    row: int
    cost: int
    replicate: int
    shared: int
    future: Future[Block]


class Stream:
    """One search under way."""

    def __init__(
        self,
        space: SearchSpace,
        oracle: Oracle,
        budget: int,
        seed: int,
        options: SearchOptions,
        home: Point,
        renew: Callable[[RenewalView], Mapping[str, int | Slot]] | None,
    ) -> None:
        self.oracle, self.budget, self.seed, self.options = oracle, budget, seed, options
        self.renew, self.renewals = renew, deque(options.renewals if renew is not None else ())
        order = [int(index) for index in generator(seed, "search.order").permutation(oracle.examples)]
        block = options.block or (5 if budget < SHORT else 10)
        self.scores = Scores(space, order, max(1, min(block, budget // 8)), STARTS if budget >= TINY else 1)
        rng = generator(seed, "search.explore")
        self.costs = Costs(self.scores) if options.sampler == "additive" else None
        explorer = (
            Additive(self.scores, rng, self.costs)
            if options.sampler == "additive"
            else OptunaExplorer(options.sampler, self.scores, seed)
        )
        stochastic = bool(getattr(oracle, "stochastic", False))
        self.plan = Plan(
            self.scores, explorer, budget, options.finalists, home, rng, stochastic, self.costs, options.guard
        )
        self.flying: deque[Flight] = deque()
        self.window = max(1, min(options.window, int(WINDOW * budget)))
        self.ahead = self.blocks_asked = 0
        self.reason = ""

    def run(self) -> None:
        """Ask and tell until nothing is worth asking or may be."""
        if self.oracle.examples == 0 or self.budget < 2:
            self.reason = "there is nothing to choose from"
        while not self.reason:
            if self.flying and self.ahead + self.scores.size > self.window and not self.plan.designing():
                self._tell()
                continue
            while self.renewals and self.blocks_asked >= self.renewals[0]:
                self._renew()
            point = self.plan.next(bool(self.renewals), bool(self.flying))
            if self.plan.reason:
                self.reason = self.plan.reason
            elif point is None and self.renewals:
                self._renew()
            elif point is not None:
                self._ask(point)
            elif self.flying:
                self._tell()
            else:
                self.reason = "nothing is left worth asking"
        if self.flying:
            self.options.ending()
        while self.flying:
            self._tell()

    def _ask(self, point: Point) -> None:
        """Ask for a point's next block, where budget and options have room for it."""
        again = self.scores.depth(point) == self.scores.blocks
        cost = self.scores.next_repeat(point) if again else self.scores.cost(point)
        if self.scores.charged + cost > self.budget:
            if self.flying and self.options.price is not None:
                self._tell()  # which may have cost less than it was charged
            else:
                self.reason = "the budget is spent"
            return
        stop = self.options.stop(cost)
        if stop is not None:
            self.reason = stop
            return
        examples, replicate = self.scores.repeat(point) if again else (self.scores.ask(point), 0)
        row = self.scores.rows[point]
        shared = self.costs.asked(row) if self.costs is not None and not replicate else 0
        self.blocks_asked += 1
        self.ahead += cost
        try:
            future = self.oracle.submit(point, examples, replicate)
        except Exhausted as error:
            future = Future()
            future.set_exception(error)
        self.flying.append(Flight(row, cost, replicate, shared, future))

    def _tell(self) -> None:
        """Wait for the oldest block in flight."""
        flight = self.flying[0]
        try:
            block = flight.future.result()
        except Exhausted as error:
            self.reason = f"the oracle is exhausted: {error}" if str(error) else "the oracle is exhausted"
            self.drop()
            return
        self.flying.popleft()
        self.ahead -= flight.cost
        if flight.replicate:
            self.scores.average(flight.row, block.scores)
        else:
            self.scores.tell(flight.row, block.scores)
        self._pay(flight, block)
        self.plan.told(flight.row)
        if self.options.watch is None:
            return
        self.options.watch(int((self.scores.told > 0).sum()), self.scores.mean(self.plan.leader()))

    def _pay(self, flight: Flight, block: Block) -> None:
        """Learn from what a block cost, and count what it saved."""
        if not block.costs:
            return
        if self.costs is not None and not flight.replicate:
            self.costs.told(flight.row, flight.shared, sum(block.costs) / flight.cost)
        if self.options.price is not None:
            self.scores.saved += flight.cost - sum(min(1.0, cost / self.options.price) for cost in block.costs)

    def drop(self) -> None:
        """Forget what is in flight: asked for and paid, never told."""
        for flight in self.flying:
            flight.future.cancel()
        self.flying.clear()

    def _renew(self) -> None:
        """Wait for new levels."""
        assert self.renew is not None
        # Draws of its own: who looks at the view changes nothing that the search decides.
        rng = generator(self.seed, f"search.renewal.{self.renewals.popleft()}")
        grown = self.renew(view(self.scores, self.plan.home, self.budget, rng))
        space = self.scores.space.grown(grown)
        if [slot.levels for slot in space.slots] != [slot.levels for slot in self.scores.space.slots]:
            self.plan.grow(space)

    def interrupted(self) -> SearchResult:
        """Return what is known after Ctrl-C, which may have come at any moment."""
        while self.flying and self.flying[0].future.done() and not self.reason:
            with contextlib.suppress(BaseException):  # whatever it was, the interrupt counts
                self._tell()
                continue
            break
        self.reason = "interrupted"
        self.drop()
        self.scores.recount()
        return self.result()

    def result(self) -> SearchResult:
        """Return what is known."""
        return verdict(self.scores, self.plan.home, self.options, self.seed, self.reason)

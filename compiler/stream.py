"""Stream: the blocks of one search, asked a window ahead and told in the order asked."""

import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future

from .contract import SearchOptions, SearchResult
from .explore import Additive
from .oracle import Block, Exhausted, Oracle
from .plan import RACE, Plan
from .rng import generator
from .sampler import OptunaExplorer
from .scores import Scores
from .space import Point, SearchSpace
from .verdict import verdict

SHORT = 2_500
"""Metric calls below which blocks are small."""

WINDOW, DUEL_WINDOW = 1 / 6, 1 / 4
"""The most of the budget that is in flight, until the duel and in it: whoever asks for more at once learns too late
from the answers. The duel, where hardly anything that is asked for depends on the last answers, bears more."""


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
        renew: Callable[[], Mapping[str, int]] | None,
    ) -> None:
        self.oracle, self.budget, self.seed, self.options = oracle, budget, seed, options
        self.renew, self.renewals = renew, deque(options.renewals if renew is not None else ())
        order = [int(index) for index in generator(seed, "search.order").permutation(oracle.examples)]
        block = options.block or (5 if budget < SHORT else 10)
        self.scores = Scores(space, order, max(1, min(block, budget // 8)))
        rng = generator(seed, "search.explore")
        explorer = (
            Additive(self.scores, rng)
            if options.sampler == "additive"
            else OptunaExplorer(options.sampler, self.scores, seed)
        )
        self.plan = Plan(self.scores, explorer, budget, options.finalists, home, rng)
        self.flying: deque[tuple[int, int, Future[Block]]] = deque()
        self.ahead = self.blocks_asked = 0
        self.reason = ""

    def run(self) -> None:
        """Ask and tell until nothing is worth asking or may be."""
        if self.oracle.examples == 0 or self.budget < 2:
            self.reason = "there is nothing to choose from"
        while not self.reason:
            if self.flying and self.ahead + self.scores.size > self._window() and not self.plan.designing():
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
        while self.flying:
            self._tell()

    def _window(self) -> int:
        """Return the most metric calls that are in flight now; by what was asked for, so the same in every run."""
        share = WINDOW if self.scores.spent < RACE * self.budget else DUEL_WINDOW
        return max(1, min(self.options.window, int(share * self.budget)))

    def _ask(self, point: Point) -> None:
        """Ask for a point's next block, where budget and options have room for it."""
        cost = self.scores.cost(point)
        if self.scores.spent + cost > self.budget:
            self.reason = "the budget is spent"
            return
        stop = self.options.stop(cost)
        if stop is not None:
            self.reason = stop
            return
        examples = self.scores.ask(point)
        row = self.scores.rows[point]
        self.blocks_asked += 1
        self.ahead += cost
        try:
            future = self.oracle.submit(point, examples, 0)
        except Exhausted as error:
            future = Future()
            future.set_exception(error)
        self.flying.append((row, cost, future))

    def _tell(self) -> None:
        """Wait for the oldest block in flight."""
        row, cost, future = self.flying[0]
        try:
            block = future.result()
        except Exhausted as error:
            self.reason = f"the oracle is exhausted: {error}" if str(error) else "the oracle is exhausted"
            self.drop()
            return
        self.flying.popleft()
        self.ahead -= cost
        self.scores.tell(row, block.scores)
        self.plan.told(row)
        self.options.watch(int((self.scores.told > 0).sum()), self.scores.mean(self.plan.leader()))

    def drop(self) -> None:
        """Forget what is in flight: asked for and paid, never told."""
        for _, _, future in self.flying:
            future.cancel()
        self.flying.clear()

    def _renew(self) -> None:
        """Wait for new levels."""
        self.renewals.popleft()
        assert self.renew is not None
        grown = self.renew()
        if any(grown.values()):
            self.plan.grow(self.scores.space.grown(grown))

    def interrupted(self) -> SearchResult:
        """Return what is known after Ctrl-C, which may have come at any moment."""
        while self.flying and self.flying[0][2].done() and not self.reason:
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

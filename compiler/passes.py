"""The passes that choose and judge: search on the select set, certify on the sealed test."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from ..programs.candidate import Candidate
from ..programs.lm import Usage
from ..signatures.canonical import canonical_json
from ..signatures.errors import WorkError
from .budget import BudgetExhausted
from .data import Example
from .evaluate import Errand
from .evidence import paired_evidence, same_evidence
from .journal import StudyJournal, in_words
from .outcome import Outcome
from .preflight import keep
from .run import LATER, Run
from .search import Block, Exhausted, Interrupted, RenewalView, SearchOptions
from .search import search as run_search
from .space import Point, Slot
from .state import Certificate, Levels, State
from .stopped import Stopped
from .strategy import DemoLevel

WRITTEN = 16
"""Blocks that the search asks for before it waits for the proposals."""

TRACED = 0.3
"""The share of its evaluations that the search asks for before it waits for what bootstrap brings."""

STUDY = "study.journal"
"""The file of the run directory that optuna-dashboard opens."""

LEAST = 40
"""Evaluations below which nothing can be found out: then the baseline ships."""


@dataclass
class EvaluatorOracle:
    """The evaluator as the search sees it: points are candidates, examples are rows of the select set.

    Attributes:
        run: The tools.
        levels: What the points choose from; more of them after a renewal.
        rows: The select set.
        journal: Hears of every block.
    """

    run: Run
    levels: Levels
    rows: tuple[Example, ...]
    journal: StudyJournal

    @property
    def examples(self) -> int:
        """How many rows there are."""
        return len(self.rows)

    def submit(self, point: Point, examples: Sequence[int], replicate: int) -> "Future[Block]":
        """Evaluate the candidate at `point`; the future waits for the evaluations when it is asked."""
        candidate = self.levels.candidate(point)
        rows = [self.rows[index] for index in examples]
        errand = Errand(config={"rollout_id": replicate} if replicate else {})
        self.run.flying += len(rows)

        def told(scores: Sequence[float]) -> None:
            if not replicate:
                self.journal.told(point, scores)

        return _Pending(self.run, candidate, rows, errand, told)


class _Pending(Future[Block]):
    """A block whose evaluations are under way; it is told, and written to the journal, when it is asked for."""

    def __init__(
        self,
        run: Run,
        candidate: Candidate,
        rows: Sequence[Example],
        errand: Errand,
        told: Callable[[Sequence[float]], None],
    ) -> None:
        super().__init__()
        self._parts, self._told = (run, candidate, rows, errand), told
        self._flying = run.submit(candidate, rows, errand)

    def result(self, timeout: float | None = None) -> Block:
        run, candidate, rows, errand = self._parts
        run.flying -= len(rows)
        try:
            outcomes = run.gather(candidate, rows, self._flying, errand)
        except BudgetExhausted as error:
            run.cut = f"the search was cut short: {error}"
            raise Exhausted(str(error)) from error
        scores = tuple(outcome.score for outcome in outcomes)
        self._told(scores)
        return Block(
            scores=scores,
            costs=tuple(float(outcome.cost.calls) for outcome in outcomes),
            causes=tuple(outcome.cause for outcome in outcomes),
        )

    def done(self) -> bool:
        """Say whether `result` would return at once."""
        return all(future.done() for future in self._flying)

    def cancel(self) -> bool:
        """Give up what hasn't begun."""
        for future in self._flying:
            future.cancel()
        return True


def search(state: State, run: Run) -> State:
    """Search the space of levels, every candidate on the same examples, and keep what the select set supports.

    It begins with the levels that are there, and asks for the others after a fixed number of blocks.
    """
    assert state.supply is not None and state.preflight is not None
    job, supply, baseline = state.job, state.supply, state.job.target.spec.baseline
    # What a call may take depends on the longest prompt: a budget in tokens or dollars waits for all levels.
    first = supply.rest()[0] if job.budget.weighed else supply.first
    journal = StudyJournal(run.ledger.path / STUDY, job.target.spec.name, first.space)
    oracle = EvaluatorOracle(run, first, state.splits.select, journal)

    def renew(view: RenewalView) -> Mapping[str, Slot]:
        oracle.levels = supply.with_instructions() if oracle.levels is first else supply.rest()[0]
        journal.grow(oracle.levels.space)
        return {slot.name: slot for slot in oracle.levels.space.slots}

    evaluations = min(state.preflight.evaluations, _within_tokens(state, run, oracle.levels))
    run.begin("search", evaluations)
    block = 5 if evaluations < 2500 else 10
    rows = 2 * len(state.splits.test)
    certification = rows * state.preflight.calls_per_example
    too_few = "tokens or dollars leave no room for a search" if evaluations < LEAST else None
    options = SearchOptions(
        sampler=job.options.sampler,
        guard=job.options.guard,
        renewals=() if job.budget.weighed else (WRITTEN, max(WRITTEN, int(TRACED * evaluations / block))),
        block=block,
        stop=lambda evaluations: too_few or _over(run, certification, rows, evaluations),
        watch=run.watch,
        # The baseline is needed on the sealed test whatever is chosen, and the server has nothing better to do now.
        ending=lambda: run.prefetch(baseline, state.splits.test, Errand(priority=LATER, certifying=True)),
    )
    try:
        found = run_search(first.space, oracle, budget=max(1, evaluations), seed=job.seed, options=options, renew=renew)
    except Interrupted as stop:
        journal.finish(stop.result.study, {"levels": in_words(oracle.levels)})
        raise Stopped(replace(state, levels=oracle.levels, found=stop.result)) from None
    except WorkError:
        journal.write()
        raise
    # The levels that the search saw: where it ended before its renewal, the points know of no others.
    journal.finish(found.study, {"levels": in_words(oracle.levels)})
    if journal.problem is not None:
        run.notices.append(journal.problem)
    _, accepted = supply.rest()
    return replace(state, levels=oracle.levels, accepted=accepted, found=found)


def _over(run: Run, certification: int, rows: int, evaluations: int) -> str | None:
    """Return why the budget has no room for `evaluations` more beside the sealed test's `rows`.

    First by what the request alone decides; then by failed attempts and the clock, which another run of the same
    request may not meet, and which is noted.
    """
    meter = run.evaluator.meter
    asked = meter.logical.calls
    # Second requests that preflight didn't see: as many as there were of late, and two standard deviations of a count.
    again, of = sum(run.again), max(1, len(run.again))
    rate = certification / max(1, rows) + (again + 2 * math.sqrt(again)) / of
    needed = math.ceil(rate * (rows + run.flying + evaluations))
    reason = meter.over(needed)
    if reason is not None:
        return reason
    failing = 1 + meter.wasted / max(1, asked)
    reason = meter.over(math.ceil(failing * needed), wasted=meter.wasted + meter.lost) or meter.late()
    if reason is not None:
        run.cut = f"the search was cut short: {reason}"
    return reason


def _within_tokens(state: State, run: Run, known: Levels) -> int:
    """Return the evaluations that tokens and dollars leave room for, each at the price of the longest prompts.

    As much is kept for the sealed test from now on.

    Logical quantities only, so that the same request searches as far however often it was interrupted.
    """
    assert state.preflight is not None
    job, evaluator = state.job, run.evaluator
    price = evaluator.price(job.model.lm.name)
    longer = 0
    for name, levels in known.values.items():
        if not name.endswith(".format"):
            sizes = [len(canonical_json([dict(d) for d in v.demos])) if isinstance(v, DemoLevel) else len(v.text)
                     for v in levels]  # fmt: skip
            longer += max(sizes) - sizes[0]
    used, again = state.preflight.usage, -(-state.preflight.calls_per_example // len(state.job.target.spec.predictors))
    # Three characters a token: more than most tokenizers need, and the markers of the format come on top.
    each = Usage(used.prompt_tokens + again * longer // 3, used.completion_tokens)
    keep(state, run, each, state.preflight.calls_per_example)
    spent, certification = evaluator.meter.logical, 2 * len(state.splits.test)
    room = [sys.maxsize]
    for budget in (job.budget, job.budget.of("task")):
        if budget.tokens is not None:
            tokens = each.prompt_tokens + each.completion_tokens
            room.append((budget.tokens - spent.tokens) // max(1, tokens) - certification)
        if budget.dollars is not None and price is not None and price.of(each) > 0:
            room.append(int((budget.dollars - spent.dollars) / price.of(each)) - certification)
    return max(0, min(room))


def certify(state: State, run: Run) -> State:
    """Open the sealed test once, for winner and baseline."""
    assert state.levels is not None and state.found is not None
    test = state.splits.test
    run.begin("certify", 2 * len(test))
    home, shipped = state.levels.space.baseline, state.found.shipped
    asked = [state.levels.candidate(point) for point in dict.fromkeys((home, shipped))]
    told = _told(asked, test, run)
    baseline, compiled, test = told[0], told[-1], test[: len(told[0])]
    if shipped == home:
        # The same program twice: there is no difference to estimate.
        evidence = same_evidence([outcome.score for outcome in baseline])
    else:
        evidence = paired_evidence(
            _scores(baseline), _scores(compiled), seed=state.job.seed, groups=state.splits.groups_of(test)
        )
    return replace(state, certificate=Certificate(evidence, baseline, compiled))


def _told(candidates: Sequence[Candidate], test: Sequence[Example], run: Run) -> list[tuple[Outcome, ...]]:
    """Return each candidate's outcomes on the sealed test; on fewer rows where the budget ends before they do.

    Rows are asked for in their order, all candidates on one before the next, so that what is cut off is the end.
    """
    errand = Errand(certifying=True)
    ready = [run.ready(candidate) for candidate in candidates]
    flying = [[run.ask(one, row, errand) for one in ready] for row in test]
    told: list[list[Outcome]] = [[] for _ in candidates]
    for row, futures in zip(test, flying, strict=True):
        try:
            outcomes = [run.wait(future) for future in futures]
        except BudgetExhausted as error:
            if not told[0]:
                raise
            run.cut = f"the sealed test was cut to {len(told[0])} of {len(test)} rows: {error}"
            for future in (future for rest in flying for future in rest):
                future.cancel()
            break
        for candidate, outcome, kept in zip(candidates, outcomes, told, strict=True):
            run.record("certify", candidate, row, outcome, errand)
            kept.append(outcome)
        run.show()
    return [tuple(outcomes) for outcomes in told]


def _scores(outcomes: Sequence[Outcome]) -> list[float]:
    return [outcome.score for outcome in outcomes]

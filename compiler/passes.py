"""The passes between the split and the artifact: preflight, bootstrap, propose, search, certify."""

import inspect
import math
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from ..programs.candidate import Candidate
from ..programs.lm import Usage
from ..signatures.canonical import canonical_json
from ..signatures.errors import RequestError
from .data import Example
from .evidence import paired_evidence, same_evidence
from .options import EVALUATIONS
from .outcome import Malformed, Outcome, Scored
from .run import Run
from .search import Block, SearchOptions
from .search import search as run_search
from .space import Point
from .state import Certificate, Job, Levels, Preflight, State
from .strategy import DemoLevel, InstructionLevel, Needs, Provenance, View

SAMPLE = 10
"""Training rows that preflight runs the baseline on."""

LEAST = 40
"""Evaluations below which nothing can be found out: then the baseline ships."""

MOST_SELECT = 400
"""Rows of the select set that are used: beyond that, more rows tell less than more candidates."""

MOST_TEST = 1000
"""Rows of the sealed test that are used, unless it is the user's own: they show a gain of 3 points or so."""


def preflight(state: State, run: Run) -> State:
    """Run the baseline on a few training rows: is the model there, do program and metric work, what does a row cost?

    The first row goes alone, so that a wrong key or a bug in the metric costs one call.
    """
    job = state.job
    sample = state.splits.train[:SAMPLE]
    run.begin("preflight", len(sample))
    # A budget that is too small however little a row takes is said before anything is paid.
    _affordable(job, state, job.options.calls_per_example or 1)
    baseline = job.target.spec.baseline
    outcomes = run.run(baseline, sample[:1], traced=False)
    outcomes += run.run(baseline, sample[1:], traced=False)
    calls = job.options.calls_per_example or max(1, *(outcome.cost.calls for outcome in outcomes))
    _check_tokens(state, run, [outcome.cost.usage for outcome in outcomes])
    notes = tuple(_preflight_notes(job, outcomes))
    for note in notes:
        run.note(note)
    return replace(
        state,
        preflight=Preflight(
            score=sum(outcome.score for outcome in outcomes) / len(outcomes),
            n=len(outcomes),
            calls_per_example=calls,
            malformed=sum(isinstance(outcome, Malformed) for outcome in outcomes) / len(outcomes),
            evaluations=_affordable(job, state, calls),
            notes=notes,
            usage=Usage(*(max(counts) for counts in zip(*(_tokens(o.cost.usage) for o in outcomes), strict=True))),
        ),
    )


def _preflight_notes(job: Job, outcomes: Sequence[Outcome]) -> list[str]:
    notes = []
    malformed = [outcome for outcome in outcomes if isinstance(outcome, Malformed)]
    if malformed:
        notes.append(
            f"{len(malformed)} of {len(outcomes)} baseline answers had no readable values; the first: "
            f"{malformed[0].message}"
        )
    seen = {path for outcome in outcomes if isinstance(outcome, Scored) for path, _, _ in outcome.trace}
    alone = any(spec.reason is not None and "overrides" in spec.reason for spec in job.target.spec.predictors)
    if "?" in seen and not alone:
        notes.append(
            "A predictor is called that the program doesn't hold as an attribute (made in forward(), or kept in a "
            "closure): it runs as it is and isn't compiled."
        )
    for spec in job.target.spec.predictors:
        if spec.reason is not None:
            notes.append(
                f"Predictor {spec.path} runs through DSPy itself and isn't compiled: {spec.reason.rstrip('.')}."
            )
    return notes


def _affordable(job: Job, state: State, calls_per_example: int) -> int:
    """Return the metric calls that the search may take, certification and proposals set aside."""
    wanted = EVALUATIONS[job.options.effort]
    if job.budget.calls is None:
        return wanted
    tunable = sum(spec.tunable for spec in job.target.spec.predictors)
    certify = 2 * len(state.splits.test) * calls_per_example
    before = (2 * len(state.splits.train) + SAMPLE) * calls_per_example + tunable * job.options.instructions
    left = job.budget.calls - certify - before
    if left < calls_per_example * 4:
        raise RequestError(
            f"`budget.calls` is {job.budget.calls}, and this data needs at least "
            f"{certify + before + calls_per_example * 4}: {certify} for the sealed test "
            f"({len(state.splits.test)} rows, baseline and winner, {calls_per_example} "
            f"call{'s' * (calls_per_example > 1)} a row) and {before} for "
            "demonstrations and proposals; raise it, or give fewer rows."
        )
    return min(wanted, left // calls_per_example)


def _check_tokens(state: State, run: Run, used: Sequence[Usage]) -> None:
    """Raise RequestError unless the budget's tokens and dollars can pay for the demonstrations and the sealed test."""
    budget, price = state.job.budget, run.evaluator.meter.price
    rows = len(state.splits.train) + 2 * len(state.splits.test)
    needed = Usage(*(rows * sum(counts) // len(used) for counts in zip(*map(_tokens, used), strict=True)))
    if budget.tokens is not None and sum(_tokens(needed)) > budget.tokens:
        raise RequestError(
            f"`budget.tokens` is {budget.tokens}, and this data needs at least {sum(_tokens(needed))} by what the "
            f"first {len(used)} rows took, for demonstrations and the sealed test alone; raise it, or give fewer rows."
        )
    if budget.dollars is not None and price is not None and price.of(needed) > budget.dollars:
        raise RequestError(
            f"`budget.dollars` is {budget.dollars:g}, and this data needs at least {price.of(needed):.4f} by what the "
            f"first {len(used)} rows took, for demonstrations and the sealed test alone; raise it, or give fewer rows."
        )


def _tokens(usage: Usage) -> tuple[int, int]:
    return usage.prompt_tokens, usage.completion_tokens


def bootstrap(state: State, run: Run) -> State:
    """Run the program over the training rows and keep the traces that the metric accepts, as demonstrations."""
    run.begin("bootstrap", 2 * len(state.splits.train))
    accepted = state.job.strategy.bootstrap(_view(state, run))
    if not accepted:
        run.note("No training row was answered well enough to become a demonstration; labelled rows may still serve.")
    return replace(state, accepted=accepted)


def propose(state: State, run: Run) -> State:
    """Make the levels of every slot: instructions from the prompt model, demonstration sets from the traces."""
    run.begin("propose")
    job, view = state.job, _view(state, run)
    instructions = job.strategy.instructions(view) if job.options.instructions else {}
    demos = job.strategy.demonstrations(view) if job.options.demo_sets and job.options.max_demos else {}
    baseline = job.target.spec.baseline
    slots: list[str] = []
    values: dict[str, tuple[Any, ...]] = {}
    for spec in job.target.spec.predictors:
        if not spec.tunable:
            continue
        level0, start = baseline[spec.path], job.start.params.get(spec.path, baseline[spec.path])
        mine = Provenance("user", "as written")
        earlier = Provenance("start", "of the earlier artifact")
        texts = [InstructionLevel(level0.instruction, mine), InstructionLevel(start.instruction, earlier)]
        sets = [DemoLevel(level0.demos, (), mine), DemoLevel(start.demos, (), earlier)]
        formats = [level0.format, *(name for name in job.options.formats if name != level0.format)]
        for kind, levels in (
            ("instruction", _distinct([*texts, *instructions.get(spec.path, ())], lambda level: level.text)),
            ("demos", _distinct([*sets, *demos.get(spec.path, ())], lambda level: [dict(d) for d in level.demos])),
            ("format", tuple(formats)),
        ):
            if len(levels) > 1:
                slots.append(f"{spec.path}.{kind}")
                values[slots[-1]] = levels
    return replace(state, levels=Levels(tuple(slots), values, baseline))


def _distinct(levels: Sequence[Any], key: Any) -> tuple[Any, ...]:
    kept: list[Any] = []
    for level in levels:
        if not any(key(level) == key(other) for other in kept):
            kept.append(level)
    return tuple(kept)


def _over(run: Run, certification: int, rows: int, evaluations: int) -> str | None:
    """Return why the budget has no room for `evaluations` more beside the sealed test's `rows`.

    First by what the request alone decides; then by failed attempts and the clock, which another run of the same
    request may not meet, and which is noted.
    """
    meter = run.evaluator.meter
    asked, _ = meter.logical
    # Second requests that preflight didn't see: as many as there were, and two standard deviations of such a count.
    expected = certification / max(1, rows)
    more = max(0.0, asked - expected * run.retired)
    rate = expected + (more + 2 * math.sqrt(more)) / max(1, run.retired)
    needed = math.ceil(rate * (rows + run.flying + evaluations))
    reason = meter.over(0.0, needed)
    if reason is not None:
        return reason
    failing = 1 + meter.wasted / max(1, asked)
    reason = meter.over(0.0, math.ceil(failing * needed), wasted=meter.wasted) or meter.late()
    if reason is not None:
        run.cut = f"the search was cut short: {reason}"
    return reason


@dataclass(frozen=True)
class EvaluatorOracle:
    """The evaluator as the search sees it: points are candidates, examples are rows of the select set."""

    run: Run
    levels: Levels
    rows: tuple[Example, ...]

    @property
    def examples(self) -> int:
        """How many rows there are."""
        return len(self.rows)

    def submit(self, point: Point, examples: Sequence[int], replicate: int) -> "Future[Block]":
        """Evaluate the candidate at `point`; the future waits for the evaluations when it is asked."""
        job = self.run.job
        candidate = self.levels.candidate(point)
        bound = self.run.evaluator.bound(job.target, candidate)
        rows = [self.rows[index] for index in examples]
        config = {"rollout_id": replicate} if replicate else None
        futures = [self.run.evaluator.submit(job.target, bound, row, config=config) for row in rows]
        self.run.flying += len(futures)
        return _Pending(self.run, candidate, rows, futures)


class _Pending(Future[Block]):
    """A block whose evaluations are under way; it is told, and written to the journal, when it is asked for."""

    def __init__(
        self, run: Run, candidate: Candidate, rows: Sequence[Example], futures: "Sequence[Future[Outcome]]"
    ) -> None:
        super().__init__()
        self._parts = (run, candidate, rows, futures)

    def result(self, timeout: float | None = None) -> Block:
        run, candidate, rows, futures = self._parts
        outcomes = run.gather(candidate, rows, futures)
        run.flying -= len(futures)
        return Block(
            scores=tuple(outcome.score for outcome in outcomes),
            costs=tuple(float(outcome.cost.calls) for outcome in outcomes),
            causes=tuple(outcome.cause for outcome in outcomes),
        )


def search(state: State, run: Run) -> State:
    """Search the space of levels, every candidate on the same examples, and keep what the select set supports."""
    assert state.levels is not None and state.preflight is not None
    job, rows = state.job, state.splits.select
    evaluations = min(state.preflight.evaluations, _within_tokens(state, run))
    run.begin("search", evaluations)
    certification = 2 * len(state.splits.test) * state.preflight.calls_per_example
    too_few = "tokens or dollars leave no room for a search" if evaluations < LEAST else None
    options = SearchOptions(
        sampler=job.options.sampler,
        guard=job.options.guard,
        stop=lambda evaluations: too_few or _over(run, certification, 2 * len(state.splits.test), evaluations),
        watch=run.watch,
    )
    oracle = EvaluatorOracle(run, state.levels, rows)
    found = run_search(state.levels.space, oracle, budget=max(1, evaluations), seed=job.seed, options=options)
    return replace(state, found=found)


def _within_tokens(state: State, run: Run) -> int:
    """Return the evaluations that tokens and dollars leave room for, each at the price of the longest prompts.

    Logical quantities only, so that the same request searches as far however often it was interrupted.
    """
    assert state.levels is not None and state.preflight is not None
    budget, price = state.job.budget, run.evaluator.meter.price
    longer = 0
    for name, levels in state.levels.values.items():
        if not name.endswith(".format"):
            sizes = [len(canonical_json([dict(d) for d in v.demos])) if isinstance(v, DemoLevel) else len(v.text)
                     for v in levels]  # fmt: skip
            longer += max(sizes) - sizes[0]
    used, again = state.preflight.usage, -(-state.preflight.calls_per_example // len(state.job.target.spec.predictors))
    # Three characters a token: more than most tokenizers need, and the markers of the format come on top.
    each = Usage(used.prompt_tokens + again * longer // 3, used.completion_tokens)
    _, spent = run.evaluator.meter.logical
    certification = 2 * len(state.splits.test)
    room = [sys.maxsize]
    if budget.tokens is not None:
        room.append((budget.tokens - sum(_tokens(spent))) // max(1, sum(_tokens(each))) - certification)
    if budget.dollars is not None and price is not None and price.of(each) > 0:
        room.append(int((budget.dollars - price.of(spent)) / price.of(each)) - certification)
    return max(0, min(room))


def certify(state: State, run: Run) -> State:
    """Open the sealed test once, for winner and baseline."""
    assert state.levels is not None and state.found is not None
    test = state.splits.test
    run.begin("certify", 2 * len(test))
    home = state.levels.space.baseline
    baseline = tuple(run.run(state.levels.candidate(home), test))
    shipped = state.found.shipped
    compiled = baseline if shipped == home else tuple(run.run(state.levels.candidate(shipped), test))
    if shipped == home:
        # The same program twice: there is no difference to estimate.
        evidence = same_evidence([outcome.score for outcome in baseline])
        return replace(state, certificate=Certificate(evidence, baseline, compiled))
    evidence = paired_evidence(
        [outcome.score for outcome in baseline],
        [outcome.score for outcome in compiled],
        seed=state.job.seed,
        groups=state.splits.groups_of(test),
    )
    return replace(state, certificate=Certificate(evidence, baseline, compiled))


def _view(state: State, run: Run) -> View:
    job = state.job
    return View(
        spec=job.target.spec,
        code=job.code,
        start=job.start,
        train=state.splits.train,
        metric=job.metric.name,
        runner=run,
        seed=job.seed,
        needs=Needs(job.options.instructions, job.options.demo_sets, job.options.max_demos, job.options.accept),
        accepted=state.accepted,
    )


def source_of(program: Any) -> str:
    """Return a program's source text, or an empty string where Python can't find it."""
    try:
        return inspect.getsource(type(program))
    except (OSError, TypeError):
        return ""


def slot_sizes(levels: Levels) -> Mapping[str, int]:
    """Return how many levels each slot has."""
    return {name: len(levels.values[name]) for name in levels.slots}

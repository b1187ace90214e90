"""preflight(): the baseline on a few rows says whether model, program and metric work, and what a row costs."""

import time
from collections.abc import Sequence
from dataclasses import replace

from ..programs.lm import Usage
from ..signatures.errors import RequestError
from .budget import Budget, BudgetExhausted, Spending
from .evaluate import PLAIN, Errand
from .options import EVALUATIONS
from .outcome import Malformed, Outcome, Scored
from .run import LATER, Run
from .state import Job, Preflight, State

SAMPLE = 5
"""Training rows that preflight runs the baseline on."""


def first_reply(state: State, run: Run) -> State:
    """Ask for one training row, and go on with the server's first reply: a wrong key costs one call.

    Then everything begins that is needed whatever is chosen: the baseline on the training rows, where bootstrap asks
    the same, and on the select set.
    """
    job, baseline = state.job, state.job.target.spec.baseline
    run.begin("preflight", min(SAMPLE, len(state.splits.train)))
    # A budget that is too small however little a row takes is said before anything is paid.
    evaluations = _affordable(job, state, job.options.calls_per_example or 1)
    keep(state, run, Usage(), job.options.calls_per_example or 1)
    (first,) = run.submit(baseline, state.splits.train[:1], PLAIN)
    while not len(run.ledger) and not first.done():
        time.sleep(0.005)
        run.show()
    if first.done():
        try:
            run.wait(first)
        except BudgetExhausted as error:
            raise RequestError(str(error)) from error  # not even one row fits
    rest = Errand(priority=LATER)
    if job.teacher == (job.target, job.model) and job.start == baseline:
        run.prefetch(baseline, state.splits.train[1:], rest)
    else:
        run.prefetch(baseline, state.splits.train[1:SAMPLE], rest)
    if evaluations >= 3 * len(state.splits.select):
        run.prefetch(baseline, state.splits.select, rest)
    return state


def preflight(state: State, run: Run) -> State:
    """Run the baseline on a few training rows: do program and metric work, and what does a row cost?"""
    job = state.job
    sample = state.splits.train[:SAMPLE]
    try:
        outcomes = run.evaluate(job.target.spec.baseline, sample, PLAIN)
    except BudgetExhausted as error:
        raise RequestError(str(error)) from error  # not even these rows fit
    calls = job.options.calls_per_example or max(1, *(outcome.cost.calls for outcome in outcomes))
    _check_tokens(state, run, [outcome.cost.usage for outcome in outcomes])
    notes = tuple(_preflight_notes(job, outcomes))
    for note in notes:
        run.note(note)
    found = Preflight(
        score=sum(outcome.score for outcome in outcomes) / len(outcomes),
        n=len(outcomes),
        calls_per_example=calls,
        malformed=sum(isinstance(outcome, Malformed) for outcome in outcomes) / len(outcomes),
        evaluations=_affordable(job, state, calls),
        notes=notes,
        usage=Usage(*(max(counts) for counts in zip(*(_tokens(o.cost.usage) for o in outcomes), strict=True))),
    )
    state = replace(state, preflight=found)
    keep(state, run, found.usage, calls)
    return state


def keep(state: State, run: Run, each: Usage, calls: int) -> None:
    """Keep what the sealed test takes out of everybody's reach.

    Args:
        state: After preflight.
        run: The tools.
        each: The most tokens that one example takes.
        calls: The most calls.
    """
    rows, price = 2 * len(state.splits.test), run.evaluator.price(state.job.model.lm.name)
    usage = Usage(rows * each.prompt_tokens, rows * each.completion_tokens)
    dollars = 0.0 if price is None else price.of(usage)
    run.evaluator.meter.keep(Spending(rows * calls, usage, dollars))


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
    tunable = sum(spec.tunable for spec in job.target.spec.predictors)
    proposals = tunable * job.options.instructions
    certify = 2 * len(state.splits.test) * calls_per_example
    demonstrations = (2 * len(state.splits.train) + SAMPLE) * calls_per_example
    for name, limit, before in (
        ("budget.calls", job.budget.calls, demonstrations + proposals),
        ("budget.task.calls", job.budget.of("task").calls, demonstrations),
    ):
        if limit is None:
            continue
        left = limit - certify - before
        if left < calls_per_example * 4:
            raise RequestError(
                f"`{name}` is {limit}, and this data needs at least {certify + before + calls_per_example * 4}: "
                f"{certify} for the sealed test ({len(state.splits.test)} rows, baseline and winner, "
                f"{calls_per_example} call{'s' * (calls_per_example > 1)} a row) and {before} for "
                "demonstrations and proposals; raise it, or give fewer rows."
            )
        wanted = min(wanted, left // calls_per_example)
    return wanted


def _check_tokens(state: State, run: Run, used: Sequence[Usage]) -> None:
    """Raise RequestError unless the budget's tokens and dollars can pay for the demonstrations and the sealed test."""
    job = state.job
    rows = len(state.splits.train) + 2 * len(state.splits.test)
    needed = Usage(*(rows * sum(counts) // len(used) for counts in zip(*map(_tokens, used), strict=True)))
    price = run.evaluator.price(job.model.lm.name)
    rest = f"by what the first {len(used)} rows took, for demonstrations and the sealed test alone"
    limits: list[tuple[str, Budget]] = [("budget", job.budget), ("budget.task", job.budget.of("task"))]
    for name, limit in limits:
        if limit.tokens is not None and sum(_tokens(needed)) > limit.tokens:
            raise RequestError(
                f"`{name}.tokens` is {limit.tokens}, and this data needs at least {sum(_tokens(needed))} {rest}; "
                "raise it, or give fewer rows."
            )
        if limit.dollars is not None and price is not None and price.of(needed) > limit.dollars:
            raise RequestError(
                f"`{name}.dollars` is {limit.dollars:g}, and this data needs at least {price.of(needed):.4f} {rest}; "
                "raise it, or give fewer rows."
            )


def _tokens(usage: Usage) -> tuple[int, int]:
    return usage.prompt_tokens, usage.completion_tokens

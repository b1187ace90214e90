"""compile(): a program, data and a metric in; the frozen program with its evidence out."""

import os
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_origin

from ..programs.artifact import Artifact, read_artifact
from ..programs.cache import ReplyCache
from ..programs.candidate import Candidate
from ..programs.dataflow import Flow, seal_program
from ..programs.lm import Retry
from ..programs.models import Model, resolve_lm
from ..programs.openai_wire import is_reasoning_model
from ..programs.program import ProgramSpec, lower_program
from ..signatures.canonical import digest
from ..signatures.errors import ArtifactError, DataError, ProgramError, RequestError, nearest
from .budget import Budget, Spending, bounded
from .data import Dataset, Example, describe_source, load_rows, to_dataset
from .division import split_pass
from .emit import emit
from .evaluate import Evaluator, Target
from .foreign import metering_foreign_calls
from .ledger import Ledger
from .meter import Meter
from .metered import Manners
from .metric import required_labels, resolve_metric
from .options import Options
from .pace import Pace
from .passes import certify, search
from .preflight import first_reply, preflight
from .prices import Prices
from .run import Run
from .shown import check_columns, parse_conditions, resolve_redact, shown_rows
from .state import Job, State
from .stopped import leave_incumbent
from .strategy import Strategy
from .supply import source_of, supply
from .traces import write_traces


def compile(
    program: Any,
    data: Any,
    metric: Any,
    *,
    lm: Any,
    strategy: Strategy,
    budget: Budget | None = None,
    seed: int = 0,
    run_dir: str | Path | None = None,
    options: Options | None = None,
    begun: Callable[[Path], None] | None = None,
) -> Artifact:
    """Return the compiled program: split, preflight, bootstrap, propose, search, certify, emit.

    `vitrify.compile` is this function with `strategy` resolved from `options`.

    Args:
        program: A DSPy module; it is left as it is.
        data: A path, a list of `dspy.Example` or of dictionaries, or a Hugging Face dataset.
        metric: A DSPy metric, unchanged, or a name such as `exact:team`.
        lm: The task model: a name, a `dspy.LM`, or `"embedded"`.
        strategy: What supplies the levels.
        budget: What may be spent.
        seed: Same inputs and seed, same artifact.
        run_dir: Where the run keeps what it paid for; with the same directory a compile goes on where it stopped.
        options: The rest.
        begun: Told the run directory when it is this compile's own, before anything is paid.

    Raises:
        RequestError: If the request is wrong; before money is spent where that can be known.
        WorkError: If the work failed; what was paid is kept in the run directory.
        KeyboardInterrupt: As it came, with `run_dir` and, where the best program so far could be written there,
            `uncertified`: their paths.
    """
    job = prepare(program, data, metric, lm, strategy, budget or Budget(), seed, options or Options())
    folder = Path(run_dir) if run_dir is not None else default_run_dir(job)
    with Ledger(folder) as ledger, metering_foreign_calls():
        if begun is not None:
            begun(folder)
        run = _run(job, ledger)
        state: State | None = None
        try:
            splits = split_pass(job, run)
            state = State(job, splits, _shown(job, splits.train, run))
            for step in (first_reply, supply, preflight, search, certify):
                state = step(state, run)
            write_traces(folder, state.accepted)
            return emit(state, run)
        except KeyboardInterrupt as stop:
            run.close(abandon=True)
            leave_incumbent(stop, state, run)
            raise
        finally:
            run.close(abandon=False)


def _shown(job: Job, train: tuple[Example, ...], run: Run) -> tuple[Example, ...]:
    """Return the training rows as they may be shown, and note what isn't."""
    options = job.options
    rows, notes = shown_rows(train, parse_conditions(options.no_demos_from), resolve_redact(options.redact))
    for note in notes:
        run.note(note)
    return rows


def _run(job: Job, ledger: Ledger) -> Run:
    """Return the tools of a compile, with what earlier processes of the run spent."""
    options, prices = job.options, Prices(job.options.price)
    _check_prices(job, prices)
    meter = Meter(job.budget)
    for (role, lm), tally in ledger.tallies.items():
        price = prices.of(lm)
        spent = Spending(tally.attempts, tally.usage, 0.0 if price is None else price.of(tally.usage))
        lost = max(0, tally.attempts - tally.replies - tally.failed)
        meter.resume(role, spent, wasted=tally.failed, lost=lost, certified=tally.certifying)
    notices: deque[str] = deque()
    evaluator = Evaluator(
        job.model,
        job.metric,
        ledger,
        meter,
        judge=job.judge_model,
        failure_score=options.failure_score,
        pace=Pace(options.concurrency),
        manners=Manners(
            patience=options.patience,
            hedge=options.hedge,
            weighed=job.budget.weighed,
            cache=ReplyCache(home() / "cache") if options.cache else None,
            notice=notices.append,
        ),
        price=prices.of,
    )
    return Run(job, evaluator, ledger, options.progress, notices=notices)


def prepare(
    program: Any,
    data: Any,
    metric: Any,
    lm: Any,
    strategy: Strategy,
    budget: Budget,
    seed: int,
    options: Options,
) -> Job:
    """Return the request, resolved and checked, without a call to any model."""
    import dspy

    if not isinstance(budget, Budget) or not isinstance(options, Options):
        raise RequestError(
            f"`budget` is a vitrify.Budget and `options` are vitrify.Options, got {type(budget).__name__} and "
            f"{type(options).__name__}: write budget=vitrify.Budget(calls=...)."
        )
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise RequestError(f"`seed` is a whole number, got {seed!r}.")
    if isinstance(program, type) and issubclass(program, dspy.Module):
        raise ProgramError(f"`program` is an instance: pass {program.__name__}(), not the class.")
    adapter = dspy.settings.adapter
    spec = lower_program(program, adapter=adapter)
    target = _target(program, spec, adapter)
    scored = resolve_metric(metric)
    dataset = _dataset(data, program, spec)
    check_columns(parse_conditions(options.no_demos_from), dataset)
    resolve_redact(options.redact)
    _check_labels(dataset, required_labels(scored))
    decoding = {
        name: value
        for name, value in (("temperature", options.temperature), ("max_tokens", options.max_tokens))
        if value is not None
    }
    # One attempt at a time: the meter counts each, so that retries stay within the budget.
    once = Retry(attempts=1)
    server: dict[str, Any] = {
        "api_base": options.api_base,
        "api_key": options.api_key,
        "timeout": options.timeout,
    }
    model = resolve_lm(lm, decoding=decoding, retry=once, **server)
    ambient = dspy.settings.lm
    prompt_model = model if options.prompt_lm is None else resolve_lm(options.prompt_lm, retry=once, **server)
    if budget.weighed:
        model, prompt_model = (_bounded(one) for one in (model, prompt_model))
    return Job(
        target=target,
        code=source_of(program),
        dataset=dataset,
        select=None if options.select is None else _dataset(options.select, program, spec),
        test=None if options.test is None else _dataset(options.test, program, spec),
        metric=scored,
        model=model,
        prompt_model=prompt_model,
        judge_model=model if ambient is None else resolve_lm(ambient),
        teacher=_teacher(options, target, model),
        strategy=strategy,
        start=_start(options.start, spec),
        budget=budget,
        seed=seed,
        options=options,
    )


def _target(program: Any, spec: ProgramSpec, adapter: Any) -> Target:
    flow = seal_program(program, spec)
    return Target(program, spec, adapter, flow if isinstance(flow, Flow) else None)


def _bounded(model: Model) -> Model:
    return replace(model, decoding=bounded(model.decoding, reasoning=is_reasoning_model(model.lm.name)))


def _dataset(data: Any, program: Any, spec: ProgramSpec) -> Dataset:
    """Return the rows as examples whose inputs are what `forward` takes."""
    if isinstance(data, Dataset):
        return data
    required = [item.name for item in spec.inputs if item.required]
    optional = [item.name for item in spec.inputs if not item.required]
    return to_dataset(
        load_rows(data),
        input_names=required,
        optional_inputs=optional,
        types=_types(spec, program),
        source=describe_source(data),
    )


def _types(spec: ProgramSpec, program: Any) -> dict[str, Any]:
    """Return what is known of the columns' types: predictors' fields of the same name."""
    from ..programs.program import walk

    types: dict[str, Any] = {}
    for item in walk(program):
        fields = item.predictor.signature.fields
        for name, info in fields.items():
            if info.annotation is not str:
                types.setdefault(name, info.annotation)
            else:
                types[name] = str
    return {
        name: kind for name, kind in types.items() if kind in (int, float, bool) or get_origin(kind) in (list, dict)
    }


def _check_labels(dataset: Dataset, needed: tuple[str, ...]) -> None:
    for name in needed:
        if name not in dataset.label_names and name not in dataset.input_names:
            raise DataError(
                f"The data breaks `the metric's label is a column`: there is no column `{name}`; "
                f"{nearest(name, list(dataset.label_names + dataset.input_names))}"
            )


def _teacher(options: Options, target: Target, model: Model) -> tuple[Target, Model]:
    """Return the program and the model that bootstrap demonstrations."""
    lm = model if options.teacher_lm is None else resolve_lm(options.teacher_lm, retry=Retry(attempts=1))
    if options.teacher is None:
        return target, lm
    teacher = options.teacher
    spec = lower_program(teacher, adapter=target.adapter)
    mine = [(item.path, item.signature and item.signature.fields) for item in target.spec.predictors]
    theirs = [(item.path, item.signature and item.signature.fields) for item in spec.predictors]
    if mine != theirs:
        raise ProgramError(
            f"`teacher` has the program's predictors: {', '.join(path for path, _ in mine)}; got "
            f"{', '.join(path for path, _ in theirs)} with other fields or paths."
        )
    return _target(teacher, spec, target.adapter), lm


def _start(start: Any, spec: ProgramSpec) -> Candidate:
    """Return the candidate of an earlier artifact, or the baseline."""
    if start is None:
        return spec.baseline
    artifact = start if isinstance(start, Artifact) else read_artifact(start)
    known = {item.path for item in spec.predictors}
    missing = sorted(set(artifact.candidate.params) ^ known)
    if missing:
        raise ArtifactError(
            f"`start` is an artifact of this program: predictor {missing[0]} is in one of the two "
            "alone; compile without it."
        )
    tunable = {item.path for item in spec.predictors if item.tunable}
    return Candidate({**spec.baseline.params, **{p: v for p, v in artifact.candidate.params.items() if p in tunable}})


def _check_prices(job: Job, prices: Prices) -> None:
    """Raise RequestError where a budget is in dollars and nobody knows what a model costs."""
    if not job.budget.priced:
        return
    for model in (job.model, job.prompt_model, job.teacher[1]):
        if prices.of(model.lm.name) is None:
            raise RequestError(
                f"`budget.dollars` needs a price, and nobody knows that of {model.lm.name}; give it in dollars per "
                "million prompt and completion tokens with Options(price=(0.15, 0.60)) or --price 0.15,0.60."
            )


def _kept_out(options: Options) -> list[list[str]]:
    redact = options.redact
    name = (
        ""
        if redact is None
        else redact
        if isinstance(redact, str)
        else getattr(redact, "__qualname__", type(redact).__qualname__)
    )
    found = [f"{column}={value}" for column, value in parse_conditions(options.no_demos_from)]
    return [[*found, name]] if found or name else []


def home() -> Path:
    """Return the folder of runs and of what they share."""
    return Path(os.environ.get("VITRIFY_HOME", ".vitrify"))


def default_run_dir(job: Job) -> Path:
    """Return the directory that equal requests share, so that repeating one, with more budget too, continues it."""
    options = job.options
    identity = digest(
        [
            job.target.spec.name,
            job.target.spec.source_sha256,
            [item.level0.to_json() for item in job.target.spec.predictors],
            job.metric.name,
            job.metric.digest,
            job.model.lm.name,
            job.dataset.digest,
            job.seed,
            [None if own is None else own.digest for own in (job.select, job.test)],
            job.prompt_model.lm.name,
            [job.teacher[0].spec.name, job.teacher[1].lm.name],
            job.start.id,
            dict(job.model.decoding),
            [options.group, options.instructions, options.demo_sets, options.max_demos, list(options.formats)],
            *_kept_out(options),
        ]
    )
    return home() / "runs" / f"{job.target.spec.name.lower()}-{identity[:10]}"

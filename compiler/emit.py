"""emit(): the artifact of a finished compile."""

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..programs.artifact import (
    Artifact,
    Canary,
    CapabilitiesRecord,
    ClassProgram,
    Content,
    EvidenceRecord,
    InputRecord,
    ModelRecord,
    PredictorRecord,
    ProvenanceRecord,
    SealedProgram,
    SelectionRecord,
)
from ..programs.bind import bind
from ..programs.canaries import dspy_canary, planned_canary
from ..programs.candidate import Candidate
from ..programs.dataflow import Flow, Unsealed, seal_program
from ..programs.exact import exact
from ..programs.flow import calls_of
from ..programs.models import Model
from ..programs.program import DECODING, PredictorSpec, ProgramSpec, walk
from ..signatures.lower import annotations
from ..signatures.prompt import NeedsAdapter, PromptPlan
from .outcome import Malformed
from .run import Run
from .state import State

CANARIES = 3
"""Inputs per predictor whose rendered messages are recorded."""


def emit(state: State, run: Run) -> Artifact:
    """Return the artifact: what ships, what it was chosen for, and what the sealed test says."""
    run.begin("emit")
    assert state.levels is not None and state.found is not None and state.certificate is not None
    job = state.job
    shipped = state.levels.candidate(state.found.shipped)
    spec = job.target.spec
    predictors = [_predictor(item, shipped, state, job.target.program) for item in spec.predictors]
    content = Content(
        format="vitrify/1",
        name=spec.name,
        program=program_of(spec, job.target.program, job.model.decoding, predictors),
        inputs=[InputRecord(name=item.name, required=item.required) for item in spec.inputs],
        predictors=predictors,
        model=model_of(job.model, job.target.adapter),
        evidence=_evidence(state),
        selection=_selection(state),
        provenance=_provenance(state, run),
        canaries=_canaries(state, shipped),
        notes=list(run.notes),
        reproducible=run.cut is None,
        reproducible_reason=run.cut,
    )
    return Artifact.seal(content)


def program_of(
    spec: ProgramSpec, program: Any, decoding: Mapping[str, Any], predictors: Sequence[PredictorRecord]
) -> ClassProgram | SealedProgram:
    """Return the program with its data flow, where that and every prompt it asks with are in the file."""
    flow = seal_program(program, spec)
    if isinstance(flow, Flow):
        planned = {record.path for record in predictors if record.plan is not None}
        unplanned = next((path for path in calls_of(flow) if path not in planned), None)
        if unplanned is not None:
            flow = Unsealed(f"predictor {unplanned} runs through DSPy: only DSPy renders its demonstrations")
        elif (decoding.get("n") or 1) != 1:
            flow = Unsealed("the language model gives more than one completion (n)")
    if isinstance(flow, Unsealed):
        return ClassProgram(import_path=spec.import_path, source_sha256=spec.source_sha256, reason=flow.reason)
    return SealedProgram(flow=flow.to_json(), import_path=spec.import_path, source_sha256=spec.source_sha256)


def _predictor(spec: PredictorSpec, shipped: Candidate, state: State, program: Any) -> PredictorRecord:
    methods, rows = _origin(spec.path, state)
    return predictor_of(spec, shipped, program, methods, rows)


def predictor_of(
    spec: PredictorSpec, shipped: Candidate, program: Any, methods: dict[str, str], rows: list[int]
) -> PredictorRecord:
    """Return a predictor with what a candidate gives it; `methods` and `rows` say where that comes from."""
    params = shipped.params[spec.path]
    plan = second = None
    if spec.signature is not None and spec.reason is None:
        plan, second = plans_of(spec, shipped, program)
    as_json: Any = params.to_json()
    return PredictorRecord(
        path=spec.path,
        aliases=list(spec.aliases),
        signature=None if spec.signature is None else _dict(spec.signature.to_json()),
        reason=spec.reason,
        instruction=params.instruction,
        demos=[{name: exact(value) for name, value in demo.items()} for demo in params.demos],
        format=params.format,
        decoding=as_json["decoding"],
        plan=None if plan is None else _dict(plan.to_json()),
        second_plan=None if second is None else _dict(second.to_json()),
        methods=methods,
        rows=rows,
    )


def plans_of(spec: PredictorSpec, candidate: Candidate, program: Any) -> tuple[PromptPlan | None, PromptPlan | None]:
    """Return a predictor's plan under a candidate, and that of its second request; None where only DSPy renders it."""
    assert spec.signature is not None
    predictor = next(item.predictor for item in walk(program) if item.path == spec.path)
    params = candidate.params[spec.path]
    signature = spec.signature.with_instruction(params.instruction)
    demos = predictor.demos if params.demos == spec.level0.demos else params.demos
    plain = [dict(demo) for demo in demos]
    types = annotations(predictor.signature)
    try:
        main = PromptPlan.build(signature, format=params.format, demos=plain, types=types)
        second = (
            PromptPlan.build(signature, format="json", demos=plain, types=types) if params.format == "chat" else None
        )
    except NeedsAdapter:
        return None, None
    return main, second


def _origin(path: str, state: State) -> tuple[dict[str, str], list[int]]:
    """Return where a predictor's parameters come from, in words, and whose rows ship."""
    assert state.levels is not None and state.found is not None
    methods: dict[str, str] = {}
    rows: list[int] = []
    for name, level in zip(state.levels.slots, state.found.shipped, strict=True):
        owner, _, kind = name.rpartition(".")
        if owner != path or level == 0:
            continue
        value = state.levels.values[name][level]
        provenance = getattr(value, "provenance", None)
        methods[kind] = f"{provenance.method}: {provenance.note}" if provenance is not None else "tried as an option"
        rows += getattr(value, "rows", ())  # in the order of the demonstrations
    return methods, rows


def model_of(model: Model, adapter: Any) -> ModelRecord:
    """Return a language model and the adapter in force as a file may hold them."""
    able = model.lm.capabilities
    return ModelRecord(
        name=model.lm.name,
        # Listed are the parameters that may be written, not the secrets that may not.
        decoding={name: value for name, value in sorted(model.decoding.items()) if name in DECODING},
        capabilities=CapabilitiesRecord(
            response_format=able.response_format,
            response_schema=able.response_schema,
            function_calling=able.function_calling,
            reasoning=able.reasoning,
        ),
        adapter="ChatAdapter" if adapter is None else type(adapter).__name__,
    )


def _evidence(state: State) -> EvidenceRecord:
    assert state.certificate is not None
    found = state.certificate.evidence
    sealed = state.certificate.certified and state.splits.sealed_claim
    return EvidenceRecord(
        improved=found.improved and sealed,
        baseline=found.baseline,
        compiled=found.compiled,
        difference=found.difference,
        interval=found.interval,
        level=found.level,
        p_value=found.p_value,
        n=found.n,
        method=found.method,
        sealed=sealed,
        certified=state.certificate.certified,
    )


def _selection(state: State) -> SelectionRecord:
    assert state.levels is not None and state.found is not None and state.certificate is not None
    found = state.found
    won = found.shipped != state.levels.space.baseline
    if not state.certificate.certified:
        reason = f"uncertified: {found.reason}; the select set gives it a probability of {found.probability:.3f} so far"
    elif won:
        reason = f"the select set gives it a probability of {found.probability:.3f} to beat the baseline"
    elif not state.levels.slots:
        reason = "there was nothing to choose from: no predictor can be tuned, or nothing was proposed"
    elif len(found.trials) < 2:
        reason = f"no candidate was tried: {found.reason}"
    else:
        reason = (
            f"no detectable gain: the best candidate beats the baseline with a probability of {found.probability:.3f}, "
            f"and {state.job.options.guard:g} is asked for"
        )
    return SelectionRecord(
        shipped="compiled" if won else "baseline",
        reason=reason,
        probability=found.probability,
        estimate=found.estimate,
        interval=found.interval,
        trials=len(found.trials),
        evaluations=found.spent,
        slots=state.levels.sizes,
    )


def _provenance(state: State, run: Run) -> ProvenanceRecord:
    job, meter = state.job, run.evaluator.meter
    spent = meter.logical
    outcomes = state.certificate.compiled if state.certificate is not None else ()
    return ProvenanceRecord(
        versions=versions(),
        seed=job.seed,
        strategy=job.strategy.name,
        metric=job.metric.name,
        metric_sha256=job.metric.digest,
        data_sha256=job.dataset.digest,
        rows={
            "train": len(state.splits.train),
            "select": len(state.splits.select),
            "test": len(state.splits.test),
        },
        calls=spent.calls,
        prompt_tokens=spent.usage.prompt_tokens,
        completion_tokens=spent.usage.completion_tokens,
        dollars=None if meter.unpriced else round(spent.dollars, 6),
        malformed=sum(isinstance(outcome, Malformed) for outcome in outcomes),
        reparsed=sum(outcome.cost.reparsed for outcome in outcomes),
    )


def _canaries(state: State, shipped: Candidate) -> list[Canary]:
    """Return inputs of accepted training traces with the messages that they render to."""
    target = state.job.target
    seen = {
        spec.path: [demo for item in state.accepted for demo in item.demos.get(spec.path, ())]
        for spec in target.spec.predictors
    }
    return canaries_of(target.spec, target.program, shipped, target.adapter, seen)


def canaries_of(
    lowered: ProgramSpec,
    program: Any,
    shipped: Candidate,
    adapter: Any,
    seen: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[Canary]:
    """Return the first inputs in `seen`, values by predictor and field, with the messages that they render to."""
    import dspy

    bound: dict[str, Any] = {}
    canaries: list[Canary | None] = []
    for spec in lowered.predictors:
        names = [] if spec.signature is None else [field.name for field in spec.signature.inputs]
        given = [{name: demo[name] for name in names if name in demo} for demo in seen.get(spec.path, ())[:CANARIES]]
        plan = plans_of(spec, shipped, program)[0] if spec.signature and spec.reason is None else None
        if plan is not None:
            canaries += [planned_canary(spec.path, plan, inputs) for inputs in given]
        else:
            if not bound:
                bound = {item.path: item.predictor for item in walk(bind(program, lowered, shipped))}
            mine = adapter or dspy.ChatAdapter()
            canaries += [dspy_canary(spec.path, bound[spec.path], mine, inputs) for inputs in (given or [{}])]
    return [canary for canary in canaries if canary is not None]


def _dict(value: Any) -> dict[str, Any]:
    assert isinstance(value, dict)
    return value


def versions() -> dict[str, str]:
    """Return the versions of what decides about a prompt or a choice."""
    return {name: _version(name) for name in ("vitrify", "dspy", "pydantic", "json-repair", "optuna")}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"

"""Evaluator: the only spender; it runs bound programs on examples and says what became of each."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError, ContextWindowExceededError

from ..programs.bind import bind
from ..programs.bridge import DspyLM, EngineLM
from ..programs.candidate import Candidate
from ..programs.lm import LM, Retry
from ..programs.models import Model
from ..programs.openai import OpenAICompatible
from ..programs.planned import Bound
from ..programs.program import ProgramSpec, walk
from ..signatures.errors import MetricError
from .budget import BudgetExhausted, Meter
from .data import Example
from .ledger import Ledger
from .metered import MeteredLM, Scope
from .metric import MetricSpec, call_metric
from .outcome import Cost, Malformed, Outcome, ProgramBug, Refused, Scored, TraceStep
from .workers import Workers

logger = logging.getLogger("vitrify")


def scope_in_force() -> Scope | None:
    """Return the evaluation that the running code belongs to; it follows tasks, asyncify and dspy.Parallel."""
    scope: Scope | None = dspy.settings.get("vitrify_scope")
    return scope


@dataclass(frozen=True)
class Target:
    """A program to be evaluated.

    Attributes:
        program: The module, as the user made it.
        spec: Its data.
        adapter: The adapter that was in force when the compile began; level 0.
    """

    program: Any
    spec: ProgramSpec
    adapter: Any = None


@dataclass
class Evaluator:
    """Runs candidates on examples, `concurrency` at a time; every call goes through one ledger and one meter.

    Attributes:
        model: The task model.
        metric: What scores a prediction.
        ledger: Where replies come from and go to.
        meter: What has been spent.
        judge: The model in force while the metric runs; by default the task model.
        failure_score: What a reply without readable values counts; no score may be below it.
        concurrency: How many evaluations run at a time.
    """

    model: Model
    metric: MetricSpec
    ledger: Ledger
    meter: Meter
    judge: Model | None = None
    failure_score: float = 0.0
    concurrency: int = 16
    on_done: Callable[[Outcome], None] | None = None
    _pool: Workers = field(init=False, repr=False)
    _lms: dict[int, EngineLM] = field(default_factory=dict, init=False, repr=False)
    _kept: list[Any] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        self._pool = Workers(self.concurrency)

    def engine(self, model: Model) -> EngineLM:
        """Return `model` as a dspy.LM whose calls are metered; one for each model."""
        known = self._lms.get(id(model))
        if known is None:
            metered = MeteredLM(model.lm, self.ledger, self.meter, scope_in_force, _retry(model.lm))
            known = EngineLM(metered, **dict(model.decoding))
            self._lms[id(model)] = known
            self._kept.append(model)  # keeps id() unique
        return known

    def bound(self, target: Target, candidate: Candidate) -> Any:
        """Return the target bound to `candidate`, its predictors' own language models metered as well."""
        program = bind(target.program, target.spec, candidate)
        for item in walk(program):
            own = item.predictor.lm
            if own is not None and not isinstance(own, EngineLM):
                item.predictor.lm = self._metered_own(own)
        return program

    def _metered_own(self, lm: Any) -> EngineLM:
        known = self._lms.get(id(lm))
        if known is None:
            bridged = DspyLM(lm)
            metered = MeteredLM(bridged, self.ledger, self.meter, scope_in_force, _retry(bridged))
            known = EngineLM(metered, **bridged.decoding)
            self._lms[id(lm)] = known
            self._kept.append(lm)
        return known

    def submit(
        self,
        target: Target,
        bound: Any,
        example: Example,
        *,
        traced: bool = False,
        model: Model | None = None,
        config: Mapping[str, Any] | None = None,
        priority: int = 0,
    ) -> "Future[Outcome]":
        """Evaluate a bound program on one example, in a worker thread.

        Args:
            target: What `bound` was made from.
            bound: The result of `bound()`.
            example: The example.
            traced: Whether the metric sees the trace, as DSPy does while bootstrapping.
            model: Another model than the task model (a teacher's).
            config: Sampling parameters for this evaluation alone.
            priority: Of its place in the queue; what nobody waits for yet has a larger one, and isn't reported.
        """
        lm = self.engine(model or self.model)
        if config:
            lm = lm.copy(**config)
        future = self._pool.submit(lambda: self._evaluate(target, bound, example, traced, lm), priority=priority)
        if self.on_done is not None and priority == 0:
            future.add_done_callback(self._report)
        return future

    def _report(self, future: "Future[Outcome]") -> None:
        if self.on_done is not None and not future.cancelled() and future.exception() is None:
            self.on_done(future.result())

    def _evaluate(self, target: Target, bound: Any, example: Example, traced: bool, lm: EngineLM) -> Outcome:
        scope = Scope(self._metered_own)
        with self._context(scope, lm, target.adapter):
            prediction, failure = self._call(bound, example.own_inputs(), target, scope, example.row)
            if failure is not None:
                return Malformed(failure, scope.cost, self.failure_score)
            steps = trace_steps(dspy.settings.trace or [])
            trace = list(dspy.settings.trace or [])
        with self._context(scope, self.engine(self.judge or self.model), target.adapter):
            try:
                score = call_metric(self.metric, example, prediction, trace if traced else None)
            finally:
                self._raise_refusal(scope)  # a judge that couldn't be asked is no bug of the metric's
        if score.value < self.failure_score:
            raise MetricError(
                f"The metric `{self.metric.name}` gave {score.value:g} on row {example.row}, and a reply without "
                f"readable values counts {self.failure_score:g}: `no score is below the failure score`; give the worst "
                "value that the metric can have, with Options(failure_score=...) or --failure-score."
            )
        return Scored(score.value, score.feedback, prediction, steps, scope.cost)

    def ask(self, bound: Any, inputs: Mapping[str, Any], model: Model, **config: Any) -> "Future[tuple[Any, Cost]]":
        """Run a bound module outside any evaluation, such as a proposal; returns its prediction, or None, and its cost.

        None means that the model answered and no value could be read from it.
        """
        lm = self.engine(model)
        if config:
            lm = lm.copy(**config)

        def work() -> tuple[Any, Cost]:
            scope = Scope(self._metered_own)
            with self._context(scope, lm, None):
                prediction, _ = self._call(bound, inputs, None, scope, None)
                return prediction, scope.cost

        return self._pool.submit(work)

    def _context(self, scope: Scope, lm: EngineLM, adapter: Any) -> Any:
        return dspy.context(
            lm=lm, adapter=adapter, trace=[], callbacks=[], disable_history=True, send_stream=None,
            usage_tracker=None, track_usage=False, caller_modules=[], vitrify_scope=scope,
        )  # fmt: skip

    def _call(
        self, bound: Any, inputs: Mapping[str, Any], target: Target | None, scope: Scope, row: int | None
    ) -> tuple[Any, str | None]:
        """Return the prediction, or None and why the model's answer couldn't be used."""
        try:
            prediction = _run(bound, inputs)
        except (AdapterParseError, ContextWindowExceededError) as error:
            self._raise_refusal(scope)
            return None, str(error).strip().partition("\n")[0][:300] or type(error).__name__
        except Exception as error:
            self._raise_refusal(scope)
            name = target.spec.name if target is not None else type(bound).__name__
            where = f"row {row}" if row is not None else "a call"
            raise ProgramBug(
                f"{name} raised {type(error).__name__} on {where}: {str(error)[:300] or 'no message'}. "
                "`forward() returns a prediction for every row`; mend it and run again: what was paid is kept."
            ) from error
        self._raise_refusal(scope)
        if prediction is None and target is not None:
            raise ProgramBug(
                f"{target.spec.name} returned None on row {row}: `forward() returns a prediction for every row`; mend "
                "it and run again: what was paid is kept."
            )
        return prediction, None

    def _raise_refusal(self, scope: Scope) -> None:
        refusal = scope.refusal
        if refusal is None:
            return
        if isinstance(refusal, BudgetExhausted | Refused):
            raise refusal
        from ..programs.lm import LMError

        if isinstance(refusal, LMError):
            raise Refused(refusal) from refusal
        raise refusal

    def close(self, *, abandon: bool = False) -> None:
        """Stop the workers and close the models' connections.

        Args:
            abandon: Give up the calls in flight, as on Ctrl-C, instead of waiting for their replies.
        """
        if abandon:
            for lm in self._lms.values():
                lm.target.close()
        self._pool.close(wait=not abandon)
        for lm in self._lms.values():
            lm.target.close()


def _retry(lm: LM) -> Retry:
    """Return how failed attempts are repeated here: not at all where the user's own client sees to it."""
    own = lm.retry.attempts if isinstance(lm, OpenAICompatible) else 1
    return Retry() if own == 1 else Retry(attempts=1)


def _run(bound: Any, inputs: Mapping[str, Any]) -> Any:
    """Call a module, through its own loop where it defines only `aforward`."""
    if hasattr(type(bound), "forward"):
        return bound(**inputs)
    return asyncio.run(bound.acall(**inputs))


def trace_steps(trace: Iterable[Any]) -> tuple[TraceStep, ...]:
    """Return DSPy's trace as data; calls of predictors that no plan knows have the path ``?``."""
    return tuple(
        (predictor.path if isinstance(predictor, Bound) else "?", dict(inputs), dict(prediction.items()))
        for predictor, inputs, prediction in trace
    )

"""Evaluator: the only spender; it runs bound programs on examples and says what became of each."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import dspy
from dspy.utils.exceptions import AdapterParseError, ContextWindowExceededError

from ..programs.bind import bind
from ..programs.bridge import DIRECT, DspyLM, EngineLM
from ..programs.candidate import Candidate
from ..programs.flow import Flow
from ..programs.lm import LM, LMError, Retry
from ..programs.models import Model
from ..programs.openai import OpenAICompatible
from ..programs.openai_wire import is_reasoning_model
from ..programs.planned import Bound
from ..programs.program import ProgramSpec, walk
from ..programs.recorder import SETTING, Record, evaluation_in_force, recording
from ..signatures.canonical import canonical_json
from ..signatures.errors import MetricError
from .budget import BudgetExhausted, Price, bounded
from .data import Example
from .ledger import Ledger
from .looped import Looped, Unexplained
from .meter import Meter
from .metered import Flights, Manners, MeteredLM, Scope
from .metric import MetricBug, MetricSpec, call_metric
from .outcome import Cost, Malformed, Outcome, ProgramBug, Refused, Scored, TraceStep
from .pace import Pace
from .races import lost_a_race
from .stock import StockMetric
from .workers import Workers

T = TypeVar("T")


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
        flow: What `forward()` does, where that is plain data flow.
    """

    program: Any
    spec: ProgramSpec
    adapter: Any = None
    flow: Flow | None = None


@dataclass(frozen=True)
class Ready:
    """A program bound to a candidate.

    Attributes:
        candidate: The candidate's id.
        program: The module that runs it.
        looped: The same as coroutines, where the program is sealed.
    """

    candidate: str
    program: Any
    looped: Looped | None = None


@dataclass(frozen=True)
class Errand:
    """What an evaluation is for, beside its candidate and its example.

    Attributes:
        traced: Whether the metric sees the trace, as DSPy does while bootstrapping.
        model: Another model than the task model (a teacher's).
        config: Sampling parameters for this evaluation alone.
        certifying: Whether the sealed test needs it.
        priority: Of its place in the queue; what nobody waits for yet has a larger one.
    """

    traced: bool = False
    model: Model | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    certifying: bool = False
    priority: int = 0


@dataclass(frozen=True)
class _Asked:
    """One evaluation."""

    target: Target
    bound: Ready
    example: Example
    errand: Errand
    lm: EngineLM

    @property
    def identity(self) -> str:
        """Which evaluation it is: the same one, run again, has the same."""
        replicate = self.errand.config.get("rollout_id")
        return canonical_json([self.target.spec.name, self.bound.candidate, self.example.id, replicate])


AGAIN = 3
"""How often an evaluation is run again that lost a race in somebody else's code. Replies and effects are on record."""

PLAIN = Errand()
"""An evaluation that the caller waits for, on the task model."""


@dataclass
class Evaluator:
    """Runs candidates on examples, as many at a time as the pace allows; every call goes through one ledger and meter.

    Attributes:
        model: The task model.
        metric: What scores a prediction.
        ledger: Where replies come from and go to.
        meter: What has been spent.
        judge: The model in force while the metric runs; by default the task model.
        failure_score: What a reply without readable values counts; no score may be below it.
        pace: How many evaluations run at a time.
        manners: How the models' servers are treated.
        price: Returns a model's price by its name.
    """

    model: Model
    metric: MetricSpec
    ledger: Ledger
    meter: Meter
    judge: Model | None = None
    failure_score: float = 0.0
    pace: Pace = field(default_factory=Pace)
    manners: Manners = field(default_factory=Manners)
    price: Callable[[str], Price | None] = lambda name: None
    _pool: Workers = field(init=False, repr=False)
    _threads: Workers = field(init=False, repr=False)
    _record: Record = field(init=False, repr=False)
    _lms: dict[int, EngineLM] = field(default_factory=dict, init=False, repr=False)
    _kept: list[Any] = field(default_factory=list, init=False, repr=False)
    _flights: Flights = field(default_factory=Flights, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        self._pool = Workers(lambda: self.pace.limit, self.pace.most)
        self.pace.on_growth = self._pool.widen
        # For the metrics of evaluations on the loop: those hold their place in the queue already.
        self._threads = Workers(self.pace.most)
        self._record = Record(self.ledger)

    def engine(self, model: Model) -> EngineLM:
        """Return `model` as a dspy.LM whose calls are metered; one for each model."""
        return self._engine(model, lambda: (model.lm, model.decoding))

    def _metered_own(self, lm: Any) -> EngineLM:
        """Return a language model of the user's own as one whose calls are metered."""

        def bridged() -> tuple[LM, Mapping[str, Any]]:
            ours = DspyLM(lm)
            return ours, ours.decoding

        return self._engine(lm, bridged)

    def _engine(self, owner: Any, make: Callable[[], tuple[LM, Mapping[str, Any]]]) -> EngineLM:
        with self._lock:
            known = self._lms.get(id(owner))
            if known is None:
                lm, decoding = make()
                if self.manners.weighed:
                    decoding = bounded(decoding, reasoning=is_reasoning_model(lm.name))
                shared = self.manners.cache if isinstance(lm, OpenAICompatible | DspyLM) else None
                manners = replace(
                    self.manners,
                    retry=_retry(lm),
                    price=self.price(lm.name),
                    # Another model's seconds say nothing of the task model's server.
                    pace=self.pace if lm is self.model.lm else None,
                    cache=shared,
                )
                metered = MeteredLM(lm, self.ledger, self.meter, scope_in_force, manners, self._flights)
                known = EngineLM(metered, **dict(decoding))
                self._lms[id(owner)] = known
                self._kept.append(owner)  # keeps id() unique
            return known

    def bound(self, target: Target, candidate: Candidate) -> Ready:
        """Return the target bound to `candidate`, its predictors' own language models metered as well."""
        program = bind(target.program, target.spec, candidate)
        for item in walk(program):
            own = item.predictor.lm
            if own is not None and not isinstance(own, EngineLM):
                item.predictor.lm = self._metered_own(own)
        looped = None if target.flow is None else Looped.of(target.flow, program, target.adapter)
        return Ready(candidate.id, program, looped)

    def submit(self, target: Target, bound: Ready, example: Example, errand: Errand = PLAIN) -> "Future[Outcome]":
        """Evaluate a bound program on one example: on the client's loop where it is sealed, else in a worker thread.

        Args:
            target: What `bound` was made from.
            bound: The result of `bound()`.
            example: The example.
            errand: What the evaluation is for.
        """
        lm = self.engine(errand.model or self.model)
        if errand.config:
            lm = lm.copy(**errand.config)
        asked = _Asked(target, bound, example, errand, lm)
        assert isinstance(lm.target, MeteredLM)
        loop = None if bound.looped is None or errand.traced else lm.target.loop
        if loop is not None and DIRECT.issuperset(lm.kwargs):
            return self._pool.submit_async(loop, lambda: self._alooped(asked), priority=errand.priority)
        return self._pool.submit(lambda: self._paced(lambda: self._evaluate(asked)), priority=errand.priority)

    def _paced(self, work: Callable[[], T]) -> T:
        """Run `work`, counted as one that runs."""
        self.pace.started()
        try:
            return work()
        finally:
            self.pace.ended()

    def _evaluate(self, asked: "_Asked") -> Outcome:
        """Run the program and the metric in this thread."""
        for _ in range(AGAIN):
            try:
                with recording(self._record, asked.identity):
                    return self._evaluated(asked)
            except (ProgramBug, MetricBug) as error:
                if not lost_a_race(error.__cause__):
                    raise
        with recording(self._record, asked.identity):
            return self._evaluated(asked)

    def _evaluated(self, asked: "_Asked") -> Outcome:
        began = time.monotonic()
        target, example = asked.target, asked.example
        scope = Scope(self._metered_own, certifying=asked.errand.certifying, places=self._pool)
        with self._context(scope, asked.lm, target.adapter):
            prediction, failure = self._call(asked.bound.program, example.own_inputs(), target, scope, example.row)
            if failure is not None:
                scope.over = True
                return Malformed(failure, scope.cost, self.failure_score, seconds=time.monotonic() - began)
            steps = trace_steps(dspy.settings.trace or [])
            trace = list(dspy.settings.trace or [])
        return self._scored(asked, prediction, trace if asked.errand.traced else None, steps, scope, began)

    async def _alooped(self, asked: "_Asked") -> Outcome:
        """Run a sealed program on the client's loop; a metric of the user's own runs in a thread."""
        assert asked.bound.looped is not None
        began = time.monotonic()
        scope = Scope(self._metered_own, certifying=asked.errand.certifying, places=self._pool)
        self.pace.started()
        try:
            try:
                values, steps, problem = await asked.bound.looped.run(asked.example.own_inputs(), asked.lm, scope)
            except Unexplained:
                return await asyncio.wrap_future(self._threads.submit(lambda: self._evaluate(asked)))
            except LMError as error:
                self._raise_refusal(scope)
                values, steps, problem = None, (), str(error)  # a prompt that doesn't fit
            if values is None:
                return Malformed(problem[:300], scope.cost, self.failure_score, seconds=time.monotonic() - began)
            score = (asked, dspy.Prediction(**values), None, steps, scope, began)
            if isinstance(self.metric.call, StockMetric):
                return self._scored(*score)
            return await asyncio.wrap_future(self._threads.submit(lambda: self._judged(*score)))
        finally:
            self.pace.ended()

    def _judged(self, asked: "_Asked", *found: Any) -> Outcome:
        """Ask a metric of the user's own, in this thread."""
        with recording(self._record, asked.identity):
            return self._scored(asked, *found)

    def _scored(
        self, asked: "_Asked", prediction: Any, trace: Any, steps: tuple[TraceStep, ...], scope: Scope, began: float
    ) -> Outcome:
        """Ask the metric."""
        example = asked.example
        with self._context(scope, self.engine(self.judge or self.model), asked.target.adapter):
            try:
                score = call_metric(self.metric, example, prediction, trace)
            finally:
                self._raise_refusal(scope)  # a judge that couldn't be asked is no bug of the metric's
        if score.value < self.failure_score:
            raise MetricError(
                f"The metric `{self.metric.name}` gave {score.value:g} on row {example.row}, and a reply without "
                f"readable values counts {self.failure_score:g}: `no score is below the failure score`; give the worst "
                "value that the metric can have, with Options(failure_score=...) or --failure-score."
            )
        scope.over = True
        return Scored(score.value, score.feedback, prediction, steps, scope.cost, time.monotonic() - began)

    def ask(self, bound: Any, inputs: Mapping[str, Any], model: Model, **config: Any) -> "Future[tuple[Any, Cost]]":
        """Run a bound module outside any evaluation, such as a proposal; returns its prediction, or None, and its cost.

        None means that the model answered and no value could be read from it.
        """
        lm = self.engine(model)
        if config:
            lm = lm.copy(**config)

        def work() -> tuple[Any, Cost]:
            scope = Scope(self._metered_own, role="prompt")
            with self._context(scope, lm, None):
                prediction, _ = self._call(bound, inputs, None, scope, None)
                return prediction, scope.cost

        return self._pool.submit(lambda: self._paced(work))

    def _context(self, scope: Scope, lm: EngineLM, adapter: Any) -> Any:
        return dspy.context(
            lm=lm, adapter=adapter, trace=[], callbacks=[], disable_history=True, send_stream=None,
            usage_tracker=None, track_usage=False, caller_modules=[], vitrify_scope=scope,
            **{SETTING: evaluation_in_force()},
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
        effects = evaluation_in_force()
        refusal = scope.refusal or (effects.refusal if effects is not None else None)
        if refusal is None:
            return
        if isinstance(refusal, BudgetExhausted | Refused):
            raise refusal
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
        self._threads.close(wait=not abandon)
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

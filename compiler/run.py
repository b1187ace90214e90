"""Run: the tools of one compile (evaluator, ledger, meter, progress), handed to every pass beside the frozen state."""

import functools
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..programs.candidate import Candidate
from ..programs.models import Model
from .budget import BudgetExhausted
from .data import Example
from .evaluate import Errand, Evaluator, Ready, Target
from .ledger import Ledger
from .meter import Charge
from .outcome import Outcome
from .progress import Progress, Snapshot
from .state import Job

T = TypeVar("T")

LATER, LAST = 1, 2
"""The priorities of what a later pass will need, and nobody waits for yet: the search, and then certification."""

LOOK = 0.2
"""Seconds between two looks at what else has happened, while somebody waits."""


@dataclass
class Run:
    """The tools of one compile; used from the thread that compiles alone.

    Attributes:
        job: The request.
        evaluator: The only spender.
        ledger: The run directory.
        progress: Told what happens, or None.
        notes: Sentences for the artifact and for whoever watches.
        notices: Sentences for whoever watches, from any thread.
        flying: Evaluations of the search that are in flight.
        again: Second requests of the evaluations that were told last.
        cut: What ended the search that another run of the same request may not meet: seconds, attempts that failed.
        alarm: What an evaluation or a pass in the background died of.
    """

    job: Job
    evaluator: Evaluator
    ledger: Ledger
    progress: Progress | None = None
    notes: list[str] = field(default_factory=list)
    notices: deque[str] = field(default_factory=deque)
    cut: str | None = None
    flying: int = 0
    again: "deque[int]" = field(default_factory=lambda: deque(maxlen=100))
    alarm: BaseException | None = None
    _closed: bool = field(default=False, init=False)
    _stage: str = field(default="", init=False)
    _began: float = field(default=0.0, init=False)
    _done: int = field(default=0, init=False)
    _planned: int = field(default=0, init=False)
    _trials: int = field(default=0, init=False)
    _best: float | None = field(default=None, init=False)

    def begin(self, stage: str, planned: int = 0) -> None:
        """Name the pass that begins, in the journal and to whoever watches."""
        self.ledger.append("pass", {"name": stage})
        self.ledger.sync()
        self._stage, self._began, self._done, self._planned = stage, time.monotonic(), 0, planned
        self.show()

    def watch(self, trials: int, best: float) -> None:
        """Show how far the search is."""
        self._trials, self._best = trials, best
        self.show()

    def show(self) -> None:
        """Show where the compile is, and what has happened meanwhile."""
        if self.progress is None:
            return
        while self.notices:
            self.progress.note(self.notices.popleft())
        meter = self.evaluator.meter
        calls, tokens = meter.here
        self.progress.update(
            Snapshot(
                stage=self._stage,
                done=self._done,
                planned=self._planned,
                trials=self._trials,
                best=self._best,
                calls=calls,
                replayed=meter.replayed,
                tokens=tokens,
                seconds=time.monotonic() - self._began,
                concurrency=self.evaluator.pace.limit,
            )
        )

    def note(self, text: str) -> None:
        """Keep a sentence for the artifact, and show it."""
        if text not in self.notes:
            self.notes.append(text)
            if self.progress is not None:
                self.progress.note(text)

    def wait(self, future: "Future[T]") -> T:
        """Return what a future brings; meanwhile show what happens, and stop at the first failure, whoever's it is."""
        while True:
            if self.alarm is not None:
                raise self.alarm from None
            try:
                return future.result(timeout=LOOK)
            except NotYet:
                if future.done():
                    return future.result()
                self.show()

    def _heed(self, future: "Future[Outcome]") -> None:
        """Take note of an evaluation that failed: nobody goes on paying until its turn to be told has come."""
        error = None if future.cancelled() else future.exception()
        if error is not None and not isinstance(error, BudgetExhausted | CancelledError):
            self.alarm = self.alarm or error

    def evaluate(self, candidate: Candidate, examples: Sequence[Example], errand: Errand) -> list[Outcome]:
        """Evaluate a candidate on examples; each outcome is charged and written down in the order asked."""
        return self.gather(candidate, examples, self.submit(candidate, examples, errand), errand)

    def submit(
        self, candidate: Candidate, examples: Sequence[Example], errand: Errand, target: Target | None = None
    ) -> "list[Future[Outcome]]":
        """Ask for evaluations; may be called from any thread."""
        target = target or self.job.target
        bound = self.evaluator.bound(target, candidate)
        futures = [self.evaluator.submit(target, bound, example, errand) for example in examples]
        for future in futures:
            future.add_done_callback(self._heed)
        return futures

    def ready(self, candidate: Candidate) -> Ready:
        """Return the program bound to a candidate."""
        return self.evaluator.bound(self.job.target, candidate)

    def ask(self, ready: Ready, example: Example, errand: Errand) -> "Future[Outcome]":
        """Ask for one evaluation."""
        future = self.evaluator.submit(self.job.target, ready, example, errand)
        future.add_done_callback(self._heed)
        return future

    def gather(
        self, candidate: Candidate, examples: Sequence[Example], futures: "Sequence[Future[Outcome]]", errand: Errand
    ) -> list[Outcome]:
        """Return outcomes in the order asked, each charged and written down; on a failure cancel what hasn't begun."""
        outcomes = []
        try:
            for example, future in zip(examples, futures, strict=True):
                outcome = self.wait(future)
                self.record(self._stage, candidate, example, outcome, errand)
                outcomes.append(outcome)
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        self.show()
        return outcomes

    def record(self, stage: str, candidate: Candidate, example: Example, outcome: Outcome, errand: Errand) -> None:
        """Charge an outcome that retires, and write it to the journal."""
        self.evaluator.meter.charge(outcome.cost.requests)
        self._done += stage == self._stage
        self.again.append(outcome.cost.reparsed)
        self.ledger.append(
            "outcome",
            {
                "stage": stage,
                "candidate": candidate.id,
                "example": example.id,
                "replicate": errand.config.get("rollout_id"),
                "cause": outcome.cause,
                "score": outcome.score,
                "feedback": outcome.feedback,
                "calls": outcome.cost.calls,
                "prompt_tokens": outcome.cost.usage.prompt_tokens,
                "completion_tokens": outcome.cost.usage.completion_tokens,
                "seconds": round(outcome.seconds, 4),
            },
        )

    def close(self, *, abandon: bool) -> None:
        """Stop the workers and close the models' connections; `abandon` gives up the calls in flight, as on Ctrl-C.

        The first call counts.
        """
        if self._closed:
            return
        self._closed = True
        self.evaluator.close(abandon=abandon)
        cache = self.evaluator.manners.cache
        if cache is not None:
            cache.close()
            if cache.problem is not None:
                self.notices.append(cache.problem)
        if not abandon:
            self.show()

    def prefetch(self, candidate: Candidate, examples: Sequence[Example], errand: Errand) -> None:
        """Ask for what a later pass will need, whenever there is nothing better to do.

        Nothing is read: the replies wait in the ledger for the pass that asks again, which charges and reports them.
        """
        self.submit(candidate, examples, errand)


def _pass_on(done: "Future[Outcome]", coming: "Future[Any]", chosen: Candidate) -> None:
    error = CancelledError() if done.cancelled() else done.exception()
    if error is not None:
        coming.set_exception(error)
    else:
        coming.set_result((chosen, done.result()))


@dataclass
class Side:
    """What a pass in the background spends through (the Runner protocol); its charges wait for `settle`.

    So that what was spent at a decision of the search doesn't depend on how far this pass is.
    """

    run_: Run
    stage: str
    teacher: tuple[Target, Model]
    _told: list[Any] = field(default_factory=list, init=False)

    def run(
        self, candidate: Candidate, examples: Sequence[Example], *, traced: bool = False, teacher: bool = False
    ) -> list[Outcome]:
        """Evaluate a candidate on examples, with the teacher's program and model where asked."""
        told = self.follow(candidate, examples, lambda example, outcome: None, traced=traced, teacher=teacher)
        return [outcome for outcome, _ in told]

    def follow(
        self,
        candidate: Candidate,
        examples: Sequence[Example],
        then: Callable[[Example, Outcome], Candidate | None],
        *,
        traced: bool = False,
        teacher: bool = False,
    ) -> list[tuple[Outcome, Outcome | None]]:
        """Evaluate a candidate on examples, and on each, as soon as its outcome is there, what `then` names."""
        target, model = self.teacher if teacher else (self.run_.job.target, self.run_.job.model)
        errand = Errand(traced=traced, model=model)
        seconds: list[Future[tuple[Candidate, Outcome] | None]] = []

        def follow_up(example: Example, coming: "Future[Any]", first: "Future[Outcome]") -> None:
            try:
                chosen = then(example, first.result())
                if chosen is None:
                    coming.set_result(None)
                    return
                (flying,) = self.run_.submit(chosen, [example], errand, target)
                flying.add_done_callback(lambda done: _pass_on(done, coming, chosen))
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits
                coming.set_exception(error)

        firsts = self.run_.submit(candidate, examples, errand, target)
        for example, first in zip(examples, firsts, strict=True):
            coming: Future[tuple[Candidate, Outcome] | None] = Future()
            seconds.append(coming)
            first.add_done_callback(functools.partial(follow_up, example, coming))
        found: list[tuple[Outcome, Outcome | None]] = []
        for example, first, coming in zip(examples, firsts, seconds, strict=True):
            outcome, second = first.result(), coming.result()
            self._told.append((candidate, example, outcome, errand))
            if second is not None:
                self._told.append((second[0], example, second[1], errand))
            found.append((outcome, None if second is None else second[1]))
        return found

    def ask(self, module: Any, asked: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[Any]:
        """Run a DSPy module on the prompt model for each pair of inputs and sampling parameters, all at once."""
        model = self.run_.job.prompt_model
        futures = [self.run_.evaluator.ask(module, inputs, model, **config) for inputs, config in asked]
        predictions: list[Any] = []
        for future in futures:
            try:
                prediction, cost = future.result()
            except BudgetExhausted as error:
                self.run_.cut = f"the proposals were cut short: {error}"
                predictions.append(None)
                continue
            self._told.append(cost.requests)
            predictions.append(prediction)
        return predictions

    def settle(self) -> None:
        """Charge and write down everything, in the order asked; called when the pass is joined."""
        for told in self._told:
            if isinstance(told, tuple):
                self.run_.record(self.stage, *told)
            else:
                charges: Mapping[str, Charge] = told
                self.run_.evaluator.meter.charge(charges)
        self._told.clear()

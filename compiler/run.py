"""Run: the tools of one compile (evaluator, ledger, meter, progress), handed to every pass beside the frozen state."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from ..programs.candidate import Candidate
from .data import Example
from .evaluate import Evaluator
from .ledger import Ledger
from .outcome import Outcome
from .progress import Progress, Snapshot
from .state import Job

LATER = 1
"""The priority of what nobody waits for yet."""


@dataclass
class Run:
    """The tools of one compile.

    Attributes:
        job: The request.
        evaluator: The only spender.
        ledger: The run directory.
        progress: Told what happens, or None.
        notes: Sentences for the artifact and for whoever watches.
        retired: Evaluations that were told.
        flying: Evaluations of the search that are in flight.
        cut: What ended the search that another run of the same request may not meet: seconds, attempts that failed.
    """

    job: Job
    evaluator: Evaluator
    ledger: Ledger
    progress: Progress | None = None
    notes: list[str] = field(default_factory=list)
    cut: str | None = None
    retired: int = 0
    flying: int = 0
    _stage: str = field(default="", init=False)
    _began: float = field(default=0.0, init=False)
    _done: int = field(default=0, init=False)
    _planned: int = field(default=0, init=False)
    _trials: int = field(default=0, init=False)
    _best: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.evaluator.on_done = self._count

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

    def _count(self, outcome: Outcome) -> None:
        self._done += 1

    def show(self) -> None:
        """Show where the compile is."""
        if self.progress is None:
            return
        meter = self.evaluator.meter
        calls, usage = meter.earlier
        tokens = meter.usage.prompt_tokens + meter.usage.completion_tokens
        self.progress.update(
            Snapshot(
                stage=self._stage,
                done=self._done,
                planned=self._planned,
                trials=self._trials,
                best=self._best,
                calls=meter.calls - calls,
                replayed=meter.replayed,
                tokens=tokens - usage.prompt_tokens - usage.completion_tokens,
                seconds=time.monotonic() - self._began,
            )
        )

    def note(self, text: str) -> None:
        """Keep a sentence for the artifact, and show it."""
        if text not in self.notes:
            self.notes.append(text)
            if self.progress is not None:
                self.progress.note(text)

    # What a strategy may spend through (the Runner protocol).

    def run(
        self, candidate: Candidate, examples: Sequence[Example], *, traced: bool = False, teacher: bool = False
    ) -> list[Outcome]:
        """Evaluate a candidate on examples, with the teacher's program and model where asked."""
        target, model = self.job.teacher if teacher else (self.job.target, self.job.model)
        bound = self.evaluator.bound(target, candidate)
        futures = []
        for example in examples:
            futures.append(self.evaluator.submit(target, bound, example, traced=traced, model=model))
        return self.gather(candidate, examples, futures)

    def gather(
        self, candidate: Candidate, examples: Sequence[Example], futures: "Sequence[Future[Outcome]]"
    ) -> list[Outcome]:
        """Return outcomes in the order asked, each charged and written down; on a failure cancel what hasn't begun."""
        outcomes = []
        try:
            for example, future in zip(examples, futures, strict=True):
                outcome = future.result()
                self.record(candidate, example, outcome)
                outcomes.append(outcome)
                self.show()
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        return outcomes

    def record(self, candidate: Candidate, example: Example, outcome: Outcome) -> None:
        """Charge an outcome that retires, and write it to the journal."""
        self.evaluator.meter.charge(outcome.cost.requests)
        self.retired += 1
        self.ledger.append(
            "outcome",
            {
                "stage": self._stage,
                "candidate": candidate.id,
                "example": example.id,
                "cause": outcome.cause,
                "score": outcome.score,
                "feedback": outcome.feedback,
                "calls": outcome.cost.calls,
                "prompt_tokens": outcome.cost.usage.prompt_tokens,
                "completion_tokens": outcome.cost.usage.completion_tokens,
            },
        )

    def ask(self, module: Any, asked: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[Any]:
        """Run a DSPy module on the prompt model for each pair of inputs and sampling parameters, all at once."""
        futures = [self.evaluator.ask(module, inputs, self.job.prompt_model, **config) for inputs, config in asked]
        predictions = []
        for future in futures:
            prediction, cost = future.result()
            self.evaluator.meter.charge(cost.requests)
            predictions.append(prediction)
        return predictions

    def prefetch(self, candidate: Candidate, examples: Sequence[Example]) -> None:
        """Ask for what a later pass will need, whenever there is nothing better to do.

        Nothing is read: the replies wait in the ledger for the pass that asks again, which charges and reports them.
        """
        bound = self.evaluator.bound(self.job.target, candidate)
        for example in examples:
            self.evaluator.submit(self.job.target, bound, example, priority=LATER)

"""A sealed program on the client's loop gives the outcomes that it gives in a thread."""

import json
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest
from vitrify.compiler.compile import _run, prepare
from vitrify.compiler.evaluate import Errand
from vitrify.compiler.ledger import Ledger
from vitrify.compiler.outcome import Malformed, Outcome, Refused

import vitrify
from vitrify.front import resolve_strategy

from .commands import Answers
from .desks import TICKETS, Desk, Route, small
from .server import ScriptedServer
from .test_sharing import Two

GOOD = Answers(TICKETS)


def sometimes_unreadable(body: dict[str, Any]) -> str:
    """Answer some messages with nothing readable, some of them in the second request too."""
    mark = sum(body["messages"][-1]["content"].encode()) % 7
    if mark == 0 or (mark == 1 and "response_format" not in body):
        return "I don't know."
    return GOOD(body)


@contextmanager
def evaluating(program: Any, metric: Any, url: str, folder: Path) -> Any:
    options = small(api_base=url, api_key="k", concurrency=8, cache=False)
    job = prepare(program, TICKETS[:40], metric, "any", resolve_strategy("auto"), vitrify.Budget(), 0, options)
    with Ledger(folder) as ledger:
        run = _run(job, ledger)
        try:
            yield run
        finally:
            run.close(abandon=False)


def outcomes(program: Any, metric: Any, url: str, folder: Path, *, looped: bool) -> list[Outcome]:
    with evaluating(program, metric, url, folder) as run:
        target = run.job.target
        ready = run.evaluator.bound(target, target.spec.baseline)
        assert ready.looped is not None
        if not looped:
            ready = replace(ready, looped=None)
        futures = [run.evaluator.submit(target, ready, row, Errand()) for row in run.job.dataset]
        return [replace(future.result(), prediction=None, seconds=0.0) for future in futures]


def own(example: Any, pred: Any, trace: Any = None) -> vitrify.Score:
    assert isinstance(example, dspy.Example) and isinstance(pred, dspy.Prediction) and trace is None
    assert not threading.current_thread().name.startswith("vitrify any")  # a metric may block: never on the loop
    return vitrify.Score(float(pred.team == example.team), "said " + pred["team"])


@pytest.mark.parametrize("program", [Desk, Two, lambda: dspy.ChainOfThought(Route)], ids=["desk", "two", "bare"])
@pytest.mark.parametrize("metric", ["exact:team", own], ids=["stock", "own"])
def test_outcomes_are_those_of_a_thread(tmp_path: Path, program: Callable[[], Any], metric: Any) -> None:
    with ScriptedServer(sometimes_unreadable) as server:
        on_loop = outcomes(program(), metric, server.url, tmp_path / "loop", looped=True)
        asked = sorted(json.dumps(body, sort_keys=True) for body in server.bodies)
        in_threads = outcomes(program(), metric, server.url, tmp_path / "threads", looped=False)
    assert 40 == len(on_loop)
    assert any(isinstance(outcome, Malformed) for outcome in on_loop)
    assert any(outcome.cost.reparsed for outcome in on_loop)
    for one, other in zip(on_loop, in_threads, strict=True):
        # Only the sentence on what couldn't be read is another.
        if isinstance(one, Malformed) and isinstance(other, Malformed):
            assert replace(other, message="") == replace(one, message="")
        else:
            assert other == one
    bodies = sorted(json.dumps(body, sort_keys=True) for body in server.bodies)
    assert sorted(asked * 2) == bodies


def test_no_thread_is_started_for_a_stock_metric(tmp_path: Path) -> None:
    with ScriptedServer(GOOD) as server, evaluating(Desk(), "exact:team", server.url, tmp_path / "run") as run:
        run.evaluate(run.job.target.spec.baseline, run.job.dataset.examples, Errand())
        names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("vitrify-") and name[8:].isdigit()]


def test_a_refusal_on_the_loop_is_a_refusal(tmp_path: Path) -> None:
    with ScriptedServer(GOOD) as server:
        url = server.url
    with evaluating(Desk(), "exact:team", url, tmp_path / "run") as run:
        run.evaluator.manners = replace(run.evaluator.manners, patience=0.0)
        with pytest.raises(Refused):
            run.evaluate(run.job.target.spec.baseline, run.job.dataset.examples[:1], Errand())


def test_what_only_the_program_can_explain_is_left_to_it(tmp_path: Path) -> None:
    class Wrong(Desk):
        def forward(self, message: str) -> dspy.Prediction:
            found = self.route(message=message)
            return dspy.Prediction(team=found.department)

    with (
        ScriptedServer(GOOD) as server,
        evaluating(Wrong(), "exact:team", server.url, tmp_path / "run") as run,
        pytest.raises(vitrify.WorkError, match="Wrong raised AttributeError on row"),
    ):
        run.evaluate(run.job.target.spec.baseline, run.job.dataset.examples[:1], Errand())

"""Metrics of a compile: what they may return and see, and the models that they ask by themselves."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import pytest
from vitrify.compiler.metric import MetricBug
from vitrify.compiler.outcome import Refused
from vitrify.signatures.errors import MetricError, WorkError

import vitrify

from .desks import TICKETS, Counting, Desk, small


def test_the_metric_sees_the_trace_while_bootstrapping_alone(compiled: Callable[..., vitrify.Artifact]) -> None:
    seen: list[tuple[str, bool]] = []

    def metric(example: Any, pred: Any, trace: Any = None) -> bool:
        seen.append((example.message, trace is not None))
        if trace is not None:
            (step,) = trace
            assert isinstance(step[0], dspy.Predict)
            assert step[1]["message"] == example.message
            assert step[2].team == pred.team
        return bool(pred.team == example.team)

    artifact = compiled(metric=metric)
    traced = {message for message, with_trace in seen if with_trace}
    assert artifact.provenance.rows["train"] == len(traced)
    assert len({message for message, _ in seen}) == 150


@pytest.mark.parametrize(
    "value",
    [
        lambda right: right,
        lambda right: int(right),
        lambda right: float(right),
        lambda right: vitrify.Score(float(right), "look at the verb"),
        lambda right: dspy.Prediction(score=float(right), feedback="look at the verb"),
        lambda right: {"score": right, "feedback": "look at the verb"},
    ],
)
def test_what_a_metric_may_return(compiled: Callable[..., vitrify.Artifact], value: Callable[[bool], Any]) -> None:
    artifact = compiled(metric=lambda example, pred, trace=None: value(pred.team == example.team))
    assert compiled().evidence.baseline == artifact.evidence.baseline


def test_a_feedback_metric_in_gepas_form(compiled: Callable[..., vitrify.Artifact]) -> None:
    def metric(gold: Any, pred: Any, trace: Any, pred_name: Any, pred_trace: Any) -> dspy.Prediction:
        return dspy.Prediction(score=float(pred.team == gold.team), feedback="look at the verb")

    assert compiled().evidence.baseline == compiled(metric=metric).evidence.baseline


@pytest.mark.parametrize("value", ["yes", None, float("nan"), [1]])
def test_what_a_metric_may_not_return(compiled: Callable[..., vitrify.Artifact], value: Any) -> None:
    with pytest.raises(MetricError, match="metric"):
        compiled(metric=lambda example, pred, trace=None: value)


def test_a_metric_that_raises_stops_at_the_first_and_names_the_row(compiled: Callable[..., vitrify.Artifact]) -> None:
    calls: list[str] = []

    def metric(example: Any, pred: Any, trace: Any = None) -> bool:
        calls.append(example.message)
        raise KeyError("urgency")

    with pytest.raises(MetricBug, match=r"KeyError on row \d+"):
        compiled(metric=metric)
    assert len(calls) <= 14  # what was under way, and nothing after it


def test_a_metric_may_ask_a_model_and_its_calls_are_metered_and_kept(
    compiled: Callable[..., vitrify.Artifact], tmp_path: Path
) -> None:
    judge = dspy.Predict("message, team -> fits: bool")

    def metric(example: Any, pred: Any, trace: Any = None) -> bool:
        return bool(judge(message=example.message, team=pred.team).fits)

    plain, model = compiled(), Counting()
    judged = compiled(metric=metric, lm=model, run_dir=tmp_path / "judged")
    assert judged.provenance.calls > plain.provenance.calls
    assert judged.provenance.calls == len(set(model.asked))
    again = Counting()
    compiled(metric=metric, lm=again, run_dir=tmp_path / "judged")
    assert [] == again.asked


class Elsewhere:
    """A DSPy engine of the user's own: another server, counting what it is asked."""

    def __init__(self, fails: bool = False) -> None:
        self.asked = 0
        self.fails = fails

    def complete(self, request: Any) -> Any:
        self.asked += 1
        if self.fails:
            raise dspy.lm15.AuthError("Bearer sk-SECRET is wrong")
        text = "[[ ## fits ## ]]\nTrue\n\n[[ ## team ## ]]\nstore\n\n[[ ## completed ## ]]"
        part = dspy.lm15.Message.assistant([dspy.lm15.TextPart(text)])
        usage = dspy.lm15.Usage(input_tokens=3, output_tokens=2, total_tokens=5)
        return dspy.lm15.Response(id=None, model="judge", message=part, finish_reason="stop", usage=usage)


@pytest.mark.parametrize("how", ["judge", "context", "call", "raw"])
def test_language_models_that_the_users_code_calls_by_itself_are_metered_and_kept(
    compiled: Callable[..., vitrify.Artifact], tmp_path: Path, how: str
) -> None:
    engine = Elsewhere()
    other = dspy.LM("judge", engine=engine, cache=False)
    judge = dspy.Predict("message, team -> fits: bool")
    judge.lm = other

    class Wilful(Desk):
        def forward(self, message: str) -> dspy.Prediction:
            if how == "context":
                with dspy.context(lm=other):
                    return self.route(message=message)
            if how == "call":
                return self.route(message=message, lm=other)
            if how == "raw":
                other(f"What of {message}?")
            return self.route(message=message)

    def metric(example: Any, pred: Any, trace: Any = None) -> bool:
        return bool(judge(message=example.message, team=pred.team).fits) if how == "judge" else pred.team == "store"

    model = Counting()
    more: dict[str, Any] = {"data": TICKETS[:60], "metric": metric, "run_dir": tmp_path / "run"}
    artifact = compiled(Wilful(), lm=model, **more)
    assert engine.asked > 0
    assert artifact.provenance.calls == len(set(model.asked)) + engine.asked
    asked, again = engine.asked, Counting()
    assert artifact.to_bytes() == compiled(Wilful(), lm=again, **more).to_bytes()
    assert asked == engine.asked
    assert [] == again.asked


def test_the_method_is_put_back(compiled: Callable[..., vitrify.Artifact]) -> None:
    before = dspy.BaseLM.__call__, dspy.BaseLM.acall
    compiled(data=TICKETS[:60])
    assert before == (dspy.BaseLM.__call__, dspy.BaseLM.acall)


def test_calls_from_plain_threads_are_metered_and_those_of_a_pool_that_stays_are_refused(
    compiled: Callable[..., vitrify.Artifact], tmp_path: Path
) -> None:
    class Threaded(Desk):
        pool: Any = None

        def forward(self, message: str) -> dspy.Prediction:
            with self.pool or ThreadPoolExecutor(1) as pool:
                return pool.submit(super().forward, message=message).result()

    model = Counting()
    artifact = compiled(Threaded(), lm=model, run_dir=tmp_path / "threads")
    assert artifact.provenance.calls == len(set(model.asked))
    assert compiled().evidence.baseline == artifact.evidence.baseline

    class Kept(ThreadPoolExecutor):
        def __exit__(self, *_: Any) -> None:
            """Stay."""

    staying = Threaded()
    staying.pool = Kept(1)
    with pytest.raises(WorkError, match="outlives its evaluation"):
        compiled(staying, run_dir=tmp_path / "kept")
    assert threading.Thread.start.__module__ == "threading"


def test_a_judge_that_is_refused_is_no_bug_of_the_metrics(compiled: Callable[..., vitrify.Artifact]) -> None:
    judge = dspy.Predict("message, team -> fits: bool")
    judge.lm = dspy.LM("judge", engine=Elsewhere(fails=True), cache=False)
    with pytest.raises(Refused, match="refuses the key") as caught:
        compiled(metric=lambda example, pred, trace=None: judge(message=example.message, team=pred.team).fits)
    assert "sk-SECRET" not in str(caught.value)


def test_a_score_below_what_a_failure_counts_is_refused_and_may_be_said(
    compiled: Callable[..., vitrify.Artifact],
) -> None:
    def loss(example: Any, pred: Any, trace: Any = None) -> float:
        return -float(pred.team != example.team)

    with pytest.raises(MetricError, match="failure_score"):
        compiled(metric=loss)
    artifact = compiled(metric=loss, options=small(failure_score=-1.0))
    assert -1 <= artifact.evidence.baseline <= 0
    assert "%" not in str(artifact.evidence).partition("rows")[0]


def test_a_graded_metric_on_a_scale_of_its_own(compiled: Callable[..., vitrify.Artifact]) -> None:
    artifact = compiled(metric=lambda example, pred, trace=None: 80.0 if pred.team == example.team else 3.0)
    assert 3 <= artifact.evidence.baseline <= 80
    shown = [demo for record in artifact.predictors for demo in record.demos]
    by_message = {row["message"]: row["team"] for row in TICKETS}
    assert all(by_message[str(demo["message"])] == demo["team"] for demo in shown)


def test_a_system_error_of_the_parser_is_no_bug_of_the_programs(compiled: Callable[..., vitrify.Artifact]) -> None:
    """CPython 3.11 raises one now and then where threads parse Python at once (gh-106905)."""
    seen: set[str] = set()

    class Flaky(Desk):
        def forward(self, message: str) -> dspy.Prediction:
            if message not in seen:
                seen.add(message)
                raise SystemError("AST constructor recursion depth mismatch")
            return super().forward(message=message)

    assert compiled().evidence.baseline == compiled(Flaky()).evidence.baseline

    class Broken(Desk):
        def forward(self, message: str) -> dspy.Prediction:
            raise SystemError("always")

    with pytest.raises(WorkError, match="SystemError"):
        compiled(Broken())

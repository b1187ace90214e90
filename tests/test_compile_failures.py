"""What goes wrong in a compile: programs, models, requests, budgets."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from vitrify.compiler.outcome import ProgramBug, Refused
from vitrify.programs.lm import LMError, Reply, Request
from vitrify.signatures.errors import DataError, MetricError, ProgramError, RequestError

import vitrify

from .desks import Counting, Desk, small


def test_a_program_that_raises_is_named_with_its_row(compiled: Callable[..., vitrify.Artifact]) -> None:
    class Broken(Desk):
        def forward(self, message: str) -> dspy.Prediction:
            return self.route(message=message).nothing

    with pytest.raises(ProgramBug, match=r"Broken raised AttributeError on row \d+"):
        compiled(Broken())


def test_a_refusal_that_the_program_swallows_is_still_no_score(compiled: Callable[..., vitrify.Artifact]) -> None:
    class Careless(Desk):
        def forward(self, message: str) -> dspy.Prediction:
            try:
                return self.route(message=message)
            except Exception:
                return dspy.Prediction(team="delivery")

    with pytest.raises(Refused):
        compiled(Careless(), lm=Counting(dies_at=40))


def test_a_wrong_key_is_a_wrong_request(compiled: Callable[..., vitrify.Artifact]) -> None:
    model = Counting(dies_at=0, cause="auth")
    with pytest.raises(Refused) as caught:
        compiled(lm=model)
    assert 2 == caught.value.exit_code
    assert 1 == len(model.asked)


def test_unreadable_replies_are_failures_and_counted(compiled: Callable[..., vitrify.Artifact]) -> None:
    class Mumbling(Counting):
        def complete(self, request: Request) -> Reply:
            reply = super().complete(request)
            # By the row, so that the second request, in another format, fares no better.
            said = str(request.messages[-1]["content"]).partition("\n\n")[0]
            hidden = len(said) % 3 == 0
            return Reply("well, hard to say", reply.usage, reply.model) if hidden else reply

    artifact = compiled(lm=Mumbling())
    assert any("no readable values" in note for note in artifact.notes)
    assert artifact.provenance.reparsed > 0


def test_a_prompt_that_does_not_fit_counts_against_its_candidate_alone(
    compiled: Callable[..., vitrify.Artifact],
) -> None:
    class Short(Counting):
        def complete(self, request: Request) -> Reply:
            if len(request.messages) > 6:
                raise LMError("too long", cause="context_overflow")
            return super().complete(request)

    artifact = compiled(lm=Short())
    assert all(len(record.demos) <= 2 for record in artifact.predictors)


@pytest.mark.parametrize(
    ("program", "error", "says"),
    [
        (dspy.Module(), ProgramError, "no predictors"),
        (Desk, ProgramError, "not the class"),
        ("Desk", ProgramError, "dspy.Module"),
    ],
)
def test_programs_that_cannot_be_compiled(
    compiled: Callable[..., vitrify.Artifact], program: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        compiled(program)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"data": [{"mesage": "a", "team": "store"}] * 3}, DataError, "message"),
        ({"data": []}, DataError, "at least one row"),
        ({"metric": "exact:taem"}, DataError, "did you mean `team`"),
        ({"metric": "exakt:team"}, MetricError, "exact"),
        ({"lm": "gpt-4o-mini"}, RequestError, "openai/gpt-4o-mini"),
        ({"seed": "0"}, RequestError, "whole number"),
        ({"budget": vitrify.Budget(calls=10)}, RequestError, "at least"),
        ({"lm": "embedded", "budget": vitrify.Budget(calls=100)}, RequestError, "raise it, or give fewer rows"),
    ],
)
def test_requests_that_are_wrong_cost_nothing(
    compiled: Callable[..., vitrify.Artifact], change: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        compiled(**change)


def test_options_and_budgets_say_their_rules() -> None:
    with pytest.raises(RequestError, match="effort is light, medium or heavy"):
        vitrify.Options(effort="hard")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="`calls` is a whole number"):
        vitrify.Budget(calls=-1)
    with pytest.raises(RequestError, match="`dollars` is a number"):
        vitrify.Budget(dollars=float("nan"))
    with pytest.raises(RequestError, match="seconds are the run's"):
        vitrify.Budget(prompt=vitrify.Budget(seconds=3))


@pytest.mark.parametrize("calls", [330, 500, 900])
def test_a_budget_in_calls_is_kept(compiled: Callable[..., vitrify.Artifact], calls: int) -> None:
    model = Counting()
    artifact = compiled(lm=model, budget=vitrify.Budget(calls=calls))
    assert len(model.asked) <= calls
    assert artifact.provenance.calls == len(set(model.asked))


def test_a_budget_in_tokens_ends_the_search_and_certifies(compiled: Callable[..., vitrify.Artifact]) -> None:
    free = compiled()
    spent = free.provenance.prompt_tokens + free.provenance.completion_tokens
    less = compiled(budget=vitrify.Budget(tokens=spent // 2))
    assert less.selection.evaluations < free.selection.evaluations
    assert free.evidence.n == less.evidence.n


def test_a_budget_in_dollars_needs_a_price(compiled: Callable[..., vitrify.Artifact]) -> None:
    class Unknown(Counting):
        name = "nobody/knows"

    with pytest.raises(RequestError, match="Options\\(price="):
        compiled(lm=Unknown(), budget=vitrify.Budget(dollars=1.0))
    artifact = compiled(lm=Unknown(), budget=vitrify.Budget(dollars=1.0), options=small(price=(0.15, 0.6)))
    assert artifact.provenance.dollars is not None
    assert 0 < artifact.provenance.dollars < 1.0


def test_a_budget_in_seconds_is_said_not_to_reproduce(compiled: Callable[..., vitrify.Artifact]) -> None:
    artifact = compiled(budget=vitrify.Budget(seconds=0.0))
    assert not artifact.reproducible
    assert "baseline" == artifact.selection.shipped


def test_time_that_was_up_at_once_is_said(compiled: Callable[..., vitrify.Artifact]) -> None:
    assert "0 seconds are over" in compiled(budget=vitrify.Budget(seconds=0.0)).selection.reason


def test_options_of_the_wrong_kind_are_requests_that_are_wrong(compiled: Callable[..., vitrify.Artifact]) -> None:
    wrong: tuple[tuple[str, Any], ...] = (
        ("concurrency", "4"),
        ("accept", "x"),
        ("price", (1,)),
        ("group", 3),
        ("guard", None),
        ("max_demos", 2.5),
        ("calls_per_example", 0),
        ("temperature", "hot"),
    )
    for name, value in wrong:
        with pytest.raises(RequestError, match=f"`{name}"):
            vitrify.Options(**{name: value})
    with pytest.raises(RequestError, match="vitrify.Budget"):
        compiled(budget=100)


def test_attempts_that_failed_count_across_resumes(compiled: Callable[..., vitrify.Artifact], tmp_path: Path) -> None:
    served = 0
    for _ in range(12):
        mortal = Counting(dies_at=40)
        with contextlib.suppress(vitrify.WorkError):
            compiled(lm=mortal, run_dir=tmp_path / "run", budget=vitrify.Budget(calls=330))
        served += len(mortal.asked)
    assert 100 < served <= 330

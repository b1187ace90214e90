"""compile() from end to end on the embedded model: what it promises about bytes, data, metrics and failures."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest
from vitrify.compiler.metric import MetricBug
from vitrify.compiler.outcome import ProgramBug, Refused
from vitrify.programs.embedded import Embedded
from vitrify.programs.lm import LMError, Reply, Request
from vitrify.signatures.errors import ArtifactError, DataError, MetricError, ProgramError, RequestError

import vitrify

ROOT = Path(__file__).resolve().parent.parent
TICKETS = [json.loads(line) for line in (ROOT / "examples/helpdesk/tickets.jsonl").read_text().splitlines()]
Team = Literal["delivery", "returns", "billing", "account", "product", "warranty", "store", "privacy"]


class Route(dspy.Signature):
    """Find the team that should answer a customer's message."""

    message: str = dspy.InputField()
    team: Team = dspy.OutputField()


class Desk(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.route = dspy.Predict(Route)

    def forward(self, message: str) -> dspy.Prediction:
        return self.route(message=message)


class Counting(Embedded):
    """The embedded model, counting what it is asked; after `dies_at` requests its server is gone."""

    def __init__(self, dies_at: int | None = None, cause: Any = "server") -> None:
        super().__init__()
        self.asked: list[str] = []
        self.dies_at = dies_at
        self.cause = cause

    def complete(self, request: Request) -> Reply:
        self.asked.append(request.key)
        if self.dies_at is not None and len(self.asked) > self.dies_at:
            raise LMError("the server is gone", cause=self.cause, retryable=False)
        return super().complete(request)


def small(**more: Any) -> vitrify.Options:
    return vitrify.Options(**{"instructions": 2, "demo_sets": 3, "max_demos": 8, "concurrency": 4, **more})


@pytest.fixture
def compiled(tmp_path: Path) -> Callable[..., vitrify.Artifact]:
    def run(program: Any = None, data: Any = None, metric: Any = "exact:team", **more: Any) -> vitrify.Artifact:
        more.setdefault("lm", "embedded")
        more.setdefault("options", small())
        more.setdefault("run_dir", tmp_path / f"run{len(list(tmp_path.iterdir()))}")
        return vitrify.compile(program or Desk(), data if data is not None else TICKETS[:150], metric, **more)

    return run


def test_the_compiled_program_is_better_and_says_by_how_much(compiled: Callable[..., vitrify.Artifact]) -> None:
    artifact = compiled(data=TICKETS, options=vitrify.Options())
    evidence = artifact.evidence
    assert evidence.improved
    assert 144 == evidence.n
    assert evidence.interval[0] < evidence.difference < evidence.interval[1]
    assert evidence.interval[0] > 0.1
    assert abs(evidence.compiled - evidence.baseline - evidence.difference) < 1e-9
    assert "compiled" == artifact.selection.shipped
    assert "points" in str(evidence)


@pytest.mark.parametrize("concurrency", [1, 7, 64])
def test_same_inputs_same_bytes_at_any_concurrency(compiled: Callable[..., vitrify.Artifact], concurrency: int) -> None:
    reference = compiled(options=small(concurrency=3)).to_bytes()
    assert reference == compiled(options=small(concurrency=concurrency)).to_bytes()


def test_another_seed_is_another_compile(compiled: Callable[..., vitrify.Artifact]) -> None:
    assert compiled(seed=0).to_bytes() != compiled(seed=1).to_bytes()


def test_the_order_of_the_rows_in_the_file_does_not_matter_to_the_sets(
    compiled: Callable[..., vitrify.Artifact],
) -> None:
    first, second = compiled(), compiled(data=list(reversed(TICKETS[:150])))
    assert first.provenance.data_sha256 == second.provenance.data_sha256
    assert first.evidence == second.evidence


def test_a_run_goes_on_where_it_stopped_and_pays_nothing_twice(
    compiled: Callable[..., vitrify.Artifact], tmp_path: Path
) -> None:
    whole = Counting()
    reference = compiled(lm=whole, run_dir=tmp_path / "whole")
    run_dir = tmp_path / "broken"
    paid: set[str] = set()
    for dies_at in (3, 60, 200):
        mortal = Counting(dies_at)
        with pytest.raises(Refused, match="the server is gone"):
            compiled(lm=mortal, run_dir=run_dir)
        answered = set(mortal.asked[:dies_at])
        assert not paid & answered
        paid |= answered
    last = Counting()
    assert reference.to_bytes() == compiled(lm=last, run_dir=run_dir).to_bytes()
    assert not paid & set(last.asked)
    assert set(whole.asked) == paid | set(last.asked)
    again = Counting()
    compiled(lm=again, run_dir=run_dir)
    assert [] == again.asked


def test_two_compiles_in_one_run_directory(compiled: Callable[..., vitrify.Artifact], tmp_path: Path) -> None:
    from vitrify.compiler.ledger import Ledger

    with Ledger(tmp_path / "shared"), pytest.raises(RequestError, match="in use by another compile"):
        compiled(run_dir=tmp_path / "shared")


def test_the_program_is_left_as_it_was(compiled: Callable[..., vitrify.Artifact]) -> None:
    program = Desk()
    before = program.dump_state()
    compiled(program)
    assert before == program.dump_state()
    assert type(program.route) is dspy.Predict


def test_a_bare_predictor_and_a_string_signature(compiled: Callable[..., vitrify.Artifact], tmp_path: Path) -> None:
    artifact = compiled(dspy.ChainOfThought("message -> team"))
    assert "sealed" == artifact.program.kind
    loaded = vitrify.load(artifact.save(tmp_path / "a.json"))
    assert loaded(message="where is my parcel").team


def test_rows_may_be_dspy_examples(compiled: Callable[..., vitrify.Artifact]) -> None:
    rows = [dspy.Example(**row).with_inputs("message") for row in TICKETS[:150]]
    assert compiled(data=rows).evidence == compiled().evidence


def test_rows_without_labels_serve_where_the_metric_needs_none(compiled: Callable[..., vitrify.Artifact]) -> None:
    rows = [{"message": row["message"]} for row in TICKETS[:80]]
    artifact = compiled(data=rows, metric=lambda example, pred, trace=None: len(pred.team) > 5)
    assert 0 <= artifact.evidence.baseline <= 1


# Metrics.


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
    assert 1 == len(calls)


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


# Programs and models that fail.


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
    with pytest.raises(RequestError, match="`calls` is a number"):
        vitrify.Budget(calls=-1)


# Budget.


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


# Teachers, starts, own sets, formats.


def test_a_teacher_bootstraps(compiled: Callable[..., vitrify.Artifact]) -> None:
    teacher = Desk()
    teacher.route.demos = [dspy.Example(message=r["message"], team=r["team"]) for r in TICKETS[200:240]]
    artifact = compiled(options=small(teacher=teacher))
    assert artifact.evidence.n == compiled().evidence.n
    with pytest.raises(ProgramError, match="`teacher`"):
        compiled(options=small(teacher=dspy.Predict("message -> team")))


def test_an_earlier_artifact_is_where_a_later_compile_starts(
    compiled: Callable[..., vitrify.Artifact], tmp_path: Path
) -> None:
    earlier = compiled(data=TICKETS, options=vitrify.Options())
    later = compiled(
        data=TICKETS, options=small(start=earlier.save(tmp_path / "earlier.json"), instructions=0, demo_sets=0)
    )
    assert earlier.predictors[0].demos == later.predictors[0].demos
    assert "start: of the earlier artifact" == later.predictors[0].methods["demos"]
    other = compiled(dspy.Predict("message -> team"))
    with pytest.raises(ArtifactError, match="`start`"):
        compiled(options=small(start=other))


def test_own_sets_are_used_and_kept_apart(compiled: Callable[..., vitrify.Artifact]) -> None:
    artifact = compiled(data=TICKETS[:150], options=small(test=TICKETS[140:260]))
    assert 120 == artifact.provenance.rows["test"]
    assert artifact.provenance.rows["train"] + artifact.provenance.rows["select"] <= 140


def test_formats_are_a_slot_where_they_are_asked_for(compiled: Callable[..., vitrify.Artifact]) -> None:
    assert "route.format" not in compiled().selection.slots
    assert 2 == compiled(options=small(formats=("json",))).selection.slots["route.format"]


def test_too_few_rows_for_a_sealed_claim(compiled: Callable[..., vitrify.Artifact]) -> None:
    artifact = compiled(data=TICKETS[:30])
    assert not artifact.evidence.sealed
    assert not artifact.evidence.improved
    assert artifact.notes


def test_nothing_secret_is_written(compiled: Callable[..., vitrify.Artifact], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    artifact = compiled(run_dir=run_dir, options=small(api_key="sk-verysecret", api_base=None))
    artifact.save(tmp_path / "a.json")
    for file in [*run_dir.iterdir(), tmp_path / "a.json"]:
        assert b"sk-verysecret" not in file.read_bytes()


def test_predictors_frozen_by_dspy_are_bound_but_not_searched(compiled: Callable[..., vitrify.Artifact]) -> None:
    class Two(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = Desk()
            self.first._compiled = True
            self.second = dspy.Predict("message, team -> reason")

        def forward(self, message: str) -> dspy.Prediction:
            team = self.first(message=message).team
            return dspy.Prediction(team=team, reason=self.second(message=message, team=team).reason)

    artifact = compiled(Two(), data=TICKETS[:80])
    assert {"first.route", "second"} == {record.path for record in artifact.predictors}
    assert all(name.startswith("second.") for name in artifact.selection.slots)


def test_async_programs(compiled: Callable[..., vitrify.Artifact]) -> None:
    class Later(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.route = dspy.Predict(Route)

        async def aforward(self, message: str) -> dspy.Prediction:
            return await self.route.acall(message=message)

    # Proposals see the program's source, so only the baseline is the same.
    assert compiled(Later()).evidence.baseline == compiled().evidence.baseline


def test_labels_that_cannot_be_answered_and_outputs_that_are_not_scored_are_said(
    compiled: Callable[..., vitrify.Artifact],
) -> None:
    rows = [{**row, "team": "shipping" if row["team"] == "delivery" else row["team"]} for row in TICKETS[:150]]
    odd = sum(row["team"] == "shipping" for row in rows)
    artifact = compiled(data=rows)
    assert any(f"{odd} of 150 rows have a `team` that route can't answer" in note for note in artifact.notes)
    assert not any(demo["team"] == "shipping" for record in artifact.predictors for demo in record.demos)
    both = compiled(dspy.Predict("message -> team, urgency"), data=TICKETS[:80], metric="exact:team")
    assert any("doesn't score `urgency`" in note for note in both.notes)


def test_a_chain_of_thought_gains_from_labels(compiled: Callable[..., vitrify.Artifact]) -> None:
    artifact = compiled(dspy.ChainOfThought(Route), data=TICKETS, options=vitrify.Options())
    assert artifact.evidence.improved
    assert artifact.predictors[0].demos


def test_three_rows_to_choose_by_choose_nothing(compiled: Callable[..., vitrify.Artifact]) -> None:
    for seed in range(4):
        assert "baseline" == compiled(data=TICKETS[:10], seed=seed).selection.shipped


def test_a_class_of_another_name_is_another_program(compiled: Callable[..., vitrify.Artifact], tmp_path: Path) -> None:
    class Branching(Desk):
        def forward(self, message: str) -> dspy.Prediction:
            return self.route(message=message) if message else self.route(message="nothing")

    file = compiled(Branching(), data=TICKETS[:80]).save(tmp_path / "a.json")
    assert vitrify.load(file, program=Branching())(message="where is it").team
    with pytest.raises(ArtifactError, match="class Branching: the program is a Desk"):
        vitrify.load(file, program=Desk())


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


def test_a_judge_that_is_refused_is_no_bug_of_the_metrics(compiled: Callable[..., vitrify.Artifact]) -> None:
    judge = dspy.Predict("message, team -> fits: bool")
    judge.lm = dspy.LM("judge", engine=Elsewhere(fails=True), cache=False)
    with pytest.raises(Refused, match="refuses the key") as caught:
        compiled(metric=lambda example, pred, trace=None: judge(message=example.message, team=pred.team).fits)
    assert "sk-SECRET" not in str(caught.value)


def test_rows_that_the_start_shows_are_not_judged(compiled: Callable[..., vitrify.Artifact], tmp_path: Path) -> None:
    earlier = compiled(data=TICKETS[:160], seed=0, options=vitrify.Options()).save(tmp_path / "earlier.json")
    later = compiled(data=TICKETS[:160], seed=1, options=small(start=earlier))
    assert any("moved out of the select and test sets" in note for note in later.notes)
    shown = {row["message"] for row in TICKETS[:20]}
    program = Desk()
    program.route.demos = [dspy.Example(message=row["message"], team=row["team"]) for row in TICKETS[:20]]
    artifact = compiled(program, data=TICKETS[:160])
    assert any(note.startswith(f"{len(shown)} rows") or "moved out" in note for note in artifact.notes)
    assert artifact.provenance.rows["select"] + artifact.provenance.rows["test"] <= 140


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

"""compile() from end to end on the embedded model: bytes, data, programs, where it starts from."""

from collections.abc import Callable
from pathlib import Path

import dspy
import pytest
from vitrify.compiler.outcome import Refused
from vitrify.signatures.errors import ArtifactError, ProgramError, RequestError

import vitrify

from .desks import TICKETS, Counting, Desk, Route, small


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

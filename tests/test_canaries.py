"""Canaries: what a library writes differently is an error with a diff, where a program is loaded."""

from pathlib import Path
from typing import Any

import dspy
import pytest
from vitrify.programs.artifact import Artifact, read_artifact
from vitrify.programs.canaries import MOST_TEXT, check_canaries, difference, dspy_canary, planned_canary
from vitrify.programs.embedded import Embedded
from vitrify.programs.models import Model
from vitrify.programs.runtime import run_artifact
from vitrify.signatures.errors import ArtifactError
from vitrify.signatures.prompt import PromptPlan
from vitrify.signatures.values import render_value

import vitrify
from tests.conftest import compile_small
from tests.server import ScriptedServer
from tests.test_runtime import reseal

GOLDEN = Path(__file__).parent / "golden" / "vitrify-1"


class Talk(dspy.Module):
    """A predictor that only DSPy renders: its history isn't in the grammar of types."""

    def __init__(self) -> None:
        super().__init__()
        self.reply = dspy.Predict(
            dspy.Signature("message, history: dspy.History -> team", "Find the team that should answer.")
        )

    def forward(self, message: str) -> Any:
        return self.reply(message=message, history=dspy.History(messages=[]))


class Plain(dspy.Module):
    """A predictor of plain types under an adapter of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.route = dspy.Predict("message -> team")

    def forward(self, message: str) -> Any:
        return self.route(message=message)


@pytest.fixture(scope="module")
def fallen_back(tickets: Any, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    rows = [{"message": row["message"], "team": row["team"]} for row in tickets[:60]]
    made: Artifact = compile_small(Talk(), rows, "exact:team", tmp_path_factory.mktemp("run"))
    return made


@pytest.fixture(scope="module")
def under_xml(tickets: Any, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    rows = [{"message": row["message"], "team": row["team"]} for row in tickets[:60]]
    options: dict[str, Any] = {"instructions": 0, "demo_sets": 2, "concurrency": 2, "cache": False}
    answer = f"<team>\n{rows[0]['team']}\n</team>"
    with ScriptedServer(lambda body: answer) as server, dspy.context(adapter=dspy.XMLAdapter()):
        return vitrify.compile(
            Plain(), rows, "exact:team", lm="openai/scripted", run_dir=tmp_path_factory.mktemp("run"),
            options=vitrify.Options(api_base=server.url, api_key="none", **options), budget=vitrify.Budget(calls=600),
        )  # fmt: skip


def run(artifact: Artifact, program: Any = None) -> Any:
    return run_artifact(artifact, Model(Embedded()), program=program, name="desk.json")


def refusal(artifact: Artifact, program: Any = None) -> str:
    with pytest.raises(ArtifactError) as caught:
        run(artifact, program)
    return str(caught.value)


# What DSPy renders ---------------------------------------------------------------------------------------------------


def test_a_predictor_that_dspy_runs_has_canaries_with_all_of_its_messages(fallen_back: Artifact) -> None:
    (record,) = fallen_back.predictors
    assert record.plan is None
    assert fallen_back.canaries
    for canary in fallen_back.canaries:
        assert ["system", "user"] == [canary.messages[0].role, canary.messages[-1].role]
        assert record.instruction.splitlines()[0] in canary.messages[0].content
    assert run(fallen_back, Talk())(message="Where is my parcel?").team


def test_an_upgrade_of_dspy_that_changes_a_prompt_is_an_error_with_a_diff(
    fallen_back: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgraded = dspy.ChatAdapter.format_task_description

    def kinder(self: Any, signature: Any) -> str:
        return f"{upgraded(self, signature)}\nBe kind."

    monkeypatch.setattr(dspy.ChatAdapter, "format_task_description", kinder)
    said = refusal(fallen_back, Talk())
    first, *diff = said.splitlines()
    assert first.startswith("desk.json: reply renders other messages than when it was compiled: `what is measured is")
    version = fallen_back.provenance.versions["dspy"]
    assert f"install the recorded version ({version}), or compile again" in first
    assert ["  --- compiled", "  +++ now"] == diff[:2]
    assert "  +Be kind." in diff
    assert not any(line.startswith("  -") for line in diff[2:])


def test_an_upgrade_of_dspy_that_fails_says_so(fallen_back: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: Any, *args: Any, **more: Any) -> Any:
        raise AttributeError("format is now called \x1b[2Jrender")

    monkeypatch.setattr(dspy.ChatAdapter, "format", gone)
    said = refusal(fallen_back, Talk())
    assert "DSPy no longer renders the prompt of reply (AttributeError: format is now called \\x1b[2Jrender)" in said


def test_an_adapter_of_the_users_own_is_guarded_with_the_inputs(
    under_xml: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all(canary.inputs["message"] in canary.messages[-1].content for canary in under_xml.canaries)
    assert under_xml.canaries
    with dspy.context(adapter=dspy.XMLAdapter()):
        run(under_xml, Plain())
        monkeypatch.setattr(dspy.XMLAdapter, "user_message_output_requirements", lambda self, signature: "In XML.")
        said = refusal(under_xml, Plain())
    assert "  +In XML." in said


def test_what_is_written_differently_in_another_process_is_no_canary() -> None:
    predictor, adapter = Plain().route, dspy.ChatAdapter()
    assert dspy_canary("route", predictor, adapter, {"message": "a"}) is not None
    for odd in ({"a", "b"}, object(), dspy.History(messages=[])):
        predictor.demos = [dspy.Example(message="a", team=odd)]
        assert dspy_canary("route", predictor, adapter, {"message": "a"}) is None
    predictor.demos = []
    predictor.signature = predictor.signature.with_instructions(f"Like {object()}.")
    assert dspy_canary("route", predictor, adapter, {}) is None

    class Failing(dspy.ChatAdapter):
        def format(self, *args: Any, **more: Any) -> Any:
            raise RuntimeError

    assert dspy_canary("route", Plain().route, Failing(), {}) is None


# What a plan renders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["helpdesk", "orders-chat", "orders-json"])
def test_every_sealed_golden_file_has_canaries_that_hold(name: str) -> None:
    artifact = read_artifact(GOLDEN / f"{name}.artifact.json")
    assert artifact.canaries
    check_canaries(artifact, "x")


def test_values_that_a_library_writes_differently_are_an_error_with_a_diff(monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = read_artifact(GOLDEN / "orders-chat.artifact.json")
    upgraded = render_value

    def spaced(value: Any, *, text_field: bool) -> str:
        return upgraded(value, text_field=text_field).replace('", "', '","')

    monkeypatch.setattr("vitrify.signatures.prompt.render_value", spaced)
    said = refusal(artifact)
    assert "read renders other messages than when it was compiled" in said.splitlines()[0]
    assert f"pydantic) has changed: install the recorded version ({artifact.provenance.versions['pydantic']})" in said
    assert '  -["one", "two\\nlines"]' in said.splitlines()
    assert '  +["one","two\\nlines"]' in said.splitlines()


def test_a_plan_that_comes_out_differently_is_an_error_with_a_diff(tickets: Any) -> None:
    from tests.golden.programs import Gate

    def edit(data: Any) -> None:
        data["predictors"][0]["plan"]["messages"][0]["content"] += "\nBe kind."
        data["canaries"] = []

    artifact = reseal(read_artifact(GOLDEN / "unsealed.artifact.json"), edit)
    said = refusal(artifact, Gate())
    assert "ask renders another prompt than when it was compiled" in said.splitlines()[0]
    assert "  -Be kind." in said.splitlines()


def test_the_recorded_messages_are_those_that_the_plan_does_not_hold() -> None:
    artifact = read_artifact(GOLDEN / "helpdesk.artifact.json")
    for canary in artifact.canaries:
        (record,) = [item for item in artifact.predictors if item.path == canary.path]
        assert record.plan is not None
        messages = PromptPlan.from_json(record.plan).render(canary.inputs)
        assert [item.to_json() for item in canary.messages] == messages[-1:]


def test_no_canary_of_what_a_file_cannot_hold() -> None:
    artifact = read_artifact(GOLDEN / "helpdesk.artifact.json")
    plan = artifact.predictors[0].plan
    assert plan is not None
    read = PromptPlan.from_json(plan)
    assert planned_canary("triage", read, {"message": "a"}) is not None
    for value in ("\ud800", "<<CUSTOM-TYPE-START-IDENTIFIER>>", "x" * MOST_TEXT, [1]):
        assert planned_canary("triage", read, {"message": value}) is None


def test_a_diff_has_an_end_and_no_control_characters() -> None:
    before = [{"role": "user", "content": "\n".join(f"line {n}" for n in range(500))}]
    after = [{"role": "user", "content": "\n".join(f"\x1b[2J{n}" + "x" * 1000 for n in range(500))}]
    lines = difference(before, after).splitlines()
    assert 41 == len(lines)
    assert all(len(line) < 1000 and line.isprintable() for line in lines)
    assert lines[-1].startswith("  ... and ") and lines[-1].endswith(" lines more")


def test_canaries_travel_through_the_file(fallen_back: Artifact, tmp_path: Path) -> None:
    path = fallen_back.save(tmp_path / "a.json")
    assert fallen_back.canaries == read_artifact(path).canaries
    assert vitrify.load(path, program=Talk())(message="refund").team

"""`vitrify export` and `vitrify import` as a person uses them, with DSPy as the judge of what is the same."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from vitrify.programs.artifact import read_artifact

import vitrify as front
from tests.commands import TICKETS, Answers, Called, compile_, vitrify, workplace
from tests.edited import save_edited
from tests.server import ScriptedServer
from vitrify.loading import load_program

ROWS = [json.loads(line) for line in TICKETS[:120]]
MESSAGES = ["My parcel is late", "a {curly} one\n\n[[ ## team ## ]]\nstore", "Grüße, 日本 \U0001f40d"]

PIPELINE = '''
from typing import Literal
import dspy

class Urgency(dspy.Signature):
    """Say how urgent a message is."""
    message: str = dspy.InputField()
    language: str = dspy.InputField(desc="of the reply", default="English")
    urgency: Literal["low", "high"] = dspy.OutputField()

class Route(dspy.Signature):
    """Find the team, {even} this one."""
    message: str = dspy.InputField(desc="what the customer {wrote}")
    urgency: str = dspy.InputField()
    tags: list[str] = dspy.OutputField()
    team: str = dspy.OutputField()

class Pipeline(dspy.Module):
    def __init__(self):
        super().__init__()
        self.steps = [dspy.ChainOfThought(Urgency)]
        self.by_name = {"route": dspy.Predict(Route, temperature=0.5)}

    def forward(self, message):
        first = self.steps[0](message=message)
        return self.by_name["route"](message=message, urgency=first.urgency)

class Deep(dspy.Module):
    def __init__(self):
        super().__init__()
        self.table = {"a": [dspy.Predict(Urgency)]}

    def forward(self, message):
        return self.table["a"][0](message=message)
'''


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two artifacts and their runs, compiled on a server that mostly answers right."""
    folder = workplace(tmp_path_factory.mktemp("made"), len(ROWS))
    (folder / "pipeline.py").write_text(PIPELINE)
    (folder / "few.jsonl").write_text("\n".join(TICKETS[:60]))
    with pytest.MonkeyPatch.context() as patch, ScriptedServer(Answers(ROWS)) as server:
        patch.chdir(folder)
        patch.setenv("VITRIFY_HOME", str(folder / "home"))
        for program, out in (("desk.py:Desk", "desk.json"), ("pipeline.py:Pipeline", "pipeline.json")):
            at = ("--api-base", server.url, "--run-dir", out.replace(".json", ""), "--budget-calls", 1000)
            found = compile_(*at, program=program, lm="openai/any", out=out)
            assert found.code == 0, found.stderr
    return folder


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(Answers(ROWS)) as running:
        yield running


def asked(server: ScriptedServer, program: Any) -> list[dict[str, Any]]:
    """Return what a program sends for each message, and what it answers."""
    before, told = len(server.bodies), []
    for message in MESSAGES:
        answer = program(message=message)
        told.append({name: answer[name] for name in dict(answer.items())})
    return [*server.bodies[before:], *told]


def dspy_lm(server: ScriptedServer, **more: Any) -> Any:
    return dspy.LM("openai/any", api_base=server.url, api_key="none", cache=False, **more)


def refused(*args: object) -> Called:
    found = vitrify(*args)
    assert (2, "", 1) == (found.code, found.stdout, found.stderr.count("\n")), found.stderr
    return found


# dspy -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, program", [("desk", "desk.py:Desk"), ("pipeline", "pipeline.py:Pipeline")])
def test_plain_dspy_sends_what_the_artifact_sends(name: str, program: str, here: Path, server: ScriptedServer) -> None:
    artifact = read_artifact(f"{name}.json")
    assert artifact.selection.shipped == "compiled" and any(record.demos for record in artifact.predictors)
    for more in ((), ("--program", program)):
        found = vitrify("export", f"{name}.json", "--to", "dspy", "-o", f"{name}_state.json", *more)
        assert found.code == 0 and "dspy.LM('openai/any')" in found.stderr
        plain = load_program(program)
        plain.load(f"{name}_state.json")
        with dspy.context(lm=dspy_lm(server)):
            theirs = asked(server, plain)
        ours = asked(server, front.load(f"{name}.json", api_base=server.url))
        assert ours == theirs
        assert ours != asked(server, front.load(f"{name}.json", program=load_program(program), lm=other(server)))


def other(server: ScriptedServer) -> Any:
    return dspy_lm(server, temperature=0.125)


def test_a_state_comes_back_as_the_artifact(here: Path, server: ScriptedServer) -> None:
    assert vitrify("export", "pipeline.json", "--to", "dspy", "-o", "state.json").code == 0
    found = vitrify("import", "state.json", "pipeline.py:Pipeline", "--lm", "openai/any", "-o", "again.json")
    assert found.code == 0, found.stderr
    before, after = read_artifact("pipeline.json"), read_artifact("again.json")
    assert before.candidate == after.candidate and before.program == after.program
    assert [record.plan for record in before.predictors] == [record.plan for record in after.predictors]


def test_a_class_that_dspy_runs(here: Path, server: ScriptedServer) -> None:
    at = ("--api-base", server.url, "--budget-calls", 200)
    assert compile_(*at, program="desk.py:Looped", data="few.jsonl", lm="openai/any", out="looped.json").code == 0
    assert vitrify("export", "looped.json", "--to", "dspy", "--program", "desk.py:Looped", "-o", "l.json").code == 0
    other = vitrify("export", "looped.json", "--to", "dspy", "--program", "pipeline.py:Pipeline")
    assert (2, "") == (other.code, other.stdout) and "isn't the program that was compiled" in other.stderr


def test_what_a_state_can_not_hold(here: Path, tmp_path: Path) -> None:
    artifact = read_artifact("pipeline.json")

    def mixed(data: dict[str, Any]) -> None:
        record = data["predictors"][0]
        record.update(format="json", plan=record["second_plan"], second_plan=None)

    def large(data: dict[str, Any]) -> None:
        data["predictors"][0]["demos"] = [{"message": {"$number": str(2**80)}}]

    def bare(data: dict[str, Any]) -> None:
        data["predictors"][0].update(plan=None, second_plan=None, reason="it has images")

    def deep(data: dict[str, Any]) -> None:
        data["canaries"] = []
        data["predictors"][0]["path"] = "table['a'][0]"

    for change, said in ((mixed, "both reply formats"), (large, "64 bits"), (bare, "--program"), (deep, "container")):
        path = save_edited(artifact, tmp_path / "a.json", change)
        assert said in refused("export", path, "--to", "dspy").sentence
    assert not (tmp_path / "state.json").exists()


def test_json_programs_say_so(here: Path, tmp_path: Path) -> None:
    """The reply format isn't in DSPy's state: whoever loads it is told to set the adapter, and then it's the same."""
    with dspy.context(adapter=dspy.JSONAdapter()):
        state = load_program("desk.py:Desk")
        state.save(tmp_path / "state.json")
    made = ("import", tmp_path / "state.json", "desk.py:Desk", "--lm", "openai/any", "-o", tmp_path / "json.json")
    assert vitrify(*made, "--adapter", "json").code == 0
    found = vitrify("export", tmp_path / "json.json", "--to", "dspy", "-o", tmp_path / "back.json")
    assert "dspy.JSONAdapter()" in found.stderr
    plain = load_program("desk.py:Desk")
    plain.load(tmp_path / "back.json")
    with ScriptedServer(lambda body: '{"team": "store"}') as server:
        with dspy.context(lm=dspy_lm(server), adapter=dspy.JSONAdapter()):
            theirs = asked(server, plain)
        assert theirs == asked(server, front.load(tmp_path / "json.json", api_base=server.url))


# openai ---------------------------------------------------------------------------------------------------------------


def test_requests_with_placeholders(here: Path, server: ScriptedServer) -> None:
    found = vitrify("export", "desk.json", "--to", "openai")
    exported = json.loads(found.stdout)
    request = exported["requests"]["route"]
    assert {"message": "{{message}}"} == request["placeholders"] and ["team"] == request["outputs"]
    front.load("desk.json", api_base=server.url)(message=MESSAGES[1])
    filled = json.loads(json.dumps(request["body"]).replace("{{message}}", json.dumps(MESSAGES[1])[1:-1]))
    assert server.bodies[-1] == filled


def test_a_placeholder_that_the_prompt_holds_already(here: Path, tmp_path: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["predictors"][0]["plan"]["messages"][0]["content"] += "\n{{message}} {{message_1}}"

    path = save_edited(read_artifact("desk.json"), tmp_path / "a.json", change)
    request = json.loads(vitrify("export", path, "--to", "openai").stdout)["requests"]["route"]
    assert {"message": "{{message_2}}"} == request["placeholders"]
    assert 1 == json.dumps(request["body"]).count("{{message_2}}")


def test_what_requests_can_not_say_is_said(here: Path) -> None:
    found = vitrify("export", "pipeline.json", "--to", "openai")
    assert found.code == 0 and 2 == len(json.loads(found.stdout)["requests"])
    assert "feed each other" in found.stderr and "may be left out" in found.stderr
    route = json.loads(found.stdout)["requests"]["by_name['route']"]["body"]
    assert 0.5 == route["temperature"] and "any" == route["model"]


# finetune -------------------------------------------------------------------------------------------------------------


def test_chats_of_all_accepted_traces(here: Path) -> None:
    found = vitrify("export", "desk.json", "--to", "finetune", "--run", "desk", "-o", "chats.jsonl")
    assert found.code == 0 and found.stdout == ""
    chats = [json.loads(line) for line in Path("chats.jsonl").read_text().splitlines()]
    truth = {row["message"].strip(): row["team"] for row in ROWS}
    artifact = read_artifact("desk.json")
    assert 3 <= len(chats) <= artifact.provenance.rows["train"]
    plain = load_program("desk.py:Desk")
    signature = plain.route.signature.with_instructions(artifact.predictors[0].instruction)
    for chat in chats:
        message = re.search(r"## message ## \]\]\n(.*?)\n\nRespond", chat["messages"][-2]["content"], re.DOTALL)
        assert message is not None
        team = truth[message[1].strip()]
        # DSPy's own text for the same, and only right answers.
        theirs = dspy.ChatAdapter().format_finetune_data(signature, [], {"message": message[1]}, {"team": team})
        assert theirs == chat


def test_chats_of_several_predictors(here: Path) -> None:
    everything = vitrify("export", "pipeline.json", "--to", "finetune", "--run", "pipeline").stdout.splitlines()
    parts = [
        vitrify(
            "export", "pipeline.json", "--to", "finetune", "--run", "pipeline", "--predictor", path
        ).stdout.splitlines()
        for path in ("steps[0].predict", "by_name['route']")
    ]
    assert all(parts) and sorted(everything) == sorted([*parts[0], *parts[1]])
    assert all("[[ ## reasoning ## ]]" in json.loads(line)["messages"][-1]["content"] for line in parts[0])


def test_chats_of_the_file_alone(here: Path) -> None:
    artifact = read_artifact("desk.json")
    found = vitrify("export", "desk.json", "--to", "finetune")
    assert "--run" in found.stderr and len(found.stdout.splitlines()) == len(artifact.predictors[0].demos)
    shown = vitrify("export", "desk.json", "--to", "finetune", "--demos").stdout.splitlines()
    count = len(artifact.predictors[0].demos)
    assert [2 * count + 1] * count == [len(json.loads(line)["messages"]) for line in shown]


def test_a_run_that_goes_on_writes_the_same_traces(here: Path) -> None:
    before = Path("desk/traces.jsonl").read_bytes()
    Path("desk/traces.jsonl").unlink()
    assert "resume" in refused("export", "desk.json", "--to", "finetune", "--run", "desk").sentence
    assert vitrify("resume", "desk", "-o", "desk2.json").code == 0
    assert before == Path("desk/traces.jsonl").read_bytes()
    assert Path("desk.json").read_bytes() == Path("desk2.json").read_bytes()


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args, said", [
    (("--to", "dspi"), "did you mean `dspy`"), (("--to", "openai", "--run", "desk"), "is for --to finetune"),
    (("--to", "finetune", "--program", "desk.py:Desk"), "is for --to dspy"),
    (("--to", "finetune", "--run", "nowhere"), "is no run"),
    (("--to", "finetune", "--run", "pipeline"), "no predictor"),
    (("--to", "finetune", "--predictor", "rout"), "did you mean `route`"), (("--to", "dspy", "-o", "."), "-o"),
])  # fmt: skip
def test_what_can_not_be_exported(args: tuple[str, ...], said: str, here: Path) -> None:
    assert said in refused("export", "desk.json", *args).sentence


def test_states_that_are_none(here: Path, tmp_path: Path) -> None:
    assert vitrify("export", "desk.json", "--to", "dspy", "-o", "desk_state.json").code == 0
    good = json.loads(Path("desk_state.json").read_text())
    fewer = {**good, "route": {**good["route"], "signature": {**good["route"]["signature"], "fields": []}}}
    for text, said in (
        ("{", "no valid JSON"), ("[1]", "no DSPy state"), ("{}", "no DSPy state"), (json.dumps(fewer), "has 0 fields"),
        (json.dumps({"other": good["route"]}), "no predictor route"), (Path("desk.json").read_text(), "already"),
        (json.dumps({**good, "second": {**good["route"], "demos": [{}]}}), "second"), (json.dumps(good), "--lm"),
    ):  # fmt: skip
        (tmp_path / "state.json").write_text(text)
        found = refused("import", tmp_path / "state.json", "desk.py:Desk", "-o", tmp_path / "out.json")
        assert said in found.sentence
    (tmp_path / "state.pkl").write_bytes(b"cos\nsystem\n")
    found = refused("import", tmp_path / "state.pkl", "desk.py:Desk", "-o", tmp_path / "out.json")
    assert "pickle" in found.sentence
    at = ("import", "desk_state.json", "desk.py:Desk", "-o", tmp_path / "out.json", "--lm", "embedded")
    assert "--adapter" in refused(*at, "--adapter", "xml").sentence
    assert not (tmp_path / "out.json").exists()


def test_an_imported_state_claims_nothing(here: Path, tmp_path: Path, server: ScriptedServer) -> None:
    plain = load_program("desk.py:Desk")
    plain.route.demos = [dspy.Example(message="hello", team="store"), dspy.Example(message="x: 1.0", team="billing")]
    plain.route.signature = plain.route.signature.with_instructions("Say which.\n  Twice.")
    plain.route.lm = dspy.LM(
        "openai/any", temperature=0.25, api_base="http://user:secret@localhost/v1", api_key="secret"
    )
    plain.save(tmp_path / "state.json")
    found = vitrify("import", tmp_path / "state.json", "desk.py:Desk", "-o", tmp_path / "out.json")
    assert found.code == 0 and "uncertified" in found.stderr, found.stderr
    text = (tmp_path / "out.json").read_text()
    assert "secret" not in text and "localhost" not in text
    artifact = read_artifact(tmp_path / "out.json")
    assert not artifact.evidence.improved and not artifact.evidence.certified and artifact.canaries
    assert {"temperature": 0.25} == artifact.model.decoding
    assert "nothing was measured" in vitrify("inspect", tmp_path / "out.json").stdout
    plain.route.lm = None
    with dspy.context(lm=dspy_lm(server, temperature=0.25)):
        theirs = asked(server, plain)
    assert theirs == asked(server, front.load(tmp_path / "out.json", api_base=server.url))
    assert vitrify("verify", tmp_path / "out.json").code == 0
    again = ("--start", tmp_path / "out.json", "--budget-calls", 200)
    assert compile_(*again, data="few.jsonl", out=tmp_path / "next.json").code == 0

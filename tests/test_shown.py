"""`--no-demos-from` and `--redact`: what is kept out ships nowhere, and is never shown to a model that writes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vitrify.compiler.data import Example
from vitrify.compiler.shown import parse_conditions, resolve_redact, shown_rows
from vitrify.programs.artifact import Artifact, read_artifact
from vitrify.signatures.errors import DataError, RequestError

import vitrify as front
from tests.commands import TICKETS, Answers, compile_, vitrify, workplace
from tests.desks import Desk, small
from tests.server import ScriptedServer

SECRET = "SECRET-ACME-7"
ROWS = [
    {**json.loads(line), "customer": "acme" if number % 3 == 0 else "other"}
    for number, line in enumerate(TICKETS[:120])
]
for row in ROWS:
    if row["customer"] == "acme":
        row["message"] += f" {SECRET}"

REDACT = """
def hide(row):
    row["message"] = row["message"].replace("SECRET-ACME-7", "[name]")
    return row

def drop(row):
    return None if row["customer"] == "acme" else row

def nothing(row):
    return None

def fewer(row):
    return {"message": row["message"]}

def text(row):
    return "text"

def boom(row):
    raise KeyError("no such name")

LIMIT = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    workplace(tmp_path)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "redact.py").write_text(REDACT)
    return tmp_path


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(Answers(ROWS)) as running:
        yield running


def proposals(server: ScriptedServer) -> str:
    asked = [body["messages"] for body in server.bodies]
    return json.dumps([messages for messages in asked if "## program_code ##" in messages[-1]["content"]])


def demonstrations(server: ScriptedServer) -> str:
    """Return everything that a candidate's prompt shows before the row that it is asked about."""
    return json.dumps([body["messages"][:-1] for body in server.bodies])


@pytest.mark.parametrize("option", [("--no-demos-from", "customer=acme"), ("--redact", "redact.py:drop"),
                                    ("--redact", "redact.py:hide")])  # fmt: skip
def test_what_is_kept_out_ships_nowhere(option: tuple[str, str], here: Path, server: ScriptedServer) -> None:
    at = ("--api-base", server.url, "--run-dir", "run", "--budget-calls", 700, "--max-demos", 8)
    found = compile_(*at, *option, lm="openai/any", out="out.json")
    assert found.code == 0, found.stderr
    assert SECRET not in Path("out.json").read_text() and SECRET not in Path("run/traces.jsonl").read_text()
    assert SECRET not in proposals(server) and "current_instruction" in proposals(server)
    assert SECRET not in demonstrations(server)
    # They still count: the rows of the others are judged as they are.
    assert SECRET in json.dumps([body["messages"][-1] for body in server.bodies])
    artifact = read_artifact("out.json")
    assert artifact.canaries and "acme" not in " ".join(artifact.notes).lower()
    assert artifact.provenance.rows == {"train": 24, "select": 48, "test": 48}
    page = vitrify("inspect", "out.json").stdout
    assert "training rows" in page and SECRET not in page
    if option[1] == "redact.py:hide":
        assert "[name]" in demonstrations(server) and "changed" in page


def test_without_them_it_would_ship(here: Path, server: ScriptedServer) -> None:
    at = ("--api-base", server.url, "--run-dir", "run", "--budget-calls", 700, "--max-demos", 8)
    assert compile_(*at, lm="openai/any", out="out.json").code == 0
    assert SECRET in demonstrations(server) and SECRET in proposals(server)
    assert SECRET in Path("out.json").read_text()


def test_nothing_may_be_shown(here: Path) -> None:
    found = compile_("--redact", "redact.py:nothing", "--budget-calls", 300)
    assert found.code == 0, found.stderr
    artifact = read_artifact("out.json")
    assert not artifact.predictors[0].demos and not artifact.canaries
    assert not Path("traces.jsonl").exists()


def test_a_run_goes_on_with_them(here: Path) -> None:
    at = ("--no-demos-from", "customer=acme", "--redact", "redact.py:hide", "--run-dir", "run", "--budget-calls", 300)
    assert compile_(*at).code == 0
    before = Path("out.json").read_bytes()
    assert vitrify("resume", "run", "-o", "again.json").code == 0
    assert before == Path("again.json").read_bytes()
    (here / "redact.py").write_text(REDACT + "\n# another\n")
    assert "redact.py has changed" in vitrify("resume", "run", "-o", "again.json").stderr


@pytest.mark.parametrize("option, said", [
    (("--no-demos-from", "customer"), "column=value"), (("--no-demos-from", "=x"), "column=value"),
    (("--no-demos-from", "custmer=acme"), "did you mean `customer`"), (("--redact", "redact.py:hid"), "hide"),
    (("--redact", "redact"), "file.py:Name"), (("--redact", "redact.py:LIMIT"), "function"),
    (("--redact", "redact.py:fewer"), "same columns"), (("--redact", "redact.py:text"), "same columns"),
    (("--redact", "redact.py:boom"), "no such name"),
])  # fmt: skip
def test_what_they_may_be(option: tuple[str, str], said: str, here: Path, server: ScriptedServer) -> None:
    found = compile_(*option, "--api-base", server.url, lm="openai/any")
    assert (2, "") == (found.code, found.stdout) and said in found.sentence
    assert not server.bodies  # nothing was paid


def test_from_python(tmp_path: Path) -> None:
    def made(**more: Any) -> Artifact:
        artifact: Artifact = front.compile(
            Desk(), ROWS, "exact:team", lm="embedded", run_dir=tmp_path / str(len(list(tmp_path.iterdir()))),
            budget=front.Budget(calls=500), options=small(**more),
        )  # fmt: skip
        return artifact

    hidden = made(no_demos_from=["customer=acme"], redact=lambda row: {**row, "message": row["message"].upper()})
    assert SECRET not in json.dumps(hidden.to_json())
    assert all(canary.inputs["message"].isupper() for canary in hidden.canaries)
    with pytest.raises(DataError, match="column"):
        made(no_demos_from=["nobody=acme"])


def test_values_of_any_kind() -> None:
    rows = [
        Example({"q": "a"}, {"flag": True, "n": 3, "tags": ["x", "y"], "who": None}, 1),
        Example({"q": "b"}, {"flag": False, "n": 4, "tags": [], "who": "x=y"}, 2),
    ]

    def kept(*conditions: str) -> list[int]:
        return [row.row for row in shown_rows(rows, parse_conditions(conditions), None)[0]]

    assert [1, 2] == kept() == kept("n=5") == kept("who=None")
    assert [2] == kept("flag=true") == kept("flag=True") == kept("n=3") == kept("tags=y") == kept("q=a")
    assert [1] == kept("who=x=y") and [] == kept("n=3", "n=4")
    assert (("n", "3"),) == parse_conditions("n=3")


def test_the_function_changes_no_row_of_ours() -> None:
    row = Example({"q": ["a"]}, {"label": {"x": 1}}, 7)

    def hide(values: dict[str, Any]) -> dict[str, Any]:
        values["q"].append("b")
        values["label"]["x"] = 2
        return values

    (shown,), _ = shown_rows([row], (), hide)
    assert ({"q": ["a"]}, {"label": {"x": 1}}) == (dict(row.inputs), dict(row.labels))
    assert (["a", "b"], 2, 7) == (shown.inputs["q"], shown.labels["label"]["x"], shown.row)
    with pytest.raises(RequestError):
        resolve_redact(Example)

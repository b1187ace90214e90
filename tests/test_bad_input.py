"""Bad input: each gets a sentence that says what, where and what to do, the right exit code, and no traceback."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from vitrify.programs.lm import LMError

from tests.commands import TICKETS, Called, compile_, vitrify, workplace
from tests.server import Fault, ScriptedServer
from vitrify.boundary import explain


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return workplace(tmp_path)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of Desk that nobody changes."""
    folder = workplace(tmp_path_factory.mktemp("artifact"))
    out = folder / "desk.json"
    found = compile_("--run-dir", folder / "run", program=f"{folder}/desk.py:Desk", data=folder / "rows.jsonl", out=out)
    assert found.code == 0, found.stderr
    return out


def said(found: Called, code: int, *words: str) -> str:
    """Check the exit code, that stderr ends in a sentence or two with these words, and that nothing was paid."""
    assert found.code == code, found.stderr
    # litellm prints an advertisement where it doesn't know a provider.
    assert found.stdout == "" or "Provider List" in found.stdout
    sentence = found.sentence
    assert sentence.startswith("vitrify: ") and "\n" not in sentence and len(sentence) < 600, sentence
    for word in words:
        assert word in sentence, sentence
    return sentence


# Data -----------------------------------------------------------------------------------------------------------------

FILES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "empty.jsonl": (lambda p: p.write_text(""), ("empty.jsonl", "empty")),
    "blank.jsonl": (lambda p: p.write_text("\n\n"), ("blank.jsonl", "at least one row")),
    "header.csv": (lambda p: p.write_text("message,team\n"), ("header.csv", "at least one row")),
    "broken.jsonl": (
        lambda p: p.write_text("\n".join([*TICKETS[:4], '{"message": "x",', *TICKETS[4:30]])),
        ("broken.jsonl", "line 5"),
    ),
    "cells.csv": (lambda p: p.write_text("message,team\na,store\nb\n"), ("cells.csv", "line 3")),
    "latin.jsonl": (lambda p: p.write_bytes(b'{"message": "caf\xe9"}\n'), ("latin.jsonl", "line 1", "UTF-8")),
    "list.jsonl": (lambda p: p.write_text("[1]\n"), ("list.jsonl", "line 1", "object")),
    "no.parquet": (lambda p: p.write_text("no"), ("no.parquet", "Parquet")),
    "rows.xlsx": (lambda p: p.write_text("no"), ("rows.xlsx", ".csv")),
    "renamed.jsonl": (
        lambda p: p.write_text("\n".join(TICKETS[:30]).replace('"message"', '"mesage"')),
        ("`message`", "did you mean `mesage`"),
    ),
    "hole.jsonl": (
        lambda p: p.write_text("\n".join([*TICKETS[:20], '{"team": "store"}', *TICKETS[20:40]])),
        ("Row 21", "message"),
    ),
    "two.jsonl": (lambda p: p.write_text("\n".join(TICKETS[:2])), ("two.jsonl", "2 rows", "at least 20")),
    "folder": (lambda p: p.mkdir(), ("folder", "no .csv")),
}


@pytest.mark.parametrize("name", FILES)
def test_data(here: Path, name: str) -> None:
    write, words = FILES[name]
    write(here / name)
    said(compile_(data=name), 2, *words)
    assert not list(here.glob(".vitrify/runs/*/ledger.jsonl")) or name == "two.jsonl"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("rows.jsnl", ("rows.jsnl", "did you mean `rows.jsonl`")),
        ("nowhere/rows.jsonl", ("nowhere",)),
    ],
)
def test_data_that_is_not_there(here: Path, data: str, words: tuple[str, ...]) -> None:
    said(compile_(data=data), 2, *words)
    said(compile_("--test", data), 2, *words)
    said(compile_("--select", data), 2, *words)


# Metrics --------------------------------------------------------------------------------------------------------------

METRICS = [
    ("exat:team", 2, ("did you mean `exact`",)),
    ("exact", 2, ("exact:field",)),
    ("exact:tem", 2, ("tem", "did you mean `team`")),
    ("acuracy:team", 2, ("acuracy", "`exact`")),
    ("desk.py:exatly", 2, ("did you mean `exactly`",)),
    ("desk.py:Plain", 2, ("class",)),
    ("desk.py:LIMIT", 2, ("int 3",)),
    ("desk.py:one", 2, ("one(example)",)),
    ("desk.py:text", 2, ("str 'good'", "number")),
    ("desk.py:nan", 2, ("nan", "number")),
    ("desk.py:nothing", 2, ("None", "number")),
    ("desk.py:raises", 1, ("AttributeError", "row ", "tema")),
    ("numeric:team", 2, ("number", "numeric:team")),
    ("nowhere.py:f", 2, ("nowhere.py",)),
    ("nowhere_at_all:f", 2, ("nowhere_at_all",)),
]


@pytest.mark.parametrize(("metric", "code", "words"), METRICS, ids=[item[0] for item in METRICS])
def test_metric(here: Path, metric: str, code: int, words: tuple[str, ...]) -> None:
    said(compile_(metric=metric), code, *words)


# Programs -------------------------------------------------------------------------------------------------------------

PROGRAMS = [
    ("desk.py:Bare", 2, ("Bare", "predictor", "__init__")),
    ("desk.py:Wrapped", 2, ("size, colour", "def make()")),
    ("desk.py:Boom", 2, ("desk.py:Boom", "there is no database")),
    ("desk.py:Plain", 2, ("dspy.Module",)),
    ("desk.py:LIMIT", 2, ("int", "dspy.Module")),
    ("desk.py:Dsk", 2, ("did you mean `Desk`",)),
    ("desk.py", 2, ("file.py:Name",)),
    ("dsk.py:Desk", 2, ("did you mean `desk.py`",)),
    ("no_such_module:Desk", 2, ("no_such_module",)),
    ("broken.py:Desk", 2, ("broken.py:1", "SyntaxError")),
    ("desk.py:Raises", 1, ("Raises", "row ", "forward is broken")),
    ("desk.py:Nothing", 1, ("Nothing", "None", "row ")),
]


@pytest.mark.parametrize(("program", "code", "words"), PROGRAMS, ids=[item[0] for item in PROGRAMS])
def test_program(here: Path, program: str, code: int, words: tuple[str, ...]) -> None:
    (here / "broken.py").write_text("def f(:\n")
    said(compile_(program=program), code, *words)
    if code == 2:
        said(compile_("--teacher", program), 2, *words)


# Models ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lm", "words"),
    [
        ("embeded", ("did you mean `embedded`",)),
        ("gpt-4o-mini", ("did you mean `openai/gpt-4o-mini`",)),
        ("opnai/gpt-4o-mini", ("did you mean `openai`",)),
        ("openai/gpt-4o-mini", ("OPENAI_API_KEY",)),
    ],
)
def test_model_name(here: Path, artifact: Path, lm: str, words: tuple[str, ...]) -> None:
    said(compile_(lm=lm), 2, *words)
    said(compile_("--prompt-lm", lm), 2, *words)
    said(vitrify("run", artifact, "-i", "message=x", "--lm", lm), 2, *words)


@pytest.fixture
def picky() -> Iterator[ScriptedServer]:
    """A server that knows one key and one model, and answers nothing of use."""
    with ScriptedServer(lambda body: "hello", key="right", models=["known"]) as server:
        yield server


def test_wrong_key_costs_one_call(
    here: Path, artifact: Path, picky: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a-wrong-key")
    at = ("--api-base", picky.url)
    assert "sk-a" not in said(compile_(*at, lm="openai/known"), 2, "key", "OPENAI_API_KEY")
    assert len(picky.requests) == 1
    said(vitrify("run", artifact, "-i", "message=x", "--lm", "known", *at), 2, "key")
    ran = vitrify("run", artifact, "-i", "message=x", "--lm", "known", "--program", "desk.py:Desk", *at)
    assert said(ran, 2, "key").count("known: ") == 1
    said(vitrify("run", artifact, "--input", "rows.jsonl", "--lm", "known", *at), 2, "key")
    said(
        vitrify("evaluate", artifact, "--data", "rows.jsonl", "--metric", "exact:team", "--lm", "known", *at), 2, "key"
    )
    # Answered by a program that needs no model, and judged by one that can't be asked.
    (here / "judge.py").write_text(
        "import dspy\ndef judged(example, pred, trace=None):\n"
        "    with dspy.context(lm=dspy.LM('openai/known', api_base='" + picky.url + "', api_key='wrong')):\n"
        "        return dspy.Predict('found -> same: bool')(found=pred.team).same\n"
    )
    said(vitrify("evaluate", artifact, "--data", "rows.jsonl", "--metric", "judge.py:judged"), 2, "openai/known")


def test_unknown_model(here: Path, picky: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "right")
    said(compile_("--api-base", picky.url, lm="unknown"), 2, "unknown", "model")
    assert len(picky.requests) == 1


@pytest.mark.parametrize(
    ("base", "words"),
    [("127.0.0.1:9", ("http://localhost:8000/v1",)), ("http://127.0.0.1:9/v1", ("can't connect", "127.0.0.1:9"))],
)
def test_address(here: Path, base: str, words: tuple[str, ...]) -> None:
    said(compile_("--api-base", base, lm="any"), 2, *words)


def test_a_server_that_fails_for_good(here: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrify.programs.lm.Retry.delay", lambda self, attempt, error, uniform: None)
    with ScriptedServer(faults=lambda number, body: Fault.status_code(503)) as server:
        said(compile_("--api-base", server.url, lm="any"), 1, "503")
        said(vitrify("run", artifact, "-i", "message=x", "--lm", "any", "--api-base", server.url), 1, "503")


def test_a_model_that_nobody_understands(here: Path, artifact: Path) -> None:
    with ScriptedServer(lambda body: "what?") as server:
        at = ("run", artifact, "-i", "message=x", "--lm", "any", "--api-base", server.url)
        said(vitrify(*at), 1, "route", "what?")
        said(vitrify(*at, "--program", "desk.py:Desk"), 1, "Desk", "no readable values")


# Artifacts ------------------------------------------------------------------------------------------------------------

DAMAGE: dict[str, tuple[Callable[[str], str], tuple[str, ...]]] = {
    "truncated": (lambda text: text[:1000], ("JSON", "cut off")),
    "edited": (lambda text: text.replace('"seed":0', '"seed":1'), ("changed", "sha256")),
    "empty": (lambda text: "", ()),
    "of another kind": (lambda text: '{"a": 1}', ("no vitrify artifact",)),
    "of the future": (lambda text: text.replace("vitrify/1", "vitrify/9"), ("vitrify/9", "vitrify/1")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_artifact(here: Path, artifact: Path, damage: str) -> None:
    change, words = DAMAGE[damage]
    (here / "bad.json").write_text(change(artifact.read_text()))
    for found in (
        vitrify("inspect", "bad.json"),
        vitrify("run", "bad.json", "-i", "message=x"),
        vitrify("evaluate", "bad.json", "--data", "rows.jsonl", "--metric", "exact:team"),
        compile_("--start", "bad.json"),
    ):
        said(found, 2, "bad.json", *words)


def test_artifact_that_is_not_there(here: Path) -> None:
    said(vitrify("inspect", "none.json"), 2, "none.json")
    said(vitrify("run", ".", "-i", "message=x"), 2, "irectory")


def test_artifact_of_another_program(here: Path, artifact: Path) -> None:
    (here / "other.py").write_text(
        "import dspy\nclass Other(dspy.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.say = dspy.Predict('message -> team')\n"
        "    def forward(self, message):\n        return self.say(message=message)\n"
    )
    said(compile_("--start", artifact, program="other.py:Other"), 2, "route")
    found = vitrify("run", artifact, "-i", "message=x", "--program", "other.py:Other")
    assert (found.code, found.stdout) == (2, "")
    assert "another Desk" in found.stderr and "route" in found.stderr and "say" in found.stderr  # a readable diff


# Outputs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (".", ("folder",)),
        ("nowhere/out.json", ("nowhere",)),
        ("rows.jsonl/out.json", ("rows.jsonl",)),
        ("/proc/out.json", ("/proc",)),
    ],
)
def test_output_is_checked_first(here: Path, artifact: Path, path: str, words: tuple[str, ...]) -> None:
    # The data isn't there either: what is asked first is whether the result can be kept.
    said(compile_(out=path, data="none.jsonl"), 2, *words)
    command = ("evaluate", artifact, "--data", "none.jsonl", "--metric", "exact:team", "--csv", path)
    said(vitrify(*command), 2, *words)


@pytest.mark.parametrize("path", ["/proc/run", "rows.jsonl"])
def test_run_dir(here: Path, path: str) -> None:
    said(compile_("--run-dir", path), 2, path, "--run-dir")


# Options --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--effort", "lite"), ("light", "lite")),
        (("--formats", "xml"), ("json", "xml")),
        (("--price", "cheap"), ("0.15,0.60", "cheap")),
        (("--budget-calls", "0"), ("budget.calls", "at least")),
        (("--budget-calls", "40"), ("budget.calls", "at least")),
        (("--max-demos", "999"), ("max_demos", "256")),
        (("--group", "tem"), ("tem", "team")),
    ],
)
def test_option(here: Path, options: tuple[str, ...], words: tuple[str, ...]) -> None:
    with ScriptedServer() as server:
        said(compile_(*options, "--api-base", server.url, lm="any"), 2, *words)
        assert server.requests == []  # known before a call is paid


def test_dollars_without_a_price(here: Path) -> None:
    with ScriptedServer() as server:
        at = ("--api-base", server.url, "--budget-dollars", "1")
        said(compile_(*at, lm="any"), 2, "--price")
        assert server.requests == []


@pytest.mark.parametrize(
    "option",
    ["--efort", "--concurrency=0", "--seed=x", "--patience=-1", "--budget-task-calls=-1", "--budget-prompt-tokens=x"],
)
def test_usage(here: Path, option: str) -> None:
    found = compile_(option)
    assert found.code == 2 and option.partition("=")[0] in found.stderr


@pytest.mark.parametrize("options", [("--efort",), ("--seed=1",), ("--concurrency=0",), ("--metric", "exact:team")])
def test_resume_takes_no_new_decisions(here: Path, options: tuple[str, ...]) -> None:
    found = vitrify("resume", "run", *options)
    assert found.code == 2 and options[0].partition("=")[0] in found.stderr


def test_words_that_are_no_text(here: Path) -> None:
    """A shell hands over any bytes; Python writes those that aren't UTF-8 as lone surrogates."""
    found = compile_(data="caf\udce9.csv")
    assert found.code == 2 and "data" in found.stderr


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ((), ("-i", "--input")),
        (("-i", "message"), ("NAME=VALUE",)),
        (("-i", "mesage=x"), ("did you mean `message`",)),
        (("-i", "message=x", "--input", "rows.jsonl"), ("-i", "--input")),
        (("--input", "rows.jsnl"), ("did you mean `rows.jsonl`",)),
        (("--input", "renamed.jsonl"), ("did you mean `mesage`",)),
    ],
)
def test_inputs(here: Path, artifact: Path, inputs: tuple[str, ...], words: tuple[str, ...]) -> None:
    (here / "renamed.jsonl").write_text(json.dumps({"mesage": "x"}))
    said(vitrify("run", artifact, *inputs), 2, *words)


@pytest.mark.parametrize(
    ("metric", "code", "words"),
    [
        ("exact:tem", 2, ("did you mean `team`",)),
        ("exat:team", 2, ("did you mean `exact`",)),
        ("desk.py:nan", 2, ("nan",)),
        ("desk.py:raises", 1, ("row 1", "tema")),
    ],
)
def test_evaluate(here: Path, artifact: Path, metric: str, code: int, words: tuple[str, ...]) -> None:
    said(vitrify("evaluate", artifact, "--data", "rows.jsonl", "--metric", metric), code, *words)


# The unexpected -------------------------------------------------------------------------------------------------------


def test_a_bug_of_our_own(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("vitrify.programs.artifact.read_artifact", broken)
    said(vitrify("inspect", "any.json"), 1, "bug in vitrify", "ZeroDivisionError", "--debug")
    shown = vitrify("inspect", "any.json", "--debug")
    assert shown.code == 1 and "Traceback" in shown.stderr and 'raise ZeroDivisionError("division' in shown.stderr


def test_debug_keeps_the_exit_code(here: Path) -> None:
    found = compile_("--debug", data="none.jsonl")
    assert found.code == 2
    assert "Traceback" in found.stderr and found.stderr.splitlines()[-1].startswith("vitrify: ")


def test_explain() -> None:
    assert explain(LMError("m: no key", cause="auth"))[1] == 2
    assert explain(LMError("m: busy", cause="rate_limited"))[1] == 1
    assert explain(PermissionError(13, "Permission denied", "rows.jsonl")) == (
        "rows.jsonl: permission denied; mend that, or name another.",
        2,
    )
    assert explain(OSError(28, "No space left on device", "out.json"))[1] == 1
    assert explain(ModuleNotFoundError("no", name="dspy"))[0].endswith("run `pip install 'vitrify[compile]'`.")

"""`vitrify resume`: the request is kept in the run's directory, and what a stopped compile paid is not paid again."""

import json
import math
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vitrify as front
from tests.commands import TICKETS, Answers, Called, compile_, vitrify, workplace
from tests.server import Fault, ScriptedServer
from vitrify.request import Changes, CompileRequest, Recorded, base_url, public, read_request

ROWS = [json.loads(line) for line in TICKETS[:60]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_API_BASE"):
        monkeypatch.delenv(name, raising=False)
    return workplace(folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a program, rows, an artifact and the run that made it."""
    folder = workplace(tmp_path_factory.mktemp("finished"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert compile_("--run-dir", "run", "--budget-calls", 200).code == 0
    return folder


def said(found: Called, *words: str) -> str:
    assert found.code == 2, found.stderr
    assert found.sentence.startswith("vitrify: ") and "\n" not in found.sentence, found.sentence
    for word in words:
        assert word in found.sentence, found.sentence
    return found.sentence


def kept(folder: Path) -> Any:
    return json.loads((folder / "request.json").read_text())


# request.json ---------------------------------------------------------------------------------------------------------


def test_the_request_is_kept_before_anything_is_paid(here: Path) -> None:
    seen: list[Any] = []

    def refuse(number: int, body: Any) -> Fault:
        seen.extend(kept(path.parent) for path in here.glob(".vitrify/runs/*/request.json"))
        return Fault.status_code(401)

    with ScriptedServer(faults=refuse) as server:
        assert compile_("--api-base", server.url, "--budget-prompt-calls", 7, "--hedge", lm="any").code == 2
    (found,) = seen
    assert found["directory"] == str(here) and found["vitrify"]
    assert set(found["files"]) == {str(here / "desk.py"), str(here / "rows.jsonl")}
    request = found["request"]
    assert request["program"] == f"{here}/desk.py:Desk" and request["data"] == "rows.jsonl"
    assert request["budget_prompt_calls"] == 7 and request["hedge"] is True and request["output"] == "out.json"
    (file,) = here.glob(".vitrify/runs/*/request.json")
    assert file.read_text() == json.dumps(found, indent=2, sort_keys=True) + "\n"


def test_no_key_and_no_password_is_kept(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer(Answers(ROWS)) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
        assert compile_("--api-base", server.url, "--budget-calls", 140, "--run-dir", "run", lm="any").code == 0
        assert vitrify("resume", "run").code == 0
        assert {request.headers["Authorization"] for request in server.requests} == {"Bearer sk-very-secret"}
        monkeypatch.delenv("OPENAI_API_KEY")
        address = server.url.replace("//", "//me:sesame@")
        found = compile_("--api-base", address, "--budget-calls", 140, "--run-dir", "run", lm="any")
        assert found.code == 0, found.stderr
        before = len(server.requests)
        # Whoever resumes gives the password again; another server knows nothing of what was paid.
        said(vitrify("resume", "run"), "--api-base", "credentials")
        said(vitrify("resume", "run", "--api-base", "http://127.0.0.1:9/v1"), server.url)
        again = vitrify("resume", "run", "--api-base", address, "-o", "again.json")
        assert again.code == 0, again.stderr
        assert len(server.requests) == before
    assert kept(here / "run")["request"]["api_base"] == server.url
    for file in (here / "run").iterdir():
        assert not re.search(rb"sesame|sk-very|me:", file.read_bytes()), file


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        ("http://me:pass@host:1/v1?key=abc#x", "http://host:1/v1"),
        ("https://me@host/v1/@cf/m", ""),
        ("http://me:p@ss@[::1]:80/v1", "http://[::1]:80/v1"),
        ("http://me:pa/ss@host/v1", ""),
        ("http://[me:pass@", ""),
    ],
)
def test_public(address: str, shown: str) -> None:
    assert public(address) == shown


@given(st.text(), st.text(min_size=8))
def test_public_never_keeps_a_password(user: str, password: str) -> None:
    shown = public(f"http://{user}:{password}@example.org/v1")
    assert shown in ("", "http://example.org/v1") or password not in shown


_TEXT = st.text()
_NUMBERS: Any = st.integers(-(2**53), 2**53) | st.none()
_FLOATS: Any = st.floats(allow_nan=False) | st.none()


def _value(annotation: Any) -> Any:
    kinds: dict[Any, Any] = {
        str: _TEXT, Path: _TEXT.map(Path), int: st.integers(), float: st.floats(allow_nan=False), bool: st.booleans(),
        str | None: _TEXT | st.none(), Path | None: _TEXT.map(Path) | st.none(), int | None: _NUMBERS,
        float | None: _FLOATS, list[str] | None: st.lists(_TEXT) | st.none(),
    }  # fmt: skip
    return kinds[annotation]


REQUESTS = st.fixed_dictionaries(
    {name: _value(info.annotation) for name, info in CompileRequest.model_fields.items()}
).map(lambda fields: CompileRequest(**fields))


@settings(max_examples=50)
@given(REQUESTS, st.dictionaries(_TEXT, _TEXT))
def test_a_request_survives_its_file(request_: CompileRequest, files: dict[str, str]) -> None:
    made = Recorded(directory=Path("/x"), files=files, request=request_)
    assert Recorded.model_validate_json(made.to_bytes()) == made
    assert math.inf not in json.loads(made.to_bytes(), parse_constant=lambda name: name).values()


def test_changes_are_options_of_compile() -> None:
    assert set(Changes.model_fields) < set(CompileRequest.model_fields)
    request = CompileRequest(program="p.py:P", data="d", metric="exact:x", lm="embedded", output=Path("o"), hedge=True)
    assert request.changed(Changes()) == request
    told = request.changed(Changes(hedge=False, budget_calls=0, output=Path("x")))
    assert (told.hedge, told.budget_calls, told.output, told.lm) == (False, 0, Path("x"), "embedded")


# Going on -------------------------------------------------------------------------------------------------------------


def test_resume_from_anywhere(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compile is killed, and goes on from another folder: the same bytes, and nothing is asked for twice."""
    with ScriptedServer(Answers(ROWS), latency=0.005) as server:
        words = (
            "compile", "desk.py:Desk", "--data", "rows.jsonl", "--metric", "desk.py:exactly", "--lm", "any",
            "--api-base", server.url, "-o", "out.json", "--concurrency", "4", "--budget-calls", "160",
            "--instructions", "2", "--demo-sets", "2", "--max-demos", "4",
        )  # fmt: skip
        child = subprocess.Popen([sys.executable, "-m", "vitrify", *words], stderr=subprocess.PIPE)
        while server.served < 80 and child.poll() is None:
            time.sleep(0.002)
        child.kill()
        child.communicate(timeout=20)
        (run,) = here.glob(".vitrify/runs/*")
        monkeypatch.chdir(tmp_path / "elsewhere")
        found = vitrify("resume", run, "--concurrency", 2)
        assert found.code == 0, found.stderr
        assert f"wrote {here}/out.json" in found.stdout
        asked = Counter(json.dumps(body) for body in server.bodies)
        assert sum(asked.values()) - len(asked) <= 4  # at most what was in flight
        before = len(server.requests)
        # A finished run writes its artifact again, here this time, and asks for nothing.
        again = vitrify("resume", run, "-o", "again.json", "--json")
        assert json.loads(again.stdout)["artifact"] == str(tmp_path / "elsewhere" / "again.json")
        assert len(server.requests) == before
        monkeypatch.chdir(here)
        plain = compile_(
            *words[8:10], *words[12:], "--run-dir", "plain", metric="desk.py:exactly", lm="any", out="plain.json"
        )
        assert plain.code == 0, plain.stderr
    made = (here / "plain.json").read_bytes()
    assert made == (here / "out.json").read_bytes() == (tmp_path / "elsewhere" / "again.json").read_bytes()


def test_resume_with_more_budget(here: Path) -> None:
    with ScriptedServer(Answers(ROWS)) as server:
        at = ("--api-base", server.url, "--price", "1,1", "--budget-dollars", 2)
        assert compile_(*at, "--budget-calls", 140, "--run-dir", "run", lm="any").code == 0
        first = len(server.requests)
        found = vitrify("resume", "run", "--budget-calls", 200, "--budget-dollars", 9, "--patience", 5, "--no-hedge")
        assert found.code == 0, found.stderr
        assert first <= 140 < len(server.requests) <= 200
        request = kept(here / "run")["request"]
        assert (request["budget_calls"], request["budget_dollars"], request["patience"]) == (200, 9, 5)
        before = len(server.requests)
        assert vitrify("resume", "run").code == 0 and len(server.requests) == before
        more = (here / "out.json").read_bytes()
        assert compile_(*at, "--budget-dollars", 9, "--budget-calls", 200, "--run-dir", "whole", lm="any").code == 0
    assert (here / "out.json").read_bytes() == more


def test_a_limit_that_would_change_every_request(finished: Path, here: Path) -> None:
    """A limit in tokens gives replies a longest length, which is a part of the request."""
    shutil.copytree(finished / "run", here / "run")
    for limit in ("--budget-tokens", "--budget-dollars", "--budget-prompt-tokens", "--budget-task-dollars"):
        said(vitrify("resume", "run", limit, 9, "--price", "1,1"), "run was begun without", "--budget-calls")


def test_what_failed_says_how_to_go_on(here: Path) -> None:
    (here / "mend.py").write_text("def metric(example, pred, trace=None):\n    return pred.tema == example.team\n")
    failed = compile_("--run-dir", "my run", metric="mend.py:metric")
    assert failed.code == 1 and failed.sentence.endswith("What was paid is kept: `vitrify resume 'my run'` goes on.")
    # The metric is mended; what was paid while it was broken is not paid again.
    (here / "mend.py").write_text("def metric(example, pred, trace=None):\n    return pred.team == example.team\n")
    script = "import sys; from vitrify.cli import main; sys.argv[1:] = ['resume', 'my run']; main()"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 0, found.stderr
    assert "note: mend.py has changed since my run was begun" in found.stderr
    assert re.search(r"\[2/5\] preflight .* [0-9]+ calls \(\+[1-9]\d* known already\)", found.stderr), found.stderr


def test_a_result_that_has_no_room(here: Path) -> None:
    """What can't be written in the end is written elsewhere, for nothing."""
    folder = here / "made"
    folder.mkdir()
    (here / "gone.py").write_text(
        "import shutil\ndef metric(example, pred, trace=None):\n"
        f"    shutil.rmtree({str(folder)!r}, ignore_errors=True)\n    return pred.team == example.team\n"
    )
    words = ("--run-dir", "run", "--budget-calls", 200)
    sentence = said(compile_(*words, metric="gone.py:metric", out="made/out.json"), "made/out.json")
    assert sentence.endswith("`vitrify resume run -o FILE` writes it elsewhere, without a call.")
    found = vitrify("resume", "run", "-o", "out.json", "--json")
    assert found.code == 0 and (here / "out.json").exists()


def test_resume_says_what_has_changed(here: Path) -> None:
    assert compile_("--run-dir", "run", "--budget-calls", 200).code == 0
    assert "has changed" not in vitrify("resume", "run").stderr
    with (here / "rows.jsonl").open("a") as stream:
        stream.write("\n".join(TICKETS[60:80]) + "\n")
    found = vitrify("resume", "run", "--json", "--budget-calls", 600)
    assert found.code == 0, found.stderr
    assert "note: rows.jsonl has changed since run was begun: " in found.stderr
    # It is the run's data from now on.
    assert "note: run was" not in found.stderr and "has changed" not in vitrify("resume", "run").stderr
    _edited(lambda value: value.update(vitrify="0.0.1"))(here / "run")
    assert f"note: run was begun by vitrify 0.0.1, and this is {front.__version__}: " in vitrify("resume", "run").stderr


# What can't go on -----------------------------------------------------------------------------------------------------


def _python(run: Path) -> None:
    (run / "request.json").unlink()


def _a_file(run: Path) -> None:
    shutil.rmtree(run)
    run.write_text("")


def _a_folder(run: Path) -> None:
    _python(run)
    (run / "request.json").mkdir()


def _damaged(text: str) -> Callable[[Path], object]:
    return lambda run: (run / "request.json").write_text(text)


def _edited(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def write(run: Path) -> None:
        value = json.loads((run / "request.json").read_text())
        change(value)
        (run / "request.json").write_text(json.dumps(value))

    return write


WRONG: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no such directory": (lambda run: run.rename(run.parent / "rum"), ("run isn't there", "did you mean `rum`")),
    "a file": (_a_file, ("run is a file", "directory")),
    "no run": (lambda run: (run / "ledger.jsonl").unlink(), ("run is no run", "ledger.jsonl")),
    "begun from Python": (_python, ("begun from Python", "vitrify.compile", "run_dir='run'")),
    "empty": (_damaged(""), ("request.json is damaged", "--run-dir")),
    "cut off": (_damaged('{"request": {"program": "desk'), ("request.json is damaged",)),
    "no request": (_damaged("[1]"), ("request.json is damaged",)),
    "not UTF-8": (lambda run: (run / "request.json").write_bytes(b'"\xff"'), ("request.json is damaged",)),
    "a directory": (_a_folder, ("request.json can't be read",)),
    "another type": (_edited(lambda v: v["request"].update(seed="one")), ("request.seed", "integer")),
    "another name": (_edited(lambda v: v["request"].update(sede=1)), ("request.sede",)),
    "of the future": (_edited(lambda v: v.update(format="vitrify-request/9")), ("vitrify-request/9",)),
    "its folder is gone": (_edited(lambda v: v.update(directory="/nowhere")), ("/nowhere", "gone", "--run-dir run")),
    "its rows are gone": (lambda run: (run.parent / "rows.jsonl").unlink(), ("rows.jsonl", "gone")),
    "its program is gone": (lambda run: (run.parent / "desk.py").unlink(), ("desk.py", "gone")),
    "another server": (
        _edited(lambda v: (v["request"].update(lm="openai/x"), v.update(base_url="http://a/v1"))),
        ("OPENAI_BASE_URL", "http://a/v1"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_run(finished: Path, here: Path, wrong: str) -> None:
    shutil.copytree(finished / "run", here / "run")
    _edited(lambda value: value.update(json.loads(json.dumps(value).replace(str(finished), str(here)))))(here / "run")
    assert read_request(here / "run").missing() == []
    WRONG[wrong][0](here / "run")
    said(vitrify("resume", "run", "-o", "new.json"), *WRONG[wrong][1])
    assert not (here / "new.json").exists()


def test_the_environments_address_counts_for_openai_alone() -> None:
    environ = {"OPENAI_API_BASE": "http://me:x@a/v1"}
    given: dict[str, Any] = {"program": "p", "data": "d", "metric": "m", "output": Path("o")}
    assert base_url(CompileRequest(lm="openai/x", **given), environ) == "http://a/v1"
    assert base_url(CompileRequest(lm="embedded", prompt_lm="openai/x", **given), environ) == "http://a/v1"
    assert base_url(CompileRequest(lm="embedded", **given), environ) is None
    assert base_url(CompileRequest(lm="openai/x", api_base="http://b/v1", **given), environ) is None


def test_one_compile_a_run(here: Path) -> None:
    """A run that is under way is nobody else's, and its request stays what it is."""
    with ScriptedServer(faults=lambda number, body: Fault("hang")) as server:
        words = ("--data", "rows.jsonl", "--metric", "exact:team", "--lm", "any", "-o", "out.json", "--run-dir", "run")
        command = [sys.executable, "-m", "vitrify", "compile", "desk.py:Desk", *words, "--api-base", server.url]
        child = subprocess.Popen(command, stderr=subprocess.PIPE)
        while not server.requests and child.poll() is None:
            time.sleep(0.002)
        before = (here / "run" / "request.json").read_bytes()
        said(vitrify("resume", "run", "--budget-calls", 9), "in use")
        said(compile_("--run-dir", "run"), "in use")
        assert (here / "run" / "request.json").read_bytes() == before
        child.kill()
        child.communicate(timeout=20)

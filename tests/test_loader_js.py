"""docs/artifact.md lets somebody write a loader: one in JavaScript asks and answers as Python's does."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from vitrify.programs.artifact import read_artifact
from vitrify.signatures.errors import VitrifyError

import vitrify
from tests.golden.replay import plain
from tests.server import ScriptedServer
from tests.test_artifact_malformed import DEEP, NO_JSON, deeply_edited, edits, resealed
from tests.test_golden import FILES, name_of, runs_of

LOADER = Path(__file__).parent / "loader.mjs"
NODE = shutil.which("node")
SEALED = [path for path in FILES if read_artifact(path).program.kind == "sealed"]
OTHER = "openai/scripted"
"""What answers in the place of the embedded model, which is no server."""

pytestmark = pytest.mark.skipif(NODE is None, reason="node isn't installed: the JavaScript loader isn't run")


def node(path: Path, *arguments: str, lines: str = "") -> "subprocess.CompletedProcess[str]":
    assert NODE is not None
    return subprocess.run(
        [NODE, str(LOADER), str(path), *arguments], input=lines, capture_output=True, text=True, timeout=60
    )


def in_python(path: Path, runs: list[dict[str, Any]]) -> tuple[list[Any], list[Any]]:
    """Return what Python's loader asked and answered."""
    replies = [reply for run in runs for reply in run["replies"]]
    model = None if read_artifact(path).model.name != "embedded" else OTHER
    said: list[Any] = []
    with ScriptedServer(lambda body: replies.pop(0)) as server:
        with vitrify.load(path, lm=model, api_base=server.url, api_key="none") as program:
            for run in runs:
                try:
                    said.append({"outputs": plain(dict(program(**run["inputs"]).items()))})
                except VitrifyError as error:
                    said.append({"error": type(error).__name__})
        return server.bodies, said


def in_javascript(path: Path, runs: list[dict[str, Any]]) -> tuple[list[Any], list[Any]]:
    """Return what the loader in JavaScript asked and answered."""
    replies = [reply for run in runs for reply in run["replies"]]
    other = () if read_artifact(path).model.name != "embedded" else ("--model", OTHER)
    with ScriptedServer(lambda body: replies.pop(0)) as server:
        lines = "".join(json.dumps(run["inputs"]) + "\n" for run in runs)
        ran = node(path, "--base", server.url, *other, lines=lines)
        assert (0, "") == (ran.returncode, ran.stderr)
        return server.bodies, [json.loads(line) for line in ran.stdout.splitlines()]


@pytest.mark.parametrize("path", SEALED, ids=name_of)
def test_the_same_requests_and_outputs(path: Path) -> None:
    runs = runs_of(path)
    theirs, ours = in_javascript(path, runs), in_python(path, runs)
    assert len(ours[0]) == sum(len(run["requests"]) for run in runs)
    for mine, other in zip(ours[0], theirs[0], strict=True):
        # Keys of the body may come in any order; those of a schema may not.
        assert mine.keys() == other.keys()
        for key in mine:
            assert key == "messages" or json.dumps(mine[key]) == json.dumps(other[key])
        assert mine["messages"] == other["messages"]
    assert json.dumps(ours[1]) == json.dumps(theirs[1])


def test_a_new_artifact_too(saved: Path) -> None:
    runs = [run for run in runs_of(next(path for path in FILES if "helpdesk" in path.name)) if "outputs" in run]
    assert in_python(saved, runs) == in_javascript(saved, runs)


@pytest.mark.parametrize("kind", [*NO_JSON, *edits({"predictors": [{}]}), *DEEP])
def test_it_refuses_what_python_refuses(saved: Path, tmp_path: Path, kind: str) -> None:
    if kind in NO_JSON:
        data = NO_JSON[kind][0]
    elif kind in DEEP:
        data, _ = deeply_edited(kind)
    else:
        value = json.loads(saved.read_bytes())
        edits(value)[kind][0]()
        data = resealed(value)
    path = tmp_path / "x.json"
    path.write_bytes(data)
    ran = node(path, "--base", "http://127.0.0.1:1/v1")
    assert 2 == ran.returncode
    assert ran.stderr and "    at " not in ran.stderr  # a sentence, and no stack


def test_a_golden_file_that_was_edited_or_needs_its_class(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(SEALED[0].read_bytes().replace(b"message", b"massage", 1))
    assert "it was changed after it was written" in node(path).stderr
    assert "it needs its class" in node(next(path for path in FILES if path not in SEALED)).stderr

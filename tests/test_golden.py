"""Golden files: artifacts of every format version load for ever, ask the same requests and give the same outputs."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from vitrify.programs.artifact import read_artifact

from tests.golden.replay import expected

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(GOLDEN.glob("*/*.artifact.json"))


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.name.removesuffix('.artifact.json')}"


def runs_of(path: Path) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = json.loads(path.with_name(path.name.replace(".artifact.", ".runs.")).read_text())
    return runs


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_golden_file_asks_and_answers_as_it_did(path: Path) -> None:
    artifact = read_artifact(path)
    program = None
    if artifact.program.kind == "class":
        from tests.golden.programs import Gate

        program = Gate()
    for run in runs_of(path):
        said = expected(artifact, run["inputs"], run["replies"], program)
        # As text: the order of keys is part of a request, and 1.0 isn't 1.
        assert json.dumps(run) == json.dumps(said)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_golden_file_is_what_it_was(path: Path) -> None:
    assert read_artifact(path).to_bytes() == path.read_bytes()


def test_the_files_of_a_released_version_are_frozen() -> None:
    """`RELEASED` lists them: `sha256sum *.json > RELEASED`, once, when the version is released."""
    for released in GOLDEN.glob("*/RELEASED"):
        lines = [line.split() for line in released.read_text().splitlines()]
        found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in released.parent.glob("*.json")}
        assert {name: digest for digest, name in lines} == found


def test_there_is_one_of_each_kind() -> None:
    artifacts = {name_of(path).partition("/")[2]: read_artifact(path) for path in FILES}
    assert {"class", "sealed"} == {item.program.kind for item in artifacts.values()}
    assert "baseline" == artifacts["baseline"].selection.shipped
    assert artifacts["helpdesk"].evidence.improved
    assert not artifacts["uncertified"].evidence.certified
    assert {"chat", "json"} == {record.format for item in artifacts.values() for record in item.predictors}
    # Second requests, members, models, defaults and errors are among the runs.
    runs = [run for path in FILES for run in runs_of(path)]
    assert {"Unreadable"} == {run["error"] for run in runs if "error" in run}
    assert any("response_format" in request for run in runs for request in run["requests"])
    assert any(not run["requests"] for run in runs)

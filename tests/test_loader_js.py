"""docs/artifact.md lets somebody write a loader: one in JavaScript asks and answers as Python's does."""

import json
import math
import random
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from vitrify.programs.artifact import read_artifact
from vitrify.signatures.canonical import NotCanonical, canonical_json
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


SPELL = """
import fs from "node:fs";
import { canonical, parseJson, toJson } from %s;
for (const line of fs.readFileSync(0, "utf8").split("\\n")) {
  const value = parseJson(line);
  let text = "refused";
  try { text = canonical(value); } catch { /* as Python does */ }
  process.stdout.write(`${JSON.stringify([toJson(value), text])}\\n`);
}
"""


def test_values_are_spelled_alike() -> None:
    chance = random.Random(0)
    doubles = [struct.unpack("d", chance.randbytes(8))[0] for _ in range(2000)]
    values: list[Any] = [value for value in doubles if math.isfinite(value)]
    values += [10.0**power for power in range(-30, 30)] + [chance.uniform(-1, 1) * 10**power for power in range(-9, 25)]
    values += [2**53, 2**53 + 1, -(2**53) - 1, 10**17, 3 * 10**16, 0.0, -0.0, 1e16, 1e-4, 1e-5, 123456789012345680.0]
    values += [{"é": 1, "\U0001f642": 2, "\ue000": [1.0, None, True]}, {"9": 1, "10": '\u2028\x07\x7f"\\/'}, [], {}, ""]
    lines = "\n".join(json.dumps(value, ensure_ascii=False) for value in values)
    assert NODE is not None
    script = SPELL % json.dumps(LOADER.as_uri())
    ran = subprocess.run(
        [NODE, "--input-type=module", "-e", script], input=lines, capture_output=True, text=True, encoding="utf-8"
    )
    assert "" == ran.stderr
    for value, line in zip(values, ran.stdout.rstrip("\n").split("\n"), strict=True):
        try:
            text = canonical_json(value)
        except NotCanonical:
            text = "refused"
        assert [json.dumps(value, ensure_ascii=False), text] == json.loads(line)


def test_a_golden_file_that_was_edited_or_needs_its_class(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(SEALED[0].read_bytes().replace(b"message", b"massage", 1))
    assert "it was changed after it was written" in node(path).stderr
    assert "it needs its class" in node(next(path for path in FILES if path not in SEALED)).stderr

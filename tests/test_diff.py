"""`vitrify diff` as a person uses it, and that no difference escapes it."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vitrify.programs.artifact import Artifact
from vitrify.programs.differing import differences
from vitrify.programs.records import Mismatch

from tests.commands import vitrify
from tests.edited import edited, save_edited


def test_equal_files_say_nothing(saved: Path) -> None:
    found = vitrify("diff", saved, saved)
    assert (0, "", "") == (found.code, found.stdout, found.stderr)
    assert {"changes": []} == json.loads(vitrify("diff", saved, saved, "--json").stdout)


def test_another_instruction_and_demonstration(artifact: Any, saved: Path, tmp_path: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        record = data["predictors"][0]
        record["instruction"] += "\nBe brief."
        record["demos"] = [*record["demos"], {"message": "a [b]new[/b] one"}]
        record.update(format="json", plan=record["second_plan"], second_plan=None)
        data["evidence"]["compiled"] = 0.5

    path = artifact.predictors[0].path
    found = vitrify("diff", saved, save_edited(artifact, tmp_path / "b.json", change))
    lines = found.stdout.splitlines()
    assert found.code == 1 and found.stderr == ""
    assert lines[0].startswith(f"--- {saved}") and lines[1].startswith("+++ ")
    part = lines[lines.index(f"predictor {path}") :]
    assert "    + Be brief." in part and '  + demonstration: {"message": "a [b]new[/b] one"}' in part
    assert "  format: chat -> json" in part
    assert f"  compiled: {artifact.evidence.compiled:.4g} -> 0.5" in lines[lines.index("evidence") :]
    assert not any(line.startswith("  - demonstration") for line in lines)


def test_a_prompt_that_says_what_nothing_else_does_is_shown(artifact: Any, saved: Path, tmp_path: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["predictors"][0]["plan"]["messages"][0]["content"] += "\nAnd tell nobody."

    found = vitrify("diff", saved, save_edited(artifact, tmp_path / "b.json", change))
    assert found.code == 1 and "    + And tell nobody." in found.stdout.splitlines()
    body = [line for line in found.stdout.splitlines()[2:] if line.startswith("    ")]
    assert ["    + And tell nobody."] == body


def test_order_of_demonstrations(artifact: Any) -> None:
    def add(data: dict[str, Any]) -> None:
        data["predictors"][0]["demos"] = [{"message": "one"}, {"message": "two"}, {"message": "one"}]

    def turn(data: dict[str, Any]) -> None:
        data["predictors"][0]["demos"].reverse()
        data["predictors"][0]["demos"][:2] = data["predictors"][0]["demos"][1::-1]

    def fewer(data: dict[str, Any]) -> None:
        data["predictors"][0]["demos"].pop()

    first = edited(artifact, add)
    names = [(change.name, change.kind) for change in differences(first, edited(first, turn))]
    assert ("demonstrations", "changed") in names and ("demonstration", "added") not in names
    (gone,) = [c for c in differences(first, edited(first, fewer)) if c.name == "demonstration"]
    assert ("removed", {"message": "one"}) == (gone.kind, gone.before)


def test_a_predictor_more(artifact: Any) -> None:
    def add(data: dict[str, Any]) -> None:
        data["predictors"].append({**copy.deepcopy(data["predictors"][0]), "path": "second"})

    more = edited(artifact, add)
    assert [("predictor second", "added")] == [(c.part, c.kind) for c in differences(artifact, more)]
    assert [("predictor second", "removed")] == [(c.part, c.kind) for c in differences(more, artifact)]


def _leaves(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict) and value:
        for key in value:
            yield from _leaves(value[key], (*where, key))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from _leaves(item, (*where, index))
    else:
        yield where


_OTHER: dict[type, Any] = {
    str: lambda value: value + "x", bool: lambda value: not value, int: lambda value: value + 1,
    float: lambda value: value + 0.5, type(None): lambda value: "x", list: lambda value: ["x"],
    dict: lambda value: {"temperature": 0.25},
}  # fmt: skip


def test_no_difference_escapes(artifact: Any) -> None:
    """Every single value of the file that can be another one is found to be another one."""
    data, changed = artifact.to_json(), 0
    for where in _leaves(data):
        other = copy.deepcopy(data)
        place = other
        for key in where[:-1]:
            place = place[key]
        place[where[-1]] = _OTHER[type(place[where[-1]])](place[where[-1]])
        try:
            second = Artifact.from_json(other)
        except Mismatch:
            continue
        if where == ("sha256",):
            continue
        changed += 1
        assert differences(artifact, second), where
        assert differences(second, artifact), where
    assert changed > 100


@pytest.mark.parametrize("broken", ["missing", "text", "changed"])
def test_what_can_not_be_read(broken: str, saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    if broken == "text":
        other.write_text("nothing")
    elif broken == "changed":
        other.write_text(saved.read_text().replace('"seed":0', '"seed":1'))
    for pair in ((saved, other), (other, saved)):
        found = vitrify("diff", *pair)
        assert found.code == 2 and found.stdout == "" and "other.json" in found.sentence
        assert found.stderr.count("\n") == 1
    assert vitrify("diff", saved).code == 2

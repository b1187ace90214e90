"""`vitrify inspect`: the page says what is in the file, whose rows they are, and nothing that moves a cursor."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from vitrify.programs.artifact import Artifact

from tests.commands import vitrify
from tests.edited import edited, save_edited
from vitrify.inspecting import Line, evidence_in_words, page, visible, whose_rows


def shown(artifact: Artifact, width: int | None = None) -> str:
    parts: list[str] = []
    for title, lines in page(artifact):
        parts.append(title)
        for line in lines:
            parts += line.wrapped(width)
    return "\n".join(parts)


def test_the_page(artifact: Any, saved: Path) -> None:
    found = vitrify("inspect", saved)
    assert 0 == found.code and found.stdout.splitlines()[0].endswith(artifact.sha256)
    for word in (artifact.name, "sealed", "embedded", "Predictor", "instruction", "demonstration", "reproducible"):
        assert word in found.stdout
    for record in artifact.predictors:
        assert all(line.strip() in found.stdout for line in record.instruction.splitlines())
        assert all(f"-> {f['name']}" in found.stdout for f in record.signature["fields"] if f["role"] == "output")
    assert vitrify("inspect", saved, "--json").stdout.encode() == saved.read_bytes()
    assert not [line for line in found.stdout.splitlines() if line != line.rstrip()]


def test_every_demonstration_has_its_own_row(compiled: Any, tickets: Any) -> None:
    made = compiled(data=tickets)
    (record,) = made.predictors
    assert made.selection.shipped == "compiled" and record.demos
    assert len(record.rows) == len(record.demos)
    for row, demo in zip(record.rows, record.demos, strict=True):
        assert tickets[row - 1]["message"] == demo["message"]
    text = shown(made)
    for row, demo in zip(record.rows, record.demos, strict=True):
        (block,) = re.findall(rf"^    \d+\. row {row} of the data.*\n +message +(.*)$", text, re.MULTILINE)
        assert block == " ".join(demo["message"].split()) or block == demo["message"].splitlines()[0]
    assert ", ".join(map(str, sorted(record.rows))) in " ".join(whose_rows(made))


def test_whose_rows_where_nobody_knows(artifact: Any) -> None:
    def change(data: dict[str, Any]) -> None:
        data["canaries"] = []
        for record in data["predictors"]:
            record.update(demos=[{"message": "hi"}], rows=[], methods={})

    (said,) = whose_rows(edited(artifact, change))
    assert "were in your program" in said

    def start(data: dict[str, Any]) -> None:
        change(data)
        for record in data["predictors"]:
            record["methods"] = {"demos": "start: of the earlier artifact"}

    (said,) = whose_rows(edited(artifact, start))
    assert "isn't known" in said


def test_evidence_in_words(artifact: Any) -> None:
    def words(**evidence: Any) -> str:
        return " ".join(evidence_in_words(edited(artifact, lambda data: data["evidence"].update(evidence))))

    common: dict[str, Any] = {"baseline": 0.5, "compiled": 0.75, "difference": 0.25, "n": 40, "method": "Tango"}
    better = words(**common, improved=True, interval=[0.1, 0.4], sealed=True, certified=True)
    assert "scores 75.0 %" in better and "40 sealed test rows" in better and "A gain is claimed" in better
    unsure = words(**common, improved=False, interval=[-0.1, 0.4], sealed=True, certified=True)
    assert "No gain is claimed: the interval holds zero." in unsure
    assert "too few" in words(**common, improved=False, interval=[0.1, 0.4], sealed=False, certified=True)
    assert "Nothing is claimed" in words(**common, improved=False, interval=[0.1, 0.4], sealed=True, certified=False)
    home = words(**{**common, "method": "none: the baseline ships"}, improved=False, sealed=True, certified=True)
    assert "as it was written scores 50.0 %" in home and "no gain" in home


def test_a_file_moves_no_cursor(artifact: Any, tmp_path: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        record = data["predictors"][0]
        record["instruction"] = "Say \x1b[2J\x07 this\u202e\n\n  and \x9b this\rnot that \U0001f40d"
        record["methods"] = {"instruction": "\x1b]0;title\x07"}
        record["demos"] = [{"mess\x1bage": "\x1b[1m hello"}]
        data["notes"] = ["\x1b[31mred"]

    path = save_edited(artifact, tmp_path / "a.json", change)
    for args in (("inspect", path), ("diff", path, save_edited(artifact, tmp_path / "b.json", lambda data: None))):
        text = vitrify(*args).stdout
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text), args
    text = vitrify("inspect", path).stdout
    assert "Say \\u{1b}[2J\\u{7} this\\u{202e}" in text and "\U0001f40d" in text
    assert "Grüße\n" == visible("Grüße\n")


def test_lines_fit_the_terminal(artifact: Any) -> None:
    for width in (40, 72):
        text = shown(artifact, width)
        long = [line for line in text.splitlines()[1:] if len(line) > width and not line.startswith("Predictor")]
        assert not long
        assert re.sub(r"\s+", "", text) == re.sub(r"\s+", "", shown(artifact))
    assert ["  - a", "  b c"] == [line.rstrip() for line in Line("- a\nb c").wrapped(None)]


def test_long_values_say_that_they_were_cut(artifact: Any) -> None:
    long = edited(artifact, lambda data: data["predictors"][0].update(demos=[{"message": "x" * 5000}], rows=[]))
    assert "(5000 characters; --json has all)" in shown(long)


@pytest.mark.parametrize("content", ["", "{}", "text", "[1]", json.dumps({"format": "vitrify/1"})])
def test_what_is_no_artifact(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    found = vitrify("inspect", tmp_path / "a.json")
    assert (2, "", 1) == (found.code, found.stdout, found.stderr.count("\n"))

"""`vitrify inspect`: a page that a person wants to read: what it claims, what it holds, whose rows."""

import json
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from . import arguments
from .boundary import boundary

if TYPE_CHECKING:
    from .programs.artifact import Artifact, EvidenceRecord, PredictorRecord

LONG = 600
"""Characters of a value that the page shows; `--json` has it whole."""

_HIDDEN = ("Cc", "Cf", "Co", "Cn", "Cs", "Zl", "Zp")
"""Categories of characters that a terminal obeys, or doesn't show."""


@dataclass(frozen=True)
class Line:
    """A paragraph of the page.

    Attributes:
        text: What it says; its own lines stay lines.
        indent: Columns before it.
        label: What stands before its first line, in those columns or more.
    """

    text: str
    indent: int = 2
    label: str = ""

    def wrapped(self, width: int | None) -> list[str]:
        """Return it as lines that are no wider than `width`, where there is one."""
        inner = None if width is None else max(20, width - self.indent)
        parts: list[str] = []
        for line in visible(self.text).splitlines() or [""]:
            lead = line[: len(line) - len(line.lstrip(" "))]
            parts += [line] if inner is None else textwrap.wrap(line, inner, subsequent_indent=lead) or [""]
        first = visible(self.label).ljust(self.indent)
        heads = [first, *[" " * self.indent] * (len(parts) - 1)]
        return [f"{head}{part}".rstrip() for head, part in zip(heads, parts, strict=True)]


def inspect_command(
    artifact: arguments.ArtifactFile, as_json: arguments.AsJson = False, debug: arguments.Debug = False
) -> None:
    """Show a page about an artifact.

    Evidence in words, signatures, instructions, demonstrations and whose rows they are, provenance.
    """
    with boundary(debug):
        from .programs.artifact import read_artifact

        found = read_artifact(artifact)
        if as_json:
            typer.echo(found.to_bytes().decode(), nl=False)
            return
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        for number, (title, lines) in enumerate(page(found)):
            typer.echo(("\n" if number else "") + typer.style(title, bold=True))
            for line in lines:
                for part in line.wrapped(width):
                    typer.echo(part)


def visible(text: str) -> str:
    """Return text with the characters that a terminal obeys or hides written out: a file doesn't move the cursor."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        f"\\u{{{ord(char):x}}}" if char not in "\n\t" and unicodedata.category(char) in _HIDDEN else char
        for char in text
    )


def page(artifact: "Artifact") -> Iterator[tuple[str, list[Line]]]:
    """Yield the parts of the page: a title and what stands under it."""
    yield f"{visible(artifact.name)}  {artifact.format}  sha256 {artifact.sha256}", _facts(_program(artifact))
    yield "Evidence", [*map(Line, evidence_in_words(artifact)), *_facts(_selection(artifact))]
    for record in artifact.predictors:
        yield f"Predictor {visible(record.path)}", list(_predictor(record))
    yield "Whose rows ship", [*map(Line, whose_rows(artifact))]
    yield "Provenance", _facts(_provenance(artifact))
    if artifact.notes:
        yield "Notes", [*map(Line, artifact.notes)]


def _program(artifact: "Artifact") -> dict[str, str]:
    program = artifact.program
    how = "sealed: runs without DSPy and without its source" if program.kind == "sealed" else (
        f"needs its class {program.import_path or artifact.name}: {program.reason}"
    )  # fmt: skip
    decoding = "".join(f", {name} {json.dumps(value)}" for name, value in artifact.model.decoding.items())
    return {
        "program": how,
        "inputs": ", ".join(item.name + ("" if item.required else " (optional)") for item in artifact.inputs),
        "model": f"{artifact.model.name}{decoding}",
        "adapter": artifact.model.adapter,
    }


def evidence_in_words(artifact: "Artifact") -> list[str]:
    """Return what the evidence says, in sentences for somebody who knows the metric and no statistics."""
    found = artifact.evidence
    if not found.n or not found.certified:
        return [f"{_upper(str(found))}.", "Nothing is claimed: `vitrify evaluate` scores it on data."]
    rows = f"{found.n} {'sealed test rows, by which nothing was chosen' if found.sealed else 'held-out rows'}"
    metric = artifact.provenance.metric
    if found.method.startswith("none"):
        return [
            f"The program as it was written scores {found.shown(found.baseline)} ({metric}) on {rows}.",
            "It is what ships, so there is no gain to claim.",
        ]
    return [
        f"The compiled program scores {found.shown(found.compiled)} ({metric}) on {rows}; the program as it was "
        f"written scores {found.shown(found.baseline)} on the same.",
        f"The difference is {found.gain}, by {found.method}.",
        _claim(found),
    ]


def _claim(found: "EvidenceRecord") -> str:
    if found.improved:
        return "A gain is claimed: the whole interval lies above zero."
    if not found.sealed:
        return "No gain is claimed: the rows are too few for that."
    worse = ", and the compiled program did worse here" if found.difference < 0 else ""
    return f"No gain is claimed: the interval holds zero{worse}."


def _selection(artifact: "Artifact") -> dict[str, str]:
    selection = artifact.selection
    slots = ", ".join(f"{name} {count}" for name, count in selection.slots.items())
    return {
        "ships": f"{selection.shipped}: {selection.reason}",
        "search": f"{selection.trials} candidates in {selection.evaluations} evaluations"
        + (f"; to choose from: {slots}" if slots else ""),
    }


def _predictor(record: "PredictorRecord") -> Iterator[Line]:
    if record.aliases:
        yield Line(f"also {', '.join(record.aliases)}")
    if record.reason:
        yield Line(f"run by DSPy itself: {record.reason}")
    fields = (record.signature or {}).get("fields", [])
    yield from _facts({f"{'->' if f['role'] == 'output' else '  '} {f['name']}": _field(f) for f in fields})
    yield Line(f"instruction{_from(record.methods.get('instruction'))}:")
    yield Line(record.instruction, 4)
    settings = "".join(f", {name} {json.dumps(value)}" for name, value in record.decoding.items())
    count = f"{len(record.demos)} demonstration{'' if len(record.demos) == 1 else 's'}"
    yield Line(
        f"{count}{_from(record.methods.get('demos'))}{':' if record.demos else ''}"
        + ("" if record.demos else f"; replies in {record.format}{settings}")
    )
    for number, (demo, origin) in enumerate(zip(record.demos, origins(record), strict=True), 1):
        yield Line(f"{number}. {origin}", 4)
        yield from _facts({name: _value(value) for name, value in demo.items()}, 7)
    if record.demos:
        yield Line(f"replies in {record.format}{settings}")


def origins(record: "PredictorRecord") -> list[str]:
    """Return where each demonstration of a predictor comes from, as far as the file says."""
    method = record.methods.get("demos")
    if method is None:
        return ["your program's own"] * len(record.demos)
    kind = method.partition(":")[0]
    how = {"bootstrap": ", the program's own answer, which the metric accepted", "labelled": ", as labelled"}.get(
        kind, ""
    )
    if len(record.rows) != len(record.demos):
        return [f"from {method}"] * len(record.demos)
    return [f"row {row} of the data{how}" for row in record.rows]


def whose_rows(artifact: "Artifact") -> list[str]:
    """Return which rows of the data can be read in the file, in sentences."""
    rows = sorted({row for record in artifact.predictors for row in record.rows})
    lines = []
    if rows:
        listed = ", ".join(map(str, rows))
        noun = "row stands" if len(rows) == 1 else "rows stand"
        lines.append(f"{len(rows)} {noun} in it as demonstrations, in clear: {listed} (1 is the data's first).")
    unknown = [r.path for r in artifact.predictors if r.demos and r.methods.get("demos") and not r.rows]
    if unknown:
        lines.append(f"Whose rows {', '.join(unknown)} shows isn't known: they came with another file.")
    own = [r.path for r in artifact.predictors if r.demos and not r.methods.get("demos")]
    if own:
        lines.append(f"The demonstrations of {', '.join(own)} were in your program.")
    if artifact.canaries:
        count = len(artifact.canaries)
        lines.append(f"{count} canar{'y holds' if count == 1 else 'ies hold'} the inputs of training rows.")
    written = [r.path for r in artifact.predictors if not r.methods.get("instruction", "user").startswith("user")]
    if written and rows:
        lines.append(f"The instruction of {', '.join(written)} was written from training rows: read it.")
    return lines or ["None."]


def _provenance(artifact: "Artifact") -> dict[str, str]:
    found = artifact.provenance
    rows = ", ".join(f"{found.rows[name]} {name}" for name in ("train", "select", "test") if name in found.rows)
    money = "" if not found.dollars else f", ${found.dollars:.4f}"
    odd = f"; {found.malformed} unreadable replies, {found.reparsed} asked again" if found.malformed else ""
    return {
        "strategy": f"{found.strategy}, seed {found.seed}",
        "metric": found.metric + (f" (sha256 {found.metric_sha256[:16]})" if found.metric_sha256 else ""),
        "data": f"{rows} rows (sha256 {found.data_sha256[:16]})",
        "cost": f"{found.calls} calls, {found.prompt_tokens} + {found.completion_tokens} tokens{money}{odd}",
        "versions": ", ".join(f"{name} {number}" for name, number in found.versions.items()),
        "reproducible": "yes: the same request gives the same bytes"
        if artifact.reproducible
        else f"no: {artifact.reproducible_reason}",
    }


def _field(field: dict[str, Any]) -> str:
    from .signatures.contract import annotation_name
    from .signatures.types import python_type, type_from_json

    type_ = field["type"]
    text = type_ if isinstance(type_, str) else annotation_name(python_type(type_from_json(type_)))
    default = "" if field["default"] is None else " (has a default)"
    about = [part for part in (field["description"], field["constraints"]) if part]
    return _short(text) + default + (f"  {_short('; '.join(about))}" if about else "")


def _value(value: Any) -> str:
    from .programs.exact import from_exact

    plain = from_exact(value)
    return _short(plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False))


def _short(text: str) -> str:
    return text if len(text) <= LONG else f"{text[:LONG]}... ({len(text)} characters; --json has all)"


def _from(method: str | None) -> str:
    return "" if method is None else f" ({method})"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _facts(facts: dict[str, str], indent: int = 2) -> list[Line]:
    """Return names and values as lines, the values in one column."""
    widest = max((len(visible(name)) for name in facts), default=0)
    column = indent + min(widest, 24) + 2
    return [Line(value, column, " " * indent + name + "  ") for name, value in facts.items()]

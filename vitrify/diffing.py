"""`vitrify diff`: what changed from one artifact to another; exit code 1 if anything, as `diff` does."""

import json
from typing import Any

import typer

from . import arguments
from .boundary import boundary
from .inspecting import visible

SHOWN = 300
"""Characters of a value that a line shows; `--json` has it whole."""


def diff_command(
    first: arguments.FirstArtifact,
    second: arguments.SecondArtifact,
    as_json: arguments.AsJson = False,
    debug: arguments.Debug = False,
) -> None:
    """Show what changed between two artifacts.

    Exit code 1 if anything did, 0 if nothing, 2 if one of them can't be read.
    """
    with boundary(debug):
        from .programs.artifact import read_artifact
        from .programs.differing import differences

        before, after = read_artifact(first), read_artifact(second)
        found = differences(before, after)
        if as_json:
            typer.echo(json.dumps({"changes": [change.to_json() for change in found]}, ensure_ascii=False))
        elif found:
            for sign, path, artifact in (("---", first, before), ("+++", second, after)):
                typer.echo(f"{sign} {path}  {visible(artifact.name)}  {artifact.sha256[:16]}")
            for line in page(found):
                typer.echo(visible(line))
        if found:
            raise typer.Exit(1)


def page(changes: Any) -> list[str]:
    """Return changes as lines, a heading for each part; texts as a diff, values as `before -> after`."""
    lines: list[str] = []
    part = None
    for change in changes:
        if change.part != part:
            part = change.part
            lines += ["", part]
        if change.kind == "text":
            lines += [f"  {change.name}:", *(f"    {line[:1]} {line[1:]}" for line in change.lines())]
        elif change.kind == "changed":
            lines.append(f"  {change.name}: {' -> '.join(_both(change.before, change.after))}")
        else:
            sign, value = ("+", change.after) if change.kind == "added" else ("-", change.before)
            lines.append(f"  {sign} {change.name}: {_shown(value)}")
    return lines


def _both(before: Any, after: Any) -> tuple[str, str]:
    """Return two values as texts that differ: numbers with four digits, or with all of them."""
    if isinstance(before, float) and isinstance(after, float) and f"{before:.4g}" != f"{after:.4g}":
        return f"{before:.4g}", f"{after:.4g}"
    return _shown(before), _shown(after)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    line = " ".join(text.split()) if isinstance(value, str) else text
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}..."

"""What the command line shows: progress, results, artifacts; rich on a terminal, plain lines elsewhere."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .loading import fields_of
from .programs.artifact import Artifact

if TYPE_CHECKING:
    from .compiler.progress import Snapshot
    from .evaluation import Evaluation

PASSES = ("split", "preflight", "search", "certify", "emit")
"""What is shown, in order; proposals are asked for beside the search."""


class _Quiet:
    """Shows nothing but notes."""

    def update(self, snapshot: "Snapshot") -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Print a sentence on stderr."""
        typer.echo(f"note: {text}", err=True)


class _Lines:
    """Prints a line when a pass is over, and every few seconds within it."""

    def __init__(self, every: float = 5.0) -> None:
        self._every = every
        self._latest: Snapshot | None = None
        self._last = time.monotonic()

    def update(self, snapshot: "Snapshot") -> None:
        """Print where the compile is, if there is news."""
        now = time.monotonic()
        over = self._latest is not None and self._latest.stage != snapshot.stage
        if over and self._latest is not None:
            typer.echo(_described(self._latest, over=True), err=True)
        elif now - self._last >= self._every:
            typer.echo(_described(snapshot), err=True)
        self._latest, self._last = snapshot, now if over or now - self._last >= self._every else self._last

    def note(self, text: str) -> None:
        """Print a sentence."""
        typer.echo(f"note: {text}", err=True)

    def finish(self) -> None:
        """Print the last pass."""
        if self._latest is not None:
            typer.echo(_described(self._latest, over=True), err=True)


class _Screen:
    """Redraws two lines on a terminal."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._last = 0.0
        self._stage = ""

    def update(self, snapshot: "Snapshot") -> None:
        """Redraw, ten times a second at most."""
        now = time.monotonic()
        if snapshot.stage == self._stage and now - self._last < 0.1:
            return
        self._stage, self._last = snapshot.stage, now
        self._live.update(_drawn(snapshot))

    def note(self, text: str) -> None:
        """Print a sentence above the line."""
        self._live.console.print(f"note: {escape(text)}", style="yellow", highlight=False)


def _described(snapshot: "Snapshot", *, over: bool = False) -> str:
    """Return a snapshot as one plain line; a pass that is over takes no more time."""
    done = [f"{snapshot.done}/{snapshot.planned} evaluations"] if snapshot.planned else []
    left = None if over else snapshot.seconds_left
    time_left = [f"about {_time(left)} left in this pass"] if left is not None and left >= 1 else []
    return f"{_head(snapshot)} {', '.join([*done, *_facts(snapshot), *time_left])}"


def _drawn(snapshot: "Snapshot") -> Group:
    """Return a snapshot as two short lines with a bar, for a terminal."""
    left = snapshot.seconds_left
    line = Table.grid(padding=(0, 1))
    line.add_row(
        Text(_head(snapshot), style="bold"),
        ProgressBar(max(1, snapshot.planned), snapshot.done, width=24),
        Text(f"{snapshot.done}/{snapshot.planned} evaluations" if snapshot.planned else ""),
        Text(f"about {_time(left)} left" if left is not None and left >= 1 else "", style="dim"),
    )
    return Group(line, Text(" " * 6 + ", ".join(_facts(snapshot)), no_wrap=True, overflow="ellipsis"))


def _head(snapshot: "Snapshot") -> str:
    number = PASSES.index(snapshot.stage) + 1 if snapshot.stage in PASSES else 0
    return f"[{number}/{len(PASSES)}] {snapshot.stage:<9}"


def _facts(snapshot: "Snapshot") -> list[str]:
    """Return trials, best score, calls, tokens and, where it is told, the concurrency in words."""
    facts = []
    if snapshot.trials:
        facts.append(f"{snapshot.trials} trials")
    if snapshot.best is not None:
        facts.append(f"best {percent(snapshot.best)}")
    replayed = f" (+{snapshot.replayed} known already)" if snapshot.replayed else ""
    facts += [f"{snapshot.calls} calls{replayed}", f"{_short(snapshot.tokens)} tokens"]
    return [*facts, *([f"{snapshot.concurrency} at a time"] if snapshot.concurrency else [])]


def percent(score: float) -> str:
    """Return a score in words: most metrics lie in [0, 1], those that don't are shown as they are."""
    return f"{100 * score:.1f} %" if -1 <= score <= 1 else f"{score:.4g}"


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _short(count: int) -> str:
    if count < 10_000:
        return str(count)
    return f"{count / 1000:.0f}k" if count < 1_000_000 else f"{count / 1_000_000:.1f}M"


@contextmanager
def make_progress(*, quiet: bool) -> Iterator[Any]:
    """Give what shows a compile's progress on stderr."""
    console = Console(stderr=True)
    if quiet:
        yield _Quiet()
    elif not console.is_terminal:
        lines = _Lines()
        yield lines
        lines.finish()
    else:
        with Live(console=console, transient=True, refresh_per_second=8) as live:
            yield _Screen(live)


def print_result(artifact: Artifact, path: Path, seconds: float, *, as_json: bool) -> None:
    """Print what a compile gained."""
    evidence, selection, provenance = artifact.evidence, artifact.selection, artifact.provenance
    if as_json:
        summary = {
            "artifact": str(path),
            "sha256": artifact.sha256,
            "shipped": selection.shipped,
            "reason": selection.reason,
            "evidence": evidence.to_json(),
            "calls": provenance.calls,
            "tokens": provenance.prompt_tokens + provenance.completion_tokens,
            "seconds": round(seconds, 1),
        }
        typer.echo(json.dumps(summary))
        return
    kind = "sealed test" if evidence.sealed else "held-out rows; too few for a sealed claim"
    typer.echo(f"\n{artifact.name} on {artifact.model.name}, {provenance.metric}, {evidence.n} rows ({kind}):")
    typer.echo(f"  baseline  {evidence.shown(evidence.baseline):>7}")
    if selection.shipped == "compiled":
        typer.echo(f"  compiled  {evidence.shown(evidence.compiled):>7}   {evidence.gain}{evidence.claim}")
    else:
        typer.echo(f"  The baseline ships: {selection.reason}.")
    for record in artifact.predictors:
        for what, how in sorted(record.methods.items()):
            typer.echo(f"  {record.path}: {what} from {how}")
    money = "" if not provenance.dollars else f", ${provenance.dollars:.4f}"
    tokens = _short(provenance.prompt_tokens + provenance.completion_tokens)
    typer.echo(
        f"  {selection.trials} candidates tried in {selection.evaluations} evaluations; "
        f"{provenance.calls} calls, {tokens} tokens{money}, {seconds:.1f} s"
    )
    typer.echo(f"wrote {path} ({artifact.program.kind}, {path.stat().st_size / 1024:.0f} KiB)")


def print_prediction(prediction: Any, *, as_json: bool) -> None:
    """Print a prediction, a field a line."""
    values = fields_of(prediction)
    if as_json:
        typer.echo(json.dumps(values, ensure_ascii=False))
        return
    for name, value in values.items():
        typer.echo(f"{name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")


def print_evaluation(result: "Evaluation", artifact: Path, csv: Path | None, *, as_json: bool) -> None:
    """Print a program's score."""
    if as_json:
        typer.echo(json.dumps(result.to_json()))
        return
    typer.echo(
        f"{result.artifact.name} ({artifact}): {result.metric} = {100 * result.score:.2f} % on "
        f"{len(result.rows)} rows, {result.failures} failures, {result.seconds:.1f} s"
    )
    if csv is not None:
        typer.echo(f"wrote {csv}")


def print_artifact(artifact: Artifact) -> None:
    """Print a page about an artifact."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    evidence, selection, provenance = artifact.evidence, artifact.selection, artifact.provenance
    how = (
        "sealed: runs without DSPy"
        if artifact.program.kind == "sealed"
        else f"needs its class: {artifact.program.reason}"
    )
    console.print(f"[bold]{escape(artifact.name)}[/bold]  {escape(artifact.format)}  {artifact.sha256[:16]}")
    facts = Table.grid(padding=(0, 2))
    for name, value in (
        ("program", how),
        ("inputs", ", ".join(item.name + ("" if item.required else " (optional)") for item in artifact.inputs)),
        ("model", artifact.model.name),
        ("evidence", str(evidence) + ("" if evidence.improved else "; no gain is claimed")),
        ("shipped", f"{selection.shipped}: {selection.reason}"),
        (
            "search",
            f"{selection.trials} candidates, {selection.evaluations} evaluations, strategy {provenance.strategy}",
        ),
        (
            "data",
            ", ".join(f"{count} {name}" for name, count in provenance.rows.items())
            + f" rows ({provenance.data_sha256[:12]})",
        ),
        ("cost", f"{provenance.calls} calls, {provenance.prompt_tokens} + {provenance.completion_tokens} tokens"),
        ("versions", ", ".join(f"{name} {number}" for name, number in provenance.versions.items())),
        ("reproducible", "yes" if artifact.reproducible else f"no: {artifact.reproducible_reason}"),
    ):
        facts.add_row(name, escape(value))
    console.print(facts)
    for record in artifact.predictors:
        console.print(
            f"\n[bold]{escape(record.path)}[/bold]"
            + (f"  (run by DSPy: {escape(record.reason)})" if record.reason else "")
        )
        for field in (record.signature or {}).get("fields", []):
            console.print(f"  {field['role']:<6} {escape(field['name'])}: {escape(_kind(field['type']))}")
        console.print(f"  instruction{_from(record.methods.get('instruction'))}:")
        for line in record.instruction.splitlines():
            console.print(f"    {escape(line)}")
        console.print(
            f"  {len(record.demos)} demonstrations{_from(record.methods.get('demos'))}, format {record.format}"
        )
        for demo in record.demos:
            console.print("    " + escape(json.dumps(demo, ensure_ascii=False)[:160]))
    for note in artifact.notes:
        console.print(f"\nnote: {escape(note)}")


def _kind(type_: Any) -> str:
    """Return a field's type as Python writes it."""
    if isinstance(type_, str):
        return type_
    from .signatures.contract import annotation_name
    from .signatures.types import python_type, type_from_json

    text = annotation_name(python_type(type_from_json(type_)))
    return text if len(text) <= 160 else f"{text[:160]}..."


def _from(method: str | None) -> str:
    return "" if method is None else f" ({escape(method)})"

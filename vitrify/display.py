"""What the command line shows: progress, results, artifacts; rich on a terminal, plain lines elsewhere."""

import json
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


def print_prediction(values: dict[str, Any], *, as_json: bool) -> None:
    """Print a prediction's fields, one a line."""
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

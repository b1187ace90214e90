"""`vitrify export` and `vitrify import`: an artifact in other forms, and DSPy's state as an artifact."""

import json
import sys
from pathlib import Path
from typing import Any

import typer

from . import arguments
from .boundary import boundary
from .signatures.errors import RequestError, nearest

TARGETS = ("dspy", "openai", "finetune")


def export_command(
    artifact: arguments.ArtifactFile,
    to: arguments.Target,
    output: arguments.ExportOutput = None,
    program: arguments.OwnProgram = None,
    run: arguments.TracesRun = None,
    predictor: arguments.OnePredictor = None,
    demos: arguments.WithDemos = False,
    debug: arguments.Debug = False,
) -> None:
    """Write an artifact for DSPy, OpenAI or training.

    What the form leaves out is said on stderr.

    dspy: the state that plain DSPy's Module.load reads. openai: chat completion requests with {{placeholders}}.
    finetune: chats to train a model on, one a line: the run's accepted traces (--run), or else the demonstrations.
    """
    with boundary(debug):
        from .loading import check_output
        from .programs.artifact import read_artifact
        from .programs.files import write_atomically

        if to not in TARGETS:
            raise RequestError(f"`--to` is dspy, openai or finetune, got {to!r:.40}; {nearest(to, TARGETS)}")
        _check(to, program=program, run=run, predictor=predictor, demos=demos)
        if output is not None:
            check_output(output, "-o")
        found = read_artifact(artifact)
        if to == "dspy":
            data, notes = _dspy(found, program)
        elif to == "openai":
            from .programs.openai_export import openai_requests

            requests, notes = openai_requests(found)
            data = (json.dumps(requests, indent=2, ensure_ascii=False) + "\n").encode()
        else:
            data, notes = _finetune(found, run, predictor, demos)
        for note in notes:
            typer.echo(f"note: {note}", err=True)
        if output is None:
            sys.stdout.write(data.decode())
        else:
            write_atomically(output, data)
            typer.echo(f"wrote {output} ({len(data) / 1024:.0f} KiB)", err=True)


def _check(to: str, **given: Any) -> None:
    takes = {"program": "dspy", "run": "finetune", "predictor": "finetune", "demos": "finetune"}
    for name, value in given.items():
        if value and takes[name] != to:
            raise RequestError(f"`--{name}` is for --to {takes[name]}, got --to {to}; leave it out.")


def _dspy(artifact: Any, program: str | None) -> tuple[bytes, list[str]]:
    from .compiler.dspy_state import state_of
    from .loading import load_program

    data, notes = state_of(artifact, None if program is None else load_program(program))
    if program is None:
        notes.append("--program file.py:Class checks that it brings back the same prompts.")
    return data, notes


def _finetune(artifact: Any, run: Path | None, predictor: str | None, demos: bool) -> tuple[bytes, list[str]]:
    from .programs.finetune import conversations, shipped_traces

    notes = []
    if run is None:
        traces = shipped_traces(artifact)
        notes.append(
            "These are the demonstrations in the file; --run FOLDER exports all accepted traces of its compile."
        )
    else:
        from .compiler.traces import read_traces

        traces = read_traces(run)
    if predictor is not None:
        known = [record.path for record in artifact.predictors]
        if predictor not in known:
            raise RequestError(f"`--predictor {predictor}` is none of {artifact.name}; {nearest(predictor, known)}")
        traces = tuple(trace for trace in traces if trace.path == predictor)
    lines = [json.dumps(chat, ensure_ascii=False) + "\n" for chat in conversations(artifact, traces, demos=demos)]
    if not lines:
        raise RequestError(
            f"{'The file' if run is None else run} has no complete trace to train on: `a chat has every field of its "
            "predictor`; name a run with accepted traces with --run."
        )
    if len(traces) > len(lines):
        notes.append(f"{len(traces) - len(lines)} of {len(traces)} traces lack a field, and were left out.")
    return "".join(lines).encode(), notes


def import_command(
    state: arguments.StateFile,
    program: arguments.CompiledProgram,
    output: arguments.Output,
    lm: arguments.ImportLm = None,
    adapter: arguments.Adapter = "chat",
    api_base: arguments.ApiBase = None,
    debug: arguments.Debug = False,
) -> None:
    """Make an artifact of a state that DSPy saved.

    That is what program.save("state.json") wrote. The artifact claims nothing, since nothing is measured.

    vitrify import state.json program.py:Desk --lm openai/gpt-4o-mini -o desk.json
    """
    with boundary(debug):
        from .compiler.dspy_state import check_format, import_state
        from .loading import check_output, load_program

        check_output(output, "-o")
        chosen = check_format(adapter)
        artifact = import_state(state, load_program(program), lm=lm, adapter=chosen, api_base=api_base)
        artifact.save(output)
        for note in artifact.notes:
            typer.echo(f"note: {note}", err=True)
        how = "sealed" if artifact.program.kind == "sealed" else f"needs its class: {artifact.program.reason}"
        typer.echo(f"wrote {output} ({how}); `vitrify evaluate` measures it, and `compile --start` goes on from it")

"""The command line: every command; those that aren't here stand in a module of their own, and are listed at the end."""

import json
import time
from typing import Annotated

import typer

from . import __version__, arguments
from .boundary import boundary, run_app
from .diffing import diff_command
from .exporting import export_command, import_command
from .grouped import Grouped, spread
from .inspecting import inspect_command
from .request import Changes, CompileRequest
from .signatures.errors import RequestError
from .signing import sign_command
from .verifying import verify_command

app = typer.Typer(
    name="vitrify",
    help="A compiler for language-model pipelines: DSPy modules in, one frozen JSON program with honest evidence out.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """Compile, run, evaluate, inspect, compare, verify, sign, export and import programs."""
    if version:
        typer.echo(f"vitrify {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("compile", cls=Grouped)
@spread
def compile_command(
    request: CompileRequest,
    run_dir: arguments.RunDir = None,
    as_json: arguments.AsJson = False,
    debug: arguments.Debug = False,
) -> None:
    """Compile a program on data and write the artifact.

    vitrify compile program.py:Desk --data tickets.jsonl --metric exact:team --lm openai/gpt-4o-mini -o desk.json
    """
    with boundary(debug, stopped=_stopped):
        from .compiling import compile_request
        from .display import make_progress, print_result

        began = time.monotonic()
        with make_progress(quiet=as_json) as progress:
            artifact = compile_request(request, run_dir, progress)
        print_result(artifact, request.output, time.monotonic() - began, as_json=as_json)


@app.command("resume", cls=Grouped)
@spread
def resume_command(
    run: arguments.RunFolder,
    changes: Changes,
    as_json: arguments.AsJson = False,
    debug: arguments.Debug = False,
) -> None:
    """Go on with a compile that was stopped, from its run's directory; what was paid is not paid again.

    Without options it is the compile as it was begun. A finished run writes its artifact again.

    vitrify resume .vitrify/runs/desk-0123456789 --budget-calls 5000
    """
    with boundary(debug, stopped=_stopped):
        from .compiling import resume
        from .display import make_progress, print_result

        began = time.monotonic()
        with make_progress(quiet=as_json) as progress:
            artifact, output = resume(run, changes, progress)
        print_result(artifact, output, time.monotonic() - began, as_json=as_json)


def _stopped(stop: KeyboardInterrupt) -> str:
    from .stopped import stopped_sentence

    return stopped_sentence(stop)


@app.command("run", cls=Grouped)
def run_command(
    artifact: arguments.ArtifactFile,
    inputs: arguments.OneInput = None,
    rows: arguments.InputRows = None,
    program: arguments.NeededProgram = None,
    lm: arguments.OtherLm = None,
    api_base: arguments.ApiBase = None,
    concurrency: arguments.FixedConcurrency = 16,
    timeout: arguments.RunTimeout = None,
    retries: arguments.RunRetries = None,
    usage: arguments.WithUsage = False,
    as_json: arguments.AsJson = False,
    debug: arguments.Debug = False,
) -> None:
    """Run an artifact on one input (-i) or on rows (--input); rows give one JSON line each, in order."""
    with boundary(debug):
        from .display import print_prediction

        if (inputs is None) == (rows is None):
            raise RequestError("`run` takes either -i NAME=VALUE, once for each input, or --input FILE.")
        from .loading import fields_of, open_artifact, parse_inputs, predict, stream_rows, usage_of

        loaded = open_artifact(artifact, program=program, lm=lm, api_base=api_base, timeout=timeout, retries=retries)
        if inputs is not None:
            given, began = parse_inputs(inputs, loaded.artifact), time.perf_counter()
            found = predict(loaded, given)
            more = {"_usage": usage_of(found, time.perf_counter() - began)} if usage else {}
            print_prediction({**fields_of(found), **more}, as_json=as_json)
            return
        failed = 0
        for record, good in stream_rows(loaded, rows or "-", concurrency, usage=usage):
            failed += not good
            typer.echo(json.dumps(record, ensure_ascii=False))
        if failed:
            noun = "1 row failed; its line says" if failed == 1 else f"{failed} rows failed; their lines say"
            typer.echo(f"vitrify: {noun} why.", err=True)
            raise typer.Exit(1)


@app.command("evaluate", cls=Grouped)
def evaluate_command(
    artifact: arguments.ArtifactFile,
    data: arguments.Data,
    metric: arguments.Metric,
    csv: arguments.Table = None,
    program: arguments.NeededProgram = None,
    lm: arguments.OtherLm = None,
    api_base: arguments.ApiBase = None,
    concurrency: arguments.FixedConcurrency = 16,
    as_json: arguments.AsJson = False,
    debug: arguments.Debug = False,
) -> None:
    """Score an artifact on data."""
    with boundary(debug):
        from .display import print_evaluation
        from .evaluation import evaluate, write_table
        from .loading import check_output, open_artifact

        if csv is not None:
            check_output(csv, "--csv")
        loaded = open_artifact(artifact, program=program, lm=lm, api_base=api_base)
        result = evaluate(loaded, data, metric, concurrency=concurrency)
        if csv is not None:
            write_table(result, csv)
        print_evaluation(result, artifact, csv, as_json=as_json)


for name, command in (
    ("inspect", inspect_command),
    ("diff", diff_command),
    ("verify", verify_command),
    ("sign", sign_command),
    ("export", export_command),
    ("import", import_command),
):
    app.command(name, cls=Grouped)(command)


def main() -> None:
    """Run the command line."""
    run_app(app)

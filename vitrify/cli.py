"""The command line: `vitrify compile`, `run`, `evaluate`, `inspect`."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from . import __version__
from .signatures.errors import RequestError, VitrifyError

app = typer.Typer(
    name="vitrify",
    help="A compiler for language-model pipelines: DSPy modules in, one frozen JSON program with honest evidence out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Artifact_ = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="The file that `vitrify compile -o` wrote.")]
Data = Annotated[
    str, typer.Option("--data", help="CSV, JSONL, JSON or Parquet file, a dataset's folder, or a Hugging Face name.")
]
Metric = Annotated[
    str,
    typer.Option(
        "--metric", help="exact:field, f1:field, numeric:field, contains:field, file.py:function or module:function."
    ),
]
ApiBase = Annotated[
    str | None, typer.Option("--api-base", help="Address of an OpenAI-compatible server, up to and including /v1.")
]
Program = Annotated[
    str | None, typer.Option("--program", help="file.py:Class or module:Class, for a program that needs its class.")
]
RunLm = Annotated[str | None, typer.Option("--lm", help="Another language model than the one it was compiled for.")]
Concurrency = Annotated[int, typer.Option("--concurrency", min=1, max=1024, help="Calls at a time.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for a program to read.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Compile, run, evaluate and inspect programs."""
    if version:
        typer.echo(f"vitrify {__version__}")
        raise typer.Exit


@app.command("compile")
def compile_command(
    program: Annotated[str, typer.Argument(metavar="PROGRAM", help="file.py:Class or package.module:Class.")],
    data: Data,
    metric: Metric,
    lm: Annotated[
        str,
        typer.Option("--lm", help="embedded, openai/<model>, any provider/model of DSPy, or any name with --api-base."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.")],
    prompt_lm: Annotated[str | None, typer.Option("--prompt-lm", help="The model that writes instructions.")] = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="A program, file.py:Class, that bootstraps demonstrations.")
    ] = None,
    start: Annotated[Path | None, typer.Option("--start", help="An earlier artifact to start from.")] = None,
    effort: Annotated[str, typer.Option("--effort", help="light, medium or heavy.")] = "light",
    calls: Annotated[int | None, typer.Option("--budget-calls", min=0, help="Calls to models at most.")] = None,
    tokens: Annotated[int | None, typer.Option("--budget-tokens", min=0, help="Tokens at most.")] = None,
    dollars: Annotated[float | None, typer.Option("--budget-dollars", min=0, help="Dollars at most.")] = None,
    seconds: Annotated[
        float | None, typer.Option("--budget-seconds", min=0, help="Seconds until the search stops.")
    ] = None,
    price: Annotated[
        str | None, typer.Option("--price", help="Dollars per million prompt,completion tokens: 0.15,0.60.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of everything random.")] = 0,
    run_dir: Annotated[Path | None, typer.Option("--run-dir", help="Where the run keeps what it paid for.")] = None,
    test: Annotated[str | None, typer.Option("--test", help="Your own sealed test set.")] = None,
    select: Annotated[str | None, typer.Option("--select", help="Your own select set.")] = None,
    group: Annotated[
        str | None, typer.Option("--group", help="A column; rows that share its value stay in one set.")
    ] = None,
    instructions: Annotated[
        int, typer.Option("--instructions", help="Instructions to propose for each predictor.")
    ] = 6,
    demo_sets: Annotated[int, typer.Option("--demo-sets", help="Demonstration sets for each predictor.")] = 6,
    max_demos: Annotated[int, typer.Option("--max-demos", help="The largest demonstration set.")] = 16,
    accept: Annotated[
        float | None, typer.Option("--accept", help="Lowest metric value of a trace that becomes a demonstration.")
    ] = None,
    formats: Annotated[str, typer.Option("--formats", help="Reply formats to try as well: json.")] = "",
    temperature: Annotated[float | None, typer.Option("--temperature", help="Of the task model.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", help="The longest reply.")] = None,
    concurrency: Concurrency = 16,
    api_base: ApiBase = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compile a program and write the artifact."""
    from .display import make_progress, print_result

    with _errors(debug):
        from .front import compile as run_compile
        from .loading import load_program, load_table
        from .programs.artifact import check_writable

        check_writable(output)
        from .compiler.budget import Budget
        from .compiler.options import Options

        began = time.monotonic()
        with make_progress(quiet=as_json) as progress:
            options = Options(
                prompt_lm=prompt_lm,
                teacher=None if teacher is None else load_program(teacher),
                start=start,
                effort=effort,  # type: ignore[arg-type]  # Options checks it and says the rule
                concurrency=concurrency,
                test=None if test is None else load_table(test),
                select=None if select is None else load_table(select),
                group=group,
                accept=accept,
                instructions=instructions,
                demo_sets=demo_sets,
                max_demos=max_demos,
                formats=tuple(name for name in formats.split(",") if name),
                temperature=temperature,
                max_tokens=max_tokens,
                price=_price(price),
                api_base=api_base,
                progress=progress,
            )
            artifact = run_compile(
                load_program(program),
                data,
                metric,
                lm=lm,
                budget=Budget(calls=calls, tokens=tokens, dollars=dollars, seconds=seconds),
                seed=seed,
                run_dir=run_dir,
                options=options,
            )
        artifact.save(output)
        print_result(artifact, output, time.monotonic() - began, as_json=as_json)


@app.command("run")
def run_command(
    artifact: Artifact_,
    inputs: Annotated[
        list[str] | None, typer.Option("-i", metavar="NAME=VALUE", help="One input; repeat for more.")
    ] = None,
    rows: Annotated[
        str | None, typer.Option("--input", help="Rows to run, in any form that --data takes, or - for JSONL on stdin.")
    ] = None,
    program: Program = None,
    lm: RunLm = None,
    api_base: ApiBase = None,
    concurrency: Concurrency = 16,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run an artifact on one input (-i) or on rows (--input); rows give one JSON line each, in order."""
    from .display import print_prediction

    with _errors(debug):
        if (inputs is None) == (rows is None):
            raise RequestError("`run` takes either -i NAME=VALUE, once for each input, or --input FILE.")
        from .loading import open_artifact, parse_inputs, stream_rows

        loaded = open_artifact(artifact, program=program, lm=lm, api_base=api_base)
        if inputs is not None:
            print_prediction(loaded(**parse_inputs(inputs, loaded.artifact)), as_json=as_json)
            return
        failed = 0
        for record in stream_rows(loaded, rows or "-", concurrency):
            failed += "error" in record
            typer.echo(json.dumps(record, ensure_ascii=False))
        if failed:
            typer.echo(f"{failed} rows failed; their lines say why.", err=True)
            raise typer.Exit(1)


@app.command("evaluate")
def evaluate_command(
    artifact: Artifact_,
    data: Data,
    metric: Metric,
    csv: Annotated[
        Path | None, typer.Option("--csv", help="Write a table: inputs, prediction, expected, score, failure.")
    ] = None,
    program: Program = None,
    lm: RunLm = None,
    api_base: ApiBase = None,
    concurrency: Concurrency = 16,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Score an artifact on data."""
    from .display import print_evaluation

    with _errors(debug):
        from .evaluation import evaluate, write_table
        from .loading import open_artifact
        from .programs.artifact import check_writable

        if csv is not None:
            check_writable(csv)
        loaded = open_artifact(artifact, program=program, lm=lm, api_base=api_base)
        result = evaluate(loaded, data, metric, concurrency=concurrency)
        if csv is not None:
            write_table(result, csv)
        print_evaluation(result, artifact, csv, as_json=as_json)


@app.command("inspect")
def inspect_command(artifact: Artifact_, as_json: AsJson = False, debug: Debug = False) -> None:
    """Show what is in an artifact: instructions, demonstrations, evidence, provenance."""
    from .display import print_artifact

    with _errors(debug):
        from .programs.artifact import read_artifact

        found = read_artifact(artifact)
        if as_json:
            typer.echo(found.to_bytes().decode(), nl=False)
        else:
            print_artifact(found)


def _price(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        prompt, completion = (float(part) for part in text.split(","))
    except ValueError as error:
        raise RequestError(f"`--price` is two numbers, like 0.15,0.60, got {text!r}.") from error
    return prompt, completion


@contextmanager
def _errors(debug: bool) -> Iterator[None]:
    """Turn an error into one sentence on stderr and its exit code; `--debug` shows the traceback."""
    try:
        yield
    except VitrifyError as error:
        if debug:
            raise
        typer.echo(f"vitrify: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    except ModuleNotFoundError as error:
        if debug or not _is_ours(error):
            raise
        typer.echo(f"vitrify: {_install_hint(error)}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        if debug:
            raise
        typer.echo("vitrify: stopped; what was paid is kept: run the same command again to go on.", err=True)
        raise typer.Exit(130) from error
    except BrokenPipeError:
        # Whoever read our output has left, as `head` does.
        sys.stderr.close()
        raise typer.Exit(0) from None


def _is_ours(error: ModuleNotFoundError) -> bool:
    return (error.name or "").partition(".")[0] in (
        "dspy",
        "optuna",
        "numpy",
        "scipy",
        "datasets",
        "diskcache",
        "jinja2",
        "litellm",
    )


def _install_hint(error: ModuleNotFoundError) -> str:
    return f"this needs {error.name}, which isn't installed: run `pip install 'vitrify[compile]'`."


def main() -> None:
    """Run the command line."""
    app()

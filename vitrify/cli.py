"""The command line: `vitrify compile`, `run`, `evaluate`, `inspect`."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from . import __version__
from .boundary import boundary, run_app
from .grouped import Grouped
from .signatures.errors import RequestError

app = typer.Typer(
    name="vitrify",
    help="A compiler for language-model pipelines: DSPy modules in, one frozen JSON program with honest evidence out.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

BUDGET, SEARCH, ROWS, MODELS, SHOW = "Budget", "Search", "Rows", "Models", "Output"

Artifact_ = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="The file that `vitrify compile -o` wrote.")]
Data = Annotated[
    str,
    typer.Option(
        "--data", metavar="DATA", help="CSV, JSONL, JSON or Parquet file, a dataset's folder, or a Hugging Face name."
    ),
]
Metric = Annotated[
    str,
    typer.Option(
        "--metric",
        metavar="METRIC",
        help="exact:field, f1:field, numeric:field, contains:field, file.py:function or module:function.",
    ),
]
ApiBase = Annotated[
    str | None,
    typer.Option(
        "--api-base",
        metavar="URL",
        rich_help_panel=MODELS,
        help="Address of an OpenAI-compatible server, up to and including /v1.",
    ),
]
Program = Annotated[
    str | None,
    typer.Option(
        "--program", metavar="PROGRAM", help="file.py:Class or module:Class, for a program that needs its class."
    ),
]
RunLm = Annotated[
    str | None,
    typer.Option("--lm", metavar="LM", rich_help_panel=MODELS, help="Another model than the one it was compiled for."),
]
Concurrency = Annotated[
    int,
    typer.Option("--concurrency", metavar="N", min=1, max=1024, rich_help_panel=MODELS, help="Calls at a time."),
]
AsJson = Annotated[bool, typer.Option("--json", rich_help_panel=SHOW, help="Print JSON, for a program to read.")]
Debug = Annotated[bool, typer.Option("--debug", rich_help_panel=SHOW, help="Show the traceback of an error.")]

STOPPED = "stopped; what was paid is kept: run the same command again to go on."


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """Compile, run, evaluate and inspect programs."""
    if version:
        typer.echo(f"vitrify {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("compile", cls=Grouped)
def compile_command(
    program: Annotated[
        str,
        typer.Argument(
            metavar="PROGRAM",
            help="file.py:Class or package.module:Class: a dspy.Module, or a function that makes one.",
        ),
    ],
    data: Data,
    metric: Metric,
    lm: Annotated[
        str,
        typer.Option(
            "--lm",
            metavar="LM",
            help="embedded (offline, for trying things), openai/<model>, any provider/model of DSPy, or any name "
            "together with --api-base.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The file to write.")],
    calls: Annotated[
        int | None,
        typer.Option("--budget-calls", metavar="N", min=0, rich_help_panel=BUDGET, help="Calls to models at most."),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--budget-tokens", metavar="N", min=0, rich_help_panel=BUDGET, help="Tokens at most.")
    ] = None,
    dollars: Annotated[
        float | None,
        typer.Option("--budget-dollars", metavar="X", min=0, rich_help_panel=BUDGET, help="Dollars at most."),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--budget-seconds", metavar="X", min=0, rich_help_panel=BUDGET, help="Seconds until the search stops."
        ),
    ] = None,
    price: Annotated[
        str | None,
        typer.Option(
            "--price",
            metavar="X,Y",
            rich_help_panel=BUDGET,
            help="Dollars per million prompt and completion tokens, such as 0.15,0.60, where nobody knows them.",
        ),
    ] = None,
    effort: Annotated[
        str,
        typer.Option(
            "--effort",
            metavar="EFFORT",
            rich_help_panel=SEARCH,
            help="light (1,200 evaluations), medium (3,000) or heavy (9,000).",
        ),
    ] = "light",
    seed: Annotated[
        int,
        typer.Option("--seed", metavar="N", rich_help_panel=SEARCH, help="Of everything random; same seed, same file."),
    ] = 0,
    start: Annotated[
        Path | None,
        typer.Option("--start", metavar="FILE", rich_help_panel=SEARCH, help="An earlier artifact to start from."),
    ] = None,
    instructions: Annotated[
        int,
        typer.Option(
            "--instructions", metavar="N", rich_help_panel=SEARCH, help="Instructions to propose for each predictor."
        ),
    ] = 6,
    demo_sets: Annotated[
        int,
        typer.Option("--demo-sets", metavar="N", rich_help_panel=SEARCH, help="Demonstration sets for each predictor."),
    ] = 6,
    max_demos: Annotated[
        int,
        typer.Option("--max-demos", metavar="N", rich_help_panel=SEARCH, help="The largest demonstration set."),
    ] = 16,
    failure_score: Annotated[
        float,
        typer.Option(
            "--failure-score",
            metavar="X",
            help="What an unreadable reply counts: the metric's worst value.",
            rich_help_panel=SEARCH,
        ),
    ] = 0.0,
    accept: Annotated[
        float | None,
        typer.Option(
            "--accept",
            metavar="X",
            rich_help_panel=SEARCH,
            help="Lowest metric value of a trace that becomes a demonstration.",
        ),
    ] = None,
    formats: Annotated[
        str,
        typer.Option("--formats", metavar="FORMAT", rich_help_panel=SEARCH, help="Reply format to try as well: json."),
    ] = "",
    test: Annotated[
        str | None, typer.Option("--test", metavar="DATA", rich_help_panel=ROWS, help="Your own sealed test set.")
    ] = None,
    select: Annotated[
        str | None,
        typer.Option(
            "--select", metavar="DATA", rich_help_panel=ROWS, help="Your own select set, on which candidates compete."
        ),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            "--group", metavar="COLUMN", rich_help_panel=ROWS, help="Rows that share its value stay in one set."
        ),
    ] = None,
    prompt_lm: Annotated[
        str | None,
        typer.Option("--prompt-lm", metavar="LM", rich_help_panel=MODELS, help="The model that writes instructions."),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            metavar="PROGRAM",
            rich_help_panel=MODELS,
            help="A program of the same predictors that bootstraps demonstrations.",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", metavar="X", rich_help_panel=MODELS, help="Of the task model."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", metavar="N", rich_help_panel=MODELS, help="The longest reply.")
    ] = None,
    api_base: ApiBase = None,
    concurrency: Concurrency = 16,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            "--run-dir",
            metavar="FOLDER",
            rich_help_panel=SHOW,
            help="Where the run keeps what it paid for, and goes on; by default under .vitrify/runs.",
        ),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compile a program on data and write the artifact.

    vitrify compile program.py:Desk --data tickets.jsonl --metric exact:team --lm openai/gpt-4o-mini -o desk.json
    """
    with boundary(debug, stopped=STOPPED):
        from .display import make_progress, print_result
        from .loading import check_output, load_program, load_table, parse_price

        check_output(output, "-o")
        from .compiler.budget import Budget
        from .compiler.options import Options
        from .front import compile as run_compile

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
                failure_score=failure_score,
                instructions=instructions,
                demo_sets=demo_sets,
                max_demos=max_demos,
                formats=tuple(name for name in formats.split(",") if name),
                temperature=temperature,
                max_tokens=max_tokens,
                price=parse_price(price),
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


@app.command("run", cls=Grouped)
def run_command(
    artifact: Artifact_,
    inputs: Annotated[
        list[str] | None, typer.Option("-i", metavar="NAME=VALUE", help="One input; repeat for more.")
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(
            "--input", metavar="DATA", help="Rows to run, in any form that --data takes, or - for JSONL on stdin."
        ),
    ] = None,
    program: Program = None,
    lm: RunLm = None,
    api_base: ApiBase = None,
    concurrency: Concurrency = 16,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run an artifact on one input (-i) or on rows (--input); rows give one JSON line each, in order."""
    with boundary(debug):
        from .display import print_prediction

        if (inputs is None) == (rows is None):
            raise RequestError("`run` takes either -i NAME=VALUE, once for each input, or --input FILE.")
        from .loading import open_artifact, parse_inputs, predict, stream_rows

        loaded = open_artifact(artifact, program=program, lm=lm, api_base=api_base)
        if inputs is not None:
            print_prediction(predict(loaded, parse_inputs(inputs, loaded.artifact)), as_json=as_json)
            return
        failed = 0
        for record, good in stream_rows(loaded, rows or "-", concurrency):
            failed += not good
            typer.echo(json.dumps(record, ensure_ascii=False))
        if failed:
            noun = "1 row failed; its line says" if failed == 1 else f"{failed} rows failed; their lines say"
            typer.echo(f"vitrify: {noun} why.", err=True)
            raise typer.Exit(1)


@app.command("evaluate", cls=Grouped)
def evaluate_command(
    artifact: Artifact_,
    data: Data,
    metric: Metric,
    csv: Annotated[
        Path | None,
        typer.Option(
            "--csv", metavar="FILE", help="Write a table to sort: inputs, prediction, expected, score, failure."
        ),
    ] = None,
    program: Program = None,
    lm: RunLm = None,
    api_base: ApiBase = None,
    concurrency: Concurrency = 16,
    as_json: AsJson = False,
    debug: Debug = False,
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


@app.command("inspect", cls=Grouped)
def inspect_command(artifact: Artifact_, as_json: AsJson = False, debug: Debug = False) -> None:
    """Show what is in an artifact: instructions, demonstrations, evidence, provenance."""
    with boundary(debug):
        from .display import print_artifact
        from .programs.artifact import read_artifact

        found = read_artifact(artifact)
        if as_json:
            typer.echo(found.to_bytes().decode(), nl=False)
        else:
            print_artifact(found)


def main() -> None:
    """Run the command line."""
    run_app(app)

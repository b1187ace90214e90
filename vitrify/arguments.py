"""What the command line takes: every argument and option declared once, with its type, its heading and its help."""

from pathlib import Path
from typing import Annotated, Any

import typer


def _option(*names: str, shown: str | None = None, help: str, under: str | None = None, **more: Any) -> Any:
    """Return an option; `shown` stands for its value on the help page, `under` is the heading it stands under."""
    return typer.Option(*names, metavar=shown, help=help, rich_help_panel=under, **more)


def _limit(name: str, shown: str, help: str) -> Any:
    return _option(name, shown=shown, help=help, under="Budget", min=0)


def _search(name: str, shown: str, help: str) -> Any:
    return _option(name, shown=shown, help=help, under="Search")


def _rows(name: str, shown: str, help: str) -> Any:
    return _option(name, shown=shown, help=help, under="Rows")


def _model(name: str, shown: str, help: str, **more: Any) -> Any:
    return _option(name, shown=shown, help=help, under="Models", **more)


def _call(name: str, shown: str | None, help: str, **more: Any) -> Any:
    return _option(name, shown=shown, help=help, under="Calls", **more)


def _claim(name: str, shown: str, help: str, **more: Any) -> Any:
    return _option(name, shown=shown, help=help, under="Claim", **more)


# What is asked for.

CompiledProgram = Annotated[
    str,
    typer.Argument(
        metavar="PROGRAM", help="file.py:Class or package.module:Class: a dspy.Module, or a function that makes one."
    ),
]
ArtifactFile = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="The file that `vitrify compile -o` wrote.")]
FirstArtifact = Annotated[Path, typer.Argument(metavar="FIRST", help="An artifact.")]
SecondArtifact = Annotated[Path, typer.Argument(metavar="SECOND", help="Another one.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory, such as those in .vitrify/runs.")]
Data = Annotated[
    str,
    _option(
        "--data", shown="DATA", help="CSV, JSONL, JSON or Parquet file, a dataset's folder, or a Hugging Face name."
    ),
]
Metric = Annotated[
    str,
    _option(
        "--metric",
        shown="METRIC",
        help="exact:field, f1:field, numeric:field, contains:field, file.py:function or module:function.",
    ),
]
Lm = Annotated[
    str,
    _option(
        "--lm",
        shown="LM",
        help="embedded (offline, for trying things), openai/<model>, any provider/model of DSPy, or any name "
        "together with --api-base.",
    ),
]
Output = Annotated[Path, _option("-o", "--output", shown="FILE", help="The file to write.")]
NewOutput = Annotated[Path | None, _option("-o", "--output", shown="FILE", help="Another file to write.")]

# Budget.

Calls = Annotated[int | None, _limit("--budget-calls", "N", "Calls to models at most.")]
Tokens = Annotated[int | None, _limit("--budget-tokens", "N", "Tokens at most.")]
Dollars = Annotated[float | None, _limit("--budget-dollars", "X", "Dollars at most.")]
Seconds = Annotated[float | None, _limit("--budget-seconds", "X", "Seconds until the search stops.")]
PromptCalls = Annotated[int | None, _limit("--budget-prompt-calls", "N", "Calls of these to the prompt model.")]
PromptTokens = Annotated[int | None, _limit("--budget-prompt-tokens", "N", "Tokens of these for the prompt model.")]
PromptDollars = Annotated[float | None, _limit("--budget-prompt-dollars", "X", "Dollars of these for it.")]
TaskCalls = Annotated[int | None, _limit("--budget-task-calls", "N", "Calls of these to all other models.")]
TaskTokens = Annotated[int | None, _limit("--budget-task-tokens", "N", "Tokens of these for all other models.")]
TaskDollars = Annotated[float | None, _limit("--budget-task-dollars", "X", "Dollars of these for them.")]
Price = Annotated[
    str | None,
    _option(
        "--price",
        shown="X,Y",
        help="Dollars per million prompt and completion tokens, such as 0.15,0.60, where nobody knows them.",
        under="Budget",
    ),
]

# Search.

Effort = Annotated[str, _search("--effort", "EFFORT", "light (1,200 evaluations), medium (3,000) or heavy (9,000).")]
Seed = Annotated[int, _search("--seed", "N", "Of everything random; same seed, same file.")]
Start = Annotated[Path | None, _search("--start", "FILE", "An earlier artifact to start from.")]
Instructions = Annotated[int, _search("--instructions", "N", "Instructions to propose for each predictor.")]
DemoSets = Annotated[int, _search("--demo-sets", "N", "Demonstration sets for each predictor.")]
MaxDemos = Annotated[int, _search("--max-demos", "N", "The largest demonstration set.")]
FailureScore = Annotated[
    float, _search("--failure-score", "X", "What an unreadable reply counts: the metric's worst value.")
]
Accept = Annotated[
    float | None, _search("--accept", "X", "Lowest metric value of a trace that becomes a demonstration.")
]
Formats = Annotated[str, _search("--formats", "FORMAT", "Reply format to try as well: json.")]

# Rows.

Test = Annotated[str | None, _rows("--test", "DATA", "Your own sealed test set.")]
Select = Annotated[str | None, _rows("--select", "DATA", "Your own select set, on which candidates compete.")]
Group = Annotated[str | None, _rows("--group", "COLUMN", "Rows that share its value stay in one set.")]
NoDemosFrom = Annotated[
    list[str] | None,
    _rows("--no-demos-from", "COLUMN=VALUE", "Training rows with this value are shown nowhere; repeat for more."),
]
Redact = Annotated[
    str | None,
    _rows("--redact", "FUNCTION", "file.py:function or module:function: a row as it may be shown, or None."),
]

# Models.

PromptLm = Annotated[str | None, _model("--prompt-lm", "LM", "The model that writes instructions.")]
Teacher = Annotated[
    str | None, _model("--teacher", "PROGRAM", "A program of the same predictors that bootstraps demonstrations.")
]
Temperature = Annotated[float | None, _model("--temperature", "X", "Of the task model.")]
MaxTokens = Annotated[int | None, _model("--max-tokens", "N", "The longest reply.")]
ApiBase = Annotated[
    str | None,
    _model("--api-base", "URL", "Address of an OpenAI-compatible server, up to and including /v1."),
]
SameApiBase = Annotated[
    str | None,
    _model("--api-base", "URL", "The run's own address once more, where it holds a password, which no file keeps."),
]
OtherLm = Annotated[str | None, _model("--lm", "LM", "Another model than the one it was compiled for.")]

# Calls.

Concurrency = Annotated[
    int | None,
    _call(
        "--concurrency",
        "N",
        "Calls at a time; by itself it adapts to what the server takes.",
        min=1,
        max=1024,
        show_default="auto",
    ),
]
FixedConcurrency = Annotated[int, _call("--concurrency", "N", "Calls at a time.", min=1, max=1024)]
_PATIENCE = _call("--patience", "SECONDS", "How long to wait for a server that has stopped to answer.", min=0)
_TIMEOUT = _call("--timeout", "SECONDS", "How long one attempt may take, from connecting to the last byte.", min=0.001)
_HEDGE = _call("--hedge/--no-hedge", None, "Send the slowest calls once more; both count.")
_CACHE = _call("--cache/--no-cache", None, "Keep replies for other runs too.")
Patience = Annotated[float, _PATIENCE]
Timeout = Annotated[float, _TIMEOUT]
Hedge = Annotated[bool, _HEDGE]
Cache = Annotated[bool, _CACHE]
NewConcurrency = Annotated[int | None, _call("--concurrency", "N", "Calls at a time.", min=1, max=1024)]
NewPatience = Annotated[float | None, _PATIENCE]
NewTimeout = Annotated[float | None, _TIMEOUT]
NewHedge = Annotated[bool | None, _HEDGE]
NewCache = Annotated[bool | None, _CACHE]

# Running and looking.

OneInput = Annotated[list[str] | None, _option("-i", shown="NAME=VALUE", help="One input; repeat for more.")]
InputRows = Annotated[
    str | None,
    _option("--input", shown="DATA", help="Rows to run, in any form that --data takes, or - for JSONL on stdin."),
]
RunTimeout = Annotated[
    float | None, _call("--timeout", "SECONDS", "How long one attempt may take; by default 180.", min=0.001)
]
RunRetries = Annotated[
    int | None, _call("--retries", "N", "How often a call that failed is repeated; by default 4.", min=0, max=100)
]
WithUsage = Annotated[bool, _option("--usage", help="Also print calls, tokens and seconds, as _usage.", under="Output")]
NeededProgram = Annotated[
    str | None,
    _option("--program", shown="PROGRAM", help="file.py:Class or module:Class, for a program that needs its class."),
]
Table = Annotated[
    Path | None,
    _option("--csv", shown="FILE", help="Write a table to sort: inputs, prediction, expected, score, failure."),
]

# Verifying.

PublicKey = Annotated[
    Path | None, _option("--key", shown="FILE", help="Ed25519 public key (PEM): the signature must be of its holder.")
]
SignatureFile = Annotated[
    Path | None, _option("--signature", shown="FILE", help="The signature, where it isn't ARTIFACT.sig.")
]
ClaimData = Annotated[
    str | None, _claim("--data", "DATA", "Rows to run it on: the compile's own, its test set, or fresh ones.")
]
ClaimMetric = Annotated[str | None, _claim("--metric", "METRIC", "The metric of the compile.")]
Margin = Annotated[
    float | None,
    _claim(
        "--margin", "X", "How far apart counts as equal, in the metric's units (0.05); it must then be shown.", min=0
    ),
]
ClaimGroup = Annotated[str | None, _claim("--group", "COLUMN", "The compile's --group, to find its sealed test.")]
ClaimFailureScore = Annotated[float, _claim("--failure-score", "X", "The compile's --failure-score.")]

# Signing.

PrivateKey = Annotated[Path, _option("--key", shown="FILE", help="Ed25519 private key (PEM).")]
Sign = Annotated[
    Path | None,
    _option("--sign", shown="FILE", help="Ed25519 private key (PEM): also writes the signature, FILE.sig."),
]

# Exporting and importing.

Target = Annotated[str, _option("--to", shown="FORM", help="dspy, openai or finetune.")]
ExportOutput = Annotated[
    Path | None, _option("-o", "--output", shown="FILE", help="The file to write; by default stdout.")
]
OwnProgram = Annotated[
    str | None,
    _option("--program", shown="PROGRAM", help="With dspy: the program, to check the state on, or where it must be."),
]
TracesRun = Annotated[
    Path | None, _option("--run", shown="RUN", help="With finetune: the directory of the run that made the artifact.")
]
OnePredictor = Annotated[str | None, _option("--predictor", shown="PATH", help="With finetune: of this one alone.")]
WithDemos = Annotated[
    bool, _option("--demos", help="With finetune: show the artifact's demonstrations in every prompt.")
]
StateFile = Annotated[Path, typer.Argument(metavar="STATE", help="What DSPy's save wrote, as .json.")]
ImportLm = Annotated[str | None, _model("--lm", "LM", "The model it runs on; by default the one in the state.")]
Adapter = Annotated[
    str, _model("--adapter", "FORMAT", "chat or json: the adapter it was saved under, which no state says.")
]

# Output.

RunDir = Annotated[
    Path | None,
    _option(
        "--run-dir",
        shown="FOLDER",
        help="Where the run keeps what it paid for, and goes on; by default under .vitrify/runs.",
        under="Output",
    ),
]
AsJson = Annotated[bool, _option("--json", help="Print JSON, for a program to read.", under="Output")]
Debug = Annotated[bool, _option("--debug", help="Show the traceback of an error.", under="Output")]

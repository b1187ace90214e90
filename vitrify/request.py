"""What `vitrify compile` was asked, as data: the options of the command, and `request.json` in the run's directory."""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError

from . import __version__, arguments
from .programs.files import write_atomically
from .signatures.errors import ArtifactError, RequestError, nearest

if TYPE_CHECKING:
    from .compiler.budget import Budget
    from .compiler.options import Options

FILE = "request.json"
FORMAT = "vitrify-request/1"
BASE_URLS = ("OPENAI_BASE_URL", "OPENAI_API_BASE")
"""Variables that say where OpenAI's models are, where no --api-base does."""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class CompileRequest(_Data):
    """The arguments of `vitrify compile`: every field is one, declared in `arguments`."""

    program: arguments.CompiledProgram
    data: arguments.Data
    metric: arguments.Metric
    lm: arguments.Lm
    output: arguments.Output
    budget_calls: arguments.Calls = None
    budget_tokens: arguments.Tokens = None
    budget_dollars: arguments.Dollars = None
    budget_seconds: arguments.Seconds = None
    budget_prompt_calls: arguments.PromptCalls = None
    budget_prompt_tokens: arguments.PromptTokens = None
    budget_prompt_dollars: arguments.PromptDollars = None
    budget_task_calls: arguments.TaskCalls = None
    budget_task_tokens: arguments.TaskTokens = None
    budget_task_dollars: arguments.TaskDollars = None
    price: arguments.Price = None
    effort: arguments.Effort = "light"
    seed: arguments.Seed = 0
    start: arguments.Start = None
    instructions: arguments.Instructions = 6
    demo_sets: arguments.DemoSets = 6
    max_demos: arguments.MaxDemos = 16
    failure_score: arguments.FailureScore = 0.0
    accept: arguments.Accept = None
    formats: arguments.Formats = ""
    test: arguments.Test = None
    select: arguments.Select = None
    group: arguments.Group = None
    no_demos_from: arguments.NoDemosFrom = None
    redact: arguments.Redact = None
    prompt_lm: arguments.PromptLm = None
    teacher: arguments.Teacher = None
    temperature: arguments.Temperature = None
    max_tokens: arguments.MaxTokens = None
    api_base: arguments.ApiBase = None
    concurrency: arguments.Concurrency = None
    patience: arguments.Patience = 900.0
    timeout: arguments.Timeout = 180.0
    hedge: arguments.Hedge = False
    cache: arguments.Cache = True
    sign: arguments.Sign = None

    def budget(self) -> "Budget":
        """Return what may be spent, in all and by the prompt model and the others apart."""
        from .compiler.budget import Budget

        def part(prefix: str) -> Budget | None:
            limits = {name: getattr(self, prefix + name) for name in ("calls", "tokens", "dollars")}
            return None if all(limit is None for limit in limits.values()) else Budget(**limits)

        return Budget(
            calls=self.budget_calls,
            tokens=self.budget_tokens,
            dollars=self.budget_dollars,
            seconds=self.budget_seconds,
            prompt=part("budget_prompt_"),
            task=part("budget_task_"),
        )

    def options(self) -> "Options":
        """Return the options of the compile, with the teacher loaded."""
        from .compiler.options import Options
        from .loading import load_program, parse_price

        same = (
            "prompt_lm",
            "start",
            "effort",
            "concurrency",
            "patience",
            "timeout",
            "hedge",
            "cache",
            "test",
            "select",
            "group",
            "redact",
        )
        more = (
            "accept",
            "failure_score",
            "instructions",
            "demo_sets",
            "max_demos",
            "temperature",
            "max_tokens",
            "api_base",
        )
        return Options(
            teacher=None if self.teacher is None else load_program(self.teacher),
            formats=tuple(name for name in self.formats.split(",") if name),
            no_demos_from=tuple(self.no_demos_from or ()),
            price=parse_price(self.price),
            **{name: getattr(self, name) for name in (*same, *more)},
        )

    def changed(self, changes: "Changes") -> Self:
        """Return the request with what `vitrify resume` was told."""
        told = {name: value for name, value in changes if value is not None}
        return self.model_copy(update=told)

    def files(self) -> Iterator[Path]:
        """Yield the files that the request names and that are there; a module's once it was imported."""
        for spec in (self.program, self.teacher, self.metric, self.redact):
            target, colon, _ = (spec or "").rpartition(":")
            module = sys.modules.get(target)
            if is_file_spec(target):
                yield Path(target)
            elif colon and module is not None and getattr(module, "__file__", None):
                yield Path(str(module.__file__))
        for source in (self.data, self.test, self.select, self.start):
            if source is not None:
                yield Path(source)


class Changes(_Data):
    """What `vitrify resume` may change: what a run may spend, how fast, and where its result goes."""

    output: arguments.NewOutput = None
    budget_calls: arguments.Calls = None
    budget_tokens: arguments.Tokens = None
    budget_dollars: arguments.Dollars = None
    budget_seconds: arguments.Seconds = None
    budget_prompt_calls: arguments.PromptCalls = None
    budget_prompt_tokens: arguments.PromptTokens = None
    budget_prompt_dollars: arguments.PromptDollars = None
    budget_task_calls: arguments.TaskCalls = None
    budget_task_tokens: arguments.TaskTokens = None
    budget_task_dollars: arguments.TaskDollars = None
    price: arguments.Price = None
    api_base: arguments.SameApiBase = None
    concurrency: arguments.NewConcurrency = None
    patience: arguments.NewPatience = None
    timeout: arguments.NewTimeout = None
    hedge: arguments.NewHedge = None
    cache: arguments.NewCache = None


class Recorded(_Data):
    """A request as `request.json` keeps it, with what it depends on; never a key or a password.

    Attributes:
        format: `vitrify-request/1`.
        vitrify: The version that wrote it.
        directory: The working directory, which relative paths start from.
        files: Every file that the request names, by its absolute path, with the sha256 of its bytes.
        base_url: Where the environment said that OpenAI's models are, if that was needed.
        credentials: Whether `--api-base` held a user or a password, which aren't kept.
        request: The request.
    """

    format: str = FORMAT
    vitrify: str = __version__
    directory: Path
    files: dict[str, str]
    base_url: str | None = None
    credentials: bool = False
    request: CompileRequest

    @classmethod
    def of(cls, request: CompileRequest, environ: Mapping[str, str] = os.environ) -> Self:
        """Return what is kept of a request that was made in the working directory."""
        here = Path.cwd()
        program, colon, name = request.program.rpartition(":")
        if is_file_spec(program):
            program = str(here / Path(program).expanduser())
        files = {str(path): digest for path in map(_absolute, request.files()) if (digest := _sha256(path))}
        address = None if request.api_base is None else public(request.api_base)
        return cls(
            directory=here,
            files=files,
            base_url=base_url(request, environ),
            credentials=address != request.api_base and "@" in (request.api_base or ""),
            request=request.model_copy(update={"program": f"{program}{colon}{name}", "api_base": address}),
        )

    def to_bytes(self) -> bytes:
        """Return the text of `request.json`."""
        # Not pydantic's own JSON: that writes infinity as null.
        return (json.dumps(self.model_dump(exclude_none=True), default=str, indent=2, sort_keys=True) + "\n").encode()

    def write(self, run: Path) -> None:
        """Write `request.json` into a run's directory."""
        try:
            write_atomically(run / FILE, self.to_bytes())
        except ArtifactError as error:
            raise RequestError(f"run_dir {run}: {error}") from error

    def missing(self) -> list[str]:
        """Return the files that aren't there any more."""
        return [self.shown(path) for path in self.files if not Path(path).exists()]

    def changed(self) -> list[str]:
        """Return the files whose content is another than when the request was made."""
        return [self.shown(path) for path, digest in self.files.items() if _sha256(Path(path)) != digest]

    def shown(self, path: str) -> str:
        """Return a path as the request's own directory would write it."""
        found = Path(path)
        return str(found.relative_to(self.directory)) if found.is_relative_to(self.directory) else path


def read_request(run: Path) -> Recorded:
    """Return the request of a run that `vitrify compile` began.

    Raises:
        RequestError: If there is no such directory, it is no run, it was begun from Python, or its request is damaged.
    """
    if not run.is_dir():
        near = sorted(item.name for item in run.parent.iterdir() if item.is_dir()) if run.parent.is_dir() else []
        what = "is a file" if run.exists() else "isn't there"
        raise RequestError(f"{run} {what}: `a run is a directory`; {nearest(run.name, near)}")
    if not (run / "ledger.jsonl").exists():
        raise RequestError(
            f"{run} is no run: `a run's directory holds ledger.jsonl`; those of this folder are in .vitrify/runs."
        )
    try:
        text = (run / FILE).read_bytes()
    except FileNotFoundError:
        raise RequestError(
            f"{run} has no {FILE}: it was begun from Python; call vitrify.compile again, with run_dir={str(run)!r}."
        ) from None
    except OSError as error:
        raise RequestError(f"{run / FILE} can't be read ({error.strerror}); mend that.") from error
    again = "compile again with the same options and --run-dir: what was paid is kept"
    try:
        found = Recorded.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise RequestError(f"{run / FILE} is damaged ({where}: {first['msg']:.120}); {again}.") from error
    if found.format != FORMAT:
        raise RequestError(
            f"{run / FILE} is of the format {found.format!r:.40}: `this vitrify reads {FORMAT}`; {again}."
        )
    return found


def public(address: str) -> str:
    """Return an address without user, password, query and fragment; nothing where it isn't clear what is what."""
    try:
        parts = urlsplit(address)
        parts.port  # noqa: B018 - raises where it is none
    except ValueError:
        return ""
    if "@" in parts.path + parts.query + parts.fragment:  # a password may hold a slash or a question mark
        return ""
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def base_url(request: CompileRequest, environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the address of OpenAI's models by the environment, or None where nothing depends on it."""
    if request.api_base is not None or not any(
        name is not None and name.startswith("openai/") for name in (request.lm, request.prompt_lm)
    ):
        return None
    return next((public(environ[name]) for name in BASE_URLS if environ.get(name)), None)


def is_file_spec(target: str) -> bool:
    """Say whether the part before the colon of a program's or a metric's name is a file."""
    return target.endswith(".py") or "/" in target


def _absolute(path: Path) -> Path:
    return Path.cwd() / path.expanduser()


def _sha256(path: Path) -> str | None:
    """Return the sha256 of a file's bytes; None for what is no file, such as a folder or a dataset's name."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None

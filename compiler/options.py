"""Options: what a compile may be told besides program, data, metric, model and budget."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..signatures.errors import RequestError
from .progress import Progress
from .search import SamplerName

Effort = Literal["light", "medium", "heavy"]

EVALUATIONS: dict[Effort, int] = {"light": 1200, "medium": 3000, "heavy": 9000}
"""Metric calls of the search by effort, where the budget doesn't say less."""


@dataclass(frozen=True)
class Options:
    """Everything else; every field has a default that suits most programs.

    Attributes:
        prompt_lm: The model that writes instructions; by default the task model.
        teacher: A program of the same shape that bootstraps demonstrations in place of the compiled one.
        teacher_lm: The model the teacher runs on; by default the task model.
        start: An earlier artifact to start from, say to recompile for a new model.
        strategy: `auto`, or an object that fulfils the Strategy protocol.
        effort: How many evaluations the search may take: `light` 1,200, `medium` 3,000, `heavy` 9,000.
        sampler: What explores: `additive`, our own, or Optuna's `tpe`, `random`, `gp`.
        concurrency: Evaluations at a time; by default it adapts to what the server can take.
        patience: Seconds that the run waits for a server that answered before and has stopped to.
        timeout: Seconds that one attempt of our own client may take, from connecting to the last byte.
        hedge: Send the slowest calls once more and take the first answer; both count.
        cache: Keep replies for other runs too, beside the runs.
        test: Your own sealed test set, in any form that `data` takes.
        select: Your own select set.
        group: A column; rows with the same value stay in one set.
        no_demos_from: `column=value`, any number: training rows with that value are shown nowhere, neither as
            demonstration or canary nor to who writes instructions; they still count in the select and test sets.
        redact: A function, or its name (`file.py:function`), from a training row to the row as it may be shown, with
            the same columns, or to None where nothing of it may.
        accept: The lowest metric value of a trace that becomes a demonstration.
        instructions: Instructions to propose for each predictor.
        demo_sets: Demonstration sets to make for each predictor.
        max_demos: The largest demonstration set.
        formats: Reply formats to try besides the program's own: `("json",)`. Off by default.
        guard: The winner ships where the probability that it beats the baseline is at least this.
        failure_score: What a reply without readable values counts: the worst value that the metric can give.
        temperature: Sampling temperature of the task model, where the LM doesn't say.
        max_tokens: The longest reply of the task model, where the LM doesn't say.
        price: Dollars per million (prompt, completion) tokens, where the price table doesn't know the model.
        calls_per_example: The most requests one example may take; by default what preflight saw.
        api_base: The address of an OpenAI-compatible server; never written to a file.
        api_key: Its key; by default the provider's environment variable. Never written to a file.
        progress: Told what happens.
    """

    prompt_lm: Any = None
    teacher: Any = None
    teacher_lm: Any = None
    start: Any = None
    strategy: Any = "auto"
    effort: Effort = "light"
    sampler: SamplerName = "additive"
    concurrency: int | None = None
    patience: float = 900.0
    timeout: float = 180.0
    hedge: bool = False
    cache: bool = True
    test: Any = None
    select: Any = None
    group: str | None = None
    no_demos_from: Sequence[str] = ()
    redact: Any = None
    accept: float | None = None
    instructions: int = 6
    demo_sets: int = 6
    max_demos: int = 16
    formats: Sequence[str] = ()
    guard: float = 0.975
    failure_score: float = 0.0
    temperature: float | None = None
    max_tokens: int | None = None
    price: tuple[float, float] | None = None
    calls_per_example: int | None = None
    api_base: str | None = None
    api_key: str | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        kinds: dict[str, Any] = {
            "concurrency": int | None, "patience": float, "timeout": float, "instructions": int, "demo_sets": int,
            "max_demos": int, "guard": float,
            "failure_score": float, "accept": float | None, "temperature": float | None, "max_tokens": int | None,
            "calls_per_example": int | None, "group": str | None, "price": tuple | None,
        }  # fmt: skip
        for name, kind in kinds.items():
            value = getattr(self, name)
            fits = isinstance(value, int | float) if kind in (float, float | None) else isinstance(value, kind)
            if isinstance(value, bool) or not (fits or (value is None and isinstance(None, kind))):
                said = getattr(kind, "__name__", str(kind)).replace(" | None", ", or None")
                raise RequestError(f"options: `{name}` is of type {said}, got {value!r}.")
        if self.price is not None and (len(self.price) != 2 or not all(isinstance(p, int | float) for p in self.price)):
            raise RequestError(f"options: `price` is two numbers, dollars per million tokens, got {self.price!r}.")
        checks = {
            "effort": (self.effort in EVALUATIONS, "is light, medium or heavy"),
            "sampler": (self.sampler in ("additive", "tpe", "random", "gp"), "is additive, tpe, random or gp"),
            "concurrency": (self.concurrency is None or 1 <= self.concurrency <= 1024, "is between 1 and 1024"),
            "patience": (self.patience >= 0, "is at least 0 seconds"),
            "timeout": (self.timeout > 0, "is above 0 seconds"),
            "hedge": (isinstance(self.hedge, bool), "is True or False"),
            "cache": (isinstance(self.cache, bool), "is True or False"),
            "instructions": (0 <= self.instructions <= 64, "is between 0 and 64"),
            "demo_sets": (0 <= self.demo_sets <= 64, "is between 0 and 64"),
            "max_demos": (0 <= self.max_demos <= 256, "is between 0 and 256"),
            "calls_per_example": (self.calls_per_example is None or self.calls_per_example >= 1, "is at least 1"),
            "guard": (0.5 <= self.guard < 1, "is a probability from .5 to below 1"),
            "formats": (set(self.formats) <= {"chat", "json"}, "are chat and json"),
        }
        for name, (holds, rule) in checks.items():
            if not holds:
                raise RequestError(f"options: `{name} {rule}`, got {getattr(self, name)!r}.")

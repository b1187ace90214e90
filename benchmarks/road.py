"""The road, beside DSPy's own: the same program, data and embedded model, through `vitrify.compile` and `dspy.MIPROv2`.

    make bench                          # help desk, and Banking77 where VITRIFY_DATA has it
    python benchmarks/road.py --repeats 5

Both are given the same rows: MIPROv2 gets our training rows as trainset and our select rows as valset, and both
results are judged on the same sealed test. Calls and tokens are counted at the metric and at the model, those on rows
of the test apart; seconds are wall-clock, ours with the evaluation of the test, which is part of our compile. Every
figure is the median over seeds, with its range. The embedded model is an offline learner: nothing here is a claim about
real models. `benchmarks/search.py --only compile` runs the same.
"""

import argparse
import contextlib
import io
import logging
import os
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import dspy
from vitrify.compiler.data import Example, load_rows, to_dataset
from vitrify.compiler.importing import load_object
from vitrify.compiler.metric import resolve_metric
from vitrify.compiler.splits import Splits, split
from vitrify.programs.bridge import EngineLM
from vitrify.programs.embedded import Embedded
from vitrify.programs.lm import Reply, Request

import vitrify

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("VITRIFY_DATA", ROOT.parent / "shared" / "data"))


COMPILERS = tuple(f"{name} {effort}" for effort in ("light", "medium")
                  for name in ("dspy.MIPROv2", "vitrify", "vitrify, as many calls,"))  # fmt: skip
"""Who compiles, and with which effort; "as many calls" as MIPROv2 just took where that is less. The first three in a
quick run."""

MARK = "[[ ## message ## ]]\n"
"""What stands before the row's own text in the last message of a prompt of these programs."""


class Counted(Embedded):
    """The embedded model, counting calls and tokens, those for rows of the test apart."""

    def __init__(self, tested: frozenset[str]) -> None:
        super().__init__()
        self._tested, self._lock_counts = tested, threading.Lock()
        self.calls = self.tokens = self.on_test = 0

    def complete(self, request: Request) -> Reply:
        """Count and answer."""
        reply = super().complete(request)
        message = first_lines(str(request.messages[-1]["content"]).partition(MARK)[2])
        with self._lock_counts:
            if message in self._tested:
                self.on_test += 1
            else:
                self.calls += 1
                self.tokens += reply.usage.prompt_tokens + reply.usage.completion_tokens
        return reply


class CountedMetric:
    """A metric, counting its calls on rows that aren't of the test."""

    def __init__(self, metric: Any, tested: frozenset[str]) -> None:
        self._call, self._tested, self._lock = resolve_metric(metric).call, tested, threading.Lock()
        self.calls = 0

    def __call__(self, example: Any, pred: Any, trace: Any = None) -> Any:
        """Count and score."""
        if first_lines(example["message"]) not in self._tested:
            with self._lock:
                self.calls += 1
        return self._call(example, pred) if trace is None else self._call(example, pred, trace)


def first_lines(text: str) -> str:
    """Return a text up to its first empty line, by which a row is recognised in a prompt."""
    return text.partition("\n\n")[0].strip()


@dataclass(frozen=True)
class Task:
    """A program with its data and metric."""

    name: str
    program: Callable[[], Any]
    rows: list[dict[str, Any]]
    metric: Any

    def split(self, seed: int) -> Splits:
        """Return the rows of train, select and test."""
        return split(to_dataset(self.rows, input_names=["message"]), seed=seed)


@dataclass(frozen=True)
class Result:
    """What one compile gave; calls and tokens are those that aren't for the test."""

    baseline: float
    compiled: float
    metric_calls: int
    lm_calls: int
    tokens: int
    seconds: float


def tasks() -> list[Task]:
    """Return the tasks whose data is there."""
    folder = ROOT / "examples" / "helpdesk"
    found = [
        Task(
            "helpdesk",
            cast(Callable[[], Any], load_object(f"{folder / 'program.py'}:Helpdesk")),
            load_rows(folder / "tickets.jsonl"),
            load_object(f"{folder / 'program.py'}:routed", kind="metric"),
        )
    ]
    banking = DATA / "tasks" / "banking77_train.jsonl"
    if banking.exists():
        program = cast(Callable[[], Any], load_object(f"{ROOT / 'examples' / 'banking77' / 'program.py'}:Intents"))
        found.append(Task("banking77", program, load_rows(banking)[::5], vitrify.metrics.exact("intent")))
    else:
        print(f"banking77 is left out: there is no {banking} (set VITRIFY_DATA)")
    return found


def score(program: Any, rows: tuple[Example, ...], metric: Any) -> float:
    """Return the mean score of a program under the language model in force."""
    spec = resolve_metric(metric)
    values = []
    for row in rows:
        example = row.to_dspy()
        try:
            prediction = program(**example.inputs())
        except Exception:  # noqa: BLE001 - DSPy counts any failure as 0, and so do we here
            values.append(0.0)
            continue
        values.append(float(spec.call(example, prediction)))
    return statistics.fmean(values)


def ours(task: Task, splits: Splits, seed: int, effort: Literal["light", "medium"], calls: int | None = None) -> Result:
    """Compile with vitrify; `calls` are the most that it may take besides those on the test."""
    tested = _tested(splits)
    lm, metric = Counted(tested), CountedMetric(task.metric, tested)
    rows = [{**row.inputs, **row.labels} for row in (*splits.train, *splits.select)]
    certifying = 2 * len(splits.test) * len(task.program().predictors())
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        artifact = vitrify.compile(
            task.program(),
            rows,
            metric,
            lm=lm,
            seed=seed,
            budget=None if calls is None else vitrify.Budget(calls=calls + certifying),
            run_dir=Path(folder) / "run",
            options=vitrify.Options(
                effort=effort,
                test=[{**row.inputs, **row.labels} for row in splits.test],
            ),
        )
        seconds = time.perf_counter() - began
    evidence = artifact.evidence
    return Result(evidence.baseline, evidence.compiled, metric.calls, lm.calls, lm.tokens, seconds)


def theirs(task: Task, splits: Splits, seed: int, auto: Literal["light", "medium"]) -> Result:
    """Compile with DSPy's MIPROv2, as installed."""
    tested = _tested(splits)
    inner, metric = Counted(tested), CountedMetric(task.metric, tested)
    program = task.program()
    with dspy.context(lm=EngineLM(inner), disable_history=True), _silence():
        baseline = score(program, splits.test, task.metric)
        began = time.perf_counter()
        optimizer = dspy.MIPROv2(metric=metric, auto=auto, seed=seed, num_threads=16, verbose=False)
        compiled = optimizer.compile(
            program,
            trainset=[row.to_dspy() for row in splits.train],
            valset=[row.to_dspy() for row in splits.select],
        )
        seconds = time.perf_counter() - began
        value = score(compiled, splits.test, task.metric)
        return Result(baseline, value, metric.calls, inner.calls, inner.tokens, seconds)


def _tested(splits: Splits) -> frozenset[str]:
    return frozenset(first_lines(row.inputs["message"]) for row in splits.test)


def outcome(task: Task, who: str, seed: int, calls: int | None = None) -> dict[str, Any]:
    """Return what one of `COMPILERS` gave; `calls` are those that MIPROv2 took with the same effort."""
    name, _, effort = who.rpartition(" ")
    mode = cast(Literal["light", "medium"], effort)
    if name == "dspy.MIPROv2":
        return asdict(theirs(task, task.split(seed), seed, mode))
    return asdict(ours(task, task.split(seed), seed, mode, calls if "," in name else None))


@contextlib.contextmanager
def _silence() -> Any:
    logging.disable(logging.WARNING)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def shown(values: list[float], form: str) -> str:
    """Return the median and the range."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print("| task | compiler | baseline % | compiled % | metric calls | model calls | tokens | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for task in tasks():
        results: dict[str, list[Result]] = {}
        for who in COMPILERS:
            calls = [result.lm_calls for result in results.get(f"dspy.MIPROv2 {who.split()[-1]}", [])]
            results[who] = runs = [
                Result(**outcome(task, who, seed, calls[seed] if calls else None)) for seed in range(arguments.repeats)
            ]
            print(
                f"| {task.name} | {who} | {shown([100 * r.baseline for r in runs], '.1f')} "
                f"| {shown([100 * r.compiled for r in runs], '.1f')} "
                f"| {shown([float(r.metric_calls) for r in runs], ',.0f')} "
                f"| {shown([float(r.lm_calls) for r in runs], ',.0f')} "
                f"| {shown([float(r.tokens) for r in runs], ',.0f')} | {shown([r.seconds for r in runs], '.1f')} |",
                flush=True,
            )
        for effort in ("light", "medium"):
            pairs = zip(results[f"vitrify {effort}"], results[f"dspy.MIPROv2 {effort}"], strict=True)
            ratios = [ours.seconds / theirs.seconds for ours, theirs in pairs]
            print(f"| {task.name} | vitrify / MIPROv2, {effort} | | | | | | ratio {shown(ratios, '.2f')} |")


if __name__ == "__main__":
    main()

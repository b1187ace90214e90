"""The road, beside DSPy's own: the same program, data and embedded model, through `vitrify.compile` and `dspy.MIPROv2`.

    make bench                          # help desk, and Banking77 where VITRIFY_DATA has it
    python benchmarks/road.py --repeats 5

Both are given the same rows: MIPROv2 gets our training rows as trainset and our select rows as valset, and both
results are judged on the same sealed test. Calls are counted at the model, seconds are wall-clock; every figure is the
median over seeds, with its range. The embedded model is an offline learner: nothing here is a claim about real models.
"""

import argparse
import contextlib
import io
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


class Counted(Embedded):
    """The embedded model, counting its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def complete(self, request: Request) -> Reply:
        """Count and answer."""
        self.calls += 1
        return super().complete(request)


@dataclass(frozen=True)
class Task:
    """A program with its data and metric."""

    name: str
    program: Callable[[], Any]
    rows: list[dict[str, Any]]
    metric: Any


@dataclass(frozen=True)
class Result:
    """What one compile gave."""

    baseline: float
    compiled: float
    calls: int
    seconds: float


def tasks() -> list[Task]:
    """Return the tasks whose data is there."""
    folder = ROOT / "examples" / "helpdesk"
    found = [
        Task(
            "helpdesk",
            load_object(f"{folder / 'program.py'}:Helpdesk"),
            load_rows(folder / "tickets.jsonl"),
            load_object(f"{folder / 'program.py'}:routed", kind="metric"),
        )
    ]
    banking = DATA / "tasks" / "banking77_train.jsonl"
    if banking.exists():
        program = load_object(f"{ROOT / 'examples' / 'banking77' / 'program.py'}:Intents")
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


def ours(task: Task, splits: Splits, seed: int, effort: str) -> Result:
    """Compile with vitrify."""
    lm = Counted()
    rows = [{**row.inputs, **row.labels} for row in (*splits.train, *splits.select)]
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        artifact = vitrify.compile(
            task.program(),
            rows,
            task.metric,
            lm=lm,
            seed=seed,
            run_dir=Path(folder) / "run",
            options=vitrify.Options(
                effort=effort,
                test=[{**row.inputs, **row.labels} for row in splits.test],
            ),
        )
        seconds = time.perf_counter() - began
    evidence = artifact.evidence
    return Result(evidence.baseline, evidence.compiled, lm.calls, seconds)


def theirs(task: Task, splits: Splits, seed: int, auto: str) -> Result:
    """Compile with DSPy's MIPROv2, as installed."""
    inner = Counted()
    lm = EngineLM(inner)
    program = task.program()
    spec = resolve_metric(task.metric)
    with dspy.context(lm=lm, disable_history=True), _silence():
        baseline = score(program, splits.test, task.metric)
        inner.calls = 0
        began = time.perf_counter()
        optimizer = dspy.MIPROv2(metric=spec.call, auto=auto, seed=seed, num_threads=16, verbose=False)
        compiled = optimizer.compile(
            program,
            trainset=[row.to_dspy() for row in splits.train],
            valset=[row.to_dspy() for row in splits.select],
        )
        value = score(compiled, splits.test, task.metric)
        return Result(baseline, value, inner.calls, time.perf_counter() - began)


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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print("| task | compiler | baseline % | compiled % | model calls | seconds |")
    print("|---|---|---|---|---|---|")
    for task in tasks():
        names = [name for name in task.rows[0] if name in ("message", "question", "input")]
        dataset = to_dataset(task.rows, input_names=names)
        seconds: dict[str, list[float]] = {}
        kinds: list[tuple[str, Callable[[Splits, int], Result]]] = [
            ("vitrify light", lambda s, seed, task=task: ours(task, s, seed, "light")),
            ("vitrify medium", lambda s, seed, task=task: ours(task, s, seed, "medium")),
            ("dspy.MIPROv2 light", lambda s, seed, task=task: theirs(task, s, seed, "light")),
        ]
        for name, run in kinds:
            results = [run(split(dataset, seed=seed), seed) for seed in range(arguments.repeats)]
            seconds[name] = [result.seconds for result in results]
            print(
                f"| {task.name} | {name} | {shown([100 * r.baseline for r in results], '.1f')} "
                f"| {shown([100 * r.compiled for r in results], '.1f')} "
                f"| {shown([float(r.calls) for r in results], '.0f')} | {shown(seconds[name], '.1f')} |",
                flush=True,
            )
        for name in ("vitrify light", "vitrify medium"):
            ratios = [a / b for a, b in zip(seconds[name], seconds["dspy.MIPROv2 light"], strict=True)]
            print(f"| {task.name} | {name} / MIPROv2 light | | | | ratio {shown(ratios, '.2f')} |")


if __name__ == "__main__":
    main()

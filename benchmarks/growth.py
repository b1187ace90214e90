"""How memory and the time to decide grow with a run, ours beside stock DSPy's.

    python benchmarks/growth.py --outcomes 100000
    python benchmarks/growth.py --outcomes 100000 --slots 30 --levels 20    # deciding alone, without the evaluator

Ours: the production search over the production evaluator, ledger and meter, on a model inside this process that answers
at once (no server, so that a hundred thousand outcomes take minutes). DSPy: `dspy.Evaluate` of the same program over a
server on loopback, which is what its optimizers run their trials with. Each in a process of its own; the memory is the
resident set.
"""

import argparse
import contextlib
import io
import itertools
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # threads that wait for each other count as CPU

PLOT = Path(__file__).resolve().parent.parent / ".vitrify" / "growth.svg"


def resident() -> float:
    """Return this process's resident memory in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def ours(outcomes: int) -> dict[str, Any]:
    """Search until so many outcomes are known; return how the memory grew, and what deciding took at the end."""
    import dspy
    from vitrify.compiler import compile as compiler
    from vitrify.compiler.budget import Budget
    from vitrify.compiler.journal import StudyJournal
    from vitrify.compiler.ledger import Ledger
    from vitrify.compiler.options import Options
    from vitrify.compiler.passes import STUDY, EvaluatorOracle
    from vitrify.compiler.search import SearchOptions, search
    from vitrify.compiler.state import Levels
    from vitrify.compiler.strategy import InstructionLevel, Provenance
    from vitrify.programs.lm import Reply, Request, Usage
    from vitrify.signatures.prompt import Capabilities

    from vitrify.front import resolve_strategy

    class Instant:
        """Answers at once, right or wrong by the request's hash."""

        name = endpoint = "instant"
        capabilities = Capabilities()

        def complete(self, request: Request) -> Reply:
            text = str(request.messages[0]["content"])
            way = int(text.partition("Way ")[2].partition(":")[0] or 0)
            answer = "yes" if int(request.key[:8], 16) % 100 < 30 + way else "no"
            return Reply(f"[[ ## answer ## ]]\n{answer}\n\n[[ ## completed ## ]]", Usage(200, 10), "instant")

        async def acomplete(self, request: Request) -> Reply:
            return self.complete(request)

        def close(self) -> None:
            """Nothing to close."""

    class Pair(dspy.Module):
        """Two predictors, so that there are two slots."""

        def __init__(self) -> None:
            super().__init__()
            self.first = dspy.Predict("question -> answer")
            self.second = dspy.Predict("question, draft -> answer")

        def forward(self, question: str) -> dspy.Prediction:
            """Ask twice."""
            return self.second(question=question, draft=self.first(question=question).answer)

    rows = [{"question": f"Is {i} a good number to begin with?", "answer": "yes"} for i in range(1400)]
    options = Options(concurrency=4, cache=False)
    job = compiler.prepare(Pair(), rows, "exact:answer", Instant(), resolve_strategy("auto"), Budget(), 0, options)
    baseline = job.target.spec.baseline
    values = {
        f"{path}.instruction": tuple(
            InstructionLevel(text, Provenance("bench"))
            for text in (baseline[path].instruction, *(f"Way {i}: answer the question." for i in range(49)))
        )
        for path in ("first", "second")
    }
    levels = Levels(tuple(values), values, baseline)
    marks: dict[int, tuple[float, float, float]] = {}
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "run") as ledger:
        run = compiler._run(job, ledger)
        journal = StudyJournal(ledger.path / STUDY, "growth", levels.space)
        oracle = EvaluatorOracle(run, levels, job.dataset.examples, journal)
        told: list[int] = []
        blocks: list[int] = []
        sizes: list[float] = []
        elsewhere = [0.0]

        class Told(Future[Any]):
            """A block; what taking it in costs isn't deciding."""

            def __init__(self, block: Any, size: int) -> None:
                super().__init__()
                self.block, self.size = block, size

            def result(self, timeout: float | None = None) -> Any:
                began = time.thread_time()
                answer = self.block.result()
                told.append(self.size)
                elsewhere[0] += time.thread_time() - began
                return answer

        class Timed:
            """The oracle, with the CPU of the thread that decides apart from that of asking and taking in."""

            examples = len(rows)

            def submit(self, point: Any, examples: Any, replicate: int) -> Any:
                began = time.thread_time()
                known = sum(told)
                for mark in (1000, int(0.9 * outcomes)):
                    if mark not in marks and known >= mark:
                        marks[mark] = (resident(), began - elsewhere[0], len(blocks))
                blocks.append(len(examples))
                if len(blocks) % 50 == 0:
                    sizes.append(resident())
                block = Told(oracle.submit(point, examples, replicate), len(examples))
                elsewhere[0] += time.thread_time() - began
                return block

        found = search(levels.space, Timed(), budget=outcomes, seed=0, options=SearchOptions())
        end = (resident(), time.thread_time() - elsewhere[0], len(blocks))
        run.close(abandon=False)
    late = marks[max(marks)]
    return {
        "outcomes": sum(told),
        "spent": found.spent,
        "reason": found.reason,
        "growth": max(end[0], *sizes) - marks[1000][0],
        "resident": end[0],
        "decide_ms": 1000 * (end[1] - late[1]) / max(1, end[2] - late[2]),
    }


def theirs(outcomes: int, url: str) -> dict[str, float]:
    """Evaluate with stock DSPy; return the memory at a thousand outcomes and at the end."""
    import dspy

    logging.disable(logging.WARNING)
    lm = dspy.LM("openai/stub", api_base=url, api_key="none", cache=False)
    examples = [
        dspy.Example(question=f"What is the capital of country {i}?", answer="Paris").with_inputs("question")
        for i in range(1000)
    ]
    first = 0.0
    with dspy.context(lm=lm), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        evaluate = dspy.Evaluate(
            devset=examples, metric=lambda e, p, t=None: True, num_threads=16, display_progress=False
        )
        kept = []  # an optimizer keeps the results of its trials
        for _ in range(outcomes // 1000):
            kept.append(evaluate(dspy.Predict("question -> answer")))
            first = first or resident()
    return {"outcomes": outcomes, "growth": resident() - first}


def deciding(outcomes: int, slots: int, levels: int) -> None:
    """Print what a block costs to decide on as a search grows, on a table that answers at once: no evaluator."""
    import numpy as np
    from vitrify.compiler.search import SearchOptions, search
    from vitrify.compiler.space import Point, SearchSpace, Slot

    class Instant:
        """Answers at random, by effects of the levels, and looks at the clock."""

        examples = 1400

        def __init__(self) -> None:
            self.rng = np.random.default_rng(0)
            self.effects = [self.rng.normal(0, 0.15, levels) for _ in range(slots)]
            self.difficulty = self.rng.normal(0, 2, self.examples)
            self.own, self.told = 0.0, 0
            self.marks: list[tuple[int, int, float, float]] = []
            self.blocks = 0

        def score(self, point: Point, examples: Any) -> Any:
            began = time.process_time()
            if self.told >= len(self.marks) * outcomes / 10:
                self.marks.append((self.told, self.blocks, began - self.own, resident()))
            logit = sum(float(effects[level]) for effects, level in zip(self.effects, point, strict=True))
            scores = self.difficulty[list(examples)] + logit + self.rng.logistic(0, 0.6, len(examples)) > 0
            self.blocks, self.told = self.blocks + 1, self.told + len(examples)
            self.own += time.process_time() - began
            return scores.astype(float)

    table = Instant()
    space = SearchSpace([Slot(f"s{index}", levels) for index in range(slots)])
    search(space, table, budget=outcomes, seed=0, options=SearchOptions())
    table.marks.append((table.told, table.blocks, time.process_time() - table.own, resident()))
    print(f"\n| outcomes, {slots} slots of {levels} levels | ms of CPU to decide on a block | resident MB |")
    print("|---|---|---|")
    curve = []
    for before, after in itertools.pairwise(table.marks):
        ms = 1000 * (after[2] - before[2]) / max(1, after[1] - before[1])
        curve.append((after[0], ms, after[3]))
        print(f"| {before[0]:,} to {after[0]:,} | {ms:.2f} | {after[3]:.0f} |", flush=True)
    plot(curve, PLOT)


def plot(curve: Sequence[tuple[int, float, float]], path: Path) -> None:
    """Draw milliseconds to decide and resident MB by outcomes; matplotlib comes with the extra `dev`."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams["svg.hashsalt"] = "vitrify"
    canvas = Figure(figsize=(7, 3), layout="constrained")
    outcomes, milliseconds, megabytes = zip(*curve, strict=True)
    for axes, values, label in zip(
        canvas.subplots(1, 2), (milliseconds, megabytes), ("ms of CPU to decide on a block", "resident MB"), strict=True
    ):
        axes.plot(outcomes, values, marker="o", markersize=3)
        axes.set(xlabel="outcomes told", ylabel=label, ylim=(0, None))
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, metadata={"Date": None})
    print(f"The plot is {path}.")


def measure(which: str, outcomes: int, url: str = "") -> dict[str, float]:
    """Return one measurement, from a process of its own."""
    words = [sys.executable, __file__, "--measure", which, "--outcomes", str(outcomes), "--url", url]
    answer = subprocess.run(words, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(answer.stdout.strip().splitlines()[-1])
    return found


def growth(repeats: int, outcomes: int) -> None:
    """Print the table."""
    from engine import stub

    print(f"\n| growth, 1,000 to {outcomes:,} outcomes | DSPy | vitrify |")
    print("|---|---|---|")
    found = [measure("ours", outcomes) for _ in range(repeats)]
    with stub(fixed=True) as url:
        per = [measure("dspy", 4000, url)["growth"] / 3 for _ in range(repeats)]
    mine = [one["growth"] for one in found]
    known = f"at the most, to {found[0]['outcomes']:,} outcomes ({min(mine):.1f} to {max(mine):.1f})"
    print(
        f"| memory | {statistics.median(per):+.1f} MB a thousand ({min(per):.1f} to {max(per):.1f}, over 3 thousand) "
        f"| {statistics.median(mine):+.1f} MB {known} |"
    )
    decide = [one["decide_ms"] for one in found]
    print(
        f"| CPU to decide on a block, over the last tenth | | {statistics.median(decide):.2f} ms "
        f"({min(decide):.2f} to {max(decide):.2f}) |",
        flush=True,
    )


def main() -> None:
    """Print the table, or one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", choices=("ours", "dspy"))
    parser.add_argument("--outcomes", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--url", default="")
    parser.add_argument("--slots", type=int, default=0)
    parser.add_argument("--levels", type=int, default=20)
    arguments = parser.parse_args()
    if arguments.measure == "ours":
        print(json.dumps(ours(arguments.outcomes)))
    elif arguments.measure == "dspy":
        print(json.dumps(theirs(arguments.outcomes, arguments.url)))
    elif arguments.slots:
        deciding(arguments.outcomes, arguments.slots, arguments.levels)
    else:
        growth(arguments.repeats, arguments.outcomes)


if __name__ == "__main__":
    main()

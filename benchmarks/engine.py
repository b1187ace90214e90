"""The engine's figures, each as a ratio against stock DSPy in the same run.

    make bench-engine
    python benchmarks/engine.py --only cpu --repeats 5

- cpu: process CPU per predictor call over loopback HTTP, 0 and 8 demonstrations: DSPy's `Predict` on `dspy.LM`, our
  bound predictor in the same threads, a sealed program on the event loop.
- share: the share of the ideal throughput with a 50 ms server and 128 calls in flight.
- busy: how busy a 200 ms (lognormal, sigma .8) server is kept during a compile of the help desk, 64 in flight, beside
  `MIPROv2(auto="light")` and at an equal number of calls.

Server and client share the machine's cores; the server runs in a process of its own, and its own ceiling (a bare client
that neither renders nor parses) stands beside the figures.
"""

import argparse
import asyncio
import contextlib
import io
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")

import dspy
from dspy.dsp.utils.settings import thread_local_overrides
from vitrify.compiler.data import load_rows
from vitrify.compiler.importing import load_object
from vitrify.programs.bind import bind
from vitrify.programs.bridge import EngineLM
from vitrify.programs.openai import OpenAICompatible
from vitrify.programs.program import lower_program

import vitrify

ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def stub(**options: Any) -> Iterator[str]:
    """Give the address of a server in a process of its own."""
    words = [sys.executable, str(ROOT / "benchmarks" / "stub_server.py")]
    for name, value in options.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    server = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None and server.stdout is not None
    try:
        yield server.stdout.readline().strip()
    finally:
        server.stdin.close()
        server.wait(10)


def stats(url: str) -> dict[str, float]:
    """Return what a server counted."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats") as answer:
        counts: dict[str, float] = json.load(answer)
        return counts


class Ask(dspy.Signature):
    """Answer the question in one word."""

    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


def program(demos: int) -> dspy.Predict:
    """Return a predictor with demonstrations."""
    predictor = dspy.Predict(Ask)
    predictor.demos = [
        dspy.Example(question=f"What is the capital of country number {i}, the one on the coast?", answer=f"City{i}")
        for i in range(demos)
    ]
    return predictor


def questions(count: int) -> list[str]:
    """Return distinct questions."""
    return [f"What is the capital of the country that was visited in year {i}?" for i in range(count)]


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Return CPU and wall-clock seconds of some work in this process."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def in_threads(threads: int, call: Callable[[str], Any], asked: list[str]) -> Callable[[], None]:
    """Return work that makes the calls in threads, DSPy's settings with them."""
    overrides = thread_local_overrides.get().copy()

    def one(question: str) -> None:
        token = thread_local_overrides.set(overrides)
        try:
            call(question)
        finally:
            thread_local_overrides.reset(token)

    def work() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(one, asked))

    return work


def on_the_loop(flying: int, call: Callable[[str], Any], asked: list[str]) -> Callable[[], None]:
    """Return work that makes the calls on one event loop."""

    async def main() -> None:
        waiting = iter(asked)

        async def worker() -> None:
            for question in waiting:
                await call(question)

        await asyncio.gather(*(worker() for _ in range(flying)))

    return lambda: asyncio.run(main())


def dspy_calls(url: str, demos: int, threads: int, asked: list[str]) -> tuple[float, float]:
    """Measure stock DSPy: `Predict` on `dspy.LM`, its cache off."""
    lm = dspy.LM("openai/stub", api_base=url, api_key="none", cache=False)
    predictor = program(demos)
    with dspy.context(lm=lm, disable_history=True), quiet():
        in_threads(threads, lambda q: predictor(question=q), asked[:64])()
        return timed(in_threads(threads, lambda q: predictor(question=q), asked))


def bound_calls(url: str, demos: int, threads: int, asked: list[str]) -> tuple[float, float]:
    """Measure a bound predictor in threads."""
    predictor = program(demos)
    spec = lower_program(predictor)
    bound = bind(predictor, spec, spec.baseline)
    client = OpenAICompatible("openai/stub", api_base=url, api_key="none")
    with dspy.context(lm=EngineLM(client), disable_history=True):
        in_threads(threads, lambda q: bound(question=q), asked[:64])()
        found = timed(in_threads(threads, lambda q: bound(question=q), asked))
    client.close()
    return found


def sealed_calls(path: Path, url: str, flying: int, asked: list[str]) -> tuple[float, float]:
    """Measure a sealed program on the loop."""
    loaded = vitrify.load(path, lm="openai/stub", api_base=url, api_key="none")
    on_the_loop(flying, lambda q: loaded.acall(question=q), asked[:64])()
    found = timed(on_the_loop(flying, lambda q: loaded.acall(question=q), asked))
    loaded.close()
    return found


def sealed_artifact(folder: Path, demos: int) -> Path:
    """Write a sealed artifact of the program, without searching."""
    rows = [{"question": q, "answer": "Paris"} for q in questions(60)]
    artifact = vitrify.compile(
        program(demos),
        rows,
        lambda example, pred, trace=None: True,
        lm="embedded",
        run_dir=folder / f"run{demos}",
        options=vitrify.Options(instructions=0, demo_sets=0),
    )
    return artifact.save(folder / f"{demos}.json")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence DSPy's progress bars and warnings."""
    logging.disable(logging.WARNING)
    sink = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def shown(values: list[float], form: str = ".0f") -> str:
    """Return the median and the range."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def cpu(repeats: int, calls: int) -> None:
    """Print CPU per call, and the ratio to DSPy."""
    print("| CPU per call, us | demos | DSPy, 16 threads | bound, 16 threads | ratio | sealed, loop, 64 | ratio |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, stub(fixed=True) as url:
        for demos in (0, 8):
            path = sealed_artifact(Path(folder), demos)
            rows: list[tuple[float, float, float]] = []
            for _ in range(repeats):
                theirs = dspy_calls(url, demos, 16, questions(max(200, calls // 5)))[0] / max(200, calls // 5)
                bound = bound_calls(url, demos, 16, questions(calls))[0] / calls
                sealed = sealed_calls(path, url, 64, questions(calls))[0] / calls
                rows.append((1e6 * theirs, 1e6 * bound, 1e6 * sealed))
            columns = [list(column) for column in zip(*rows, strict=True)]
            threads = [b / a for a, b, _ in rows]
            loop = [c / a for a, _, c in rows]
            ratios = [f"1/{1 / statistics.median(found):.1f}" for found in (threads, loop)]
            print(
                f"| predictor call | {demos} | {shown(columns[0])} | {shown(columns[1])} | {ratios[0]} "
                f"| {shown(columns[2])} | {ratios[1]} |"
            )


def share(repeats: int, calls: int) -> None:
    """Print the share of the ideal throughput at 50 ms and 128 in flight."""
    print("\n| share of ideal, 50 ms, 128 in flight | DSPy | bound, threads | sealed, loop |")
    print("|---|---|---|---|")
    ideal = 128 / 0.05
    with tempfile.TemporaryDirectory() as folder, stub(fixed=True, latency=0.05) as url:
        path = sealed_artifact(Path(folder), 0)
        rows = []
        for _ in range(repeats):
            fewer = max(200, calls // 5)
            theirs = fewer / dspy_calls(url, 0, 128, questions(fewer))[1]
            bound = calls / bound_calls(url, 0, 128, questions(calls))[1]
            sealed = calls / sealed_calls(path, url, 128, questions(calls))[1]
            rows.append((100 * theirs / ideal, 100 * bound / ideal, 100 * sealed / ideal))
        columns = [list(column) for column in zip(*rows, strict=True)]
        print("| % | " + " | ".join(shown(column) for column in columns) + " |")


def busy(repeats: int) -> None:
    """Print how busy the server is kept during a compile, ours beside MIPROv2's."""
    folder = ROOT / "examples" / "helpdesk"
    make: Any = load_object(f"{folder / 'program.py'}:Helpdesk")
    metric: Any = load_object(f"{folder / 'program.py'}:routed", kind="metric")
    rows = load_rows(folder / "tickets.jsonl")
    flying = 64
    print("\n| LM kept busy, 200 ms lognormal, 64 in flight | calls | seconds | busy % |")
    print("|---|---|---|---|")
    for seed in range(repeats):
        with stub(latency=0.2, sigma=0.8) as url:
            lm = dspy.LM("openai/stub", api_base=url, api_key="none", cache=False)
            examples = [dspy.Example(**row).with_inputs("message") for row in rows]
            began = time.perf_counter()
            with dspy.context(lm=lm, disable_history=True), quiet():
                optimizer = dspy.MIPROv2(metric=metric, auto="light", seed=seed + 1, num_threads=flying)
                optimizer.compile(make(), trainset=examples[:72], valset=examples[72:216])
            seconds, counts = time.perf_counter() - began, stats(url)
            theirs = counts["served"]
            print(
                f"| dspy.MIPROv2 light | {theirs:.0f} | {seconds:.1f} | {100 * counts['busy'] / seconds / flying:.1f} |"
            )
        with stub(latency=0.2, sigma=0.8) as url, tempfile.TemporaryDirectory() as run:
            began = time.perf_counter()
            vitrify.compile(
                make(),
                rows,
                metric,
                lm="openai/stub",
                seed=seed,
                run_dir=Path(run) / "run",
                budget=vitrify.Budget(calls=int(theirs)),
                options=vitrify.Options(concurrency=flying, api_base=url, api_key="none"),
            )
            seconds, counts = time.perf_counter() - began, stats(url)
            used = 100 * counts["busy"] / seconds / flying
            print(f"| vitrify | {counts['served']:.0f} | {seconds:.1f} | {used:.1f} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("cpu", "share", "busy"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--calls", type=int, default=2000)
    arguments = parser.parse_args()
    if arguments.only in (None, "cpu"):
        cpu(arguments.repeats, arguments.calls)
    if arguments.only in (None, "share"):
        share(arguments.repeats, arguments.calls)
    if arguments.only in (None, "busy"):
        busy(arguments.repeats)


if __name__ == "__main__":
    main()

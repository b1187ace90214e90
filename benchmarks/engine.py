"""The engine's figures, each as a ratio against stock DSPy in the same run.

    make bench-engine
    python benchmarks/engine.py --only cpu --repeats 5

- cpu: process CPU per predictor call over loopback HTTP, 0 and 8 demonstrations: DSPy's `Predict` on `dspy.LM`, our
  bound predictor in the same threads, a sealed program on the event loop.
- share: the share of the ideal throughput with a 50 ms server and 128 calls in flight, in a steady state.
- busy: how busy a 200 ms (lognormal, sigma .8) server is kept during a compile of the help desk, 64 in flight, beside
  `MIPROv2(auto="light")` and at an equal number of calls (busy.py).
- growth: memory and the time to decide at a hundred thousand outcomes (growth.py).
- load: import, load and memory of a frozen program (load.py).

Server and client share the machine's cores; the server runs in a process of its own, and its own ceiling (a bare client
that neither renders nor parses) stands beside the figures.
"""

import argparse
import asyncio
import contextlib
import contextvars
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
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")

import dspy
from dspy.dsp.utils.settings import thread_local_overrides
from vitrify.programs.bind import bind
from vitrify.programs.bridge import EngineLM
from vitrify.programs.openai import OpenAICompatible
from vitrify.programs.program import lower_program

import vitrify

ROOT = Path(__file__).resolve().parent.parent
BODY = (
    b'{"model":"stub","messages":[{"role":"system","content":"' + b"x" * 500 + b'"},{"role":"user","content":"%s"}]}'
)  # about what the predictor below sends


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


class Steady:
    """CPU and wall clock of some calls in a steady state: those before and after them belong to nobody.

    Connections are made, threads started and code first run during the `warm` calls; as many follow the measured ones,
    so that what is measured always has its number in flight.
    """

    def __init__(self, warm: int, calls: int) -> None:
        self.asked = questions(2 * warm + calls)
        self._calls = calls
        self._ends = (warm, warm + calls)
        self._count = itertools.count(1)
        self._seen: list[tuple[float, float]] = []

    def done(self) -> None:
        """Note that a call is done."""
        if next(self._count) in self._ends:
            self._seen.append((time.process_time(), time.perf_counter()))

    def figures(self) -> tuple[float, float]:
        """Return CPU microseconds per call, and calls per second."""
        (cpu, wall), (cpu_then, wall_then) = self._seen
        return 1e6 * (cpu_then - cpu) / self._calls, self._calls / (wall_then - wall)


def in_threads(threads: int, call: Callable[[str], Any], steady: Steady) -> tuple[float, float]:
    """Measure calls in threads, DSPy's settings with them."""
    overrides = thread_local_overrides.get().copy()
    waiting = iter(steady.asked)

    def worker() -> None:
        thread_local_overrides.set(overrides)
        for question in waiting:
            call(question)
            steady.done()

    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(contextvars.copy_context().run, worker) for _ in range(threads)]:
            future.result()
    return steady.figures()


def on_the_loop(flying: int, call: Callable[[str], Any], steady: Steady) -> tuple[float, float]:
    """Measure calls on one event loop."""

    async def main() -> None:
        waiting = iter(steady.asked)

        async def worker() -> None:
            for question in waiting:
                await call(question)
                steady.done()

        await asyncio.gather(*(worker() for _ in range(flying)))

    asyncio.run(main())
    return steady.figures()


def dspy_calls(url: str, demos: int, threads: int, steady: Steady) -> tuple[float, float]:
    """Measure stock DSPy: `Predict` on `dspy.LM`, its cache off."""
    lm = dspy.LM("openai/stub", api_base=url, api_key="none", cache=False)
    predictor = program(demos)
    with dspy.context(lm=lm, disable_history=True), quiet():
        return in_threads(threads, lambda q: predictor(question=q), steady)


def bound_calls(url: str, demos: int, threads: int, steady: Steady) -> tuple[float, float]:
    """Measure a bound predictor in threads."""
    predictor = program(demos)
    spec = lower_program(predictor)
    bound = bind(predictor, spec, spec.baseline)
    client = OpenAICompatible("openai/stub", api_base=url, api_key="none")
    with dspy.context(lm=EngineLM(client), disable_history=True):
        found = in_threads(threads, lambda q: bound(question=q), steady)
    client.close()
    return found


def sealed_calls(path: Path, url: str, flying: int, steady: Steady) -> tuple[float, float]:
    """Measure a sealed program on a loop."""
    loaded = vitrify.load(path, lm="openai/stub", api_base=url, api_key="none")
    found = on_the_loop(flying, lambda q: loaded.acall(question=q), steady)
    loaded.close()
    return found


class Bare(asyncio.Protocol):
    """One connection of a client that neither renders nor parses: bytes out, bytes in, and again."""

    def __init__(self, steady: Steady, waiting: Iterator[str], host: str) -> None:
        self.steady = steady
        self.waiting = waiting
        self.host = host
        self.missing = 0
        self.transport: Any = None
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        """Ask for the first time."""
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        """Send a request of the usual size, or end."""
        question = next(self.waiting, None)
        if question is None:
            self.transport.close()
            self.over.set_result(None)
            return
        body = BODY % question.encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self.host}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)

    def data_received(self, data: bytes) -> None:
        """Count bytes until the reply is whole."""
        if not self.missing:
            head, _, data = data.partition(b"\r\n\r\n")
            self.missing = int(head[head.rindex(b"Content-Length:") + 15 :].split(b"\r\n")[0])
        self.missing -= len(data)
        if not self.missing:
            self.steady.done()
            self.ask()


def bare_calls(url: str, flying: int, steady: Steady) -> tuple[float, float]:
    """Measure the bare client: the ceiling of the server, and of this machine."""
    host, _, port = url.removeprefix("http://").removesuffix("/v1").partition(":")

    async def main() -> None:
        waiting = iter(steady.asked)
        loop = asyncio.get_running_loop()
        made = [
            await loop.create_connection(lambda: Bare(steady, waiting, host), host, int(port)) for _ in range(flying)
        ]
        await asyncio.gather(*(bare.over for _, bare in made))

    asyncio.run(main())
    return steady.figures()


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


class Bystanders:
    """How much of the machine others took: with two cores, figures of a busy machine are those of its other users."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._began = self._now()

    def _now(self) -> tuple[float, float]:
        own = time.process_time() + stats(self._url)["cpu"]
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        user, nice, system, _, _, irq, softirq, steal = ticks[:8]
        return time.perf_counter(), (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - own

    def sentence(self) -> str:
        """Say it."""
        (began, before), (now, after) = self._began, self._now()
        taken = max(0.0, 100 * (after - before) / (now - began) / (os.cpu_count() or 1))
        return f"Others took {taken:.0f} % of the machine meanwhile."


def shown(values: list[float], form: str = ".0f") -> str:
    """Return the median and the range."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def ratio(theirs: list[float], ours: list[float]) -> str:
    """Return the median of paired ratios, with its range."""
    found = [a / b for a, b in zip(theirs, ours, strict=True)]
    return f"1/{statistics.median(found):.1f} (1/{min(found):.1f} to 1/{max(found):.1f})"


SLICES = 4
"""Turns that each of those compared takes within a repeat, so that all of them meet the same machine."""


def cpu(repeats: int, calls: int) -> None:
    """Print CPU per call, and the ratio to DSPy: of each repeat, over slices of it in which all take turns."""
    print("| CPU per call, us | demos | DSPy, 16 threads | bound, 16 threads | ratio | sealed, loop, 64 | ratio |")
    print("|---|---|---|---|---|---|---|", flush=True)
    each, fewer = max(200, calls // SLICES), max(100, calls // 5 // SLICES)
    with tempfile.TemporaryDirectory() as folder, stub(fixed=True) as url:
        bare: list[tuple[float, float]] = []
        others = Bystanders(url)
        for demos in (0, 8):
            path = sealed_artifact(Path(folder), demos)
            columns: list[list[float]] = [[], [], []]
            for _ in range(repeats):
                slices: list[list[float]] = [[], [], []]
                for _ in range(SLICES):
                    slices[0].append(dspy_calls(url, demos, 16, Steady(64, fewer))[0])
                    slices[1].append(bound_calls(url, demos, 16, Steady(200, each))[0])
                    slices[2].append(sealed_calls(path, url, 64, Steady(200, each))[0])
                bare.append(bare_calls(url, 64, Steady(200, each)))
                for column, taken in zip(columns, slices, strict=True):
                    column.append(statistics.fmean(taken))
            theirs, bound, sealed = columns
            print(
                f"| predictor call | {demos} | {shown(theirs)} | {shown(bound)} | {ratio(theirs, bound)} "
                f"| {shown(sealed)} | {ratio(theirs, sealed)} |",
                flush=True,
            )
        served, told = stats(url), others.sentence()
    print(
        f"\nThe bare client: {shown([c for c, _ in bare])} us of CPU per call, {shown([r for _, r in bare])} calls a "
        f"second; the server: {1e6 * served['cpu'] / served['served']:.0f} us of CPU per call served. {told}"
    )


def share(repeats: int, calls: int) -> None:
    """Print the share of the ideal throughput at 50 ms and 128 in flight, once it is steady."""
    flying, latency, fewer = 128, 0.05, max(200, calls // 5)
    print(
        f"\n| share of ideal, 50 ms, {flying} in flight | DSPy, threads | bound, threads | sealed, loop "
        "| bare client (the ceiling) |\n|---|---|---|---|---|",
        flush=True,
    )
    ideal = flying / latency
    with tempfile.TemporaryDirectory() as folder, stub(fixed=True, latency=latency) as url:
        path = sealed_artifact(Path(folder), 0)
        columns: list[list[float]] = [[], [], [], []]
        others = Bystanders(url)
        for _ in range(repeats):
            rates = (
                dspy_calls(url, 0, flying, Steady(2 * flying, fewer))[1],
                bound_calls(url, 0, flying, Steady(4 * flying, calls))[1],
                sealed_calls(path, url, flying, Steady(4 * flying, calls))[1],
                bare_calls(url, flying, Steady(4 * flying, calls))[1],
            )
            for column, rate in zip(columns, rates, strict=True):
                column.append(100 * rate / ideal)
        print("| % | " + " | ".join(shown(column) for column in columns) + " |")
        served, taken = stats(url), others.sentence()
    print(
        f"\nThe steady state: {calls} calls ({fewer} of DSPy) after {4 * flying} ({2 * flying}) that open connections "
        f"and start\nthreads, {flying} in flight throughout; ideal is {ideal:.0f} a second. The server takes "
        f"{1e6 * served['cpu'] / served['served']:.0f} us of CPU\nper call, on the same cores. {taken}"
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("cpu", "share", "busy", "growth", "load"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--calls", type=int, default=4000)
    arguments = parser.parse_args()
    if arguments.only in (None, "cpu"):
        cpu(arguments.repeats, arguments.calls)
    if arguments.only in (None, "share"):
        share(arguments.repeats, arguments.calls)
    if arguments.only in (None, "busy"):
        from busy import busy

        busy(arguments.repeats)
    if arguments.only in (None, "growth"):
        from growth import growth

        growth(1, 100_000)
    if arguments.only in (None, "load"):
        from load import load

        load(20)


if __name__ == "__main__":
    main()

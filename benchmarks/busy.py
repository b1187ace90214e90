"""How busy a language model is kept over a whole compile, ours beside MIPROv2's, at an equal number of calls.

    python benchmarks/busy.py --repeats 3
    python benchmarks/busy.py --timeline                # what is in flight when, and for which pass
    python benchmarks/busy.py --alone --budget 9000     # ours alone, longer

The server waits 200 ms (lognormal, sigma .8) for each attempt, or `--latency`, which the machine's other work disturbs
less; 64 calls are in flight at most. Busy is what the server spent on calls, over the wall-clock seconds of the compile
times 64. The help desk has two predictors, so a row is two calls, one after the other. The server's answers get better
with demonstrations and with some instructions, so that both sides have something to find, and the sealed test is run
for a winner. Our compile shares calls between candidates and makes fewer than its budget allows, so the budget is set
above MIPROv2's number of calls for as many to be made.

The bound is what nobody can exceed without a second attempt: rows of two calls, none of which waits for another row, on
64 places, after one call that goes alone. What is missing to 100 % is the last rows, the slowest of 64.
"""

import argparse
import contextlib
import heapq
import math
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import dspy
import optuna  # noqa: F401 - both sides import it, and neither is timed for that
from engine import ROOT, quiet, shown, stats, stub
from timeline import watched
from vitrify.compiler.data import load_rows
from vitrify.compiler.importing import load_object

import vitrify

FLYING = 64
SIGMA = 0.8
ROOM = 1.35
"""Our budget over MIPROv2's calls."""


def server(latency: float) -> "contextlib.AbstractContextManager[str]":
    """Return the address of the server: its answers get better with demonstrations, and with some instructions."""
    rows = ROOT / "examples" / "helpdesk" / "tickets.jsonl"
    return stub(latency=latency, sigma=SIGMA, rows=rows, input="message")


def task() -> tuple[Any, Any, list[Any]]:
    """Return what makes the program, the metric and the rows."""
    folder = ROOT / "examples" / "helpdesk"
    make: Any = load_object(f"{folder / 'program.py'}:Helpdesk")
    metric: Any = load_object(f"{folder / 'program.py'}:routed", kind="metric")
    return make, metric, list(load_rows(folder / "tickets.jsonl"))


def theirs(seed: int, latency: float) -> tuple[int, float, float]:
    """Return the calls, the seconds and the busy share in percent of `MIPROv2(auto="light")`."""
    make, metric, rows = task()
    examples = [dspy.Example(**row).with_inputs("message") for row in rows]
    with server(latency) as url:
        lm = dspy.LM("openai/stub", api_base=url, api_key="none", cache=False)
        began = time.perf_counter()
        with dspy.context(lm=lm, disable_history=True), quiet():
            optimizer = dspy.MIPROv2(metric=metric, auto="light", seed=seed + 1, num_threads=FLYING)
            optimizer.compile(make(), trainset=examples[:72], valset=examples[72:216])
        return _found(url, time.perf_counter() - began)


def ours(seed: int, calls: int, latency: float, *, hedge: bool) -> tuple[int, float, float]:
    """Return the calls, the seconds and the busy share in percent of our compile."""
    make, metric, rows = task()
    with server(latency) as url, tempfile.TemporaryDirectory() as run:
        options = vitrify.Options(
            concurrency=FLYING, api_base=url, api_key="none", effort="heavy", hedge=hedge, cache=False
        )
        began = time.perf_counter()
        found = vitrify.compile(
            make(),
            rows,
            metric,
            lm="openai/stub",
            seed=seed,
            run_dir=Path(run) / "run",
            budget=vitrify.Budget(calls=calls),
            options=options,
        )
        print(found.evidence, flush=True)
        return _found(url, time.perf_counter() - began)


def bound(calls: int, seed: int) -> float:
    """Return the busy share in percent of so many calls, in rows of two, that wait for nothing but a place."""
    rng = random.Random(seed)
    waits = [math.exp(SIGMA * rng.gauss(0, 1)) for _ in range(calls)]
    places = [waits[0]] * FLYING
    for first, second in zip(waits[1::2], waits[2::2], strict=False):
        heapq.heappush(places, heapq.heappop(places) + first + second)
    return 100 * sum(waits) / FLYING / max(places)


def timeline(seed: int, budget: int, latency: float, *, hedge: bool) -> None:
    """Print what is in flight over a compile of ours."""
    with watched(1.25 * latency) as seen:
        calls, seconds, share = ours(seed, budget, latency, hedge=hedge)
    print("\n".join(seen.lines(FLYING)))
    print(f"{calls} calls in {seconds:.1f} s, {share:.1f} % busy")


def _found(url: str, seconds: float) -> tuple[int, float, float]:
    counts = stats(url)
    return int(counts["served"]), seconds, 100 * counts["busy"] / seconds / FLYING


def busy(repeats: int, latency: float, budget: int | None = None) -> None:
    """Print the table; with a budget, of ours alone."""
    rows: dict[str, list[tuple[int, float, float]]] = {"dspy.MIPROv2 light": [], "vitrify": [], "vitrify, hedged": []}
    if budget is not None:
        del rows["dspy.MIPROv2 light"]
    for seed in range(repeats):
        room = budget
        if room is None:
            rows["dspy.MIPROv2 light"].append(theirs(seed, latency))
            room = int(ROOM * rows["dspy.MIPROv2 light"][-1][0])
        rows["vitrify"].append(ours(seed, room, latency, hedge=False))
        rows["vitrify, hedged"].append(ours(seed, room, latency, hedge=True))
    print(f"\n| LM kept busy, {1000 * latency:.0f} ms lognormal, 64 in flight | calls served | seconds | busy % |")
    print("|---|---|---|---|")
    for name, found in rows.items():
        calls, seconds, share = ([float(value) for value in column] for column in zip(*found, strict=True))
        print(f"| {name} | {shown(calls)} | {shown(seconds, '.1f')} | {shown(share, '.1f')} |")
    served = int(statistics.median(calls for calls, _, _ in rows["vitrify"]))
    print(f"the bound at {served} calls: {statistics.mean(bound(served, seed) for seed in range(40)):.1f} %")
    if budget is None:
        base = statistics.median(share for _, _, share in rows["dspy.MIPROv2 light"])
        for name in ("vitrify", "vitrify, hedged"):
            ratio = statistics.median(share for _, _, share in rows[name]) / base
            print(f"{name}: {ratio:.1f} times as busy", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--budget", type=int, default=3600, help="of ours, with --timeline or --alone")
    parser.add_argument("--latency", type=float, default=0.2, help="seconds; more where others use the machine")
    parser.add_argument("--timeline", action="store_true", help="what is in flight when, of ours")
    parser.add_argument("--hedge", action="store_true", help="with --timeline")
    parser.add_argument("--alone", action="store_true", help="ours alone")
    arguments = parser.parse_args()
    if arguments.timeline:
        timeline(0, arguments.budget, arguments.latency, hedge=arguments.hedge)
    else:
        busy(arguments.repeats, arguments.latency, arguments.budget if arguments.alone else None)

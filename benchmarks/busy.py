"""How busy a language model is kept over a whole compile, ours beside MIPROv2's, at an equal number of calls.

    python benchmarks/busy.py --repeats 3

The server waits 200 ms (lognormal, sigma .8) for each attempt; 64 calls are in flight at most. Busy is what the server
spent on calls, over the wall-clock seconds of the compile times 64. The help desk has two predictors, so a row is two
calls, one after the other. Our compile shares calls between candidates and makes fewer than its budget allows, so the
budget is set above MIPROv2's number of calls for as many to be made.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import dspy
import optuna  # noqa: F401 - both sides import it, and neither is timed for that
from engine import ROOT, quiet, shown, stats, stub
from vitrify.compiler.data import load_rows
from vitrify.compiler.importing import load_object

import vitrify

FLYING = 64
ROOM = 1.35
"""Our budget over MIPROv2's calls."""


def server() -> "contextlib.AbstractContextManager[str]":
    """Return the address of the server: its answers get better with demonstrations, and with some instructions."""
    rows = ROOT / "examples" / "helpdesk" / "tickets.jsonl"
    return stub(latency=0.2, sigma=0.8, rows=rows, input="message")


def task() -> tuple[Any, Any, list[Any]]:
    """Return what makes the program, the metric and the rows."""
    folder = ROOT / "examples" / "helpdesk"
    make: Any = load_object(f"{folder / 'program.py'}:Helpdesk")
    metric: Any = load_object(f"{folder / 'program.py'}:routed", kind="metric")
    return make, metric, list(load_rows(folder / "tickets.jsonl"))


def theirs(seed: int) -> tuple[int, float, float]:
    """Return the calls, the seconds and the busy share in percent of `MIPROv2(auto="light")`."""
    make, metric, rows = task()
    examples = [dspy.Example(**row).with_inputs("message") for row in rows]
    with server() as url:
        lm = dspy.LM("openai/stub", api_base=url, api_key="none", cache=False)
        began = time.perf_counter()
        with dspy.context(lm=lm, disable_history=True), quiet():
            optimizer = dspy.MIPROv2(metric=metric, auto="light", seed=seed + 1, num_threads=FLYING)
            optimizer.compile(make(), trainset=examples[:72], valset=examples[72:216])
        return _found(url, time.perf_counter() - began)


def ours(seed: int, calls: int, *, hedge: bool) -> tuple[int, float, float]:
    """Return the calls, the seconds and the busy share in percent of our compile."""
    make, metric, rows = task()
    with server() as url, tempfile.TemporaryDirectory() as run:
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


def _found(url: str, seconds: float) -> tuple[int, float, float]:
    counts = stats(url)
    return int(counts["served"]), seconds, 100 * counts["busy"] / seconds / FLYING


def busy(repeats: int) -> None:
    """Print the table."""
    rows: dict[str, list[tuple[int, float, float]]] = {"dspy.MIPROv2 light": [], "vitrify": [], "vitrify, hedged": []}
    for seed in range(repeats):
        rows["dspy.MIPROv2 light"].append(theirs(seed))
        budget = int(ROOM * rows["dspy.MIPROv2 light"][-1][0])
        rows["vitrify"].append(ours(seed, budget, hedge=False))
        rows["vitrify, hedged"].append(ours(seed, budget, hedge=True))
    print("\n| LM kept busy over a compile, 200 ms lognormal, 64 in flight | calls served | seconds | busy % |")
    print("|---|---|---|---|")
    for name, found in rows.items():
        calls, seconds, share = ([float(value) for value in column] for column in zip(*found, strict=True))
        print(f"| {name} | {shown(calls)} | {shown(seconds, '.1f')} | {shown(share, '.1f')} |")
    base = statistics.median(share for _, _, share in rows["dspy.MIPROv2 light"])
    for name in ("vitrify", "vitrify, hedged"):
        print(f"{name}: {statistics.median(share for _, _, share in rows[name]) / base:.1f} times as busy", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    busy(parser.parse_args().repeats)

"""Timeline: how many calls are in flight over a compile, and which pass they belong to."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from vitrify.compiler.evaluate import PLAIN, Errand, Evaluator
from vitrify.compiler.metered import MeteredLM
from vitrify.compiler.run import Run

OWNER: ContextVar[str] = ContextVar("owner", default="propose")
"""The pass that the running evaluation belongs to."""

PASSES = ("preflight", "bootstrap", "propose", "search", "ahead", "certify")
"""In the order of the columns; `ahead` is what a later pass will need, asked while there is nothing better to do."""


@dataclass
class Timeline:
    """The calls of one compile.

    Attributes:
        step: Seconds of a line.
        calls: (began, ended, owner) of each call, seconds since the first.
        passes: (seconds, name) of each pass that the compiling thread began.
    """

    step: float = 0.25
    calls: list[tuple[float, float, str]] = field(default_factory=list)
    passes: list[tuple[float, str]] = field(default_factory=list)

    def lines(self, flying: int) -> Iterator[str]:
        """Yield a line for each step: the mean number in flight, the same by pass, and the passes that began.

        Args:
            flying: How many may be in flight.
        """
        start, end = min((began for began, _, _ in self.calls), default=0.0), self.over
        yield f"{'second':>6} {'all':>5} " + " ".join(f"{name:>9}" for name in PASSES)
        low = min([start, *(at for at, _ in self.passes)])
        for number in range(int((end - low) / self.step) + 1):
            at, until = low + number * self.step, low + (number + 1) * self.step
            share: Counter[str] = Counter()
            for began, ended, owner in self.calls:
                share[owner] += max(0.0, min(ended, until) - max(began, at)) / self.step  # type: ignore[assignment]  # a share
            begun = ", ".join(name for when, name in self.passes if at <= when < until)
            total = sum(share.values())
            bar = "#" * round(20 * total / flying)
            yield (
                f"{at - low:6.2f} {total:5.1f} "
                + " ".join(f"{share[name]:9.1f}" for name in PASSES)
                + f" {bar:20} {begun}"
            ).rstrip()

    @property
    def over(self) -> float:
        """When the last call ended."""
        return max((ended for _, ended, _ in self.calls), default=0.0)


def _owner(errand: Errand) -> str:
    """Return the pass that an evaluation is for."""
    if errand.traced:
        return "bootstrap"
    if errand.priority:
        return "ahead"
    if errand.certifying:
        return "certify"
    return "preflight" if errand is PLAIN else "search"


@contextlib.contextmanager
def watched(step: float = 0.25) -> Iterator[Timeline]:
    """Watch the compiles of this process: every call that leaves, and the pass that it is for.

    Args:
        step: Seconds of a line.
    """
    found = Timeline(step)
    begin, evaluated, alooped, ask, aask = (
        Run.begin, Evaluator._evaluated, Evaluator._alooped, MeteredLM._ask, MeteredLM._aask,
    )  # fmt: skip

    def begun(run: Run, stage: str, planned: int = 0) -> None:
        found.passes.append((time.perf_counter(), stage))
        begin(run, stage, planned)

    def in_thread(evaluator: Evaluator, asked: Any) -> Any:
        OWNER.set(_owner(asked.errand))
        return evaluated(evaluator, asked)

    async def on_loop(evaluator: Evaluator, asked: Any) -> Any:
        OWNER.set(_owner(asked.errand))
        return await alooped(evaluator, asked)

    def from_thread(lm: MeteredLM, *asked: Any) -> Any:
        began = time.perf_counter()
        try:
            return ask(lm, *asked)
        finally:
            found.calls.append((began, time.perf_counter(), OWNER.get()))

    async def from_loop(lm: MeteredLM, *asked: Any) -> Any:
        began = time.perf_counter()
        try:
            return await aask(lm, *asked)
        finally:
            found.calls.append((began, time.perf_counter(), OWNER.get()))

    patched: list[tuple[Any, str, Any, Any]] = [
        (Run, "begin", begin, begun),
        (Evaluator, "_evaluated", evaluated, in_thread),
        (Evaluator, "_alooped", alooped, on_loop),
        (MeteredLM, "_ask", ask, from_thread),
        (MeteredLM, "_aask", aask, from_loop),
    ]
    for owner, name, _, watching in patched:
        setattr(owner, name, watching)
    try:
        yield found
    finally:
        for owner, name, plain, _ in patched:
            setattr(owner, name, plain)

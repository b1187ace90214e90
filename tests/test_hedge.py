"""Hedges: the slow tail is asked once more, both calls are counted, and the artifact is the same."""

import asyncio
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vitrify.compiler.budget import BudgetExhausted

import vitrify
from tests.commands import Answers
from tests.server import Body, Fault, ScriptedServer, at_random
from tests.tiny import ROWS, Record, asked_of, compile_tiny, hasten, serving

TAIL = 0.7
"""Seconds that the slow attempts take; each of them may be any request's."""


def tailed(every: int = 25) -> Callable[[Body], Any]:
    """Return answers of which each n-th attempt is slow, whatever it asks."""
    answers, numbers = Answers(ROWS), itertools.count(1)

    async def answer(body: Body) -> str:
        await asyncio.sleep(TAIL if next(numbers) % every == 0 else 0.005)
        return answers(body)

    return answer


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The artifact without hedges, with a slow tail; nothing is asked twice."""
    run = tmp_path_factory.mktemp("plain") / "run"
    with ScriptedServer(tailed()) as server:
        made = compile_tiny(server.url, run)
        assert set(asked_of(server).values()) == {1}
        assert sum(wait >= TAIL for wait in waits(run)) >= 5
    return made


def waits(run: Path) -> list[float]:
    return [line["seconds"] for line in Record.of(run).lines if line["kind"] == "reply"]


def test_the_tail_is_cut(plain: bytes, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with ScriptedServer(tailed()) as server:
        assert compile_tiny(server.url, run, hedge=True) == plain
        twice = [count for count in asked_of(server).values() if count > 1]
        assert twice and set(twice) == {2}, "once more, and not again and again"
        record = Record.of(run)
        # Both are counted; an answer that came second is in the ledger unless the run had ended.
        assert record.attempts == len(server.requests)
        assert 0 <= record.in_flight <= len(twice) and record.count("hedged") > 0
        slow = sum(seconds >= TAIL for seconds in waits(run))
        assert slow <= 3, "a few before the usual wait is known"


def test_calls_that_hang_are_rescued(plain: bytes, tmp_path: Path) -> None:
    """One attempt in forty is never answered, and the client would wait for three minutes."""
    hangs = lambda number, body: Fault("hang") if number > 60 and number % 40 == 0 else None  # noqa: E731
    with serving(faults=hangs) as server:
        began = time.monotonic()
        assert compile_tiny(server.url, tmp_path / "run", hedge=True) == plain
        assert time.monotonic() - began < 60
        assert Record.of(tmp_path / "run").attempts == len(server.requests)


def test_hedges_and_failures_together(plain: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first may fail while the second is out, and the other way round."""
    hasten(monkeypatch, 100)
    faults = at_random(0.4, [Fault.status_code(500), Fault.status_code(429, retry_after="0"), Fault("drop")], seed=2)
    with ScriptedServer(tailed(), faults=faults) as server:
        assert compile_tiny(server.url, tmp_path / "run", hedge=True) == plain
        record = Record.of(tmp_path / "run")
        assert record.attempts == len(server.requests)
        assert record.in_flight <= 5  # a hedge that failed is known to have; the last end with the compile


@pytest.mark.parametrize("calls", [0, 5, 120, 205, 215, 320])
def test_budget_with_hedges_and_retries(tmp_path: Path, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server counts at most what was allowed, hedges and retries included; so does the ledger."""
    hasten(monkeypatch, 100)
    faults = at_random(0.1, [Fault.status_code(429, retry_after="0"), Fault.status_code(503)], seed=calls)
    with ScriptedServer(tailed(), faults=faults) as server:
        try:
            compile_tiny(server.url, tmp_path / "run", hedge=True, budget=vitrify.Budget(calls=calls))
        except (vitrify.RequestError, BudgetExhausted) as error:
            assert "calls" in str(error)
        assert len(server.requests) <= calls
        assert Record.of(tmp_path / "run").attempts == len(server.requests)

"""The long versions of the fault tests, for `make torture`; VITRIFY_TORTURE=0.1 runs a tenth of them.

Not collected by `make test`: the name doesn't begin with test_.
"""

import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vitrify.compiler.budget import BudgetExhausted

import vitrify
from tests.fuzz import Figures, Watch, fuzz
from tests.server import Fault, ScriptedServer, at_random
from tests.test_faults import EVERY
from tests.test_hedge import tailed
from tests.test_kill import SIGKILL, Undisturbed, killed_runs
from tests.tiny import Nursery, Record, asked_of, client, compile_tiny, free_port, hasten, kill_after, repeats, serving

SHARE = float(os.environ.get("VITRIFY_TORTURE", "1"))


def times(count: int) -> range:
    return range(max(1, round(count * SHARE)))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as found:
        yield found


@pytest.fixture(scope="module")
def host() -> Iterator[Nursery]:
    with Nursery() as found:
        yield found


def moment(plain: Undisturbed, chance: random.Random) -> tuple[str, int]:
    """Return a line of the undisturbed ledger at random, as a pass and a number of lines in it."""
    lengths = plain.record.lengths()
    (stage,) = chance.choices(list(lengths), list(lengths.values()))
    return stage, chance.randrange(lengths[stage])


@pytest.mark.parametrize("number", times(200))
def test_killed_once(nursery: Nursery, plain: Undisturbed, tmp_path: Path, number: int) -> None:
    """200 runs, each killed at a moment of its own; every fourth with as many in flight as there may be."""
    chance = random.Random(f"killed once/{number}")
    with serving(latency=chance.choice([0.0, 0.003, 0.01])) as server:
        killed_runs(nursery, plain, tmp_path, [moment(plain, chance)], server)


@pytest.mark.parametrize("number", times(10))
def test_killed_again_and_again(nursery: Nursery, plain: Undisturbed, tmp_path: Path, number: int) -> None:
    """A run that is killed 15 times, wherever it happens to be."""
    chance = random.Random(f"again/{number}")
    with serving(latency=0.004) as server:
        killed_runs(nursery, plain, tmp_path, [moment(plain, chance) for _ in range(15)], server)


@pytest.mark.parametrize("number", times(30))
def test_storm(nursery: Nursery, plain: Undisturbed, tmp_path: Path, number: int) -> None:
    """Every fault at random, slow tails, hedges, any concurrency, and two kills."""
    chance = random.Random(f"storm/{number}")
    faults = at_random(chance.choice([0.05, 0.2, 0.4]), [fault for fault in EVERY if fault.kind != "hang"], seed=number)
    more: dict[str, Any] = {
        "hedge": chance.random() < 0.5,
        "concurrency": chance.choice([1, 7, 64, 256, None]),
        "hurry": 200.0,
    }
    with ScriptedServer(tailed(40), faults=faults) as server:
        for _ in range(2):
            pid = nursery.start(server.url, tmp_path, **more)
            kill_after(pid, tmp_path / "run", *moment(plain, chance))
            assert nursery.wait().status in (0, SIGKILL)
        ended = nursery.run(server.url, tmp_path, **more)
        assert ended.artifact == plain.artifact, ended.error
        assert 0 <= Record.of(tmp_path / "run").attempts - len(server.requests) <= 2 * 256


@pytest.mark.parametrize("number", times(10))
def test_hangs(plain: Undisturbed, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch, 200)
    with serving(faults=at_random(0.1, EVERY, seed=number)) as server:
        assert compile_tiny(server.url, tmp_path / "run", lm=client(server.url)) == plain.artifact
        assert Record.of(tmp_path / "run").attempts == len(server.requests)


@pytest.mark.parametrize("begin", range(20, 280, max(13, round(13 / SHARE))))
def test_300_failures(plain: Undisturbed, tmp_path: Path, begin: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every part of a compile."""
    hasten(monkeypatch, 200)
    kinds = [fault for fault in EVERY if fault.kind != "hang"]
    fault = kinds[begin % len(kinds)]
    with serving(faults=lambda number, body: fault if begin <= number < begin + 300 else None) as server:
        assert compile_tiny(server.url, tmp_path / "run") == plain.artifact
        assert Record.of(tmp_path / "run").attempts == len(server.requests)


@pytest.mark.parametrize("calls", range(0, 420, max(6, round(6 / SHARE))))
def test_every_budget(tmp_path: Path, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With hedges, retries and a kill's worth of interruptions, the server counts at most what was allowed."""
    hasten(monkeypatch, 200)
    faults = at_random(0.1, [Fault.status_code(429, retry_after="0"), Fault("drop"), Fault("truncate")], seed=calls)
    with ScriptedServer(tailed(40), faults=faults) as server:
        try:
            compile_tiny(server.url, tmp_path / "run", hedge=calls % 4 > 0, budget=vitrify.Budget(calls=calls))
        except (vitrify.RequestError, BudgetExhausted) as error:
            assert str(calls) in str(error)
        assert len(server.requests) <= calls
        assert Record.of(tmp_path / "run").attempts == len(server.requests)


@pytest.mark.parametrize("number", times(20))
def test_budget_over_kills(nursery: Nursery, plain: Undisturbed, tmp_path: Path, number: int) -> None:
    chance = random.Random(f"budget/{number}")
    calls = chance.randrange(120, 320)
    with serving(latency=0.004) as server:
        for _ in range(4):
            pid = nursery.start(server.url, tmp_path, budget=calls)
            kill_after(pid, tmp_path / "run", *moment(plain, chance))
            nursery.wait()
        ended = nursery.run(server.url, tmp_path, budget=calls)
        assert ended.artifact or "BudgetExhausted" in ended.error, ended.error
        assert len(server.requests) <= calls


@pytest.mark.parametrize("number", times(25))
def test_full_disk(nursery: Nursery, plain: Undisturbed, tmp_path: Path, number: int) -> None:
    chance = random.Random(f"disk/{number}")
    with serving(latency=0.002) as server:
        full = nursery.run(server.url, tmp_path, file_limit=chance.randrange(1, 160_000))
        assert (full.status, "can't be written" in full.error) in ((1, True), (2, True)), full.error
        lost = Record.of(tmp_path / "run").in_flight
        ended = nursery.run(server.url, tmp_path)
        assert ended.artifact == plain.artifact, ended.error
        assert repeats(server, plain.asked) <= max(lost, 0)


@pytest.mark.parametrize("number", times(5))
def test_restarts(host: Nursery, plain: Undisturbed, tmp_path: Path, number: int) -> None:
    """A real server process that is killed three times and comes back after two seconds, in the waits of real life."""
    port, chance, run = free_port(), random.Random(f"restarts/{number}"), tmp_path / "run"
    over = threading.Event()
    pids = [host.serve(port, latency=0.01)]

    def unrest() -> None:
        for replies in sorted(chance.sample(range(10, 260), 3)):
            while not over.is_set() and not (run.exists() and Record.of(run).count("reply") >= replies):
                time.sleep(0.01)
            host.stop(pids.pop())
            over.wait(2.0)
            pids.append(host.serve(port, latency=0.01))

    thread = threading.Thread(target=unrest)
    thread.start()
    try:
        assert compile_tiny(f"http://127.0.0.1:{port}/v1", run, concurrency=None) == plain.artifact
    finally:
        over.set()
        thread.join()
        host.stop(pids.pop())


@pytest.mark.parametrize("number", times(12))
def test_seeds_and_concurrency(tmp_path: Path, number: int) -> None:
    """Other seeds, other searches: the same bytes whatever the order of the answers."""
    chance = random.Random(f"seeds/{number}")
    made: set[bytes] = set()
    for concurrency in (1, 7, 64, None):
        late: Any = (lambda body: 0.0) if concurrency == 1 else (lambda body: 0.02 * chance.random() ** 4)
        with serving(latency=late) as server:
            run = tmp_path / f"run-{concurrency}"
            made.add(compile_tiny(server.url, run, concurrency=concurrency, seed=number))
            assert set(asked_of(server).values()) == {1}
    assert len(made) == 1


WATCH = Watch()


@pytest.mark.parametrize("number", range(8))
def test_hostile_files(number: int) -> None:
    """A million mutants of the golden files are loaded, and those that load are called; the figures are printed."""
    figures: Figures = fuzz(round(125_000 * SHARE), number, WATCH)
    print(*figures.lines(), sep="\n")
    assert figures.slowest < 5
    assert figures.growth < 200 * 2**20

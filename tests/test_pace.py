"""Pace: simulated servers (synthetic, seeded), bounds, and what it is told."""

import heapq
import math
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vitrify.compiler.pace import Pace
from vitrify.programs.lm import Cause


@dataclass
class World:
    """A client that always has more to ask, and a server; time is simulated.

    `answer(flying, now)` gives the seconds that a call takes and why it fails, or None. A failed call waits for
    `pause` seconds, holding its place, and is made again, as MeteredLM does.
    """

    pace: Pace
    answer: Callable[[int, float], tuple[float, Cause | None]]
    pause: float = 0.5
    work: float = math.inf
    now: float = 0.0
    served: int = 0
    refused: int = 0
    limits: list[int] = field(default_factory=list)
    at: list[float] = field(default_factory=list)

    def run(self, completions: int) -> "World":
        events: list[tuple[float, int, str, float, Cause | None]] = []
        order = running = at_server = started = 0
        while self.served + self.refused < completions:
            while running < self.pace.limit and started < self.work:
                self.pace.started()
                running, started, order = running + 1, started + 1, order + 1
                heapq.heappush(events, (self.now, order, "send", 0.0, None))
            if not events:
                break
            self.now, _, kind, seconds, cause = heapq.heappop(events)
            order += 1
            if kind == "send":
                at_server += 1
                seconds, cause = self.answer(at_server, self.now)
                heapq.heappush(events, (self.now + seconds, order, "done", seconds, cause))
                continue
            at_server -= 1
            if cause is None:
                self.served += 1
                self.at.append(self.now)
                self.pace.succeeded(seconds)
                self.pace.ended()
                running -= 1
            else:
                self.refused += 1
                self.pace.failed(cause)
                heapq.heappush(events, (self.now + self.pause * random.uniform(0.5, 1.0), order, "send", 0.0, None))
            self.limits.append(self.pace.limit)
        return self


def lognormal(rng: random.Random, median: float = 0.2, sigma: float = 0.8) -> float:
    return median * math.exp(sigma * rng.gauss(0, 1))


def steady(rng: random.Random) -> Callable[[int, float], tuple[float, Cause | None]]:
    return lambda flying, now: (lognormal(rng), None)


def queueing(rng: random.Random, capacity: int) -> Callable[[int, float], tuple[float, Cause | None]]:
    return lambda flying, now: (lognormal(rng) * max(1.0, flying / capacity), None)


def refusing(rng: random.Random, capacity: int) -> Callable[[int, float], tuple[float, Cause | None]]:
    return lambda flying, now: (0.01, "rate_limited") if flying > capacity else (lognormal(rng), None)


MEAN = 0.2 * math.exp(0.8**2 / 2)
"""Seconds that a call takes on average where nothing is crowded."""


def test_latency_that_is_only_noisy_ends_at_the_most() -> None:
    lowered = 0
    for seed in range(8):
        world = World(Pace(), steady(random.Random(seed))).run(4000)
        reached = world.limits.index(128)
        assert reached < 400
        below = sum(limit < 100 for limit in world.limits[reached:])
        assert below < 250  # what one look at a lower limit takes
        lowered += below > 0
    assert lowered <= 1


def test_growth_doubles_until_something_happens() -> None:
    world = World(Pace(), steady(random.Random(0))).run(1000)
    seen = list(dict.fromkeys(world.limits))
    assert [16, 32, 64, 128] == seen


@pytest.mark.parametrize("capacity", [12, 24, 40])
def test_a_server_that_queues_settles_near_its_capacity(capacity: int) -> None:
    settled, throughput = [], []
    for seed in range(7):
        world = World(Pace(), queueing(random.Random(seed), capacity)).run(8000)
        settled.append(sorted(world.limits[4000:])[2000])
        throughput.append(4000 / (world.at[-1] - world.at[-4001]) / (capacity / MEAN))
    assert capacity / 2 <= sorted(settled)[3] <= 2 * capacity
    assert max(settled) <= 4 * capacity  # the noise of one base line
    assert sorted(throughput)[3] >= 0.9
    assert min(throughput) >= 0.85


@pytest.mark.parametrize("capacity", [4, 10, 40, 100])
def test_a_server_that_refuses_is_asked_for_what_it_bears(capacity: int) -> None:
    random.seed(0)
    world = World(Pace(), refusing(random.Random(1), capacity)).run(8000)
    assert world.refused / (world.served + world.refused) < 0.05
    assert world.served / world.now >= 0.8 * capacity / MEAN
    assert max(world.limits[2000:]) <= 1.2 * capacity + 1


def test_an_outage_is_recovered_from() -> None:
    rng = random.Random(2)

    def answer(flying: int, now: float) -> tuple[float, Cause | None]:
        return (0.005, "connection") if 10 < now < 40 else (lognormal(rng), None)

    world = World(Pace(), answer, pause=2.0).run(12000)
    assert 1 <= min(world.limits) <= 4
    back = next(i for i, at in enumerate(world.at) if at > 40)
    again = next(i for i in range(back + world.refused, len(world.limits)) if world.limits[i] >= 64)
    assert again - back - world.refused < 400
    assert max(world.limits[-1000:]) >= 100


def test_a_server_that_shrinks_is_followed() -> None:
    rng = random.Random(3)

    def answer(flying: int, now: float) -> tuple[float, Cause | None]:
        return (0.01, "rate_limited") if flying > (100 if now < 20 else 10) else (lognormal(rng), None)

    random.seed(0)
    world = World(Pace(), answer).run(9000)
    assert 5 <= sorted(world.limits[-2000:])[1000] <= 12
    assert world.refused < 0.1 * world.served


def test_slower_prompts_are_no_crowd() -> None:
    # From the 3000th call on, each takes five times as long, whatever the limit: it comes down for a look, and back.
    rng = random.Random(4)
    asked = 0

    def answer(flying: int, now: float) -> tuple[float, Cause | None]:
        nonlocal asked
        asked += 1
        return lognormal(rng, median=0.2 if asked < 3000 else 1.0), None

    world = World(Pace(), answer).run(10000)
    assert min(world.limits[3000:]) < 100
    assert sum(limit < 100 for limit in world.limits[3000:]) < 600
    assert 128 == world.limits[-1]


def test_stray_failures_are_no_load() -> None:
    rng = random.Random(5)

    def answer(flying: int, now: float) -> tuple[float, Cause | None]:
        return lognormal(rng), "server" if rng.random() < 0.02 else None

    world = World(Pace(), answer).run(8000)
    assert sorted(world.limits[1000:])[700] >= 100  # nine tenths of the time


def test_a_burst_of_refusals_counts_once() -> None:
    pace = Pace(first=64)
    for _ in range(64):
        pace.started()
    for _ in range(64):
        pace.failed("rate_limited")
    assert 32 == pace.limit
    pace.failed("rate_limited")
    assert 16 == pace.limit


@pytest.mark.parametrize("status", [503, 529])
def test_an_overloaded_server_is_heard_at_once(status: int) -> None:
    """503 says what 429 says; a 500 alone may be anything."""
    pace = Pace(first=64)
    for _ in range(64):
        pace.started()
    pace.failed("server", 500)
    assert 64 == pace.limit
    pace.failed("server", status)
    assert 32 == pace.limit


def test_one_small_step_too_far_is_no_reason_to_halve() -> None:
    world = World(Pace(), refusing(random.Random(6), 40)).run(8000)
    assert sorted(world.limits[1000:])[350] >= 26  # all but a twentieth of the time


def test_what_load_does_not_bring_about_is_not_counted() -> None:
    pace = Pace()
    causes: tuple[Cause, ...] = ("auth", "unknown_model", "context_overflow", "bad_request")
    for cause in causes:
        for _ in range(100):
            pace.failed(cause)
    assert 16 == pace.limit


def test_it_grows_only_when_the_limit_is_reached() -> None:
    pace = Pace()
    for _ in range(15):
        pace.started()
    for _ in range(1000):
        pace.succeeded(0.2)
    assert 16 == pace.limit
    pace.started()
    for _ in range(1000):
        pace.succeeded(0.2)
    assert 32 == pace.limit


def test_who_wants_to_know_is_told_of_growth() -> None:
    pace = Pace()
    seen: list[int] = []
    pace.on_growth = lambda: seen.append(pace.limit)
    for _ in range(200):
        pace.started()
    for _ in range(2000):
        pace.succeeded(0.2)
    assert [32, 64, 128] == seen


def test_a_fixed_number_stays() -> None:
    pace = Pace(7)
    for _ in range(100):
        pace.started()
        pace.succeeded(0.1)
        pace.failed("rate_limited")
    assert (7, 7) == (pace.limit, pace.most)


@pytest.mark.parametrize(("least", "most"), [(0, 4), (5, 4)])
def test_bounds_that_are_none(least: int, most: int) -> None:
    with pytest.raises(ValueError, match="`1 <= least <= most` must hold"):
        Pace(least=least, most=most)


STEP = st.one_of(
    st.tuples(st.just("ok"), st.floats(0, 1e4), st.integers(1, 300)),
    st.tuples(st.just("no"), st.sampled_from(get_args(Cause)), st.integers(1, 300)),
    st.tuples(st.sampled_from(["up", "down"]), st.none(), st.integers(1, 300)),
)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 20), st.integers(0, 200), st.integers(1, 300), st.lists(STEP, max_size=30))
def test_the_limit_keeps_its_bounds(least: int, more: int, first: int, steps: list[tuple[str, object, int]]) -> None:
    pace = Pace(least=least, first=first, most=least + more)
    flying = 0
    for kind, what, times in steps:
        for _ in range(times):
            if kind == "ok":
                pace.succeeded(what)  # type: ignore[arg-type]
            elif kind == "no":
                pace.failed(what)  # type: ignore[arg-type]
            elif kind == "up":
                pace.started()
                flying += 1
            elif flying:
                pace.ended()
                flying -= 1
            assert least <= pace.limit <= least + more


def test_many_threads_report_at_once() -> None:
    pace = Pace(first=8)
    calls: list[int] = []
    pace.on_growth = lambda: calls.append(pace.limit)

    def report() -> None:
        for _ in range(2000):
            pace.started()
            pace.succeeded(0.1)
            pace.ended()

    threads = [threading.Thread(target=report) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(pace.limit):  # nothing was counted twice or lost: the limit is reached by so many, and not before
        pace.started()
    assert 8 <= pace.limit <= 128
    assert calls == sorted(calls)

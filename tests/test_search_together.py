"""All that the search can do at once: renewals, costs, features and replicates, at any concurrency, in any budget."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Any

import numpy as np
import pytest
from vitrify.compiler.search import Block, RenewalView, SearchOptions, SearchResult, search
from vitrify.compiler.space import Point, SearchSpace, Slot


class Everything:
    """A chain of two predictors that throws dice, answers late and has a cache; its costs are logical."""

    stochastic = True

    def __init__(self, examples: int, pool: ThreadPoolExecutor | None) -> None:
        self.examples, self.pool = examples, pool
        self.asked: list[tuple[Point, tuple[int, ...], int]] = []
        self.seen: set[Any] = set()
        self.paid = 0.0
        self.space = SearchSpace([Slot("a", 3, [[1.0], [5.0], [2.0]]), Slot("b", 4)])

    def submit(self, point: Point, examples: Sequence[int], replicate: int) -> "Future[Block]":
        self.asked.append((point, tuple(examples), replicate))
        costs = []
        for example in examples:
            keys = {(example, replicate, point[:1]), (example, replicate, point)}
            costs.append(float(len(keys - self.seen)))
            self.seen |= keys
        self.paid += sum(costs)

        def work() -> Block:
            rng = np.random.default_rng([*point, examples[0], replicate])
            if self.pool is not None:
                Event().wait(0.001 * np.random.default_rng(examples[0]).random())
            chance = 0.3 + 0.1 * point[0] + 0.05 * sum(point[1:])
            return Block(tuple((rng.random(len(examples)) < chance).astype(float).tolist()), tuple(costs))

        if self.pool is not None:
            return self.pool.submit(work)
        future: Future[Block] = Future()
        future.set_result(work())
        return future


def run(world: Everything, budget: int, seed: int) -> tuple[SearchResult, list[RenewalView]]:
    views = list[RenewalView]()

    def renew(view: RenewalView) -> Mapping[str, int | Slot]:
        views.append(view)
        return {"b": 2} if len(views) == 1 else {"a": Slot("a", 4, [[1.0], [5.0], [2.0], [9.0]]), "c": 2}

    blocks = budget // 5
    options = SearchOptions(price=2.0, renewals=(blocks // 3, blocks // 2))
    return search(world.space, world, budget=budget, seed=seed, options=options, renew=renew), views


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as threads:
        yield threads


@pytest.mark.parametrize("seed", range(3))
def test_same_decisions_at_any_concurrency(seed: int, pool: ThreadPoolExecutor) -> None:
    runs = []
    for threads in (None, pool, None):
        world = Everything(40, threads)
        found, views = run(world, 700, seed)
        runs.append((world.asked, found, views, world.paid))
    assert runs[0] == runs[1] == runs[2]
    assert any(replicate for _, _, replicate in runs[0][0]) or found.spent >= 600


def test_never_more_than_the_budget_and_nothing_twice() -> None:
    for budget in range(1, 301, 13):
        world = Everything(1 + budget % 23, None)
        found, views = run(world, budget, budget)
        assert world.paid <= 2 * budget
        assert found.spent == sum(len(examples) for _, examples, _ in world.asked)
        width = len(found.space.slots)
        cells = [
            ((*point, 0)[:width], example, replicate)
            for point, examples, replicate in world.asked
            for example in examples
        ]
        assert len(set(cells)) == len(cells)
        assert len(views) <= 2
        assert np.isfinite([found.estimate, *found.interval, found.probability]).all()
        assert found.space.allows(found.best) and all(len(trial.point) == width for trial in found.trials)

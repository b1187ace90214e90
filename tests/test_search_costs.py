"""What blocks cost steers the search where costs differ, and nowhere else."""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from vitrify.compiler.cost import Costs
from vitrify.compiler.scores import Scores
from vitrify.compiler.search import Block, SearchOptions, search
from vitrify.compiler.space import Point, SearchSpace, Slot

from tests.search_worlds import World


class Chain(World):
    """Predictors one after the other, each with two slots; what was asked before is answered from a cache."""

    prices: Sequence[float] = (1.0, 1.0)
    cached = True

    def __init__(self, *made: Any) -> None:
        super().__init__(*made)
        self.seen: set[tuple[int, Point]] = set()
        self.paid = 0.0

    def submit(self, point: Point, examples: Sequence[int], replicate: int) -> "Future[Block]":
        costs = []
        for example in examples:
            cost = 0.0
            for place, price in enumerate(self.prices):
                key = (example, point[: 2 * place + 2])
                if not self.cached or key not in self.seen:
                    self.seen.add(key)
                    cost += price
            costs.append(cost)
        self.paid += sum(costs)
        answer = super().submit(point, examples, replicate).result()
        future: Future[Block] = Future()
        future.set_result(Block(answer.scores, tuple(costs)))
        return future


def test_equal_costs_change_nothing() -> None:
    plain, even = World([3, 6, 3, 6], 0.8, 1), Chain([3, 6, 3, 6], 0.8, 1)
    even.cached = False
    runs = [search(world.space, world, budget=900, seed=0) for world in (plain, even)]
    priced = Chain([3, 6, 3, 6], 0.8, 1)
    priced.cached = False
    runs.append(search(priced.space, priced, budget=900, seed=0, options=SearchOptions(price=2.0)))
    assert plain.asked == even.asked == priced.asked
    assert runs[0].trials == runs[1].trials == runs[2].trials


def test_costs_of_a_chain_are_learnt() -> None:
    rng = np.random.default_rng(0)
    space = SearchSpace([Slot(name, 4) for name in "abcd"])
    scores = Scores(space, list(range(40)), 5, starts=3)
    costs = Costs(scores)
    seen: set[tuple[int, Point]] = set()

    def price(point: Point, block: int) -> float:
        return sum(
            part + 0.3 * (place == 1 and point[3] == 2)
            for place, part in enumerate((3.0, 1.0))
            if (block, point[: 2 * place + 2]) not in seen
        )

    for _ in range(400):
        point = tuple(int(level) for level in rng.integers(4, size=4))
        if scores.depth(point) == scores.blocks:
            continue
        block = int(scores.upcoming[scores.rows[point]]) if point in scores.rows else scores.debut
        paid = price(point, block)
        seen |= {(block, point[: 2 * place + 2]) for place in range(2)}
        scores.ask(point)
        costs.told(scores.rows[point], costs.asked(scores.rows[point]), paid)
    costs.learn()
    points = [tuple(int(level) for level in rng.integers(4, size=4)) for _ in range(100)]
    fresh = [point for point in points if point not in scores.rows]
    expected = costs.expected(np.array(fresh), np.full(len(fresh), scores.debut))
    np.testing.assert_allclose(expected, [max(price(point, scores.debut), 0.2) for point in fresh], atol=0.25)
    rows = np.arange(len(scores.points))[scores.asked < scores.blocks]
    expected = costs.expected(scores.levels[rows], scores.upcoming[rows], rows)
    truth = [price(scores.points[row], int(scores.upcoming[row])) for row in rows]
    np.testing.assert_allclose(expected, truth, atol=0.5)


def test_known_rows_and_unknown_points_are_priced_alike() -> None:
    """Before and after the space grows."""
    rng = np.random.default_rng(0)
    scores = Scores(SearchSpace([Slot("a", 3), Slot("b", 3)]), list(range(40)), 5, starts=2)
    costs = Costs(scores)
    for _ in range(60):
        point = tuple(int(level) for level in rng.integers(3, size=len(scores.space.slots)))
        if scores.depth(point) < scores.blocks:
            scores.ask(point)
            shared = costs.asked(scores.rows[point])
            costs.told(scores.rows[point], shared, 2.0 - (shared > 0))
        if len(scores.points) == 7 and len(scores.space.slots) == 2:
            scores.grow(scores.space.grown({"b": 1, "c": 2}))
            costs.grow()
    costs.learn()
    rows = np.arange(len(scores.points))
    known = costs.expected(scores.levels, scores.upcoming, rows)
    np.testing.assert_allclose(known, costs.expected(scores.levels, scores.upcoming))


def test_what_is_saved_is_spent_on_more() -> None:
    gains = {False: 0.0, True: 0.0}
    for seed in range(4):
        for priced in gains:
            world = Chain([3, 6, 3, 6], 0.5, 70 + seed)
            options = SearchOptions(price=2.0 if priced else None)
            found = search(world.space, world, budget=400, seed=seed, options=options)
            assert world.paid <= 2 * 400
            assert sum(len(examples) for _, examples in world.asked) == found.spent
            assert (found.spent > 1.15 * 400) if priced else found.spent <= 400
            gains[priced] += world.true_gain(found.best)


@pytest.mark.parametrize("budget", [1, 10, 33, 77, 120, 260])
def test_no_more_is_paid_than_the_budget_at_the_full_price(budget: int) -> None:
    world = Chain([3, 4, 3, 4], 0.5, budget)
    search(world.space, world, budget=budget, seed=0, options=SearchOptions(price=2.0))
    assert world.paid <= 2 * budget

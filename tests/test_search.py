"""The search on worlds that are known: it finds what is there, claims nothing else, keeps its budget."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from itertools import product
from typing import Any

import numpy as np
import optuna
import pytest
from vitrify.compiler.search import Block, SearchOptions, search
from vitrify.compiler.space import Point, SearchSpace, Slot
from vitrify.compiler.surrogate import Surrogate
from vitrify.signatures.errors import RequestError


class World:
    """Examples of different difficulty, slots with additive effects on the log-odds; fixed by a seed."""

    def __init__(self, slots: Sequence[int], effect: float, seed: int, examples: int = 200, base: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        self.space = SearchSpace([Slot(f"s{i}", n) for i, n in enumerate(slots)])
        self.effects = [np.concatenate([[0.0], rng.normal(0, effect, n - 1)]) for n in slots]
        self.difficulty = rng.normal(base, 1.5, examples)
        self.noise = {p: rng.normal(0, 0.5, examples) for p in product(*(range(n) for n in slots))}
        self.luck = rng.logistic(0, 1, examples)
        self.examples = examples
        self.asked: list[tuple[Point, tuple[int, ...]]] = []

    def logit(self, point: Point) -> float:
        return float(sum(e[level] for e, level in zip(self.effects, point, strict=True)))

    def outcomes(self, point: Point) -> np.ndarray:
        return (self.difficulty + self.logit(point) + self.noise[point] + self.luck > 0).astype(float)

    def true_gain(self, point: Point) -> float:
        grid = np.random.default_rng(1).logistic(0, 1, 20_000) + np.random.default_rng(2).normal(0, 1.6, 20_000)
        centre = float(self.difficulty.mean())
        return float((grid + centre + self.logit(point) > 0).mean() - (grid + centre > 0).mean())

    def submit(self, point: Point, examples: Sequence[int], replicate: int) -> "Future[Block]":
        self.asked.append((point, tuple(examples)))
        future: Future[Block] = Future()
        future.set_result(Block(tuple(self.outcomes(point)[list(examples)])))
        return future


class Slow(World):
    """The same world, answering out of order from threads."""

    pool = ThreadPoolExecutor(8)

    def submit(self, point: Point, examples: Sequence[int], replicate: int) -> "Future[Block]":
        def work() -> Block:
            import time

            time.sleep(0.0005 * (hash(point) % 7))
            return Block(tuple(self.outcomes(point)[list(examples)]))

        self.asked.append((point, tuple(examples)))
        return self.pool.submit(work)


def test_finds_a_strong_effect() -> None:
    gains, shipped = [], 0
    for seed in range(12):
        world = World([6, 6], 1.2, seed)
        found = search(world.space, world, budget=1200, seed=seed)
        best = max(world.true_gain(p) for p in world.space.points())
        gains.append(world.true_gain(found.best) / best)
        shipped += found.shipped != world.space.baseline
    assert np.mean(gains) > 0.75
    assert shipped >= 7


def test_claims_nothing_where_nothing_is() -> None:
    shipped = 0
    for seed in range(40):
        world = World([6, 6], 0.0, 1000 + seed)
        found = search(world.space, world, budget=600, seed=seed)
        shipped += found.shipped != world.space.baseline
    assert shipped <= 3


def test_a_good_baseline_is_seldom_replaced_by_something_worse() -> None:
    worse = 0
    for seed in range(40):
        world = World([5, 5], 0.6, 2000 + seed)
        # Every other level is a little worse than what the user wrote.
        world.effects = [np.concatenate([[0.0], -np.abs(e[1:])]) for e in world.effects]
        found = search(world.space, world, budget=800, seed=seed)
        worse += world.true_gain(found.shipped) < -0.005
    assert worse <= 2


@pytest.mark.parametrize("budget", [0, 1, 2, 3, 7, 20, 61, 150, 299, 300])
@pytest.mark.parametrize("slots", [(2,), (6, 6), (3, 3, 3)])
def test_never_spends_more_than_its_budget(budget: int, slots: tuple[int, ...]) -> None:
    world = World(slots, 1.0, 5, examples=40)
    found = search(world.space, world, budget=budget, seed=0)
    assert sum(len(examples) for _, examples in world.asked) == found.spent
    assert found.spent <= budget


def test_nothing_is_asked_twice() -> None:
    world = World([6, 6], 1.0, 3)
    search(world.space, world, budget=1500, seed=0)
    cells = [(point, example) for point, examples in world.asked for example in examples]
    assert len(set(cells)) == len(cells)


def test_candidates_meet_on_the_same_examples() -> None:
    world = World([6, 6], 1.0, 4)
    search(world.space, world, budget=1000, seed=0)
    seen: dict[Point, list[int]] = {}
    for point, examples in world.asked:
        seen.setdefault(point, []).extend(examples)
    longest = max(seen.values(), key=len)
    for known in seen.values():
        assert longest[: len(known)] == known
    assert world.space.baseline in seen


def test_same_seed_same_decisions_whatever_the_order_of_answers() -> None:
    runs = []
    for kind in (World, Slow, Slow):
        world = kind([6, 6], 1.0, 9)
        found = search(world.space, world, budget=900, seed=7)
        runs.append((found.best, found.estimate, found.trials, world.asked))
    assert runs[0] == runs[1] == runs[2]
    other = World([6, 6], 1.0, 9)
    assert search(other.space, other, budget=900, seed=8).trials != runs[0][2]


def test_nan_from_an_oracle_is_refused() -> None:
    world = World([3], 1.0, 1)
    world.outcomes = lambda point: np.full(world.examples, np.nan)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="scores are numbers"):
        search(world.space, world, budget=100, seed=0)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_any_of_the_samplers(sampler: str) -> None:
    world = World([4, 4], 1.0, 2, examples=60)
    found = search(world.space, world, budget=300, seed=0, options=SearchOptions(sampler=sampler))  # type: ignore[arg-type]
    assert isinstance(found.study, optuna.Study)
    assert any(trial.intermediate_values for trial in found.study.trials)


def test_the_gaussian_process_sampler_says_what_it_needs() -> None:
    world = World([4, 4], 1.0, 2, examples=60)
    options = SearchOptions(sampler="gp")
    if find_spec("torch") is None:
        with pytest.raises(RequestError, match="pip install torch"):
            search(world.space, world, budget=300, seed=0, options=options)
    else:
        assert search(world.space, world, budget=300, seed=0, options=options).trials


def test_feasible_points_only() -> None:
    allowed = [(0, 0), (1, 2), (2, 1), (3, 3)]
    world = World([4, 4], 1.0, 6)
    space = SearchSpace(world.space.slots, feasible=allowed)
    found = search(space, world, budget=600, seed=0)
    assert {point for point, _ in world.asked} <= set(allowed)
    assert found.best in allowed


def test_a_reason_to_stop_is_heeded() -> None:
    world = World([6, 6], 1.0, 6)
    found = search(
        world.space, world, budget=5000, seed=0, options=SearchOptions(stop=lambda evaluations: "time is over")
    )
    assert "time is over" == found.reason
    assert found.spent < 200


def test_graded_scores_in_any_unit() -> None:
    rng = np.random.default_rng(0)
    world = World([4], 0.0, 8)
    table: dict[Point, Any] = {(i,): rng.normal(50 + 10 * (i == 2), 8, world.examples) for i in range(4)}
    world.outcomes = lambda point: table[point]  # type: ignore[method-assign]
    found = search(world.space, world, budget=600, seed=0)
    assert (2,) == found.shipped
    assert found.interval[0] < 10 < found.interval[1] + 2


def test_surrogate_shares_what_levels_have_in_common() -> None:
    rng = np.random.default_rng(0)
    differences: dict[Point, Any] = {
        (a, b): rng.normal(0.3 * (a == 1), 0.4, 40)
        for a in range(3)
        for b in range(3)
        if (a, b) not in ((0, 0), (1, 2))
    }
    surrogate = Surrogate.fit(differences, (0, 0))
    unseen, poor = surrogate.beliefs([(1, 2), (2, 2)])
    assert unseen.mean > 0.15
    assert abs(poor.mean) < 0.1
    assert unseen.sd < 0.2


def test_surrogate_on_no_difference_at_all_keeps_its_doubt() -> None:
    surrogate = Surrogate.fit({(1,): np.zeros(30), (2,): np.zeros(10)}, (0,))
    for belief in surrogate.beliefs([(1,), (2,)]):
        assert belief.sd > 0
        assert 0.05 < belief.probability < 0.95


def test_spaces_say_what_is_wrong_with_them() -> None:
    with pytest.raises(ValueError, match="levels >= 1"):
        Slot("a", 0)
    with pytest.raises(ValueError, match="unique"):
        SearchSpace([Slot("a", 2), Slot("a", 2)])
    with pytest.raises(ValueError, match="one level for each slot"):
        SearchSpace([Slot("a", 2)], feasible=[(2,)])

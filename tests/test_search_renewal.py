"""Levels that come while the search runs."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
from vitrify.compiler.search import RenewalView, SearchOptions, search
from vitrify.compiler.space import Point, Slot

from tests.search_worlds import Slow, World


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as threads:
        yield threads


def renewing(world: World, grown: Mapping[str, int], at: list[int], sizes: Sequence[int]) -> Any:
    def renew(view: RenewalView) -> Mapping[str, int]:
        at.append(len(world.asked))
        rng = np.random.default_rng(world.seed + 1)
        world.effects = [
            np.concatenate([world.effects[i] if i < len(world.effects) else [0.0], rng.normal(0, 1.5, n)])
            for i, n in enumerate(sizes)
        ]
        return grown

    return renew


def test_the_space_grows_at_a_fixed_number_of_blocks() -> None:
    world, at = World([4, 4], 0.3, 3), list[int]()
    renew = renewing(world, {"s1": 3, "s2": 4}, at, (0, 3, 4))
    found = search(world.space, world, budget=1500, seed=0, renew=renew, options=SearchOptions(renewals=(24,)))
    assert [24] == at
    assert [Slot("s0", 4), Slot("s1", 7), Slot("s2", 5)] == list(found.space.slots)
    assert all(len(trial.point) == 3 for trial in found.trials)
    assert {2, 3} == {len(point) for point, _ in world.asked}
    assert {point[2] for point, _ in world.asked[24:]} == set(range(5))
    assert {point[1] for point, _ in world.asked[24:]} == set(range(7))
    cells = [((*point, 0)[:3], example) for point, examples in world.asked for example in examples]
    assert len(set(cells)) == len(cells)
    assert world.true_gain(found.shipped) > 0.1


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_space_grows_under_any_sampler(sampler: Any) -> None:
    world, at = World([4, 4], 0.3, 3), list[int]()
    renew = renewing(world, {"s1": 3, "s2": 4}, at, (0, 3, 4))
    options = SearchOptions(renewals=(24,), sampler=sampler)
    found = search(world.space, world, budget=1000, seed=0, renew=renew, options=options)
    assert [24] == at
    assert 3 == len(found.best)


def test_a_space_with_nothing_left_to_ask_grows_earlier() -> None:
    world, at = World([2], 0.3, 3), list[int]()
    renew = renewing(world, {"s1": 4}, at, (0, 4))
    options = SearchOptions(renewals=(100, 200))
    found = search(world.space, world, budget=1500, seed=0, renew=renew, options=options)
    assert 2 == len(at)
    assert 16 <= at[0] < 60
    assert world.space.size < found.space.size
    assert found.spent > 400


def test_a_space_of_one_point_waits_for_its_levels() -> None:
    world, at = World([], 0.3, 3), list[int]()
    renew = renewing(world, {"s0": 4}, at, (4,))
    found = search(world.space, world, budget=600, seed=0, renew=renew, options=SearchOptions(renewals=(24,)))
    assert 1 == len(at)
    assert 1 == len(found.best)
    assert 5 == len(found.trials)


def test_renewal_while_answers_are_on_their_way(pool: ThreadPoolExecutor) -> None:
    runs = []
    for kind in (World, Slow):
        world, at = kind([4, 4], 0.3, 3), list[int]()
        if isinstance(world, Slow):
            world.pool = pool
        renew = renewing(world, {"s1": 3, "s2": 4}, at, (0, 3, 4))
        found = search(world.space, world, budget=900, seed=0, renew=renew, options=SearchOptions(renewals=(10, 24)))
        runs.append((at, found.estimate, found.trials, world.asked))
    assert runs[0] == runs[1]


def test_nothing_new_is_fine() -> None:
    world = World([4, 4], 0.8, 3)
    found = search(
        world.space, world, budget=900, seed=0, renew=lambda view: {"s0": 0}, options=SearchOptions(renewals=(8,))
    )
    assert world.space == found.space


# What is known when it grows.


def viewed(world: World, at: int = 150, budget: int = 1200) -> RenewalView:
    views = list[RenewalView]()

    def renew(view: RenewalView) -> Mapping[str, int]:
        views.append(view)
        return {}

    search(world.space, world, budget=budget, seed=0, renew=renew, options=SearchOptions(renewals=(at,)))
    return views[0]


def test_the_view_says_what_was_told() -> None:
    world = World([4, 5], 1.0, 3)
    view = viewed(world, at=60, budget=600)
    assert world.space == view.space
    assert 600 == view.budget
    assert 0 < sum(trial.n for trial in view.trials) < view.spent == 60 * 5
    points = [trial.point for trial in view.trials]
    assert view.baseline == points[0] == (0, 0)
    assert view.best in points
    for place, slot in enumerate(view.slots):
        assert world.space.slots[place].name == slot.name
        assert list(range(len(slot.levels))) == [level.level for level in slot.levels]
        for level in slot.levels:
            assert level.n == sum(trial.n for trial in view.trials if trial.point[place] == level.level)
        assert 0 == slot.levels[0].effect == slot.levels[0].sd
        assert 0.5 == max(slot.levels, key=lambda level: level.effect).chance
    for trial in view.trials:
        mine, base = world.outcomes(trial.point), world.outcomes((0, 0))
        order = [example for point, examples in world.asked if point == trial.point for example in examples][: trial.n]
        assert trial.mean == pytest.approx(mine[order].mean())
        met = {example for point, examples in world.asked if point == (0, 0) for example in examples}
        if met >= set(order):
            assert trial.difference == pytest.approx((mine - base)[order].mean())


def test_levels_that_do_harm_are_dead_and_a_slot_that_is_decided_is_too() -> None:
    world = World([4, 4], 0.0, 3)
    world.effects[0] = np.array([0.0, 2.5, -1.5, -1.5])
    view = viewed(world)
    decided = view.slots[0]
    assert 1 == max(decided.levels, key=lambda level: level.effect).level
    assert [True, False, True, True] == [level.dead for level in decided.levels]
    assert decided.dead
    assert (0, 2, 3) == view.dead["s0"]


def test_a_slot_whose_levels_do_the_same_is_dead_and_its_levels_are_not() -> None:
    class Same(World):
        def outcomes(self, point: Point) -> np.ndarray:
            return np.where(self.difficulty + self.luck > 0, 1.0, 0.0)

    view = viewed(Same([6, 12], 0.0, 3))
    assert {"s0": (), "s1": ()} == dict(view.dead)


def test_where_levels_may_yet_be_better_the_slot_lives() -> None:
    world = World([6], 1.0, 3)
    view = viewed(world, at=8)  # a few blocks for each
    assert not view.slots[0].dead
    assert {} == dict(view.dead)


def test_before_anything_was_told_all_levels_are_alike() -> None:
    view = viewed(World([4, 4], 1.0, 3), at=1)
    assert () == view.trials
    assert (0, 0) == view.best
    assert not any(slot.dead or level.dead for slot in view.slots for level in slot.levels)


def test_looking_changes_nothing() -> None:
    """The view draws from the posterior with random numbers of its own."""
    runs = []
    for renewals in ((), (40,), (20, 60)):
        world = World([4, 5], 1.0, 3)
        options = SearchOptions(renewals=renewals)
        search(world.space, world, budget=400, seed=0, renew=lambda view: {}, options=options)
        runs.append(world.asked)
    assert runs[0][:20] == runs[1][:20] == runs[2][:20]
    views = [viewed(World([4, 5], 1.0, 3), at=60, budget=500) for _ in range(2)]
    assert views[0] == views[1]
    with pytest.raises(FrozenInstanceError):
        views[0].spent = 0  # type: ignore[misc]

"""What the search finds on worlds that are known, and that it claims nothing else."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from vitrify.compiler.search import search
from vitrify.compiler.space import Point

from tests.search_worlds import World


def test_finds_a_strong_effect() -> None:
    gains, shipped = [], 0
    for seed in range(10):
        world = World([6, 6], 1.2, seed)
        found = search(world.space, world, budget=1200, seed=seed)
        best = max(world.true_gain(p) for p in world.space.points())
        gains.append(world.true_gain(found.best) / best)
        shipped += found.shipped != world.space.baseline
    assert np.mean(gains) > 0.85
    assert shipped >= 7


def test_finds_its_way_in_a_space_that_nobody_could_list() -> None:
    gains = []
    for seed in range(6):
        world = World([6, 12] * 3, 0.5, 300 + seed)
        found = search(world.space, world, budget=1200, seed=seed)
        top = tuple(int(np.argmax(effects)) for effects in world.effects)
        gains.append(world.true_gain(found.shipped) / world.true_gain(top))
    assert np.mean(gains) > 0.6


def test_claims_nothing_where_nothing_is() -> None:
    shipped = 0
    for seed in range(50):
        world = World([6, 6], 0.0, 1000 + seed, examples=120)
        found = search(world.space, world, budget=600, seed=seed)
        shipped += found.shipped != world.space.baseline
    # 5 % of 50 is 2.5; the benchmark counts more of them.
    assert shipped <= 5


def test_a_good_baseline_is_seldom_replaced_by_something_worse() -> None:
    worse = 0
    for seed in range(24):
        world = World([5, 5], 0.6, 2000 + seed)
        # Every other level is a little worse than what the user wrote.
        world.effects = [np.concatenate([[0.0], -np.abs(e[1:])]) for e in world.effects]
        found = search(world.space, world, budget=800, seed=seed)
        worse += world.true_gain(found.shipped) < -0.005
    assert worse <= 1


def test_the_interval_holds_the_truth_although_the_winner_was_selected() -> None:
    held = 0
    for seed in range(24):
        world = World([6, 6], 0.5, 4000 + seed, examples=200)
        found = search(world.space, world, budget=800, seed=seed)
        held += found.interval[0] <= world.true_gain(found.favourite) <= found.interval[1]
    assert held >= 20


def test_where_nothing_separates_the_candidates_the_budget_is_kept() -> None:
    class Same(World):
        def outcomes(self, point: Point) -> np.ndarray:
            return (self.difficulty + self.luck > 0).astype(float)

    world = Same([6, 6], 0.0, 1)
    found = search(world.space, world, budget=3000, seed=0)
    assert found.spent < 2400
    assert "nothing separates the candidates" == found.reason
    assert world.space.baseline == found.shipped


def test_graded_scores_in_any_unit() -> None:
    rng = np.random.default_rng(0)
    world = World([4], 0.0, 8)
    table: dict[Point, Any] = {(i,): rng.normal(50 + 10 * (i == 2), 8, world.examples) for i in range(4)}
    world.outcomes = lambda point: table[point]  # type: ignore[method-assign]
    found = search(world.space, world, budget=600, seed=0)
    assert (2,) == found.shipped
    assert found.interval[0] < 10 < found.interval[1] + 2


def test_permuting_the_examples_of_one_candidate_widens_the_interval() -> None:
    class Mixed(World):
        mixed = False

        def outcomes(self, point: Point) -> np.ndarray:
            scores = super().outcomes(point)
            return np.random.default_rng(0).permutation(scores) if self.mixed and point == (1,) else scores

    widths = []
    for mixed in (False, True):
        world = Mixed([2], 0.5, 6)
        world.mixed = mixed
        low, high = search(world.space, world, budget=400, seed=0).interval
        widths.append(high - low)
    assert widths[1] > 1.3 * widths[0]


def test_an_interval_is_never_empty() -> None:
    world = World([3], 0.0, 5)
    world.outcomes = lambda point: np.ones(world.examples)  # type: ignore[method-assign]
    found = search(world.space, world, budget=400, seed=0)
    assert found.interval[0] < 0 < found.interval[1]
    assert world.space.baseline == found.shipped


# Against who else spends as much.


def halving(world: World, budget: int, seed: int) -> Point:
    """Paired successive halving: random points and the baseline on the same examples, the better half goes on."""
    rng = np.random.default_rng(seed)
    count, examples = 2, 10
    while 2 * count * examples * np.log2(2 * count) <= budget and 2 * count <= world.space.size:
        count *= 2
    points = [world.space.baseline]
    while len(points) < count:
        point = tuple(int(rng.integers(slot.levels)) for slot in world.space.slots)
        points += [point] if point not in points else []
    order, known, rounds = rng.permutation(world.examples), 0, int(np.log2(count))
    for left in range(rounds, 0, -1):
        more = min(world.examples - known, budget // (left * len(points)))
        budget, known = budget - more * len(points), known + more
        points = sorted(points, key=lambda point: -world.outcomes(point)[order[:known]].mean())[: len(points) // 2]
    return points[0]


def lucky(world: World, budget: int, seed: int) -> Point:
    """Random points on forty examples each, and the luckiest wins."""
    rng = np.random.default_rng(seed)
    points = [tuple(int(rng.integers(slot.levels)) for slot in world.space.slots) for _ in range(budget // 40)]
    return max(points, key=lambda point: world.outcomes(point)[rng.permutation(world.examples)[:40]].mean())


@pytest.mark.parametrize(
    ("slots", "budget", "above"), [((6, 12, 6, 12), 900, 0.05), ((6, 12), 600, 0.01), ((4,) * 6, 900, 0.03)]
)
def test_better_than_paired_halving_and_far_better_than_luck(slots: Sequence[int], budget: int, above: float) -> None:
    """Twelve fixed worlds. Seen: 30.1, 19.8 and 20.9 points; 18.6, 14.7 and 13.6; 33.0, 25.3 and 21.5."""
    gains = []
    for seed in range(12):
        world = World(slots, 0.4, 7000 + seed)
        ours = search(world.space, world, budget=budget, seed=seed).best
        found = (ours, halving(world, budget, seed), lucky(world, budget, seed))
        gains.append([world.true_gain(point) for point in found])
    ours, paired, luck = np.mean(gains, axis=0)
    assert ours > paired + above
    assert ours > luck + 0.03


def test_half_of_the_calls_do_what_halving_does_with_all() -> None:
    gains = []
    for seed in range(12):
        world = World((6, 12, 6, 12), 0.4, 7000 + seed)
        ours = search(world.space, world, budget=450, seed=seed).best
        gains.append([world.true_gain(ours), world.true_gain(halving(world, 900, seed))])
    ours, paired = np.mean(gains, axis=0)
    assert ours > paired


class Partial(World):
    """Levels that help on some examples and harm on others, as demonstrations do."""

    def outcomes(self, point: Point) -> np.ndarray:
        rng = np.random.default_rng([self.seed, 9])
        tables = [rng.normal(0, 1.0, (slot.levels, self.examples)) for slot in self.space.slots]
        shift = sum(table[level] for table, level in zip(tables, point, strict=True))
        noise = np.random.default_rng([self.seed, *point]).normal(0, 0.5, self.examples)
        return np.where(self.difficulty + self.logit(point) + shift + noise + self.luck > 0, 1.0, 0.0)


def test_effects_that_differ_by_example() -> None:
    gains = []
    for seed in range(10):
        world = Partial((6, 12), 0.4, 7100 + seed, examples=300)
        ours = search(world.space, world, budget=900, seed=seed).best
        truth = {point: float(world.outcomes(point).mean()) for point in world.space.points()}
        gains.append([truth[ours] - truth[(0, 0)], max(truth.values()) - truth[(0, 0)]])
    ours, most = np.mean(gains, axis=0)
    assert ours > 0.6 * most


# Weak learning is said.


def test_the_search_ends_early_where_nothing_would_ship_and_nowhere_else() -> None:
    ended = {0.0: 0, 0.12: 0}
    for effect in ended:
        for seed in (2, 3, 9, 11):
            world = World([6, 6], effect, 8000 + seed, examples=300)
            found = search(world.space, world, budget=3000, seed=seed)
            ended[effect] += "nothing separates the candidates" == found.reason
            assert (found.spent < 3000) == ("nothing separates the candidates" == found.reason)
    assert ended[0.0] >= 2
    assert 0 == ended[0.12]

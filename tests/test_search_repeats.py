"""Replicates: a model that throws dice is asked again where nothing else is left to ask, any other never."""

from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
import pytest
from vitrify.compiler.scores import Scores
from vitrify.compiler.search import Block, SearchOptions, search
from vitrify.compiler.space import Point, SearchSpace, Slot

from tests.search_worlds import World, done


class Dice(World):
    """Each answer is drawn anew, with the point's chance on the example."""

    stochastic = True

    def __init__(self, slots: Sequence[int], effect: float, seed: int, examples: int) -> None:
        super().__init__(slots, effect, seed, examples)
        self.replicates: list[tuple[Point, tuple[int, ...], int]] = []

    def submit(self, point: Point, examples: Sequence[int], replicate: int) -> "Future[Block]":
        self.asked.append((point, tuple(examples)))
        self.replicates.append((point, tuple(examples), replicate))
        chance = 1 / (1 + np.exp(-(self.difficulty[list(examples)] + self.logit(point))))
        rng = np.random.default_rng([self.seed, *point, examples[0], replicate])
        return done((rng.random(len(examples)) < chance).astype(float).tolist())


def test_a_deterministic_model_is_never_asked_twice() -> None:
    world = World([2, 2], 1.0, 3, examples=20)
    found = search(world.space, world, budget=5000, seed=0)
    assert 80 >= found.spent
    cells = [(point, example) for point, examples in world.asked for example in examples]
    assert len(set(cells)) == len(cells)


def test_a_model_that_throws_dice_is_asked_again_once_all_examples_are_known() -> None:
    world = Dice([3], 0.5, 3, examples=20)
    found = search(world.space, world, budget=600, seed=0)
    assert len(set(world.replicates)) == len(world.replicates)
    assert sum(len(examples) for _, examples in world.asked) == found.spent <= 600
    first = next(place for place, (_, _, replicate) in enumerate(world.replicates) if replicate)
    assert 60 == sum(len(examples) for _, examples in world.asked[:first])
    again = world.replicates[first:]
    assert all(replicate for _, _, replicate in again)
    # The baseline as often as anybody else, and nobody's next round before its last is complete.
    counts = {point: sum(one == point for one, _, _ in again) for point in {point for point, _, _ in again}}
    assert world.space.baseline in counts
    assert max(counts.values()) <= counts[world.space.baseline] + 1
    for point in counts:
        rounds = [replicate for one, _, replicate in again if one == point]
        assert sorted(rounds) == rounds
    # What is reported counts examples, not answers.
    assert {20} == {trial.n for trial in found.trials}


def test_repeats_end() -> None:
    world = Dice([2], 0.5, 3, examples=10)
    found = search(world.space, world, budget=100_000, seed=0)
    assert 10 * 10 * 2 >= found.spent


def test_repeats_find_out_who_is_better_and_nothing_about_other_examples() -> None:
    right, widths = [0, 0], [0.0, 0.0]
    for seed in range(20):
        for again in (0, 1):
            world = Dice([2], 0.0, seed, examples=60)
            world.effects[0] = np.array([0.0, 0.5])
            # Without repeats all that can be asked is 120.
            found = search(world.space, world, budget=120 if not again else 480, seed=seed)
            right[again] += found.best == (1,)
            widths[again] += found.interval[1] - found.interval[0]
    assert right[1] > right[0]
    assert 0.2 * widths[0] < widths[1] < 0.9 * widths[0]


@pytest.mark.parametrize("budget", [1, 7, 41, 60, 61, 64, 90, 133])
def test_repeats_keep_the_budget(budget: int) -> None:
    world = Dice([3], 0.5, 3, examples=20)
    found = search(world.space, world, budget=budget, seed=0, options=SearchOptions(block=3))
    assert sum(len(examples) for _, examples in world.asked) == found.spent <= budget


def test_an_average_is_one_example() -> None:
    rng = np.random.default_rng(0)
    scores = Scores(SearchSpace([Slot("a", 2)]), [3, 1, 0, 2], 3)
    told = rng.random((4, 4))
    for point in ((0,), (1,)):
        for _ in range(2):
            scores.tell(scores.row(point), rng.random(len(scores.ask(point))).tolist())
    asked = []
    values = scores.values(0).copy()
    for times in range(4):
        for block in range(2):
            examples, replicate = scores.repeat((0,))
            asked.append((tuple(examples), replicate))
            scores.average(0, told[times, [0, 1, 2] if block == 0 else [3]].tolist())
    assert [((3, 1, 0), 1), ((2,), 1), ((3, 1, 0), 2), ((2,), 2)] == asked[:4]
    np.testing.assert_allclose(scores.values(0), (values + told.sum(axis=0)) / 5)
    assert 8 == scores.repeats((0,))
    assert 8 + 16 == scores.spent == scores.outcomes
    before = scores.sums()
    scores.recount()
    after = scores.sums()
    np.testing.assert_allclose(after.totals, before.totals)
    np.testing.assert_allclose(after.block_totals, before.block_totals)
    assert after.variance == pytest.approx(before.variance)
    with pytest.raises(ValueError, match="scores are numbers"):
        scores.repeat((1,))
        scores.average(1, [0.0, float("nan"), 1.0])

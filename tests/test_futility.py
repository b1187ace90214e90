"""Stopping where nothing can ship any more: the predictive power, and what it does to searches."""

import numpy as np
import pytest
from scipy import stats
from vitrify.compiler.columns import Columns
from vitrify.compiler.futility import chance
from vitrify.compiler.scores import Scores
from vitrify.compiler.search import search
from vitrify.compiler.space import SearchSpace, Slot
from vitrify.compiler.surrogate import Surrogate

from tests.search_worlds import World


def known(advantage: float, blocks: int = 6) -> tuple[Surrogate, float]:
    """Three points on so many blocks of 5 of 100 examples, one of them better; and the paired noise."""
    rng = np.random.default_rng(1)
    scores = Scores(SearchSpace([Slot("a", 3)]), list(range(100)), 5)
    difficulty = rng.normal(0, 0.5, 100)
    for level in range(3):
        values = difficulty + advantage * (level == 1) + rng.normal(0, 0.3, 100)
        for _ in range(blocks):
            examples = scores.ask((level,))
            scores.tell(level, values[examples].tolist())
    sums = scores.sums()
    return Surrogate.fit(sums, Columns.spanning([3]), apart=0), 2 * sums.variance


@pytest.mark.parametrize("advantage", [0.0, 0.1, 0.2])
def test_the_chance_is_that_of_the_simulated_future(advantage: float) -> None:
    """Draw the truth, then the mean of what is still to be told, then judge by the posterior of both."""
    surrogate, noise = known(advantage)
    belief = surrogate.differences([1], 0)[0]
    rng = np.random.default_rng(0)
    more = 70 - 30  # 80 calls for the two of them, who know 30 each
    truth = rng.normal(belief.mean, belief.sd, 40_000)
    told = rng.normal(truth, (noise / more) ** 0.5)
    precision = 1 / belief.sd**2 + more / noise
    mean = (belief.mean / belief.sd**2 + told * more / noise) / precision
    passes = np.mean(stats.norm.cdf(mean * precision**0.5) >= 0.975)
    assert chance(surrogate, [1], 0, 80, 0.975) == pytest.approx(passes, abs=0.01)


def test_without_a_rest_it_is_what_the_guard_says_now() -> None:
    sure, _ = known(1.0)
    unsure, _ = known(0.0)
    assert chance(sure, [1], 0, 0, 0.975) == pytest.approx(1)
    assert chance(unsure, [1], 0, 0, 0.975) == pytest.approx(0)
    assert chance(unsure, [], 0, 100, 0.975) == 0


def test_of_more_points_one_passes_more_easily() -> None:
    surrogate, _ = known(0.1)
    both = chance(surrogate, [1, 2], 0, 60, 0.975)
    assert both == pytest.approx(sum(chance(surrogate, [row], 0, 60, 0.975) for row in (1, 2)))


def test_beyond_the_last_example_calls_tell_nothing_more() -> None:
    surrogate, _ = known(0.1)
    assert chance(surrogate, [1], 0, 140, 0.975) == chance(surrogate, [1], 0, 10_000, 0.975)


def test_on_null_worlds_some_of_the_budget_is_kept_and_where_something_is_to_be_gained_none() -> None:
    """12 worlds each; a lenient bound, since the rule may not stop before the race."""
    stopped = {}
    for effect in (0.0, 0.6):
        stopped[effect] = 0
        for seed in range(12):
            world = World([6, 6], effect, 700 + seed)
            found = search(world.space, world, budget=800, seed=seed)
            if found.reason == "nothing separates the candidates":
                stopped[effect] += 1
                assert found.spent < 800
                assert found.shipped == world.space.baseline
    assert stopped[0.0] >= 3
    assert stopped[0.6] <= 1

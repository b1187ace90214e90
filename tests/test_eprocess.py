"""The anytime-valid test: it is seldom wrong whenever one looks, and finds what is there."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vitrify.compiler.eprocess import STAKES, evidence, proven

LAWS = {
    "nothing differs": ((-1.0, 0.0, 1.0), (0.0, 1.0, 0.0)),
    "discordant": ((-1.0, 0.0, 1.0), (0.15, 0.7, 0.15)),
    "always discordant": ((-1.0, 1.0), (0.5, 0.5)),
    "skewed, many small wins": ((-1.0, 0.1), (1 / 11, 10 / 11)),
    "skewed, few great wins": ((-0.05, 0.95), (0.95, 0.05)),
    "graded": ((-0.6, -0.1, 0.2, 0.5), (0.2, 0.3, 0.25, 0.2)),
    "worse": ((-1.0, 0.0, 1.0), (0.2, 0.7, 0.1)),
}
"""Values and probabilities of differences whose mean is at most zero; the graded one's is -.02."""


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_its_capital_is_a_supermartingale(law: str) -> None:
    """Exactly, by enumerating what may come next: no simulation."""
    values, chances = (np.array(numbers) for numbers in LAWS[law])
    chances = chances / chances.sum()
    assert float(values @ chances) <= 1e-12
    for history in ([], [1.0], [0.5, -1.0, 0.3], [-0.9] * 4):
        before = np.exp(evidence(np.array(history)))[-1] if history else 1.0
        after = [np.exp(evidence(np.array([*history, value])))[-1] for value in values]
        assert float(np.array(after) @ chances) <= before * (1 + 1e-12)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_under_the_null_it_crosses_in_at_most_alpha_of_all_runs_at_any_time(law: str) -> None:
    """1,000 runs of 300 looks: Ville's bound, and three standard errors of the Monte Carlo."""
    rng = np.random.default_rng(0)
    values, chances = (np.array(numbers) for numbers in LAWS[law])
    draws = rng.choice(values, size=(1000, 300), p=chances / chances.sum())
    for alpha in (0.05, 0.2):
        crossed = np.mean([proven(run, 1, alpha) for run in draws])
        assert crossed <= alpha + 3 * (alpha * (1 - alpha) / 1000) ** 0.5


def test_over_all_arms_together() -> None:
    """The best of 20 equal arms against one baseline, whose luck they share."""
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(200):
        baseline = rng.random(120) < 0.5
        arms = rng.random((20, 120)) < 0.5
        wrong += any(proven(arm.astype(float) - baseline, 20, 0.1) for arm in arms)
    assert wrong / 200 <= 0.1 + 3 * (0.09 / 200) ** 0.5


def test_a_real_difference_is_proven() -> None:
    rng = np.random.default_rng(2)
    draws = rng.choice([-1.0, 0.0, 1.0], size=(100, 300), p=[0.05, 0.65, 0.3])
    assert np.mean([proven(run, 100, 0.05) for run in draws]) > 0.9


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60), st.sampled_from([0.5, 1.0, 7.0]))
def test_it_is_the_average_of_its_stakes(differences: list[float], bound: float) -> None:
    """The definition, without logarithms; in any unit of the scores."""
    bets = np.array(differences)
    capital = np.cumprod(1 + STAKES * bets[:, None], axis=0).mean(axis=1)
    np.testing.assert_allclose(np.exp(evidence(bound * bets, bound)), capital, rtol=1e-9)


def test_of_nothing_nothing_is_proven() -> None:
    assert 0 == len(evidence(np.zeros(0)))
    assert not proven(np.zeros(0), 1, 0.05)
    assert not proven(np.zeros(50), 1, 0.05)


def test_a_wrong_bound_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`differences are at most 1.0` must hold, but got 2.0"):
        evidence(np.array([0.5, -2.0]))

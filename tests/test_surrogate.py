"""The additive surrogate against the textbook: the same posterior as a dense Gaussian model of every outcome."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from vitrify.compiler.columns import Columns
from vitrify.compiler.explore import Draw, fitting_columns
from vitrify.compiler.scores import Scores
from vitrify.compiler.space import SearchSpace, Slot
from vitrify.compiler.surrogate import GRID, Belief, Design, Surrogate


def told(levels: list[tuple[int, ...]], blocks: list[int], sizes: tuple[int, ...], seed: int = 0) -> Scores:
    """Scores of 11 examples in blocks of 3 (the last of 2)."""
    rng = np.random.default_rng(seed)
    scores = Scores(SearchSpace([Slot(f"s{i}", n) for i, n in enumerate(sizes)]), list(range(11)), 3)
    for point, count in zip(levels, blocks, strict=True):
        for _ in range(count):
            examples = scores.ask(point)
            scores.tell(scores.rows[point], (rng.random(len(examples)) < 0.3 + 0.1 * sum(point)).astype(float).tolist())
    return scores


POINTS: list[tuple[int, ...]] = [(0, 0), (1, 0), (0, 2), (1, 2), (2, 1)]


def dense(scores: Scores, tau2: float, omega2: float, s2: float) -> tuple[Any, Any]:
    """Return mean and covariance of the points' values, from the joint normal of all outcomes."""
    points = np.array(scores.points)
    shared = (points[:, None, :] == points[None, :, :]).sum(axis=2)
    prior = tau2 * shared + omega2 * np.eye(len(points))
    rows = [(row, example) for row in range(len(points)) for example in range(len(scores.values(row)))]
    y = np.array([scores.values(row)[example] for row, example in rows])
    pick = np.array([row for row, _ in rows])
    block = np.array([example // 3 for _, example in rows])
    flat = 1e5
    noise = s2 * np.eye(len(y)) + flat * (block[:, None] == block[None, :])
    cross = prior[:, pick]
    gain = cross @ np.linalg.inv(prior[np.ix_(pick, pick)] + noise)
    centred = y - y.mean()
    return gain @ centred, prior - gain @ cross.T


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=5, max_size=5), st.integers(0, 8), st.integers(0, 8))
def test_the_posterior_is_the_textbooks(blocks: list[int], tau: int, omega: int) -> None:
    scores = told(POINTS, blocks, (3, 3))
    sums = scores.sums()
    columns = Columns.spanning([3, 3])
    tau2, omega2 = GRID[tau] ** 2, GRID[omega] ** 2
    cell = Design(sums, columns).normal(omega2).cell(tau2)
    mean, covariance = dense(scores, tau2, omega2, sums.variance)
    ours = cell.rows(cell.mean)
    np.testing.assert_allclose(ours - ours[0], mean - mean[0], atol=2e-4)
    spread = np.diag(covariance) + covariance[0, 0] - 2 * covariance[0]
    np.testing.assert_allclose(cell.spreads([1, 2, 3, 4], 0), spread[1:], rtol=2e-3, atol=1e-7)


def test_the_weights_are_the_textbooks() -> None:
    """The marginal likelihood, of two cells relative to each other."""
    scores = told(POINTS, [4, 3, 2, 2, 1], (3, 3))
    sums, columns = scores.sums(), Columns.spanning([3, 3])
    points = np.array(scores.points)
    shared = (points[:, None, :] == points[None, :, :]).sum(axis=2)
    rows = [(row, example) for row in range(5) for example in range(len(scores.values(row)))]
    pick, block = np.array([row for row, _ in rows]), np.array([example // 3 for _, example in rows])
    y = np.array([scores.values(row)[example] for row, example in rows])

    def dense_weight(tau2: float, omega2: float) -> float:
        prior = tau2 * shared + omega2 * np.eye(5)
        flat = 1e5 * (block[:, None] == block[None, :])
        return float(
            stats.multivariate_normal.logpdf(
                y - y.mean(), cov=prior[np.ix_(pick, pick)] + sums.variance * np.eye(len(y)) + flat
            )
        )

    cells = [(0.01, 0.0001), (0.0004, 0.02)]
    ours = [Design(sums, columns).normal(omega2).cell(tau2).log_weight for tau2, omega2 in cells]
    theirs = [dense_weight(*cell) for cell in cells]
    assert ours[0] - ours[1] == pytest.approx(theirs[0] - theirs[1], abs=1e-2)


def test_draws_have_the_posteriors_moments() -> None:
    scores = told(POINTS, [4, 3, 2, 2, 1], (3, 3))
    cell = Design(scores.sums(), Columns.spanning([3, 3])).normal(0.01).cell(0.02)
    rng = np.random.default_rng(0)
    draws = np.array([Draw(cell, scores, rng).rows for _ in range(4000)])
    differences = draws[:, 1:] - draws[:, :1]
    mean = cell.rows(cell.mean)
    np.testing.assert_allclose(differences.mean(axis=0), mean[1:] - mean[0], atol=0.012)
    np.testing.assert_allclose(differences.var(axis=0), cell.spreads([1, 2, 3, 4], 0), rtol=0.1)


def test_blocks_in_flight_take_doubt_away() -> None:
    scores = told(POINTS, [4, 3, 2, 2, 1], (3, 3))
    cell = Design(scores.sums(), Columns.spanning([3, 3])).normal(0.04).cell(0.0001)

    def doubt() -> float:
        rng = np.random.default_rng(0)
        return float(np.std([Draw(cell, scores, rng).rows[4] for _ in range(2000)]))

    before = doubt()
    scores.ask(POINTS[4])
    scores.ask(POINTS[4])
    assert doubt() < 0.87 * before


def test_levels_have_in_common_what_points_share() -> None:
    rng = np.random.default_rng(0)
    space = SearchSpace([Slot("a", 3), Slot("b", 3)])
    scores = Scores(space, list(range(40)), 10)
    difficulty = rng.normal(0.4, 0.3, 40)
    for point in space.points():
        for _ in range(4 if point != (1, 2) else 0):
            examples = scores.ask(point)
            noise = rng.normal(0, 0.3, len(examples))
            scores.tell(scores.rows[point], (difficulty[examples] + 0.3 * (point[0] == 1) + noise).tolist())
    surrogate = Surrogate.fit(scores.sums(), Columns.spanning([3, 3]))
    columns = Columns.spanning([3, 3])
    unseen = surrogate.effects[columns.at(np.array([(1, 2), (2, 2), (0, 0)]))].sum(axis=1)
    assert unseen[0] - unseen[2] > 0.1
    assert abs(unseen[1] - unseen[2]) < 0.1
    assert 1 == surrogate.top(columns)[0]


def test_no_difference_at_all_keeps_its_doubt() -> None:
    scores = Scores(SearchSpace([Slot("a", 3)]), list(range(30)), 10)
    for point in ((0,), (1,), (2,)):
        for _ in range(3):
            scores.tell(scores.row(point), [1.0] * len(scores.ask(point)))
    surrogate = Surrogate.fit(scores.sums(), Columns.spanning([3]))
    for belief in surrogate.differences([1, 2], 0):
        assert belief.sd > 0
        assert 0.05 < belief.probability < 0.95


def test_on_a_null_world_the_effects_are_found_to_be_small() -> None:
    rng = np.random.default_rng(1)
    space = SearchSpace([Slot("a", 6), Slot("b", 6)])
    scores = Scores(space, list(range(100)), 10)
    for point in space.points():
        for _ in range(6):
            examples = scores.ask(point)
            scores.tell(scores.rows[point], (rng.random(len(examples)) < 0.5).astype(float).tolist())
    best = Surrogate.fit(scores.sums(), Columns.spanning([6, 6])).best
    assert GRID[best[0]] <= 0.025 and GRID[best[1]] <= 0.025


def test_the_noise_is_what_pairing_leaves() -> None:
    rng = np.random.default_rng(0)
    scores = Scores(SearchSpace([Slot("a", 30)]), list(range(100)), 10)
    difficulty = rng.normal(0, 1, 100)
    for level in range(30):
        shift = rng.normal(0, 0.5)
        for _ in range(int(rng.integers(1, 10))):
            examples = scores.ask((level,))
            noise = rng.normal(0, 0.3, len(examples))
            scores.tell(scores.rows[(level,)], (difficulty[examples] + shift + noise).tolist())
    assert scores.sums().variance == pytest.approx(0.09, rel=0.15)


def test_recounting_changes_nothing() -> None:
    scores = told(POINTS, [4, 3, 2, 2, 1], (3, 3))
    before = scores.sums()
    scores.recount()
    after = scores.sums()
    for name in ("levels", "blocks", "totals", "block_totals"):
        np.testing.assert_allclose(getattr(after, name), getattr(before, name), atol=1e-12)
    assert after.variance == pytest.approx(before.variance)


def test_a_level_of_one_listed_point_has_no_effect_of_its_own() -> None:
    columns = Columns.spanning([3, 2], np.array([(0, 0), (1, 0), (2, 1), (1, 1)]))
    assert 3 == columns.width
    assert [[3, 1], [0, 1], [3, 2]] == columns.at(np.array([(0, 0), (1, 0), (2, 1)])).tolist()


def test_beliefs() -> None:
    assert 0.5 == Belief(0.0, 1.0).probability
    assert 0.0 == Belief(0.0, 0.0).probability
    low, high = Belief(1.0, 1.0, 5.0).interval
    assert high - low > 2 * 2.5


# Points that begin with different blocks, and features of levels.


def test_the_posterior_is_the_textbooks_where_points_begin_with_different_blocks() -> None:
    rng = np.random.default_rng(0)
    scores = Scores(SearchSpace([Slot("a", 3), Slot("b", 3)]), list(range(11)), 3, starts=3)
    for point, count in zip(POINTS, [4, 1, 2, 3, 1], strict=True):
        for _ in range(count):
            examples = scores.ask(point)
            scores.tell(scores.rows[point], (rng.random(len(examples)) < 0.3 + 0.1 * sum(point)).astype(float).tolist())
    assert [[1, 1, 1, 1], [0, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 0], [0, 1, 0, 0]] == scores.sums().mask.tolist()
    points = np.array(scores.points)
    prior = 0.02 * (points[:, None, :] == points[None, :, :]).sum(axis=2) + 0.01 * np.eye(5)
    rows = [(row, example) for row in range(5) for example in scores._places(row)]
    y = np.concatenate([scores.values(row) for row in range(5)])
    pick, block = np.array([row for row, _ in rows]), np.array([example // 3 for _, example in rows])
    variance = scores.sums().variance
    noise = variance * np.eye(len(y)) + 1e5 * (block[:, None] == block[None, :])
    gain = prior[:, pick] @ np.linalg.inv(prior[np.ix_(pick, pick)] + noise)
    mean, covariance = gain @ (y - y.mean()), prior - gain @ prior[:, pick].T
    cell = Design(scores.sums(), Columns.spanning([3, 3])).normal(0.01).cell(0.02)
    ours = cell.rows(cell.mean)
    np.testing.assert_allclose(ours - ours[0], mean - mean[0], atol=2e-4)
    spread = np.diag(covariance) + covariance[0, 0] - 2 * covariance[0]
    np.testing.assert_allclose(cell.spreads([1, 2, 3, 4], 0), spread[1:], rtol=2e-3, atol=1e-7)


def test_pairs_meet_on_the_examples_that_both_were_told() -> None:
    scores = Scores(SearchSpace([Slot("a", 4)]), [5, 3, 0, 1, 4, 2], 2, starts=3)
    for level, count in ((0, 1), (1, 2), (2, 1), (3, 3)):
        for _ in range(count):
            examples = scores.ask((level,))
            scores.tell(scores.rows[(level,)], [10.0 * level + example for example in examples])
    assert [10.0] * 2 == scores.paired(1, 0).tolist()
    assert [True, True, False, True] == scores.met(0).tolist()
    assert [False, False, True, True] == scores.met(2).tolist()
    assert [20.0] * 4 == scores.paired(3, 1).tolist()
    assert [10.0] * 2 == scores.paired(3, 2).tolist()


def described(features: Any, effects: Any, told_levels: int, seed: int) -> tuple[Surrogate, Columns]:
    """Return what is believed of a slot's levels, of which only the first few were told."""
    rng = np.random.default_rng(seed)
    space = SearchSpace([Slot("a", len(effects), features)])
    scores = Scores(space, list(range(60)), 10)
    difficulty = rng.normal(0.5, 0.3, 60)
    for level in range(told_levels):
        for _ in range(6):
            examples = scores.ask((level,))
            noise = rng.normal(0, 0.2, len(examples))
            scores.tell(scores.rows[(level,)], (difficulty[examples] + effects[level] + noise).tolist())
    columns = fitting_columns(space)
    return Surrogate.fit(scores.sums(), columns), columns


def test_features_say_what_levels_do_that_were_never_tried() -> None:
    lengths = np.array([10, 200, 55, 120, 30, 170, 90, 250, 15, 240], dtype=float)
    effects = (lengths - lengths.mean()) / 300
    surrogate, columns = described(lengths[:, None], effects, 8, 0)
    believed = surrogate.effects[columns.of[0]]
    assert believed[9] > believed[8] + 0.4 * (effects[9] - effects[8])
    plain, columns = described(None, effects, 8, 0)
    believed = plain.effects[columns.of[0]]
    assert abs(believed[9] - believed[8]) < 1e-6


def test_features_that_say_nothing_are_found_out() -> None:
    rng = np.random.default_rng(2)
    effects = rng.normal(0, 0.15, 16)
    surrogate, _ = described(rng.normal(size=(16, 2)), effects, 16, 0)
    plain, _ = described(None, effects, 16, 0)
    ours, theirs = surrogate.means, plain.means
    np.testing.assert_allclose(ours - ours.mean(), theirs - theirs.mean(), atol=0.01)


def test_features_without_scale_or_known_values() -> None:
    effects = np.array([0.0, 0.1, 0.2, 0.3])
    base, _ = described([[1.0], [2.0], [3.0], [4.0]], effects, 4, 1)
    scaled, _ = described([[1e6], [2e6], [3e6], [4e6]], effects, 4, 1)
    np.testing.assert_allclose(base.effects, scaled.effects)
    same, columns = described([[7.0]] * 4, effects, 4, 1)
    assert columns.features is None
    unknown, columns = described([[1.0, np.nan], [2.0, 5.0], [np.nan, 1.0], [4.0, 2.0]], effects, 4, 1)
    assert columns.features is not None and np.isfinite(columns.features).all()
    assert np.isfinite(unknown.effects).all() and np.isfinite(same.effects).all()


def test_features_are_checked_and_grow() -> None:
    with pytest.raises(ValueError, match="one row of features for each level"):
        Slot("a", 2, [[1.0]])
    with pytest.raises(ValueError, match="one row of features for each level"):
        Slot("a", 2, [[1.0], [1.0, 2.0]])
    with pytest.raises(ValueError, match="features are numbers"):
        Slot("a", 1, [[np.inf]])
    space = SearchSpace([Slot("a", 2, [[1.0], [2.0]]), Slot("b", 2)])
    grown = space.grown({"a": 1, "b": Slot("b", 3, [[1.0], [2.0], [4.0]]), "c": Slot("c", 2, [[0.0], [1.0]])})
    assert [3, 3, 2] == [slot.levels for slot in grown.slots]
    assert grown.slots[0].features is not None and np.isnan(grown.slots[0].features[2][0])
    assert ((0.0,), (1.0,)) == grown.slots[2].features
    with pytest.raises(ValueError, match="never removed"):
        space.grown({"a": Slot("a", 1)})

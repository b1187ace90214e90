"""The verdict's belief: it holds the truth whatever the baseline is, and guard and interval say the same."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from vitrify.compiler.columns import Columns
from vitrify.compiler.scores import Scores
from vitrify.compiler.search import SearchOptions
from vitrify.compiler.space import SearchSpace, Slot
from vitrify.compiler.surrogate import Belief, Surrogate
from vitrify.compiler.verdict import favourite, verdict, weighed

SIZES = (4, 6)
HOME = (0, 0)


def told(values: Callable[[tuple[int, ...], int], Any], depths: dict[tuple[int, ...], int], examples: int) -> Scores:
    """Scores of a space of 24 points in blocks of 5, each point known on so many blocks."""
    scores = Scores(SearchSpace([Slot(f"s{i}", n) for i, n in enumerate(SIZES)]), list(range(examples)), 5)
    for point, blocks in depths.items():
        drawn = values(point, examples)
        for _ in range(blocks):
            examples_of_block = scores.ask(point)
            scores.tell(scores.rows[point], drawn[examples_of_block].tolist())
    return scores


def raced(seed: int, lift: float, effect: float, slopes: Sequence[float] = (1.0,)) -> tuple[Scores, dict[Any, float]]:
    """A table with 24 true values, told as a search would: all on two blocks, then halves on ever more of 16.

    `lift` moves the baseline, in standard deviations of the values; `slopes` are what examples multiply values by.
    """
    rng = np.random.default_rng(seed)
    effects = [rng.normal(0, effect, n) for n in SIZES]
    space = SearchSpace([Slot(f"s{i}", n) for i, n in enumerate(SIZES)])
    truth = {point: float(effects[0][point[0]] + effects[1][point[1]]) for point in space.points()}
    if lift:
        truth[HOME] = float(np.mean(list(truth.values())) + lift * np.std(list(truth.values())))
    difficulty, slope = rng.normal(0, 0.5, 80), rng.choice(slopes, 80)
    table = {point: difficulty + slope * value + rng.normal(0, 0.3, 80) for point, value in truth.items()}
    depths = dict.fromkeys(truth, 2)
    for depth in (4, 8, 16):
        ranked = sorted(depths, key=lambda point: -float(table[point][: 5 * depths[point]].mean()) * depths[point] ** 2)
        deepest = [point for point in ranked if depths[point] == max(depths.values())]
        best = sorted(deepest, key=lambda point: -float(table[point][: 5 * depths[point]].mean()))
        for point in {HOME, *best[: len(deepest) // 2]}:
            depths[point] = depth
    return told(lambda point, _: table[point], depths, 80), truth


@pytest.mark.parametrize(
    ("lift", "effect", "slopes"),
    [
        (0.0, 0.1, (1.0,)),
        (2.0, 0.1, (1.0,)),
        (-2.0, 0.1, (1.0,)),
        (0.0, 0.0, (1.0,)),
        (0.0, 0.2, (0.2, 0.2, 2.6)),
    ],
    ids=["as it comes", "good baseline", "bad baseline", "null", "uneven examples"],
)
def test_the_interval_holds_the_truth(lift: float, effect: float, slopes: Sequence[float]) -> None:
    """100 tables a case, the winner selected: coverage has a standard error of 2.2 points.

    It isn't bought by width: what the other points say makes the interval narrower than the pair's own.
    """
    held = wrong = 0
    widths = []
    for seed in range(100):
        scores, truth = raced(seed, lift, effect, slopes)
        row, belief = favourite(scores, HOME)
        assert row is not None
        true = truth[scores.points[row]] - truth[HOME]
        held += belief.interval[0] <= true <= belief.interval[1]
        wrong += belief.probability >= 0.975 and true <= 0
        met = scores.paired(row, scores.rows[HOME])
        own = 2 * stats.t.ppf(0.975, len(met) - 1) * met.std(ddof=1) / len(met) ** 0.5
        widths.append((belief.interval[1] - belief.interval[0]) / own)
    assert held >= 89
    assert wrong <= 5
    assert np.mean(widths) < 1


def test_a_good_baseline_is_not_taken_for_an_average_one() -> None:
    """Where all others are equal and the baseline is far above them, an exchangeable prior draws it towards them."""
    rng = np.random.default_rng(3)
    points = list(SearchSpace([Slot("a", 4), Slot("b", 6)]).points())
    scores = told(
        lambda point, n: rng.normal(0, 0.5, n) + 0.4 * (point == HOME), dict.fromkeys(points, 2) | {HOME: 4}, 80
    )
    sums, columns, base = scores.sums(), Columns.spanning(SIZES), scores.rows[HOME]
    rest = [row for row in range(len(points)) if row != base]

    def mean(surrogate: Surrogate) -> float:
        return float(np.mean([belief.mean for belief in surrogate.differences(rest, base)]))

    apart, one_of_them = mean(Surrogate.fit(sums, columns, apart=base)), mean(Surrogate.fit(sums, columns))
    raw = float(np.mean([scores.paired(row, base).mean() for row in rest]))
    assert apart == pytest.approx(raw, abs=0.12)
    assert raw - 0.05 < apart < one_of_them - 0.03 < 0


@given(st.floats(-1, 1), st.floats(0.01, 1), st.floats(-1, 1), st.floats(1.01, 30), st.floats(0, 10))
def test_what_others_say_is_doubted_and_nothing_else(
    mean: float, sd: float, direct: float, ratio: float, doubt: float
) -> None:
    model, pair = Belief(mean, sd), Belief(direct, sd * ratio, 50.0)
    found = weighed(model, pair, doubt)
    assert found.freedom == pair.freedom
    assert model.sd * (1 - 1e-9) <= found.sd <= pair.sd * (1 + 1e-9)
    assert min(mean, direct) - 1e-9 <= found.mean <= max(mean, direct) + 1e-9
    same = weighed(model, pair, 0.0)
    assert same.mean == pytest.approx(mean, abs=1e-6)
    assert same.sd == pytest.approx(sd, rel=1e-6)


def test_where_nothing_is_inferred_nothing_is_doubted() -> None:
    """The others say no difference: as on null worlds, where doubt would only cost."""
    pair = Belief(0.2, 0.1)
    model = Belief(0.2 * 0.5, 0.1 * 0.5**0.5)
    assert weighed(model, pair, 100.0).mean == pytest.approx(model.mean)
    assert weighed(model, pair, 100.0).sd == pytest.approx(model.sd)


def test_a_model_that_knows_less_than_the_pair_counts_for_nothing() -> None:
    found = weighed(Belief(0.1, 0.3), Belief(0.2, 0.2, 9.0), 1.0)
    assert (0.1, 0.3, 9.0) == (found.mean, found.sd, found.freedom)


@given(st.floats(-1, 1), st.floats(0.001, 1), st.floats(1, 1e6))
def test_the_guards_probability_and_the_interval_are_one_belief(mean: float, sd: float, freedom: float) -> None:
    belief = Belief(mean, sd, freedom)
    if abs(belief.interval[0]) > 1e-6 * sd:
        assert (belief.probability > 0.975) == (belief.interval[0] > 0)


@pytest.mark.parametrize("advantage", [-0.5, 0.5], ids=["the baseline is best", "another point is best"])
def test_the_result_names_the_point_that_it_is_about(advantage: float) -> None:
    rng = np.random.default_rng(5)
    scores = told(
        lambda point, n: rng.normal(0, 0.3, n) + (advantage if point == (1, 1) else 0.4 if point == HOME else 0.0),
        {HOME: 6, (1, 1): 6, (2, 2): 6},
        40,
    )
    found = verdict(scores, HOME, SearchOptions(), 0, "")
    assert found.favourite == ((1, 1) if advantage > 0 else (2, 2))
    assert found.best == ((1, 1) if found.estimate > 0 else HOME)
    trial = next(trial for trial in found.trials if trial.point == found.favourite)
    assert found.estimate == pytest.approx(trial.difference, abs=0.15)
    assert found.interval[0] < found.estimate < found.interval[1]


def test_nothing_to_compare_is_said() -> None:
    scores = told(lambda point, n: np.ones(n), {HOME: 3}, 40)
    found = verdict(scores, HOME, SearchOptions(), 0, "")
    assert (HOME, HOME, HOME) == (found.best, found.shipped, found.favourite)
    assert ((0.0, 0.0), 0.0) == (found.interval, found.probability)


@pytest.mark.parametrize("unit", [1.0, 10.0], ids=["between 0 and 1", "of unknown bounds"])
def test_the_guard_that_needs_no_model(unit: float) -> None:
    """It ships what has clearly won, on scores whose bounds are known, and refuses what only the model is sure of."""
    rng = np.random.default_rng(6)
    table: dict[tuple[int, ...], Any] = {
        HOME: (rng.random(80) < 0.3).astype(float),
        (1, 1): (rng.random(80) < 0.9).astype(float),
        (2, 2): np.zeros(80),
    }
    options = SearchOptions(anytime=0.05)
    clear = told(lambda point, n: unit * table[point], {HOME: 16, (1, 1): 16, (2, 2): 4}, 80)
    assert (1, 1) == verdict(clear, HOME, SearchOptions(), 0, "").shipped
    assert ((1, 1) if unit == 1.0 else HOME) == verdict(clear, HOME, options, 0, "").shipped
    early = told(lambda point, n: unit * table[point], {HOME: 3, (1, 1): 3, (2, 2): 3}, 80)
    assert (1, 1) == verdict(early, HOME, SearchOptions(), 0, "").shipped
    assert HOME == verdict(early, HOME, options, 0, "").shipped

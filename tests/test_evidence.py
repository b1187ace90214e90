"""Evidence: intervals that hold what they say, on tables one can check by hand and on simulated ones."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from vitrify.compiler.evidence import (
    Evidence,
    Floats,
    detectable_gain,
    mid_p_mcnemar,
    paired_evidence,
    sign_flip_p,
    tango_interval,
    tango_intervals,
)
from vitrify.signatures.errors import DataError

Z = stats.norm.ppf(0.975)


def table(both: int, wins: int, losses: int, neither: int) -> tuple[list[float], list[float]]:
    """Return scores of baseline and compiled with these counts."""
    baseline = [1] * both + [0] * wins + [1] * losses + [0] * neither
    compiled = [1] * both + [1] * wins + [0] * losses + [0] * neither
    return [float(x) for x in baseline], [float(x) for x in compiled]


# --- 0/1 scores ---------------------------------------------------------------------------------------------------


def test_tango_reproduces_the_published_soft_contact_lens_example() -> None:
    # Tango 1998, example 1: 44 pairs, 43 concordant, one discordant.
    low, high = tango_interval(0, 1, 44)
    assert (-0.118, 0.059) == (round(low, 3), round(high, 3))


def brute_force_bound(wins: int, losses: int, n: int, sign: float) -> float:
    """Invert the score test with a numerical maximum likelihood, without Tango's closed form."""

    def statistic(delta: float) -> float:
        least, most = max(0.0, -delta), (1 - delta) / 2

        def minus_log_likelihood(losing: float) -> float:
            shares = (losing + delta, losing, 1 - 2 * losing - delta)
            counts = (wins, losses, n - wins - losses)
            return -sum(k * math.log(max(p, 1e-300)) for k, p in zip(counts, shares, strict=True) if k)

        found = optimize.minimize_scalar(
            minus_log_likelihood, bounds=(least, most), method="bounded", options={"xatol": 1e-13}
        )
        ends = [least, most, float(found.x)]
        losing = min(ends, key=minus_log_likelihood)
        variance = (2 * losing + delta - delta * delta) / n
        return float(((wins - losses) / n - delta) / math.sqrt(variance))

    estimate = (wins - losses) / n
    end = -1 + 1e-6 if sign > 0 else 1 - 1e-6
    return float(optimize.brentq(lambda delta: statistic(delta) - sign * Z, end, estimate, xtol=1e-9))


@pytest.mark.parametrize(
    ("wins", "losses", "n"), [(3, 1, 20), (20, 2, 96), (5, 5, 40), (1, 0, 30), (0, 4, 25), (9, 7, 50)]
)
def test_tango_equals_an_inversion_by_numerical_likelihood(wins: int, losses: int, n: int) -> None:
    low, high = tango_interval(wins, losses, n)
    assert brute_force_bound(wins, losses, n, 1) == pytest.approx(low, abs=2e-5)
    assert brute_force_bound(wins, losses, n, -1) == pytest.approx(high, abs=2e-5)


@pytest.mark.parametrize("n", [1, 7, 44, 500])
def test_no_discordant_pair_still_has_a_width(n: int) -> None:
    evidence = paired_evidence([1.0] * n, [1.0] * n)
    width = Z**2 / (n + Z**2)
    assert (0, 0) == evidence.discordant
    assert pytest.approx((-width, width), abs=1e-9) == evidence.interval
    assert 1.0 == evidence.p_value
    assert not evidence.improved


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 120).flatmap(lambda n: st.tuples(st.integers(0, n), st.integers(0, n), st.just(n))))
def test_tango_is_an_interval_around_the_difference_and_mirrors(case: tuple[int, int, int]) -> None:
    wins, losses, n = case
    losses = min(losses, n - wins)
    low, high = tango_interval(wins, losses, n)
    assert -1 <= low <= (wins - losses) / n <= high <= 1
    assert high - low > 0
    mirrored = tango_interval(losses, wins, n)
    assert (-high, -low) == pytest.approx(mirrored, abs=1e-9)
    wider = tango_interval(wins, losses, n, level=0.99)
    assert wider[0] <= low + 1e-12 and wider[1] >= high - 1e-12


@pytest.mark.parametrize("n", [30, 40, 100])
def test_tango_covers_exactly_computed(n: int) -> None:
    # Every table enumerated, no Monte Carlo noise to hide behind. The score interval isn't exact: it falls below
    # 93.5 % in a few cells in a thousand, down to 92.7 % (n = 100, 5.5 % won, none lost).
    wins, losses = (a.ravel() for a in np.meshgrid(np.arange(n + 1), np.arange(n + 1)))
    inside = wins + losses <= n
    wins, losses = wins[inside], losses[inside]
    low, high = tango_intervals(wins.astype(float), losses.astype(float), n)
    cells = []
    for win in (0.01, 0.04, 0.055, 0.1, 0.145, 0.19, 0.25, 0.4, 0.55):
        for lose in (0.0, 0.015, 0.03, 0.06, 0.1, 0.2, 0.4):
            if lose <= win and win + lose <= 0.95:
                shares = [win, lose, 1 - win - lose]
                weight = stats.multinomial.pmf(np.stack([wins, losses, n - wins - losses], 1), n, shares)
                cells.append(float(weight[(low <= win - lose) & (win - lose <= high)].sum()))
    assert min(cells) >= 0.927
    assert np.mean([cell >= 0.935 for cell in cells]) >= 0.95
    assert 0.95 == pytest.approx(float(np.median(cells)), abs=0.01)


@pytest.mark.parametrize("n", [30, 100, 300])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("gain", [0.0, 0.05])
def test_tango_covers_in_simulation(n: int, share: float, gain: float) -> None:
    sims = 4000
    rng = np.random.default_rng([n, int(100 * share), int(100 * gain)])
    win, lose = (share + gain) / 2, (share - gain) / 2
    counts = rng.multinomial(n, [win, lose, 1 - share], size=sims).astype(float)
    low, high = tango_intervals(counts[:, 0], counts[:, 1], n)
    coverage = float(((low <= gain) & (gain <= high)).mean())
    slack = 3 * math.sqrt(0.95 * 0.05 / sims)
    assert 0.945 - slack <= coverage <= 1.0
    assert coverage >= 0.935 or n * share < 4.5


def test_mid_p_against_a_sum_by_hand() -> None:
    # 1 win, 5 losses: P(X <= 1) = 7/64, P(X = 1) = 6/64.
    assert 2 * (7 / 64) - 6 / 64 == pytest.approx(mid_p_mcnemar(1, 5))
    assert mid_p_mcnemar(5, 1) == pytest.approx(mid_p_mcnemar(1, 5))
    assert 1.0 == mid_p_mcnemar(0, 0)
    assert pytest.approx(1.0) == mid_p_mcnemar(4, 4)


def test_mid_p_rejects_a_true_null_in_five_percent_at_most() -> None:
    rng = np.random.default_rng(5)
    rejected = [mid_p_mcnemar(int(wins), 20 - int(wins)) < 0.05 for wins in rng.binomial(20, 0.5, 4000)]
    assert np.mean(rejected) <= 0.05 + 3 * 0.0035


# --- graded scores ------------------------------------------------------------------------------------------------


def test_graded_scores_take_the_paired_t_interval() -> None:
    rng = np.random.default_rng(1)
    baseline, compiled = rng.random(40), rng.random(40) + 0.1
    evidence = paired_evidence(baseline.tolist(), compiled.tolist())
    expected = stats.ttest_rel(compiled, baseline).confidence_interval(0.95)
    assert (expected.low, expected.high) == pytest.approx(evidence.interval)
    assert evidence.discordant is None
    assert "paired t" in evidence.method


@pytest.mark.parametrize("n", [30, 100])
def test_graded_coverage_in_simulation(n: int) -> None:
    sims = 1500
    rng = np.random.default_rng(n)
    baseline = rng.beta(2, 2, (sims, n))
    compiled = np.clip(baseline + rng.normal(0.05, 0.2, (sims, n)), 0, 1)
    many = rng.beta(2, 2, 1_000_000)
    truth = float(np.mean(np.clip(many + rng.normal(0.05, 0.2, len(many)), 0, 1) - many))
    difference = compiled - baseline
    half = stats.t.ppf(0.975, n - 1) * difference.std(axis=1, ddof=1) / math.sqrt(n)
    one = paired_evidence(baseline[0].tolist(), compiled[0].tolist(), seed=3)
    assert difference[0].mean() - half[0] == pytest.approx(one.interval[0])
    coverage = float((np.abs(difference.mean(axis=1) - truth) <= half).mean())
    assert coverage >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / sims)


def test_sign_flip_counts_every_flip_of_few_rows() -> None:
    # All three positive: only the observed signs and their mirror reach the sum, 2 of 8.
    assert 0.25 == sign_flip_p([0.1, 0.2, 0.3])
    assert 1.0 == sign_flip_p([0.0, 0.0])
    assert sign_flip_p([0.1, 0.2, 0.3, 0.0, 0.0]) == sign_flip_p([0.1, 0.2, 0.3])


def test_sums_that_differ_by_rounding_are_ties() -> None:
    # .1 + .2 and .3 differ in the last bit; +.1 +.2 -.3 must tie with -.1 -.2 +.3, and with everything: p = 1.
    assert 1.0 == sign_flip_p([0.1, 0.2, -0.3])


def test_monte_carlo_flips_agree_with_the_exact_count_and_are_seeded() -> None:
    values = np.random.default_rng(2).normal(0.3, 1, 15)
    signs = 1 - 2 * ((np.arange(2**15)[:, None] >> np.arange(15)) & 1)
    exact = float((np.abs(signs @ values) >= abs(values.sum()) - 1e-9).mean())
    found = sign_flip_p(values, seed=7)
    assert exact == pytest.approx(found, abs=4 * math.sqrt(exact * (1 - exact) / 20_000))
    assert found == sign_flip_p(values, seed=7)
    assert found != sign_flip_p(values, seed=8)


def test_a_monte_carlo_p_value_is_never_zero() -> None:
    assert 1 / 20_001 == pytest.approx(sign_flip_p([1.0] * 200))


@pytest.mark.parametrize("n", [2, 5, 60])
def test_equal_graded_differences_have_a_width(n: int) -> None:
    evidence = paired_evidence([0.1 + 0.2] * n, [0.3] * n)
    low, high = evidence.interval
    assert high - low > 0.1
    assert not evidence.improved


def test_one_row_proves_nothing() -> None:
    for baseline, compiled in (([0.0], [1.0]), ([0.2], [0.9])):
        evidence = paired_evidence(baseline, compiled)
        assert not evidence.improved
        assert evidence.interval[0] < 0


# --- what one could do wrong ----------------------------------------------------------------------------------------


def test_pairing_matters_permuting_one_side_widens_the_interval() -> None:
    rng = np.random.default_rng(4)
    baseline = rng.random(200)
    compiled = baseline + rng.normal(0.05, 0.02, 200)
    paired = paired_evidence(baseline.tolist(), compiled.tolist())
    shuffled = paired_evidence(baseline.tolist(), rng.permutation(compiled).tolist())
    assert width(shuffled) > 3 * width(paired)


def width(evidence: Evidence) -> float:
    return evidence.interval[1] - evidence.interval[0]


@pytest.mark.parametrize("graded", [False, True])
def test_repeating_each_row_does_not_narrow_the_interval_of_its_groups(graded: bool) -> None:
    baseline, compiled = table(20, 14, 4, 22)
    if graded:
        baseline, compiled = [0.3 * x + 0.1 for x in baseline], [0.3 * x + 0.1 for x in compiled]
    once = paired_evidence(baseline, compiled)
    thrice = paired_evidence(baseline * 3, compiled * 3, groups=list(range(60)) * 3)
    naive = paired_evidence(baseline * 3, compiled * 3)
    assert width(thrice) >= width(once) - 1e-9
    assert width(naive) < 0.7 * width(once)
    assert once.difference == pytest.approx(thrice.difference)
    assert "60 independent groups" in thrice.method
    assert paired_evidence(baseline, compiled, groups=list(range(60))) == once


def test_one_group_proves_nothing() -> None:
    assert not paired_evidence([0.0] * 30, [1.0] * 30, groups=["x"] * 30).improved
    assert not paired_evidence([0.1] * 30, [0.9] * 30, groups=["x"] * 30).improved


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=13), st.integers())
def test_evidence_is_consistent_for_any_scores(pairs: list[tuple[float, float]], seed: int) -> None:
    baseline, compiled = [a for a, _ in pairs], [b for _, b in pairs]
    evidence = paired_evidence(baseline, compiled, seed=seed)
    assert evidence.interval[0] <= evidence.difference <= evidence.interval[1]
    assert (evidence.interval[0] > 0) == evidence.improved
    assert 0 < evidence.p_value <= 1
    assert len(pairs) == evidence.n
    json.dumps(evidence.to_json(), allow_nan=False)
    assert str(evidence)


@pytest.mark.parametrize(
    ("baseline", "compiled", "part"),
    [
        ([], [], "at least one row"),
        ([1.0], [1.0, 0.0], "1 and 2"),
        ([1.0, float("nan")], [1.0, 0.0], "at place 2"),
        ([1.0, 0.0], [float("inf"), 0.0], "compiled"),
    ],
)
def test_scores_that_are_none_are_refused(baseline: list[float], compiled: list[float], part: str) -> None:
    with pytest.raises(DataError, match=part):
        paired_evidence(baseline, compiled)


def test_a_level_in_percent_is_refused() -> None:
    with pytest.raises(DataError, match=r"0\.95"):
        paired_evidence([0.0], [1.0], level=95)
    with pytest.raises(DataError, match="one group per row"):
        paired_evidence([0.0], [1.0], groups=[1, 2])


def test_the_sentence() -> None:
    assert "62.5 % -> 81.2 % on 96 sealed rows: +18.8 points (95 % interval +10.3 to +28.3, p < .0001)" == str(
        paired_evidence(*table(58, 20, 2, 16))
    )
    assert "50.0 % -> 50.0 % on 4 select rows: 0.0 points (95 % interval -60.4 to +60.4, p = 1)" == paired_evidence(
        *table(1, 1, 1, 1)
    ).sentence("select")
    evidence = paired_evidence([3.0, 5.0, 8.0], [4.0, 5.5, 9.0])
    assert str(evidence).startswith("5.333 -> 6.167 on 3 sealed rows: +0.833 (95 %")
    assert "p = .0013)" in str(paired_evidence(*table(0, 15, 2, 0)))


def test_json_rounds_but_keeps_everything() -> None:
    found = paired_evidence(*table(58, 20, 2, 16)).to_json()
    assert {
        "baseline",
        "compiled",
        "difference",
        "interval",
        "level",
        "p_value",
        "n",
        "discordant",
        "method",
        "improved",
    } == set(found)
    assert [20, 2] == found["discordant"]
    assert 0.1875 == found["difference"]


def test_detectable_gain_is_where_power_crosses() -> None:
    # SEARCH.md, 20,000 simulations each: a true gain of 12 points, 25 % discordant.
    for n, power in ((60, 0.46), (100, 0.68)):
        assert 0.12 == pytest.approx(detectable_gain(n, 0.25, power=power), abs=0.004)
    gains = [detectable_gain(n) for n in (4, 10, 30, 100, 1000)]
    assert sorted(gains, reverse=True) == gains
    assert detectable_gain(100, power=0.8) > detectable_gain(100, power=0.5)
    assert 1.0 == detectable_gain(1)
    for n, share, power in ((0, 0.25, 0.5), (9, 0.0, 0.5), (9, 0.25, 1.0)):
        with pytest.raises(DataError):
            detectable_gain(n, share, power)


def test_a_gain_of_detectable_size_is_shown_about_half_the_time() -> None:
    n, share, sims = 120, 0.25, 4000
    gain = detectable_gain(n, share)
    counts: Floats = (
        np.random.default_rng(9)
        .multinomial(n, [(share + gain) / 2, (share - gain) / 2, 1 - share], size=sims)
        .astype(float)
    )
    low, _ = tango_intervals(counts[:, 0], counts[:, 1], n)
    assert 0.5 == pytest.approx(float((low > 0).mean()), abs=0.06)

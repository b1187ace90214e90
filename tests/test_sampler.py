"""AdditiveSampler in Optuna: the conformance suite, what that doesn't ask, and that it finds what is there."""

import copy
import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.testing.pytest_samplers import BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase
from optuna.trial import TrialState
from vitrify.compiler.trials import Trials, bounded

import vitrify
from vitrify import AdditiveSampler

Params = dict[str, Any]


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Any:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


class TestConformance(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture(params=[False, True], ids=["joint", "group"])
    def sampler(self, request: pytest.FixtureRequest) -> Callable[[], BaseSampler]:
        return lambda: AdditiveSampler(seed=0, group=request.param)


def space(*levels: int) -> dict[str, BaseDistribution]:
    return {f"s{slot}": CategoricalDistribution(list(range(n))) for slot, n in enumerate(levels)}


def study_of(sampler: BaseSampler, direction: Any = "maximize", **more: Any) -> optuna.Study:
    return optuna.create_study(direction=direction, sampler=sampler, **more)


def points(study: optuna.Study) -> list[tuple[Any, ...]]:
    return [tuple(trial.params[name] for name in sorted(trial.params)) for trial in study.trials]


class Ground:
    """A function of categorical parameters: the sum of the levels' effects, an effect of each point's own, noise."""

    def __init__(self, levels: Sequence[int], seed: int, own: float = 0.3, noise: float = 0.0) -> None:
        rng = np.random.default_rng([77, seed])
        self.levels, self.seed, self.own, self.noise = levels, seed, own, noise
        self.effects = [rng.normal(0, 1, n) for n in levels]
        self.rng = rng

    def true(self, point: Sequence[int]) -> float:
        own = np.random.default_rng([self.seed, *point]).normal(0, self.own)
        return float(sum(effects[level] for effects, level in zip(self.effects, point, strict=True)) + own)

    def __call__(self, trial: optuna.Trial) -> float:
        point = [trial.suggest_categorical(f"s{slot}", list(range(n))) for slot, n in enumerate(self.levels)]
        return self.true(point) + self.noise * float(self.rng.normal())

    def run(self, sampler: BaseSampler, trials: int) -> tuple[float, float]:
        """Return the truth of the trial with the best value, and the mean of the last third."""
        study = study_of(sampler)
        study.optimize(self, n_trials=trials)
        tried = [self.true([trial.params[f"s{slot}"] for slot in range(len(self.levels))]) for trial in study.trials]
        return tried[study.best_trial.number], float(np.mean(tried[-trials // 3 :]))


# What it finds.


@pytest.mark.parametrize(
    ("levels", "trials", "noise", "margin"), [((6, 12, 6, 12), 60, 0.0, 0.2), ((6,) * 8, 70, 1.5, 0.5)]
)
def test_it_beats_tpe_and_random_where_effects_add_up(
    levels: tuple[int, ...], trials: int, noise: float, margin: float
) -> None:
    rivals: dict[str, Callable[[int], BaseSampler]] = {
        "ours": lambda seed: AdditiveSampler(seed=seed),
        "tpe": lambda seed: TPESampler(seed=seed),
        "random": lambda seed: RandomSampler(seed=seed),
    }
    found = {
        name: np.mean([Ground(levels, seed, noise=noise).run(make(seed), trials) for seed in range(5)], axis=0)
        for name, make in rivals.items()
    }
    for rival in ("tpe", "random"):
        best, late = found["ours"] - found[rival]
        assert best > margin, (rival, found)
        assert late > 2 * margin, (rival, found)


def test_the_design_tries_every_choice_equally_often() -> None:
    study = study_of(AdditiveSampler(seed=0, n_startup_trials=12))
    for _ in range(12):
        study.tell(study.ask(space(6, 4, 3)), 0.0)
    for slot, levels in enumerate((6, 4, 3)):
        counts = Counter(trial.params[f"s{slot}"] for trial in study.trials)
        assert levels == len(counts)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_what_has_no_noise_is_seldom_tried_twice_and_what_has_is() -> None:
    exact, noisy = Ground((6, 6), 3), Ground((6, 6), 3, noise=1.0)
    for ground in (exact, noisy):
        study = study_of(AdditiveSampler(seed=1))
        study.optimize(ground, n_trials=36)
        ground.levels = (len(set(points(study))),)
    assert exact.levels[0] >= 33
    assert noisy.levels[0] <= 28


def test_when_every_point_is_known_exactly_the_best_is_asked_for_again() -> None:
    ground = Ground((3, 2), 1)
    study = study_of(AdditiveSampler(seed=0))
    study.optimize(ground, n_trials=30)
    best = tuple(study.best_params[name] for name in sorted(study.best_params))
    assert 6 == len(set(points(study)))
    assert [best] * 10 == points(study)[-10:]


# In any study.


def test_same_seed_same_trials() -> None:
    tried = []
    for seed in (0, 0, 1):
        study = study_of(AdditiveSampler(seed=seed))
        study.optimize(Ground((5, 5, 5), 1, noise=0.5), n_trials=25)
        tried.append(points(study))
    assert tried[0] == tried[1] != tried[2]


def test_without_a_seed_or_with_another_one_it_differs() -> None:
    tried = []
    for reseed in (False, True):
        sampler = AdditiveSampler(seed=0)
        if reseed:
            sampler.reseed_rng()
        study = study_of(sampler)
        study.optimize(Ground((9, 9, 9), 1), n_trials=12)
        tried.append(points(study))
    assert tried[0] != tried[1]
    first, second = (study_of(AdditiveSampler()).ask(space(*[9] * 12)).params for _ in range(2))
    assert first != second


def test_minimizing_is_maximizing_the_negative() -> None:
    tried = []
    for sign, direction in ((1.0, "maximize"), (-1.0, "minimize")):
        ground = Ground((5, 5, 5), 2, noise=0.5)
        study = study_of(AdditiveSampler(seed=0), direction)
        for _ in range(30):
            trial = study.ask()
            study.tell(trial, sign * ground(trial))
        tried.append(points(study))
    assert tried[0] == tried[1]


def test_the_unit_of_values_does_not_matter() -> None:
    tried = []
    for factor in (1.0, 1024.0, 2.0**-20):
        ground = Ground((5, 5, 5), 2)
        study = study_of(AdditiveSampler(seed=0))
        for _ in range(25):
            trial = study.ask()
            study.tell(trial, factor * ground(trial))
        tried.append(points(study))
    assert tried[0] == tried[1] == tried[2]


def test_running_trials_are_accounted_for() -> None:
    study = study_of(AdditiveSampler(seed=0))
    ground = Ground((8, 8), 5)
    asked = [study.ask(space(8, 8)) for _ in range(8)]
    for trial in asked:
        study.tell(trial, ground.true((trial.params["s0"], trial.params["s1"])))
    flying = [study.ask(space(8, 8)) for _ in range(12)]
    assert 12 == len({tuple(trial.params.values()) for trial in flying})


def test_another_worker_sees_what_a_running_trial_was_given() -> None:
    storage = optuna.storages.InMemoryStorage()
    study_of(AdditiveSampler(seed=0), storage=storage, study_name="s")
    mine, theirs = (
        optuna.load_study(study_name="s", storage=storage, sampler=AdditiveSampler(seed=seed)) for seed in (0, 1)
    )
    names = [f"a parameter with a name that is rather long, number {i}" for i in range(60)]
    wide: dict[str, BaseDistribution] = {name: CategoricalDistribution(["this", "that"]) for name in names}
    mine.tell(mine.ask(wide), 1.0)
    trial = mine.ask()
    given = {name: trial.suggest_categorical(name, ["this", "that"]) for name in names[:1]}
    frozen = theirs.trials[trial.number]
    assert given == frozen.params
    trials = Trials({name: CategoricalDistribution(["this", "that"]) for name in names}, maximize=True)
    trials.read(theirs.get_trials(deepcopy=False), now=-1)
    assert [1, 0] == trials.told.tolist()
    assert trials.asked[1] > 0


def test_threads() -> None:
    study = study_of(AdditiveSampler(seed=0))
    study.optimize(Ground((6, 6, 6), 1), n_trials=40, n_jobs=4)
    assert 40 == len(study.trials)
    assert len(set(points(study))) > 30


def test_it_reads_a_foreign_history() -> None:
    ground = Ground((6, 6, 6), 8, own=0.1)
    foreign = study_of(RandomSampler(seed=3))
    foreign.optimize(ground, n_trials=80)
    study = study_of(AdditiveSampler(seed=0))
    study.add_trials(foreign.trials)
    study.add_trial(optuna.create_trial(state=TrialState.FAIL))
    study.add_trial(optuna.create_trial(params={}, distributions={}, state=TrialState.PRUNED))
    study.enqueue_trial({"s0": 1})
    study.optimize(ground, n_trials=1)
    assert 1 == study.trials[-1].params["s0"]
    # A trial without parameters leaves the intersection empty: each is sampled by itself, from what is known of it.
    study.optimize(ground, n_trials=8)
    tried = [ground.true(point) for point in points(study)[-8:]]
    assert np.mean(tried) > np.mean([ground.true(point) for point in points(foreign)]) + 1


def test_a_trial_with_other_choices_leaves_the_parameter_to_itself() -> None:
    study = study_of(AdditiveSampler(seed=0))
    for n in (2, 3, 3):
        study.add_trial(optuna.create_trial(params={"s0": 0, "s1": 1}, distributions={**space(n, 2)}, value=1.0))
    trial = study.ask()
    assert ["s1"] == sorted(study.sampler.infer_relative_search_space(study, study.trials[-1]))
    assert trial.suggest_categorical("s0", [0, 1, 2]) in (0, 1, 2)


def test_a_point_that_always_fails_is_given_up() -> None:
    study = study_of(AdditiveSampler(seed=0))
    fails = 0
    for _ in range(60):
        trial = study.ask(space(4, 4))
        if trial.params["s0"] == 3 and trial.params["s1"] == 3:
            study.tell(trial, state=TrialState.FAIL)
            fails += 1
        else:
            study.tell(trial, float(trial.params["s0"] + trial.params["s1"]))
    assert 1 <= fails <= 3


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), 1e300])
def test_values_beyond_all_bounds(value: float) -> None:
    study = study_of(AdditiveSampler(seed=0))
    for number in range(30):
        trial = study.ask(space(4, 4))
        study.tell(trial, value if number == 5 else float(trial.params["s0"] == 2))
    assert 30 == len(study.trials)
    late = [trial.params["s0"] for trial in study.trials[-10:]]
    odd = study.trials[5].params["s0"]
    assert sum(level in ((2, odd) if value > 0 else (2,)) for level in late) >= 5


def test_nan_and_pruned_before_the_first_report_say_nothing() -> None:
    study = study_of(AdditiveSampler(seed=0))
    for number in range(25):
        trial = study.ask(space(4, 4))
        if number % 5 == 0:
            study.tell(trial, state=TrialState.PRUNED)
        elif number % 5 == 1:
            trial.report(float("nan"), 1)
            study.tell(trial, state=TrialState.PRUNED)
        elif number % 5 == 2:
            study.tell(trial, float("nan"), skip_if_finished=True)
        else:
            study.tell(trial, float(trial.params["s0"]))
    assert 25 == len(study.trials)


def test_bounded() -> None:
    inf = float("inf")
    assert [0.0, 1.0, 2.0, 3.0] == bounded(np.array([0.0, 1.0, 2.0, 3.0])).tolist()
    # Worse than the median (1) by more than three times what the best (2) is above it.
    assert [-2.0, 1.0, 2.0] == bounded(np.array([-50.0, 1.0, 2.0])).tolist()
    low, one, two, high = bounded(np.array([-inf, 1.0, 2.0, inf])).tolist()
    assert low <= one < two < high
    assert [-1.0, 1.0] == bounded(np.array([-inf, inf])).tolist()
    assert [0.0, 1.0] == bounded(np.array([-inf, 1.0])).tolist()


def test_pruned_trials_count_for_what_they_reported() -> None:
    """Early reports are five lower than what comes of them; whoever takes them as values prefers what wasn't pruned."""
    told: dict[str, Any] = {}
    for name in ("with", "without"):
        study = study_of(AdditiveSampler(seed=0))
        for number in range(48):
            level, other = number % 4, number // 4 % 4
            full, early = float(level), level - 5.0 + 0.1 * (number % 3)
            finished = number % 2 == 0 if level < 3 else False
            if finished or name == "with":
                study.add_trial(
                    optuna.create_trial(
                        state=TrialState.COMPLETE if finished else TrialState.PRUNED,
                        value=full if finished else early,
                        params={"s0": level, "s1": other},
                        distributions=space(4, 4),
                        intermediate_values={1: early, 9: full} if finished else {1: early},
                    )
                )
        study.optimize(lambda trial: float(trial.suggest_categorical("s0", [0, 1, 2, 3]) * 1.0)
                       + 0 * trial.suggest_categorical("s1", [0, 1, 2, 3]), n_trials=8)  # fmt: skip
        told[name] = [trial.params["s0"] for trial in study.trials[-8:]]
    assert 3 == told["with"][0]
    assert told["with"].count(3) >= 6


def test_where_every_trial_is_pruned_their_reports_are_what_there_is() -> None:
    study = study_of(AdditiveSampler(seed=0))
    for _ in range(40):
        trial = study.ask({**space(5, 5), "fixed": CategoricalDistribution(["one"])})
        trial.report(float(trial.params["s0"] + trial.params["s1"]), step=3)
        study.tell(trial, state=TrialState.PRUNED)
    assert (4, 4) in {(trial.params["s0"], trial.params["s1"]) for trial in study.trials[:25]}
    assert len({(trial.params["s0"], trial.params["s1"]) for trial in study.trials}) >= 23


def test_violated_constraints_are_the_worst() -> None:
    study = study_of(AdditiveSampler(seed=0))
    for _ in range(40):
        trial = study.ask(space(5, 5))
        if hasattr(trial, "set_constraint"):
            trial.set_constraint("c", float(trial.params["s0"] == 4))
        else:
            legacy: Any = trial
            legacy.set_system_attr("constraints", [float(trial.params["s0"] == 4)])
        study.tell(trial, 10.0 * trial.params["s0"] + trial.params["s1"])
    assert sum(trial.params["s0"] == 4 for trial in study.trials[-15:]) <= 2
    assert sum(trial.params["s0"] == 3 for trial in study.trials[-15:]) >= 8


def conditional(trial: optuna.Trial) -> float:
    if trial.suggest_categorical("kind", ["tree", "line"]) == "tree":
        depth, split = (trial.suggest_categorical(name, [0, 1, 2, 3]) for name in ("depth", "split"))
        return 2.0 + (depth == 3) + (split == 2)
    return float(trial.suggest_categorical("slope", [0, 1, 2]) == 1) + trial.suggest_float("shift", 0, 0.5)


@pytest.mark.parametrize("group", [False, True])
def test_conditional_parameters(group: bool) -> None:
    sampler = AdditiveSampler(seed=0, group=group)
    study = study_of(sampler)
    study.optimize(conditional, n_trials=50)
    joint = sampler.infer_relative_search_space(study, study.trials[-1])
    assert (["depth", "kind", "slope", "split"] if group else ["kind"]) == sorted(joint)
    assert 4.0 == study.best_value
    assert np.mean([trial.value for trial in study.trials[-15:]]) > 3


def test_floats_and_ints_are_left_to_another_sampler() -> None:
    asked = []

    class Watching(RandomSampler):
        def sample_independent(self, study: Any, trial: Any, name: str, distribution: BaseDistribution) -> Any:
            asked.append((name, type(distribution)))
            return super().sample_independent(study, trial, name, distribution)

    study = study_of(AdditiveSampler(seed=0, independent_sampler=Watching(seed=1)))
    for _ in range(3):
        study.tell(study.ask({**space(3), "x": FloatDistribution(0, 1)}), 0.0)
    assert [("x", FloatDistribution)] * 3 == asked


@pytest.mark.parametrize("again", [copy.deepcopy, lambda sampler: pickle.loads(pickle.dumps(sampler))])
def test_a_copy_goes_on(again: Callable[[Any], Any]) -> None:
    study = study_of(AdditiveSampler(seed=0))
    study.optimize(Ground((4, 4), 1), n_trials=12)
    study.sampler = again(study.sampler)
    study.optimize(Ground((4, 4), 1), n_trials=3)
    assert 15 == len(study.trials)


def test_one_sampler_after_another_study() -> None:
    sampler = AdditiveSampler(seed=0)
    for levels in ((4, 4), (3, 3, 3)):
        study = study_of(sampler)
        study.optimize(Ground(levels, 1), n_trials=12)
        assert set(space(*levels)) == set(sampler.infer_relative_search_space(study, study.trials[-1]))


def test_in_a_stored_study_another_sampler_of_the_same_seed_goes_on() -> None:
    storage = optuna.storages.InMemoryStorage()
    for name in ("whole", "halves"):
        ground = Ground((6, 6), 4)
        for trials in (20,) if name == "whole" else (10, 10):
            study = study_of(AdditiveSampler(seed=0), storage=storage, study_name=name, load_if_exists=True)
            study.optimize(ground, n_trials=trials)
    whole, halves = (points(optuna.load_study(study_name=name, storage=storage)) for name in ("whole", "halves"))
    assert whole == halves


def test_each_finished_trial_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: Counter[int] = Counter()
    finish = Trials._finish

    def counting(self: Trials, trial: Any) -> None:
        read[trial.number] += 1
        finish(self, trial)

    monkeypatch.setattr(Trials, "_finish", counting)
    study = study_of(AdditiveSampler(seed=0))
    study.tell(study.ask(space(4, 4)), 0.0)
    slow = study.ask(space(4, 4))
    read.clear()
    for number in range(30):
        study.tell(study.ask(space(4, 4)), float(number))
        if number == 20:
            study.tell(slow, 1.0)
    study.ask(space(4, 4))
    assert set(range(1, 32)) == set(read)
    assert {1} == set(read.values())


def test_it_is_public() -> None:
    assert "AdditiveSampler" in vitrify.__all__
    assert issubclass(vitrify.AdditiveSampler, optuna.samplers.BaseSampler)

"""AdditiveSampler: our explorer as a sampler for any Optuna study.

Categorical parameters are chosen jointly by the additive surrogate with top-two Thompson sampling (`surrogate.py`,
`explore.py`; `trials.py` reads the study). Floats and ints are sampled one by one by another sampler.
"""

import secrets
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from .explore import Additive
from .rng import generator, integer
from .surrogate import Surrogate
from .trials import Trials, share

STARTUP = 8
"""Trials of the balanced design, where no parameter has more choices than that."""

REFIT = 32
"""The surrogate is fitted again when one trial in so many is new."""

WIDE = 100
"""Choices of all parameters above which a fit looks only at variances like the last one's."""

CERTAIN = 2
"""Trials before there is anything to fit."""

Categoricals = dict[str, CategoricalDistribution]


class AdditiveSampler(BaseSampler):
    """Samples categorical parameters jointly: additive effects, an effect of each combination's own, and noise.

    A balanced design of `n_startup_trials` comes first: every choice of every parameter equally often. Then each trial
    draws a world from the posterior and takes the combination that is best in it, or half of the time the best other
    one. A combination that was tried is tried again as far as values are noisy. Running trials count as doubt that is
    settled, so that parallel workers spread out; pruned ones count for what they reported; failed ones only keep a
    combination that always fails from being asked for again and again.

        study = optuna.create_study(direction="maximize", sampler=vitrify.AdditiveSampler(seed=0))

    Joint are the parameters that all finished trials have (Optuna's intersection search space); with `group`, also
    those of each branch of a conditional space, each group by a model of its own. A categorical parameter outside of
    them is sampled by the model of that parameter alone. One study at a time and one objective: ValueError where a
    study has more.

    Args:
        seed: Same seed, same trials, where they run one after the other.
        n_startup_trials: Trials of the design; by default as many as the largest parameter has choices, at least 8.
        group: Whether conditional parameters are sampled jointly too, as `TPESampler(group=True)` does it.
        independent_sampler: Samples floats and ints, one at a time; by default TPE.
    """

    def __init__(
        self,
        *,
        seed: int | None = None,
        n_startup_trials: int | None = None,
        group: bool = False,
        independent_sampler: BaseSampler | None = None,
    ) -> None:
        self._seed = secrets.randbits(64) if seed is None else seed
        self._startup, self._group = n_startup_trials, group
        self._independent = independent_sampler or TPESampler(
            seed=integer(self._seed, "sampler.independent"), multivariate=False
        )
        self._lock = threading.RLock()
        self._forget()

    def _forget(self) -> None:
        self._study: tuple[Any, int] | None = None
        self._intersection = IntersectionSearchSpace(include_pruned=True)
        self._groups = Groups()
        self._models: dict[tuple[str, ...], Model] = {}

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_seed", "_startup", "_group", "_independent")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()
        self._forget()

    def reseed_rng(self) -> None:
        """Take another seed: called where a study runs in several threads, for copies must not agree."""
        self._seed = secrets.randbits(64)
        self._independent.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the categorical parameters that are sampled jointly."""
        with self._lock:
            self._turn_to(study)
            if self._group:
                space = self._groups.read(study.get_trials(deepcopy=False))
            else:
                space = self._intersection.calculate(study)
        return {name: space[name] for name in sorted(space) if _is_choice(space[name]) and not space[name].single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return a value for each parameter: categorical ones by the model, others as if they were independent."""
        with self._lock:
            self._turn_to(study)
            params: dict[str, Any] = {}
            for names in self._groups.split(list(search_space)) if self._group else [sorted(search_space)]:
                joint = {name: search_space[name] for name in names if _is_choice(search_space[name])}
                params.update(self._joint(study, trial, joint))
            if params:
                share(study, trial, params)
        for name, distribution in search_space.items():
            if name not in params:
                params[name] = self._independent.sample_independent(study, trial, name, distribution)
        return params

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return a value for a parameter outside of the relative search space."""
        with self._lock:
            self._turn_to(study)
            if _is_choice(param_distribution):
                return self._joint(study, trial, {param_name: param_distribution})[param_name]
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Hand on to the sampler of floats and ints."""
        self._independent.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Hand on to the sampler of floats and ints."""
        self._independent.after_trial(study, trial, state, values)

    def _turn_to(self, study: Study) -> None:
        if len(study.directions) > 1:
            raise ValueError(
                f"`AdditiveSampler has one objective` must hold, but the study has {len(study.directions)}: use "
                "optuna.samplers.TPESampler or NSGAIISampler."
            )
        storage: Any = study._storage
        if self._study is None or self._study[0] is not storage or self._study[1] != study._study_id:
            self._forget()
            self._study = storage, study._study_id

    def _joint(self, study: Study, trial: FrozenTrial, space: Mapping[str, Any]) -> dict[str, Any]:
        if not space:
            return {}
        names = tuple(sorted(space))
        model = self._models.get(names)
        if model is None or any(model.trials.distributions[name] != space[name] for name in names):
            model = Model(Trials(space, study.direction == StudyDirection.MAXIMIZE), self._startup)
            self._models[names] = model
        model.trials.read(study.get_trials(deepcopy=False), trial.number)
        rng = generator(self._seed, f"sampler/{trial.number}/{'/'.join(names)}")
        point = model.propose(rng)
        return {name: space[name].choices[level] for name, level in zip(names, point, strict=True)}


class Model:
    """The surrogate of some parameters, and the explorer that reads it."""

    def __init__(self, trials: Trials, startup: int | None) -> None:
        self.trials = trials
        self.startup = startup if startup is not None else max(STARTUP, *(s.levels for s in trials.space.slots))
        self.explorer = Additive(trials, generator(0, "sampler"))
        self.surrogate: Surrogate | None = None

    def propose(self, rng: np.random.Generator) -> tuple[int, ...]:
        """Return the point to try next."""
        trials, self.explorer.rng = self.trials, rng
        if trials.finished >= CERTAIN and trials.fresh * REFIT >= trials.finished:
            columns = self.explorer.columns
            around = self.surrogate.best if self.surrogate is not None and columns.width > WIDE else None
            self.surrogate = Surrogate.fit(trials.sums(), columns, around)
        room = self.startup - int(trials.asked.sum())
        if self.surrogate is not None and room <= 0 and len(trials.names) == 1:
            # The best other one of a few choices is hopeless too often: Thompson sampling.
            point = self.explorer._best(self.surrogate.pick(rng), None)
        else:
            point = self.explorer.propose(self.surrogate, room)
        return point or self._known(rng)

    def _known(self, rng: np.random.Generator) -> tuple[int, ...]:
        """Return the point that is believed to be best where nothing is left to learn; any before anything is known."""
        told = self.trials.told > 0
        if self.surrogate is None or not told.any():
            return tuple(int(rng.integers(slot.levels)) for slot in self.trials.space.slots)
        means = self.surrogate.means
        return self.trials.points[int(np.argmax(np.where(told[: len(means)], means, -np.inf)))]


class Groups:
    """The parameters of a study, grouped by the trials that have them, as `TPESampler(group=True)` groups them."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.distributions: dict[str, BaseDistribution] = {}
        self.seen: set[frozenset[str]] = set()
        self.read_up_to = 0

    def read(self, trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
        """Return every parameter of the finished trials."""
        unfinished = len(trials)
        for trial in trials[self.read_up_to :]:
            if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
                self._add(trial.distributions)
            elif not trial.state.is_finished():
                unfinished = min(unfinished, trial.number)
        self.read_up_to = unfinished
        return self.distributions

    def _add(self, distributions: Mapping[str, BaseDistribution]) -> None:
        self.distributions.update(distributions)
        names = frozenset(distributions)
        if names in self.seen:
            return
        self.seen.add(names)
        parts = [
            part
            for group in self.groups
            for part in ([n for n in group if n in names], [n for n in group if n not in names])
        ]
        known = {name for group in self.groups for name in group}
        parts.append(sorted(names - known))
        self.groups = [part for part in parts if part]

    def split(self, names: Sequence[str]) -> list[list[str]]:
        """Return the groups of `names`; those that no trial has yet are one more."""
        groups = [[name for name in group if name in names] for group in self.groups]
        known = {name for group in groups for name in group}
        return [group for group in [*groups, sorted(set(names) - known)] if group]


def _is_choice(distribution: BaseDistribution) -> bool:
    return isinstance(distribution, CategoricalDistribution)

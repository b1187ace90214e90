"""OptunaExplorer: one of Optuna's samplers proposes the points, told in the order asked."""

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal

import optuna

from ..signatures.errors import RequestError
from .rng import integer
from .scores import Scores
from .space import Point, SearchSpace
from .study import quiet
from .surrogate import Surrogate

SamplerName = Literal["additive", "tpe", "random", "gp"]

OPENING = 10
"""Examples on which a new point is scored before the study is told."""

REPEATS = 50
"""Proposals in a row that can't be asked for, after which the sampler is said to repeat itself."""


def check_sampler(name: SamplerName) -> None:
    """Raise RequestError where a sampler can't be had."""
    if name == "gp" and find_spec("torch") is None:
        raise RequestError(
            "the sampler gp needs torch, which isn't installed: run `pip install torch`, or take additive."
        )


class OptunaExplorer:
    """Asks an Optuna study for points; each is scored on a few blocks before the next."""

    designs = False

    def __init__(self, name: SamplerName, scores: Scores, seed: int) -> None:
        self.name, self.scores = name, scores
        self.number = integer(seed, "search.sampler") % 2**32
        self.waiting: dict[int, list[Any]] = {}
        self.opening: Point | None = None
        self._begin(scores.space)

    def _begin(self, space: SearchSpace) -> None:
        self.space = space
        self.distributions: dict[str, Any] = {
            slot.name: optuna.distributions.CategoricalDistribution(list(range(slot.levels))) for slot in space.slots
        }
        kinds: dict[str, Callable[[], Any]] = {
            "tpe": lambda: optuna.samplers.TPESampler(seed=self.number, multivariate=True, constant_liar=True),
            "random": lambda: optuna.samplers.RandomSampler(seed=self.number),
            "gp": lambda: optuna.samplers.GPSampler(seed=self.number),
        }
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # multivariate TPE says so each time
            self.study = optuna.create_study(direction="maximize", sampler=kinds[self.name]())

    @property
    def _blocks(self) -> int:
        return min(self.scores.blocks, -(-OPENING // self.scores.size))

    def propose(self, surrogate: Surrogate | None, room: int) -> Point | None:
        """Return the point that is being opened, else the study's next; a known one is scored on a block more."""
        if self.opening is not None and self.scores.depth(self.opening) < self._blocks:
            return self.opening
        self.opening = None
        with quiet():
            for _ in range(REPEATS):
                trial = self.study.ask(self.distributions)
                point = tuple(int(trial.params[slot.name]) for slot in self.space.slots)
                if not self.space.allows(point) or not self.scores.cost(point):
                    self._answer(trial, self.scores.rows.get(point))
                    continue
                self.opening = point
                self.waiting.setdefault(self.scores.row(point), []).append(trial)
                return point
        return None

    def told(self, row: int) -> None:
        """Tell the study of a point when enough of it was told."""
        if self.scores.told[row] >= self._blocks:
            with quiet():
                for trial in self.waiting.pop(row, []):
                    self._answer(trial, row)

    def _answer(self, trial: Any, row: int | None) -> None:
        if row is not None and self.scores.told[row]:
            self.study.tell(trial, self.scores.mean(row))
        else:
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)

    def grow(self, space: SearchSpace) -> None:
        """Begin a study of the grown space with all that was told; what is in flight is known later by its score."""
        self._begin(space)
        self.waiting, self.opening = {}, None
        with quiet():
            self.study.add_trials(
                [
                    optuna.trial.create_trial(
                        value=self.scores.mean(row),
                        params=dict(zip(self.distributions, point, strict=True)),
                        distributions=self.distributions,
                    )
                    for row, point in enumerate(self.scores.points)
                    if self.scores.told[row]
                ]
            )

"""record(): the search as an Optuna study, one trial for each point."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna

from .rng import integer
from .scores import Scores
from .space import Point


@dataclass(frozen=True)
class Trial:
    """One point that was scored: its mean on `n` examples and the mean paired difference to the baseline there."""

    point: Point
    n: int
    mean: float
    difference: float


def record(scores: Scores, home: int | None, seed: int) -> tuple[tuple[Trial, ...], Any]:
    """Return the points that were scored and their study.

    A trial's intermediate values are the means after each block, by the number of examples; it is pruned where others
    were scored on more blocks, complete where none was.
    """
    rows = [row for row in range(len(scores.points)) if scores.told[row]]
    deepest = max((int(scores.told[row]) for row in rows), default=0)
    distributions: dict[str, Any] = {
        slot.name: optuna.distributions.CategoricalDistribution(list(range(slot.levels))) for slot in scores.space.slots
    }
    trials, frozen = [], []
    for row in rows:
        values = scores.values(row)
        ends = scores.edges[1 : int(scores.told[row]) + 1]
        means = np.cumsum(values)[np.array(ends) - 1] / np.array(ends)
        difference = scores.paired(row, home) if home is not None else np.zeros(0)
        point = scores.points[row]
        trials.append(Trial(point, len(values), float(means[-1]), float(difference.mean()) if len(difference) else 0.0))
        state = optuna.trial.TrialState.COMPLETE if scores.told[row] == deepest else optuna.trial.TrialState.PRUNED
        frozen.append(
            optuna.trial.create_trial(
                state=state,
                value=float(means[-1]),
                params=dict(zip(distributions, point, strict=True)),
                distributions=distributions,
                intermediate_values={int(n): float(mean) for n, mean in zip(ends, means, strict=True)},
            )
        )
    with quiet():
        study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=integer(seed, "search.study") % 2**32)
        )
        study.add_trials(frozen)
    return tuple(trials), study


class quiet:  # noqa: N801
    """Optuna without its line for each study and trial."""

    def __enter__(self) -> None:
        self.verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(max(self.verbosity, optuna.logging.WARNING))

    def __exit__(self, *error: object) -> None:
        optuna.logging.set_verbosity(self.verbosity)

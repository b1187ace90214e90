"""record(): the search as an Optuna study, one trial for each point."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.study import Study
from optuna.trial import TrialState

from .rng import integer
from .scores import Scores
from .space import Point, SearchSpace

if TYPE_CHECKING:
    from .contract import SearchResult


@dataclass(frozen=True)
class Trial:
    """One point that was scored: its mean on `n` examples and the mean paired difference to the baseline there."""

    point: Point
    n: int
    mean: float
    difference: float


def trials(scores: Scores, home: Point) -> tuple[Trial, ...]:
    """Return the points that were scored, in the order in which they were first asked for."""
    base, found = scores.rows.get(home), []
    for row in range(len(scores.points)):
        if scores.told[row]:
            paired = scores.paired(row, base) if base is not None else np.zeros(0)
            difference = float(paired.mean()) if len(paired) else 0.0
            found.append(Trial(scores.points[row], len(scores.values(row)), scores.mean(row), difference))
    return tuple(found)


def record(scores: Scores, home: Point, best: Point, beliefs: Sequence[float], seed: int) -> Study:
    """Return the study of the points that were scored.

    Args:
        scores: What was told.
        home: The baseline.
        best: The point that is believed to be best.
        beliefs: What is believed of each row's difference to the baseline.
        seed: Of the study's sampler, for whoever goes on with it.

    A trial's intermediate values are the means after each block, by the number of examples, its value is the last of
    them. It is complete where it was scored on as many examples as both `home` and `best` were, pruned where the search
    gave it up before. Its user attributes are `examples`, their number, `difference`, the mean paired difference to the
    baseline on them, and `estimate`, what is believed of that difference.
    """
    choices = distributions(scores.space)
    pair = [int(scores.told[scores.rows[point]]) for point in (home, best) if point in scores.rows]
    enough = min((depth for depth in pair if depth), default=0)
    frozen = []
    for trial in trials(scores, home):
        row = scores.rows[trial.point]
        values = scores.values(row)
        ends = np.array(scores.edges[1 : int(scores.told[row]) + 1])
        means = np.append((np.cumsum(values)[ends - 1] / ends)[:-1], trial.mean)
        frozen.append(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE if scores.told[row] >= enough else TrialState.PRUNED,
                value=trial.mean,
                params=dict(zip(choices, trial.point, strict=True)),
                distributions=choices,
                intermediate_values={int(n): float(mean) for n, mean in zip(ends, means, strict=True)},
                user_attrs={
                    "examples": trial.n,
                    "difference": trial.difference,
                    "estimate": float(beliefs[row]) if row < len(beliefs) else 0.0,
                },
            )
        )
    with quiet():
        study = optuna.create_study(
            study_name="search",
            direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=integer(seed, "search.study") % 2**32),
        )
        study.add_trials(frozen)
    return study


def blank(result: "SearchResult") -> Study:
    """Return a study without trials."""
    with quiet():
        return optuna.create_study(study_name="search", direction="maximize")


def annotate(study: Study, result: "SearchResult", home: Point) -> None:
    """Write on the study of a result what was concluded.

    Its user attributes name the numbers of the trials `baseline`, `best` and `shipped`, and hold `estimate`,
    `interval`, `probability`, `evaluations` and `reason` as SearchResult has them.
    """
    numbers = {trial.point: number for number, trial in enumerate(result.trials)}
    found = {
        **{name: numbers.get(point) for name, point in
           (("baseline", home), ("best", result.best), ("shipped", result.shipped))},
        "estimate": result.estimate,
        "interval": list(result.interval),
        "probability": result.probability,
        "evaluations": result.spent,
        "reason": result.reason,
    }  # fmt: skip
    for name, value in found.items():
        study.set_user_attr(name, value)


def estimates(study: Any, name: str | None = None, storage: Any = None) -> Any:
    """Return a study of a search in which every trial is complete, and its value is what is believed of it.

    The value is the posterior mean of the difference to the baseline. Most points of a search are pruned after a few
    examples, and Optuna's plots of parameters and importances leave pruned trials out; here they all are comparable.
    """
    with quiet():
        believed = optuna.create_study(
            study_name=name or f"{study.study_name}: estimates", storage=storage, direction="maximize"
        )
    believed.add_trials(
        [
            optuna.trial.create_trial(
                value=trial.user_attrs["estimate"],
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={**trial.user_attrs, "mean": trial.value},
            )
            for trial in study.get_trials(deepcopy=False)
        ]
    )
    return believed


def distributions(space: SearchSpace) -> dict[str, Any]:
    """Return the distribution of each slot: its levels, as they are when nothing grows any more."""
    return {slot.name: optuna.distributions.CategoricalDistribution(list(range(slot.levels))) for slot in space.slots}


class quiet:  # noqa: N801
    """Optuna without its line for each study and trial."""

    def __enter__(self) -> None:
        self.verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(max(self.verbosity, optuna.logging.WARNING))

    def __exit__(self, *error: object) -> None:
        optuna.logging.set_verbosity(self.verbosity)

"""Trials: what the trials of an Optuna study say of some of its categorical parameters, as the explorer reads it.

A row is a point, a block is a trial at it. Trials share no examples, so that the surrogate gets one common mean instead
of a difficulty for each block, and the noise is what trials at the same point differ by. A trial that was pruned counts
as what trials that weren't had at the same step, moved by what these gained afterwards, and weighs less the more that
varies.
"""

import json
import math
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import CategoricalDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from .scores import Floats, Ints, Scores, Sums
from .space import Point, SearchSpace, Slot

NOISE = 0.02
"""The noise that is expected before any point was tried twice, in units of the values' variance; it counts as one
repeat. Small, since noise shows itself when the best point is tried again."""

TRIES = 64
"""How often a point may be tried where all that values differ by is noise."""

FAR = 3.0
"""Values that are worse than the median by so many times what the best is better say no more than that."""

SHARED = "vitrify:given"
"""Where a running trial's parameters stand among its system attributes, in parts."""

PART = 2045
"""The longest system attribute that every storage of Optuna takes."""

HUGE = 2.0**400
"""Values beyond it would overflow when they are squared."""


@dataclass(frozen=True, eq=False)
class Weighted(Sums):
    """Sums of rows without blocks, each with a weight of its own.

    Attributes:
        weights: How many trials each row counts as.
    """

    weights: Floats

    @property
    def counts(self) -> Floats:
        """How many trials each row counts as."""
        return self.weights


class Trials(Scores):
    """The finished and the running trials of a study that have all of some categorical parameters.

    Attributes:
        names: The parameters, sorted.
        finished: How many finished trials count.
        fresh: How many of them came since the last `sums`.
    """

    def __init__(self, distributions: Mapping[str, CategoricalDistribution], maximize: bool) -> None:
        self.names = sorted(distributions)
        self.distributions = {name: distributions[name] for name in self.names}
        self.sign = 1.0 if maximize else -1.0
        self._lost = np.zeros(64, dtype=np.int64)
        self.finished = self.fresh = 0
        self._next, self._late = 0, set[int]()  # every trial before `_next` was read, but for those in `_late`
        self._rows, self._steps, self._results = array("q"), array("q"), array("d")
        self._gaps: dict[int, list[float]] = {}
        self._tries, self._others = 1, False
        super().__init__(SearchSpace([Slot(name, len(distributions[name].choices)) for name in self.names]), (), 1)

    @property
    def blocks(self) -> int:
        """How often a point may be tried: once or twice where values have no noise."""
        return self._tries

    def read(self, trials: Sequence[FrozenTrial], now: int) -> None:
        """Take in the trials of the study, in their order, but for the one whose number is `now`."""
        late = [number for number in sorted(self._late) if number < len(trials)]
        pending = []
        for number in [*late, *range(self._next, len(trials))]:
            trial = trials[number]
            if trial.state.is_finished():
                self._late.discard(number)
                self._finish(trial)
            else:
                self._late.add(number)
                if trial.state == TrialState.RUNNING and trial.number != now:
                    pending.append(trial)
        self._next = max(self._next, len(trials))
        self._asked[: len(self.points)] = self._told[: len(self.points)] + self._lost[: len(self.points)]
        for trial in pending:
            point = self._point({**shared(trial), **trial.params})
            if point is not None:
                row = self.row(point)
                self._asked[row] += 1 if self._told[row] else 2  # not again before the first answer is there
        while len(self.edges) <= int(self.asked.max(initial=0)):
            self.edges.append(len(self.edges))

    def row(self, point: Point) -> int:
        """Return the row of a point, a new one where it was never tried."""
        row = super().row(point)
        if len(self._lost) < len(self._asked):
            self._lost = np.pad(self._lost, (0, len(self._asked) - len(self._lost)))
        return row

    def _point(self, params: Mapping[str, Any]) -> Point | None:
        try:
            return tuple(int(self.distributions[name].to_internal_repr(params[name])) for name in self.names)
        except (KeyError, ValueError):  # a parameter is missing, or has a choice that isn't one of ours
            return None

    def _finish(self, trial: FrozenTrial) -> None:
        if any(trial.distributions.get(name) != own for name, own in self.distributions.items()):
            return
        point = self._point(trial.params)
        if point is None:
            return
        row = self.row(point)
        step, value = -1, trial.value if trial.state == TrialState.COMPLETE else None
        if trial.state == TrialState.PRUNED and trial.last_step is not None:
            step, value = trial.last_step, trial.intermediate_values[trial.last_step]
        if value is None or math.isnan(value):
            self._lost[row] += 1  # a point that fails again and again isn't asked for for ever
            return
        if step < 0:
            for at, before in trial.intermediate_values.items():
                gap = self.sign * (value - before)
                if abs(gap) < HUGE:
                    sums = self._gaps.setdefault(at, [0.0, 0.0, 0.0])
                    sums[0], sums[1], sums[2] = sums[0] + 1, sums[1] + gap, sums[2] + gap * gap
        varying = sum(not distribution.single() for distribution in trial.distributions.values())
        self._others = self._others or varying > len(self.names)
        self._told[row] += 1
        self._rows.append(row)
        self._steps.append(step)
        self._results.append(-math.inf if violated(trial) else self.sign * value)
        self.finished += 1
        self.fresh += 1

    def sums(self) -> Sums:
        """Return the statistics of what finished, larger being better."""
        self.fresh = 0
        rows, count = np.array(self._rows, dtype=np.int64), len(self.points)
        values, extra = self._comparable()
        values = bounded(values)
        spread = float(values.var()) if len(values) else 0.0
        scale = 6 * math.sqrt(spread) or 1.0
        noise = self._noise(rows, values, extra == 0, spread or 1.0)
        # What a point comes to while other parameters vary is never known for good.
        self._tries = sys.maxsize if self._others else 1 + int(TRIES * noise / (spread or 1.0))
        weights = noise / (noise + extra)
        centre = float(np.average(values, weights=weights)) if len(values) else 0.0
        return Weighted(
            levels=self.levels.copy(),
            blocks=np.zeros(count, dtype=np.int64),
            totals=_summed(rows, weights * (values - centre), count),
            block_totals=np.zeros(0),
            sizes=np.zeros(0),
            variance=noise,
            scale=scale,
            weights=_summed(rows, weights, count),
        )

    def _comparable(self) -> tuple[Floats, Floats]:
        """Return what each trial is believed to come to, and the variance of what it lacks."""
        values, extra = np.array(self._results), np.zeros(len(self._results))
        steps = np.array(self._steps, dtype=np.int64)
        if (steps >= 0).all():  # nothing ever went on to the end: that is what there is to compare
            return values, extra
        for step in np.unique(steps[steps >= 0]):
            pruned = steps == step
            known = [at for at in self._gaps if at <= step]
            n, total, squares = self._gaps[max(known)] if known else (0.0, 0.0, 0.0)
            finite = values[np.abs(values) < HUGE]
            # One trial more, that went on as they did on the average and varied as values do.
            values[pruned] += total / n if n else 0.0
            extra[pruned] = (max(0.0, squares - total**2 / max(1.0, n)) + float(finite.var())) / max(1.0, n)
        return values, extra

    def _noise(self, rows: Ints, values: Floats, full: Any, spread: float) -> float:
        """Return the pooled variance of trials at the same point, a little prior with it."""
        rows, values = rows[full], values[full]
        count = len(self.points)
        counts = _summed(rows, np.ones(len(rows)), count)
        means = _summed(rows, values, count) / np.maximum(counts, 1)
        within = float(((values - means[rows]) ** 2).sum())
        return (within + NOISE * spread) / (float(np.maximum(counts - 1, 0).sum()) + 1)


def _summed(rows: Ints, values: Floats, count: int) -> Floats:
    sums: Floats = np.bincount(rows, values, count).astype(np.float64)
    return sums


def bounded(values: Floats) -> Floats:
    """Return values without infinities, and none much farther below the median than the best is above it."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return np.sign(values)
    if abs(finite).max() > HUGE:  # a power of two, so that nothing is rounded
        values, finite = values * HUGE**-2, finite * HUGE**-2
    best, middle = float(finite.max()), float(np.median(finite))
    low = max(float(finite.min()), middle - FAR * (best - middle)) if best > middle else float(finite.min())
    step = best - low or 1.0
    if (values == -np.inf).any() and low == best:
        low -= step
    return np.clip(values, low, best + step if (values == np.inf).any() else best)


def violated(trial: FrozenTrial) -> bool:
    """Say whether a trial violates a constraint: then nothing is worse."""
    known = getattr(trial, "constraints", None) or trial.system_attrs.get("constraints") or ()
    limits: Iterable[float] = known.values() if isinstance(known, Mapping) else known
    return any(limit > 0 for limit in limits)


def share(study: Study, trial: FrozenTrial, params: Mapping[str, object]) -> None:
    """Write down what a running trial was given, for whoever samples before it has asked for all of it."""
    text = json.dumps(params)
    for part, first in enumerate(range(0, len(text), PART)):
        study._storage.set_trial_system_attr(trial._trial_id, f"{SHARED}:{part}", text[first : first + PART])


def shared(trial: FrozenTrial) -> dict[str, object]:
    """Return what a running trial was given, or nothing."""
    parts: list[str] = []
    while (part := trial.system_attrs.get(f"{SHARED}:{len(parts)}")) is not None:
        parts.append(part)
    try:
        known: dict[str, object] = json.loads("".join(parts) or "{}")
    except ValueError:  # another process is about to write the rest
        return {}
    return known

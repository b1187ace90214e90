"""Renewal: what is known of every level when the space may grow, for whoever writes new ones.

A level is dead where it beats the favourite of its slot with a probability below 5 %. A slot is dead where nothing more
is to be had from its levels: knowing which of them is best would gain less than `WORTH` over the favourite. That is so
where one level has won, and where all do the same. Both by the levels' effects alone: what a level does only together
with others is in no effect, so a dead level may still stand in the best point.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .explore import fitting_columns
from .scores import Floats, Scores
from .space import Point, SearchSpace
from .study import Trial, trials
from .surrogate import Surrogate

DEAD = 0.05
"""The probability of beating its slot's favourite below which a level is dead."""

WORTH = 0.01
"""The gain, in units of the scores' scale, that a living slot is expected to hold at least."""

DRAWS = 400
"""Worlds drawn from the posterior."""


@dataclass(frozen=True)
class LevelBelief:
    """What is believed of one level.

    Attributes:
        level: Its number.
        n: Metric calls told of points that have it.
        effect: The posterior mean of its effect, less that of the baseline's level in this slot.
        sd: The posterior standard deviation of that difference; 0 for the baseline's own level.
        chance: The probability that it beats the level of which most is expected; 1/2 for that one.
        dead: Whether that is below 5 %.
    """

    level: int
    n: int
    effect: float
    sd: float
    chance: float
    dead: bool


@dataclass(frozen=True)
class SlotBelief:
    """What is believed of one slot.

    Attributes:
        name: The slot.
        levels: Its levels, in order.
        hope: The expected gain from knowing which is best, over the favourite; infinite before anything was told.
        dead: Whether that is too little to be worth having.
    """

    name: str
    levels: tuple[LevelBelief, ...]
    hope: float
    dead: bool


@dataclass(frozen=True)
class RenewalView:
    """The search so far: what was told, in the order asked. Nothing in it changes.

    That is a window behind what was asked: while the balanced design is asked for, which is all asked at once, nothing
    was told yet. Who writes levels from what failed is best called at half of the blocks.

    Attributes:
        space: The points to choose from.
        trials: The points that were scored: n, mean and mean paired difference to the baseline.
        best: The point of which most is expected among those; the baseline before anything was told.
        baseline: The point to beat.
        slots: What is believed of every slot.
        spent: Metric calls asked for.
        budget: Metric calls in all.
    """

    space: SearchSpace
    trials: tuple[Trial, ...]
    best: Point
    baseline: Point
    slots: tuple[SlotBelief, ...]
    spent: int
    budget: int

    @property
    def dead(self) -> Mapping[str, tuple[int, ...]]:
        """The slots from whose levels nothing more is to be had, and in each the levels that are dead."""
        return {
            slot.name: tuple(level.level for level in slot.levels if level.dead) for slot in self.slots if slot.dead
        }


def view(scores: Scores, home: Point, budget: int, rng: np.random.Generator) -> RenewalView:
    """Return what is known now; `rng` draws from the posterior."""
    told = [row for row in range(len(scores.points)) if scores.told[row]]
    best = home
    surrogate = Surrogate.fit(scores.sums(), fitting_columns(scores.space)) if len(told) > 1 else None
    if surrogate is not None:
        means = surrogate.means
        best = scores.points[max(told, key=lambda row: (means[row], -row))]
    return RenewalView(
        scores.space, trials(scores, home), best, home, _slots(scores, home, surrogate, rng), scores.spent, budget
    )


def _slots(
    scores: Scores, home: Point, surrogate: Surrogate | None, rng: np.random.Generator
) -> tuple[SlotBelief, ...]:
    columns = fitting_columns(scores.space)
    draws = np.zeros((0, columns.width + 1))
    if surrogate is not None:
        cells = [surrogate.pick(rng) for _ in range(DRAWS)]
        draws = np.stack([cell.effects(cell.sample(rng)) for cell in cells])
    counts = np.asarray(scores.edges, dtype=np.int64)[scores.told]
    slots = []
    for place, slot in enumerate(scores.space.slots):
        n = np.bincount(scores.levels[:, place], weights=counts, minlength=slot.levels).astype(int).tolist()
        if surrogate is None:
            alike = tuple(LevelBelief(level, n[level], 0.0, 0.0, 0.5, False) for level in range(slot.levels))
            slots.append(SlotBelief(slot.name, alike, math.inf, False))
            continue
        effects: Floats = draws[:, columns.of[place]]
        favourite = int(effects.mean(axis=0).argmax())
        surplus = effects - effects[:, [favourite]]
        chance = np.where(
            np.arange(slot.levels) == favourite, 0.5, (surplus > 0).mean(axis=0) + (surplus == 0).mean(axis=0) / 2
        )
        hope = float(surplus.max(axis=1).mean())
        effects = effects - effects[:, [home[place]]]
        levels = tuple(
            LevelBelief(level, n[level], float(mean), float(sd), float(better), bool(better < DEAD))
            for level, (mean, sd, better) in enumerate(
                zip(effects.mean(axis=0), effects.std(axis=0), chance, strict=True)
            )
        )
        slots.append(SlotBelief(slot.name, levels, hope, hope < WORTH * surrogate.scale))
    return tuple(slots)

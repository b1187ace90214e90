"""Worlds: synthetic spaces whose truth is known. None of their figures is a claim about real models.

    score(point, example) = 1 where difficulty[example] + logit(point) + noise(point, example) > 0
    logit(point) = sum of the levels' effects + pairs of neighbouring slots + the point's own residual

Difficulty is normal, the noise logistic; a graded world gives the logistic function of the same sum. Each predictor is
a slot of instructions and a slot of demonstrations, so that M predictors span 72^M points. The truth of a point is its
mean over all examples that could be drawn, integrated and not sampled.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.special import expit, ndtri
from vitrify.compiler.space import Point, SearchSpace, Slot

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
Effort = Literal["light", "medium"]

INSTRUCTIONS, DEMOS = 6, 12
"""Levels of a predictor's two slots."""

ROWS: dict[Effort, int] = {"light": 100, "medium": 300}
"""Rows of the select set: those that `dspy.MIPROv2` takes in its auto mode."""

DIFFICULTY, BASE = 2.0, 0.6
"""Standard deviations, in logits, of an example's difficulty and of a world's mean difficulty."""

STEEPNESS = 1.0
"""Of a graded score, per logit."""

BEAM = 4096
"""Points that the search for the best one, which knows the truth, keeps at each slot."""


@dataclass(frozen=True)
class Kind:
    """What a world is made of: standard deviations in logits.

    Attributes:
        effect: Of a level of demonstrations; instructions have .7 of it.
        pair: Of a pair of levels of neighbouring slots.
        own: Of a point's own residual.
        noise: The scale of the logistic noise of a point on an example.
        coupled: No additivity: slots come in pairs, and each pair of levels is one draw.
        graded: Scores between 0 and 1.
        up: How many standard deviations above the mean point the baseline is made, or None as it comes.
    """

    effect: float = 0.3
    pair: float = 0.08
    own: float = 0.12
    noise: float = 0.6
    coupled: bool = False
    graded: bool = False
    up: float | None = None


KINDS: dict[str, Kind] = {
    "default": Kind(),
    "small": Kind(effect=0.135, pair=0.04, own=0.08),
    "interaction": Kind(pair=0.2, own=0.15),
    "coupled": Kind(effect=0.36, pair=0.0, own=0.15, coupled=True),
    "graded": Kind(graded=True),
    "noisy": Kind(noise=1.5),
    "null": Kind(effect=0.0, pair=0.0, own=0.0),
    "good1": Kind(up=1.0),
    "good2": Kind(up=2.0),
}


@functools.lru_cache(maxsize=16)
def curve(noise: float, graded: bool) -> Any:
    """Return the population's mean score as a function of logit plus mean difficulty, by quadrature."""
    logits = np.linspace(-10.0, 10.0, 401)
    difficulty = np.linspace(-8 * DIFFICULTY, 8 * DIFFICULTY, 1601)
    weight = np.exp(-0.5 * (difficulty / DIFFICULTY) ** 2)
    weight /= weight.sum()
    if not graded:
        return CubicSpline(logits, expit((logits[:, None] + difficulty) / noise) @ weight)
    sums = np.linspace(-30.0, 30.0, 1201)
    draws = np.linspace(-30.0, 30.0, 1201) * noise
    density = expit(draws / noise) * expit(-draws / noise)
    inner = CubicSpline(sums, expit(STEEPNESS * (sums[:, None] + draws)) @ (density / density.sum()))
    return CubicSpline(logits, inner(logits[:, None] + difficulty) @ weight)


def normals(seed: int, levels: Ints) -> Floats:
    """Return a standard normal for each point, [points]: the same for the same point, whoever asks, in any order."""
    mixed = np.full(len(levels), (seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**64, dtype=np.uint64)
    for slot in range(levels.shape[1]):  # splitmix64 (Steele, Lea, Flood, 2014), fed one level at a time
        mixed = mixed + (levels[:, slot].astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    drawn: Floats = ndtri(((mixed >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53)
    return drawn


def normal(seed: int, point: Point) -> float:
    """Return the same number as `normals` for one point, which is asked for alone again and again."""
    mixed = (seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**64
    for level in point:
        mixed = (mixed + (level + 1) * 0x9E3779B97F4A7C15) % 2**64
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
        mixed = mixed ^ (mixed >> 31)
    return float(ndtri(((mixed >> 11) + 0.5) / 2.0**53))


class World:
    """One world: an oracle whose truth is known.

    Args:
        kind: One of `KINDS`.
        predictors: How many.
        effort: Whose rows the select set has.
        seed: Of everything; both efforts show the same world.

    Attributes:
        space: The points.
        home: The baseline.
        examples: Rows of the select set.
    """

    def __init__(self, kind: str, predictors: int, effort: Effort, seed: int) -> None:
        self.kind, self.seed, self.predictors = KINDS[kind], seed, predictors
        sizes = [INSTRUCTIONS, DEMOS] * predictors
        self.space = SearchSpace([Slot(f"{i // 2}.{('instruction', 'demos')[i % 2]}", n) for i, n in enumerate(sizes)])
        self.home: Point = self.space.baseline
        self.examples = ROWS[effort]
        rng = np.random.default_rng([seed, 77])
        self._base = float(rng.normal(0, BASE))
        self._difficulty = rng.normal(0, DIFFICULTY, max(ROWS.values()))[: self.examples] + self._base
        rng = np.random.default_rng([seed, 78])
        scale = 0.0 if self.kind.coupled else self.kind.effect
        self._effects = [rng.normal(0, 1, n) * scale * (1.0 if i % 2 else 0.7) for i, n in enumerate(sizes)]
        self._pairs = self._tables(sizes, rng)
        if self.kind.up is not None:
            self._lift(self.kind.up)
        self._known: dict[Point, Floats] = {}

    def _tables(self, sizes: Sequence[int], rng: np.random.Generator) -> list[tuple[int, int, Floats]]:
        """Return (slot, slot, value of each pair of their levels): neighbours, or couples in a coupled world.

        Couples are the two slots of a predictor in worlds of even seed, in those of odd seed a predictor's
        demonstrations and the next one's instructions, the last one's next being the first.
        """
        slots, sd = len(sizes), self.kind.pair
        couples = [(i, i + 1) for i in range(slots - 1)]
        if self.kind.coupled:
            couples = [(i, (i + 1) % slots) for i in range(self.seed % 2, slots, 2)]
            sd = self.kind.effect
        return [(one, other, rng.normal(0, 1, (sizes[one], sizes[other])) * sd) for one, other in couples]

    def _lift(self, up: float) -> None:
        """Move the baseline to `up` standard deviations above the mean point, by the effects of its levels."""
        main = self.main_effects()
        shares = np.array([effects.var() for effects in main])
        spread = float(np.sqrt(shares.sum() + (len(main) - 1) * self.kind.pair**2 + self.kind.own**2))
        goal = sum(float(effects.mean()) for effects in main) + up * spread
        missing = goal - self.logit(self.home)
        for effects, share in zip(self._effects, shares / shares.sum(), strict=True):
            effects[0] += missing * float(share)

    def main_effects(self) -> list[Floats]:
        """Return the effect of each slot's levels, pairs averaged over the other slot's levels."""
        main = [effects.copy() for effects in self._effects]
        for one, other, table in self._pairs:
            main[one] += table.mean(axis=1)
            main[other] += table.mean(axis=0)
        return main

    def logits(self, levels: Ints) -> Floats:
        """Return the logits of points, [points, slots] to [points]."""
        values = self.kind.own * normals(self.seed, levels) if self.kind.own else np.zeros(len(levels))
        for slot, effects in enumerate(self._effects):
            values = values + effects[levels[:, slot]]
        for one, other, table in self._pairs:
            values = values + table[levels[:, one], levels[:, other]]
        return values

    def logit(self, point: Point) -> float:
        """Return the logit of one point."""
        value = self.kind.own * normal(self.seed, point) if self.kind.own else 0.0
        value += sum(float(effects[level]) for effects, level in zip(self._effects, point, strict=True))
        return value + sum(float(table[point[one], point[other]]) for one, other, table in self._pairs)

    def truth(self, point: Point) -> float:
        """Return a point's mean over all examples that could be drawn."""
        return float(curve(self.kind.noise, self.kind.graded)(self.logit(point) + self._base))

    def score(self, point: Point, examples: Sequence[int]) -> Floats:
        """Return a point's scores on rows; asked again, the same."""
        known = self._known.get(point)
        if known is None:
            rng = np.random.default_rng([self.seed, 5, *point])
            noise = rng.logistic(0, self.kind.noise, max(ROWS.values()))[: self.examples]
            sums = self._difficulty + self.logit(point) + noise
            known = expit(STEEPNESS * sums) if self.kind.graded else (sums > 0).astype(np.float64)
            self._known[point] = known
        drawn: Floats = known[list(examples)]
        return drawn

    def floor(self) -> Point:
        """Return the choice of an oracle that knows every main effect and nothing else."""
        return tuple(int(np.argmax(effects)) for effects in self.main_effects())

    def best(self) -> Point:
        """Return the best point that a search with the truth finds: the best of all up to two predictors.

        Beyond, a beam over the slots by effects and pairs, then steps in two slots at a time on the truth: 72^8 points
        can't be listed, so that regrets there are lower bounds.
        """
        sizes = [slot.levels for slot in self.space.slots]
        beam = np.zeros((1, 0), dtype=np.int64)
        for slot, size in enumerate(sizes):
            beam = np.concatenate([np.repeat(beam, size, axis=0), np.tile(np.arange(size), len(beam))[:, None]], axis=1)
            if len(beam) > BEAM and self.space.size > 72**2:
                values = self._effects[slot][beam[:, slot]] + self._partial(beam)
                beam = beam[np.argpartition(-values, BEAM)[:BEAM]]
        values = self.logits(beam)
        best, value = beam[int(np.argmax(values))], float(values.max())
        while self.space.size > 72**2:
            around = self._around(best)
            values = self.logits(around)
            if float(values.max()) <= value:
                break
            best, value = around[int(np.argmax(values))], float(values.max())
        return tuple(int(level) for level in best)

    def _partial(self, beam: Ints) -> Floats:
        """Return what effects and pairs of the slots so far give, the last slot's own effect apart."""
        width = beam.shape[1]
        values = np.zeros(len(beam))
        for slot in range(width - 1):
            values += self._effects[slot][beam[:, slot]]
        for one, other, table in self._pairs:
            if max(one, other) < width:
                values += table[beam[:, one], beam[:, other]]
        return values

    def _around(self, point: Ints) -> Ints:
        """Return every point that differs in one or two slots."""
        sizes = [slot.levels for slot in self.space.slots]
        found = []
        for one in range(len(sizes)):
            for other in range(one + 1, len(sizes)):
                pairs = np.repeat(point[None, :], sizes[one] * sizes[other], axis=0)
                pairs[:, one] = np.repeat(np.arange(sizes[one]), sizes[other])
                pairs[:, other] = np.tile(np.arange(sizes[other]), sizes[one])
                found.append(pairs)
        return np.concatenate(found)

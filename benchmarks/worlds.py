"""Synthetic worlds for the search: what a table of outcomes would look like, with the truth known.

    python benchmarks/worlds.py --worlds 40

Logistic in the effects of slots, a residual of each point, the difficulty of each example and idiosyncratic noise. The
truth of a point is its mean over all examples that could be drawn. It has no rivals yet.
"""

import argparse
import functools
import os
from collections.abc import Sequence
from concurrent.futures import Future
from multiprocessing import get_context
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from vitrify.compiler.search import Block, search
from vitrify.compiler.space import Point, SearchSpace, Slot

Floats = np.ndarray[Any, np.dtype[np.float64]]

INSTRUCTIONS, DEMOS = 6, 12
"""Levels of a predictor's two slots."""

EFFECT, OWN, DIFFICULTY, NOISE = 0.3, 0.15, 2.0, 0.6
"""Standard deviations, in logits, of a level's effect, a point's residual and an example's difficulty; and the scale of
the logistic noise of a point on an example."""

KINDS = ("default", "null", "small", "interaction", "good baseline")


@functools.lru_cache
def curve() -> tuple[Floats, Floats]:
    """Return logits and the mean score at each, over examples of every difficulty."""
    logits = np.linspace(-9.0, 9.0, 181)
    difficulty = np.random.default_rng(5).normal(0, DIFFICULTY, 4000)
    return logits, (1 / (1 + np.exp(-(logits[:, None] + difficulty[None, :]) / NOISE))).mean(axis=1)


class World:
    """One world: an oracle whose truth is known.

    Args:
        predictors: Each has a slot of instructions and a slot of demonstrations.
        seed: Of everything.
        kind: One of `KINDS`.
        examples: Rows of the select set.
    """

    def __init__(self, predictors: int, seed: int, kind: str = "default", examples: int = 160) -> None:
        rng = np.random.default_rng([seed, 77])
        scale = {"null": 0.0, "small": 0.45}.get(kind, 1.0)
        self._own = {"null": 0.0, "small": 0.6 * OWN, "interaction": 0.6 * EFFECT}.get(kind, OWN)
        self._seed = seed
        sizes = [INSTRUCTIONS, DEMOS] * predictors
        self.space = SearchSpace([Slot(f"slot{index}", size) for index, size in enumerate(sizes)])
        self._effects = [
            rng.normal(0, scale * EFFECT * (1.0 if index % 2 else 0.7), size) for index, size in enumerate(sizes)
        ]
        if kind == "good baseline":  # two standard deviations up
            spread = float(np.sqrt(sum(effects.var() for effects in self._effects)))
            for effects in self._effects:
                effects[0] = effects.mean() + 2 * effects.var() / spread
        self._base = float(rng.normal(0, 0.6))
        self._rows = rng.normal(0, DIFFICULTY, examples) + self._base
        self._known: dict[Point, Floats] = {}

    @property
    def examples(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    def logit(self, point: Point) -> float:
        """Return a point's own logit."""
        additive = sum(float(effects[level]) for effects, level in zip(self._effects, point, strict=True))
        return additive + self._own * float(np.random.default_rng([self._seed, 3, *point]).normal())

    def true(self, point: Point) -> float:
        """Return a point's mean over all examples that could be drawn."""
        return float(np.interp(self.logit(point) + self._base, *curve()))

    def outcomes(self, point: Point) -> Floats:
        """Return a point's scores on the rows, 0 or 1."""
        if point not in self._known:
            noise = np.random.default_rng([self._seed, 5, *point]).logistic(0, NOISE, len(self._rows))
            self._known[point] = (self._rows + self.logit(point) + noise > 0).astype(np.float64)
        return self._known[point]

    def submit(self, point: Point, examples: Sequence[int], replicate: int) -> "Future[Block]":
        """Score a point on rows."""
        future: Future[Block] = Future()
        future.set_result(Block(tuple(self.outcomes(point)[list(examples)].tolist())))
        return future


def one(asked: tuple[int, str, int, int]) -> tuple[float, float, bool]:
    """Return the true gain of the best point and of what ships, and whether the interval holds the former."""
    predictors, kind, budget, seed = asked
    world = World(predictors, seed, kind)
    found = search(world.space, world, budget=budget, seed=seed)
    home = world.true(world.space.baseline)
    best = world.true(found.best) - home
    held = found.best == world.space.baseline or found.interval[0] <= best <= found.interval[1]
    return best, world.true(found.shipped) - home, held


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=40)
    parser.add_argument("--budgets", type=int, nargs="+", default=[600, 1200, 2400])
    arguments = parser.parse_args()
    print(
        "| predictors | world | calls | best, points | ships, points | ships something worse, % | interval holds, % |"
    )
    print("|---|---|---|---|---|---|---|")
    with get_context("fork").Pool() as pool:
        for predictors, kind in [(1, "default"), (4, "default"), *((2, kind) for kind in KINDS)]:
            for budget in arguments.budgets:
                asked = [(predictors, kind, budget, seed) for seed in range(arguments.worlds)]
                found = np.array(pool.map(one, asked, chunksize=2), dtype=np.float64)
                best, ships = 100 * found[:, 0], 100 * found[:, 1]
                error = 1.96 / len(asked) ** 0.5
                print(
                    f"| {predictors} | {kind} | {budget} | {best.mean():.1f} ± {error * best.std():.1f} "
                    f"| {ships.mean():.1f} ± {error * ships.std():.1f} | {100 * (ships < -0.5).mean():.1f} "
                    f"| {100 * found[:, 2].mean():.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()

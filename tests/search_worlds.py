"""Small worlds for the search: examples of different difficulty, slots with additive effects, answers in any order."""

import hashlib
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from vitrify.compiler.search import Block
from vitrify.compiler.space import Point, SearchSpace, Slot


class World:
    """Examples of different difficulty, slots with additive effects on the log-odds; fixed by a seed."""

    def __init__(self, slots: Sequence[int], effect: float, seed: int, examples: int = 200, base: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        self.seed = seed
        self.space = SearchSpace([Slot(f"s{i}", n) for i, n in enumerate(slots)])
        self.effects = [np.concatenate([[0.0], rng.normal(0, effect, n - 1)]) for n in slots]
        self.difficulty = rng.normal(base, 1.5, examples)
        self.luck = rng.logistic(0, 1, examples)
        self.examples = examples
        self.asked: list[tuple[Point, tuple[int, ...]]] = []

    def logit(self, point: Point) -> float:
        return float(sum(e[level] for e, level in zip(self.effects, point, strict=False)))

    def outcomes(self, point: Point) -> np.ndarray:
        noise = np.random.default_rng([self.seed, *point]).normal(0, 0.5, self.examples)
        return (self.difficulty + self.logit(point) + noise + self.luck > 0).astype(float)

    def true_gain(self, point: Point) -> float:
        grid = np.random.default_rng(1).logistic(0, 1, 20_000) + np.random.default_rng(2).normal(0, 1.6, 20_000)
        centre = float(self.difficulty.mean())
        return float((grid + centre + self.logit(point) > 0).mean() - (grid + centre > 0).mean())

    def submit(self, point: Point, examples: Sequence[int], replicate: int) -> "Future[Block]":
        self.asked.append((point, tuple(examples)))
        return done(self.outcomes(point)[list(examples)])


def done(scores: Any) -> "Future[Block]":
    future: Future[Block] = Future()
    future.set_result(Block(tuple(scores)))
    return future


class Slow(World):
    """The same world, answering out of order from threads."""

    pool: ThreadPoolExecutor
    delay = 7

    def submit(self, point: Point, examples: Sequence[int], replicate: int) -> "Future[Block]":
        late = int.from_bytes(hashlib.sha256(repr((point, examples[0])).encode()).digest()[:2], "big") % self.delay

        def work() -> Block:
            threading.Event().wait(0.0004 * late)
            return Block(tuple(self.outcomes(point)[list(examples)]))

        self.asked.append((point, tuple(examples)))
        return self.pool.submit(work)

"""Rivals: who searches, all on equal levels and metered alike. Each returns the point it would ship.

    mipro       dspy.MIPROv2 as installed (mipro.py)
    tpe         Optuna's multivariate TPE on minibatches, the leaders then scored on every row
    random      random points on minibatches, the leaders then scored on every row
    bootstrap   random points on every row: the idea of dspy's BootstrapFewShotWithRandomSearch
    halving     successive halving, each point on rows of its own
    paired      successive halving, all points on the same rows: the one to fear
    ours        vitrify.compiler.search, at all, 1/2, 1/4, 1/8 of the calls

A metric call is a score that is asked of the `Counter`, asked before or not; what a rival remembers costs it nothing.
Who has calls left goes on. The figures behind the constants are in docs/search.md.
"""

import itertools
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import optuna
from mipro import mipro, quiet
from vitrify.compiler.search import search
from vitrify.compiler.space import Point, SearchSpace

Floats = np.ndarray[Any, np.dtype[np.float64]]

MINIBATCH = 20
"""Rows on which TPE and random search score a point at first: with MIPROv2's 35 both are worse."""

FINALS = 0.3
"""The share of its calls that TPE and random search keep for scoring their leaders on every row."""

LEADERS = 4
"""How many leaders those calls are for, at least."""

FIRST = 2
"""Rows of the first round of halving; each later round doubles them. More points on fewer rows: 3, 5, 8 are worse."""

SHARES = {"ours": 1, "ours/2": 2, "ours/4": 4, "ours/8": 8}
"""Our search by what its calls are divided by."""


class Task(Protocol):
    """What is searched: a world or a recorded table."""

    space: SearchSpace
    home: Point
    examples: int

    def score(self, point: Point, examples: Sequence[int]) -> Floats:
        """Return a point's scores on rows."""
        ...

    def truth(self, point: Point) -> float:
        """Return what a point is worth."""
        ...


class Overspent(Exception):
    """A rival asked for more than it may."""


class Counter:
    """A task whose metric calls are counted, and limited."""

    def __init__(self, task: Task, budget: int) -> None:
        self.task, self.budget, self.examples, self.calls = task, budget, task.examples, 0

    @property
    def left(self) -> int:
        """How many calls are left."""
        return self.budget - self.calls

    def score(self, point: Point, examples: Sequence[int]) -> Floats:
        """Return a point's scores on rows, and charge for each."""
        self.calls += len(examples)
        if self.calls > self.budget:
            raise Overspent(f"`calls <= {self.budget}` must hold, but {self.calls} were asked for.")
        return self.task.score(point, examples)


class Book:
    """What a rival knows: the rows on which each point was scored, each in an order of its own or all in the same."""

    def __init__(self, counter: Counter, rng: np.random.Generator, paired: bool) -> None:
        self.counter, self.rng = counter, rng
        self.common = rng.permutation(counter.examples) if paired else None
        self.orders: dict[Point, Any] = {}
        self.sums: dict[Point, float] = {}
        self.counts: dict[Point, int] = {}

    def extend(self, point: Point, rows: int) -> bool:
        """Score a point until it is known on so many rows; say whether it is, which the calls left may prevent."""
        known = self.counts.setdefault(point, 0)
        order = self.common
        if order is None:
            order = self.orders.get(point)
            if order is None:
                order = self.orders[point] = self.rng.permutation(self.counter.examples)
        rows = min(rows, self.counter.examples)
        last = min(rows, known + self.counter.left)
        if last > known:
            scores = self.counter.score(point, order[known:last].tolist())
            self.sums[point] = self.sums.get(point, 0.0) + float(scores.sum())
            self.counts[point] = last
        return last >= rows

    def mean(self, point: Point) -> float:
        """Return the mean of a point's scores; below every score where there is none."""
        return self.sums[point] / self.counts[point] if self.counts.get(point) else -np.inf

    def choose(self) -> Point:
        """Return the best mean among the points that are known on the most rows."""
        most = max(self.counts.values())
        return max((point for point, count in self.counts.items() if count == most), key=self.mean)

    def finish(self) -> Point:
        """Spend what is left on the leaders, the best mean first: on so many rows that a few of them are compared.

        Then on every row. Returns the best mean of those who are known on the most.
        """
        enough = max(2 * MINIBATCH, self.counter.left // LEADERS)
        for rows in (min(enough, self.counter.examples), self.counter.examples):
            while self.counter.left > 0:
                waiting = [point for point, count in self.counts.items() if count < rows]
                if not waiting:
                    break
                self.extend(max(waiting, key=self.mean), rows)
        most = max(self.counts.values())
        near = [point for point, count in self.counts.items() if count >= min(most, enough)]
        return max(near, key=self.mean)


class Points:
    """Random points of a space, none of them twice while there are others."""

    def __init__(self, space: SearchSpace, rng: np.random.Generator, home: Point) -> None:
        self.space, self.rng, self.seen = space, rng, {home}
        listed = space.size <= 5_000
        self.rest = [point for point in space.points() if point != home] if listed else None
        if self.rest is not None:
            rng.shuffle(self.rest)

    def draw(self) -> Point | None:
        """Return a point that was never drawn, or None."""
        if self.rest is not None:
            return tuple(self.rest.pop()) if self.rest else None
        while True:
            point = tuple(int(self.rng.integers(slot.levels)) for slot in self.space.slots)
            if point not in self.seen:
                self.seen.add(point)
                return point


def random_search(task: Task, counter: Counter, seed: int) -> Point:
    """Return the choice of random points on minibatches."""
    rng = np.random.default_rng([seed, 21])
    book, points = Book(counter, rng, paired=False), Points(task.space, rng, task.home)
    point: Point | None = task.home
    while point is not None and counter.left > FINALS * counter.budget:
        book.extend(point, MINIBATCH)
        point = points.draw()
    return book.finish()


def bootstrap(task: Task, counter: Counter, seed: int) -> Point:
    """Return the choice of random points on every row."""
    rng = np.random.default_rng([seed, 22])
    book, points = Book(counter, rng, paired=True), Points(task.space, rng, task.home)
    point: Point | None = task.home
    while point is not None and counter.left > 0:
        book.extend(point, counter.examples)
        point = points.draw()
    return book.choose()


def tpe(task: Task, counter: Counter, seed: int) -> Point:
    """Return the choice of Optuna's TPE: multivariate, the baseline enqueued, each trial a minibatch of new rows.

    A table of prompts is one parameter, as for MIPROv2. A point proposed again is scored on more rows.
    """
    book = Book(counter, np.random.default_rng([seed, 23]), paired=False)
    listed = task.space.feasible
    sizes = [len(listed)] if listed is not None else [slot.levels for slot in task.space.slots]
    spread: dict[str, Any] = {
        f"s{i}": optuna.distributions.CategoricalDistribution(list(range(n))) for i, n in enumerate(sizes)
    }
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True)
        )
        home = [listed.index(task.home)] if listed is not None else list(task.home)
        study.enqueue_trial(dict(zip(spread, home, strict=True)))
        for _ in range(counter.budget):
            if counter.left <= FINALS * counter.budget or min(book.counts.values(), default=0) >= counter.examples:
                break
            trial = study.ask(spread)
            levels = tuple(trial.params[name] for name in spread)
            point = listed[levels[0]] if listed is not None else levels
            before, total = book.counts.get(point, 0), book.sums.get(point, 0.0)
            book.extend(point, before + MINIBATCH)
            met = book.counts[point] - before
            study.tell(trial, (book.sums[point] - total) / met if met else book.mean(point))
    return book.finish()


def halving(task: Task, counter: Counter, seed: int, paired: bool = False) -> Point:
    """Return the choice of successive halving (Jamieson and Talwalkar, 2016), begun again while there are calls.

    As many points begin as can be halved, the rows known of each doubled, until what is left of them is known on every
    row; where the space has fewer points, they begin with more rows. A later bracket has the champion and new points.
    """
    rng = np.random.default_rng([seed, 25 if paired else 24])
    book, points = Book(counter, rng, paired), Points(task.space, rng, task.home)
    field: list[Point] = [task.home]
    while counter.left > 0:
        first = FIRST
        while True:
            steps = rungs(first, counter.examples)
            room = max(2, int(counter.left / bracket(steps)))
            if room <= task.space.size or first >= counter.examples:
                break
            first = min(2 * first, counter.examples)
        fresh = 0
        while len(field) < room and (point := points.draw()) is not None:
            field.append(point)
            fresh += 1
        if not fresh:
            break
        for place, rows in enumerate(steps):
            for point in field:
                book.extend(point, rows)
            if place < len(steps) - 1:
                field = sorted(field, key=book.mean, reverse=True)[: max(1, len(field) // 2)]
        field = [max(field, key=lambda point: (book.counts[point], book.mean(point)))]
    book.finish()
    return book.choose()


def rungs(first: int, rows: int) -> list[int]:
    """Return how many rows the points of each round are known on: doubled until it is all."""
    steps = [min(first, rows)]
    while steps[-1] < rows:
        steps.append(min(2 * steps[-1], rows))
    return steps


def bracket(steps: Sequence[int]) -> float:
    """Return the calls that a bracket takes for each point that begins."""
    later = [(b - a) / 2.0 ** (k + 1) for k, (a, b) in enumerate(itertools.pairwise(steps))]
    return steps[0] + sum(later)


RIVALS: dict[str, Callable[[Task, Counter, int], Point]] = {
    "mipro": mipro,
    "tpe": tpe,
    "random": random_search,
    "bootstrap": bootstrap,
    "halving": halving,
    "paired": lambda task, counter, seed: halving(task, counter, seed, paired=True),
}
"""Who searches besides us."""


def run(who: str, task: Task, budget: int, seed: int, auto: str | None = None) -> dict[str, Any]:
    """Let somebody search, and return the outcome: true gains over the baseline, calls, CPU seconds.

    Of ours also whether it ships, and the interval with the true difference of the point that it is of, the favourite.
    `auto` is MIPROv2's mode where the calls are those that it spends.
    """
    counter = Counter(task, budget // SHARES.get(who, 1))
    home = task.truth(task.home)
    began = time.process_time()
    if who not in SHARES:
        choice = mipro(task, counter, seed, auto) if who == "mipro" else RIVALS[who](task, counter, seed)
        gain = task.truth(choice) - home
        return {"gain": gain, "calls": counter.calls, "seconds": time.process_time() - began}
    found = search(task.space, counter, budget=counter.budget, seed=seed, baseline=task.home)
    seconds = time.process_time() - began
    return {
        "gain": task.truth(found.best) - home,
        "shipped": task.truth(found.shipped) - home,
        "ships": found.shipped != task.home,
        "favourite": task.truth(found.favourite) - home if found.favourite != task.home else None,
        "low": found.interval[0],
        "high": found.interval[1],
        "estimate": found.estimate,
        "probability": found.probability,
        "calls": counter.calls,
        "reason": found.reason,
        "seconds": seconds,
    }

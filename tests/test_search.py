"""The contract of the search: what it asks for, within its budget, always in the same order; how it ends."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import numpy as np
import optuna
import pytest
from vitrify.compiler.plan import DESIGN
from vitrify.compiler.search import Block, Exhausted, Interrupted, RenewalView, SearchOptions, search
from vitrify.compiler.space import Point, SearchSpace, Slot
from vitrify.compiler.stream import WINDOW
from vitrify.signatures.errors import RequestError

from tests.search_worlds import Slow, World


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as threads:
        yield threads


def test_never_spends_more_than_its_budget() -> None:
    for budget in range(301):
        slots = [(2,), (6, 6), (3, 3, 3), (1,), ()][budget % 5]
        world = World(slots, 1.0, 5, examples=1 + budget % 41)
        found = search(world.space, world, budget=budget, seed=budget)
        assert sum(len(examples) for _, examples in world.asked) == found.spent
        assert found.spent <= budget
        assert all(np.isfinite([found.estimate, *found.interval, found.probability]))


@pytest.mark.parametrize("sampler", ["additive", "tpe", "random"])
def test_nothing_is_asked_twice_and_all_comparisons_are_paired(sampler: Any) -> None:
    world = World([6, 6], 1.0, 3)
    search(world.space, world, budget=1500, seed=0, options=SearchOptions(sampler=sampler))
    cells = [(point, example) for point, examples in world.asked for example in examples]
    assert len(set(cells)) == len(cells)
    seen: dict[Point, list[int]] = {}
    for point, examples in world.asked:
        seen.setdefault(point, []).extend(examples)
    # Each point begins with one of the first four blocks and goes on with the others in order.
    base = seen[world.space.baseline]
    order = [tuple(base[first : first + 5]) for first in range(0, len(base), 5)]
    for known in seen.values():
        first, *rest = [tuple(known[first : first + 5]) for first in range(0, len(known), 5)]
        assert first in order[:4]
        assert rest == [block for block in order if block != first][: len(rest)]
    assert len(base) == max(len(known) for known in seen.values())


def test_a_small_world_is_asked_for_once_and_for_all() -> None:
    world = World([2, 2], 1.0, 3, examples=20)
    found = search(world.space, world, budget=5000, seed=0)
    assert 80 >= found.spent
    assert "nothing is left worth asking" == found.reason or "nothing separates" in found.reason


def test_blocks_are_asked_a_window_ahead_and_no_further() -> None:
    """Answers come only when nobody asks for more: so the most that is ever open is the window."""

    class Lazy(Future[Block]):
        def result(self, timeout: float | None = None) -> Block:
            world.open -= len(self.scores)  # type: ignore[attr-defined]
            return Block(self.scores)  # type: ignore[attr-defined]

    class Counting(World):
        open = 0
        most = 0

        def submit(self, point: Point, examples: Sequence[int], replicate: int) -> "Future[Block]":
            future = Lazy()
            future.scores = tuple(self.outcomes(point)[list(examples)])  # type: ignore[attr-defined]
            self.open += len(examples)
            self.most = max(self.most, self.open)
            return future

    world = Counting([6, 6], 1.0, 3)
    search(world.space, world, budget=1200, seed=0, options=SearchOptions(window=60, sampler="random"))
    assert 60 == world.most
    world = Counting([6, 6], 1.0, 3)
    search(world.space, world, budget=1200, seed=0, options=SearchOptions(window=60))
    assert DESIGN * 1200 == world.most  # the balanced design, which no answer changes, is asked for at once
    world = Counting([6, 6], 1.0, 3)
    search(world.space, world, budget=1200, seed=0, options=SearchOptions(sampler="random"))
    assert WINDOW * 1200 == world.most


def test_same_seed_same_decisions_whatever_the_order_of_answers(pool: ThreadPoolExecutor) -> None:
    runs = []
    for kind, delay in ((World, 1), (Slow, 7), (Slow, 3)):
        world = kind([6, 6], 1.0, 9)
        if isinstance(world, Slow):
            world.pool, world.delay = pool, delay
        found = search(world.space, world, budget=900, seed=7)
        runs.append((found.best, found.estimate, found.trials, world.asked))
    assert runs[0] == runs[1] == runs[2]
    other = World([6, 6], 1.0, 9)
    assert search(other.space, other, budget=900, seed=8).trials != runs[0][2]


SCRIPT = """
import numpy as np
from vitrify.compiler.search import search
from vitrify.compiler.space import SearchSpace, Slot

class Table:
    examples = 60
    def score(self, point, examples):
        return (np.random.default_rng(list(point)).random(60) < 0.4 + 0.05 * sum(point))[examples].astype(float)

found = search(SearchSpace([Slot("a", 5), Slot("b", 7), Slot("c", 80)]), Table(), budget=500, seed=3)
print(found.best, found.estimate, found.interval, found.trials, found.reason)
"""


def test_same_decisions_under_any_hash_seed() -> None:
    """A plain table serves too."""
    printed = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert 1 == len(printed)
    assert "Trial" in printed.pop()


def test_feasible_points_only() -> None:
    allowed = [(0, 0), (1, 2), (2, 1), (3, 3)]
    world = World([4, 4], 1.0, 6)
    space = SearchSpace(world.space.slots, feasible=allowed)
    found = search(space, world, budget=600, seed=0)
    assert {point for point, _ in world.asked} == set(allowed)
    assert found.best in allowed
    with pytest.raises(ValueError, match="the baseline is a point of the space"):
        search(space, world, budget=600, seed=0, baseline=(1, 1))


def test_another_baseline() -> None:
    world = World([4, 4], 1.0, 6)
    found = search(world.space, world, budget=600, seed=0, baseline=(1, 1))
    assert (1, 1) == world.asked[0][0]
    assert found.shipped in {(1, 1), found.best}


# How it ends.


def test_an_exhausted_oracle_ends_the_search_with_what_was_told() -> None:
    class Ending(World):
        def submit(self, point: Point, examples: Sequence[int], replicate: int) -> "Future[Block]":
            future = super().submit(point, examples, replicate)
            if len(self.asked) == 60:
                future = Future()
                future.set_exception(Exhausted("2,000 calls"))
            return future

    world = Ending([6, 6], 1.2, 2)
    found = search(world.space, world, budget=1200, seed=0)
    assert "the oracle is exhausted: 2,000 calls" == found.reason
    assert 59 * 5 == sum(trial.n for trial in found.trials)
    assert found.spent == sum(len(examples) for _, examples in world.asked)


def test_an_interrupted_search_says_what_it_knows() -> None:
    class Interrupting(World):
        def submit(self, point: Point, examples: Sequence[int], replicate: int) -> "Future[Block]":
            future = super().submit(point, examples, replicate)
            if len(self.asked) == 150:
                future = Future()
                future.set_exception(KeyboardInterrupt())
            return future

    world = Interrupting([4, 4], 1.5, 2)
    with pytest.raises(Interrupted) as caught:
        search(world.space, world, budget=1200, seed=0)
    found = caught.value.result
    assert isinstance(caught.value, KeyboardInterrupt)
    assert "interrupted" == found.reason
    assert 149 * 5 == sum(trial.n for trial in found.trials)
    assert world.true_gain(found.best) > 0
    # The same search without the interrupt knew the same at that time.
    calm = World([4, 4], 1.5, 2)
    search(calm.space, calm, budget=1200, seed=0)
    assert world.asked == calm.asked[: len(world.asked)]


def test_an_interrupt_while_levels_are_made() -> None:
    def renew(view: RenewalView) -> Mapping[str, int]:
        raise KeyboardInterrupt

    world = World([4, 4], 1.5, 2)
    with pytest.raises(Interrupted) as caught:
        search(world.space, world, budget=1200, seed=0, renew=renew, options=SearchOptions(renewals=(50,)))
    assert world.space == caught.value.result.space


def test_a_reason_to_stop_is_heeded() -> None:
    world, sizes = World([6, 6], 1.0, 6), list[int]()

    def stop(evaluations: int) -> str | None:
        sizes.append(evaluations)
        return "time is over" if len(sizes) > 30 else None

    found = search(world.space, world, budget=2000, seed=0, options=SearchOptions(stop=stop))
    assert "time is over" == found.reason
    assert 30 * 5 == found.spent == sum(trial.n for trial in found.trials)
    assert {5} == set(sizes)


def test_numbers_that_are_none_are_refused() -> None:
    for wrong in (np.nan, np.inf):
        world = World([3], 1.0, 1)
        world.outcomes = lambda point, wrong=wrong: np.full(200, wrong)  # type: ignore[method-assign,misc]
        with pytest.raises(ValueError, match="scores are numbers"):
            search(world.space, world, budget=100, seed=0)


def test_a_block_of_the_wrong_length_is_refused() -> None:
    class Short(World):
        def submit(self, point: Point, examples: Sequence[int], replicate: int) -> "Future[Block]":
            return super().submit(point, examples[1:], replicate)

    world = Short([3], 1.0, 1)
    with pytest.raises(ValueError, match="one score for each example"):
        search(world.space, world, budget=100, seed=0)


def test_what_is_watched() -> None:
    world, seen = World([4, 4], 1.0, 2), list[tuple[int, float]]()
    options = SearchOptions(watch=lambda trials, best: seen.append((trials, best)))
    found = search(world.space, world, budget=600, seed=0, options=options)
    assert len(world.asked) == len(seen)
    assert len(found.trials) == seen[-1][0]
    assert all(0 <= best <= 1 for _, best in seen)


# In Optuna.


def test_the_study_has_a_trial_for_each_point() -> None:
    world = World([6, 6], 1.2, 2)
    found = search(world.space, world, budget=900, seed=0)
    assert isinstance(found.study, optuna.Study)
    assert [trial.point for trial in found.trials] == [
        tuple(trial.params[slot.name] for slot in found.space.slots) for trial in found.study.trials
    ]
    assert [trial.mean for trial in found.trials] == [trial.value for trial in found.study.trials]
    states = [trial.state for trial in found.study.trials]
    assert {optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED} == set(states)
    for ours, theirs in zip(found.trials, found.study.trials, strict=True):
        assert ours.n == max(theirs.intermediate_values)
        assert ours.mean == theirs.intermediate_values[ours.n]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_any_of_the_samplers(sampler: Any) -> None:
    world = World([4, 4], 1.5, 2, examples=60)
    found = search(world.space, world, budget=600, seed=0, options=SearchOptions(sampler=sampler))
    assert any(trial.intermediate_values for trial in found.study.trials)
    assert world.true_gain(found.best) > 0.5 * max(world.true_gain(p) for p in world.space.points())


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_samplers_are_told_in_the_order_asked(sampler: Any, pool: ThreadPoolExecutor) -> None:
    runs = []
    for kind in (World, Slow):
        world = kind([4, 9, 9], 1.0, 9)
        if isinstance(world, Slow):
            world.pool = pool
        found = search(world.space, world, budget=500, seed=7, options=SearchOptions(sampler=sampler))
        runs.append((found.best, found.estimate, world.asked))
    assert runs[0] == runs[1]


def test_the_gaussian_process_sampler_says_what_it_needs() -> None:
    world = World([4, 4], 1.0, 2, examples=60)
    options = SearchOptions(sampler="gp")
    if find_spec("torch") is None:
        with pytest.raises(RequestError, match="pip install torch"):
            search(world.space, world, budget=300, seed=0, options=options)
    else:
        assert search(world.space, world, budget=300, seed=0, options=options).trials


def test_spaces_say_what_is_wrong_with_them() -> None:
    with pytest.raises(ValueError, match="levels >= 1"):
        Slot("a", 0)
    with pytest.raises(ValueError, match="unique"):
        SearchSpace([Slot("a", 2), Slot("a", 2)])
    with pytest.raises(ValueError, match="one level for each slot"):
        SearchSpace([Slot("a", 2)], feasible=[(2,)])
    with pytest.raises(ValueError, match="only a whole product grows"):
        SearchSpace([Slot("a", 2)], feasible=[(1,)]).grown({"a": 1})
    with pytest.raises(ValueError, match="never removed"):
        SearchSpace([Slot("a", 2)]).grown({"a": -1})

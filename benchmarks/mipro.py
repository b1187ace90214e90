"""MIPROv2: dspy's own, as installed, on a world or a table instead of a language model.

Its optimisation loop (`_optimize_prompt_parameters`) runs unchanged, with the number of trials and the validation rows
that its auto mode sets, and with dspy's own Evaluate. Handed in are the candidates, equal for every rival, and a
program whose predictors look their outcome up by the instruction and the demonstrations that the loop has set on them.
"""

import contextlib
import functools
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import dspy
import optuna
from dspy.teleprompt.mipro_optimizer_v2 import AUTO_RUN_SETTINGS
from vitrify.compiler.space import Point

MINIBATCH, FULL_EVERY = 35, 5
"""MIPROv2's own defaults: rows of a minibatch, minibatch trials between two full evaluations."""


@dataclass(frozen=True)
class Text:
    """An instruction where a predictor has its signature: the two things that MIPROv2 does with one."""

    instructions: str

    def with_instructions(self, instructions: str) -> "Text":
        """Return another instruction."""
        return Text(instructions)


class Looked(dspy.Predict):  # type: ignore[misc]  # Any to a type checker
    """A predictor that is never called: it holds what the loop sets on it."""

    def __init__(self, text: Text) -> None:
        self.signature = text
        self.demos: list[Any] = []
        self.lm = None


class Program(dspy.Module):  # type: ignore[misc]  # Any to a type checker
    """A program whose score on a row is looked up by what is set on its predictors.

    Args:
        predictors: How many. An instruction's text is its number, a demonstration set's only member is its.
        lookup: Called with (numbers of each predictor, row).
    """

    def __init__(self, predictors: int, lookup: Any) -> None:
        self.steps = [Looked(Text("0")) for _ in range(predictors)]
        self.lookup = lookup

    def chosen(self) -> tuple[tuple[int, int], ...]:
        """Return (instruction, demonstrations) of each predictor, read from what is set on it."""
        return tuple((int(step.signature.instructions), step.demos[0] if step.demos else 0) for step in self.steps)

    def __call__(self, row: int) -> float:
        """Return the score on a row: the prediction is its own score."""
        return float(self.lookup(self.chosen(), row))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Program":
        """Return a copy that shares nothing that the loop changes."""
        copied = Program(0, self.lookup)
        for step in self.steps:
            twin = Looked(step.signature)
            twin.demos = list(step.demos)
            copied.steps.append(twin)
        return copied


@dataclass(frozen=True)
class Row:
    """A row of the select set, as far as Evaluate looks at one."""

    number: int

    def inputs(self) -> dict[str, int]:
        """Return what the program is called with."""
        return {"row": self.number}


def calls(trials: int, rows: int) -> int:
    """Return the metric calls of so many trials: the default program, minibatches, a full evaluation every five."""
    return rows * (1 + -(-trials // FULL_EVERY)) + MINIBATCH * trials


@functools.lru_cache
def auto_trials(auto: str, predictors: int) -> int:
    """Return how many trials MIPROv2's auto mode makes of a program with demonstrations."""
    optimizer = _optimizer(0, auto)
    return int(
        optimizer._set_num_trials_from_num_candidates(Program(predictors, None), False, AUTO_RUN_SETTINGS[auto]["n"])
    )


def auto_calls(auto: str, predictors: int) -> int:
    """Return the metric calls of MIPROv2's auto mode on a select set that has as many rows as it wants."""
    return calls(auto_trials(auto, predictors), AUTO_RUN_SETTINGS[auto]["val_size"])


def mipro(task: Any, counter: Any, seed: int, auto: str | None = None) -> Point:
    """Return MIPROv2's choice.

    Args:
        task: With `space` and `home`.
        counter: With `examples`, `budget` and `score(point, rows)`: what is asked of it is counted.
        seed: Its seed.
        auto: Its auto mode, which then spends what it wants; None: of its auto modes' validation sets the largest
            that the budget suits, and as many trials as the budget allows.
    """
    points = Points(task)
    program = Program(len(points.sizes), lambda chosen, row: counter.score(points.at(chosen), [row])[0])
    rows = [Row(number) for number in range(counter.examples)]
    optimizer = _optimizer(seed, auto)
    optimizer._set_random_seeds(seed)
    if auto is not None:
        trials, rows, minibatch, *_ = optimizer._set_hyperparams_from_run_mode(
            program, None, True, not points.demos, rows, None, None
        )
    else:
        effort = "medium" if counter.budget >= auto_calls("medium", 1) else "light"
        rows = optimizer.rng.sample(rows, min(len(rows), AUTO_RUN_SETTINGS[effort]["val_size"]))
        trials = max(n for n in range(1, counter.budget) if calls(n, len(rows)) <= counter.budget)
        minibatch = True
    instructions = {place: [str(level) for level in range(size[0])] for place, size in enumerate(points.sizes)}
    demos = [[[level] for level in range(size[1])] for size in points.sizes] if points.demos else None
    with quiet():
        evaluate = dspy.Evaluate(
            devset=rows, metric=_score, num_threads=1, display_progress=False, display_table=False, max_errors=1
        )
        best = optimizer._optimize_prompt_parameters(
            program, instructions, demos, evaluate, rows, trials, minibatch, MINIBATCH, FULL_EVERY, seed
        )
    return points.at(best.chosen())


class Points:
    """A task's points as MIPROv2's candidates: the baseline has number 0 in each slot.

    Two slots are a predictor. A table of prompts, which isn't the product of its slots, is one predictor with an
    instruction for each prompt, so that nothing can be asked for that wasn't recorded.

    Attributes:
        sizes: For each predictor how many instructions and how many demonstration sets there are.
        demos: Whether there are demonstrations.
    """

    def __init__(self, task: Any) -> None:
        self.listed: Sequence[Point] | None = task.space.feasible
        if self.listed is not None:
            levels, home = [len(self.listed)], [self.listed.index(task.home)]
        else:
            levels, home = [slot.levels for slot in task.space.slots], list(task.home)
        self.order = [[own, *(i for i in range(n) if i != own)] for n, own in zip(levels, home, strict=True)]
        self.demos = len(levels) > 1
        padded = [*levels, 1] if len(levels) % 2 else levels
        self.sizes = list(zip(padded[::2], padded[1::2], strict=True))
        self.known: dict[tuple[tuple[int, int], ...], Point] = {}

    def at(self, chosen: tuple[tuple[int, int], ...]) -> Point:
        """Return the point of what is set on the predictors."""
        point = self.known.get(chosen)
        if point is None:
            flat = [number for pair in chosen for number in pair][: len(self.order)]
            point = tuple(order[number] for order, number in zip(self.order, flat, strict=True))
            point = self.known[chosen] = point if self.listed is None else self.listed[point[0]]
        return point


def _optimizer(seed: int, auto: str | None) -> Any:
    return dspy.MIPROv2(metric=_score, auto=auto, seed=seed, prompt_model="none", task_model="none", num_threads=1)


def _score(row: Row, prediction: float) -> float:
    return prediction


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Optuna and dspy without their lines, whose text is made and then dropped."""
    disabled, verbosity = logging.root.manager.disable, optuna.logging.get_verbosity()
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(disabled)
            optuna.logging.set_verbosity(verbosity)

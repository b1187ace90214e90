"""Tables: outcomes of real language models, recorded prompt by prompt and row by row, replayed to a search.

By the rules of the README beside them: only recorded rows may be asked for, a cell is a metric call, the baseline is
drawn by the seed alone, and a choice is judged by what it scored where the search couldn't look.
"""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from vitrify.compiler.space import Point, SearchSpace, Slot

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]

DATA = Path(os.environ.get("VITRIFY_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))

FILES = {
    "gsm8k": "gsm8k__llama.npz",
    "agnews": "agnews__llama.npz",
    "subj": "subj__qwen.npz",
    "sst5": "sst5__mistral.npz",
    "copa": "copa__qwen.npz",
    "oirl": "oirl_gsm8k__llama2.npz",
    "rag": "rag_aragog__gpt35.npz",
}
"""The tables. The first five have a `test` of their own: the prompt's accuracy on other questions."""

TESTED = ("gsm8k", "agnews", "subj", "sst5", "copa")
"""Tables with a `test`."""

BUDGETS = (600, 1200, 2400)
"""Metric calls."""

SHOWN = 300
"""Columns of OIRL that a search sees; the other 700 are its test."""


def available() -> bool:
    """Say whether the recorded outcomes are there."""
    return all((DATA / "outcomes" / file).exists() for file in FILES.values())


@functools.lru_cache(maxsize=8)
def load(name: str) -> tuple[Floats, tuple[Ints, ...], Floats | None]:
    """Return a table's cells, [points, columns], each slot's levels by point, and `test` where there is one.

    Points that were never tested are left out: nobody could say what a choice of them is worth.
    """
    with np.load(DATA / "outcomes" / FILES[name]) as file:
        if name == "rag":
            slots = [file["embedding"], file["top_k"], file["chunk_size"]]
            return file["sas"].astype(np.float64), _levels(slots), None
        cells = file["C"].astype(np.float64)
        if name == "oirl":
            return cells, _levels([file["prompt_ids"]]), None
        test = file["test"].astype(np.float64)
        kept = ~np.isnan(test)
        slots = [file["instruction_id"][kept], file["demoset_id"][kept]]
        return cells[kept], _levels(slots), test[kept]


def _levels(slots: Sequence[Any]) -> tuple[Ints, ...]:
    """Return each slot's values as levels from 0 without a gap."""
    return tuple(np.unique(slot, return_inverse=True)[1].astype(np.int64) for slot in slots)


class Recorded:
    """One table, with the baseline and (of OIRL) the columns that a seed draws.

    Attributes:
        space: The recorded points: a list, or the product where all of it was recorded.
        home: The baseline.
        examples: The columns that the search sees.
    """

    def __init__(self, name: str, seed: int) -> None:
        cells, slots, test = load(name)
        points: list[Point] = [tuple(int(level) for level in point) for point in zip(*slots, strict=True)]
        self._rows = {point: row for row, point in enumerate(points)}
        rng = np.random.default_rng([seed, 9])
        self.home: Point = sorted(points)[int(rng.integers(len(points)))]
        if name == "oirl":
            columns = rng.permutation(cells.shape[1])
            test = cells[:, columns[SHOWN:]].mean(axis=1)
            cells = cells[:, columns[:SHOWN]]
        self._cells = cells
        self._test: Floats = cells.mean(axis=1) if test is None else test
        sizes = [int(levels.max()) + 1 for levels in slots]
        whole = len(self._rows) == int(np.prod(sizes))
        self.space = SearchSpace(
            [Slot(f"slot{place}", size) for place, size in enumerate(sizes)], None if whole else sorted(points)
        )
        self.examples = cells.shape[1]

    def score(self, point: Point, examples: Sequence[int]) -> Floats:
        """Return the recorded scores of a point on columns."""
        scores: Floats = self._cells[self._rows[point], list(examples)]
        return scores

    def truth(self, point: Point) -> float:
        """Return a point's `test`; of OIRL its mean on the columns not shown, of the RAG grid on all of them."""
        return float(self._test[self._rows[point]])

    def best(self) -> Point:
        """Return the point with the best `test`, which nobody can find but by luck."""
        return max(self._rows, key=self.truth)

    def floor(self) -> Point:
        """Return the point that is best on every column shown: what a search without a budget would choose."""
        means = self._cells.mean(axis=1)
        return max(self._rows, key=lambda point: float(means[self._rows[point]]))

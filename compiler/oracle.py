"""Oracle: what the search sees of the world, and what it answers."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from .space import Point


class Exhausted(Exception):
    """The oracle can answer no more: a physical limit of the budget. The search ends with what it was told before."""


@dataclass(frozen=True)
class Block:
    """What an oracle answers: one entry for each example asked for, in that order."""

    scores: tuple[float, ...]
    costs: tuple[float, ...] = ()
    causes: tuple[str, ...] = ()


@runtime_checkable
class Oracle(Protocol):
    """What the search sees of the world: how many examples there are, and scores of points on them.

    An oracle whose `stochastic` is true gives another score where it is asked again with another replicate; without the
    attribute it doesn't, and is asked for each example once.
    """

    @property
    def examples(self) -> int:
        """How many examples there are."""
        ...

    def submit(self, point: Point, examples: Sequence[int], replicate: int) -> "Future[Block]":
        """Score a point on examples; the future may be fulfilled in any order, or raise Exhausted.

        `replicate` is 0, and 1 or more where the same is asked again of a stochastic oracle.
        """
        ...


@runtime_checkable
class Table(Protocol):
    """An oracle that answers at once, say a table of recorded outcomes."""

    @property
    def examples(self) -> int:
        """How many examples there are."""
        ...

    def score(self, point: Point, examples: Sequence[int]) -> Any:
        """Return the scores of a point on examples, in that order: an array or any sequence of numbers."""
        ...


@dataclass(frozen=True)
class Answering:
    """A table as an oracle."""

    table: Table

    @property
    def stochastic(self) -> bool:
        """Whether the table says that it answers differently each time."""
        return bool(getattr(self.table, "stochastic", False))

    @property
    def examples(self) -> int:
        """How many examples there are."""
        return self.table.examples

    def submit(self, point: Point, examples: Sequence[int], replicate: int) -> "Future[Block]":
        """Look the scores up; the future is fulfilled, or holds what the table raised."""
        future: Future[Block] = Future()
        try:
            future.set_result(Block(tuple(float(score) for score in self.table.score(point, examples))))
        except Exhausted as error:
            future.set_exception(error)
        return future


def as_oracle(source: Oracle | Table) -> Oracle:
    """Return `source` where it is an oracle, else the oracle of its table."""
    return source if isinstance(source, Oracle) else Answering(source)

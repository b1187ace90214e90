"""SearchSpace: the product of slots that the search moves in."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

Point = tuple[int, ...]
"""One level for each slot, in the order of the space; the point of zeros is what the user wrote."""


@dataclass(frozen=True, init=False)
class Slot:
    """One choice: a predictor's instruction, its demonstration set or its format.

    Attributes:
        name: `<path>.instruction`, `<path>.demos`, `<path>.format`.
        levels: How many levels there are; level 0 is what the user wrote.
        features: Numbers that may say which levels do alike (a length, how many demonstrations, an embedding), one row
            of the same length for each level; NaN where one is unknown. In any unit. None where nothing is known.
    """

    name: str
    levels: int
    features: tuple[tuple[float, ...], ...] | None = None

    def __init__(self, name: str, levels: int, features: Any = None) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "levels", levels)
        if levels < 1:
            raise ValueError(f"`levels >= 1` must hold for slot {name}, but got {levels}.")
        rows = None if features is None else tuple(tuple(float(value) for value in row) for row in features)
        if rows is not None and (len(rows) != levels or len({len(row) for row in rows}) != 1):
            shape = f"{len(rows)} rows of {sorted({len(row) for row in rows})}"
            raise ValueError(f"`one row of features for each level` must hold for slot {name}, but got {shape}.")
        if rows is not None and any(math.isinf(value) for row in rows for value in row):
            raise ValueError(f"`features are numbers` must hold for slot {name}, but one is infinite.")
        object.__setattr__(self, "features", rows)

    def grown(self, more: "int | Slot") -> "Slot":
        """Return the slot with so many levels appended, their features unknown; or `more`, which has them."""
        if isinstance(more, Slot):
            if more.levels < self.levels:
                raise ValueError(f"`levels are appended, never removed`, but {more.name} has {more.levels} now.")
            return more
        if more < 0:
            raise ValueError(f"`levels are appended, never removed`, but got {more} for {self.name}.")
        if self.features is None:
            return Slot(self.name, self.levels + more)
        unknown = (math.nan,) * len(self.features[0])
        return Slot(self.name, self.levels + more, (*self.features, *((unknown,) * more)))


@dataclass(frozen=True)
class SearchSpace:
    """The points that the search may choose.

    Attributes:
        slots: The slots.
        feasible: The allowed points, or None where the whole product is.
    """

    slots: tuple[Slot, ...]
    feasible: tuple[Point, ...] | None = None

    def __init__(self, slots: Sequence[Slot], feasible: Sequence[Point] | None = None) -> None:
        object.__setattr__(self, "slots", tuple(slots))
        object.__setattr__(self, "feasible", None if feasible is None else tuple(tuple(point) for point in feasible))
        names = [slot.name for slot in self.slots]
        if len(set(names)) != len(names):
            raise ValueError(f"`slot names are unique`, but got {names}.")
        for point in self.feasible or ():
            if len(point) != len(names) or any(
                not 0 <= level < slot.levels for level, slot in zip(point, self.slots, strict=True)
            ):
                raise ValueError(f"`a feasible point has one level for each slot`, but got {point}.")

    @property
    def baseline(self) -> Point:
        """The point of zeros."""
        return (0,) * len(self.slots)

    @property
    def size(self) -> int:
        """How many points there are."""
        return len(self.feasible) if self.feasible is not None else math.prod(slot.levels for slot in self.slots)

    def allows(self, point: Point) -> bool:
        """Say whether the search may choose `point`."""
        return self._allowed is None or point in self._allowed

    @cached_property
    def _allowed(self) -> frozenset[Point] | None:
        return None if self.feasible is None else frozenset(self.feasible)

    def grown(self, levels: Mapping[str, int | Slot]) -> "SearchSpace":
        """Return the space with so many levels appended to each named slot; or with a slot as it is then.

        A name that no slot has yet becomes a slot behind the present ones: level 0, which every known point has
        there, and the new levels. ValueError where the points are listed: a new level would be in none of them.
        """
        if self.feasible is not None:
            raise ValueError("`only a whole product grows`, but this space lists its feasible points.")
        present = {slot.name for slot in self.slots}
        new = [Slot(name, 1).grown(more) for name, more in levels.items() if name not in present]
        return SearchSpace(
            [*(slot.grown(levels.get(slot.name, 0)) for slot in self.slots), *(slot for slot in new if slot.levels > 1)]
        )

    def points(self) -> Iterator[Point]:
        """Yield every point, in lexicographic order where the whole product is allowed."""
        if self.feasible is not None:
            yield from self.feasible
        else:
            yield from product(*(range(slot.levels) for slot in self.slots))

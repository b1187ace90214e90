"""Job and State: the frozen data that the passes of a compile hand on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..programs.candidate import Candidate
from ..programs.lm import Usage
from ..programs.models import Model
from ..signatures.canonical import canonical_json
from .budget import Budget
from .data import Dataset, Example
from .evaluate import Target
from .evidence import Evidence
from .metric import MetricSpec
from .options import Options
from .outcome import Outcome
from .search import SearchResult
from .space import Point, SearchSpace, Slot
from .splits import Splits
from .strategy import Accepted, DemoLevel, InstructionLevel, Strategy

if TYPE_CHECKING:
    from .supply import Supply


@dataclass(frozen=True)
class Job:
    """A compile's request, resolved; nothing in it changes.

    Attributes:
        target: The program.
        code: Its source text, or an empty string.
        dataset: All rows.
        select: The user's own select set, or None.
        test: The user's own test set, or None.
        metric: What scores a prediction.
        model: The task model.
        prompt_model: The model that writes instructions.
        judge_model: The model in force while the metric runs.
        teacher: The program that bootstraps, and the model it runs on.
        strategy: What supplies levels.
        start: The candidate that the search starts from; the baseline where no earlier artifact is given.
        budget: What may be spent.
        seed: Of everything random.
        options: The rest.
    """

    target: Target
    code: str
    dataset: Dataset
    select: Dataset | None
    test: Dataset | None
    metric: MetricSpec
    model: Model
    prompt_model: Model
    judge_model: Model
    teacher: tuple[Target, Model]
    strategy: Strategy
    start: Candidate
    budget: Budget
    seed: int
    options: Options


@dataclass(frozen=True)
class Preflight:
    """What the first calls showed.

    Attributes:
        score: The baseline's mean on the sample.
        n: How many rows that were.
        calls_per_example: The most requests one example took.
        malformed: The share of answers without readable values.
        evaluations: Metric calls that the search may take.
        notes: Sentences worth reading.
        usage: The most tokens that one example took.
    """

    score: float
    n: int
    calls_per_example: int
    malformed: float
    evaluations: int
    notes: tuple[str, ...] = ()
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True)
class Levels:
    """The levels of every slot, level 0 being what the user wrote.

    Attributes:
        slots: Slot names in order, each `<path>.<instruction|demos|format>`.
        values: For each slot its levels: an InstructionLevel, a DemoLevel or a format.
        baseline: The candidate of the point of zeros.
    """

    slots: tuple[str, ...]
    values: Mapping[str, tuple[Any, ...]]
    baseline: Candidate

    @property
    def sizes(self) -> dict[str, int]:
        """How many levels each slot has."""
        return {name: len(self.values[name]) for name in self.slots}

    @property
    def space(self) -> SearchSpace:
        """The search space that the levels span, with what may say which levels do alike: how long a text is, and how
        many demonstrations there are and how long they are together."""
        return SearchSpace([Slot(name, len(self.values[name]), _features(self.values[name])) for name in self.slots])

    def candidate(self, point: Point) -> Candidate:
        """Return the candidate at a point."""
        candidate = self.baseline
        for name, level in zip(self.slots, point, strict=True):
            path, _, kind = name.rpartition(".")
            value = self.values[name][level]
            if level == 0:
                continue
            if isinstance(value, InstructionLevel):
                candidate = candidate.with_params(path, instruction=value.text)
            elif isinstance(value, DemoLevel):
                candidate = candidate.with_params(path, demos=value.demos)
            else:
                candidate = candidate.with_params(path, **{kind: value})
        return candidate


def _features(levels: Sequence[Any]) -> list[list[float]] | None:
    if all(isinstance(level, InstructionLevel) for level in levels):
        return [[math.log1p(len(level.text))] for level in levels]
    if all(isinstance(level, DemoLevel) for level in levels):
        return [
            [float(len(level.demos)), math.log1p(sum(len(canonical_json(dict(demo))) for demo in level.demos))]
            for level in levels
        ]
    return None


@dataclass(frozen=True)
class Certificate:
    """What the sealed test said.

    Attributes:
        evidence: Winner against baseline.
        baseline: The baseline's outcomes, in the order of the test set.
        compiled: The winner's.
        certified: Whether the test was opened; if not, the evidence is the select set's so far.
    """

    evidence: Evidence
    baseline: tuple[Outcome, ...]
    compiled: tuple[Outcome, ...]
    certified: bool = True


@dataclass(frozen=True)
class State:
    """What the passes have found so far; each pass returns a new one.

    Attributes:
        shown: The training rows as they may be shown: all of them, but for `no_demos_from` and `redact`.
    """

    job: Job
    splits: Splits
    shown: tuple[Example, ...] = ()
    preflight: Preflight | None = None
    supply: "Supply | None" = None
    accepted: tuple[Accepted, ...] = ()
    levels: Levels | None = None
    found: SearchResult | None = None
    certificate: Certificate | None = None

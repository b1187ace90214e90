"""Strategy: what supplies the levels that the search chooses from. compiler/ defines it and never imports one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..programs.candidate import Candidate, Demo
from ..programs.program import ProgramSpec
from .data import Example
from .outcome import Outcome


@dataclass(frozen=True)
class Provenance:
    """Where a level comes from.

    Attributes:
        method: The operator: `user`, `bootstrap`, `labelled`, `grounded`.
        note: In words, from which evidence.
    """

    method: str
    note: str = ""


@dataclass(frozen=True)
class InstructionLevel:
    """One instruction to choose from."""

    text: str
    provenance: Provenance


@dataclass(frozen=True)
class DemoLevel:
    """One demonstration set to choose from; `rows` are the source rows that would ship."""

    demos: tuple[Demo, ...]
    rows: tuple[int, ...]
    provenance: Provenance


@dataclass(frozen=True)
class Accepted:
    """A trace that the metric accepts, as one demonstration for each predictor in it.

    Attributes:
        example: The training example.
        demos: For each path, the demonstrations its calls make, in order.
        score: The metric's value.
    """

    example: Example
    demos: Mapping[str, tuple[Demo, ...]]
    score: float


class Runner(Protocol):
    """What a strategy may spend through: everything it runs is metered and recorded."""

    def run(
        self, candidate: Candidate, examples: Sequence[Example], *, traced: bool = False, teacher: bool = False
    ) -> list[Outcome]:
        """Evaluate a candidate on training examples."""
        ...

    def follow(
        self,
        candidate: Candidate,
        examples: Sequence[Example],
        then: Callable[[Example, Outcome], Candidate | None],
        *,
        traced: bool = False,
        teacher: bool = False,
    ) -> list[tuple[Outcome, Outcome | None]]:
        """Evaluate a candidate on training examples, and on each, as soon as its outcome is there, what `then` names.

        Returns both outcomes, the second None where there was none. `then` is called in any order, from any thread.
        """
        ...

    def ask(self, module: Any, asked: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[Any]:
        """Run a DSPy module on the prompt model for each pair of inputs and sampling parameters, all at once.

        Returns the predictions in the order asked, None where an answer couldn't be read.
        """
        ...


@dataclass(frozen=True)
class Needs:
    """How much a strategy should supply.

    Attributes:
        instructions: Instructions for each predictor besides the user's own.
        demo_sets: Demonstration sets for each predictor besides the user's own.
        max_demos: The largest set.
        accept: The lowest score of a trace that becomes a demonstration; None is the metric's best, or what is near it.
    """

    instructions: int = 6
    demo_sets: int = 6
    max_demos: int = 16
    accept: float | None = None


@dataclass(frozen=True)
class View:
    """What a strategy may look at.

    Attributes:
        spec: The program as data.
        code: The program's source text, or an empty string.
        start: The candidate that the search starts from.
        train: The training examples.
        metric: The metric's name.
        runner: What it spends through.
        seed: Of the compile; generators are derived from it by name.
        needs: How much to supply.
        accepted: Accepted traces; who looks at them waits for the bootstrap pass. Empty before it.
    """

    spec: ProgramSpec
    code: str
    start: Candidate
    train: tuple[Example, ...]
    metric: str
    runner: Runner
    seed: int
    needs: Needs = field(default_factory=Needs)
    accepted: Sequence[Accepted] = ()


class Strategy(Protocol):
    """Supplies levels for the slots of a program."""

    @property
    def name(self) -> str:
        """The strategy's name, as it stands in the artifact."""
        ...

    def bootstrap(self, view: View) -> tuple[Accepted, ...]:
        """Run the program over training examples and return the traces that the metric accepts."""
        ...

    def demonstrations(self, view: View) -> Mapping[str, tuple[DemoLevel, ...]]:
        """Return demonstration sets by path; the user's own level isn't among them.

        Asked twice: before the bootstrap pass, when `view.accepted` is empty, for the sets that the search begins with;
        and after it, for the others.
        """
        ...

    def instructions(self, view: View) -> Mapping[str, tuple[InstructionLevel, ...]]:
        """Return instructions by path; the user's own level isn't among them."""
        ...

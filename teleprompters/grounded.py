"""Grounded: the default strategy, bootstrapped demonstrations and grounded instructions."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..compiler.strategy import Accepted, DemoLevel, InstructionLevel, View
from .bootstrap import bootstrap, demonstration_sets
from .propose import propose


@dataclass(frozen=True)
class Grounded:
    """Supplies demonstrations from accepted traces and labels, and instructions grounded in them."""

    name: str = "grounded"

    def bootstrap(self, view: View) -> tuple[Accepted, ...]:
        """Return the training traces that the metric accepts."""
        return bootstrap(view)

    def demonstrations(self, view: View) -> Mapping[str, tuple[DemoLevel, ...]]:
        """Return demonstration sets by path."""
        return demonstration_sets(view)

    def instructions(self, view: View) -> Mapping[str, tuple[InstructionLevel, ...]]:
        """Return instructions by path."""
        return propose(view)

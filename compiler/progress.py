"""Progress: what a compile tells whoever watches it."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Snapshot:
    """Where a compile is.

    Attributes:
        stage: The pass that runs.
        done: Evaluations done in this pass.
        planned: Evaluations this pass may take; 0 where that isn't known.
        trials: Points scored by the search.
        best: The best mean score so far, or None.
        calls: Calls paid so far.
        replayed: Calls that the run directory answered.
        tokens: Tokens paid so far.
        seconds: Since the pass began.
        concurrency: Evaluations that may run at a time now.
    """

    stage: str
    done: int = 0
    planned: int = 0
    trials: int = 0
    best: float | None = None
    calls: int = 0
    replayed: int = 0
    tokens: int = 0
    seconds: float = 0.0
    concurrency: int = 0

    @property
    def seconds_left(self) -> float | None:
        """Seconds this pass still takes at its present pace, or None where nothing can be said."""
        if not self.planned or not self.done:
            return None
        return self.seconds / self.done * max(0, self.planned - self.done)


class Progress(Protocol):
    """Is told about every pass; called from one thread."""

    def update(self, snapshot: Snapshot) -> None:
        """Show where the compile is."""
        ...

    def note(self, text: str) -> None:
        """Show a sentence worth reading, such as a warning about the data."""
        ...

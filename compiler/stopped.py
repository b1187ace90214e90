"""leave_incumbent(): what a run that was interrupted leaves: its incumbent, uncertified; the test set stays shut."""

from dataclasses import replace
from typing import Any

from ..programs.artifact import Artifact
from .emit import emit
from .evidence import Evidence
from .run import Run
from .search import SearchResult
from .state import Certificate, Levels, State
from .study import blank


class Stopped(KeyboardInterrupt):
    """The search was interrupted.

    Attributes:
        state: What was known by then.
    """

    def __init__(self, state: State) -> None:
        super().__init__()
        self.state = state


def leave_incumbent(stop: KeyboardInterrupt, state: State | None, run: Run) -> None:
    """Write the best program so far into the run directory, and say on the exception where that is.

    Args:
        stop: What interrupted the compile; gets `run_dir` and, where there is a file, `uncertified`.
        state: As far as the passes came.
        run: The tools.
    """
    told: Any = stop
    told.run_dir = run.ledger.path
    if isinstance(stop, Stopped):
        state = stop.state
    if state is None:
        return
    try:
        told.uncertified = incumbent(state, run, state.found).save(run.ledger.path / "uncertified.json")
    except Exception:  # noqa: BLE001 - a full disk, say: what interrupted is what counts, and the run resumes
        return


def incumbent(state: State, run: Run, found: SearchResult | None) -> Artifact:
    """Return the best program so far as an artifact that claims nothing.

    Args:
        state: As far as the passes came.
        run: The tools.
        found: What the search knows, or None where it hadn't begun: then the baseline is all there is.
    """
    levels = state.levels or Levels((), {}, state.job.target.spec.baseline)
    home = levels.space.baseline
    best = home if found is None or found.probability < 0.5 else found.best
    known = {} if found is None else {trial.point: trial for trial in found.trials}
    trial, user = known.get(best), known.get(home)
    at = trial or user
    evidence = Evidence(
        baseline=at.mean - at.difference if at is not None else 0.0,
        compiled=at.mean if at is not None else 0.0,
        difference=at.difference if at is not None else 0.0,
        interval=(0.0, 0.0) if found is None or best == home else found.interval,
        level=0.95,
        p_value=1.0,
        n=at.n if at is not None else 0,
        discordant=None,
        method="posterior on the select set",
        improved=False,
    )
    if found is None:
        found = SearchResult(home, home, 0.0, (0.0, 0.0), 0.0, 0, (), blank, "the search hadn't begun", levels.space)
    run.cut = "the run was stopped"
    return emit(
        replace(
            state,
            levels=levels,
            found=replace(found, best=best, shipped=best),
            certificate=Certificate(evidence, (), (), certified=False),
        ),
        run,
    )

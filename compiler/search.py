"""search(): one stream of blocks over a SearchSpace, on any Oracle.

The search asks for blocks of examples a window ahead and is told results in the order asked, so that decisions depend
on the seed alone and a slow answer holds nobody up. There is no barrier: phases change at fixed shares of the budget
asked for, while blocks of the phase before are still in flight. `plan.py` has the phases, `verdict.py` the guard.
"""

from collections.abc import Callable, Mapping

from .contract import Interrupted, SearchOptions, SearchResult
from .oracle import Block, Exhausted, Oracle, Table, as_oracle
from .renewal import LevelBelief, RenewalView, SlotBelief
from .sampler import SamplerName, check_sampler
from .space import Point, SearchSpace, Slot
from .stream import Stream
from .study import Trial

__all__ = [
    "Block",
    "Exhausted",
    "Interrupted",
    "LevelBelief",
    "Oracle",
    "RenewalView",
    "SamplerName",
    "SearchOptions",
    "SearchResult",
    "SlotBelief",
    "Table",
    "Trial",
    "search",
]


def search(
    space: SearchSpace,
    oracle: Oracle | Table,
    *,
    budget: int,
    seed: int,
    options: SearchOptions | None = None,
    baseline: Point | None = None,
    renew: Callable[[RenewalView], Mapping[str, int | Slot]] | None = None,
) -> SearchResult:
    """Return the best point of `space` that `budget` metric calls can find.

    Args:
        space: The points.
        oracle: What scores them: an Oracle, or an object with `examples` and `score(point, examples)`.
        budget: Metric calls, the baseline's included.
        seed: Same seed, same decisions, at any concurrency of the oracle.
        options: How.
        baseline: The point to beat; by default the point of zeros.
        renew: Called once for each entry of `options.renewals`, when so many blocks were asked for or the space has
            nothing left worth asking, with what is known then (`renewal.py`: the points that were scored, every
            level's effect, which levels and slots are dead). It returns how many levels were appended to each slot; it
            may take its time, what was asked for goes on. A slot that is new stands behind the others, with level 0
            for known points.

    Raises Interrupted on Ctrl-C, ValueError where a score isn't a finite number.
    """
    chosen = options or SearchOptions()
    check_sampler(chosen.sampler)
    home = space.baseline if baseline is None else tuple(baseline)
    if not space.allows(home):
        raise ValueError(f"`the baseline is a point of the space` must hold, but got {home}.")
    stream = Stream(space, as_oracle(oracle), budget, seed, chosen, home, renew)
    try:
        stream.run()
    except KeyboardInterrupt:
        raise Interrupted(stream.interrupted()) from None
    return stream.result()

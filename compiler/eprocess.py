"""evidence(): an anytime-valid test of paired differences by betting; no model, and the look may be at any time.

A gambler who starts with 1 and stakes the share lambda of what he has on each difference x, in units of its bound, has

    E_n = product over i <= n of (1 + lambda x_i),    0 <= lambda < 1, -1 <= x_i <= 1

If the differences' mean is at most zero, E is a nonnegative supermartingale: the chance that it ever reaches 1 / alpha
is at most alpha (Ville, 1939), whenever somebody looks, however often, and whyever he stops. The stake isn't known
beforehand, so that the capital is spread over a grid of them: an average of such processes is one. (Waudby-Smith and
Ramdas, Estimating means of bounded random variables by betting, JRSS-B 86, 2024; Ramdas, Grünwald, Vovk and Shafer,
Game-theoretic statistics and safe anytime-valid inference, Statistical Science 38, 2023.)

Of K arms that were ever entered the best one's E counts at K / alpha: a union over the arms.
"""

import numpy as np

from .scores import Floats

STAKES = np.geomspace(0.02, 0.9, 12)
"""Shares of the capital that are staked. The best one for a mean m and a variance v is about m / (v + m^2)."""


def evidence(differences: Floats, bound: float = 1.0) -> Floats:
    """Return the log of the e-process against `the mean difference is at most 0` after each difference.

    Args:
        differences: In an order that was fixed before they were seen, of examples drawn at random.
        bound: What no difference can exceed in size: the width of the scores' range.

    Raises ValueError where a difference exceeds it: a test that trusts a wrong bound proves nothing.
    """
    bets = np.asarray(differences, dtype=np.float64) / bound
    if len(bets) and float(np.abs(bets).max()) > 1 + 1e-12:
        raise ValueError(f"`differences are at most {bound}` must hold, but got {float(np.abs(bets).max() * bound)}.")
    capital = np.cumsum(np.log1p(STAKES * bets[:, None]), axis=0)
    most = capital.max(axis=1, initial=0.0)
    log: Floats = most + np.log(np.exp(capital - most[:, None]).mean(axis=1))
    return log


def proven(differences: Floats, arms: int, alpha: float, bound: float = 1.0) -> bool:
    """Say whether the mean difference of one of `arms` arms is above zero, at level `alpha` over all of them.

    At any moment of the order and not only at the end: what was proven once stays so.
    """
    return bool(evidence(differences, bound).max(initial=0.0) >= np.log(max(1, arms) / alpha))

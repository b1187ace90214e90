"""lost_a_race(): whether an error is one that somebody else's code gives where threads run at once.

- CPython 3.11's parser raises SystemError where threads parse Python, as DSPy's parser of replies does (gh-106905).
- tqdm keeps its bars in a set that all threads change, and fails with KeyError or RuntimeError; `dspy.Parallel` makes a
  bar for every call, shown or not.
"""

import traceback


def lost_a_race(error: BaseException | None) -> bool:
    """Say whether what raised `error` may well succeed when it is run again."""
    if error is None or isinstance(error, SystemError):
        return error is not None
    if not isinstance(error, KeyError | RuntimeError):
        return False
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    if modules[-1:] == ["_weakrefset"]:
        modules.pop()  # the set's own code
    return bool(modules) and modules[-1].partition(".")[0] == "tqdm"

"""What is said after Ctrl-C: where the best program so far is, and how to go on."""

import json
from pathlib import Path
from typing import Any

from .compiling import resume_command


def stopped_sentence(stop: BaseException) -> str:
    """Return what to say of a compile that was stopped.

    Args:
        stop: The KeyboardInterrupt; its `run_dir` is the run's directory where one was begun, its `uncertified` the
            file with the best program so far where that was written.
    """
    run, file = getattr(stop, "run_dir", None), getattr(stop, "uncertified", None)
    if run is None:
        return "stopped before anything was asked."
    go_on = f"`{resume_command(_near(run))}` goes on."
    return f"stopped; {'' if file is None else _found(file)}what was paid is kept: {go_on}"


def _found(file: Path) -> str:
    """Return where the best program so far is, and what speaks for it, as far as its file says so."""
    place = f"the best program so far is {_near(file)}, uncertified: "
    try:
        content: Any = json.loads(file.read_bytes())
        evidence, shipped = content["evidence"], content["selection"]["shipped"]
        compiled, baseline, n = float(evidence["compiled"]), float(evidence["baseline"]), int(evidence["n"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"{place}only select rows speak for it, and the sealed test stays shut; "
    from .display import percent

    if n == 0 or shipped == "baseline":
        return "nothing better than the program as it was has been found so far, and "
    return (
        f"{place}{percent(compiled)} on {n} select rows, where the program as it was has {percent(baseline)}; the "
        "sealed test stays shut, and "
    )


def _near(path: Path) -> Path:
    """Return a path as it is typed here: relative where it is below the working directory."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path

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
    if file is None:
        return f"stopped; what was paid is kept: {go_on}"
    return f"stopped; the best program so far is {_near(file)}, uncertified: {_evidence(file)}. {go_on}"


def _evidence(file: Path) -> str:
    """Return what an uncertified program's file says of its worth, as far as it says so."""
    nothing = "only rows of the select set speak for it, and the sealed test stays shut"
    try:
        evidence: Any = json.loads(file.read_bytes())["evidence"]
        compiled, baseline, n = float(evidence["compiled"]), float(evidence["baseline"]), int(evidence["n"])
    except (OSError, ValueError, KeyError, TypeError):
        return nothing
    from .display import percent

    return (
        f"{percent(compiled)} on {n} select rows, where the program as it was has {percent(baseline)}; the sealed test "
        "stays shut"
    )


def _near(path: Path) -> Path:
    """Return a path as it is typed here: relative where it is below the working directory."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path

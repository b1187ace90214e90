"""The accepted traces of a compile, kept in its run's directory: what a model can be trained on later."""

import json
from collections.abc import Sequence
from pathlib import Path

from ..programs.exact import exact, from_exact
from ..programs.files import write_atomically
from ..programs.finetune import Trace
from ..signatures.canonical import canonical_json
from ..signatures.errors import ArtifactError, RequestError, nearest
from .strategy import Accepted

FILE = "traces.jsonl"


def write_traces(run: Path, accepted: Sequence[Accepted]) -> None:
    """Write one line for each predictor's call in an accepted trace; the same compile writes the same bytes.

    Raises:
        ArtifactError: If the file can't be written.
    """
    lines = [
        canonical_json(
            {
                "path": path,
                "row": item.example.row,
                "score": item.score,
                "values": {name: exact(value) for name, value in demo.items()},
            }
        )
        for item in accepted
        for path, demos in sorted(item.demos.items())
        for demo in demos
    ]
    write_atomically(run / FILE, "".join(f"{line}\n" for line in lines).encode())


def read_traces(run: Path) -> tuple[Trace, ...]:
    """Return the accepted traces of a run, in the order of its training rows.

    Raises:
        RequestError: If there is no such run, it has no traces, or they are damaged.
    """
    if not (run / "ledger.jsonl").exists():
        near = sorted(item.name for item in run.parent.iterdir() if item.is_dir()) if run.parent.is_dir() else []
        raise RequestError(f"{run} is no run: `a run's directory holds ledger.jsonl`; {nearest(run.name, near)}")
    try:
        lines = (run / FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise RequestError(
            f"{run} has no {FILE}: it didn't come to its end, or an older vitrify began it; `vitrify resume` writes it."
        ) from None
    except (OSError, ValueError) as error:
        raise RequestError(f"{run / FILE} can't be read ({error}); `vitrify resume` writes it again.") from error
    try:
        return tuple(_trace(line) for line in lines)
    except (ValueError, KeyError, TypeError, AttributeError, ArtifactError) as error:
        raise RequestError(f"{run / FILE} is damaged ({error}); `vitrify resume` writes it again.") from error


def _trace(line: str) -> Trace:
    found = json.loads(line)
    return Trace(found["path"], {name: from_exact(value) for name, value in found["values"].items()}, found["row"])

"""Lines: the outcomes of single runs, one JSON object a line, appended as they come and never computed twice.

A line bears a fingerprint of the code that made it, so that lines of an earlier search or rival are passed over.
"""

import ast
import functools
import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
import mipro
import optuna
import rivals
import tables
import worlds
from vitrify.compiler import search

TRUTH = "truth"
"""Who holds a line that tells of a task and of nobody: the gains of its best point and of the floor."""


@dataclass(frozen=True)
class Key:
    """Which run a line is of."""

    cell: str
    seed: int
    who: str


class Lines:
    """A file of lines.

    Args:
        path: Made where it is missing. A last line that an interruption cut short is passed over.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[Key, dict[str, Any]] = {}
        if path.exists():
            for key, outcome in self._read():
                self.known[key] = outcome

    def _read(self) -> Iterator[tuple[Key, dict[str, Any]]]:
        """Yield the lines whose code is that of today."""
        for text in self.path.read_text().splitlines():
            try:
                line = json.loads(text)
                key = Key(line.pop("cell"), line.pop("seed"), line.pop("who"))
                code = line.pop("code")
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
            if code == fingerprint(key.cell, key.who):
                yield key, line

    def add(self, key: Key, outcome: Mapping[str, Any]) -> None:
        """Keep a line, in the file too."""
        self.known[key] = dict(outcome)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = {"cell": key.cell, "seed": key.seed, "who": key.who, "code": fingerprint(key.cell, key.who), **outcome}
        with self.path.open("a") as file:
            if file.tell() and not self._whole:
                file.write("\n")
            file.write(json.dumps(line) + "\n")

    @functools.cached_property
    def _whole(self) -> bool:
        """Whether the file ended with a whole line when it was opened."""
        return self.path.read_bytes().endswith(b"\n")

    def of(self, cell: str) -> dict[str, dict[int, dict[str, Any]]]:
        """Return a cell's outcomes by who and seed."""
        found: dict[str, dict[int, dict[str, Any]]] = {}
        for key, outcome in self.known.items():
            if key.cell == cell:
                found.setdefault(key.who, {})[key.seed] = outcome
        return found


@functools.lru_cache(maxsize=4096)
def fingerprint(cell: str, who: str) -> str:
    """Return a digest of the code that a run's outcome depends on."""
    if who.startswith("compile"):
        root = _file(search).parent.parent
        parts = [path.read_text() for package in ("compiler", "programs", "signatures", "teleprompters", "vitrify")
                 for path in sorted((root / package).glob("*.py"))]  # fmt: skip
        return _digest(*parts, (Path(__file__).parent / "road.py").read_text(), dspy.__version__, optuna.__version__)
    parts = [_file(tables if cell.partition("-")[0] in tables.FILES else worlds).read_text()]
    if who == "mipro":
        parts += [_file(mipro).read_text(), dspy.__version__, optuna.__version__]
    elif who in rivals.SHARES:
        parts += [*_closure(_file(search)), inspect.getsource(rivals.Counter), inspect.getsource(rivals.run)]
    elif who != TRUTH:
        parts += [_file(rivals).read_text(), optuna.__version__ if who == "tpe" else ""]
    return _digest(*parts)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _file(module: Any) -> Path:
    return Path(str(module.__file__)).resolve()


@functools.lru_cache(maxsize=4)
def _closure(start: Path) -> tuple[str, ...]:
    """Return the texts of a module and of all that it imports from its own package, in a fixed order."""
    found: dict[Path, str] = {}
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path in found or not path.exists():
            continue
        found[path] = path.read_text()
        for node in ast.walk(ast.parse(found[path])):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                names = [node.module] if node.module else [alias.name for alias in node.names]
                waiting += [path.parent / f"{name}.py" for name in names]
    return tuple(found[path] for path in sorted(found))

"""The search beside its rivals: worlds with a known truth, recorded outcomes, a real compile. `make bench-search`.

    python benchmarks/search.py                                # a few minutes
    python benchmarks/search.py --full --jobs 2                # 200 worlds a cell, 400 seeds a table: hours
    python benchmarks/search.py --only worlds --cells 'default-*' --seeds 0-40 --rivals ours,mipro
    python benchmarks/search.py --report                       # nothing but the table of what is there

Every run's outcome is a line of a file, so that a benchmark can be interrupted, resumed and extended. Seeds below
10,000 are for tuning, those from there on for reporting.
"""

import argparse
import fnmatch
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")

import mipro
import report
import rivals
import tables
import worlds
from lines import TRUTH, Key, Lines

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / ".vitrify" / "bench-search.jsonl"

REPORTING = 10_000
"""Seeds from here on are for reporting, those below for tuning."""

QUICK = ("default-1-*", "default-2-*", "default-4-light", "small-2-medium", "interaction-2-light", "coupled-2-light",
         "null-2-light", "good1-2-light")  # fmt: skip
"""World cells of the quick mode."""

SEEDS = {"worlds": (12, 200), "tables": (20, 400), "compile": (1, 5)}
"""Seeds of a cell by part, in the quick and in the full mode."""

EVERYBODY = (*rivals.SHARES, *rivals.RIVALS)


@dataclass(frozen=True)
class Cell:
    """One row of a table: a task for each seed, and the metric calls that are given."""

    name: str

    @property
    def kind(self) -> str:
        """The kind of world, or the table."""
        return self.name.partition("-")[0]

    @property
    def budget(self) -> int:
        """The calls: in a world those that MIPROv2 spends in its auto mode."""
        if self.kind in tables.FILES:
            return int(self.name.partition("-")[2])
        _, predictors, effort = self.name.split("-")
        return mipro.auto_calls(effort, int(predictors))

    @property
    def auto(self) -> str | None:
        """The auto mode of MIPROv2."""
        return None if self.kind in tables.FILES else self.name.split("-")[2]

    def task(self, seed: int) -> Any:
        """Return the task of a seed."""
        if self.kind in tables.FILES:
            return tables.Recorded(self.kind, seed)
        _, predictors, effort = self.name.split("-")
        return worlds.World(self.kind, int(predictors), "light" if effort == "light" else "medium", seed)


def world_cells() -> list[Cell]:
    """Return every cell of worlds."""
    return [
        Cell(f"{kind}-{predictors}-{effort}")
        for kind in worlds.KINDS
        for predictors in (1, 2, 4, 8)
        for effort in worlds.ROWS
    ]


def table_cells() -> list[Cell]:
    """Return every cell of recorded tables."""
    return [Cell(f"{name}-{budget}") for name in tables.FILES for budget in tables.BUDGETS]


def run(asked: tuple[str, int, Sequence[str]]) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Yield the outcomes of all who search one task."""
    name, seed, who = asked
    cell = Cell(name)
    task = cell.task(seed)
    for one in who:
        if one == TRUTH:
            home = task.truth(task.home)
            outcome = {"best": task.truth(task.best()) - home, "floor": task.truth(task.floor()) - home, "home": home}
        else:
            outcome = rivals.run(one, task, cell.budget, seed, cell.auto)
        yield Key(name, seed, one), outcome


def listed(asked: tuple[str, int, Sequence[str]]) -> list[tuple[Key, dict[str, Any]]]:
    """Return the same at once, for a worker."""
    return list(run(asked))


def fill(lines: Lines, cells: Sequence[Cell], seeds: Sequence[int], who: Sequence[str], jobs: int) -> None:
    """Run whatever is missing, seed by seed, so that an interruption leaves all cells alike."""
    asked = []
    for seed in seeds:
        for cell in cells:
            missing = [one for one in (TRUTH, *who) if Key(cell.name, seed, one) not in lines.known]
            if missing:
                asked.append((cell.name, seed, missing))
    done = 0
    if jobs == 1:
        for one in asked:
            for key, outcome in run(one):
                lines.add(key, outcome)
            done += 1
            _progress(done, len(asked))
        return
    with get_context("fork").Pool(jobs) as pool:
        for found in pool.imap_unordered(listed, asked):
            for key, outcome in found:
                lines.add(key, outcome)
            done += 1
            _progress(done, len(asked))


def _progress(done: int, all_: int) -> None:
    if sys.stderr.isatty() or done == all_ or done % 200 == 0:
        print(f"\r{done} of {all_}", end="\n" if done == all_ else "", file=sys.stderr, flush=True)


def compile_runs(lines: Lines, full: bool, repeats: int) -> None:
    """Compile help desk and Banking77 on the embedded model, ours beside dspy.MIPROv2, where a line is missing."""
    import road

    for task in road.tasks():
        for who in road.COMPILERS if full else road.COMPILERS[:3]:
            for seed in range(repeats):
                key = Key(task.name, seed, f"compile {who}")
                if key not in lines.known:
                    theirs = lines.known.get(Key(task.name, seed, f"compile dspy.MIPROv2 {who.split()[-1]}"), {})
                    lines.add(key, road.outcome(task, who, seed, theirs.get("lm_calls")))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="every cell, and as many seeds as the figures need")
    parser.add_argument("--only", choices=("worlds", "tables", "compile"), help="one part")
    parser.add_argument("--cells", nargs="+", default=None, help="patterns of cells, say 'default-2-*' gsm8k-1200")
    parser.add_argument("--seeds", default=None, help="A-B: from A to below B")
    parser.add_argument("--rivals", default=",".join(EVERYBODY), help="who, with commas between")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, default=OUT, help="the file of lines")
    parser.add_argument("--report", action="store_true", help="run nothing, show what is there")
    found = parser.parse_args(arguments)
    found.who = tuple(found.rivals.split(","))
    unknown = [one for one in found.who if one not in EVERYBODY]
    if unknown:
        parser.error(f"`--rivals are of {', '.join(EVERYBODY)}` must hold, but got {', '.join(unknown)}.")
    names = [cell.name for cell in (*world_cells(), *table_cells())]
    nobody = [pattern for pattern in found.cells or () if not fnmatch.filter(names, pattern)]
    if nobody:
        parser.error(f"`--cells are patterns of cells, with spaces between` must hold, but none is {nobody[0]!r}.")
    return found


def chosen(arguments: argparse.Namespace, part: str) -> tuple[list[Cell], range]:
    """Return the cells and the seeds of a part."""
    cells = world_cells() if part == "worlds" else table_cells()
    patterns = arguments.cells or (QUICK if part == "worlds" and not arguments.full else ("*",))
    cells = [cell for cell in cells if any(fnmatch.fnmatch(cell.name, pattern) for pattern in patterns)]
    if arguments.seeds is not None:
        first, _, last = arguments.seeds.partition("-")
        return cells, range(int(first), int(last))
    first = REPORTING if arguments.full else 0
    return cells, range(first, first + SEEDS[part][arguments.full])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and print the tables."""
    found = parsed(arguments)
    lines = Lines(found.out)
    parts = [found.only] if found.only else ["worlds", "tables", *([] if found.cells else ["compile"])]
    shown: list[str] = []
    for part in parts:
        if part == "compile":
            if not found.report:
                compile_runs(lines, found.full, SEEDS[part][found.full])
            shown += report.compiles(lines)
            continue
        if part == "tables" and not tables.available():
            shown.append(f"Recorded outcomes are left out: {tables.DATA} has none of them (set VITRIFY_DATA).")
            continue
        cells, seeds = chosen(found, part)
        if not found.report:
            fill(lines, cells, seeds, found.who, found.jobs)
        said = "reporting" if seeds.start >= REPORTING else "tuning"
        print(f"\n{part}: {said} seeds {seeds.start} to {seeds.stop - 1}, lines in {found.out}\n")
        results = [report.Result(cell.name, cell.budget, lines.of(cell.name), seeds) for cell in cells]
        show = report.worlds if part == "worlds" else report.tables
        print("\n".join(show(results)), flush=True)
        if part == "worlds":
            report.plot(results, found.out.with_suffix(".svg"))
    if shown:
        print("\n" + "\n".join(shown))


if __name__ == "__main__":
    main()

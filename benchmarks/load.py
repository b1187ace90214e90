"""Import and load of a frozen program in fresh processes, before its first call, as a ratio against stock DSPy.

    make bench-engine
    python benchmarks/load.py --repeats 20

The program is the helpdesk example with the instructions and demonstrations of a small compile. Ours is
`import vitrify; vitrify.load("helpdesk.json", lm="openai/gpt-4o-mini")`, the client included; DSPy's is its own way,
`import dspy`, the program's class, `program.load("helpdesk-state.json")`, and no client yet. Each process measures
itself from its first line on: wall clock, its own CPU time (the cores are shared), and VmRSS right after. The start of
the interpreter isn't in the times; its memory is in VmRSS, and stands in a row of its own. Bytecode is written before
the first repeat, as it is where programs are installed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")

HELPDESK = Path(__file__).resolve().parent.parent / "examples" / "helpdesk"

MEASURED = """
import time
wall, cpu = time.perf_counter(), time.process_time()
{work}
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
with open("/proc/self/status") as status:
    kilobytes = int(status.read().partition("VmRSS:")[2].split()[0])
import json
print(json.dumps({{"wall": 1e3 * wall, "cpu": 1e3 * cpu, "memory": kilobytes / 1024}}))
"""
OURS = 'import vitrify\nprogram = vitrify.load({artifact!r}, lm="openai/gpt-4o-mini")'
THEIRS = "import dspy\nfrom program import Helpdesk\nprogram = Helpdesk()\nprogram.load({state!r})"


def fresh(work: str) -> dict[str, float]:
    """Return wall-clock and CPU milliseconds and resident MB of some work in a fresh process."""
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        "OPENAI_API_KEY": "none",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(HELPDESK), os.environ.get("PYTHONPATH")))),
    }
    run = subprocess.run(
        [sys.executable, "-c", MEASURED.format(work=work)],
        capture_output=True, text=True, check=True, cwd="/", env=environment,
    )  # fmt: skip
    measured: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return measured


def saved(folder: Path) -> dict[str, str]:
    """Write the helpdesk program as our artifact and as DSPy's state, with equal instructions and demonstrations."""
    import dspy
    from vitrify.compiler.data import load_rows
    from vitrify.compiler.importing import load_object

    import vitrify

    make: Any = load_object(f"{HELPDESK / 'program.py'}:Helpdesk")
    metric: Any = load_object(f"{HELPDESK / 'program.py'}:routed", kind="metric")
    artifact = vitrify.compile(
        make(),
        load_rows(HELPDESK / "tickets.jsonl"),
        metric,
        lm="embedded",
        run_dir=folder / "run",
        budget=vitrify.Budget(calls=1500),
        options=vitrify.Options(instructions=2, demo_sets=2),
    )
    program = make()
    for path, predictor in program.named_predictors():
        params = artifact.candidate[path]
        predictor.signature = predictor.signature.with_instructions(params.instruction)
        predictor.demos = [dspy.Example(**demo) for demo in params.demos]
    program.save(folder / "state.json")
    return {"artifact": str(artifact.save(folder / "helpdesk.json")), "state": str(folder / "state.json")}


def shown(values: list[float]) -> str:
    """Return the median and the range."""
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def load(repeats: int) -> None:
    """Print what import and load take in fresh processes, and the ratio to DSPy."""
    with tempfile.TemporaryDirectory() as folder:
        files = saved(Path(folder))
        works: Mapping[str, str] = {
            "theirs": THEIRS.format(**files), "ours": OURS.format(**files), "nothing": "pass",
        }  # fmt: skip
        for work in works.values():
            fresh(work)
        rows = [{name: fresh(work) for name, work in works.items()} for _ in range(repeats)]
    print(f"\n| frozen program: import and load, {repeats} fresh processes each | DSPy | vitrify | ratio |")
    print("|---|---|---|---|")
    for key, label in (("wall", "wall clock, ms"), ("cpu", "CPU, ms"), ("memory", "resident memory after load, MB")):
        theirs, ours = ([row[name][key] for row in rows] for name in ("theirs", "ours"))
        ratio = statistics.median(a / b for a, b in zip(theirs, ours, strict=True))
        print(f"| {label} | {shown(theirs)} | {shown(ours)} | 1/{ratio:.1f} |")
    bare = shown([row["nothing"]["memory"] for row in rows])
    print(f"| of which the interpreter alone, MB | {bare} | {bare} | |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    load(parser.parse_args().repeats)


if __name__ == "__main__":
    main()

"""Makes the golden files of a format version that is about to be released: `make golden`.

A golden file is an artifact and, beside it, what it must do for ever: for recorded inputs and replies the very requests
and outputs. Files of a version that has been released are never made again, whatever the compiler learns; this script
refuses to. A new format version gets a folder of its own, and loaders go on reading the old one.
"""

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dspy
from vitrify.compiler.importing import load_object
from vitrify.programs.artifact import FORMAT, Artifact, read_artifact
from vitrify.programs.embedded import Embedded
from vitrify.programs.lm import Reply, Request

import vitrify
from tests.golden.programs import Gate, Orders, any_answer
from tests.golden.replay import Body, expected
from tests.server import ScriptedServer

HERE = Path(__file__).parent
HELPDESK = HERE.parent.parent / "examples" / "helpdesk"
ROWS: list[dict[str, Any]] = [json.loads(line) for line in (HELPDESK / "tickets.jsonl").read_text().splitlines()]
SMALL = vitrify.Options(instructions=2, demo_sets=2, max_demos=4, concurrency=2, cache=False)

READ = {
    "count": 2, "total": 12.5, "urgent": True, "day": "2024-03-01", "size": "large", "kind": "gift",
    "tags": ["a", "b«"], "item": {"name": "Tée", "price": 1.0, "tags": []}, "pair": [7, "x"], "comment": None,
}  # fmt: skip
WRITTEN = {"reasoning": "because\nof that", "answer": "It is on its way.", "sure": 0.75}


class Interrupting(Embedded):
    """The embedded model; at a request in the search the person at the keyboard presses Ctrl-C."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def complete(self, request: Request) -> Reply:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return super().complete(request)


def chat(values: dict[str, Any]) -> str:
    """Return a reply in the chat format."""
    parts = [f"[[ ## {k} ## ]]\n{v if isinstance(v, str) else json.dumps(v)}" for k, v in values.items()]
    return "\n\n".join([*parts, "[[ ## completed ## ]]"])


def orders_answer(body: Body) -> str:
    """Answer the Orders program in the format that is asked for; with demonstrations every answer is right."""
    asked = body["messages"][-1]["content"]
    values = READ if "`count`" in asked or "## count ##" in asked else WRITTEN
    # Every second note has another count, which the second predictor sees in its facts.
    if values is READ and any(f"note {n}\n" in asked for n in range(1, 60, 2)):
        values = {**READ, "count": 3}
    elif values is WRITTEN and len(body["messages"]) == 2 and "3 of" in asked:
        values = {**WRITTEN, "answer": "no"}
    return json.dumps(values) if "Respond with a JSON object" in asked else chat(values)


def compiled(program: Any, rows: Any, metric: Any, *, lm: Any = "embedded", **options: Any) -> Artifact:
    """Return the artifact of a small compile."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = vitrify.Options(**{**{k: getattr(SMALL, k) for k in SMALL.__dataclass_fields__}, **options})
        budget = vitrify.Budget(calls=900)
        return vitrify.compile(program, rows, metric, lm=lm, budget=budget, run_dir=folder, options=chosen)


def helpdesk() -> Artifact:
    """A sealed program of two predictors that the search improved."""
    program: Any = load_object(f"{HELPDESK / 'program.py'}:Helpdesk")
    return compiled(
        program(), ROWS[:120], load_object(f"{HELPDESK / 'program.py'}:routed"), instructions=4, demo_sets=4
    )


def orders(adapter: Any = None) -> Artifact:
    """A sealed program with several types, compiled for a model that takes a schema for its replies."""
    rows = [
        {"note": f"note {n}", "lines": ["one", "two\nlines"], "known": {"b": n, "a": 1.0}, "since": "2024-01-01",
         "limit": n + 1, "answer": "It is on its way."}
        for n in range(60)
    ]  # fmt: skip
    with ScriptedServer(orders_answer) as server, dspy.context(adapter=adapter):
        return compiled(
            Orders(), rows, "exact:answer", lm="openai/gpt-4o-mini", api_base=server.url, api_key="none", instructions=0
        )


def uncertified() -> Artifact:
    """The incumbent of a compile that was interrupted in its search."""
    program: Any = load_object(f"{HELPDESK / 'program.py'}:Helpdesk")
    metric = load_object(f"{HELPDESK / 'program.py'}:routed")
    with tempfile.TemporaryDirectory() as folder:
        try:
            vitrify.compile(
                program(), ROWS[:120], metric, lm=Interrupting(400), run_dir=folder, options=SMALL,
                budget=vitrify.Budget(calls=900),
            )  # fmt: skip
        except KeyboardInterrupt:
            return read_artifact(Path(folder) / "uncertified.json")
    raise AssertionError("the compile ended before it was interrupted")


def gate() -> Artifact:
    """A program whose code stays with its class."""
    rows = [row for row in ROWS if row["team"] in ("delivery", "returns", "billing", "account")][:80]
    return compiled(Gate(), [{"message": row["message"], "team": row["team"]} for row in rows], "exact:team")


def baseline() -> Artifact:
    """A compile in which nothing could be gained: the baseline ships."""
    rows = [{"message": row["message"], "team": row["team"]} for row in ROWS[:60]]
    return compiled(dspy.Predict("message -> team"), rows, any_answer)


DESK_INPUTS: list[dict[str, Any]] = [
    {"message": text} for text in ("Where is my parcel?", "I was charged twice — «help»", "", "日本\u2028語 \U0001f642")
]
ORDER_INPUTS: list[dict[str, Any]] = [
    {"note": "two\ntées", "lines": [], "known": {"z": 1, "a": {"y": 2.0, "x": []}}, "since": "2024-02-29", "limit": 2},
    {"note": "n", "lines": ["«a»", "b\nc"], "known": {}},
    {"note": ["as", "a list"], "lines": ["x"], "known": {"k": None}, "since": "2020-01-01", "limit": 1},
]
Run = tuple[dict[str, Any], list[str] | None]
UNREADABLE: list[str] = ["I don't know.", "Still not."]
MADE: dict[str, tuple[Callable[[], Artifact], Sequence[Run]]] = {
    "helpdesk": (helpdesk, [
        *((inputs, None) for inputs in DESK_INPUTS),
        ({"message": "a"}, ["unreadable", '{"team": "privacy"}', chat({"urgency": "low"})]),
        ({"message": "a"}, UNREADABLE),
    ]),
    "uncertified": (uncertified, [(inputs, None) for inputs in DESK_INPUTS[:2]]),
    "unsealed": (gate, [(inputs, None) for inputs in DESK_INPUTS]),
    "baseline": (baseline, [(DESK_INPUTS[0], [chat({"team": "delivery"})])]),
    "orders-chat": (orders, [
        *((inputs, [chat(READ), chat(WRITTEN)]) for inputs in ORDER_INPUTS),
        (ORDER_INPUTS[0], ["unreadable", json.dumps(READ), "unreadable", json.dumps(WRITTEN)]),
        (ORDER_INPUTS[0], [chat({**READ, "size": "LARGE", "kind": 3, "urgent": "true"}), chat(WRITTEN)]),
        (ORDER_INPUTS[0], [chat({**READ, "count": "many"}), json.dumps({**READ, "count": "more"})]),
    ]),
    "orders-json": (lambda: orders(dspy.JSONAdapter()), [
        *((inputs, [json.dumps(READ), json.dumps(WRITTEN)]) for inputs in ORDER_INPUTS),
        (ORDER_INPUTS[0], ["no JSON"]),
    ]),
}  # fmt: skip


def main(names: Sequence[str]) -> None:
    """Write the named golden files of the current format version, or all."""
    folder = HERE / FORMAT.replace("/", "-")
    if (folder / "RELEASED").exists():
        raise SystemExit(f"{FORMAT} is released: its golden files stay as they are")
    folder.mkdir(exist_ok=True)
    for name in names or MADE:
        make, runs = MADE[name]
        artifact = make()
        artifact.save(folder / f"{name}.artifact.json")
        program = Gate() if artifact.program.kind == "class" else None
        said = [expected(artifact, inputs, replies, program) for inputs, replies in runs]
        (folder / f"{name}.runs.json").write_text(json.dumps(said, indent=1, ensure_ascii=True) + "\n")
        print(name, artifact.program.kind, artifact.selection.shipped, artifact.evidence)


if __name__ == "__main__":
    main(sys.argv[1:])

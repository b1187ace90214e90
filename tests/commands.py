"""What the command line's tests share: a way to call it, a small program on disk, a server that answers as a model."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from vitrify.cli import app

ROOT = Path(__file__).resolve().parents[1]
HELPDESK = ROOT / "examples" / "helpdesk"
TICKETS = (HELPDESK / "tickets.jsonl").read_text(encoding="utf-8").splitlines()

PROGRAM = '''
"""A program, and others that are wrong."""
from typing import Literal
import dspy

Team = Literal["delivery", "returns", "billing", "account", "product", "warranty", "store", "privacy"]

class Route(dspy.Signature):
    """Find the team that should answer a customer's message."""
    message: str = dspy.InputField()
    team: Team = dspy.OutputField()

class Desk(dspy.Module):
    def __init__(self):
        super().__init__()
        self.route = dspy.Predict(Route)
    def forward(self, message):
        return self.route(message=message)

class Looped(Desk):
    """Can't be sealed."""
    def forward(self, message):
        for word in [message]:
            found = self.route(message=word)
        return found

class Wrapped(dspy.Module):
    def __init__(self, size, *, colour):
        super().__init__()
        self.route = dspy.Predict(Route)

def make():
    return Desk()

class Bare(dspy.Module):
    def forward(self, message):
        return dspy.Prediction(team="store")

class Boom(dspy.Module):
    def __init__(self):
        raise RuntimeError("there is no database")

class Raises(Desk):
    def forward(self, message):
        raise RuntimeError("forward is broken")

class Nothing(Desk):
    def forward(self, message):
        self.route(message=message)

class Plain:
    pass

LIMIT = 3

def exactly(example, pred, trace=None):
    return pred.team == example.team

def text(example, pred, trace=None):
    return "good"

def nan(example, pred, trace=None):
    return float("nan")

def nothing(example, pred, trace=None):
    return None

def raises(example, pred, trace=None):
    return pred.team == example.tema

def one(example):
    return 1.0

def feedback(gold, pred, trace, pred_name, pred_trace):
    right = gold.team == pred.team
    return dspy.Prediction(score=float(right), feedback="right" if right else f"it is {gold.team}")

def judged(example, pred, trace=None):
    verdict = dspy.Predict("expected, found -> same: bool")(expected=example.team, found=pred.team)
    return verdict.same
'''


class Called:
    """What a call of the command line did."""

    def __init__(self, code: int, stdout: str, stderr: str) -> None:
        self.code = code
        self.stdout = stdout
        self.stderr = stderr

    @property
    def sentence(self) -> str:
        """The last line of stderr, after progress and notes."""
        lines = [line for line in self.stderr.splitlines() if not re.match(r"\[\d/\d\] |note: ", line)]
        return "\n".join(lines)


def vitrify(*args: object) -> Called:
    """Call the command line in this process."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.stderr or "--debug" in args
    return Called(result.exit_code, result.stdout, result.stderr)


def compile_(
    *more: object,
    program: object = "desk.py:Desk",
    data: object = "rows.jsonl",
    metric: str = "exact:team",
    lm: str = "embedded",
    out: object = "out.json",
) -> Called:
    """Call `vitrify compile` with a small search, on what `workplace` wrote unless told otherwise."""
    small = ("--instructions", 2, "--demo-sets", 2, "--max-demos", 4)
    return vitrify(
        "compile", program, "--data", data, "--metric", metric, "--lm", lm, "-o", out,
        *(() if "--max-demos" in more else small), *more,
    )  # fmt: skip


def workplace(folder: Path, rows: int = 60) -> Path:
    """Write a program and rows into a folder."""
    (folder / "desk.py").write_text(PROGRAM, encoding="utf-8")
    (folder / "rows.jsonl").write_text("\n".join(TICKETS[:rows]) + "\n", encoding="utf-8")
    return folder


# A server's answers ---------------------------------------------------------------------------------------------------

_ASKED = re.compile(r"starting with the field `\[\[ ## (\w+) ## \]\]`|then `\[\[ ## (\w+) ## \]\]`")
_TEMPLATE = re.compile(r"\[\[ ## (\w+) ## \]\]\n\{\w+\}[ \t]*(?:# note: the value you produce (.*))?")


class Answers:
    """Answers a prompt of DSPy's chat format as a model would: the fields asked for, mostly right, always the same.

    Args:
        truth: rows whose labels are the right answers, found by their first text input.
        key: the input that a row is found by.
    """

    def __init__(self, truth: Sequence[Mapping[str, Any]] = (), key: str = "message") -> None:
        self._truth = {str(row[key]).strip(): row for row in truth}
        self._key = key

    def __call__(self, body: dict[str, Any]) -> str:
        messages = body["messages"]
        asked = str(messages[-1]["content"])
        fields = [first or other for first, other in _ASKED.findall(asked)]
        notes = dict(_TEMPLATE.findall(str(messages[0]["content"])))
        luck = int(hashlib.sha256(json.dumps(messages).encode()).hexdigest(), 16)
        found = re.search(rf"\[\[ ## {self._key} ## \]\]\n(.*?)\n\n", asked, re.DOTALL)
        row = self._truth.get(found[1].strip(), {}) if found else {}
        # Demonstrations help: that gives the search something to find.
        right = luck % 100 < (85 if len(messages) > 2 else 50)
        parts = [
            f"[[ ## {name} ## ]]\n{self._value(name, notes.get(name, ''), row if right else {}, luck)}"
            for name in fields
        ]
        return "\n\n".join([*parts, "[[ ## completed ## ]]"])

    def _value(self, name: str, note: str, row: Mapping[str, Any], luck: int) -> str:
        if name in row:
            value = row[name]
            return value if isinstance(value, str) else json.dumps(value)
        if "one of:" in note:
            choices = [item.strip() for item in note.partition("one of:")[2].split(";")]
            return choices[luck % len(choices)]
        if "True or False" in note:
            return "True" if luck % 2 else "False"
        if "JSON schema" in note or "list" in note:
            return json.dumps([f"item {luck % 7}"])
        return f"{name} {luck % 1000}"

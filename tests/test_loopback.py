"""Compiles against an OpenAI-compatible server on loopback: the examples, faults, budgets, Ctrl-C and going on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dspy
import pytest
from vitrify.compiler.importing import load_object
from vitrify.compiler.options import EVALUATIONS
from vitrify.programs.lm import LMError, Retry

import vitrify as front
from tests.commands import ROOT, TICKETS, Answers, compile_, vitrify, workplace
from tests.server import Fault, ScriptedServer, at_random, tokens

EXAMPLES = ROOT / "examples"
DATA = Path(os.environ.get("VITRIFY_DATA", ROOT.parent / "shared" / "data")) / "tasks"
SMALL = ("--instructions", 2, "--demo-sets", 2, "--max-demos", 4)

# Example: data, rows, program, metric, the input by which the server knows a row.
TASKS: dict[str, tuple[Path, int, str, str, str]] = {
    "helpdesk": (EXAMPLES / "helpdesk/tickets.jsonl", 60, "Helpdesk", "program.py:routed", "message"),
    "banking77": (DATA / "banking77_train.jsonl", 60, "Intents", "exact:intent", "message"),
    "gsm8k": (DATA / "gsm8k_train.jsonl", 50, "MathWord", "numeric:target", "input"),
    "hotpotqa": (DATA / "hotpotqa100.jsonl", 40, "TwoHop", "f1:answer", "question"),
}

BUSY = [Fault.status_code(429, retry_after="0"), Fault.status_code(500), Fault("drop"), Fault("truncate")]


class Task:
    """One example, with a few rows of its data."""

    def __init__(self, name: str, folder: Path) -> None:
        source, count, program, metric, self.key = TASKS[name]
        if not source.is_file():
            pytest.skip(f"{source} is missing: set VITRIFY_DATA to the folder that holds tasks/")
        lines = source.read_text(encoding="utf-8").splitlines()[:count]
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self.data = folder / f"{name}.jsonl"
        self.data.write_text("\n".join(lines) + "\n", encoding="utf-8")
        file = EXAMPLES / name / "program.py"
        self.program = f"{file}:{program}"
        self.metric = f"{file.parent}/{metric}" if metric.startswith("program.py") else metric
        self.calls = 3 if name == "hotpotqa" else 2
        self.budget = 500 if name == "hotpotqa" else 350

    def compile(self, server: ScriptedServer, name: str, *more: object) -> bytes:
        """Compile through `openai/` with a run directory of its own and return the artifact's bytes."""
        found = compile_(
            *SMALL, "--api-base", server.url, "--run-dir", f"run-{name}", *more,
            program=self.program, data=self.data, metric=self.metric, lm="openai/scripted", out=f"{name}.json",
        )  # fmt: skip
        assert found.code == 0, found.stderr
        return Path(f"{name}.json").read_bytes()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    asked = Retry.delay

    def sooner(self: Retry, attempt: int, error: LMError, uniform: float) -> float | None:
        """Waiting is tested elsewhere: here it would only take time."""
        delay = asked(self, attempt, error, uniform)
        return None if delay is None else delay / 100

    monkeypatch.setattr(Retry, "delay", sooner)
    return workplace(tmp_path)


@pytest.fixture(params=list(TASKS))
def task(request: pytest.FixtureRequest, here: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setitem(EVALUATIONS, "light", 300)  # a search as usual, and as short as tests are
    return Task(request.param, here)


def test_example(task: Task) -> None:
    """Compile, run and evaluate an example through `openai/`; the budget holds at the server, failed attempts too."""
    with ScriptedServer(Answers(task.rows, task.key)) as server:
        task.compile(server, "out", "--budget-calls", task.budget)
        assert 0 < len(server.requests) <= task.budget
        assert len(server.requests) == len({json.dumps(body) for body in server.bodies})  # nothing is asked twice
        at = ("--api-base", server.url, "--program", task.program)
        ran = vitrify("run", "out.json", "--input", task.data, *at)
        assert ran.code == 0, ran.stderr
        assert len(ran.stdout.splitlines()) == len(task.rows)
        scored = vitrify("evaluate", "out.json", "--data", task.data, "--metric", task.metric, "--json", *at)
        assert scored.code == 0, scored.stderr
        assert json.loads(scored.stdout)["score"] > 0.2


def test_example_with_faults_through_a_plain_lm(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """`openai/` and a plain dspy.LM give the same result, with a server that fails now and then as without."""
    made = []
    for faults in (None, at_random(0.1, BUSY)):
        with ScriptedServer(Answers(task.rows, task.key), faults=faults) as server:
            made.append(task.compile(server, f"openai-{bool(faults)}"))
            if not faults:
                quiet = len(server.requests)
            lm = dspy.LM("openai/scripted", api_base=server.url, api_key="none", cache=True)
            file, _, name = task.program.rpartition(":")
            artifact = front.compile(
                load_object(f"{file}:{name}")(),  # type: ignore[operator]
                task.data,
                task.metric,
                lm=lm,
                run_dir=f"run-lm-{bool(faults)}",
                options=front.Options(instructions=2, demo_sets=2, max_demos=4),
            )
            made.append(artifact.to_bytes())
            assert (len(server.requests) > 2 * quiet) == bool(faults)
    assert made[0] == made[2], "openai/ with faults"
    assert made[1] == made[3], "dspy.LM with faults"
    ours, theirs = json.loads(made[0]), json.loads(made[1])
    for part in ("predictors", "evidence", "selection"):
        assert ours[part] == theirs[part]


@pytest.mark.parametrize("budget", [150, 201, 400])
def test_budget_holds_at_the_server(here: Path, budget: int) -> None:
    rows = [json.loads(line) for line in TICKETS[:60]]
    with ScriptedServer(Answers(rows)) as server:
        found = compile_("--api-base", server.url, "--budget-calls", budget, lm="any")
        assert found.code == 0, found.stderr
        assert len(server.requests) <= budget


def test_tokens_and_dollars_hold_at_the_server(here: Path) -> None:
    rows = [json.loads(line) for line in TICKETS[:60]]
    with ScriptedServer(Answers(rows)) as server:
        at = ("--api-base", server.url, "--concurrency", 4, "--no-cache")
        for option, little, enough in (("tokens", 3000, 120_000), ("dollars", 0.003, 0.12)):
            more = () if option == "tokens" else ("--price", "1,1")
            few = compile_(f"--budget-{option}", little, *more, *at, "--run-dir", f"few-{option}", lm="any")
            assert few.code == 2 and f"budget.{option}" in few.sentence and "at least" in few.sentence
            before = len(server.requests)
            found = compile_(f"--budget-{option}", enough, *more, *at, "--run-dir", option, lm="any")
            assert found.code == 0, found.stderr
            spent = sum(tokens("".join(m["content"] for m in body["messages"])) + 20 for body in server.bodies[before:])
            assert 0.3 * 120_000 < spent < 1.02 * 120_000


def test_replies_that_need_a_second_call_keep_to_the_budget(here: Path) -> None:
    """What preflight didn't see, that some replies are asked for twice, ends the search early and not the compile."""
    rows = [json.loads(line) for line in TICKETS[:60]]
    good = Answers(rows)
    seen = 0

    def answer(body: dict[str, Any]) -> str:
        nonlocal seen
        seen += 1
        return "what?" if seen > 80 and "response_format" not in body and seen % 3 == 0 else good(body)

    with ScriptedServer(answer) as server:
        found = compile_("--api-base", server.url, "--budget-calls", 300, "--concurrency", 1, lm="any")
        assert len(server.requests) <= 300
        assert found.code == 0, found.stderr


def _started(here: Path, words: Sequence[object]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "vitrify", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=here)


def _wait_for(server: ScriptedServer, requests: int, child: "subprocess.Popen[str]") -> None:
    until = time.monotonic() + 30
    while len(server.requests) < requests and child.poll() is None and time.monotonic() < until:
        time.sleep(0.002)


def _interrupted(here: Path, server: ScriptedServer, number: signal.Signals, after: int) -> "tuple[int, str]":
    """Start a compile, send it a signal after some requests, and return its exit code and stderr."""
    words = (
        "compile", "desk.py:Desk", "--data", "rows.jsonl", "--metric", "exact:team", "--lm", "any",
        "--api-base", server.url, "-o", "out.json", "--concurrency", 4, "--budget-calls", 600, *SMALL,
    )  # fmt: skip
    child = _started(here, words)
    _wait_for(server, after, child)
    child.send_signal(number)
    _, stderr = child.communicate(timeout=20)
    return child.returncode, stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_and_gone_on(here: Path, number: signal.Signals) -> None:
    """Ctrl-C says one sentence and keeps the run; the same command goes on, and asks for nothing again."""
    rows = [json.loads(line) for line in TICKETS[:60]]
    with ScriptedServer(Answers(rows), latency=0.01) as server:
        code, stderr = _interrupted(here, server, number, after=100)
        if number is signal.SIGKILL:
            assert code == -signal.SIGKILL
        else:
            assert code == 130 and "Traceback" not in stderr
            last = stderr.splitlines()[-1]
            assert last.startswith("vitrify: stopped; ") and "`vitrify resume .vitrify/runs/desk-" in last
        assert not (here / "out.json").exists()
        before = len(server.requests)
        assert len(list(here.glob(".vitrify/runs/*/ledger.jsonl"))) == 1
        at = ("--api-base", server.url, "--concurrency", 4, "--budget-calls", 600)
        found = compile_(*at, lm="any")
        assert found.code == 0, found.stderr
        asked = Counter(json.dumps(body) for body in server.bodies)
        assert len(asked) > before > 50
        assert sum(asked.values()) - len(asked) <= 4  # at most what was in flight
        # And the result is that of a compile which nobody stopped.
        compile_(*at, "--run-dir", "undisturbed", lm="any", out="undisturbed.json")
        assert (here / "out.json").read_bytes() == (here / "undisturbed.json").read_bytes()


def test_ctrl_c_waits_for_no_server(here: Path) -> None:
    """A server that thinks for a minute doesn't keep anybody from leaving."""
    with ScriptedServer(faults=lambda number, body: Fault("hang")) as server:
        began = time.monotonic()
        code, stderr = _interrupted(here, server, signal.SIGINT, after=1)
        assert code == 130 and "Traceback" not in stderr and time.monotonic() - began < 20


@pytest.mark.parametrize("command", ["run one", "run rows", "evaluate"])
def test_ctrl_c_elsewhere(here: Path, command: str) -> None:
    assert compile_("--budget-calls", 200).code == 0
    with ScriptedServer(faults=lambda number, body: Fault("hang")) as server:
        words = {
            "run one": ("run", "out.json", "-i", "message=x"),
            "run rows": ("run", "out.json", "--input", "rows.jsonl"),
            "evaluate": ("evaluate", "out.json", "--data", "rows.jsonl", "--metric", "desk.py:exactly"),
        }
        at = ("--lm", "any", "--api-base", server.url)
        child = _started(here, [*words[command], *at])
        _wait_for(server, 1, child)
        child.send_signal(signal.SIGINT)
        stdout, stderr = child.communicate(timeout=20)
        assert (child.returncode, stdout, stderr) == (130, "", "vitrify: stopped.\n")


def test_the_examples_are_those_tested() -> None:
    assert sorted(path.parent.name for path in EXAMPLES.glob("*/program.py")) == sorted(TASKS)

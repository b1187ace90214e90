"""Ctrl-C and SIGTERM, sent to real processes: the first stops and says how to go on, the second ends at once."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.commands import TICKETS, Answers, compile_, vitrify, workplace
from tests.server import Fault, ScriptedServer
from vitrify.stopped import stopped_sentence

ROWS = [json.loads(line) for line in TICKETS[:60]]
SMALL = ("--instructions", "2", "--demo-sets", "2", "--max-demos", "4")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return workplace(tmp_path)


def script(body: str) -> "subprocess.Popen[str]":
    """Start a command line of these lines, and wait until it has said `ready`."""
    lines = "\n    ".join(["import time, os, signal", *body.splitlines()])
    code = f"from vitrify.boundary import boundary, run_app\ndef app():\n    {lines}\nrun_app(app)"
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
    )
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    return child


SLOW = """
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("first", flush=True)
    time.sleep({seconds})
    print("kept", flush=True)
    raise
"""
FIRST = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("second", FIRST)
def test_the_second_ends_at_once(first: signal.Signals, second: signal.Signals) -> None:
    child = script(SLOW.format(seconds=60))
    child.send_signal(first)
    assert child.stdout is not None and child.stdout.readline() == "first\n"
    time.sleep(0.2)
    child.send_signal(second)
    stdout, stderr = child.communicate(timeout=10)
    assert (child.returncode, stdout, stderr) == (130, "", "")


def test_the_second_ends_what_swallows_the_first() -> None:
    child = script(
        "while True:\n    try: print('ready', flush=True); time.sleep(60)\n"
        "    except BaseException: print('first', flush=True)"
    )
    child.send_signal(signal.SIGINT)
    assert child.stdout is not None and child.stdout.readline() == "first\n"
    time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=10)[1] == "" and child.returncode == 130


def test_one_signal_sent_twice_is_one() -> None:
    """`timeout` sends its signal to the process and to its group."""
    child = script(SLOW.format(seconds=0.5))
    child.send_signal(signal.SIGTERM)
    child.send_signal(signal.SIGTERM)
    assert child.communicate(timeout=10)[0] == "first\nkept\n" and child.returncode == 130


def test_what_was_to_be_ignored_is_ignored() -> None:
    body = "print('ready', flush=True)\nos.kill(os.getpid(), signal.SIGINT)\nprint('on', flush=True)"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = script(body)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert child.stdout is not None and child.stdout.read() == "on\n" and child.wait(10) == 0
    child.communicate()


def test_the_cursor_is_shown_again(here: Path) -> None:
    """A second Ctrl-C leaves no terminal without a cursor."""
    master, slave = pty.openpty()
    code = (
        "from vitrify.boundary import run_app\nimport os, signal, time\ndef app():\n"
        "    try: os.kill(os.getpid(), signal.SIGINT)\n"
        "    except KeyboardInterrupt: time.sleep(0.2); os.kill(os.getpid(), signal.SIGINT)\nrun_app(app)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stderr=slave, stdout=slave, cwd=Path(__file__).parent)
    os.close(slave)
    assert child.wait(20) == 130
    assert b"\x1b[?25h" in os.read(master, 1000)
    os.close(master)


# A compile ------------------------------------------------------------------------------------------------------------


def started(server: ScriptedServer, *more: object) -> "subprocess.Popen[str]":
    words = (
        "compile",
        "desk.py:Desk",
        "--data",
        "rows.jsonl",
        "--metric",
        "exact:team",
        "--lm",
        "any",
        "-o",
        "out.json",
    )
    at = ("--api-base", server.url, "--run-dir", "run", "--concurrency", "4", *SMALL)
    command = [sys.executable, "-m", "vitrify", *words, *at, *map(str, more)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(server: ScriptedServer, requests: int, child: "subprocess.Popen[str]") -> None:
    until = time.monotonic() + 30
    while len(server.requests) < requests and child.poll() is None and time.monotonic() < until:
        time.sleep(0.002)


def test_before_the_search(here: Path) -> None:
    """Nothing was found yet: it says how to go on, and waits for no server."""
    with ScriptedServer(faults=lambda number, body: Fault("hang")) as server:
        child = started(server)
        wait_for(server, 1, child)
        child.send_signal(signal.SIGINT)
        stdout, stderr = child.communicate(timeout=10)
    assert (child.returncode, stdout) == (130, "")
    assert stderr.splitlines()[-1] == (
        "vitrify: stopped; nothing better than the program as it was has been found so far, and what was paid is kept: "
        "`vitrify resume run` goes on."
    )
    assert not (here / "out.json").exists()


def test_before_anything(here: Path) -> None:
    (here / "slow.py").write_text(
        f"import time\n{(here / 'desk.py').read_text()}\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    words = ("slow.py:Desk", "--data", "rows.jsonl", "--metric", "exact:team", "--lm", "embedded", "-o", "out.json")
    command = [sys.executable, "-m", "vitrify", "compile", *words]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    stdout, stderr = child.communicate(timeout=10)
    assert (child.returncode, stdout, stderr) == (130, "", "vitrify: stopped before anything was asked.\n")
    assert not (here / ".vitrify").exists()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int]:
    """The bytes of a compile that nobody stops, and its requests."""
    with pytest.MonkeyPatch.context() as patch, ScriptedServer(Answers(ROWS)) as server:
        patch.chdir(workplace(tmp_path_factory.mktemp("undisturbed")))
        assert compile_("--api-base", server.url, "--budget-calls", 200, lm="any").code == 0
        return Path("out.json").read_bytes(), len(server.requests)


def told(server: ScriptedServer, child: "subprocess.Popen[str]") -> None:
    """Wait until a server that answers no more holds every call, and the run has written what it was told."""
    until = time.monotonic() + 30
    before, size = -1, 0
    while (server.in_flight < 4 or before != size) and child.poll() is None and time.monotonic() < until:
        time.sleep(0.3)
        before, size = size, sum(file.stat().st_size for file in Path("run").glob("*.jsonl"))


@pytest.mark.parametrize("number", FIRST)
def test_the_incumbent_is_kept(here: Path, undisturbed: tuple[bytes, int], number: signal.Signals) -> None:
    """In the search the best program so far is written, uncertified; the run goes on to the undisturbed bytes."""
    answered = int(0.8 * undisturbed[1])
    silent = True
    with ScriptedServer(
        Answers(ROWS), faults=lambda count, body: Fault("hang") if silent and count >= answered else None
    ) as server:
        child = started(server, "--budget-calls", 200)
        wait_for(server, answered, child)
        told(server, child)
        child.send_signal(number)
        stdout, stderr = child.communicate(timeout=30)
        assert (child.returncode, stdout) == (130, ""), stderr
        file, last = here / "run" / "uncertified.json", stderr.splitlines()[-1]
        assert file.exists(), stderr
        assert last.startswith("vitrify: stopped; the best program so far is run/uncertified.json, uncertified: ")
        assert re.search(r" \d+\.\d % on [1-9]\d* select rows, where the program as it was has \d+\.\d %; ", last)
        assert last.endswith("what was paid is kept: `vitrify resume run` goes on.")
        assert vitrify("inspect", file).code == 0 and not (here / "out.json").exists()
        silent = False
        found = vitrify("resume", "run")
        assert found.code == 0, found.stderr
        asked = Counter(json.dumps(body) for body in server.bodies)
        assert sum(asked.values()) - len(asked) <= 4  # at most what was in flight
    assert (here / "out.json").read_bytes() == undisturbed[0]


# What is said ---------------------------------------------------------------------------------------------------------


def stop(**attributes: Any) -> KeyboardInterrupt:
    found = KeyboardInterrupt()
    for name, value in attributes.items():
        setattr(found, name, value)
    return found


def test_where_the_incumbent_is(here: Path) -> None:
    run = here / "my runs" / "a"
    run.mkdir(parents=True)
    file = run / "uncertified.json"
    content: dict[str, Any] = {"evidence": {"compiled": 0.75, "baseline": 0.5, "n": 24}}
    kept = "what was paid is kept: `vitrify resume 'my runs/a'` goes on."
    file.write_text(json.dumps({**content, "selection": {"shipped": "compiled"}}))
    assert stopped_sentence(stop(run_dir=run, uncertified=file)) == (
        "stopped; the best program so far is my runs/a/uncertified.json, uncertified: 75.0 % on 24 select rows, where "
        f"the program as it was has 50.0 %; the sealed test stays shut, and {kept}"
    )
    file.write_text(json.dumps({**content, "selection": {"shipped": "baseline"}}))
    assert stopped_sentence(stop(run_dir=run, uncertified=file)) == (
        f"stopped; nothing better than the program as it was has been found so far, and {kept}"
    )
    assert stopped_sentence(stop(run_dir=run)) == f"stopped; {kept}"
    assert stopped_sentence(stop()) == "stopped before anything was asked."


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"evidence": 3}', '{"evidence": {"compiled": "x"}}', None])
def test_evidence_that_nobody_can_read(here: Path, text: str | None) -> None:
    file = here / "uncertified.json"
    if text is not None:
        file.write_text(text)
    said = stopped_sentence(stop(run_dir=Path("run"), uncertified=file))
    assert said.startswith("stopped; the best program so far is uncertified.json, uncertified: only select rows speak")
    assert said.endswith(" what was paid is kept: `vitrify resume run` goes on.")

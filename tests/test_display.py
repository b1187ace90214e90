"""What a compile shows while it runs: one live line on a terminal, lines elsewhere, notes at once everywhere."""

import os
import pty
import re
import select
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from vitrify.compiler.progress import Snapshot

from tests.commands import workplace
from vitrify.display import _described

COMMAND = [sys.executable, "-m", "vitrify"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return workplace(tmp_path)


def test_progress_line() -> None:
    snapshot = Snapshot("search", done=30, planned=1200, trials=4, best=0.715, calls=61, replayed=3, tokens=12_345)
    snapshot = replace(snapshot, seconds=6)
    shown = "[3/5] search    30/1200 evaluations, 4 trials, best 71.5 %, 61 calls (+3 known already), 12k tokens"
    assert _described(snapshot) == f"{shown}, about 4 min left in this pass"
    assert _described(snapshot, over=True) == shown
    assert _described(Snapshot("search", concurrency=24)).endswith(", 0 tokens, 24 at a time")
    assert "best 12.5" in _described(Snapshot("search", best=12.5)) and "%" not in _described(
        Snapshot("search", best=12.5)
    )


@pytest.mark.parametrize("mode", ["a terminal", "a file", "quiet"])
def test_a_note_appears_at_once(mode: str) -> None:
    """Whoever waits for a server that is away reads so, on a live line, in a log and beside --json."""
    code = (
        "import sys, threading\n"
        "from vitrify.compiler.progress import Snapshot\n"
        "from vitrify.display import make_progress\n"
        f"with make_progress(quiet={mode == 'quiet'}) as progress:\n"
        "    progress.update(Snapshot('search', done=3, planned=9))\n"
        "    thread = threading.Thread(target=progress.note, args=('the server at [x] is away: waiting',))\n"
        "    thread.start(); thread.join()\n"
        "    sys.stdin.readline()\n"
        "    progress.update(Snapshot('certify'))\n"
    )
    master, slave = pty.openpty() if mode == "a terminal" else os.pipe()
    environ = {**os.environ, "COLUMNS": "150", "TERM": "xterm"}
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=slave, env=environ)
    shown = b""
    while b"waiting" not in shown and select.select([master], [], [], 20)[0]:
        shown += os.read(master, 65536)
    assert child.poll() is None and b"note: the server at [x] is away: waiting" in shown
    child.communicate(b"\n", timeout=20)
    os.close(slave)
    os.close(master)


def test_a_terminal_gets_one_live_line(here: Path) -> None:
    master, slave = pty.openpty()
    environ = {**os.environ, "COLUMNS": "150", "TERM": "xterm"}
    command = [
        *COMMAND,
        "compile",
        "desk.py:Desk",
        "--data",
        "rows.jsonl",
        "--metric",
        "exact:team",
        "--lm",
        "embedded",
    ]
    child = subprocess.Popen([*command, "-o", "out.json"], stdin=slave, stdout=slave, stderr=slave, env=environ)
    os.close(slave)
    shown = b""
    try:
        while chunk := os.read(master, 65536):
            shown += chunk
    except OSError:  # the other end is closed
        pass
    os.close(master)
    assert child.wait(30) == 0
    text = shown.decode()
    assert "\x1b[2K" in text and "[3/5] search" in text and "trials, best" in text
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).rstrip().splitlines()[-1]
    assert last.startswith("wrote out.json")

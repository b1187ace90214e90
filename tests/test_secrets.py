"""Nothing that a run writes or says holds the key, the password in the address, or a header's value."""

import base64
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dspy
import pytest
from vitrify.programs.lm import Retry
from vitrify.programs.openai import OpenAICompatible

from tests.commands import workplace
from tests.server import Fault, Faults, ScriptedServer, at_random
from tests.tiny import SERVED, compile_tiny, hasten, serving

KEY, PASSWORD, HEADER = "sk-tEsT-Secret-0123456789abcdef", "pa55w0rd-in-the-url", "header-secret-zyxwvu"
BASIC = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
SECRETS = [part.encode() for secret in (KEY, PASSWORD, HEADER, BASIC) for part in (secret, secret[4:-4])]

ECHOES = [Fault("echo", status=500), Fault("echo", status=429, headers={"Retry-After": "0"}), Fault("echo", status=503)]


def clean(folder: Path, *said: str | bytes) -> None:
    """Search every file below a folder, names included, and what was said, byte by byte."""
    files = [item for item in folder.rglob("*") if item.is_file()]
    assert any(item.name == "ledger.jsonl" for item in files), "there was something to search"
    for item in files:
        data = str(item).encode() + item.read_bytes()
        assert not [secret for secret in SECRETS if secret in data], item
    for text in said:
        data = text if isinstance(text, bytes) else text.encode()
        assert not [secret for secret in SECRETS if secret in data], data


def command_line(here: Path, server: ScriptedServer, secret: str, *more: str) -> "subprocess.CompletedProcess[bytes]":
    """Compile in a real process, with the key in the environment or a password in the address."""
    address = server.url.replace("//", f"//me:{PASSWORD}@") if secret == PASSWORD else server.url
    words = [
        "compile", "desk.py:Desk", "--data", "rows.jsonl", "--metric", "exact:team", "--lm", SERVED, "-o", "out.json",
        "--api-base", address, "--instructions", "2", "--demo-sets", "2", "--max-demos", "4", *more,
    ]  # fmt: skip
    environ = {**os.environ, "VITRIFY_HOME": str(here / "home"), "PYTHONDONTWRITEBYTECODE": "1"}
    environ["OPENAI_API_KEY"] = KEY if secret == KEY else ""
    return subprocess.run(
        [sys.executable, "-m", "vitrify", *words], cwd=here, env=environ, capture_output=True, timeout=60, check=False
    )


def knows_it(server: ScriptedServer, secret: str) -> bool:
    """Say whether the secret did reach the server."""
    sent = server.requests[0].headers["Authorization"]
    return sent == f"Bearer {KEY}" if secret == KEY else sent == "Basic " + BASIC


def test_a_compile_on_the_command_line(tmp_path: Path) -> None:
    """With failures now and then whose bodies echo the request's headers; the reply cache is on."""
    here = workplace(tmp_path)
    with serving(faults=at_random(0.01, ECHOES, seed=4)) as server:
        done = command_line(here, server, KEY, "--budget-calls", "230")
        assert done.returncode == 0, done.stderr
        assert knows_it(server, KEY)
    assert (here / "out.json").exists() and (here / "home").exists()
    clean(here, done.stdout, done.stderr)


@pytest.mark.parametrize(("secret", "more"), [(KEY, ()), (PASSWORD, ("--debug",))])
def test_a_failure_on_the_command_line(tmp_path: Path, secret: str, more: tuple[str, ...]) -> None:
    """The server's own sentence is shown, without what it echoes; a traceback has nothing either."""
    here = workplace(tmp_path)
    dies: Faults = lambda number, body: Fault("echo", status=400) if number >= 60 else None  # noqa: E731
    with serving(faults=dies) as server:
        done = command_line(here, server, secret, *more)
        assert done.returncode == 2 and b"bad request with" in done.stderr
        assert knows_it(server, secret)
    clean(here, done.stdout, done.stderr)


def test_headers_and_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """A header of one's own, every log at DEBUG, and sentences told to whoever watches."""
    hasten(monkeypatch, 200)
    caplog.set_level(logging.DEBUG)
    told: list[str] = []

    class Told:
        def update(self, snapshot: Any) -> None:
            told.append(repr(snapshot))

        def note(self, text: str) -> None:
            told.append(text)

    away: Faults = lambda number, body: ECHOES[number % 3] if 80 <= number < 140 else None  # noqa: E731
    with serving(faults=away) as server:
        lm = OpenAICompatible(
            SERVED, api_base=server.url, api_key=KEY, headers={"X-Team-Token": HEADER}, retry=Retry(attempts=1)
        )
        made = compile_tiny(server.url, tmp_path / "run", lm=lm, progress=Told())
        assert server.requests[0].headers["X-Team-Token"] == HEADER
    assert any("Waiting for the server" in text for text in told)
    said = capfd.readouterr()
    clean(tmp_path, made, caplog.text, said.out, said.err, *told, repr(lm))


def test_a_dspy_lm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """DSPy's own client keeps the key in its settings, and the server's error goes through two libraries."""
    hasten(monkeypatch, 200)
    dies: Faults = lambda number, body: Fault("echo", status=400) if number >= 30 else None  # noqa: E731
    with serving(faults=dies) as server:
        lm = dspy.LM(SERVED, api_base=server.url, api_key=KEY, headers={"X-Team-Token": HEADER}, cache=False)
        with pytest.raises(Exception, match="bad request|400") as caught:
            compile_tiny(server.url, tmp_path / "run", lm=lm)
        assert knows_it(server, KEY)
    said = capfd.readouterr()
    clean(tmp_path, str(caught.value), said.out, said.err)


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    """Were a key written, it would be seen."""
    (tmp_path / "ledger.jsonl").write_text(json.dumps({"key": KEY}))
    with pytest.raises(AssertionError):
        clean(tmp_path)

"""Every command and every line of Python in the README works as it stands there."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
CARDS = ["the machine ate my card", "my card is lost", "card payment declined", "new card please"]
TRANSFERS = [
    "my transfer is pending",
    "transfer to the wrong account",
    "cancel a transfer",
    "transfer fee",
    "no transfer came",
]
IDENTITY = [
    "I can't verify my passport",
    "identity check failed",
    "someone uses my identity",
    "new passport photo",
    "prove who I am",
]
WHEN = ["since Monday", "again", "please help", "what now", "for two days", "it is urgent", "why", "in Lisbon"]


def _rows(when: list[str]) -> str:
    teams = {"cards": CARDS, "transfers": TRANSFERS, "identity": IDENTITY}
    rows = [
        {"message": f"{text}, {late}", "team": team} for late in when for team, texts in teams.items() for text in texts
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    program = next(text for kind, text in BLOCKS if kind == "python" and "class Desk" in text)
    (folder / "desk.py").write_text(program)
    (folder / "tickets.jsonl").write_text(_rows(WHEN[:6]))
    (folder / "fresh.jsonl").write_text(_rows(WHEN[6:]))
    return folder


def test_the_commands(folder: Path) -> None:
    (commands,) = [text for kind, text in BLOCKS if not kind and "vitrify compile" in text]
    for line in commands.splitlines():
        words = shlex.split(line)
        assert "vitrify" == words[0]
        ran = subprocess.run(
            [sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True, timeout=120, check=False
        )
        assert 0 == ran.returncode, f"{line}\n{ran.stderr}"
    assert (folder / "table.csv").read_text().startswith("row,message,predicted.")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="keys are made with openssl")
def test_signing_and_exporting(folder: Path) -> None:
    """The commands about a file that `vitrify compile` wrote."""
    (compiling,) = [
        line for kind, text in BLOCKS if not kind for line in text.splitlines() if "vitrify compile" in line
    ]
    subprocess.run([sys.executable, "-m", *shlex.split(compiling)], cwd=folder, capture_output=True, check=True)
    (run,) = (Path(os.environ["VITRIFY_HOME"]) / "runs").iterdir()
    blocks = [text for kind, text in BLOCKS if not kind and ("vitrify sign" in text or "vitrify export" in text)]
    assert 2 == len(blocks)
    script = "".join(blocks).replace("RUN", str(run)).replace("vitrify ", f"{shlex.quote(sys.executable)} -m vitrify ")
    ran = subprocess.run(
        ["bash", "-e"], input=script, cwd=folder, capture_output=True, text=True, timeout=240, check=False
    )
    assert 0 == ran.returncode, ran.stderr
    assert {"desk.json.sig", "state.json", "chats.jsonl", "imported.json"} <= {path.name for path in folder.iterdir()}


def test_the_python(folder: Path) -> None:
    (code,) = [text for kind, text in BLOCKS if kind == "python" and "vitrify.compile" in text]
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert 0 == ran.returncode, ran.stderr
    assert "sealed test rows" in ran.stdout
    assert ran.stdout.splitlines()[-1] in ("cards", "transfers", "identity")


def test_the_rows_shown_are_of_the_kind_that_is_read() -> None:
    (rows,) = [text for kind, text in BLOCKS if kind == "json"]
    assert [{"message", "team"}] * 2 == [set(json.loads(line)) for line in rows.splitlines()]


def test_the_make_targets_exist_and_ci_calls_the_readmes_test_command() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"demo", "test", "check", "bench", "clean", "help"} <= set(targets)
    assert "\nmake test\n" in README
    assert "make test\n" in (ROOT / ".ci" / "run").read_text()


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target

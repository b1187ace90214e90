"""The wheel: built from the sdist, it holds every module and nothing else, and works in an empty environment."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"vitrify": "vitrify", **{f"vitrify/{n}": n for n in ("signatures", "programs", "compiler", "teleprompters")}}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    # `python -m build` without a choice builds the sdist, and the wheel from the sdist.
    subprocess.run([sys.executable, "-m", "build", "-o", str(out), str(ROOT)], check=True, capture_output=True)
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def helpdesk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("helpdesk") / "helpdesk.json"
    folder = ROOT / "examples" / "helpdesk"
    command = [sys.executable, "-m", "vitrify", "compile", f"{folder / 'program.py'}:Helpdesk", "--lm", "embedded"]
    command += ["--data", str(folder / "tickets.jsonl"), "--metric", f"{folder / 'program.py'}:routed", "-o", str(out)]
    subprocess.run(command, check=True, capture_output=True, cwd=out.parent)
    return out


def test_holds_every_module_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        f"{target}/{file.name}"
        for target, folder in FOLDERS.items()
        for file in (ROOT / folder).iterdir()
        if file.suffix == ".py" or file.name == "py.typed"
    }
    assert expected == names


def test_works_in_an_empty_environment(wheel: Path, helpdesk: Path, tmp_path: Path) -> None:
    env = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", str(env)], check=True)
    python = env / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", str(wheel)], check=True, capture_output=True)
    command = [
        str(env / "bin" / "vitrify"),
        "run",
        str(helpdesk),
        "-i",
        "message=I want to send the shoes back, where do I print the return label?",
        "--json",
    ]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert 0 == ran.returncode, ran.stderr
    assert '"team": "returns"' in ran.stdout
    missing = subprocess.run([python, "-c", "import dspy"], capture_output=True, check=False)
    assert missing.returncode != 0, "the environment isn't empty"
    code = "import vitrify\ntry:\n    vitrify.compile\nexcept ModuleNotFoundError as error:\n    print(error)"
    told = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "pip install 'vitrify[compile]'" in told.stdout
    args = ["compile", "x.py:X", "--data", "d.csv", "--metric", "exact:a", "--lm", "embedded", "-o", "x.json"]
    refused = subprocess.run(
        [env / "bin" / "vitrify", *args], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert 2 == refused.returncode
    assert "vitrify[compile]" in refused.stderr
    assert "Traceback" not in refused.stderr

"""A fresh process that loads and runs an artifact: the same outputs, and none of the compiler's libraries."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vitrify
from tests.conftest import EXAMPLES

NEVER = ("optuna", "datasets", "pandas", "pyarrow", "diskcache", "sklearn", "torch")
NEVER_SEALED = (*NEVER, "dspy", "numpy", "scipy", "litellm", "openai", "typer", "rich", "jinja2", "tqdm", "aiohttp")


def fresh(code: str) -> tuple[Any, set[str]]:
    """Run code that prints JSON; return that, and the top-level modules that `-X importtime` saw."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    seen = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines() if line.startswith("import time:")}
    return json.loads(run.stdout), {name.partition(".")[0] for name in seen}


@pytest.mark.slow
def test_a_sealed_program_runs_alike_and_imports_little(saved: Path, tickets: Any) -> None:
    messages = [row["message"] for row in tickets[:10]]
    here = vitrify.load(saved)
    code = f"""
import json, vitrify
desk = vitrify.load({str(saved)!r})
print(json.dumps([desk(message=m).toDict() for m in {messages!r}]))
"""
    there, modules = fresh(code)
    assert [here(message=message).toDict() for message in messages] == there
    assert "pydantic" in modules
    assert set() == modules & set(NEVER_SEALED)


@pytest.mark.slow
def test_a_program_with_its_class_imports_neither_optuna_nor_datasets(saved: Path) -> None:
    code = f"""
import json, sys
sys.path.insert(0, {str(EXAMPLES / "helpdesk")!r})
import program, vitrify
desk = vitrify.load({str(saved)!r}, program=program.Helpdesk())
print(json.dumps(desk(message="refund").toDict()))
"""
    there, modules = fresh(code)
    assert vitrify.load(saved)(message="refund").toDict() == there
    assert "dspy" in modules
    assert set() == modules & set(NEVER)

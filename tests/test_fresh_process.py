"""A fresh process that loads and runs an artifact: the same outputs, and none of the compiler's libraries."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import dspy
import pydantic
import pytest

import vitrify
from tests.conftest import EXAMPLES

NEVER = ("optuna", "datasets", "pandas", "pyarrow", "diskcache", "sklearn", "torch")
NEVER_SEALED = (*NEVER, "dspy", "numpy", "scipy", "litellm", "openai", "typer", "rich", "jinja2", "tqdm", "aiohttp")

NEVER_PLAIN = (*NEVER_SEALED, "pydantic", "pydantic_core", "annotated_types", "json_repair")
"""What a sealed program whose outputs are texts, labels and the like does without, until a reply needs mending."""


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
    assert {"vitrify", "hashlib"} <= modules
    assert set() == modules & set(NEVER_PLAIN)


@pytest.mark.slow
def test_a_sealed_program_is_loaded_for_a_server_without_pydantic_and_without_aiohttp(saved: Path) -> None:
    name, modules = fresh(
        f"import json, vitrify; desk = vitrify.load({str(saved)!r}, lm='openai/gpt-4o', api_key='k');"
        "print(json.dumps(desk.model.lm.name))"
    )
    assert "openai/gpt-4o" == name
    assert {"vitrify", "hashlib"} <= modules
    assert set() == modules & set(NEVER_PLAIN)


class Item(pydantic.BaseModel):
    """A type that only pydantic reads."""

    name: str
    tags: Annotated[list[str], pydantic.Field(max_length=3)]


class Listing(dspy.Signature):
    """List what is asked for."""

    passages: list[str] = dspy.InputField()
    count: int = dspy.OutputField()


class Reading(Listing):
    """Read the item."""

    item: Item = dspy.OutputField()


@pytest.mark.slow
@pytest.mark.parametrize("signature, needed", [(Listing, False), (Reading, True)])
def test_pydantic_is_imported_at_load_where_a_type_may_not_be_built(
    signature: type[dspy.Signature], needed: bool, tmp_path: Path
) -> None:
    rows = [{"passages": [f"a {n}", "b"], "count": n, "item": {"name": "x", "tags": []}} for n in range(60)]
    program = dspy.Predict(signature)
    made = vitrify.compile(
        program, rows, lambda example, pred, trace=None: True, lm="embedded", run_dir=tmp_path / "run",
        options=vitrify.Options(instructions=0, demo_sets=2),
    )  # fmt: skip
    assert needed or made.canaries  # whose lists of passages are written at load
    made.save(tmp_path / "a.json")
    code = f"""
import json, sys, vitrify
loaded = vitrify.load({str(tmp_path / "a.json")!r})
before = "pydantic" in sys.modules
print(json.dumps([before, loaded(passages=["a", "b"]).count]))
"""
    (before, count), modules = fresh(code)
    assert needed == before
    assert vitrify.load(tmp_path / "a.json")(passages=["a", "b"]).count == count
    assert "pydantic" in modules  # which reads the count


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

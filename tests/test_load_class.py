"""vitrify.load of a program that needs its class: what is imported, what is refused, what is said."""

import asyncio
import importlib
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import dspy
import pytest
from vitrify.programs.artifact import Artifact
from vitrify.programs.runtime import Unreadable
from vitrify.signatures.errors import ArtifactError, ProgramError

import vitrify
from tests.conftest import HELPDESK, compile_small

MODULE = '''
"""Records that it was imported."""
import pathlib
import dspy
pathlib.Path(__file__).with_name("imported").write_text("yes")

class Desk(dspy.Module):
    def __init__(self):
        super().__init__()
        self.triage = dspy.Predict("message -> team")
    def forward(self, message):
        if not message:
            return dspy.Prediction(team="nobody")
        return self.triage(message=message)

class Narrow(Desk):
    def __init__(self):
        super().__init__()
        self.triage = dspy.Predict("message -> team: bool")

class Wide(Desk):
    def __init__(self):
        super().__init__()
        self.other = dspy.Predict("message -> team")

class Argued(Desk):
    def __init__(self, k):
        super().__init__()

def exits():
    raise SystemExit
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("desk")
    (made / "desk_module.py").write_text(MODULE)
    return made


@pytest.fixture(scope="module")
def module(folder: Path) -> Any:
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module("desk_module")
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("desk_module", None)


@pytest.fixture(scope="module")
def unsealed(module: Any, folder: Path, tickets: Any) -> Path:
    rows = [{"message": row["message"], "team": row["team"]} for row in tickets[:60]]
    artifact = compile_small(module.Desk(), rows, "exact:team", folder / "run")
    assert "class" == artifact.program.kind
    assert "desk_module:Desk" == artifact.program.import_path
    path: Path = artifact.save(folder / "desk.json")
    return path


def test_nothing_is_imported_unless_it_is_allowed(unsealed: Path, folder: Path) -> None:
    (folder / "imported").unlink()
    code = f"""
import sys, vitrify
sys.path.insert(0, {str(folder)!r})
try:
    vitrify.load({str(unsealed)!r})
except Exception as error:
    print(type(error).__name__, error)
print("desk_module" in sys.modules)
desk = vitrify.load({str(unsealed)!r}, allow_import="desk_module")
print("desk_module" in sys.modules, bool(desk(message="hello").team))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = run.stdout.splitlines()
    assert lines[0].startswith("ProgramError")
    assert "`nothing is imported out of a file unless you say so`; pass program=Desk()" in lines[0]
    assert "or allow_import=['desk_module']" in lines[0]
    assert "forward() holds a statement that is no assignment: if not message: (desk_module.py, line" in lines[0]
    assert ["False", "True True"] == lines[1:]


def test_another_module_allowed_is_not_this_one(unsealed: Path) -> None:
    for allowed in (["other"], "desk", ["desk_module.Desk"], ()):
        with pytest.raises(ProgramError, match="nothing is imported"):
            vitrify.load(unsealed, allow_import=allowed)


def edited(path: Path, import_path: str) -> Path:
    from vitrify.programs.artifact import read_artifact

    from tests.test_runtime import reseal

    artifact = reseal(read_artifact(path), lambda d: d["program"].update(import_path=import_path))
    return artifact.save(path.with_name("edited.json"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("desk_module:exits", "is no dspy.Module"),
        ("desk_module:pathlib.Path", "is no dspy.Module"),
        ("desk_module:Nobody", "can't be imported .*AttributeError"),
        ("desk_module:Argued", r"Argued\(\) can't be made \(TypeError"),
        ("desk_nowhere:Desk", "can't be imported .*ModuleNotFoundError"),
        ("desk.py:Desk", "pass program=Desk\\(\\)\\.$"),
        ("", "pass program=Desk\\(\\)\\.$"),
    ],
)
def test_only_a_programs_class_is_called(unsealed: Path, name: str, message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        vitrify.load(edited(unsealed, name), allow_import=["desk_module", "desk_nowhere", "desk.py"])


def test_the_users_own_instance(unsealed: Path, module: Any) -> None:
    desk = vitrify.load(unsealed, program=module.Desk())
    out = desk(message="Where is my parcel?")
    assert isinstance(out, dspy.Prediction)
    assert out.team == asyncio.run(desk.acall(message="Where is my parcel?")).team
    assert out.get_lm_usage()["embedded"]["total_tokens"] > 0
    assert "nobody" == desk(message="").team
    assert [out.team, "nobody"] == [p.team for p in desk.batch([{"message": "Where is my parcel?"}, {"message": ""}])]


def test_the_class_in_place_of_an_instance(unsealed: Path, module: Any) -> None:
    with pytest.raises(ProgramError, match=r"pass Desk\(\), not Desk"):
        vitrify.load(unsealed, program=module.Desk)


def test_another_program_is_refused_with_what_differs(unsealed: Path, module: Any) -> None:
    for name, lines in (
        ("Narrow", ["field `team`: type", '"str"', '"bool"']),
        ("Wide", ["other: not in the artifact"]),
    ):
        with pytest.raises(ArtifactError) as caught:
            vitrify.load(unsealed, program=getattr(module, name)())
        for line in ("was compiled for another Desk", "Use the program as it was, or compile again", *lines):
            assert line in str(caught.value)


def test_a_changed_source_is_reported(unsealed: Path, module: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Desk(module.Desk):
        pass

    with caplog.at_level(logging.WARNING, "vitrify"):
        vitrify.load(unsealed, program=module.Desk())
        assert "" == caplog.text
        vitrify.load(unsealed, program=Desk())
    assert "the source of Desk has changed since it was compiled" in caplog.text


def test_a_prompt_that_comes_out_differently_is_refused(unsealed: Path, module: Any) -> None:
    from vitrify.programs.artifact import read_artifact
    from vitrify.programs.embedded import Embedded
    from vitrify.programs.models import Model
    from vitrify.programs.runtime import run_artifact

    from tests.test_runtime import reseal

    def edit(data: Any) -> None:
        data["predictors"][0]["plan"]["requirements"] += " Be kind."
        data["canaries"] = []

    artifact: Artifact = reseal(read_artifact(unsealed), edit)
    with pytest.raises(ArtifactError, match="triage renders another prompt than when it was compiled"):
        run_artifact(artifact, Model(Embedded()), program=module.Desk())


def test_the_adapter_configured_in_production_does_not_change_the_prompt(unsealed: Path, module: Any) -> None:
    from vitrify.programs.lm import Capabilities

    from tests.test_sealed_equals_bound import Scripted

    lm = Scripted(["[[ ## team ## ]]\nx\n\n[[ ## completed ## ]]"], Capabilities())
    for adapter in (None, dspy.JSONAdapter(), dspy.XMLAdapter()):
        with dspy.context(adapter=adapter):
            assert "x" == vitrify.load(unsealed, program=module.Desk(), lm=lm)(message="hello").team
    assert 1 == len({request.key for request in lm.requests})


def test_a_reply_that_cannot_be_read(unsealed: Path, module: Any) -> None:
    from vitrify.programs.lm import Capabilities

    from tests.test_sealed_equals_bound import Scripted

    desk = vitrify.load(unsealed, program=module.Desk(), lm=Scripted([""], Capabilities()))
    with pytest.raises(Unreadable, match="Desk: the model's reply has no readable values"):
        desk(message="hello")


def test_a_sealed_program_takes_the_class_too(saved: Path) -> None:
    from vitrify.compiler.importing import load_object

    program: Any = load_object(f"{HELPDESK}:Helpdesk")
    sealed, bound = vitrify.load(saved), vitrify.load(saved, program=program())
    for message in ("refund", "my card", "password"):
        assert dict(sealed(message=message)) == dict(bound(message=message))

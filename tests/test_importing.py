"""Importing: the user's file is one module, and what goes wrong in it is one sentence."""

import inspect
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vitrify.compiler.importing import Kind, load_object
from vitrify.signatures.errors import MetricError, ProgramError

SOURCE = '''
"""A program and its metric."""
import helper_of_test_importing

COUNT = []
COUNT.append(1)


class Desk:
    limit = 3

    def ask(self):
        return helper_of_test_importing.ANSWER


def routed(example, pred, trace=None):
    return isinstance(pred, Desk)
'''


@pytest.fixture(autouse=True)
def clean_modules() -> Iterator[None]:
    before, path = dict(sys.modules), list(sys.path)
    yield
    assert path == sys.path
    for name in set(sys.modules) - set(before):
        del sys.modules[name]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    (tmp_path / "helper_of_test_importing.py").write_text("ANSWER = 42\n")
    (tmp_path / "program.py").write_text(SOURCE)
    return tmp_path / "program.py"


def problem(spec: str, kind: Kind = "program", base_dir: Path | None = None) -> str:
    with pytest.raises(MetricError if kind == "metric" else ProgramError) as caught:
        load_object(spec, kind=kind, base_dir=base_dir)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_is_imported_once_and_shared(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = load_object(f"{program}:Desk")
    (program.parent / "x").mkdir()
    routed = load_object(f"{program.parent / 'x' / '..' / 'program.py'}:routed", kind="metric")
    assert inspect.isclass(desk) and callable(routed)
    made: Any = desk()
    assert routed(None, made)
    assert 42 == made.ask()
    assert [1] == load_object("program.py:COUNT", base_dir=program.parent)
    assert 3 == load_object("program.py:Desk.limit", base_dir=program.parent)
    monkeypatch.chdir(program.parent)
    assert desk is load_object("program:Desk")
    assert desk is load_object("./program.py:Desk")
    link = program.parent / "link.py"
    link.symlink_to(program)
    assert desk is load_object("link.py:Desk")


def test_inspect_and_pickle_work(program: Path) -> None:
    desk = load_object(f"{program}:Desk")
    assert inspect.isclass(desk)
    assert inspect.getsource(desk).startswith("class Desk:")
    assert desk is pickle.loads(pickle.dumps(desk))


def test_a_module_imported_by_its_own_name_is_not_imported_again(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(program.parent)
    desk = load_object("program:Desk")
    assert "program" in sys.modules
    assert desk is load_object(f"{program}:Desk")


def test_two_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    found = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "program.py").write_text(f"NAME = {folder!r}\n")
        found.append(load_object(f"{folder}/program.py:NAME", base_dir=tmp_path))
    assert ["a", "b"] == found


def test_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path is load_object("pathlib:Path")
    package = tmp_path / "package_of_test_importing"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text("from . import other\nVALUE = other.VALUE\n")
    (package / "other.py").write_text("VALUE = 7\n")
    monkeypatch.chdir(tmp_path)
    assert 7 == load_object("package_of_test_importing.inner:VALUE")


@pytest.mark.parametrize("spec", ["program.py", "", ":", "a:", ":b", "a::b"])
def test_a_spec_has_two_parts(spec: str) -> None:
    assert "file.py:Name" in problem(spec)


def test_what_is_not_there_names_the_nearest(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = program.parent
    assert "did you mean `program.py`?" in problem("progam.py:Desk", base_dir=folder)
    assert "no folder" in problem("nowhere/program.py:Desk", base_dir=folder)
    assert "did you mean `Desk`?" in problem("program.py:Dask", base_dir=folder)
    assert "did you mean `limit`?" in problem("program.py:Desk.limt", base_dir=folder)
    assert "did you mean `routed`?" in problem("program.py:routd", "metric", folder)
    assert "no module `nosuchmodule`" in problem("nosuchmodule.x:Desk")
    monkeypatch.chdir(folder)
    (folder / "notes.txt").write_text("")
    assert "ending in .py" in problem("./notes.txt:Desk")


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("\n\nx = 1 / 0\n", ["broken.py:3", "ZeroDivisionError: division by zero"]),
        ("import json\n\njson.loads('{')\n", ["broken.py:3", "JSONDecodeError"]),
        ("def f(:\n", ["broken.py:1", "SyntaxError"]),
        ("import no_such_module_at_all\n", ["broken.py:1", "no_such_module_at_all"]),
        ("import sys\nsys.exit(3)\n", ["broken.py:2", "SystemExit: 3"]),
        ("raise ValueError('a\\nb')\n", ["broken.py:1", "ValueError: a;"]),
        ("raise ValueError\n", ["no message"]),
    ],
)
@pytest.mark.parametrize("by_name", [False, True])
def test_a_file_that_fails_is_one_sentence(
    tmp_path: Path, source: str, parts: list[str], by_name: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text(source)
    for kind in ("program", "metric"):
        message = problem("broken:Desk" if by_name else "broken.py:Desk", kind)
        assert all(part in message for part in parts), message
    (tmp_path / "broken.py").write_text("Desk = 'mended, and of another length than before'\n")
    assert str(load_object("broken.py:Desk")).startswith("mended")

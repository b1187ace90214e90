"""The house: which way imports point, what is packaged, what a frozen program may load."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("signatures", "programs", "compiler", "teleprompters", "vitrify")
MAY_IMPORT = {
    "signatures": {"signatures"},
    "programs": {"signatures", "programs"},
    "compiler": {"signatures", "programs", "compiler"},
    "teleprompters": {"signatures", "programs", "compiler", "teleprompters"},
    "vitrify": set(PACKAGES),
}
DSPY_AT_THE_TOP = {
    "programs/planned.py",
    "programs/bridge.py",
    "compiler/evaluate.py",
    "compiler/foreign.py",
    "compiler/looped.py",
    "teleprompters/propose.py",
}
"""Modules that import dspy when they are imported; see docs/decisions/0002."""
THIRD_PARTIES = {
    "signatures": {"pydantic", "pydantic_core", "json_repair", "dspy"},
    "programs": {
        "pydantic",
        "pydantic_core",
        "json_repair",
        "aiohttp",
        "aiohappyeyeballs",
        "idna",
        "diskcache",
        "dspy",
        "litellm",
        "opentelemetry",
    },
}
FILES = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]


def _imports(file: Path) -> list[tuple[str, bool]]:
    """Return (target, whether it is at the top) of every import; relative ones start with a package of ours."""
    package = file.relative_to(ROOT).parts[0]
    tree = ast.parse(file.read_text())
    top = {id(node) for node in _top_level(tree)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(name.name, id(node) in top) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level == 2:
                targets = [module] if module else [name.name for name in node.names]
                found += [("." + target, id(node) in top) for target in targets]
            elif node.level == 1:
                # The front door is the root of the import name: its siblings are the other packages.
                head = module.partition(".")[0] or node.names[0].name
                inside = head if package == "vitrify" and head in PACKAGES else package
                found.append(("." + inside, id(node) in top))
            else:
                found.append((module, id(node) in top))
    return found


def _top_level(tree: ast.Module) -> list[ast.stmt]:
    statements = list(tree.body)
    for node in tree.body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            statements += node.body
    return statements


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_one_way(file: Path) -> None:
    package = file.relative_to(ROOT).parts[0]
    for target, _ in _imports(file):
        if target.startswith("."):
            assert target[1:].partition(".")[0] in MAY_IMPORT[package], f"{file} imports {target}"
        else:
            assert target.partition(".")[0] not in PACKAGES, f"{file} imports {target} absolutely"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_dspy_is_imported_where_it_is_said(file: Path) -> None:
    name = file.relative_to(ROOT).as_posix()
    for target, at_top in _imports(file):
        if target.partition(".")[0] == "dspy" and at_top:
            assert name in DSPY_AT_THE_TOP


@pytest.mark.parametrize("package", sorted(THIRD_PARTIES))
def test_third_parties(package: str) -> None:
    known = set(sys.stdlib_module_names) | THIRD_PARTIES[package]
    for file in (ROOT / package).rglob("*.py"):
        for target, _ in _imports(file):
            assert target.startswith(".") or target.partition(".")[0] in known, f"{file} imports {target}"


def test_signatures_need_dspy_only_to_lower() -> None:
    users = {f.name for f in (ROOT / "signatures").glob("*.py") if any(t.startswith("dspy") for t, _ in _imports(f))}
    assert users <= {"lower.py"}


def test_every_package_on_disk_is_packaged() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    on_disk = {"vitrify" if package == "vitrify" else f"vitrify.{package}": package for package in PACKAGES}
    assert on_disk == settings["package-dir"]
    assert set(on_disk) == set(settings["packages"])
    # A folder inside a package would be silently absent from the wheel.
    for package in PACKAGES:
        assert [] == [f for f in (ROOT / package).rglob("*.py") if f.parent != ROOT / package]


def test_top_level_is_fixed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    if not tracked:
        pytest.skip("not a git checkout")
    top = {line.partition("/")[0] for line in tracked.splitlines()}
    allowed = {
        "pyproject.toml", "compiler", "signatures", "teleprompters", "programs", "tests", "Makefile", "vitrify",
        "examples", "benchmarks", "docs", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", ".ci", ".typing",
        ".gitignore",
    }  # fmt: skip
    assert top <= allowed


def test_the_links_for_type_checkers_are_whole() -> None:
    links = ROOT / ".typing" / "vitrify"
    for package in PACKAGES[:4]:
        assert (links / package).resolve() == ROOT / package
    ours = {f.name for f in (ROOT / "vitrify").iterdir() if f.suffix == ".py" or f.name == "py.typed"}
    linked = {f.name for f in links.iterdir()} - set(PACKAGES)
    assert ours == linked
    for name in ours:
        assert (links / name).resolve() == ROOT / "vitrify" / name


def test_files_stay_small() -> None:
    long = {f.name: len(f.read_text().splitlines()) for f in FILES}
    assert {} == {name: count for name, count in long.items() if count > 420}


def test_importing_vitrify_is_cheap() -> None:
    heavy = ("dspy", "optuna", "datasets", "numpy", "scipy", "litellm", "aiohttp", "typer", "rich")
    code = (
        "import sys, vitrify; vitrify.load; vitrify.Artifact; vitrify.VitrifyError;"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "tests")
    assert "[]" == out.stdout.strip()


def test_every_public_name_resolves() -> None:
    import vitrify

    for name in vitrify.__all__:
        assert getattr(vitrify, name) is not None
    assert set(vitrify.__all__) <= set(dir(vitrify))


def test_no_prints_and_no_logging_setup_in_the_library() -> None:
    for file in FILES:
        text = file.read_text()
        assert "basicConfig" not in text, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print", file

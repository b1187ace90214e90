"""What several test files share: compiled artifacts, made once in a session."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")

EXAMPLES = Path(__file__).parent.parent / "examples"
HELPDESK = EXAMPLES / "helpdesk" / "program.py"


@pytest.fixture(autouse=True)
def _own_home(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Give every test a home of its own, as the working directory `here` is: runs share a cache there."""
    if "here" not in request.fixturenames:
        monkeypatch.setenv("VITRIFY_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(autouse=True)
def _heeded() -> Iterator[None]:
    """Children begin without an ignored SIGINT, which a shell in the background would hand down to them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def compile_small(program: Any, rows: Any, metric: Any, run_dir: Path) -> Any:
    """Compile with the embedded model and as little search as makes an artifact."""
    import vitrify

    options = vitrify.Options(instructions=2, demo_sets=2, max_demos=4, concurrency=2)
    budget = vitrify.Budget(calls=900)
    return vitrify.compile(program, rows, metric, lm="embedded", budget=budget, run_dir=run_dir, options=options)


@pytest.fixture(scope="session")
def tickets() -> list[dict[str, Any]]:
    """Rows of the helpdesk example."""
    from vitrify.compiler.data import load_rows

    return [dict(row) for row in load_rows(EXAMPLES / "helpdesk" / "tickets.jsonl")][:80]


@pytest.fixture(scope="session")
def artifact(tickets: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The artifact of the helpdesk example, which seals."""
    from vitrify.compiler.importing import load_object

    program: Any = load_object(f"{HELPDESK}:Helpdesk")
    metric = load_object(f"{HELPDESK}:routed")
    return compile_small(program(), tickets, metric, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def saved(artifact: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The helpdesk artifact's file."""
    path: Path = artifact.save(tmp_path_factory.mktemp("saved") / "helpdesk.json")
    return path


@pytest.fixture
def compiled(tmp_path: Path) -> Any:
    """A compile of one predictor on the helpdesk's messages with small defaults, each run in a directory of its own."""
    import vitrify

    from .desks import TICKETS, Desk, small

    def run(program: Any = None, data: Any = None, metric: Any = "exact:team", **more: Any) -> vitrify.Artifact:
        more.setdefault("lm", "embedded")
        more.setdefault("options", small())
        more.setdefault("run_dir", tmp_path / f"run{len(list(tmp_path.iterdir()))}")
        return vitrify.compile(program or Desk(), data if data is not None else TICKETS[:150], metric, **more)

    return run

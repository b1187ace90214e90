"""A server that is away: no score is invented, the run pauses and goes on, or stops and can be taken up again."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from vitrify.compiler.outage import Outage
from vitrify.compiler.preflight import SAMPLE
from vitrify.compiler.progress import Snapshot
from vitrify.programs.lm import LMError
from vitrify.signatures.errors import VitrifyError, WorkError

from tests.desks import Desk, Route
from tests.server import Fault, ScriptedServer
from tests.tiny import Nursery, Record, asked_of, compile_tiny, free_port, hasten, repeats, serving


class Said:
    """A progress that keeps the sentences."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def update(self, snapshot: Snapshot) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)

    def count(self, words: str) -> int:
        return sum(words in note for note in self.notes)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch, 50)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Counter[str]]:
    with serving() as server:
        return compile_tiny(server.url, tmp_path_factory.mktemp("plain") / "run"), asked_of(server)


@pytest.fixture(scope="module")
def host() -> Iterator[Nursery]:
    with Nursery() as found:
        yield found


# What swallows exceptions ---------------------------------------------------------------------------------------------


class Careless(Desk):
    """Turns every failure into an answer."""

    def forward(self, message: str) -> dspy.Prediction:
        try:
            return self.route(message=message)
        except Exception:
            return dspy.Prediction(team="delivery")


class CarelessLoop(Desk):
    """Asks again and again, as if that were its own business."""

    def forward(self, message: str) -> dspy.Prediction:
        for _ in range(3):
            try:
                return self.route(message=message)
            except Exception:
                continue
        return dspy.Prediction(team="delivery")


class Best(dspy.Module):
    """`dspy.BestOfN` swallows what its module raises, and so does `dspy.Refine`."""

    def __init__(self, kind: Any = dspy.BestOfN) -> None:
        super().__init__()
        self.best = kind(module=dspy.Predict(Route), N=2, reward_fn=lambda row, found: 1.0, threshold=1.0)

    def forward(self, message: str) -> dspy.Prediction:
        found = self.best(message=message)
        return dspy.Prediction(team="delivery") if found is None else found


class Refined(Best):
    def __init__(self) -> None:
        super().__init__(dspy.Refine)


@pytest.mark.parametrize(
    ("make", "gone"), [(Careless, "500"), (CarelessLoop, "refused"), (Best, "500"), (Refined, "refused")]
)
def test_no_score_is_invented(tmp_path: Path, make: Callable[[], dspy.Module], gone: str) -> None:
    """The server dies in the search: its own error ends the compile; back again, the run goes on to the same bytes."""
    with serving() as server:
        undisturbed = compile_tiny(server.url, tmp_path / "sound", program=make())
        every = asked_of(server)
    sound = Counter(_outcomes(tmp_path / "sound"))
    half, port = every.total() // 2, free_port()
    server = serving(port=port, faults=lambda number, body: Fault.status_code(500) if number >= half else None)
    if gone == "refused":
        server = serving(port=port, faults=lambda number, body: _closing(server, number, half))
    with server, pytest.raises(WorkError, match="500" if gone == "500" else "can't connect|dropped") as caught:
        compile_tiny(server.url, tmp_path / "run", program=make(), patience=0.0)
    assert caught.value.exit_code == 1
    # Whatever was scored is what is scored on a quiet day.
    assert not Counter(_outcomes(tmp_path / "run")) - sound
    with serving(port=port) as server:
        assert compile_tiny(server.url, tmp_path / "run", program=make()) == undisturbed
        assert asked_of(server).total() <= every.total() - half + 8


def _closing(server: ScriptedServer, number: int, after: int) -> Fault | None:
    """Take the server from the net at a request."""
    if number < after:
        return None
    if number == after:
        threading.Thread(target=server.close).start()
    return Fault("hang")


def _outcomes(run: Path) -> list[tuple[Any, ...]]:
    return [
        (line["candidate"], line["example"], line["score"])
        for line in Record.of(run).lines
        if line["kind"] == "outcome"
    ]


# Away and back --------------------------------------------------------------------------------------------------------


def test_a_server_that_never_answered(tmp_path: Path) -> None:
    """After a call's retries, and no pause: the address may be wrong."""
    said, began = Said(), time.monotonic()
    with pytest.raises(
        VitrifyError, match=r"can't connect to .*is the server running, and is `api_base` right"
    ) as caught:
        compile_tiny(f"http://127.0.0.1:{free_port()}/v1", tmp_path / "run", progress=said)
    assert caught.value.exit_code == 2 and "(tried 5 times)" in str(caught.value)
    assert time.monotonic() - began < 10 and not said.count("Waiting")
    assert 5 <= Record.of(tmp_path / "run").count("attempt") <= 5 * SAMPLE


def test_a_server_that_restarts(host: Nursery, plain: tuple[bytes, Any], tmp_path: Path) -> None:
    """A real process, killed in the search and back 2 s later: one sentence when it goes, one when it is back."""
    port, said = free_port(), Said()
    url = f"http://127.0.0.1:{port}/v1"
    pid = host.serve(port, latency=0.01)
    run = tmp_path / "run"

    def restart() -> None:
        until = time.monotonic() + 20
        while time.monotonic() < until and not (run.exists() and Record.of(run).count("reply") > 120):
            time.sleep(0.01)
        host.stop(pid)
        time.sleep(2.0)
        again.append(host.serve(port))

    again: list[int] = []
    thread = threading.Thread(target=restart)
    thread.start()
    try:
        assert compile_tiny(url, run, progress=said) == plain[0]
    finally:
        thread.join()
        host.stop(again[0])
    assert said.count("Waiting for the server") == 1 == said.count("The server answers again after"), said.notes
    record = Record.of(run)
    assert record.in_flight == 0 and record.count("failure") >= 8
    # In the pause one call at a time asks, and ever less often.
    assert record.count("failure") < 8 * 5 + 2 * 60 + 20


def test_one_sentence_for_each_pause(plain: tuple[bytes, Any], tmp_path: Path) -> None:
    """Two outages, many calls in each."""
    said = Said()
    away = {*range(60, 160), *range(300, 400)}
    with serving(faults=lambda number, body: Fault("drop") if number in away else None) as server:
        assert compile_tiny(server.url, tmp_path / "run", progress=said) == plain[0]
    assert said.count("Waiting for the server") == 2 == said.count("The server answers again after"), said.notes


@pytest.mark.parametrize("fault", [Fault.status_code(500), Fault("drop"), Fault.status_code(429, retry_after="600")])
def test_patience_ends(plain: tuple[bytes, Counter[str]], tmp_path: Path, fault: Fault) -> None:
    """The work failed, exit code 1; the run can be taken up again, and nothing answered is asked again."""
    said, port = Said(), free_port()
    with serving(port=port, faults=lambda number, body: fault if number >= 100 else None) as server:
        began = time.monotonic()
        with pytest.raises(WorkError) as caught:
            compile_tiny(server.url, tmp_path / "run", patience=0.4, progress=said)
        assert caught.value.exit_code == 1 and time.monotonic() - began < 15
        assert said.count("Waiting for the server, 0 s at most") == 1
    answered = Record.of(tmp_path / "run").count("reply")
    assert answered >= 90
    with serving(port=port) as server:
        assert compile_tiny(server.url, tmp_path / "run") == plain[0]
        assert len(server.requests) == plain[1].total() - answered
        assert repeats(server, plain[1]) == 0


def test_nobody_waits_longer_than_patience() -> None:
    """However many wait, and whatever the server said: they fail together, and not one after the other."""
    now = 0.0
    notes: list[str] = []
    outage = Outage(30.0, notes.append, clock=lambda: now)
    outage.answered(outage.now())
    assert outage.silent(LMError("busy", cause="rate_limited", retry_after=3600.0))
    assert 0 < outage.turn() <= 0.25 and len(notes) == 1
    now = 31.0
    for _ in range(3):
        with pytest.raises(LMError, match="busy"):
            outage.turn()


def test_a_wrong_key_in_the_middle_is_no_outage(tmp_path: Path) -> None:
    """A key that is withdrawn comes back by nobody's patience: what is in flight ends, and nothing else is asked."""
    said = Said()
    with serving(faults=lambda number, body: Fault.status_code(401) if number >= 100 else None) as server:
        with pytest.raises(WorkError) as caught:
            compile_tiny(server.url, tmp_path / "run", progress=said)
        assert caught.value.exit_code == 2 and not said.count("Waiting")
        assert len(server.requests) <= 100 + 8

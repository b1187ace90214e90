"""Servers that fail in every way, metrics that raise: the artifact is that of a quiet day, or it is said why not."""

import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from vitrify.compiler.metric import MetricBug
from vitrify.compiler.preflight import SAMPLE
from vitrify.signatures.errors import VitrifyError

from tests.server import Fault, Faults, at_random
from tests.tiny import ROWS, Record, asked_of, client, compile_tiny, hasten, serving


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    with serving() as server:
        return compile_tiny(server.url, tmp_path_factory.mktemp("plain") / "run")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch, 200)


KINDS: dict[str, list[Fault]] = {
    "500": [Fault.status_code(500), Fault.status_code(502), Fault.status_code(503, retry_after="0")],
    "429": [Fault.status_code(429, retry_after="0"), Fault.status_code(429, retry_after="1"), Fault.status_code(429)],
    "dropped": [Fault("drop")],
    "reset": [Fault("reset")],
    "half a body": [Fault("truncate")],
    "garbage": [Fault("garbage"), Fault("invalid_json")],
    "another schema": [Fault("schema"), Fault("error_200")],
    "hangs": [Fault("hang")],
}
EVERY = [fault for faults in KINDS.values() for fault in faults]


def sound(run: Path, requests: int) -> None:
    """Check that server and ledger agree on what was asked, and that no failure became an outcome."""
    record = Record.of(run)
    assert record.attempts == requests
    assert record.in_flight == 0
    assert {line["cause"] for line in record.lines if line["kind"] == "outcome"} == {"scored"}


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("kind", [*KINDS, "all of them"])
def test_one_call_in_five_fails(plain: bytes, tmp_path: Path, kind: str) -> None:
    faults = KINDS.get(kind, EVERY)
    share = 0.05 if kind == "hangs" else 0.2
    with serving(faults=at_random(share, faults, seed=1)) as server:
        assert compile_tiny(server.url, tmp_path / "run", lm=client(server.url)) == plain
        sound(tmp_path / "run", len(server.requests))
        assert Record.of(tmp_path / "run").count("failure") > 0.5 * share * len(server.requests)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("concurrency", [8, None])
def test_300_failures_in_a_row(plain: bytes, tmp_path: Path, concurrency: int | None) -> None:
    """In the middle of the search; the run pauses, and no score is lost or invented."""
    down: Faults = lambda number, body: Fault.status_code(500) if 100 <= number < 400 else None  # noqa: E731
    with serving(faults=down) as server:
        assert compile_tiny(server.url, tmp_path / "run", concurrency=concurrency) == plain
        sound(tmp_path / "run", len(server.requests))
        assert Record.of(tmp_path / "run").count("failure") == 300


@pytest.mark.parametrize("concurrency", [1, 7, 64, 256, None])
def test_any_concurrency(plain: bytes, tmp_path: Path, concurrency: int | None) -> None:
    """Answers come in another order each time; what is decided doesn't depend on it."""
    chance = random.Random(f"test_any_concurrency/{concurrency}")
    late = 0.0 if concurrency == 1 else 0.02
    with serving(latency=lambda body: late * chance.random()) as server:
        assert compile_tiny(server.url, tmp_path / "run", concurrency=concurrency) == plain
        assert set(asked_of(server).values()) == {1}
        assert concurrency is None or server.in_flight_peak <= concurrency
        if concurrency == 256:
            assert server.in_flight_peak > 16


# What isn't the server's fault ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "says", "code"),
    [
        (Fault.status_code(401), "API_KEY|key", 2),
        (Fault.status_code(404, code="model_not_found"), "model", 2),
        (Fault.status_code(400), "scripted 400", 2),
    ],
)
def test_not_retried(tmp_path: Path, fault: Fault, says: str, code: int) -> None:
    """A wrong key, an unknown model, a wrong request: one sentence, and no more than preflight's sample is asked."""
    with serving(faults=lambda number, body: fault) as server:
        with pytest.raises(VitrifyError, match=says) as caught:
            compile_tiny(server.url, tmp_path / "run")
        assert caught.value.exit_code == code
        assert len(server.requests) <= SAMPLE


class Switch:
    """A metric whose source doesn't change when it is mended."""

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.asked: list[str] = []

    def __call__(self, example: Any, prediction: Any, trace: Any = None) -> bool:
        self.asked.append(example.message)
        if example.message in self.broken:
            raise KeyError("no such column")
        return bool(prediction.team == example.team)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_metric_that_raises_on_a_fifth(tmp_path: Path, seed: int) -> None:
    """The compile stops at the first, names its row, and keeps what was paid; mended, it repeats no call."""
    metric, chance = Switch(), random.Random(seed)
    with serving() as server:
        sound_artifact = compile_tiny(server.url, tmp_path / "sound", metric=metric)
        every = asked_of(server)
    metric.broken = {row["message"] for row in chance.sample(ROWS, len(ROWS) // 5)}
    with serving(latency=0.002) as server:
        with pytest.raises(MetricBug, match="KeyError") as caught:
            compile_tiny(server.url, tmp_path / "run", metric=metric, concurrency=4)
        named = re.search(r"row (\d+)", str(caught.value))
        assert named is not None and ROWS[int(named[1]) - 1]["message"] in metric.broken, caught.value
        before = len(server.requests)
        # Those that were running are let end; nothing new is begun.
        assert before < len(every) / 2
        assert Record.of(tmp_path / "run").count("reply") == before
        metric.broken = set()
        assert compile_tiny(server.url, tmp_path / "run", metric=metric) == sound_artifact
        assert Counter(asked_of(server)) == every


def test_a_metric_that_raises_in_the_search(tmp_path: Path) -> None:
    """On a row of the select set, which preflight doesn't see; here the replies are paid, and only the metric runs."""
    metric = Switch()
    with serving() as server:
        made = compile_tiny(server.url, tmp_path / "run", metric=metric, concurrency=1)
        every = len(server.requests)
        often = [message for message, count in Counter(metric.asked).items() if count > 4]
        metric.broken = {often[-1]}
        with pytest.raises(MetricBug, match="row"):
            compile_tiny(server.url, tmp_path / "run", metric=metric)
        metric.broken = set()
        assert compile_tiny(server.url, tmp_path / "run", metric=metric) == made
        assert len(server.requests) == every

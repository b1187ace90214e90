"""What a budget allows is what the server counts, whoever makes the call, over kills and resumes too."""

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dspy
import pytest
from vitrify.compiler.budget import BudgetExhausted

import vitrify
from tests.desks import Desk, Route
from tests.server import Fault, ScriptedServer, at_random
from tests.tiny import SERVED, Nursery, Record, asked_of, compile_tiny, hasten, kill_after, serving


@pytest.fixture(scope="module")
def least(tmp_path_factory: pytest.TempPathFactory) -> int:
    """The smallest budget by the compiler's own words."""
    with serving() as server, pytest.raises(vitrify.RequestError) as caught:
        compile_tiny(server.url, tmp_path_factory.mktemp("least") / "run", budget=vitrify.Budget(calls=1))
    assert not server.requests
    found = re.search(r"needs at least (\d+)", str(caught.value))
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("calls", [0, 1, 5, 50, "least - 1"])
def test_too_little_is_said_before_a_call(tmp_path: Path, least: int, calls: int | str) -> None:
    number = least - 1 if isinstance(calls, str) else calls
    with serving() as server, pytest.raises(vitrify.RequestError, match=f"{number}.* needs at least {least}"):
        compile_tiny(server.url, tmp_path / "run", budget=vitrify.Budget(calls=number))
    assert not server.requests


@pytest.mark.parametrize("more", [0, 1, 20, 60, 1000])
def test_enough_ends_with_an_artifact(tmp_path: Path, least: int, more: int) -> None:
    """Certified on the whole test set, from its reserve, however little is left for the search."""
    with serving() as server:
        made = compile_tiny(server.url, tmp_path / "run", budget=vitrify.Budget(calls=least + more))
        assert len(server.requests) <= least + more
    artifact = json.loads(made)
    assert artifact["evidence"]["n"] == 24 and artifact["reproducible"] is True


@pytest.mark.parametrize("more", [0, 30, 90])
def test_with_failures(tmp_path: Path, least: int, more: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed attempts count; where they leave room for the sealed test there is an artifact, else a sentence."""
    hasten(monkeypatch, 100)
    busy = [Fault.status_code(429, retry_after="0"), Fault.status_code(500), Fault("drop")]
    with serving(faults=at_random(0.1, busy, seed=more)) as server:
        try:
            compile_tiny(server.url, tmp_path / "run", budget=vitrify.Budget(calls=least + more))
        except BudgetExhausted as error:
            assert f"The budget of {least + more} calls is spent" in str(error) and more < 30
        assert len(server.requests) <= least + more
        assert Record.of(tmp_path / "run").attempts == len(server.requests)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as found:
        yield found


def test_over_kills_and_resumes(nursery: Nursery, tmp_path: Path, least: int) -> None:
    """A budget is the run's: what was in flight at a kill counts, since the server may have answered it."""
    calls = least + 60
    with serving(latency=0.01) as server:
        for stage, lines in (("preflight", 10), ("search", 40), ("search", 20), ("certify", 2)):
            kill_after(nursery.start(server.url, tmp_path, budget=calls), tmp_path / "run", stage, lines)
            nursery.wait()
        ended = nursery.run(server.url, tmp_path, budget=calls)
        assert ended.status == 0, ended.error
        assert len(server.requests) <= calls
        assert Record.of(tmp_path / "run").attempts <= calls
        # More room afterwards: what was paid isn't asked for again.
        before = asked_of(server)
        ended = nursery.run(server.url, tmp_path, budget=1000)
        assert ended.status == 0, ended.error
        assert not [body for body, count in before.items() if asked_of(server)[body] > count]


# Calls that no plan saw -----------------------------------------------------------------------------------------------


class Asks(Desk):
    """Asks a language model of its own about each message, before it routes it."""

    def __init__(self, lm: Any) -> None:
        super().__init__()
        self.own = lm

    def forward(self, message: str) -> dspy.Prediction:
        self.ask(f"Is this urgent? {message}")
        return self.route(message=message)

    def ask(self, text: str) -> None:
        self.own(text)


class Closure(Asks):
    def __init__(self, lm: Any) -> None:
        super().__init__(None)
        self.own = partial(lambda text: lm(text))


class Context(Asks):
    """Another model for a while, through DSPy's settings."""

    def ask(self, text: str) -> None:
        with dspy.context(lm=self.own):
            dspy.Predict("text -> urgent: bool")(text=text)


class Parallel(Asks):
    """The same through `dspy.Parallel`, which has threads of its own."""

    def ask(self, text: str) -> None:
        one = dspy.Predict("text -> urgent: bool")
        one.lm = self.own
        dspy.Parallel(num_threads=2, disable_progress_bar=True)([(one, {"text": text}), (one, {"text": text + "!"})])


class Asyncified(dspy.Module):
    """The same through `dspy.asyncify`, from an asynchronous `forward`."""

    def __init__(self, lm: Any) -> None:
        super().__init__()
        self.route, self.own = dspy.Predict(Route), lm

    async def aforward(self, message: str) -> dspy.Prediction:
        await dspy.asyncify(self.own)(f"Is this urgent? {message}")
        return await self.route.acall(message=message)


EXTRA: dict[Any, int] = {Asks: 1, Closure: 1, Context: 1, Parallel: 2, Asyncified: 1}


def own_lm(server: ScriptedServer) -> Any:
    return dspy.LM(SERVED, api_base=server.url, api_key="none", cache=False, num_retries=0)


@pytest.mark.parametrize("make", list(EXTRA))
def test_calls_that_no_plan_saw(tmp_path: Path, make: Any) -> None:
    """Each is in the ledger, counted against the budget, charged to its evaluation, and answered from there later."""
    run, little = tmp_path / "run", {"instructions": 0, "demo_sets": 1}
    with serving() as server:
        calls = 330 if EXTRA[make] == 1 else 480
        made = compile_tiny(server.url, run, program=make(own_lm(server)), budget=vitrify.Budget(calls=calls), **little)
        record, served = Record.of(run), len(server.requests)
        assert record.attempts == served <= calls
        assert set(asked_of(server).values()) == {1}
        outcomes = [line for line in record.lines if line["kind"] == "outcome"]
        assert {line["calls"] for line in outcomes} == {1 + EXTRA[make]}
        again = compile_tiny(
            server.url, run, program=make(own_lm(server)), budget=vitrify.Budget(calls=calls), **little
        )
        assert again == made and len(server.requests) == served


@pytest.mark.parametrize("make", [Asks, Parallel, Asyncified])
def test_their_budget_holds(tmp_path: Path, make: Any) -> None:
    """Were they not counted, the server would see more."""
    with serving() as server:
        with pytest.raises((vitrify.RequestError, BudgetExhausted)):
            compile_tiny(server.url, tmp_path / "run", program=make(own_lm(server)), budget=vitrify.Budget(calls=100))
        assert len(server.requests) <= 100

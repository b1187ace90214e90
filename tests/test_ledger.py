"""The ledger, the meter and the metered model: what was paid is kept, counted and never paid twice."""

import asyncio
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from vitrify.compiler.budget import Budget, BudgetExhausted, Price, Spending
from vitrify.compiler.ledger import Ledger
from vitrify.compiler.meter import Asked, Charge, Meter
from vitrify.compiler.metered import Manners, MeteredLM, Scope
from vitrify.programs.lm import LMError, Reply, Request, Retry, Usage
from vitrify.signatures.errors import RequestError, WorkError
from vitrify.signatures.prompt import Capabilities

HELLO = Reply("hello", Usage(3, 2), "stub")


def request(text: str = "hi", replicate: int | None = None) -> Request:
    return Request("stub", ({"role": "user", "content": text},), {}, replicate)


class Stub:
    """A slow model that counts what it is asked."""

    name = "stub"
    endpoint = "here"
    capabilities = Capabilities()

    def __init__(self, error: Exception | None = None, seconds: float = 0.0) -> None:
        self.asked: list[str] = []
        self.error = error
        self.seconds = seconds

    def complete(self, request: Request) -> Reply:
        self.asked.append(request.key)
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return HELLO

    async def acomplete(self, request: Request) -> Reply:
        return await asyncio.to_thread(self.complete, request)

    def close(self) -> None:
        pass


def test_replies_survive(tmp_path: Path) -> None:
    replies = [
        Reply(text, Usage(1, 2, 1), "m", "length", ({"id": "a"},), "why") for text in ("a", "", "ü\ud800\n", "☃")
    ]
    with Ledger(tmp_path / "run") as ledger:
        for index, reply in enumerate(replies):
            ledger.add_reply(str(index), "task", "m", reply, 0.1)
    with Ledger(tmp_path / "run") as ledger:
        assert replies == [ledger.reply(str(index)) for index in range(4)]
        assert ledger.reply("none") is None
        assert 4 == len(ledger)


def test_a_line_that_a_crash_cut_off_is_dropped_at_every_byte(tmp_path: Path) -> None:
    with Ledger(tmp_path / "run") as ledger:
        ledger.add_reply("first", "task", "m", HELLO, 0.1)
        ledger.add_reply("second", "task", "m", HELLO, 0.1)
    file = tmp_path / "run" / "ledger.jsonl"
    whole = file.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        file.write_bytes(whole[:end])
        with Ledger(tmp_path / "run") as ledger:
            assert HELLO == ledger.reply("first")
            assert ledger.reply("second") is None
            ledger.add_reply("third", "task", "m", HELLO, 0.1)
        lines = file.read_text().splitlines()
        assert ["first", "third"] == [json.loads(line)["key"] for line in lines]


def test_a_line_damaged_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ledger.jsonl").write_text('{"kind": "pass"}\n{"kind": "reply"}\n')
    with pytest.raises(WorkError, match="damaged in line 2"):
        Ledger(tmp_path / "run")
    with pytest.raises(WorkError, match="damaged in line 2"):  # and the lock was given back
        Ledger(tmp_path / "run")


def test_a_second_process_is_told(tmp_path: Path) -> None:
    with Ledger(tmp_path / "run"), pytest.raises(RequestError, match="in use by another compile"):
        Ledger(tmp_path / "run")
    Ledger(tmp_path / "run").close()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="can't be written"):
        Ledger(tmp_path / "file" / "run")


def test_a_full_disk_stops_with_a_sentence(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    ledger = Ledger(tmp_path / "run")
    os.close(ledger._file)
    ledger._file = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(WorkError, match="what was paid is kept"):
        ledger.add_reply("a", "task", "m", HELLO, 0.1)
    assert ledger.reply("a") is None
    ledger.close()


def test_equal_requests_in_flight_are_paid_once(tmp_path: Path) -> None:
    stub, scopes = Stub(seconds=0.05), [Scope() for _ in range(8)]
    current = threading.local()
    with Ledger(tmp_path / "run") as ledger:
        meter = Meter(Budget())
        lm = MeteredLM(stub, ledger, meter, lambda: current.scope)

        def work(scope: Scope) -> Reply:
            current.scope = scope
            return lm.complete(request())

        with ThreadPoolExecutor(8) as pool:
            assert [HELLO] * 8 == list(pool.map(work, scopes))
        assert 1 == len(stub.asked) == meter.calls
        assert all(scope.cost.calls == 1 for scope in scopes)
        for scope in scopes:
            meter.charge(scope.cost.requests)
        assert Spending(1, HELLO.usage) == meter.logical


def test_replicates_and_endpoints_are_told_apart(tmp_path: Path) -> None:
    stub = Stub()
    with Ledger(tmp_path / "run") as ledger:
        lm = MeteredLM(stub, ledger, Meter(Budget()), lambda: None)
        lm.complete(request(replicate=1))
        lm.complete(request(replicate=2))
        assert 2 == len(stub.asked)
        other = Stub()
        other.endpoint = "there"
        MeteredLM(other, ledger, Meter(Budget()), lambda: None).complete(request(replicate=1))
        assert 1 == len(other.asked)


def test_synchronous_and_asynchronous_calls_share_the_ledger(tmp_path: Path) -> None:
    stub = Stub()
    with Ledger(tmp_path / "run") as ledger:
        lm = MeteredLM(stub, ledger, Meter(Budget()), lambda: None)
        assert HELLO == lm.complete(request())
        assert HELLO == asyncio.run(lm.acomplete(request()))

        async def many() -> list[Reply]:
            return list(await asyncio.gather(*(lm.acomplete(request("other")) for _ in range(5))))

        assert [HELLO] * 5 == asyncio.run(many())
    assert 2 == len(stub.asked)


def test_a_failure_sticks_to_its_evaluation_and_is_asked_again_by_the_next(tmp_path: Path) -> None:
    scope = Scope()
    stub = Stub(LMError("gone", cause="server"))
    with Ledger(tmp_path / "run") as ledger:
        lm = MeteredLM(stub, ledger, Meter(Budget()), lambda: scope)
        for _ in range(2):
            with pytest.raises(LMError, match="gone"):
                lm.complete(request())
        assert isinstance(scope.refusal, LMError)
        assert 2 == len(stub.asked)
        assert 0 == len(ledger)


def test_an_overflow_is_no_refusal(tmp_path: Path) -> None:
    scope = Scope()
    with Ledger(tmp_path / "run") as ledger:
        lm = MeteredLM(Stub(LMError("long", cause="context_overflow")), ledger, Meter(Budget()), lambda: scope)
        with pytest.raises(LMError):
            lm.complete(request())
    assert scope.refusal is None


@pytest.mark.parametrize("calls", [0, 1, 5])
def test_the_meter_refuses_the_call_that_would_exceed(tmp_path: Path, calls: int) -> None:
    stub = Stub()
    with Ledger(tmp_path / "run") as ledger:
        lm = MeteredLM(stub, ledger, Meter(Budget(calls=calls)), lambda: None)
        for index in range(calls):
            lm.complete(request(str(index)))
        with pytest.raises(BudgetExhausted, match=f"budget of {calls} calls"):
            lm.complete(request("one more"))
        for index in range(calls):
            lm.complete(request(str(index)))  # what is known costs nothing
    assert calls == len(stub.asked)


def test_the_meter_knows_when_tokens_money_and_time_are_over() -> None:
    clock = iter([0.0, 1.0, 11.0, 11.0]).__next__
    meter = Meter(Budget(tokens=100, dollars=1.0, seconds=10.0), clock=clock)
    assert meter.over() is None
    assert meter.late() is None
    assert "10 seconds are over" == meter.late()
    key = 64 * "a"
    meter.charge({key: Charge(Usage(40, 20), "task", 0.8)})
    meter.charge({key: Charge(Usage(40, 20), "task", 0.8)})  # the same request, needed twice
    assert meter.over() is None
    assert "60 of 100 tokens are spent" == meter.over(1)
    dear = Meter(Budget(task=Budget(dollars=1.0)))
    dear.charge({key: Charge(Usage(60, 20), "prompt", 5.0)})
    assert dear.over(1) is None  # the prompt model's money isn't the task model's
    dear.charge({64 * "b": Charge(Usage(60, 20), "task", 0.6)})
    assert "$0.6000 of $1.00 are spent" == dear.over(1)


def test_tokens_and_dollars_are_held_while_a_call_is_in_flight() -> None:
    price = Price(0.01, 0.02)
    for budget in (Budget(tokens=100), Budget(dollars=1.2), Budget(task=Budget(tokens=100))):
        meter = Meter(budget)
        asked = Asked(price=price, need=Usage(40, 20))
        assert meter.admit(asked)
        assert not meter.admit(asked)  # there may be room once the first is back
        meter.settle(asked, Usage(5, 5))
        assert meter.admit(asked)
        meter.settle(asked, Usage(40, 20))
        with pytest.raises(BudgetExhausted, match="is spent"):
            meter.admit(asked)
    prompts = Meter(Budget(prompt=Budget(calls=1)))
    assert prompts.admit(Asked("task")) and prompts.admit(Asked("task")) and prompts.admit(Asked("prompt"))
    with pytest.raises(BudgetExhausted, match="budget.prompt"):
        prompts.admit(Asked("prompt"))


def test_what_is_kept_for_the_sealed_test_is_out_of_reach() -> None:
    meter = Meter(Budget(calls=10))
    meter.keep(Spending(4))
    for _ in range(6):
        assert meter.admit(Asked())
    with pytest.raises(BudgetExhausted, match="4 of them kept for the sealed test"):
        meter.admit(Asked())
    for _ in range(4):
        assert meter.admit(Asked(certifying=True))
    with pytest.raises(BudgetExhausted):
        meter.admit(Asked(certifying=True))
    resumed = Meter(Budget(calls=10))
    resumed.resume("task", Spending(8), wasted=0, lost=0, certified=3)
    resumed.keep(Spending(4))  # three of them were made already
    assert resumed.admit(Asked())
    with pytest.raises(BudgetExhausted):
        resumed.admit(Asked())


def test_attempts_that_came_to_nothing_count_now_and_after_a_resume(tmp_path: Path) -> None:
    class Failing(Stub):
        def complete(self, request: Request) -> Reply:
            self.asked.append(request.key)
            if len(self.asked) % 3:
                raise LMError("busy", cause="rate_limited", retry_after=0.0)
            return HELLO

    stub, meter = Failing(), Meter(Budget(calls=10))
    with Ledger(tmp_path / "run") as ledger:
        lm = MeteredLM(stub, ledger, meter, lambda: None, Manners(Retry(attempts=4, base_delay=0.0)))
        for index in range(2):
            assert 3 == lm.complete(request(str(index))).attempts
            meter.charge({64 * str(index): Charge(HELLO.usage)})
    assert (6, 4) == (meter.calls, meter.wasted)
    assert meter.over(8) is None
    assert meter.over(4, wasted=meter.wasted) is None
    said = "6 of 10 calls are spent, and 5 are kept for the sealed test"
    assert said == meter.over(5, wasted=meter.wasted)
    with Ledger(tmp_path / "run") as ledger:
        tally = ledger.tallies["task", "stub"]
        assert (6, 2, Usage(6, 4)) == (tally.attempts, tally.replies, tally.usage)


def test_a_call_in_flight_at_a_kill_counts(tmp_path: Path) -> None:
    with Ledger(tmp_path / "run") as ledger:
        ledger.add_attempt("a", "prompt", "m", certifying=True)
        ledger.add_attempt("b", "prompt", "m", certifying=False)
        ledger.add_reply("b", "prompt", "m", HELLO, 0.1)
        ledger.add_hedged("b", "prompt", "m", Usage(1, 1))
    with Ledger(tmp_path / "run") as ledger:
        tally = ledger.tallies["prompt", "m"]
    assert (2, 1, 2, Usage(4, 3)) == (tally.attempts, tally.certifying, tally.replies, tally.usage)


def test_retries_stay_within_the_budget(tmp_path: Path) -> None:
    stub = Stub(LMError("busy", cause="rate_limited", retry_after=0.0))
    with Ledger(tmp_path / "run") as ledger:
        lm = MeteredLM(stub, ledger, Meter(Budget(calls=3)), lambda: None, Manners(Retry(attempts=9, base_delay=0.0)))
        with pytest.raises(BudgetExhausted):
            lm.complete(request())
    assert 3 == len(stub.asked)


def test_giving_up_one_joined_call_leaves_the_others_alone(tmp_path: Path) -> None:
    stub = Stub(seconds=0.2)
    with Ledger(tmp_path / "run") as ledger:
        lm = MeteredLM(stub, ledger, Meter(Budget()), lambda: None)

        async def main() -> list[Any]:
            owner = asyncio.create_task(lm.acomplete(request()))
            await asyncio.sleep(0.05)
            joined = asyncio.create_task(lm.acomplete(request()))
            patient = asyncio.create_task(lm.acomplete(request()))
            await asyncio.sleep(0.05)
            joined.cancel()
            return list(await asyncio.gather(owner, joined, patient, return_exceptions=True))

        first, given_up, last = asyncio.run(main())
    assert HELLO == first == last
    assert isinstance(given_up, asyncio.CancelledError)

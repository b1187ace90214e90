"""Clients on other people's event loops: pools of their own, which end with the loop or with the client."""

import asyncio
import gc
import logging
import os
import signal
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import pytest
from vitrify.programs.lm import LMError, Request, Retry
from vitrify.programs.openai import OpenAICompatible
from vitrify.programs.transport import SETTLED

from tests.server import Fault, Faults, ScriptedServer

QUICK = Retry(attempts=3, base_delay=0.001, cap=0.002)
MANY = SETTLED + 8


def ask(text: str = "hello") -> Request:
    return Request("openai/local", ({"role": "user", "content": text},))


@pytest.fixture(autouse=True)
def nothing_left(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing is left open: neither a warning of Python's nor a word in asyncio's log."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        yield
        gc.collect()
    assert [str(item.message) for item in seen] == []
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as running:
        yield running


def made(server: ScriptedServer, **options: Any) -> OpenAICompatible:
    return OpenAICompatible("openai/local", api_base=server.url, **{"api_key": "none", "retry": QUICK, **options})


def guests(lm: OpenAICompatible) -> list[asyncio.AbstractEventLoop]:
    """Return the loops that have connections of their own."""
    assert lm._transport is not None
    return list(lm._transport._guests._pools)


async def many(lm: OpenAICompatible, calls: int = MANY) -> None:
    """Make calls one after the other, the last of them at once."""
    for _ in range(SETTLED):
        assert (await lm.acomplete(ask())).text == "hello"
    texts = [f"q{number}" for number in range(calls - SETTLED)]
    replies = await asyncio.gather(*(lm.acomplete(ask(text)) for text in texts))
    assert [reply.text for reply in replies] == texts


def in_a_thread(lm: OpenAICompatible, work: Callable[[], Coroutine[Any, Any, None]]) -> threading.Thread:
    thread = threading.Thread(target=lambda: asyncio.run(work()))
    thread.start()
    return thread


def test_only_a_loop_that_asks_often_has_a_pool_and_it_ends_with_the_loop(server: ScriptedServer) -> None:
    lm = made(server)

    async def few() -> None:
        await lm.acomplete(ask())
        assert guests(lm) == []

    async def often() -> None:
        await many(lm)
        assert guests(lm) == [asyncio.get_running_loop()]

    for _ in range(3):
        asyncio.run(few())
        asyncio.run(often())
        assert guests(lm) == []
    loops = []

    async def kept() -> None:
        await many(lm)
        loops.append(weakref.ref(asyncio.get_running_loop()))

    for _ in range(3):
        asyncio.run(kept())
    gc.collect()
    assert [loop() for loop in loops] == [None] * 3
    lm.close()


def test_a_loop_that_is_closed_without_care_is_forgotten_at_the_next(server: ScriptedServer) -> None:
    lm = made(server)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(many(lm))
    pool = lm._transport._guests._pools[loop]  # type: ignore[union-attr]
    with warnings.catch_warnings():
        # Connections of a loop that nobody told of its end are asyncio's to complain of; the client says nothing.
        warnings.filterwarnings("ignore", "unclosed (transport|<socket)", ResourceWarning)
        loop.close()
        asyncio.run(many(lm))
        assert guests(lm) == [] and pool._connections is None
        del pool, loop
        gc.collect()
    lm.close()


def test_closing_the_client_ends_the_calls_on_every_loop() -> None:
    calm = threading.Event()
    ready = threading.Barrier(2, action=calm.set)

    def hang(number: int, body: dict[str, Any]) -> Fault | None:
        return Fault("hang") if calm.is_set() else None

    with ScriptedServer(faults=hang) as server:
        lm = made(server)
        found: list[BaseException] = []

        async def one() -> None:
            try:
                await lm.acomplete(ask())
            except LMError as error:
                found.append(error)

        async def work() -> None:
            await many(lm)
            await asyncio.to_thread(ready.wait, 10)
            await asyncio.gather(*(one() for _ in range(3)))
            assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]
            await one()  # later ones fail too

        threads = [in_a_thread(lm, work) for _ in range(2)]
        until = time.monotonic() + 10
        while server.in_flight < 6 and time.monotonic() < until:
            time.sleep(0.005)
        lm.close()
        for thread in threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in threads)
        said = sorted({str(error).partition("the client")[2] for error in found})
        assert len(found) == 8 and said == [
            " is closed; make a new one.",
            " was closed while the call was in flight.",
        ]
        assert all(isinstance(error, LMError) and not error.retryable for error in found)


def test_closing_ends_a_call_that_waits_to_be_repeated() -> None:
    fault: Faults = lambda number, body: None if number < MANY else Fault.status_code(503)  # noqa: E731
    with ScriptedServer(faults=fault) as server:
        lm = made(server, retry=Retry(attempts=5, base_delay=60.0, cap=60.0))

        async def work() -> None:
            await many(lm)
            waiting = asyncio.create_task(lm.acomplete(ask()))
            while len(server.requests) <= MANY:
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.02)
            lm.close()
            with pytest.raises(LMError, match="closed while"):
                await asyncio.wait_for(waiting, 5)

        asyncio.run(work())


def test_closing_on_the_loop_just_before_it_ends(server: ScriptedServer) -> None:
    async def work() -> None:
        lm = made(server)
        await many(lm)
        lm.close()

    for _ in range(3):
        asyncio.run(work())


def test_a_forgotten_client_closes_its_pools_while_the_loop_goes_on(server: ScriptedServer) -> None:
    async def work() -> None:
        lm = made(server)
        await many(lm)
        pool = lm._transport._guests.get(asyncio.get_running_loop())  # type: ignore[union-attr]
        assert pool is not None
        del lm
        gc.collect()
        until = time.monotonic() + 5
        while pool._connections is not None and time.monotonic() < until:
            await asyncio.sleep(0.005)
        assert pool._connections is None

    asyncio.run(work())


def test_cancelling_drops_the_connection_and_the_pool_lives_on() -> None:
    fault: Faults = lambda number, body: Fault("hang") if number == MANY else None  # noqa: E731
    with ScriptedServer(faults=fault) as server:
        lm = made(server)

        async def work() -> None:
            await many(lm)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(lm.acomplete(ask()), 0.1)
            assert (await lm.acomplete(ask("again"))).text == "again"
            until = time.monotonic() + 5
            while server.in_flight and time.monotonic() < until:
                await asyncio.sleep(0.005)
            assert server.in_flight == 0

        asyncio.run(work())
        lm.close()


def test_a_timeout_on_a_loop_of_ones_own() -> None:
    fault: Faults = lambda number, body: Fault("hang") if number == MANY else None  # noqa: E731
    with ScriptedServer(faults=fault) as server:
        lm = made(server, timeout=0.3, retry=Retry(attempts=1))

        async def work() -> None:
            await many(lm)
            with pytest.raises(LMError, match=r"`timeout=0\.3` s") as caught:
                await lm.acomplete(ask())
            assert caught.value.cause == "timeout"
            assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]
            assert (await lm.acomplete(ask("on"))).text == "on"

        asyncio.run(work())
        lm.close()


def test_each_attempt_has_its_own_time() -> None:
    """One timer serves them all: an attempt that ends in time stops nothing, and a later one isn't cut short."""
    fault: Faults = lambda number, body: Fault("hang") if "hang" in body["messages"][0]["content"] else None  # noqa: E731
    with ScriptedServer(faults=fault) as server:
        lm = made(server, timeout=0.4, retry=Retry(attempts=1))

        async def hanging(after: float) -> float:
            await asyncio.sleep(after)
            began = time.monotonic()
            with pytest.raises(LMError) as caught:
                await lm.acomplete(ask("hang"))
            assert caught.value.cause == "timeout"
            return time.monotonic() - began

        async def answered(after: float) -> None:
            await asyncio.sleep(after)
            assert (await lm.acomplete(ask("quick"))).text == "quick"

        async def work() -> list[float]:
            times = [asyncio.create_task(hanging(0.1 * number)) for number in range(5)]
            await asyncio.gather(*(answered(0.07 * number) for number in range(12)))
            return await asyncio.gather(*times)

        assert all(0.39 <= seconds < 2 for seconds in lm.submit(work()).result(10))
        assert all(0.39 <= seconds < 2 for seconds in asyncio.run(work()))
        lm.close()


def test_cancelling_at_the_moment_of_the_timeout_is_not_swallowed() -> None:
    with ScriptedServer(faults=lambda number, body: Fault("hang")) as server:
        lm = made(server, timeout=0.2, retry=Retry(attempts=1))

        async def work() -> None:
            waiting = asyncio.create_task(lm.acomplete(ask()))
            await asyncio.sleep(0.01)
            pool = await lm._transport.pool_here()  # type: ignore[union-attr]
            assert pool is not None
            for task in pool._due:
                pool._due[task] = 0.0
            pool._overdue(asyncio.get_running_loop())
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

        lm.submit(work()).result(5)
        lm.close()


def test_loops_and_threads_share_a_client(server: ScriptedServer) -> None:
    lm = made(server)
    loops = [in_a_thread(lm, lambda: many(lm, 3 * MANY)) for _ in range(3)]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda number: lm.complete(ask(f"t{number}")).text, range(100)))
    for thread in loops:
        thread.join(20)
    assert replies == [f"t{number}" for number in range(100)] and guests(lm) == []
    assert len(server.requests) == 100 + 9 * MANY
    lm.close()


def test_a_forked_child_has_pools_of_its_own(server: ScriptedServer) -> None:
    lm = made(server)

    async def work() -> None:
        await many(lm)
        child = os.fork()
        if child == 0:  # pragma: no cover
            signal.alarm(15)
            done = threading.Thread(target=lambda: asyncio.run(many(lm)))
            done.start()
            done.join(10)
            os._exit(0 if not done.is_alive() else 1)
        while os.waitpid(child, os.WNOHANG)[0] == 0:
            await asyncio.sleep(0.01)
        assert (await lm.acomplete(ask("parent"))).text == "parent"

    asyncio.run(work())
    lm.close()


def test_coroutines_run_on_the_clients_own_loop(server: ScriptedServer) -> None:
    lm = made(server)

    async def work() -> list[str | None]:
        assert asyncio.get_running_loop() is lm.loop
        replies = await asyncio.gather(*(lm.acomplete(ask(f"q{number}")) for number in range(50)))
        return [reply.text for reply in replies]

    futures = [lm.submit(work()) for _ in range(3)]
    assert [future.result(10) for future in futures] == [[f"q{number}" for number in range(50)]] * 3
    assert guests(lm) == []
    lm.close()
    with pytest.raises(LMError, match="make a new one"):
        lm.submit(work())


def test_closing_ends_what_was_submitted() -> None:
    with ScriptedServer(faults=lambda number, body: Fault("hang")) as server:
        lm = made(server)

        async def idle() -> None:
            await asyncio.sleep(60)

        asking, idling = lm.submit(lm.acomplete(ask())), lm.submit(idle())
        until = time.monotonic() + 5
        while not server.in_flight and time.monotonic() < until:
            time.sleep(0.005)
        lm.close()
        with pytest.raises(LMError, match="closed while"):
            asking.result(5)
        with pytest.raises(CancelledError):
            idling.result(5)

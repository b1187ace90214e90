"""Workers: the limit, the order, threads and loops, what is cancelled, what is given up."""

import asyncio
import contextvars
import gc
import os
import random
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from vitrify.compiler.workers import FIRST, Workers

SOON = 10.0


@contextmanager
def running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(SOON)
        loop.close()


class Gauge:
    """How many run at once."""

    def __init__(self) -> None:
        self.now = self.most = self.total = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.total += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.now -= 1


class Gate:
    """Work that waits to be let through."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.open = threading.Event()

    def __call__(self) -> str:
        self.begun.release()
        assert self.open.wait(SOON)
        return "through"


def test_results_and_failures_come_back() -> None:
    workers = Workers(3)
    futures = [workers.submit(partial(pow, i, 2)) for i in range(50)]
    assert [i * i for i in range(50)] == [future.result(SOON) for future in futures]
    with pytest.raises(ZeroDivisionError):
        workers.submit(lambda: 1 / 0).result(SOON)
    with pytest.raises(SystemExit):
        workers.submit(lambda: sys.exit(3)).result(SOON)
    assert 4 == workers.submit(lambda: 4).result(SOON)
    workers.close(wait=True)


def test_smaller_priorities_first_then_in_the_order_asked() -> None:
    workers, gate, order = Workers(1), Gate(), list[tuple[int, int]]()
    workers.submit(gate)
    futures = []
    for number, priority in enumerate([1, 0, 2, 0, 1, 0]):
        futures.append(workers.submit(partial(order.append, (priority, number)), priority=priority))
    gate.open.set()
    wait(futures, SOON)
    assert sorted(order) == order
    assert 6 == len(order)
    workers.close(wait=True)


def test_threads_are_started_when_there_is_work_for_them() -> None:
    workers = Workers(64)
    assert 0 == workers.threads
    for _ in range(20):
        workers.submit(lambda: None).result(SOON)
        while workers.running:  # the thread gives its place back after the result
            pass
    assert 1 == workers.threads
    gates = [Gate() for _ in range(5)]
    for gate in gates:
        workers.submit(gate)
    assert 5 == workers.threads
    for gate in gates:
        gate.open.set()
    workers.close(wait=True)


def test_a_raised_limit_takes_effect_at_once() -> None:
    limit = 1
    workers, gate = Workers(lambda: limit, most=8), Gate()
    futures = [workers.submit(gate) for _ in range(10)]
    assert gate.begun.acquire(timeout=SOON)
    assert 1 == workers.running
    limit = 4
    workers.widen()
    for _ in range(3):
        assert gate.begun.acquire(timeout=SOON)
    assert 4 == workers.running
    limit = 100
    workers.widen()
    for _ in range(4):
        assert gate.begun.acquire(timeout=SOON)
    assert 8 == workers.running  # the most
    assert not gate.begun.acquire(timeout=0.05)
    gate.open.set()
    assert ["through"] * 10 == [future.result(SOON) for future in futures]
    workers.close(wait=True)


def test_a_lowered_limit_lets_what_has_begun_go_on() -> None:
    limit = 4
    workers, gates = Workers(lambda: limit), [Gate() for _ in range(6)]
    futures = [workers.submit(gate) for gate in gates]
    limit = 1
    for gate in gates[:3]:
        gate.open.set()
    wait(futures[:3], SOON)
    assert not gates[4].begun.acquire(timeout=0.05)
    gates[3].open.set()
    assert gates[4].begun.acquire(timeout=SOON)
    assert not gates[5].begun.acquire(timeout=0.05)
    for gate in gates:
        gate.open.set()
    wait(futures, SOON)
    workers.close(wait=True)


def test_a_limit_of_zero_is_a_pause() -> None:
    limit = 0
    workers = Workers(lambda: limit)
    future = workers.submit(lambda: 1)
    assert (0, 0) == (workers.running, workers.threads)
    limit = 1
    workers.widen()
    assert 1 == future.result(SOON)
    workers.close(wait=True)


@pytest.mark.parametrize("seed", range(3))
def test_the_limit_holds_for_threads_and_coroutines_together(seed: int) -> None:
    rng, gauge = random.Random(seed), Gauge()
    limit = 5
    with running_loop() as loop:
        workers = Workers(lambda: limit, most=9)

        def work() -> None:
            with gauge:
                threading.Event().wait(0.0005)

        async def awork() -> None:
            with gauge:
                await asyncio.sleep(0.0005)

        futures: list[Future[Any]] = []
        for _ in range(400):
            if rng.random() < 0.5:
                futures.append(workers.submit(work, priority=rng.randrange(3)))
            else:
                futures.append(workers.submit_async(loop, awork, priority=rng.randrange(3)))
        done, _ = wait(futures, SOON)
        assert (400, 400) == (len(done), gauge.total)
        assert 2 <= gauge.most <= 5
        assert workers.threads <= 5
        workers.close(wait=True)
        assert 0 == workers.running


def test_coroutines_take_no_thread() -> None:
    with running_loop() as loop:
        workers, gauge = Workers(32), Gauge()

        async def work() -> int:
            with gauge:
                await asyncio.sleep(0.001)
            return threading.get_ident()

        futures = [workers.submit_async(loop, work) for _ in range(200)]
        assert 1 == len({future.result(SOON) for future in futures})
        assert 0 == workers.threads
        assert 2 <= gauge.most <= 32
        workers.close(wait=True)


@pytest.mark.parametrize("threads", [True, False])
def test_who_waits_for_others_gives_the_place_away_and_comes_back_first(threads: bool) -> None:
    with running_loop() as loop:
        workers, order, coming, gate = Workers(1), list[str](), Future[str](), Gate()

        def work() -> str:
            order.append("leaves")
            found = workers.aside(coming)
            order.append("is back")
            assert 1 == workers.running
            return found

        async def awork() -> str:
            order.append("leaves")
            found = await workers.aaside(coming)
            order.append("is back")
            assert 1 == workers.running
            return found

        def meanwhile() -> None:
            order.append("another")
            gate()

        first = workers.submit(work) if threads else workers.submit_async(loop, awork)
        second = workers.submit(meanwhile)
        third = workers.submit(lambda: order.append("a third"))
        assert gate.begun.acquire(timeout=SOON)
        coming.set_result("brought")
        while not workers._heap or workers._heap[0][0] != FIRST:
            pass  # it asks for its place again
        assert ["leaves", "another"] == order
        gate.open.set()
        assert "brought" == first.result(SOON)
        wait([second, third], SOON)
        assert ["leaves", "another", "is back", "a third"] == order
        assert "brought" == workers.submit(lambda: workers.aside(coming)).result(SOON)  # known: nobody leaves
        workers.close(wait=True)
        assert 0 == workers.running


@pytest.mark.parametrize("waits", [True, False])
def test_closing_waits_for_those_that_gave_their_place_away_or_gives_them_up(waits: bool) -> None:
    with running_loop() as loop:
        workers, coming, left = Workers(4), Future[int](), threading.Semaphore(0)

        async def awork() -> int:
            left.release()
            return await workers.aaside(coming)

        def work() -> int:
            left.release()
            return workers.aside(coming)

        futures = [workers.submit_async(loop, awork), workers.submit(work)]
        for _ in futures:
            assert left.acquire(timeout=SOON)
        while workers.running:
            pass
        if waits:
            threading.Timer(0.02, lambda: coming.set_result(7)).start()
            workers.close(wait=True)
            assert [7, 7] == [future.result(0) for future in futures]
        else:
            workers.close(wait=False)
            for future in futures:
                with pytest.raises(CancelledError):
                    future.result(SOON)
            coming.set_result(7)


@pytest.mark.parametrize("seed", range(3))
def test_the_limit_holds_while_places_are_given_away(seed: int) -> None:
    rng, gauge = random.Random(seed), Gauge()
    with running_loop() as loop:
        workers = Workers(5)
        shared = [Future[int]() for _ in range(40)]

        def work(number: int) -> int:
            with gauge:
                threading.Event().wait(0.0005)
            found = workers.aside(shared[number])
            with gauge:
                return found

        async def awork(number: int) -> int:
            with gauge:
                await asyncio.sleep(0.0005)
            found = await workers.aaside(shared[number])
            with gauge:
                return found

        futures: list[Future[int]] = []
        for _ in range(300):
            number = rng.randrange(40)
            if rng.random() < 0.5:
                futures.append(workers.submit(partial(work, number), priority=rng.randrange(3)))
            else:
                futures.append(workers.submit_async(loop, partial(awork, number), priority=rng.randrange(3)))
        for number in rng.sample(range(40), 40):
            shared[number].set_result(number)
        done, _ = wait(futures, SOON)
        assert (300, 600) == (len(done), gauge.total)
        assert 2 <= gauge.most <= 5
        workers.close(wait=True)
        assert 0 == workers.running


def test_coroutines_obey_priorities_and_fail_alone() -> None:
    with running_loop() as loop:
        workers, gate, order = Workers(1), Gate(), list[int]()
        workers.submit(gate)

        async def work(number: int) -> int:
            order.append(number)
            return 1 // number

        futures = [workers.submit_async(loop, partial(work, n), priority=-n) for n in range(4)]
        gate.open.set()
        wait(futures, SOON)
        assert [3, 2, 1, 0] == order
        assert [0, 0, 1] == [future.result(SOON) for future in futures[:0:-1]]
        assert isinstance(futures[0].exception(SOON), ZeroDivisionError)
        workers.close(wait=True)


def test_what_cannot_become_a_coroutine_fails_without_recursion() -> None:
    with running_loop() as loop:
        workers, gate = Workers(1), Gate()
        workers.submit(gate)

        def make() -> Any:
            raise LookupError("no coroutine")

        futures = [workers.submit_async(loop, make) for _ in range(3000)]
        futures.append(workers.submit_async(loop, lambda: None))  # type: ignore[arg-type,return-value]
        gate.open.set()
        assert all(isinstance(future.exception(SOON), LookupError) for future in futures[:-1])
        assert isinstance(futures[-1].exception(SOON), TypeError)
        assert 5 == workers.submit(lambda: 5).result(SOON)
        workers.close(wait=True)


def test_a_closed_loop_fails_its_work_and_nobody_else_s() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    workers = Workers(1)

    async def never() -> None: ...

    futures = [workers.submit_async(loop, never) for _ in range(2000)]
    assert all(isinstance(future.exception(SOON), RuntimeError) for future in futures)
    assert 1 == workers.submit(lambda: 1).result(SOON)
    workers.close(wait=True)


def test_cancelling_what_waits_frees_its_place_and_memory_at_once() -> None:
    class Big:
        pass

    workers, gate, ran = Workers(1), Gate(), list[int]()
    workers.submit(gate)
    big = Big()
    held = weakref.ref(big)
    first = workers.submit(lambda big=big: ran.append(1))  # type: ignore[misc]
    second = workers.submit(lambda: ran.append(2))
    del big
    assert held() is not None
    assert first.cancel()
    gc.collect()
    assert held() is None
    gate.open.set()
    second.result(SOON)
    assert [2] == ran
    workers.close(wait=True)


def test_nothing_is_kept_alive_by_idle_threads() -> None:
    class Big:
        pass

    workers = Workers(1)
    big = Big()
    held = weakref.ref(big)
    workers.submit(lambda big=big: [big]).result(SOON)  # type: ignore[misc]
    del big
    until = time.monotonic() + SOON
    while held() is not None and time.monotonic() < until:  # the thread lets go after the result
        gc.collect()
    assert held() is None
    workers.close(wait=True)


def test_what_runs_cannot_be_cancelled() -> None:
    workers, gate = Workers(1), Gate()
    future = workers.submit(gate)
    assert not future.cancel()
    gate.open.set()
    assert "through" == future.result(SOON)
    workers.close(wait=True)


def test_a_callback_may_submit_more() -> None:
    workers = Workers(1)
    chained: Future[int] = Future()

    def more(_: Future[int]) -> None:
        workers.submit(lambda: 2).add_done_callback(lambda future: chained.set_result(future.result()))

    workers.submit(lambda: 1).add_done_callback(more)
    assert 2 == chained.result(SOON)
    workers.close(wait=True)


def test_each_item_has_an_empty_context_of_its_own() -> None:
    seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="nothing")
    seen.set("the caller's")
    with running_loop() as loop:
        workers = Workers(1)

        def work() -> str:
            before = seen.get()
            seen.set("left behind")
            return before

        async def awork() -> str:
            return work()

        assert ["nothing"] * 3 == [workers.submit(work).result(SOON) for _ in range(3)]
        assert ["nothing"] * 3 == [workers.submit_async(loop, awork).result(SOON) for _ in range(3)]
        workers.close(wait=True)


def test_closing_waits_for_what_has_begun_and_cancels_the_rest() -> None:
    with running_loop() as loop:
        workers, gate = Workers(2), Gate()
        entered = threading.Event()
        leave = asyncio.Event()

        async def work() -> str:
            entered.set()
            await leave.wait()
            return "left"

        begun, begun_too = workers.submit(gate), workers.submit_async(loop, work)
        waiting: list[Future[Any]] = [workers.submit(lambda: 1), workers.submit_async(loop, work)]
        assert entered.wait(SOON)
        threading.Timer(0.05, gate.open.set).start()
        threading.Timer(0.05, lambda: loop.call_soon_threadsafe(leave.set)).start()
        workers.close(wait=True)
        assert begun.done()
        assert begun_too.done()
        assert ("through", "left") == (begun.result(), begun_too.result())
        assert all(future.cancelled() for future in waiting)
        assert len(wait(waiting, SOON).done) == 2
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("vitrify-")]
        with pytest.raises(RuntimeError, match="closed"):
            workers.submit(lambda: 1)
        workers.close(wait=True)


def test_giving_up_cancels_tasks_and_leaves_threads() -> None:
    with running_loop() as loop:
        workers, gate = Workers(2), Gate()
        entered, cancelled = threading.Event(), threading.Event()

        async def work() -> None:
            entered.set()
            try:
                await asyncio.sleep(100)
            finally:
                cancelled.set()

        hanging, task = workers.submit(gate), workers.submit_async(loop, work)
        assert entered.wait(SOON)
        workers.close(wait=False)
        with pytest.raises(CancelledError):
            hanging.result(0)
        with pytest.raises(CancelledError):
            task.result(0)
        assert cancelled.wait(SOON)
        gate.open.set()  # what it returns now is nobody's


def test_giving_up_what_is_between_the_queue_and_the_loop() -> None:
    ran: list[int] = []
    with running_loop() as loop:
        workers, blocked = Workers(1), threading.Event()
        loop.call_soon_threadsafe(blocked.wait, SOON)

        def make() -> Any:
            ran.append(1)

        future = workers.submit_async(loop, make)
        workers.close(wait=False)
        blocked.set()
        with pytest.raises(CancelledError):
            future.result(SOON)
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(SOON)
    assert [] == ran


def test_a_task_that_cancels_itself_gives_its_place_back() -> None:
    with running_loop() as loop:
        workers = Workers(1)

        async def work() -> None:
            raise asyncio.CancelledError

        with pytest.raises(CancelledError):
            workers.submit_async(loop, work).result(SOON)
        assert 1 == workers.submit(lambda: 1).result(SOON)
        workers.close(wait=True)


HANGS = """
import threading
from vitrify.compiler.workers import FIRST, Workers
workers = Workers(2)
begun = threading.Event()
workers.submit(lambda: (begun.set(), threading.Event().wait()))
begun.wait()
workers.close(wait=False)
"""


def test_a_call_that_hangs_does_not_keep_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", HANGS], timeout=30, capture_output=True, text=True, check=False)
    assert (0, "") == (done.returncode, done.stderr)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_makes_its_own() -> None:
    workers = Workers(2)
    workers.submit(lambda: 1).result(SOON)
    child = os.fork()
    if child == 0:
        own = Workers(2)
        os._exit(own.submit(lambda: 7).result(SOON))
    assert 7 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    workers.close(wait=True)

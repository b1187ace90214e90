"""Errors that somebody else's code gives where threads run at once, told from those of the user's own."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tqdm import tqdm
from vitrify.compiler.races import lost_a_race


def caught(code: Any) -> BaseException:
    with pytest.raises(BaseException) as error:
        code()
    return error.value


def test_a_bar_that_another_thread_took_away() -> None:
    """What tqdm does where two threads lose the same bar: its set has it no more."""
    bar = tqdm(range(3), disable=True)
    error = caught(lambda: tqdm._instances.remove(bar))  # a frame of the set's alone: nobody's bar
    assert isinstance(error, KeyError) and not lost_a_race(error)

    class Gone(tqdm):
        _instances: Any = type("Emptied", (set,), {"add": lambda self, item: None})()

    error = caught(lambda: Gone(range(3), disable=True))
    assert isinstance(error, KeyError) and lost_a_race(error)


def test_what_is_the_users_own() -> None:
    rows = {"a": 1}
    for error in (
        caught(lambda: rows["b"]),
        caught(lambda: [rows[name] for name in tqdm(["b"], disable=True)]),
        caught(lambda: list(tqdm((rows[name] for name in ["b"]), disable=True))),
        ValueError("no"),
        None,
    ):
        assert not lost_a_race(error)
    assert lost_a_race(SystemError("AST constructor recursion depth mismatch"))


def test_bars_made_by_many_threads() -> None:
    """Whatever tqdm raises here is told for what it is; it may well raise nothing."""
    together = threading.Barrier(8)

    def bars(_: int) -> list[BaseException]:
        together.wait()
        found: list[BaseException] = []
        for _bar in range(300):
            try:
                tqdm(total=1, disable=True).close()
            except BaseException as error:
                found.append(error)
        return found

    with ThreadPoolExecutor(8) as pool:
        errors = [error for some in pool.map(bars, range(8)) for error in some]
    assert all(lost_a_race(error) for error in errors), errors

"""Two compiles at once, in one process and in two; in a running event loop; after a fork, and spawned."""

import asyncio
import contextlib
import multiprocessing
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import vitrify
from tests.tiny import Nursery, Record, asked_of, compile_tiny, serving


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    with serving() as server:
        return compile_tiny(server.url, tmp_path_factory.mktemp("plain") / "run")


def write(url: str, run: Path, out: Path) -> None:
    """Compile and write the artifact, or what went wrong."""
    try:
        out.write_bytes(compile_tiny(url, run))
    except Exception as error:
        out.write_text(f"{type(error).__name__}: {error}")


def test_two_in_one_process(plain: bytes, tmp_path: Path) -> None:
    """In two threads, each with a run of its own; and a third compile afterwards."""
    with serving(latency=0.002) as server:
        with ThreadPoolExecutor(2) as pool:
            made = list(pool.map(lambda name: compile_tiny(server.url, tmp_path / name), "ab"))
        assert made == [plain, plain]
        assert set(asked_of(server).values()) == {2}
        for name in "ab":
            assert Record.of(tmp_path / name).attempts == len(server.requests) // 2
        assert compile_tiny(server.url, tmp_path / "c") == plain


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_two_processes(plain: bytes, tmp_path: Path, method: str) -> None:
    """Forked from a process that has compiled before, and threads and clients with it; or spawned."""
    context = multiprocessing.get_context(method)
    names = "ab" if method == "fork" else "a"
    with serving() as server:
        children = [
            context.Process(target=write, args=(server.url, tmp_path / f"run-{name}", tmp_path / name))  # type: ignore[attr-defined]
            for name in names
        ]
        for child in children:
            child.start()
        for child in children:
            child.join(40)
        assert [child.exitcode for child in children] == [0] * len(children)
    assert [(tmp_path / name).read_bytes() for name in names] == [plain] * len(names)


def test_the_same_run_in_one_process(plain: bytes, tmp_path: Path) -> None:
    """The second is told so before it asks anything, and the first goes on."""
    second: list[Exception] = []

    def latency(body: object) -> float:
        if len(server.requests) == 100:
            threading.Thread(target=intrude).start()
        return 0.002

    def intrude() -> None:
        try:
            compile_tiny(server.url, tmp_path / "run")
        except Exception as error:
            second.append(error)

    with serving(latency=latency) as server:
        assert compile_tiny(server.url, tmp_path / "run") == plain
        assert set(asked_of(server).values()) == {1}
    assert [type(error) for error in second] == [vitrify.RequestError]
    assert "in use by another compile" in str(second[0])


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as found:
        yield found


def test_the_same_run_in_two_processes(nursery: Nursery, plain: bytes, tmp_path: Path) -> None:
    with serving(latency=0.01) as server:
        nursery.start(server.url, tmp_path)
        until = time.monotonic() + 20
        while len(server.requests) < 50 and time.monotonic() < until:
            time.sleep(0.002)
        with pytest.raises(vitrify.RequestError, match="in use by another compile"):
            compile_tiny(server.url, tmp_path / "run")
        ended = nursery.wait()
        assert ended.artifact == plain, ended.error
        assert set(asked_of(server).values()) == {1}
        # It has ended, so the run is free.
        assert compile_tiny(server.url, tmp_path / "run") == plain


def test_in_a_running_loop(plain: bytes, tmp_path: Path) -> None:
    """As in a notebook's cell; the loop is left as it was."""

    async def cell(name: str) -> bytes:
        made = compile_tiny(url, tmp_path / name)
        await asyncio.sleep(0)
        return made

    async def main() -> list[bytes]:
        first = await cell("a")
        # And beside other work, in a thread of its own.
        second, _ = await asyncio.gather(asyncio.to_thread(compile_tiny, url, tmp_path / "b"), asyncio.sleep(0.01))
        return [first, second]

    with serving() as server:
        url = server.url
        assert asyncio.run(main()) == [plain, plain]


def _threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("vitrify")}


def _open_files() -> list[str]:
    found = []
    for item in Path("/dev/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(item.readlink()))
    return found


def test_nothing_stays_behind(plain: bytes, tmp_path: Path) -> None:
    """No thread and no open file of a compile that has ended."""
    before = _threads()
    with serving() as server:
        assert compile_tiny(server.url, tmp_path / "run") == plain
    until = time.monotonic() + 5
    while not _threads() <= before and time.monotonic() < until:
        time.sleep(0.02)
    assert _threads() <= before
    assert not [link for link in _open_files() if str(tmp_path) in link]

"""ReplyCache: what is kept, who shares it, and everything that may be wrong with a folder."""

import json
import os
import pickle
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vitrify.programs.cache import ReplyCache
from vitrify.programs.lm import Reply, Usage

diskcache: Any = pytest.importorskip("diskcache")

KEY = "0123456789abcdef" * 4
REPLY = Reply("cards", Usage(12, 3, 4), "openai/gpt", tool_calls=({"id": "1", "n": [1.5, None]},), reasoning="so")


def kept(folder: Path, key: str = KEY) -> Reply | None:
    """Return what another run finds."""
    cache = ReplyCache(folder)
    try:
        assert cache.problem is None
        return cache.get(key)
    finally:
        cache.close()


def keep(folder: Path, *pairs: tuple[str, Reply]) -> None:
    cache = ReplyCache(folder)
    for key, reply in pairs:
        cache.put(key, reply)
    cache.close()
    assert cache.problem is None


def rows(folder: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(folder / "cache.db") as database:
        return database.execute("SELECT key, raw, mode, filename, value FROM Cache").fetchall()


def test_another_run_finds_what_was_kept(tmp_path: Path) -> None:
    assert kept(tmp_path / "a" / "b") is None
    keep(tmp_path / "a" / "b", (KEY, REPLY))
    assert REPLY == kept(tmp_path / "a" / "b")
    assert kept(tmp_path / "a" / "b", "f" * 64) is None


def test_it_is_seen_while_the_cache_is_open(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path)
    cache.put(KEY, REPLY)
    until = time.monotonic() + 10
    while cache.get(KEY) is None and time.monotonic() < until:
        time.sleep(0.01)
    assert REPLY == cache.get(KEY)
    cache.close()


def test_every_value_is_text_in_the_one_file(tmp_path: Path) -> None:
    long = Reply("x" * 200_000, Usage(), "m")  # diskcache itself puts such values into files of their own
    keep(tmp_path, (KEY, REPLY), ("a" * 64, long))
    assert long == kept(tmp_path, "a" * 64)
    for key, raw, mode, filename, value in rows(tmp_path):
        assert (str, 1, 1, None, str) == (type(key), raw, mode, filename, type(value))
        json.loads(value)
    assert {"cache.db"} == {path.name for path in tmp_path.iterdir()} - {"cache.db-wal", "cache.db-shm"}


TEXT = st.text(st.characters(codec=None), max_size=30)  # lone surrogates included: a server may send them
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT, st.lists, max_leaves=5
)
COUNT = st.integers(0, 2**60)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text("0123456789abcdef", min_size=64, max_size=64),
        st.builds(
            Reply, st.none() | TEXT, st.builds(Usage, COUNT, COUNT, COUNT), TEXT, TEXT,
            st.lists(JSON, max_size=3).map(tuple), st.none() | TEXT, st.integers(1, 9),
        ),
        max_size=5,
    )
)  # fmt: skip
def test_what_comes_back_is_what_was_put(tmp_path: Path, replies: dict[str, Reply]) -> None:
    keep(tmp_path, *replies.items())
    cache = ReplyCache(tmp_path)
    assert replies == {key: cache.get(key) for key in replies}
    cache.close()


def test_many_threads_read_and_write(tmp_path: Path) -> None:
    cache, wrong = ReplyCache(tmp_path), list[str]()

    def use(number: int) -> None:
        for i in range(50):
            key = f"{number * 50 + i:064x}"
            cache.put(key, Reply(key, Usage(), "m"))
            for other in range(0, number * 50 + i, 37):
                found = cache.get(f"{other:064x}")
                if found is not None and found.text != f"{other:064x}":
                    wrong.append(key)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cache.close()
    assert (None, []) == (cache.problem, wrong)
    assert 400 == len(rows(tmp_path))


SHARES = """
import sys
from pathlib import Path
from vitrify.programs.cache import ReplyCache
from vitrify.programs.lm import Reply, Usage
folder, mine = Path(sys.argv[1]), sys.argv[2]
cache = ReplyCache(folder)
for i in range(500):
    cache.put(f"{mine}{i:063x}", Reply(f"{mine} {i}", Usage(), "m"))
    cache.get(f"{mine}{i // 2:063x}")
cache.close()
sys.exit(cache.problem)
"""


def test_two_processes_share_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SHARES, str(tmp_path)]
    both = [subprocess.Popen([*command, mine], stderr=subprocess.PIPE, text=True) for mine in "ab"]
    assert [(0, ""), (0, "")] == [(process.wait(30), process.communicate()[1]) for process in both]
    cache = ReplyCache(tmp_path)
    for mine in "ab":
        for i in range(500):
            reply = cache.get(f"{mine}{i:063x}")
            assert reply is not None
            assert f"{mine} {i}" == reply.text
    cache.close()


class Bomb:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_a_planted_pickle_stays_one(tmp_path: Path) -> None:
    folder, burst, secret = tmp_path / "cache", tmp_path / "burst", tmp_path / "secret"
    secret.write_text(json.dumps(REPLY.to_json()))
    keep(folder, *((letter * 64, REPLY) for letter in "abcde"))
    bomb = pickle.dumps(Bomb(burst))
    (folder / "planted.val").write_bytes(bomb)
    with sqlite3.connect(folder / "cache.db") as database:
        put = "UPDATE Cache SET mode = ?, filename = ?, value = ?, raw = ? WHERE key = ?"
        database.execute(put, (4, None, bomb, 1, "a" * 64))
        database.execute(put, (4, "planted.val", None, 1, "b" * 64))
        database.execute(put, (3, str(secret), None, 1, "c" * 64))
        database.execute(put, (1, None, bomb, 1, "d" * 64))
        database.execute(put, (4, None, bomb, 0, "e" * 64))
        database.execute("INSERT INTO Cache (key, raw, mode, value) VALUES (?, 0, 4, ?)", (bomb, bomb))
    cache = ReplyCache(folder)
    assert [None] * 5 == [cache.get(letter * 64) for letter in "abcde"]
    assert cache.problem is None
    for letter in "abcde":  # what is found no reply is written anew
        cache.put(letter * 64, REPLY)
    cache.close()
    assert [REPLY] * 5 == [kept(folder, letter * 64) for letter in "abcde"]
    assert not burst.exists()
    assert secret.exists()  # diskcache would have removed the file that the replaced row named

    # The same rows do go off with diskcache's own disk.
    with sqlite3.connect(folder / "cache.db") as database:
        database.execute(put, (4, None, bomb, 1, "a" * 64))
    diskcache.Cache(str(folder)).get("a" * 64)
    assert burst.exists()


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "3", "{}", "[]", '{"text": 1}', "[" * 100_000,
        json.dumps({**REPLY.to_json(), "text": 5}), json.dumps({**REPLY.to_json(), "more": 5}),
        json.dumps({**REPLY.to_json(), "attempts": "1"}),
        json.dumps({**REPLY.to_json(), "usage": {"prompt_tokens": -1}}),
    ],
)  # fmt: skip
def test_a_value_that_is_no_reply_is_missing(tmp_path: Path, text: str) -> None:
    keep(tmp_path, (KEY, REPLY))
    with sqlite3.connect(tmp_path / "cache.db") as database:
        database.execute("UPDATE Cache SET value = ?", (text,))
    assert kept(tmp_path) is None


def test_a_reply_that_is_no_json_is_not_kept_and_harms_no_other(tmp_path: Path) -> None:
    odd: Any = Reply("x", Usage(), "m", tool_calls=({1, 2},))  # type: ignore[arg-type]
    keep(tmp_path, ("a" * 64, odd), (KEY, REPLY))
    assert REPLY == kept(tmp_path)
    assert kept(tmp_path, "a" * 64) is None


def test_the_oldest_go_first(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path, most_bytes=1 << 20)
    for i in range(300):
        cache.put(f"{i:064x}", Reply("x" * 20_000, Usage(), "m"))
    cache.close()
    assert cache.problem is None
    left = sorted(int(key, 16) for key, *_ in rows(tmp_path))
    assert 20 <= len(left) <= 80
    assert list(range(300))[-len(left) :] == left
    assert (tmp_path / "cache.db").stat().st_size < 2 << 20


def told(cache: ReplyCache, *words: str) -> None:
    """Demand that the cache isn't used, says why in one sentence, and is harmless."""
    assert cache.problem is not None
    assert str(cache.folder) in cache.problem
    assert "`what this run pays for is kept in the run`" in cache.problem
    for word in words:
        assert word in cache.problem
    assert cache.get(KEY) is None
    cache.put(KEY, REPLY)
    cache.close()
    cache.close()


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told(ReplyCache(tmp_path / "file"))
    told(ReplyCache(tmp_path / "file" / "below"))


@pytest.mark.parametrize("content", [b"no database at all" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cache.db").write_bytes(content)
    told(ReplyCache(tmp_path), "DatabaseError")


def test_a_file_that_is_damaged_while_in_use(tmp_path: Path) -> None:
    keep(tmp_path, *((f"{i:064x}", Reply("x" * 3000, Usage(), "m")) for i in range(200)))
    cache = ReplyCache(tmp_path)
    with (tmp_path / "cache.db").open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))
    for i in range(200):
        cache.get(f"{i:064x}")
        cache.put(f"{i:064x}", REPLY)
    told(cache, "DatabaseError")


def test_a_file_that_is_truncated_while_in_use(tmp_path: Path) -> None:
    keep(tmp_path, *((f"{i:064x}", Reply("x" * 3000, Usage(), "m")) for i in range(200)))
    cache = ReplyCache(tmp_path)
    assert cache.get(f"{3:064x}") is not None
    os.truncate(tmp_path / "cache.db", 4096)
    for i in range(200):
        cache.get(f"{i:064x}")
    told(cache)


def test_a_locked_database_delays_nobody_for_long(tmp_path: Path) -> None:
    keep(tmp_path, (KEY, REPLY))
    other = sqlite3.connect(tmp_path / "cache.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    told(ReplyCache(tmp_path, patience=0.2), "didn't open within 0.2 s")
    assert time.monotonic() - began < 5
    other.execute("ROLLBACK")
    other.close()


def test_what_is_locked_for_a_while_is_written_afterwards(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path)
    other = sqlite3.connect(tmp_path / "cache.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    cache.put(KEY, REPLY)
    threading.Timer(0.6, other.execute, ["ROLLBACK"]).start()
    assert cache.get(KEY) is None  # readers don't wait for writers
    cache.close()
    assert cache.problem is None
    other.close()
    assert REPLY == kept(tmp_path)


def test_a_lock_in_the_way_of_a_reader_is_a_miss(tmp_path: Path) -> None:
    # Readers of a WAL database are hardly ever refused: a refusal of another database's stands in for one.
    one, two = (sqlite3.connect(tmp_path / "other.db", isolation_level=None, timeout=0) for _ in range(2))
    one.execute("BEGIN IMMEDIATE")

    class Refusing:
        def get(self, key: str) -> None:
            two.execute("BEGIN IMMEDIATE")

        def close(self) -> None: ...

    keep(tmp_path, (KEY, REPLY))
    cache = ReplyCache(tmp_path)
    own, cache._cache = cache._cache, Refusing()
    assert cache.get(KEY) is None
    assert cache.problem is None
    cache._cache = own
    assert REPLY == cache.get(KEY)
    cache.close()
    one.close()
    two.close()


LIMITED = """
import resource, sys
from pathlib import Path
from vitrify.programs.cache import ReplyCache
from vitrify.programs.lm import Reply, Usage
cache = ReplyCache(Path(sys.argv[1]))
assert cache.problem is None, cache.problem
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
for i in range(400):
    cache.put(f"{i:064x}", Reply("x" * 5000, Usage(), "m"))
cache._pending.put(None)
cache._thread.join(20)
assert cache.get("0" * 64) is None
cache.put("0" * 64, Reply("x", Usage(), "m"))
cache.close()
print(cache.problem)
"""


def test_a_full_disk(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], timeout=60, capture_output=True, text=True, check=False
    )
    assert (0, "") == (done.returncode, done.stderr)
    assert "isn't used (OperationalError: " in done.stdout


READ_ONLY = """
import os, sys
from pathlib import Path
import diskcache
from vitrify.programs.cache import ReplyCache
if os.getuid() == 0:
    os.setuid(65534)
cache = ReplyCache(Path(sys.argv[1]))
print(cache.get("0" * 64), cache.problem)
cache.close()
"""


@pytest.mark.parametrize("below", ["", "cache"])
def test_a_read_only_folder(tmp_path: Path, below: str) -> None:
    folder = tmp_path / "shut"
    folder.mkdir()
    folder.chmod(0o555)
    for parent in [tmp_path, *tmp_path.parents[:2]]:
        if parent.stat().st_uid == os.getuid() and parent != Path("/tmp"):
            parent.chmod(0o755)  # so that who isn't root gets that far
    done = subprocess.run(
        [sys.executable, "-c", READ_ONLY, str(folder / below)], timeout=60, capture_output=True, text=True, check=False
    )
    assert (0, "") == (done.returncode, done.stderr)
    assert done.stdout.startswith("None The cache of replies in ")
    folder.chmod(0o755)


ABSENT = """
import sys
from pathlib import Path
sys.modules["diskcache"] = None
from vitrify.programs.cache import ReplyCache
cache = ReplyCache(Path(sys.argv[1]))
cache.put("0" * 64, None)
print(cache.problem)
cache.close()
"""


def test_without_diskcache(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ABSENT, str(tmp_path)]
    done = subprocess.run(command, timeout=60, capture_output=True, text=True, check=False)
    assert (0, "") == (done.returncode, done.stderr)
    assert "diskcache isn't installed" in done.stdout
    assert "pip install" in done.stdout


def test_importing_it_imports_no_diskcache() -> None:
    code = "import sys, vitrify.programs.cache; print('diskcache' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True, check=True)
    assert "False" == done.stdout.strip()


def test_closing_is_bounded_in_time(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path, patience=0.5)
    other = sqlite3.connect(tmp_path / "cache.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    cache.put(KEY, REPLY)
    began = time.monotonic()
    cache.close()
    assert time.monotonic() - began < 3
    assert cache.get(KEY) is None
    other.execute("ROLLBACK")
    other.close()

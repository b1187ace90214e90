"""ReplyCache: replies that runs share, by the identity of the request; it may fail, and the compile goes on."""

import contextlib
import json
import queue
import sqlite3
import threading
from pathlib import Path
from typing import Any, Final

from .lm import Reply

_RAW: Final = 1
"""Diskcache's mode of a value that is in the database as it is; the others are files and pickles."""

_BUSY: Final = (5, 6)
"""SQLite's codes of a database that somebody else has locked for the moment."""

_BATCH: Final = 256
_MOST_PENDING: Final = 20_000


class ReplyCache:
    """Replies on disk, shared by runs and processes; values are JSON texts in one SQLite file of diskcache's.

    Nothing here raises or waits for long: what can't be read is missing, what can't be written isn't kept, and where
    the cache itself fails it is no longer used, and `problem` says why. Replies are written by a thread; those that a
    process hasn't written when it ends are lost to other runs, not to its own.

    The file is data, whoever wrote it: nothing in it is ever unpickled, and no file that it names is read or removed.
    A process that was forked off may read, and keeps nothing.

    Attributes:
        folder: Where it is.
        problem: Why it isn't used, in a sentence, or None.
    """

    def __init__(self, folder: Path, *, most_bytes: int = 1 << 30, patience: float = 5.0) -> None:
        """Open or make the cache.

        Args:
            folder: The directory; made where there is none.
            most_bytes: What the file may grow to; then the oldest replies go.
            patience: Seconds that opening and closing may take.
        """
        self.folder = folder
        self.problem: str | None = None
        self._most = most_bytes
        self._patience = patience
        self._cache: Any = None
        self._pending: queue.SimpleQueue[tuple[str, Reply] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._opened = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="vitrify-cache", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._stop(error)
        else:
            # A database that another process has locked may take a minute to open: not a minute of the compile's.
            if not self._opened.wait(patience):
                self._stop(f"it didn't open within {patience:g} s")

    def get(self, key: str) -> Reply | None:
        """Return the reply kept under this key, or None."""
        cache = self._cache
        if cache is None:
            return None
        try:
            return _reply(cache.get(key))
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a cache, the compile goes on
            self._failed(error)
            return None

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply, soon."""
        if self._cache is not None and self._pending.qsize() < _MOST_PENDING:
            self._pending.put((key, reply))

    def close(self) -> None:
        """Write what waits to be written, for no longer than the patience; may be called more than once."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._pending.put(None)
        if self._thread.is_alive():
            self._thread.join(self._patience)
        cache, self._cache = self._cache, None
        if cache is not None:
            try:
                cache.close()  # this thread's own connection
            except Exception as error:  # noqa: BLE001 - as above
                self._stop(error)

    def _serve(self) -> None:
        """Open the cache and write to it, until it is closed or fails; in a thread of its own."""
        try:
            cache = _open(self.folder, self._most)
        except Exception as error:  # noqa: BLE001 - as above
            self._stop(error)
            self._opened.set()
            return
        with self._lock:
            if self.problem is None and not self._closed:
                self._cache = cache
        self._opened.set()
        ending = False
        while not ending:
            batch, ending = self._batch()
            if self.problem is None:
                self._write(cache, batch)
        try:
            cache.close()
        except Exception as error:  # noqa: BLE001 - as above
            self._stop(error)

    def _batch(self) -> tuple[list[tuple[str, Reply]], bool]:
        """Return what waits to be written, at least one, and whether that is all there will be."""
        batch = []
        item = self._pending.get()
        while item is not None:
            batch.append(item)
            if len(batch) == _BATCH or self._pending.empty():
                return batch, False
            item = self._pending.get()
        return batch, True

    def _write(self, cache: Any, batch: list[tuple[str, Reply]]) -> None:
        import diskcache

        rows = []
        for key, reply in batch:
            with contextlib.suppress(TypeError, ValueError, RecursionError):  # a server's odd value, not the cache's
                rows.append((key, json.dumps(reply.to_json())))
        for _ in range(20):  # a lock of another process is waited for, for a quarter of a second each time
            try:
                with cache.transact():
                    for key, text in rows:
                        cache.set(key, text)
                cache.cull()
            except diskcache.Timeout:
                continue
            except Exception as error:  # noqa: BLE001 - as above
                self._failed(error)
            return

    def _failed(self, error: Exception) -> None:
        """Stop using the cache, unless it is only locked, or one value in it no reply."""
        busy = isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF in _BUSY
        if not busy and not isinstance(error, _NoReply):
            self._stop(error)

    def _stop(self, why: Exception | str) -> None:
        with self._lock:
            self._cache = None
            if self.problem is None:
                if isinstance(why, ModuleNotFoundError) and why.name == "diskcache":
                    cause, remedy = "diskcache isn't installed", "run `pip install 'vitrify[compile]'` to have it"
                else:
                    cause = f"{type(why).__name__}: {why}" if isinstance(why, Exception) else why
                    remedy = "make room, or remove the folder, to have it again"
                self.problem = (
                    f"The cache of replies in {self.folder} isn't used ({cause}): `what this run pays for is kept in "
                    f"the run`, and other runs pay for it again; {remedy}."
                )


class _NoReply(Exception):
    """A value in the cache that this module hasn't written."""


def _open(folder: Path, most_bytes: int) -> Any:
    """Return a diskcache.Cache that holds texts under text keys, all of them in the database itself."""
    import diskcache

    class Texts(diskcache.Disk):  # type: ignore[misc] # it is Any to the type checker
        """Diskcache's own disk, and its JSONDisk too, unpickle what a row says is a pickle; this one can't."""

        def __init__(self, directory: str, **_: Any) -> None:
            super().__init__(directory)

        def put(self, key: str) -> tuple[str, bool]:
            return key, True

        def get(self, key: Any, raw: Any) -> str:
            if type(key) is not str or not raw:
                raise _NoReply
            return key

        def store(self, value: str, read: bool, key: Any = None) -> tuple[int, int, None, str]:
            return 0, _RAW, None, value

        def fetch(self, mode: Any, filename: Any, value: Any, read: bool) -> str:
            if mode != _RAW or type(value) is not str:
                raise _NoReply
            return value

        def remove(self, file_path: str) -> None:
            """Remove nothing: no row of ours has a file, and another's may name any."""

    return diskcache.Cache(
        str(folder),
        disk=Texts,
        timeout=0.25,
        size_limit=most_bytes,
        eviction_policy="least-recently-stored",
        statistics=0,
        cull_limit=0,  # not with every value: inside a transaction the file doesn't get any smaller
        sqlite_journal_mode="wal",
        sqlite_synchronous=1,
        sqlite_cache_size=256,  # pages for each thread that reads
        sqlite_mmap_size=0,  # a mapped file that somebody truncates would end the process
    )


def _reply(text: str | None) -> Reply | None:
    """Return the reply that a value is.

    Raises:
        _NoReply: If it is none.
    """
    if text is None:
        return None
    try:
        reply = Reply.from_json(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _NoReply from error
    usage = reply.usage
    counts = (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, reply.attempts)
    texts = (reply.text, reply.reasoning)
    if (
        all(type(count) is int and count >= 0 for count in counts)
        and all(text is None or type(text) is str for text in texts)
        and type(reply.model) is str
        and type(reply.finish_reason) is str
    ):
        return reply
    raise _NoReply

"""Ledger: the append-only record of a run; replies are read from it instead of being paid twice."""

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..programs.lm import Reply, Usage
from ..signatures.canonical import JsonValue
from ..signatures.errors import RequestError, WorkError


class Ledger:
    """Every reply and outcome of a run, written to the operating system before it is used.

    A run is a directory: `ledger.jsonl`, one JSON value a line, and `lock`. Opening a directory that holds a ledger
    continues it. A last line that was cut off by a crash is dropped. Nothing else is ever rewritten.

    Attributes:
        path: The run's directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._replies: dict[str, Reply] = {}
        self._failed = 0
        self._mutex = threading.Lock()
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._guard = (path / "lock").open("a")
        except OSError as error:
            raise RequestError(
                f"run_dir {path} can't be written ({error.strerror}); name another with run_dir (--run-dir)."
            ) from error
        try:
            fcntl.flock(self._guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._guard.close()
            raise RequestError(
                f"run_dir {path} is in use by another compile: `one compile a run directory`; wait for it, or name "
                "another with run_dir (--run-dir)."
            ) from error
        self._file = self._open(path / "ledger.jsonl")

    def _open(self, file: Path) -> int:
        if file.exists():
            whole = self._read(file)
            if whole < file.stat().st_size:
                os.truncate(file, whole)
        return os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def _read(self, file: Path) -> int:
        """Load the replies and return how many bytes of the file are whole lines."""
        position = 0
        with file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    record = json.loads(line)
                    if record["kind"] == "reply":
                        self._replies[record["key"]] = Reply.from_json(record["reply"])
                    elif record["kind"] == "failure":
                        self._failed += int(record["attempts"])
                except (ValueError, KeyError, TypeError) as error:
                    raise WorkError(
                        f"{file} is damaged in line {number} ({error}); move the run directory away to start anew."
                    ) from error
                position += len(line)
        return position

    @property
    def paid(self) -> tuple[int, int, Usage]:
        """Attempts at servers, how many of them came to nothing, and tokens, of the replies in this run."""
        usage = Usage()
        for reply in self._replies.values():
            usage += reply.usage
        attempts = sum(reply.attempts for reply in self._replies.values()) + self._failed
        return attempts, attempts - len(self._replies), usage

    def __len__(self) -> int:
        return len(self._replies)

    def reply(self, key: str) -> Reply | None:
        """Return the reply to the request with this key, if it was ever paid."""
        return self._replies.get(key)

    def add_reply(self, key: str, reply: Reply) -> None:
        """Record a reply; when this returns, a killed process doesn't lose it."""
        self.append("reply", {"key": key, "reply": reply.to_json()})
        self._replies[key] = reply

    def add_failure(self, attempts: int) -> None:
        """Record attempts after which a request was given up: they were made, so a budget counts them."""
        self.append("failure", {"attempts": attempts})
        self._failed += attempts

    def append(self, kind: str, record: Mapping[str, JsonValue]) -> None:
        """Write one line.

        Raises:
            WorkError: If the disk is full or the directory went away.
        """
        line = json.dumps({"kind": kind, **record}, allow_nan=True).encode()
        with self._mutex:
            try:
                written = os.write(self._file, line + b"\n")
            except OSError as error:
                raise WorkError(
                    f"{self.path}/ledger.jsonl can't be written ({error.strerror}); make room and run again with the "
                    "same run directory: what was paid is kept."
                ) from error
            if written != len(line) + 1:
                raise WorkError(
                    f"{self.path}/ledger.jsonl: the disk is full; make room and run again with the same run directory."
                )

    def sync(self) -> None:
        """Ask the operating system to bring what was written to the disk."""
        with contextlib.suppress(OSError):
            os.fsync(self._file)

    def close(self) -> None:
        """Sync, and let another process have the run."""
        with self._mutex:  # a call that was given up may come back meanwhile
            if self._file >= 0:
                self.sync()
                os.close(self._file)
                self._file = -1
                self._guard.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

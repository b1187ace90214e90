"""Ledger: the append-only record of a run; replies are read from it instead of being paid twice."""

import fcntl
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..programs.lm import Reply, Usage
from ..programs.recorder import BEGUN, MISSING, Unknown
from ..signatures.canonical import JsonValue
from ..signatures.errors import RequestError, WorkError
from .budget import Role

SYNC_SECONDS = 0.1
"""The most that a power cut costs."""


@dataclass
class Tally:
    """What a run spent on one model for one role.

    Attributes:
        attempts: At the server, those without a reply included.
        certifying: Those of them that the sealed test needed.
        replies: How many replies came.
        failed: Those that failed; what is neither was in flight at a kill.
        usage: Their tokens.
    """

    attempts: int = 0
    certifying: int = 0
    replies: int = 0
    failed: int = 0
    usage: Usage = Usage()  # noqa: RUF009 (frozen)


class Ledger:
    """Every attempt, reply and outcome of a run, written to the operating system before it is used.

    A run is a directory: `ledger.jsonl`, one JSON value a line, and `lock`. Opening a directory that holds a ledger
    continues it. A last line that was cut off by a crash is dropped. Nothing else is ever rewritten. What stands in the
    memory is where each reply is, not the reply.

    An attempt is written before the call is made, so that a run knows what was in flight when it was killed: those
    attempts count, since the server may have answered them.

    Attributes:
        path: The run's directory.
        tallies: What was spent, by role and model, earlier processes included.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tallies: dict[tuple[Role, str], Tally] = {}
        self._places: dict[bytes, int] = {}
        self._effects: dict[bytes, int] = {}
        self._begun: set[bytes] = set()
        self._end = 0
        self._mutex = threading.Lock()
        self._dirty = threading.Event()
        self._closed = threading.Event()
        self._syncer: threading.Thread | None = None
        self._broken: OSError | None = None
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
        try:
            self._file = self._open(path / "ledger.jsonl")
        except BaseException as error:
            self._guard.close()
            if isinstance(error, OSError):
                raise RequestError(
                    f"{path}/ledger.jsonl can't be opened ({error.strerror}); mend that, or name another run_dir."
                ) from error
            raise

    def _open(self, file: Path) -> int:
        if file.exists():
            self._end = self._read(file)
            if self._end < file.stat().st_size:
                os.truncate(file, self._end)
        return os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)

    def _read(self, file: Path) -> int:
        """Take in what earlier processes wrote and return how many bytes of the file are whole lines."""
        position = 0
        with file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    self._take_in(json.loads(line), position, len(line))
                except (ValueError, KeyError, TypeError) as error:
                    raise WorkError(
                        f"{file} is damaged in line {number} ({error}); move the run directory away to start anew."
                    ) from error
                position += len(line)
        return position

    def _take_in(self, record: Mapping[str, JsonValue], position: int, length: int) -> None:
        kind = record["kind"]
        if kind == "attempt":
            tally = self._tally(record)
            tally.attempts += 1
            tally.certifying += bool(record.get("certifying"))
        elif kind == "reply":
            reply = Reply.from_json(record["reply"])  # type: ignore[arg-type]  # a KeyError or TypeError is named
            tally = self._tally(record)
            tally.attempts += reply.attempts - 1
            tally.replies += 1
            tally.usage += reply.usage
            self._places[_short(str(record["key"]))] = position << 32 | length
        elif kind == "failure":
            tally, again = self._tally(record), int(record["again"])  # type: ignore[arg-type]  # a TypeError is named
            tally.attempts += again
            tally.failed += again + 1
        elif kind == "hedged":
            tally = self._tally(record)
            tally.replies += 1
            tally.usage += Usage(*record["usage"])  # type: ignore[misc]  # a TypeError is named
        elif kind == "began":
            self._begun.add(_short(str(record["key"])))
        elif kind in ("shared", "effect"):
            places = self._places if kind == "shared" else self._effects
            places[_short(str(record["key"]))] = position << 32 | length

    def _tally(self, record: Mapping[str, JsonValue]) -> Tally:
        role: Role = "prompt" if record["role"] == "prompt" else "task"
        return self.tallies.setdefault((role, str(record["lm"])), Tally())

    def __len__(self) -> int:
        return len(self._places)

    def knows(self, key: str) -> bool:
        """Say whether the reply to the request with this key was ever paid."""
        return _short(key) in self._places

    def reply(self, key: str) -> Reply | None:
        """Return the reply to the request with this key, if it was ever paid."""
        place = self._places.get(_short(key))
        return None if place is None else Reply.from_json(self._at(place)["reply"])  # type: ignore[arg-type]  # as written

    def add_attempt(self, key: str, role: Role, lm: str, *, certifying: bool) -> None:
        """Record a call that is about to be made."""
        self.append("attempt", {"key": key, "role": role, "lm": lm, "certifying": certifying})

    def add_reply(self, key: str, role: Role, lm: str, reply: Reply, seconds: float) -> None:
        """Record a reply; when this returns, a killed process doesn't lose it."""
        told: dict[str, JsonValue] = {"key": key, "role": role, "lm": lm, "seconds": round(seconds, 4)}
        self._places[_short(key)] = self.append("reply", {**told, "reply": reply.to_json()})

    def add_shared(self, key: str, reply: Reply) -> None:
        """Record a reply that another run paid."""
        free = {**reply.to_json(), "attempts": 1}
        self._places[_short(key)] = self.append("shared", {"key": key, "reply": free})

    def add_failure(self, key: str, role: Role, lm: str, cause: str, attempts: int) -> None:
        """Record attempts that came to nothing: they were made, so a budget counts them."""
        self.append("failure", {"key": key, "role": role, "lm": lm, "cause": cause, "again": attempts - 1})

    def add_hedged(self, key: str, role: Role, lm: str, usage: Usage) -> None:
        """Record the tokens of an answer that came second."""
        tokens: list[JsonValue] = [usage.prompt_tokens, usage.completion_tokens]
        self.append("hedged", {"key": key, "role": role, "lm": lm, "usage": tokens})

    # Calls with effects in the user's program (the Recorder protocol).

    def recall(self, key: str) -> "JsonValue | Unknown":
        """Return what became of a call with effects: its value, BEGUN, or MISSING."""
        place = self._effects.get(_short(key))
        if place is not None:
            return self._at(place)["value"]
        return BEGUN if _short(key) in self._begun else MISSING

    def begin(self, key: str, name: str) -> None:
        """Record that a call with effects begins."""
        self.append("began", {"key": key, "name": name})
        self._begun.add(_short(key))

    def finish(self, key: str, value: JsonValue) -> None:
        """Record what became of a call with effects."""
        self._effects[_short(key)] = self.append("effect", {"key": key, "value": value})

    def _at(self, place: int) -> dict[str, JsonValue]:
        """Return the record at a place."""
        try:
            line = os.pread(self._file, place & 0xFFFFFFFF, place >> 32)
            record: dict[str, JsonValue] = json.loads(line)
        except (OSError, ValueError) as error:
            raise WorkError(
                f"{self.path}/ledger.jsonl can't be read any more ({error}); was it changed while the run goes on?"
            ) from error
        return record

    def append(self, kind: str, record: Mapping[str, JsonValue]) -> int:
        """Write one line; return where it is.

        Raises:
            WorkError: If the disk is full or the directory went away.
        """
        line = json.dumps({"kind": kind, **record}, allow_nan=True).encode() + b"\n"
        with self._mutex:
            if self._broken is not None:
                raise self._unwritable(self._broken)
            try:
                written = os.write(self._file, line)
                if written != len(line):
                    # Half a line would spoil the next one.
                    os.ftruncate(self._file, self._end)
                    raise OSError(28, "No space left on device")
            except OSError as error:
                raise self._unwritable(error) from error
            place = self._end << 32 | written
            self._end += written
        if not self._dirty.is_set():
            self._dirty.set()
            if self._syncer is None:
                self._syncer = threading.Thread(target=self._keep_synced, name="vitrify-sync", daemon=True)
                self._syncer.start()
        return place

    def _unwritable(self, error: OSError) -> WorkError:
        return WorkError(
            f"{self.path}/ledger.jsonl can't be written ({error.strerror}); make room and run again with the same run "
            "directory: what was paid is kept."
        )

    def _keep_synced(self) -> None:
        """Be the thread that brings what was written to the disk, in groups."""
        while not self._closed.is_set():
            self._dirty.wait()
            self._closed.wait(SYNC_SECONDS)
            self._dirty.clear()
            self.sync()

    def sync(self) -> None:
        """Bring what was written to the disk; a failure is reported by the next line that is written."""
        try:
            os.fsync(self._file)
        except OSError as error:
            if not self._closed.is_set():
                self._broken = error

    def close(self) -> None:
        """Sync, and let another process have the run."""
        with self._mutex:  # a call that was given up may come back meanwhile
            if self._closed.is_set():
                return
            self.sync()
            self._closed.set()
            self._dirty.set()
        if self._syncer is not None:
            self._syncer.join()
        with self._mutex:
            os.close(self._file)
            self._file = -1
            self._guard.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _short(key: str) -> bytes:
    """Return 16 bytes that stand for a key: the memory holds one for each request."""
    return bytes.fromhex(key[:32]) if len(key) == 64 else key.encode()

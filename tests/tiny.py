"""A compile of some 280 calls and half a second, in this process or in a real one that can be killed.

Run as a module it is a nursery: a process that has imported everything and forks a child for each line on its stdin, so
that a hundred compiles can be killed in the time that a hundred imports would take.
"""

import ctypes
import importlib
import json
import os
import pkgutil
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
from vitrify.programs.lm import LMError, Retry
from vitrify.programs.openai import OpenAICompatible

import vitrify
from tests.commands import ROOT, TICKETS, Answers
from tests.desks import Desk
from tests.server import ScriptedServer
from vitrify import compiler, programs, signatures, teleprompters

ROWS: list[dict[str, Any]] = [json.loads(line) for line in TICKETS[:60]]
"""The data; of it 18 rows are the select set and 24 the sealed test."""

SERVED = "openai/scripted"
PASSES = ("preflight", "bootstrap", "propose", "search", "certify", "emit")


def tiny(**more: Any) -> vitrify.Options:
    """Return the options of a tiny compile; nothing comes from or goes to other runs."""
    return vitrify.Options(
        **{"instructions": 2, "demo_sets": 2, "max_demos": 4, "concurrency": 8, "cache": False, **more}
    )


def compile_tiny(
    url: str, run_dir: Path, *, program: Any = None, metric: Any = "exact:team", lm: Any = SERVED, data: Any = None,
    budget: vitrify.Budget | None = None, seed: int = 0, **options: Any,
) -> bytes:  # fmt: skip
    """Compile a program of one predictor through a server and return the artifact's bytes."""
    chosen = tiny(api_base=url, **options)
    rows = ROWS if data is None else data
    found = vitrify.compile(
        program or Desk(), rows, metric, lm=lm, budget=budget, seed=seed, run_dir=run_dir, options=chosen
    )
    return found.to_bytes()


def serving(**more: Any) -> ScriptedServer:
    """Return a server whose answers are a function of the request, right more often where there are demonstrations."""
    return ScriptedServer(Answers(ROWS), **more)


def client(url: str, timeout: float = 0.5) -> OpenAICompatible:
    """Return the model with a short time-out, which no option gives."""
    return OpenAICompatible(SERVED, api_base=url, timeout=timeout, retry=Retry(attempts=1))


def hasten(monkeypatch: pytest.MonkeyPatch, by: float = 50.0) -> None:
    """Shorten the waits between attempts and in a pause: what they are is tested elsewhere."""
    asked = Retry.delay

    def sooner(self: Retry, attempt: int, error: LMError, uniform: float) -> float | None:
        delay = asked(self, attempt, error, uniform)
        return None if delay is None else delay / by

    monkeypatch.setattr(Retry, "delay", sooner)
    monkeypatch.setattr("vitrify.compiler.outage.QUICK", 1.0 / by)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def asked_of(server: ScriptedServer) -> Counter[str]:
    """Return how often each request arrived."""
    return Counter(json.dumps(body, sort_keys=True) for body in server.bodies)


def repeats(server: ScriptedServer, plain: Counter[str]) -> int:
    """Return how many calls were made more often than in the undisturbed run."""
    return sum(max(0, count - plain[body]) for body, count in asked_of(server).items())


# The ledger -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """What a run's directory says, as far as its last whole line.

    Attributes:
        lines: The ledger.
    """

    lines: list[Any]

    @classmethod
    def of(cls, run_dir: Path) -> Self:
        data = (run_dir / "ledger.jsonl").read_bytes()
        return cls([json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()])

    def count(self, kind: str) -> int:
        """Return how many lines are of a kind."""
        return sum(line["kind"] == kind for line in self.lines)

    @property
    def attempts(self) -> int:
        """Attempts at servers, those that a client made by itself included."""
        again = sum(line["again"] for line in self.lines if line["kind"] == "failure")
        own = sum(line["reply"]["attempts"] - 1 for line in self.lines if line["kind"] == "reply")
        return self.count("attempt") + int(again) + int(own)

    @property
    def in_flight(self) -> int:
        """Attempts of which it isn't said what became of them."""
        return self.count("attempt") - self.count("reply") - self.count("failure") - self.count("hedged")

    def lengths(self) -> dict[str, int]:
        """Return how many lines follow the first word of each pass, up to the first of the next."""
        first: dict[str, int] = {}
        for number, line in enumerate(self.lines):
            if line["kind"] == "pass":
                first.setdefault(line["name"], number)
        ends = [*first.values(), len(self.lines)]
        return {name: ends[index + 1] - begin for index, (name, begin) in enumerate(first.items())}


# Real processes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """What became of a child.

    Attributes:
        status: Its exit code, or minus the signal.
        error: Class and text of what it raised, or nothing.
        artifact: What it made, or nothing.
    """

    status: int
    error: str
    artifact: bytes


class Nursery:
    """`with Nursery() as nursery: child = nursery.start(server.url, folder)`: one child at a time."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.tiny"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(20)

    def start(
        self, url: str, folder: Path, *, file_limit: int | None = None, bound: bool = False, hurry: float = 1.0,
        **more: Any,
    ) -> int:  # fmt: skip
        """Begin a compile in `folder / "run"` and return the child's pid.

        Args:
            url: The server's.
            folder: Also of `out.json`, `error.txt` and what the child says.
            file_limit: The longest file in bytes that the child may write.
            bound: Whether permissions bind the child even as root.
            hurry: See `hasten`.
            more: Arguments of `compile_tiny` that are JSON.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        request = {
            "url": url, "folder": str(folder), "file_limit": file_limit, "bound": bound, "hurry": hurry, "more": more
        }  # fmt: skip
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._line())

    def serve(self, port: int, latency: float = 0.0) -> int:
        """Begin a server instead, and return its pid once it answers."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"port": port, "latency": latency}) + "\n")
        self._process.stdin.flush()
        pid, until = int(self._line()), time.monotonic() + 20
        while time.monotonic() < until:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return pid
            time.sleep(0.01)
        raise AssertionError("the server doesn't begin")

    def stop(self, pid: int) -> None:
        """Kill the server."""
        os.kill(pid, signal.SIGKILL)
        self._line()

    def wait(self) -> Ended:
        """Return what became of the child."""
        status = int(self._line())
        made, error = self._folder / "out.json", self._folder / "error.txt"
        return Ended(
            status,
            error.read_text() if error.exists() else "",
            made.read_bytes() if made.exists() else b"",
        )

    def run(self, url: str, folder: Path, **more: Any) -> Ended:
        """Begin a compile and wait for its end."""
        self.start(url, folder, **more)
        return self.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the nursery has died"
        return line


def kill_after(pid: int, run_dir: Path, stage: str, lines: int, seconds: float = 30.0) -> None:
    """Kill a child once its ledger has so many lines after this process's first word of a pass."""
    file, until = run_dir / "ledger.jsonl", time.monotonic() + seconds
    place = file.stat().st_size if file.exists() else 0
    word = json.dumps({"kind": "pass", "name": stage}).encode() + b"\n"
    left: int | None = None
    seen = b""
    while time.monotonic() < until and _lives(pid):
        if file.exists() and file.stat().st_size > place:
            with file.open("rb") as stream:
                stream.seek(place)
                new = stream.read()
            place += len(new)
            if left is None:
                _, found, new = (seen + new).partition(word)
                left, seen = (lines, b"") if found else (None, _[-len(word) :])
            if left is not None:
                left -= new.count(b"\n")
                if left <= 0:
                    break
        time.sleep(0.002)
    with suppress(ProcessLookupError):  # it was quicker
        os.kill(pid, signal.SIGKILL)


def _lives(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def bind_permissions() -> None:
    """Give up what lets root write where nobody may (CAP_DAC_OVERRIDE); nothing for others."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert libc.capget(header, data) == 0
        data[0] &= ~0b110
        assert libc.capset(header, data) == 0


@contextmanager
def limited_files(limit: int | None) -> Iterator[None]:
    """Let files grow to so many bytes at most, as on a disk that is full."""
    if limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _child(request: Mapping[str, Any]) -> int:
    """Be the forked child: compile, and leave behind what came of it."""
    if "port" in request:
        with serving(port=request["port"], latency=request["latency"], record=False):
            signal.pause()
    folder, more = Path(request["folder"]), dict(request["more"])
    for name in ("out.json", "error.txt"):
        (folder / name).unlink(missing_ok=True)
    said = os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    if request["bound"]:
        bind_permissions()
    patch = pytest.MonkeyPatch()
    if request["hurry"] != 1:
        hasten(patch, request["hurry"])
    if isinstance(more.get("budget"), int):
        more["budget"] = vitrify.Budget(calls=more["budget"])
    try:
        with limited_files(request["file_limit"]):
            made = compile_tiny(request["url"], folder / "run", **more)
    except Exception as error:
        (folder / "error.txt").write_text(f"{type(error).__name__}: {error}")
        return int(getattr(error, "exit_code", 70))
    (folder / "out.json").write_bytes(made)
    return 0


def main() -> None:
    """Fork a child for each line on stdin; say its pid, and then its exit code."""
    for package in (compiler, programs, signatures, teleprompters):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)  # what a compile imports when it begins, once for all children
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            status = 71
            try:
                status = _child(json.loads(line))
            finally:
                os._exit(status)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()

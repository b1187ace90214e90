"""SIGKILL at any moment, full disks, directories that can't be written: the run goes on to the same artifact."""

import json
import os
import random
import stat
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from vitrify.compiler.ledger import SYNC_SECONDS
from vitrify.signatures.errors import VitrifyError

from tests.server import ScriptedServer
from tests.tiny import Nursery, Record, asked_of, compile_tiny, kill_after, repeats, serving

STAGES = ("preflight", "bootstrap", "propose", "search", "certify", "emit")
SIGKILL = -9


class Undisturbed:
    """What nobody disturbed: the artifact, what was asked, and how many lines each pass writes."""

    def __init__(self, folder: Path) -> None:
        with serving() as server:
            self.artifact = compile_tiny(server.url, folder / "run")
            self.asked = asked_of(server)
        self.record = Record.of(folder / "run")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as found:
        yield found


def test_undisturbed(plain: Undisturbed) -> None:
    """Nothing is asked twice, and every attempt is answered and written down."""
    assert set(plain.asked.values()) == {1}
    assert plain.record.in_flight == 0
    assert plain.record.attempts == len(plain.asked) == plain.record.count("reply")


def killed_runs(
    nursery: Nursery, plain: Undisturbed, folder: Path, moments: list[tuple[str, int]], server: ScriptedServer
) -> Counter[str]:
    """Kill one run at each moment in turn, let it end, and check it; return how many kills came in each pass."""
    run, flying, kills = folder / "run", 0, Counter[str]()
    for stage, lines in moments:
        pid = nursery.start(server.url, folder)
        kill_after(pid, run, stage, lines)
        found = nursery.wait()
        assert found.status in (0, SIGKILL), found.error
        if found.status == SIGKILL:
            at_kill = Record.of(run)
            kills[stage] += 1
            lost = at_kill.in_flight - flying
            assert 0 <= lost <= 8, "no more are in flight than run at a time"
            flying = at_kill.in_flight
    ended = nursery.run(server.url, folder)
    assert (ended.status, ended.error) == (0, "")
    assert ended.artifact == plain.artifact
    assert repeats(server, plain.asked) <= flying
    assert set(asked_of(server)) == set(plain.asked)
    # What was in flight may not have reached the server; all else is counted on both sides.
    assert 0 <= Record.of(run).attempts - len(server.requests) <= flying
    return kills


def test_killed_in_every_pass(nursery: Nursery, plain: Undisturbed, tmp_path: Path) -> None:
    """12 kills, two in every pass, in two runs that are killed six times each."""
    chance, lengths = random.Random("test_kill"), plain.record.lengths()
    kills = Counter[str]()
    for name in ("a", "b"):
        moments = [(stage, chance.randrange(lengths[stage])) for stage in STAGES]
        with serving(latency=0.01) as server:
            kills += killed_runs(nursery, plain, tmp_path / name, moments, server)
    assert all(kills[stage] for stage in ("preflight", "bootstrap", "propose", "search", "certify")), kills
    assert kills.total() >= 10, kills  # emit is over before a signal arrives


def test_half_a_line_is_dropped(nursery: Nursery, plain: Undisturbed, tmp_path: Path) -> None:
    """A power cut may leave part of a line: the call is made once more, and the rest stands."""
    with serving(latency=0.005) as server:
        kill_after(nursery.start(server.url, tmp_path), tmp_path / "run", "search", 60)
        nursery.wait()
        file = tmp_path / "run" / "ledger.jsonl"
        data = file.read_bytes()
        lost = Record.of(tmp_path / "run").in_flight + 1
        file.write_bytes(data[: data.rindex(b'{"kind": "reply"') + 40])
        ended = nursery.run(server.url, tmp_path)
        assert ended.artifact == plain.artifact, ended.error
        assert repeats(server, plain.asked) <= lost


# Disks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0005, 0.5])
def test_full_disk(nursery: Nursery, plain: Undisturbed, tmp_path: Path, share: float) -> None:
    """A sentence, exit code 1, and a run that goes on once there is room; nothing that was answered is lost."""
    size = sum(len(json.dumps(line)) + 1 for line in plain.record.lines)
    with serving(latency=0.002) as server:
        full = nursery.run(server.url, tmp_path, file_limit=int(share * size))
        assert full.status == 1, full.error
        assert full.error.startswith("WorkError: ") and "can't be written" in full.error, full.error
        assert "make room and run again with the same run directory" in full.error
        record = Record.of(tmp_path / "run")
        ended = nursery.run(server.url, tmp_path)
        assert ended.artifact == plain.artifact, ended.error
        # Calls whose answer found no room are made again: those in flight when the disk was full.
        assert repeats(server, plain.asked) <= max(record.in_flight, 0) <= 8


def test_full_disk_at_the_very_end(nursery: Nursery, plain: Undisturbed, tmp_path: Path) -> None:
    with serving() as server:
        assert nursery.run(server.url, tmp_path).status == 0
        before = len(server.requests)
        size = (tmp_path / "run" / "ledger.jsonl").stat().st_size
        assert nursery.run(server.url, tmp_path, file_limit=size + 200).status == 1
        assert nursery.run(server.url, tmp_path).artifact == plain.artifact
        assert len(server.requests) == before


def test_read_only_run_directory(nursery: Nursery, plain: Undisturbed, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with serving() as server:
        kill_after(nursery.start(server.url, tmp_path), run, "search", 30)
        assert nursery.wait().status == SIGKILL
        before = len(server.requests)
        for item in (run, *run.iterdir()):
            item.chmod(item.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
        refused = nursery.run(server.url, tmp_path, bound=True)
        assert refused.status == 2 and "run_dir" in refused.error and "can't be" in refused.error, refused
        assert len(server.requests) == before
        for item in (run, *run.iterdir()):
            item.chmod(item.stat().st_mode | stat.S_IWUSR)
        assert nursery.run(server.url, tmp_path, bound=True).artifact == plain.artifact


@pytest.mark.parametrize("what", ["a file is in the way", "a folder is in the way", "nowhere"])
def test_run_directories_that_can_never_be_written(tmp_path: Path, what: str) -> None:
    """Said before a call is paid; binds root as well."""
    run = tmp_path / "run"
    if what == "a file is in the way":
        run.write_text("")
    elif what == "a folder is in the way":
        (run / "ledger.jsonl").mkdir(parents=True)
    else:
        run = Path("/proc/1/fd/run")
    with serving() as server, pytest.raises(VitrifyError, match=r"run_dir|ledger\.jsonl") as caught:
        compile_tiny(server.url, run)
    assert not server.requests and caught.value.exit_code == 2


# Group sync -----------------------------------------------------------------------------------------------------------


def test_synced_in_groups(plain: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most one sync in 100 ms and one for each pass, and none in a thread that evaluates or sends."""
    synced: list[tuple[float, str]] = []
    really = os.fsync

    def fsync(file: Any) -> None:
        synced.append((time.monotonic(), threading.current_thread().name))
        really(file)

    monkeypatch.setattr(os, "fsync", fsync)
    began = time.monotonic()
    with serving(latency=0.02) as server:
        compile_tiny(server.url, tmp_path / "run")
    seconds = time.monotonic() - began
    threads = {name for _, name in synced}
    assert threads == {"vitrify-sync", threading.main_thread().name}
    # The main thread's are those of the passes and of the end.
    passes = Record.of(tmp_path / "run").count("pass")
    assert sum(name != "vitrify-sync" for _, name in synced) <= passes + 1
    groups = [moment for moment, name in synced if name == "vitrify-sync"]
    assert 1 <= len(groups) <= seconds / SYNC_SECONDS + 1
    gaps = [later - earlier for earlier, later in pairwise(groups)]
    assert all(gap >= 0.9 * SYNC_SECONDS for gap in gaps[:-1])  # the last is the end's


def test_every_pass_ends_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a pass is begun, what stands in the ledger is on the disk: a power cut takes no earlier pass."""
    sizes: list[int] = []
    really = os.fsync

    def fsync(file: Any) -> None:
        really(file)
        if threading.current_thread() is threading.main_thread():
            sizes.append(os.fstat(file).st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    with serving() as server:
        compile_tiny(server.url, tmp_path / "run")
    data = (tmp_path / "run" / "ledger.jsonl").read_bytes()
    for stage in ("preflight", "bootstrap", "search", "certify", "emit"):
        word = json.dumps({"kind": "pass", "name": stage}).encode() + b"\n"
        end = data.index(word) + len(word)
        assert any(size >= end for size in sizes)
    assert sizes[-1] == len(data)

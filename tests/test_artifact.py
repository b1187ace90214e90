"""The artifact's file: what is written, that it is read back as it was, and that it is written whole or not at all."""

import hashlib
import json
import os
import resource
import signal
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vitrify.programs import artifact as module
from vitrify.programs.artifact import Artifact, Content, PredictorRecord, read_artifact
from vitrify.programs.exact import exact, from_exact
from vitrify.programs.files import check_writable
from vitrify.signatures.canonical import NotCanonical, canonical_json
from vitrify.signatures.errors import ArtifactError

from tests.strategies import json_values, profile


def changed(artifact: Artifact, **content: Any) -> Artifact:
    """Return an artifact with other content, sealed anew."""
    data = {name: value for name, value in artifact.to_json().items() if name != "sha256"}
    return Artifact.seal(Content.from_json({**data, **content}))


def test_saved_is_read_back_equal_and_byte_identical(artifact: Artifact, saved: Path, tmp_path: Path) -> None:
    again = read_artifact(saved)
    assert artifact == again
    again.save(tmp_path / "again.json")
    assert saved.read_bytes() == (tmp_path / "again.json").read_bytes()


def test_bytes_are_canonical_and_the_digest_covers_all_else(saved: Path) -> None:
    text = saved.read_text()
    value = json.loads(text)
    assert canonical_json(value) + "\n" == text
    claimed = value.pop("sha256")
    assert hashlib.sha256(canonical_json(value).encode()).hexdigest() == claimed


def test_the_file_names_no_endpoint_no_key_and_no_folder(
    saved: Path, monkeypatch: pytest.MonkeyPatch, tickets: Any, tmp_path: Path
) -> None:
    import dspy
    from vitrify.compiler.importing import load_object

    import vitrify
    from tests.conftest import HELPDESK
    from tests.server import ScriptedServer

    lines = "[[ ## team ## ]]\nbilling\n\n[[ ## urgency ## ]]\nlow\n\n[[ ## completed ## ]]"
    metric = load_object(f"{HELPDESK}:routed")
    program: Any = load_object(f"{HELPDESK}:Helpdesk")
    options = vitrify.Options(instructions=0, demo_sets=0, concurrency=4)
    with ScriptedServer(lambda body: lines) as server:
        lm = dspy.LM(
            "openai/secret-test", api_base=server.url, api_key="sk-very-secret", extra_headers={"X-Secret": "s3"}
        )
        made = vitrify.compile(program(), tickets[:40], metric, lm=lm, run_dir=tmp_path / "run", options=options)
    text = made.to_bytes().decode()
    for secret in ("sk-very-secret", "127.0.0.1", server.url, "X-Secret", "s3", str(tmp_path), str(HELPDESK.parent)):
        assert secret not in text


def test_the_candidate_is_what_was_chosen(artifact: Artifact) -> None:
    assert list(artifact.candidate.params) == [record.path for record in artifact.predictors]
    assert artifact.candidate["triage"].instruction == artifact.predictors[0].instruction


# Values --------------------------------------------------------------------------------------------------------------


@given(json_values)
@profile(300)
def test_exact_values_survive_canonical_json(value: Any) -> None:
    try:
        text = canonical_json(exact(value))
    except NotCanonical:  # a lone surrogate
        return
    again = from_exact(json.loads(text))
    # repr shows the order of keys, and 1.0 from 1.
    assert repr(value) == repr(again)


@pytest.mark.parametrize("value", [1.0, -0.0, 0.0, 1e20, 1e21, 2**53 + 1, 10**40, True, {"b": 1, "a": 2.0}, {"$x": 1}])
def test_exact_keeps_what_canonical_json_merges(value: Any) -> None:
    assert repr(value) == repr(from_exact(json.loads(canonical_json(exact(value)))))


@pytest.mark.parametrize(
    "value",
    [
        {"$object": 1}, {"$object": [["a"]]}, {"$object": [["a", 1], ["a", 2]]}, {"$object": [[1, 2]]},
        {"$number": "NaN"}, {"$number": "1e999"}, {"$number": "[]"}, {"$number": 1}, {"$number": "01"},
        {"$number": "1.50"}, {"$number": "1", "a": 2}, {"$other": 1}, {"$number": "9" * 5000},
    ],
)  # fmt: skip
def test_malformed_marks_are_refused(value: Any) -> None:
    with pytest.raises(ArtifactError, match=r"\$object|\$number"):
        from_exact(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
@profile(100)
def test_every_float_of_the_evidence_is_read_back(artifact: Artifact, value: float) -> None:
    evidence = {**artifact.evidence.to_json(), "difference": value}
    assert value == changed(artifact, evidence=evidence).evidence.difference


@pytest.mark.parametrize("value", ["\ud800", {"a": float("nan")}, [2**60 + 1]])
def test_a_value_that_no_file_holds_is_an_artifact_error_and_no_traceback(artifact: Artifact, value: Any) -> None:
    record = PredictorRecord(**{**vars(artifact.predictors[0]), "demos": [{"message": value}]})
    data = {name: getattr(artifact, name) for name in Content.kinds}
    with pytest.raises(ArtifactError, match="no artifact holds"):
        Artifact.seal(Content(**{**data, "predictors": [record]}))


# Writing -------------------------------------------------------------------------------------------------------------


def test_save_makes_a_file_with_the_umasks_mode_and_replaces_the_old_one(artifact: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    old = os.umask(0o027)
    try:
        assert path == artifact.save(str(path))
    finally:
        os.umask(old)
    assert 0o640 == stat.S_IMODE(path.stat().st_mode)
    assert [path] == list(tmp_path.iterdir())


def test_save_writes_through_a_link(artifact: Artifact, tmp_path: Path) -> None:
    link, target = tmp_path / "link.json", tmp_path / "target.json"
    link.symlink_to(target)
    artifact.save(link)
    assert link.is_symlink()
    assert artifact == read_artifact(target)


UNWRITABLE = {
    "directory": ("", "is a directory: `the artifact is one file`; name a file in it"),
    "no parent": ("no/a.json", "no doesn't exist; make it first"),
    "parent is a file": ("file/a.json", "isn't a directory"),
    "too long": ("x" * 300, "File name too long"),
    "nul": ("a\0b", "null"),
    "device": ("/dev/null", "is a device or a pipe"),
    "full": ("/dev/full", "is a device or a pipe"),
    "read-only": ("/proc/a.json", "can't be written"),
}


@pytest.mark.parametrize("kind", UNWRITABLE)
def test_a_path_that_cannot_be_written_is_one_sentence(artifact: Artifact, tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("")
    path, message = tmp_path / UNWRITABLE[kind][0], UNWRITABLE[kind][1]
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ArtifactError) as caught:
        artifact.save(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert before == sorted(tmp_path.iterdir())
    if kind != "read-only":  # which only an attempt finds out
        with pytest.raises(ArtifactError):
            check_writable(path)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(artifact: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(ArtifactError, match="can't be written .*File too large.*; name another path"):
            artifact.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "old" == path.read_text()
    assert [path] == list(tmp_path.iterdir())


def test_an_interrupted_save_leaves_the_old_file_and_nothing_else(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def interrupted(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        artifact.save(path)
    assert "old" == path.read_text()
    assert [path] == list(tmp_path.iterdir())


def test_a_reader_never_sees_half_a_file(artifact: Artifact, tmp_path: Path) -> None:
    path = artifact.save(tmp_path / "a.json")
    stop = threading.Event()

    def writer() -> None:
        while not stop.is_set():
            artifact.save(path)

    threads = [threading.Thread(target=writer) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(50):
            assert artifact == read_artifact(path)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_what_is_too_large_to_be_read_is_not_written(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    with pytest.raises(ArtifactError, match="has at most 1000"):
        artifact.save(tmp_path / "a.json")
    assert [] == list(tmp_path.iterdir())

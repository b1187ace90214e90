"""A small fuzz of the loader, of `make torture`'s million; and the files that cost most, by the loader's own bounds."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vitrify.programs.models import Model
from vitrify.programs.rules import MOST_PATTERNS
from vitrify.programs.runtime import load
from vitrify.programs.untrusted import MOST_BYTES, MOST_VALUES
from vitrify.signatures.errors import RequestError

from tests.fuzz import SMALL, Figures, Stub, Watch, fuzz, tried
from tests.strategies import profile
from tests.test_artifact_malformed import resealed

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.fixture(scope="module")
def counted() -> Figures:
    return Figures()


def test_the_watch_sees(watch: Watch, tmp_path: Any) -> None:
    seen = watch.seen[:]
    with watch:
        socket.socket().close()
        (tmp_path / "x").write_text("x")
        os.chmod(tmp_path / "x", 0o600)  # noqa: PTH101
        with pytest.raises(ModuleNotFoundError):
            __import__("hostile_module")
    assert ["socket.__new__", "open", "os.chmod", "import"] == [line.partition(" ")[0] for line in watch.seen]
    watch.seen[:] = seen


@pytest.mark.parametrize("seed", [100, 101])
def test_hostile_files_do_nothing(watch: Watch, seed: int) -> None:
    figures = fuzz(1000, seed, watch)
    assert 1000 == figures.inputs == figures.accepted + figures.refused.total()
    assert figures.accepted > 20
    assert len(figures.refused) > 50


@given(st.integers(0, len(SMALL) - 1), st.binary(max_size=20), st.integers(0, 40_000), st.integers(0, 200))
@profile(150)
def test_bytes_put_anywhere(watch: Watch, counted: Figures, which: int, given: bytes, position: int, cut: int) -> None:
    data = SMALL[which]
    position %= len(data)
    with watch:
        assert "" == tried(data[:position] + given + data[position + cut :], Model(Stub()), counted)
    assert [] == watch.seen


# What costs most -----------------------------------------------------------------------------------------------------


def typed(*kinds: Any) -> bytes:
    """Return an artifact whose outputs have these types."""
    value = json.loads(SMALL[0])
    (signature,) = (item["signature"] for item in value["predictors"])
    output = {"constraints": "", "default": None, "description": "", "role": "output"}
    outputs = [{**output, "name": f"o{n}", "type": kind} for n, kind in enumerate(kinds)]
    signature["fields"] = [signature["fields"][0], *outputs]
    return resealed(value)


def model_of(count: int) -> dict[str, Any]:
    fields: list[Any] = [{"name": f"f{n}", "type": "int", "default": None, "options": {}} for n in range(count)]
    return {"kind": "model", "name": "M", "doc": None, "config": {}, "fields": fields}


def patterned(n: int) -> dict[str, Any]:
    # As costly to compile as pydantic's engine lets one be.
    raw = {"form": "raw", "options": {"pattern": f'"\\\\w{{{200 - n}}}"'}}
    return {"kind": "annotated", "type": "str", "metadata": [raw]}


def filled(part: bytes) -> bytes:
    """Return a file as large as one may be, of one part again and again."""
    head = b'{"format":"vitrify/1","sha256":"' + b"0" * 64 + b'","name":'
    return head + b"[" + b",".join([part] * ((MOST_BYTES - len(head) - 3) // (len(part) + 1))) + b"]}"


def valued(part: bytes, weight: int) -> bytes:
    """Return a file with as many values as there may be."""
    head = b'{"format":"vitrify/1","sha256":"' + b"0" * 64 + b'","name":'
    return head + b"[" + b",".join([part] * ((MOST_VALUES - 10) // weight)) + b"]}"


COSTLY: dict[str, Callable[[], bytes]] = {
    "lists": lambda: filled(b"[]"),
    "quotes": lambda: filled(b'""'),
    "open brackets": lambda: b"[" * MOST_BYTES,
    "closed brackets": lambda: b"]" * MOST_BYTES,
    "open quotes": lambda: b'"' + b'\\"' * (MOST_BYTES // 2 - 1),
    "backslashes": lambda: b"\\" * MOST_BYTES,
    "as many lists as may be": lambda: valued(b"[]", 2),
    "as many objects as may be": lambda: valued(b'{"abcdefghij":0}', 2),
    "as many numbers as may be": lambda: valued(b"0.1", 1),
    "as many texts as may be": lambda: valued(b'"abcdefghij\xc3\xa9"', 1),
    "one long text": lambda: filled(b'"' + b"a" * (MOST_BYTES - 200) + b'"'),
    "one long wide text": lambda: filled(b'"' + "\U0001f642".encode() + b"a" * (MOST_BYTES - 200) + b'"'),
    "one long number": lambda: filled(b"1." + b"1" * (MOST_BYTES - 200)),
    "many keys": lambda: b'{"format":1,' + b",".join(b'"%x":0' % n for n in range(MOST_VALUES - 10)) + b"}",
    "large types": lambda: typed(*[model_of(900)] * 9),
    "patterns": lambda: typed(*map(patterned, range(MOST_PATTERNS))),
    "many labels": lambda: typed({"kind": "literal", "values": [f"l{n}" for n in range(45_000)]}),
    "a schema of many values": lambda: hidden("[" + "[]," * 49_000 + "0]"),
    "a schema of too many values": lambda: hidden("[" + "[]," * 1_000_000 + "0]"),
}


def hidden(text: str) -> bytes:
    value = json.loads(SMALL[0])
    value["predictors"][0]["second_plan"]["response_schema"] = '{"x": ' + text + "}"
    return resealed(value)


MEASURED = """
import sys, time
from vitrify.programs.artifact import parse_artifact
from vitrify.programs.embedded import Embedded
from vitrify.programs.models import Model
from vitrify.programs.runtime import run_artifact
from vitrify.signatures.errors import ArtifactError
from tests.fuzz import peak
import json_repair, pydantic
for path in sys.argv[1:]:
    data = open(path, "rb").read()
    before, began = peak(anew=True), time.process_time()
    try:
        run_artifact(parse_artifact(data, "x"), Model(Embedded()))
        said = "accepted"
    except ArtifactError as error:
        said = str(error)
    print((peak() - before) >> 20, round(time.process_time() - began, 2), said[:150])
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, float, str]]:
    """Return megabytes at the peak, seconds of processor time, and what was said, by kind; in a process of its own."""
    folder = tmp_path_factory.mktemp("costly")
    for number, make in enumerate(COSTLY.values()):
        (folder / str(number)).write_bytes(make())
    paths = [str(folder / str(number)) for number in range(len(COSTLY))]
    ran = subprocess.run(
        [sys.executable, "-c", MEASURED, *paths], capture_output=True, text=True, timeout=300, cwd=ROOT
    )
    assert 0 == ran.returncode, ran.stderr[-500:]
    lines = [line.split(" ", 2) for line in ran.stdout.splitlines()]
    return {kind: (int(m), float(s), said) for kind, (m, s, said) in zip(COSTLY, lines, strict=True)}


@pytest.mark.parametrize("kind", COSTLY)
def test_the_costliest_files_are_bounded(measured: dict[str, tuple[int, float, str]], kind: str) -> None:
    megabytes, seconds, said = measured[kind]
    assert megabytes < 500, said
    assert seconds < 20, said


def test_what_is_too_much_is_not_parsed(measured: dict[str, tuple[int, float, str]]) -> None:
    for kind in ("lists", "quotes"):
        assert "holds too many values" in measured[kind][2]
    assert "nests too deep" in measured["open brackets"][2]
    assert "the text of a JSON object" in measured["a schema of too many values"][2]
    assert all("accepted" == measured[kind][2] for kind in ("patterns", "large types", "many labels"))


MODELS = [
    "",
    " ",
    "/",
    "a",
    "a/b",
    "openai/",
    "openai/../x",
    "embedded/x",
    "huggingface/x",
    "ollama/x",
    "x" * 1000,
    "os/system",
]


@pytest.mark.parametrize("name", MODELS)
def test_a_models_name_connects_nowhere(watch: Watch, tmp_path: Path, name: str) -> None:
    """Loading by the name in the file makes a client or refuses the name; it asks no network."""
    value = json.loads(SMALL[0])
    value["model"]["name"] = name
    path = tmp_path / "a.json"
    path.write_bytes(resealed(value))
    seen = watch.seen[:]
    with watch, contextlib.suppress(RequestError):
        load(path).close()
    # DSPy, which other providers need, looks whether the machine has IPv6: it binds a socket, and connects none.
    asked = ("socket.connect", "socket.get", "socket.send", "subprocess.", "os.system", "os.exec")
    assert [] == [line for line in watch.seen if line.startswith(asked)]
    watch.seen[:] = seen

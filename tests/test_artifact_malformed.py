"""Files that are no artifact: each is refused with a sentence that names the file and says what to do."""

import contextlib
import gzip
import json
import os
import pty
import random
import re
import socket
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vitrify.programs.artifact import MOST_BYTES, MOST_DEPTH, Artifact, parse_artifact, read_artifact
from vitrify.programs.embedded import Embedded
from vitrify.programs.models import Model
from vitrify.programs.runtime import load, run_artifact
from vitrify.programs.untrusted import MOST_VALUES
from vitrify.signatures.canonical import NotCanonical, canonical_json, digest
from vitrify.signatures.errors import ArtifactError, RequestError, WorkError

from tests.strategies import json_values, profile


def resealed(value: dict[str, Any]) -> bytes:
    """Return the file of someone who edits an artifact and mends its digest."""
    content = {key: item for key, item in value.items() if key != "sha256"}
    return canonical_json({**content, "sha256": digest(content)}).encode()


def refusal(data: bytes) -> str:
    with pytest.raises(ArtifactError) as caught:
        parse_artifact(data, "x.json")
    message = str(caught.value)
    assert message.startswith("x.json")
    assert "\n" not in message
    assert len(message) < 600
    message.encode()  # it can be printed
    return message


# What is at the path -------------------------------------------------------------------------------------------------


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(
        ArtifactError, match=r"a\.json can't be read \(No such file.*\); name the file that `compile -o`"
    ):
        load(tmp_path / "a.json")


def test_directory(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is a directory; name the file"):
        load(tmp_path)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null"])
def test_devices_are_not_read(path: str) -> None:
    with pytest.raises(ArtifactError, match="is a device or a pipe: `an artifact is a file`"):
        load(path)


def test_a_name_with_a_nul_and_a_name_that_is_too_long() -> None:
    for path in ("a\0b", "x" * 5000):
        with pytest.raises(ArtifactError, match="can't be read"):
            load(path)


def test_unreadable(saved: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    path = tmp_path / "a.json"
    path.write_bytes(saved.read_bytes())
    path.chmod(0)
    with pytest.raises(ArtifactError, match="Permission denied"):
        load(path)


def test_over_size_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as stream:
        stream.truncate(MOST_BYTES + 1)
    began = time.monotonic()
    with pytest.raises(ArtifactError, match=f"has {MOST_BYTES + 1} bytes: `an artifact has at most {MOST_BYTES}`"):
        load(path)
    assert time.monotonic() - began < 1


def test_a_pipe_that_nobody_writes_to_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    began = time.monotonic()
    with pytest.raises(ArtifactError, match="is a device or a pipe: `an artifact is a file`"):
        load(tmp_path / "pipe")
    assert time.monotonic() - began < 1


def test_a_socket_and_a_terminal_are_not_read(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        with pytest.raises(ArtifactError, match="can't be read"):
            load(tmp_path / "s")
    ends = pty.openpty()
    with pytest.raises(ArtifactError, match="is a device or a pipe"):
        load(os.ttyname(ends[1]))
    for end in ends:
        os.close(end)


def test_no_handle_is_left_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("no JSON")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "text"):
        with pytest.raises(ArtifactError):
            load(path)
    assert before == len(os.listdir("/proc/self/fd"))  # noqa: PTH208


# What is in the file -------------------------------------------------------------------------------------------------

NOTHING = sha256(b"").hexdigest().encode()
DIGEST = sha256(b'{"format":"vitrify/1"}').hexdigest().encode()
NO_JSON = {
    "empty": (b"", "is empty; take the original file"),
    "blank": (b"  \n", "is no valid JSON"),
    "not UTF-8": (b'{"format": "\xff"}', r"isn't UTF-8 \(byte 12\); it is damaged"),
    "UTF-16": ('{"format": 1}'.encode("utf-16"), "isn't UTF-8"),
    "a byte order mark": (b'\xef\xbb\xbf{"format": 1}', "is no valid JSON"),
    "two values": (b'{"format": "vitrify/1"} {}', "is no valid JSON"),
    "a trailing comma": (b'{"format": "vitrify/1",}', "is no valid JSON"),
    "duplicate keys": (b'{"format": "vitrify/1", "format": "vitrify/1"}', "the key 'format' stands twice"),
    "duplicate keys inside": (b'{"format": "vitrify/1", "a": {"b": 1, "b": 2}}', "the key 'b' stands twice"),
    "NaN": (b'{"format": "vitrify/1", "a": NaN}', "NaN is no JSON value"),
    "Infinity": (b'{"format": "vitrify/1", "a": -Infinity}', "-Infinity is no JSON value"),
    "an infinite number": (b'{"format": "vitrify/1", "a": 1e999}', "holds a value that no artifact holds"),
    "a huge integer": (b'{"format": "vitrify/1", "a": 12345678901234567891}', "holds a value that no artifact holds"),
    "a monstrous integer": (b'{"format": "vitrify/1", "a": ' + b"9" * 10000 + b"}", "is no valid JSON"),
    "a lone surrogate": (b'{"format": "vitrify/1", "a": "\\ud800"}', "holds a value that no artifact holds"),
    "a surrogate key": (b'{"format": "vitrify/1", "\\ud800": 1}', "holds a value that no artifact holds"),
    "deep lists": (b'{"format": "vitrify/1", "a": ' + b"[" * 200 + b"]" * 200 + b"}", f"at most {MOST_DEPTH} levels"),
    "very deep": (b"[" * 500_000, "nests too deep"),
    "very deep objects": (b'{"a":' * 200_000, "nests too deep"),
    "a list": (b"[]", "is no vitrify artifact: `the first level is an object with a format`; name the file"),
    "null": (b"null", "is no vitrify artifact"),
    "another object": (b'{"a": 1}', "is no vitrify artifact"),
    "another format": (
        b'{"format": "vitrify/2"}',
        "has the format 'vitrify/2': `this version reads vitrify/1`; update",
    ),
    "a format that is no text": (b'{"format": [1]}', "has the format '\\[1\\]'"),
    "no digest": (b'{"format": "vitrify/1"}', "was changed after it was written: `sha256` says 'None'"),
    "a strange digest": (b'{"format": "vitrify/1", "sha256": "\\ud800"}', "x.json"),
    "an escaped key twice": (b'{"format": "vitrify/1", "\\u0066ormat": 1}', "the key 'format' stands twice"),
    "a raw control character": (b'{"format": "vitrify/1", "a": "\x07"}', "is no valid JSON"),
    "an escape in a key": (
        b'{"format": "vitrify/1", "\\u001b[2J": {"\\u001b]0;x": 1, "\\u001b]0;x": 1}}',
        "stands twice",
    ),
    "overlong UTF-8": (b'{"format": "\xc0\x80"}', "isn't UTF-8"),
    "a surrogate in UTF-8": (b'{"format": "\xed\xa0\x80"}', "isn't UTF-8"),
    "gzip": (gzip.compress(b'{"format": "vitrify/1"}'), "isn't UTF-8"),
    "bytes behind": (b'{"format": "vitrify/1"}\x00', "is no valid JSON"),
    "a mark behind": (b'{"format": "vitrify/1"}\xef\xbb\xbf', "is no valid JSON"),
    "a page behind": (b'{"format": "vitrify/1"}<html></html>', "is no valid JSON"),
    "a comment": (b'{"format": "vitrify/1" /* no */}', "is no valid JSON"),
    "single quotes": (b"{'format': 'vitrify/1'}", "is no valid JSON"),
    "another white space": (b'{\xc2\xa0"format": "vitrify/1"}', "is no valid JSON"),
    "a leading zero": (b'{"format": "vitrify/1", "a": 01}', "is no valid JSON"),
    "a hexadecimal number": (b'{"format": "vitrify/1", "a": 0x1}', "is no valid JSON"),
    "beyond 2**53": (b'{"format": "vitrify/1", "a": 9007199254740993}', "holds a value that no artifact holds"),
    "an infinite float": (b'{"format": "vitrify/1", "a": -1E400}', "holds a value that no artifact holds"),
    "too many values": (b'{"format": "vitrify/1", "a": [' + b"0," * MOST_VALUES + b"0]}", "holds too many values"),
    "too many keys": (b"{" + b'"a":0,' * MOST_VALUES + b'"b":0}', "holds too many values"),
    "brackets in a text": (b'{"format": "vitrify/1", "a": "' + b"[" * 1000 + b'"}', "was changed after it was written"),
    "a text without an end": (b'{"format": "vitrify/1", "a": "' + b'\\"' * 100_000, "is no valid JSON"),
    "another normal form": (
        b'{"format": "vitrify/1", "\xc3\xa9": 1, "e\xcc\x81": 2}',
        "was changed after it was written",
    ),
    "a digest in capitals": (b'{"format": "vitrify/1", "sha256": "' + DIGEST.upper() + b'"}', "was changed after"),
    "a digest of nothing": (
        b'{"format": "vitrify/1", "sha256": "' + sha256(b"").hexdigest().encode() + b'"}',
        "was changed",
    ),
    "a right digest of too little": (b'{"format": "vitrify/1", "sha256": "' + DIGEST + b'"}', "`name` is wrong"),
    "a picture": (b"\x89PNG\r\n\x1a\n", "isn't UTF-8"),
    "a pickle": (b"\x80\x04}\x94.", "isn't UTF-8"),
}


@pytest.mark.parametrize("kind", NO_JSON)
def test_what_is_no_artifact(kind: str) -> None:
    data, message = NO_JSON[kind]
    began = time.monotonic()
    assert re.search(message, refusal(data))
    assert time.monotonic() - began < 5


def test_duplicate_keys_take_linear_time() -> None:
    data = b'{"format": "vitrify/1", ' + b",".join(b'"k%d": 0' % i for i in range(200_000)) + b', "k0": 0, "k0": 1}'
    began = time.monotonic()
    assert "stands twice" in refusal(data)
    assert time.monotonic() - began < 5


def edits(value: dict[str, Any]) -> dict[str, tuple[Callable[[], Any], str]]:
    """Edits of an artifact whose digest is then mended, and what is said of them."""
    record = value["predictors"][0]
    return {
        "an unknown key": (lambda: value.update(extra=1), "`extra` is wrong"),
        "an unknown key in a predictor": (lambda: record.update(code="print()"), "`predictors.0.code` is wrong"),
        "a missing key": (lambda: value.pop("model"), "`model` is wrong"),
        "text for a number": (lambda: value["provenance"].update(seed="0"), "`provenance.seed` is wrong"),
        "a number for text": (lambda: value.update(name=1), "`name` is wrong"),
        "a number for a truth value": (lambda: value.update(reproducible=1), "`reproducible` is wrong"),
        "null for a list": (lambda: value.update(canaries=None), "`canaries` is wrong"),
        "a fraction for a count": (lambda: value["evidence"].update(n=1.5), "`evidence.n` is wrong"),
        "an interval of three": (lambda: value["evidence"]["interval"].append(1), "`evidence.interval"),
        "another kind": (lambda: value["program"].update(kind="pickle"), "`program` is wrong"),
        "a digest that is none": (lambda: value["canaries"][0].update(sha256="x"), "`canaries.0.sha256` is wrong"),
        "another reply format": (lambda: record.update(format="xml"), "`predictors.0.format` is wrong"),
        "an endpoint among the sampling parameters": (
            lambda: record["decoding"].update(api_base="http://evil"), "'api_base' is no sampling parameter",
        ),
        "a key among the model's parameters": (
            lambda: value["model"]["decoding"].update(api_key="sk"), "'api_key' is no sampling parameter",
        ),
        "an escape sequence in the name": (lambda: value.update(name="\x1b[2J"), "`name` is wrong"),
        "a name that reads backwards": (lambda: value.update(name="a\u202eb"), "`name` is wrong"),
        "a name without an end": (lambda: value.update(name="x" * 1001), "`name` is wrong"),
        "a line in a path": (lambda: record.update(path="a\nb"), "`predictors.0.path` is wrong"),
        "an address for a model": (
            lambda: value["model"].update(name="huggingface/https://evil"), "a model's name holds no address",
        ),
        "a mark that is none": (lambda: record.update(demos=[{"a": {"$eval": 1}}]), "`predictors.0.demos.0.a`"),
        "a number that is none": (
            lambda: value["canaries"][0]["inputs"].update(message={"$number": "1e999"}), "`canaries.0.inputs.message`",
        ),
        "an unknown role": (lambda: value["canaries"][0]["messages"][0].update(role="tool"), "messages.0.role` is"),
        "an unknown capability": (
            lambda: value["model"]["capabilities"].update(sudo=True), "capabilities.sudo` is wrong",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("kind", list(edits({"predictors": [{}]})))
def test_an_edit_with_a_mended_digest_is_held_to_the_schema(saved: Path, kind: str) -> None:
    value = json.loads(saved.read_bytes())
    edit, message = edits(value)[kind]
    edit()
    assert message in refusal(resealed(value))


GOLDEN = Path(__file__).parent / "golden" / "vitrify-1"


def deep_edits(value: dict[str, Any]) -> dict[str, tuple[Callable[[], Any], str]]:
    """Edits of a golden file that are found where the program is built: types, texts inside, the flow."""
    read, write = value["predictors"]
    fields = {field["name"]: field for field in read["signature"]["fields"]}
    item, size, plan = fields["item"]["type"], fields["size"]["type"], write["second_plan"]
    flow, config, options = value["program"]["flow"], item["config"], item["fields"][0]["options"]
    raw = {"kind": "annotated", "type": "str", "metadata": [{"form": "raw", "options": {"pattern": '"a"'}}]}

    exploding = {"form": "raw", "options": {"pattern": '"(\\\\w{99}){99}"'}}

    def retyped(kind: Any) -> Callable[[], Any]:
        return lambda: fields["count"].update(type=kind)

    def nested(times: int) -> Any:
        kind: Any = "int"
        for _ in range(times):
            kind = {"kind": "list", "items": kind}
        return kind

    return {
        "an engine of exponential time": (lambda: config.update(regex_engine='"python-re"'), "known options only"),
        "a setting that runs code": (lambda: config.update(alias_generator='"x"'), "known options only"),
        "an option that is none": (lambda: options.update(default_factory='"x"'), "known options only"),
        "a field that reaches the class": (lambda: item["fields"][0].update(name="__base__"), "two underscores"),
        "a member that reaches the class": (lambda: size["members"][0].__setitem__(0, "__init__"), "two underscores"),
        "a member without a value": (lambda: size["members"][0].pop(), "a member is"),
        "no members": (lambda: size.update(members=[]), "at least one value"),
        "a type that nests": (retyped(nested(65)), "nest at most 60 deep"),
        "a type of many parts": (retyped({"kind": "union", "options": ["int"] * 2001}), "at most 2000 parts"),
        "many patterns": (retyped({"kind": "union", "options": [raw] * 33}), "at most 32 patterns"),
        "a pattern that explodes": (retyped({**raw, "metadata": [exploding]}), "can't be built"),
        "a reference to nothing": (retyped({"kind": "ref", "name": "Nobody"}), "names an enclosing model"),
        "a scalar of Python's": (retyped("object"), "known type"),
        "a text with a key twice": (lambda: plan.update(response_schema='{"a": 1, "a": 2}'), "the text of a JSON"),
        "a text with NaN": (lambda: plan.update(response_schema='{"a": NaN}'), "the text of a JSON object"),
        "a text that nests": (lambda: plan.update(response_schema='{"a":' * 500 + "1" + "}" * 500), "the text of"),
        "a default with NaN": (lambda: fields["count"].update(default={"value": "NaN"}), "found 'NaN'"),
        "a default that imports": (lambda: fields["count"].update(default={"factory": "os.system"}), "default"),
        "a field twice": (lambda: read["signature"]["fields"].append(fields["count"]), "field names differ"),
        "outputs first": (lambda: read["signature"]["fields"].reverse(), "the signature's inputs|inputs come before"),
        "a hole twice": (lambda: read["plan"]["holes"].append(read["plan"]["holes"][0]), "the signature's inputs"),
        "a template": (lambda: read["plan"].update(template="{{ 7 * 7 }}"), "known keys only"),
        "an unknown expression": (lambda: flow.update(returns={"eval": "1"}), "nobody knows the expression"),
        "a step that is bound twice": (lambda: flow["steps"].append(flow["steps"][0]), "bound twice"),
        "a call to nothing": (lambda: flow["steps"][0]["value"]["call"].update(path="os.system"), "has a plan"),
        "a flow that calls a class": (lambda: flow["steps"][0]["value"].update(import_path="os"), "one key"),
        "a canary of other messages": (
            lambda: value["canaries"][0]["messages"][0].update(content="Be kind."), "renders other messages",
        ),
        "a canary of another hash": (lambda: value["canaries"][0].update(sha256="0" * 64), "has another hash"),
    }  # fmt: skip


DEEP = list(deep_edits(json.loads((GOLDEN / "orders-chat.artifact.json").read_bytes())))


def deeply_edited(kind: str) -> tuple[bytes, str]:
    value = json.loads((GOLDEN / "orders-chat.artifact.json").read_bytes())
    edit, message = deep_edits(value)[kind]
    edit()
    return resealed(value), message


@pytest.mark.parametrize("kind", DEEP)
def test_what_is_found_where_the_program_is_built(kind: str) -> None:
    data, message = deeply_edited(kind)
    with pytest.raises(ArtifactError, match=message) as caught:
        run_artifact(parse_artifact(data, "x.json"), Model(Embedded()), name="x.json")
    assert "\x1b" not in str(caught.value)


def test_truncated_at_every_position(saved: Path) -> None:
    data = saved.read_bytes()
    positions = {*range(300), *range(0, len(data) - 300, 101), *range(len(data) - 300, len(data) - 1)}
    for position in positions:
        refusal(data[:position])


def test_any_byte_changed_is_refused_or_says_the_same(saved: Path, artifact: Artifact) -> None:
    data = saved.read_bytes()
    generator = random.Random(0)
    for position in range(0, len(data), 17):
        byte = generator.randrange(256)
        edited = data[:position] + bytes([byte]) + data[position + 1 :]
        try:
            assert artifact == parse_artifact(edited, "x.json")
        except ArtifactError:
            continue


def test_white_space_and_the_spelling_of_numbers_say_the_same(saved: Path, artifact: Artifact) -> None:
    value = json.loads(saved.read_bytes())
    value["provenance"]["seed"] = float(value["provenance"]["seed"])
    again = parse_artifact(json.dumps(value, indent=2).encode(), "x.json")
    assert artifact == again
    assert artifact.to_bytes() == again.to_bytes()


@given(st.binary(max_size=200))
@profile(200)
def test_any_bytes(data: bytes) -> None:
    refusal(data)


@given(json_values)
@profile(200)
def test_any_json(value: Any) -> None:
    refusal(json.dumps({"format": "vitrify/1", "sha256": "0" * 64, "name": value}).encode())


# Whatever a mended digest covers, loading and running it raises vitrify's own errors alone ---------------------------


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += places(item, (*path, key))
    return found


def mutated(value: Any, generator: random.Random, strange: Any) -> Any:
    """Return the artifact with something at one or two places removed, doubled, moved or replaced."""
    edited = json.loads(json.dumps(value))
    for _ in range(generator.randint(1, 2)):
        everywhere = places(edited)
        # Half of the edits go where reading is deepest: the flow, signatures, plans, demonstrations, canaries.
        deep = [path for path in everywhere if path[0] in ("program", "predictors", "canaries", "inputs")]
        path = generator.choice(deep if generator.random() < 0.7 else everywhere)
        owner = edited
        for key in path[:-1]:
            owner = owner[key]
        other = edited
        for key in generator.choice(everywhere):
            other = other[key]
        other = json.loads(json.dumps(other))
        match generator.randrange(5):
            case 0:
                del owner[path[-1]]
            case 1 if isinstance(owner, list):
                owner.insert(path[-1], json.loads(json.dumps(owner[path[-1]])))
            case 1 | 2:
                owner[path[-1]] = strange
            case 3:
                owner[path[-1]] = other
            case 4 if isinstance(owner, dict):
                owner[generator.choice(["$object", "$number", "kind", "path", "x"])] = other
    return edited


@given(st.randoms(use_true_random=False), json_values)
@profile(600)
def test_a_mutant_with_a_mended_digest_raises_vitrifys_errors_alone(
    saved: Path, generator: random.Random, strange: Any
) -> None:
    try:
        data = resealed(mutated(json.loads(saved.read_bytes()), generator, strange))
    except NotCanonical:
        return
    began = time.monotonic()
    try:
        loaded = run_artifact(parse_artifact(data, "x.json"), Model(Embedded()), name="x.json")
    except RequestError as error:
        # A class program asks for its class; all else is the file's fault.
        assert isinstance(error, ArtifactError) or "pass program=" in str(error)
    else:
        with contextlib.suppress(RequestError, WorkError):
            loaded(**{item.name: "my card is gone" for item in loaded.artifact.inputs})
    assert time.monotonic() - began < 10


def test_read_and_parse_agree(saved: Path, artifact: Artifact) -> None:
    assert artifact == read_artifact(str(saved)) == parse_artifact(saved.read_bytes(), "x")

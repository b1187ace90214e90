"""`vitrify verify` and `vitrify sign` as a person uses them."""

import csv
import json
import math
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from vitrify.compiler.claim import compare_with_claim, newcombe_interval

from tests.commands import TICKETS, Called, compile_, vitrify, workplace
from tests.conftest import HELPDESK
from tests.edited import save_edited

METRIC = f"{HELPDESK}:routed"
PEM = serialization.Encoding.PEM


@pytest.fixture
def own(saved: Path, tmp_path: Path) -> Path:
    """The helpdesk artifact in a folder of its own, with the rows that it was compiled on and others."""
    (tmp_path / "rows.jsonl").write_text("\n".join(TICKETS[:80]))
    (tmp_path / "fresh.jsonl").write_text("\n".join(TICKETS[80:200]))
    (tmp_path / "desk.json").write_bytes(saved.read_bytes())
    return tmp_path


def checks(*args: object, code: int = 0) -> dict[str, Any]:
    found = vitrify("verify", *args, "--json")
    assert code == found.code, found.stderr + found.stdout
    answer = json.loads(found.stdout)
    assert answer["holds"] == (code == 0)
    return {check["name"]: check for check in answer["checks"]}


def refused(*args: object) -> Called:
    found = vitrify(*args)
    assert (2, "", 1) == (found.code, found.stdout, found.stderr.count("\n")), found.stderr
    return found


# The file -------------------------------------------------------------------------------------------------------------


def test_a_file_as_it_was_written(own: Path) -> None:
    found = vitrify("verify", own / "desk.json")
    assert 0 == found.code
    assert ["ok file", "ok bytes", "- signature", "ok prompts", "ok program"] == [
        " ".join(line.split()[:2]) for line in found.stdout.splitlines()
    ]


@pytest.mark.parametrize("change, said", [
    (lambda data: data.replace(b'"seed":0', b'"seed":1'), "was changed after it was written"),
    (lambda data: data[:-50], "is no valid JSON"),
    (lambda data: data.replace(b"vitrify/1", b"vitrify/9"), "has the format"),
])  # fmt: skip
def test_a_file_that_was_changed(own: Path, change: Callable[[bytes], bytes], said: str) -> None:
    (own / "desk.json").write_bytes(change((own / "desk.json").read_bytes()))
    found = checks(own / "desk.json", code=1)
    assert ["file"] == list(found) and said in found["file"]["said"]


def test_a_file_that_was_reformatted(own: Path) -> None:
    (own / "desk.json").write_text(json.dumps(json.loads((own / "desk.json").read_text()), indent=1))
    found = checks(own / "desk.json", code=1)
    assert found["file"]["holds"] and not found["bytes"]["holds"] and found["program"]["holds"]


def test_a_prompt_that_renders_otherwise(own: Path, artifact: Any) -> None:
    def change(data: dict[str, Any]) -> None:
        data["predictors"][0]["plan"]["requirements"] += " now"

    save_edited(artifact, own / "desk.json", change)
    found = checks(own / "desk.json", code=1)
    assert found["file"]["holds"] and "renders other messages" in found["prompts"]["said"]


def test_a_program_that_needs_its_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workplace(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert 0 == compile_("--budget-calls", 200, program="desk.py:Looped").code
    assert checks("out.json")["program"]["holds"] is None
    assert checks("out.json", "--program", "desk.py:Looped")["program"]["holds"]
    other = checks("out.json", "--program", "desk.py:Desk", code=1)
    assert "was compiled for another" in other["program"]["said"]


def test_what_can_not_be_checked(own: Path) -> None:
    desk = own / "desk.json"
    assert "none.json" in refused("verify", own / "none.json").sentence
    assert "together" in refused("verify", desk, "--data", own / "rows.jsonl").sentence
    assert "--key" in refused("verify", desk, "--signature", desk).sentence
    other = refused("verify", desk, "--data", own / "rows.jsonl", "--metric", "exact:queue").sentence
    assert "its own metric" in other


# The claim ------------------------------------------------------------------------------------------------------------


def test_the_claim_on_the_sealed_test_is_met_exactly(own: Path, artifact: Any) -> None:
    claim = checks(own / "desk.json", "--data", own / "rows.jsonl", "--metric", METRIC)["claim"]
    assert claim["same_rows"] and claim["said"].endswith("exactly as claimed")
    assert (artifact.evidence.compiled, artifact.evidence.n) == pytest.approx((claim["found"], claim["n"]))


def test_a_claim_that_is_no_longer_met_on_the_sealed_test(own: Path, artifact: Any) -> None:
    def lie(data: dict[str, Any]) -> None:
        data["evidence"]["compiled"] = 1 - data["evidence"]["compiled"] / 2

    save_edited(artifact, own / "desk.json", lie)
    claim = checks(own / "desk.json", "--data", own / "rows.jsonl", "--metric", METRIC, code=1)["claim"]
    assert claim["same_rows"] and "not as claimed" in claim["said"]


def test_the_claim_on_fresh_rows(own: Path, artifact: Any) -> None:
    at = (own / "desk.json", "--data", own / "fresh.jsonl", "--metric", METRIC)
    claim = checks(*at)["claim"]
    assert not claim["same_rows"] and 120 == claim["n"] and "no contradiction" in claim["said"]
    low, high = claim["interval"]
    assert low < claim["difference"] < high and claim["equal_within"] < max(-low, high)
    wide, narrow = (f"{claim['equal_within'] + off:.6f}" for off in (0.001, -0.001))
    assert "equal within" in checks(*at, "--margin", wide)["claim"]["said"]
    assert "not shown equal" in checks(*at, "--margin", narrow, code=1)["claim"]["said"]


def test_a_claim_that_fresh_rows_contradict(own: Path, artifact: Any) -> None:
    rows = [{**json.loads(line), "team": "nobody"} for line in TICKETS[80:120]]
    (own / "fresh.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = vitrify("verify", own / "desk.json", "--data", own / "fresh.jsonl", "--metric", METRIC)
    assert 1 == found.code and found.stdout.splitlines()[-1].startswith("FAILED  claim")
    assert "below the claim by more than chance explains" in found.stdout


def test_no_claim_and_no_way_to_tell(own: Path, artifact: Any) -> None:
    def uncertified(data: dict[str, Any]) -> None:
        data["evidence"]["certified"] = False

    at = ("--data", own / "rows.jsonl", "--metric", METRIC)
    save_edited(artifact, own / "none.json", uncertified)
    assert "claims nothing" in refused("verify", own / "none.json", *at).sentence

    def other_sets(data: dict[str, Any]) -> None:
        data["provenance"]["rows"]["test"] += 1

    save_edited(artifact, own / "none.json", other_sets)
    assert "--group" in refused("verify", own / "none.json", *at).sentence


def test_the_sealed_test_of_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups decide which rows are sealed, and no file says which column they were: it has to be named again."""
    rows = [{**json.loads(line), "who": number % 23} for number, line in enumerate(TICKETS[:100])]
    workplace(tmp_path)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    assert 0 == compile_("--budget-calls", 400, "--group", "who").code
    at = ("verify", "out.json", "--data", "rows.jsonl", "--metric", "exact:team")
    assert "exactly as claimed" in vitrify(*at, "--group", "who").stdout
    found = vitrify(*at)
    assert found.code and "--group" in found.stdout + found.stderr


def test_the_same_rows_in_another_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of texts is the data of the compile where its values are: also lists, numbers and truth values."""
    workplace(tmp_path)
    (tmp_path / "lists.py").write_text(
        "import dspy\n"
        "class S(dspy.Signature):\n    words: list[str] = dspy.InputField()\n    n: int = dspy.InputField()\n"
        "    team: str = dspy.OutputField()\n"
        "class Lists(dspy.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.s = dspy.Predict(S)\n    def forward(self, words, n):\n        return self.s(words=words, n=n)\n"
    )
    rows = [{"words": json.loads(line)["message"].split(), "n": n, "team": "a"} for n, line in enumerate(TICKETS[:60])]
    with (tmp_path / "rows.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "words": json.dumps(row["words"])} for row in rows)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    assert 0 == compile_("--budget-calls", 300, program="lists.py:Lists", data="rows.csv").code
    for data in ("rows.csv", "rows.jsonl"):
        assert checks("out.json", "--data", data, "--metric", "exact:team")["claim"]["same_rows"]


def test_newcombes_own_examples() -> None:
    """Table II of the paper, method 10."""
    for first, n, second, m, low, high in (
        (48, 80, 56, 70, 0.0524, 0.3339), (3, 10, 9, 10, 0.1705, 0.8090), (2, 7, 6, 7, 0.0582, 0.8062),
        (0, 10, 0, 20, -0.2775, 0.1611), (0, 10, 10, 10, 0.6075, 1.0),
    ):  # fmt: skip
        found = newcombe_interval(first / n, n, second / m, m)
        assert (low, high) == pytest.approx(found, abs=6e-5)


def test_a_true_claim_is_rarely_contradicted_and_a_false_one_often() -> None:
    draw = random.Random(0)
    contradicted = {0.8: 0, 0.6: 0}
    for truth in contradicted:
        for _ in range(600):
            claimed = sum(draw.random() < 0.8 for _ in range(100)) / 100
            scores = [float(draw.random() < truth) for _ in range(100)]
            contradicted[truth] += compare_with_claim(claimed, 100, scores).differs
    assert contradicted[0.8] <= 50 and contradicted[0.6] >= 480


def test_graded_scores() -> None:
    draw = random.Random(1)
    wrong = 0
    for _ in range(400):
        claimed = math.fsum(draw.gauss(3, 2) for _ in range(60)) / 60
        wrong += compare_with_claim(claimed, 60, [draw.gauss(3, 2) for _ in range(50)]).differs
    assert 4 <= wrong <= 40
    assert (
        compare_with_claim(0.5, 60, [0.25] * 50).interval[0] < -0.25 < compare_with_claim(0.5, 60, [0.25] * 50).within
    )


# Signatures -----------------------------------------------------------------------------------------------------------


def write_keys(folder: Path, name: str, *, passphrase: bytes | None = None, key: Any = None) -> tuple[Path, Path]:
    key = key or Ed25519PrivateKey.generate()
    shut = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, shut))
    public.write_bytes(key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


def test_sign_and_verify(own: Path) -> None:
    desk, (private, public) = own / "desk.json", write_keys(own, "key")
    assert "`vitrify sign`" in refused("verify", desk, "--key", public).sentence
    assert 0 == vitrify("sign", desk, "--key", private).code
    assert 64 == len((own / "desk.json.sig").read_bytes())
    assert checks(desk, "--key", public)["signature"]["holds"]
    assert "name the public key" in checks(desk)["signature"]["said"]
    _, stranger = write_keys(own, "stranger")
    assert not checks(desk, "--key", stranger, code=1)["signature"]["holds"]
    (own / "elsewhere").write_bytes((own / "desk.json.sig").read_bytes()[::-1])
    assert not checks(desk, "--key", public, "--signature", own / "elsewhere", code=1)["signature"]["holds"]


def test_a_signature_is_of_the_bytes(own: Path, artifact: Any) -> None:
    desk, (private, public) = own / "desk.json", write_keys(own, "key")
    assert 0 == vitrify("sign", desk, "--key", private).code
    save_edited(artifact, desk, lambda data: data["notes"].append("a lie"))
    found = checks(desk, "--key", public, code=1)
    assert found["file"]["holds"] and not found["signature"]["holds"]


def test_openssl_agrees(own: Path) -> None:
    desk, (private, public) = own / "desk.json", write_keys(own, "key")
    vitrify("sign", desk, "--key", private)
    signature = own / "desk.json.sig"
    command: list[str | Path] = [
        "openssl",
        "pkeyutl",
        "-verify",
        "-pubin",
        "-inkey",
        public,
        "-rawin",
        "-in",
        desk,
        "-sigfile",
        signature,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no openssl here")
    assert 0 == done.returncode, done.stderr


def test_an_encrypted_key(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk, (private, public) = own / "desk.json", write_keys(own, "key", passphrase=b"open sesame")
    assert "VITRIFY_KEY_PASSPHRASE" in refused("sign", desk, "--key", private).sentence
    monkeypatch.setenv("VITRIFY_KEY_PASSPHRASE", "wrong")
    assert "passphrase is wrong" in refused("sign", desk, "--key", private).sentence
    monkeypatch.setenv("VITRIFY_KEY_PASSPHRASE", "open sesame")
    assert 0 == vitrify("sign", desk, "--key", private).code
    assert checks(desk, "--key", public)["signature"]["holds"]


def test_keys_that_are_none(own: Path) -> None:
    desk, (private, public) = own / "desk.json", write_keys(own, "key")
    (own / "text.pem").write_text("-----BEGIN nothing-----")
    other, other_public = write_keys(own, "rsa", key=rsa.generate_private_key(65537, 2048))
    assert "no private key in PEM" in refused("sign", desk, "--key", public).sentence
    assert "no private key in PEM" in refused("sign", desk, "--key", own / "text.pem").sentence
    assert "Ed25519" in refused("sign", desk, "--key", other).sentence
    assert "PEM file" in refused("sign", desk, "--key", own / "none.pem").sentence
    vitrify("sign", desk, "--key", private)
    assert "public half" in refused("verify", desk, "--key", private).sentence
    assert "Ed25519" in refused("verify", desk, "--key", other_public).sentence
    (own / "desk.json").write_text("{}")
    assert 2 == vitrify("sign", desk, "--key", private).code


def test_compile_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workplace(tmp_path)
    monkeypatch.chdir(tmp_path)
    private, public = write_keys(tmp_path, "key")
    small = ("--budget-calls", 200)
    assert "PEM file" in compile_("--sign", "none.pem", "--run-dir", "run", *small).sentence
    assert not (tmp_path / "run").exists()  # asked before anything was paid
    assert 0 == compile_("--sign", private, "--run-dir", "run", *small).code
    assert checks("out.json", "--key", public)["signature"]["holds"]
    (tmp_path / "out.json.sig").unlink()
    assert 0 == vitrify("resume", "run").code
    assert checks("out.json", "--key", public)["signature"]["holds"]
    assert "BEGIN" not in (tmp_path / "run" / "request.json").read_text()


def test_without_the_library_it_is_one_sentence(own: Path) -> None:
    private, _ = write_keys(own, "key")
    code = (
        "import sys; sys.modules['cryptography'] = None; from vitrify.cli import main;"
        f"sys.argv = ['vitrify', 'sign', {str(own / 'desk.json')!r}, '--key', {str(private)!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert 2 == done.returncode and "vitrify[sign]" in done.stderr and 1 == done.stderr.count("\n")

"""The command line as a person uses it, called in this process unless a real one is needed."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import dspy
import pytest
from vitrify.programs.artifact import read_artifact

import vitrify as front
from tests.commands import HELPDESK, TICKETS, Answers, compile_, vitrify, workplace
from tests.server import ScriptedServer
from vitrify.request import CompileRequest

COMMAND = [sys.executable, "-m", "vitrify"]
COMMANDS = ("compile", "resume", "run", "evaluate", "inspect", "diff", "verify", "sign", "export", "import")
ROWS = [json.loads(line) for line in TICKETS[:60]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # python -m vitrify has the working directory there as well
    return workplace(tmp_path)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = workplace(tmp_path_factory.mktemp("artifact"))
    out = folder / "desk.json"
    found = compile_("--run-dir", folder / "run", program=f"{folder}/desk.py:Desk", data=folder / "rows.jsonl", out=out)
    assert found.code == 0, found.stderr
    return out


def process(*args: object, stdin: str | None = None, timeout: float = 60.0) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, *map(str, args)], input=stdin, capture_output=True, text=True, timeout=timeout, check=False
    )


# Help -----------------------------------------------------------------------------------------------------------------


def test_help() -> None:
    bare = vitrify()
    assert bare.code == 0 and all(name in bare.stdout for name in COMMANDS)
    page = vitrify("compile", "--help").stdout
    headings = [line for line in page.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Arguments:", "Options:", "Budget:", "Search:", "Rows:", "Models:", "Calls:", "Output:"]
    assert max(map(len, page.splitlines())) <= 80


def test_every_option_has_help() -> None:
    for command in COMMANDS:
        page = vitrify(command, "--help").stdout
        for line in page.splitlines():
            assert not re.fullmatch(r"  -\S+( \S+)?", line), line


def test_defaults_are_shown() -> None:
    pages = {name: " ".join(vitrify(name, "--help").stdout.split()) for name in COMMANDS}
    assert "[default: (auto); 1<=x<=1024]" in pages["compile"] and "[default: 16; 1<=x<=1024]" in pages["run"]
    assert "[default: 16; 1<=x<=1024]" in pages["evaluate"]
    assert "[default: 900.0; x>=0]" in pages["compile"] and "default" not in pages["resume"]


def test_version() -> None:
    assert vitrify("--version").stdout == f"vitrify {front.__version__}\n"


# compile --------------------------------------------------------------------------------------------------------------


def test_compile_says_what_it_does(here: Path) -> None:
    found = compile_()
    assert found.code == 0
    lines = found.stderr.splitlines()
    assert [re.match(r"\[(\d)/5\] (\w+)", line).groups() for line in lines if line.startswith("[")] == [  # type: ignore[union-attr]
        ("1", "split"), ("2", "preflight"), ("3", "search"), ("4", "certify"), ("5", "emit"),
    ]  # fmt: skip
    assert re.search(r"\d+ trials, best \d+\.\d %, \d+ calls.*, \w+ tokens", lines[-1])
    assert "\x1b" not in found.stdout + found.stderr
    assert "Desk on embedded, exact:team" in found.stdout and "wrote out.json" in found.stdout


def test_compile_json(here: Path) -> None:
    found = compile_("--json")
    summary = json.loads(found.stdout)
    assert found.code == 0 and not [line for line in found.stderr.splitlines() if not line.startswith("note: ")]
    artifact = read_artifact(here / "out.json")
    assert summary["sha256"] == artifact.sha256 and summary["artifact"] == "out.json"
    assert summary["evidence"]["n"] == artifact.evidence.n
    assert summary["calls"] == artifact.provenance.calls


def test_same_bytes_at_any_concurrency(here: Path) -> None:
    made = []
    for concurrency in (1, 7, 64):
        found = compile_("--concurrency", concurrency, "--run-dir", f"run{concurrency}", out=f"{concurrency}.json")
        assert found.code == 0, found.stderr
        made.append((here / f"{concurrency}.json").read_bytes())
    assert made[0] == made[1] == made[2]
    # Another seed is another compile, and 0 is a seed.
    compile_("--seed", 1, out="seed.json")
    assert (here / "seed.json").read_bytes() != made[0]


@pytest.mark.parametrize(
    "program", ["desk.py:make", "./desk.py:Desk", "package_of_test_cli.inner:Desk", "package_of_test_cli.inner:ready"]
)
def test_what_a_program_may_be(here: Path, program: str) -> None:
    package = here / "package_of_test_cli"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text((here / "desk.py").read_text() + "\nready = Desk()\n")
    try:
        assert compile_("--budget-calls", 200, program=program).code == 0
    finally:
        for name in [name for name in sys.modules if name.startswith("package_of_test_cli")]:
            del sys.modules[name]


def test_what_data_may_be(here: Path) -> None:
    """CSV, JSON Lines, JSON, Parquet, a folder of files and a saved dataset give the same rows, so the same bytes."""
    import datasets
    import pyarrow
    from pyarrow import parquet

    (here / "rows.json").write_text(json.dumps(ROWS))
    with (here / "rows.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), here / "rows.parquet")
    (here / "folder").mkdir()
    (here / "folder" / "train.jsonl").write_text((here / "rows.jsonl").read_text())
    datasets.Dataset.from_list(ROWS).save_to_disk(here / "saved")
    contents = set()
    for data in ("rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "folder", "saved"):
        found = compile_("--budget-calls", 200, data=data, out=f"{data}.out")
        assert found.code == 0, (data, found.stderr)
        contents.add((here / f"{data}.out").read_bytes())
    assert len(contents) == 1


def test_csv_has_numbers(here: Path) -> None:
    (here / "add.py").write_text(
        "import dspy\n"
        "class Add(dspy.Signature):\n"
        "    left: int = dspy.InputField()\n    sure: bool = dspy.InputField()\n    sum: float = dspy.OutputField()\n"
        "class Adder(dspy.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.add = dspy.Predict(Add)\n"
        "    def forward(self, left, sure):\n"
        "        assert type(left) is int and type(sure) is bool, (left, sure)\n"
        "        return self.add(left=left, sure=sure)\n"
        "def metric(example, pred, trace=None):\n"
        "    assert type(example.left) is int and type(example.sum) is float, example\n"
        "    return abs(pred.sum - example.sum) < 1\n"
    )
    lines = [f"{number},{str(number % 2 == 0).lower()},{number}.0" for number in range(40)]
    (here / "add.csv").write_text("\n".join(["left,sure,sum", *lines]) + "\n")
    found = compile_("--budget-calls", 200, program="add.py:Adder", data="add.csv", metric="add.py:metric")
    assert found.code == 0, found.stderr
    common = ("out.json", "--program", "add.py:Adder")
    ran = vitrify("run", *common, "--input", "add.csv")
    assert ran.code == 0 and all("sum" in json.loads(line) for line in ran.stdout.splitlines()), ran.stdout
    scored = vitrify("evaluate", *common, "--data", "add.csv", "--metric", "add.py:metric")
    assert scored.code == 0, scored.stderr


def test_own_test_set_start_and_teacher(here: Path) -> None:
    (here / "test.jsonl").write_text("\n".join(TICKETS[200:230]))
    found = compile_("--test", "test.jsonl", "--teacher", "desk.py:make", "--json")
    assert found.code == 0, found.stderr
    assert json.loads(found.stdout)["evidence"]["n"] == 30
    first = json.loads((here / "out.json").read_text())
    assert first["provenance"]["rows"]["test"] == 30
    again = compile_("--start", "out.json", "--test", "test.jsonl", "--instructions", "0", "--json", out="again.json")
    assert again.code == 0, again.stderr
    second = json.loads((here / "again.json").read_text())
    # What was found is where the second search begins: it isn't worse on the same test.
    assert second["evidence"]["compiled"] >= first["evidence"]["compiled"] - 0.15


@pytest.mark.parametrize("metric", ["desk.py:exactly", "desk.py:feedback", "f1:team", "contains:team"])
def test_what_a_metric_may_be(here: Path, metric: str) -> None:
    assert compile_("--budget-calls", 200, metric=metric).code == 0
    assert vitrify("evaluate", "out.json", "--data", "rows.jsonl", "--metric", metric).code == 0


def test_a_metric_that_asks_a_model(here: Path) -> None:
    """A judge's calls are metered like any other, and kept."""
    with ScriptedServer(Answers(ROWS)) as server:
        at = ("--api-base", server.url, "--run-dir", "run", "--budget-calls", 600)
        found = compile_(*at, lm="any", metric="desk.py:judged")
        assert found.code == 0, found.stderr
        asked = [json.dumps(body) for body in server.bodies]
        judged = [text for text in asked if "## same ##" in text]
        assert judged and len(asked) == len(set(asked)) <= 600
        made = json.loads((here / "out.json").read_text())
        assert made["provenance"]["calls"] == len(asked)
        again = compile_(*at, lm="any", metric="desk.py:judged", out="again.json")
        assert again.code == 0 and len(server.requests) == len(asked)
        assert (here / "again.json").read_bytes() == (here / "out.json").read_bytes()
        scored = vitrify(
            "evaluate", "out.json", "--data", "rows.jsonl", "--metric", "desk.py:judged", "--api-base", server.url
        )
        assert scored.code == 0, scored.stderr
        assert len(server.requests) > len(asked)


def test_the_request_is_what_the_options_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option of compile reaches the budget or the options of the compile."""
    asked: list[CompileRequest] = []

    def take(request: CompileRequest, *_: object) -> None:
        asked.append(request)
        raise KeyboardInterrupt

    monkeypatch.setattr("vitrify.compiling.compile_request", take)
    limits = (
        "--budget-seconds",
        4,
        "--budget-prompt-calls",
        5,
        "--budget-task-tokens",
        6,
        "--budget-task-dollars",
        0.5,
    )
    calls = ("--concurrency", 3, "--patience", 7, "--hedge", "--no-cache", "--price", "1,2")
    assert compile_(*limits, *calls).code == 130 and compile_().code == 130
    budget = front.Budget(seconds=4, prompt=front.Budget(calls=5), task=front.Budget(tokens=6, dollars=0.5))
    assert asked[0].budget() == budget
    assert asked[0].options() == front.Options(
        concurrency=3, patience=7, hedge=True, cache=False, instructions=2, demo_sets=2, max_demos=4, price=(1, 2)
    )
    assert asked[1].budget() == front.Budget()
    assert asked[1].options() == front.Options(instructions=2, demo_sets=2, max_demos=4)


# run ------------------------------------------------------------------------------------------------------------------


def test_run_one(artifact: Path) -> None:
    found = vitrify("run", artifact, "-i", "message=My parcel is late")
    assert found.code == 0 and re.fullmatch(r"team: \w+\n", found.stdout)
    as_json = vitrify("run", artifact, "-i", "message=My parcel is late", "--json")
    assert json.loads(as_json.stdout)["team"] == found.stdout.split()[1]


def test_run_rows_in_order(here: Path, artifact: Path) -> None:
    rows = [*ROWS[:3], {"nothing": 1}, *ROWS[3:30]]
    (here / "some.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = vitrify("run", artifact, "--input", "some.jsonl", "--concurrency", 4)
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    assert found.code == 1 and len(lines) == len(rows)
    assert "message" in lines[3]["error"] and "1 row failed" in found.sentence
    program = front.load(artifact)
    assert [line["team"] for line in lines[4:]] == [program(message=row["message"]).team for row in ROWS[3:30]]


def test_run_streams(here: Path, artifact: Path) -> None:
    """A row's answer comes before the next row is asked for."""
    child = subprocess.Popen(
        [*COMMAND, "run", str(artifact), "--input", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None and child.stdout is not None
    for row in ROWS[:2]:
        child.stdin.write(json.dumps(row) + "\n")
        child.stdin.flush()
        assert "team" in json.loads(child.stdout.readline())
    child.stdin.close()
    assert child.stdout.read() == "" and child.wait(20) == 0
    child.stdout.close()


def test_run_stops_at_a_broken_line(artifact: Path) -> None:
    found = process("run", artifact, "--input", "-", stdin=f"{TICKETS[0]}\n\n{TICKETS[1][:20]}\n{TICKETS[2]}\n")
    assert found.returncode == 2 and len(found.stdout.splitlines()) == 1
    assert "stdin, line 3" in found.stderr and "Traceback" not in found.stderr


def test_run_shows_what_no_terminal_can(artifact: Path) -> None:
    with ScriptedServer(lambda body: "[[ ## team ## ]]\nstore \ud800") as server:
        at = ("--input", "-", "--lm", "any", "--api-base", server.url)
        found = process("run", artifact, *at, stdin=TICKETS[0])
    assert found.returncode == 1 and "ud800" in json.loads(found.stdout)["error"] + found.stdout
    assert "bug" not in found.stderr


def test_run_into_head(here: Path, artifact: Path) -> None:
    command = f"{sys.executable} -m vitrify run {artifact} --input {HELPDESK / 'tickets.jsonl'} | head -1"
    found = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=False)
    assert len(found.stdout.splitlines()) == 1 and found.stderr == ""


def test_run_a_program_that_needs_its_class(here: Path) -> None:
    assert compile_(program="desk.py:Looped", out="looped.json").code == 0
    refused = vitrify("run", "looped.json", "-i", "message=x")
    assert refused.code == 2 and "--program" in refused.sentence and "Looped" in refused.sentence
    found = vitrify("run", "looped.json", "-i", "message=x", "--program", "desk.py:Looped")
    assert found.code == 0 and found.stdout.startswith("team: ")


# evaluate -------------------------------------------------------------------------------------------------------------


def test_evaluate(here: Path, artifact: Path) -> None:
    found = vitrify("evaluate", artifact, "--data", "rows.jsonl", "--metric", "exact:team", "--csv", "table.csv")
    assert found.code == 0 and re.search(r"exact:team = \d+\.\d\d % on 60 rows, 0 failures", found.stdout)
    with (here / "table.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == 60
    assert [row["message"] for row in table] == [row["message"] for row in ROWS]
    assert [row["expected.team"] for row in table] == [row["team"] for row in ROWS]
    assert all(float(row["score"]) == (row["predicted.team"] == row["expected.team"]) for row in table)
    summary = json.loads(
        vitrify("evaluate", artifact, "--data", "rows.jsonl", "--metric", "exact:team", "--json").stdout
    )
    assert summary["n"] == 60 and summary["score"] == sum(float(row["score"]) for row in table) / 60


def test_evaluate_keeps_feedback_and_failures(here: Path, artifact: Path) -> None:
    def answer(body: dict[str, Any]) -> str:
        return "what?" if "parcel" in str(body["messages"][-1]) else Answers(ROWS)(body)

    with ScriptedServer(answer) as server:
        found = vitrify(
            "evaluate", artifact, "--data", "rows.jsonl", "--metric", "desk.py:feedback", "--csv", "table.csv",
            "--lm", "any", "--api-base", server.url,
        )  # fmt: skip
    assert found.code == 0, found.stderr
    with (here / "table.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    failed = [row for row in table if row["failure"]]
    assert failed and all("parcel" in row["message"] and row["score"] == "0.0" for row in failed)
    assert all(row["feedback"] for row in table if not row["failure"])


def test_dspy_evaluates_a_loaded_program(artifact: Path) -> None:
    program = front.load(artifact)
    examples = [dspy.Example(**row).with_inputs("message") for row in ROWS[:20]]

    def metric(example: Any, pred: Any, trace: Any = None) -> bool:
        return bool(example.team == pred.team)

    result = dspy.Evaluate(devset=examples, metric=metric, num_threads=2, display_progress=False)(program)
    right = sum(program(message=row["message"]).team == row["team"] for row in ROWS[:20])
    assert result.score == pytest.approx(100 * right / 20)

"""The examples: every program runs, and the help desk's data is what its README says."""

import importlib.util
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import dspy
import pytest
from dspy.utils import DummyLM

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
DATA = Path(os.environ.get("VITRIFY_DATA", ROOT.parent / "shared" / "data")) / "tasks"


def load(name: str) -> Iterator[ModuleType]:
    """Import examples/<name>/program.py from its path, and forget it afterwards."""
    alias = f"_example_{name}"
    spec = importlib.util.spec_from_file_location(alias, EXAMPLES / name / "program.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[alias] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[alias]


def rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        pytest.skip(f"{path} is missing: set VITRIFY_DATA to the folder that holds tasks/")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(program: Any, replies: list[dict[str, Any]], **inputs: Any) -> Any:
    """Run a program on scripted replies and check that it made as many calls as there are replies."""
    lm = DummyLM(replies, adapter=dspy.ChatAdapter())
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
        pred = program(**inputs)
    assert len(lm.history) == len(replies)
    return pred


@pytest.fixture(scope="module")
def helpdesk() -> Iterator[ModuleType]:
    yield from load("helpdesk")


@pytest.fixture(scope="module")
def banking77() -> Iterator[ModuleType]:
    yield from load("banking77")


@pytest.fixture(scope="module")
def gsm8k() -> Iterator[ModuleType]:
    yield from load("gsm8k")


@pytest.fixture(scope="module")
def hotpotqa() -> Iterator[ModuleType]:
    yield from load("hotpotqa")


@pytest.fixture(scope="module")
def tickets() -> list[dict[str, str]]:
    text = (EXAMPLES / "helpdesk" / "tickets.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


# --- helpdesk ---


def test_helpdesk_runs(helpdesk: ModuleType, tickets: list[dict[str, str]]) -> None:
    pred = run(helpdesk.Helpdesk(), [{"team": "store"}, {"urgency": "low"}], message=tickets[0]["message"])
    assert (pred.team, pred.urgency) == ("store", "low")


def test_helpdesk_tells_the_second_predictor_the_team(helpdesk: ModuleType) -> None:
    lm = DummyLM([{"team": "warranty"}, {"urgency": "high"}], adapter=dspy.ChatAdapter())
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
        helpdesk.Helpdesk()(message="It smokes.")
    asked = lm.history[1]["messages"][-1]["content"]
    assert "It smokes." in asked and "warranty" in asked


@pytest.mark.parametrize(
    ("team", "urgency", "score"),
    [("billing", "high", 1.0), ("billing", "low", 0.5), ("store", "high", 0.5), ("store", "low", 0.0)],
)
def test_routed(helpdesk: ModuleType, team: str, urgency: str, score: float) -> None:
    example = dspy.Example(message="m", team="billing", urgency="high").with_inputs("message")
    pred = dspy.Prediction(team=team, urgency=urgency)
    plain, strict = helpdesk.routed(example, pred), helpdesk.routed(example, pred, trace=[])
    assert plain == score and type(plain) is float
    assert strict is (score == 1.0)


def test_tickets_have_the_programs_labels(helpdesk: ModuleType, tickets: list[dict[str, str]]) -> None:
    assert all(list(row) == ["message", "team", "urgency"] for row in tickets)
    assert {row["team"] for row in tickets} == set(get_args(helpdesk.Team))
    assert {row["urgency"] for row in tickets} == set(get_args(helpdesk.Urgency)) == {"low", "normal", "high"}


def test_tickets_are_balanced(tickets: list[dict[str, str]]) -> None:
    assert len(tickets) == 360
    teams = Counter(row["team"] for row in tickets)
    assert len(teams) == 8 and all(40 <= count <= 50 for count in teams.values())
    # No team gives the urgency away, and no urgency can be had by always answering one thing.
    pairs = Counter((row["team"], row["urgency"]) for row in tickets)
    assert len(pairs) == 24 and min(pairs.values()) >= 8
    assert max(Counter(row["urgency"] for row in tickets).values()) < 0.55 * len(tickets)


def test_tickets_are_shuffled(tickets: list[dict[str, str]]) -> None:
    assert all(len({row["team"] for row in tickets[start : start + 60]}) == 8 for start in range(0, 360, 60))


def test_tickets_have_no_near_duplicates(tickets: list[dict[str, str]]) -> None:
    words = [frozenset(re.findall(r"\w+", row["message"].casefold())) for row in tickets]
    close = [(a, b) for a, b in combinations(words, 2) if len(a & b) / len(a | b) >= 0.6]
    assert not close


def test_tickets_are_clean(tickets: list[dict[str, str]]) -> None:
    for row in tickets:
        message = row["message"]
        assert message == message.strip() and 4 <= len(message.split()) <= 80, message
        assert not re.search(r"@|https?:|www\.|\d[\d ]{6,}\d", message), message


def test_label_names_alone_do_not_answer(tickets: list[dict[str, str]]) -> None:
    named = [row for row in tickets if row["team"].rstrip("s") in row["message"].casefold()]
    assert 0 < len(named) < 0.15 * len(tickets)


# --- banking77 ---


def test_banking77_runs(banking77: ModuleType) -> None:
    program = banking77.Intents()
    pred = run(program, [{"intent": "reverted_card_payment?"}], message="Where did my payment go?")
    assert pred.intent == "reverted_card_payment?"


@pytest.mark.parametrize("file", ["banking77_train.jsonl", "banking77_test.jsonl"])
def test_banking77_has_the_labels_of_the_data(banking77: ModuleType, file: str) -> None:
    found = rows(DATA / file)
    labels = get_args(banking77.Intent)
    assert len(labels) == len(set(labels)) == 77
    assert {row["intent"] for row in found} == set(labels)
    assert run(banking77.Intents(), [found[0]], message=found[0]["message"]).intent == found[0]["intent"]


# --- gsm8k ---


def test_gsm8k_runs(gsm8k: ModuleType) -> None:
    pred = run(gsm8k.MathWord(), [{"reasoning": "6 times 7", "target": "42"}], input="What is 6 times 7?")
    assert (pred.reasoning, pred.target) == ("6 times 7", "42")


def test_gsm8k_runs_on_the_data(gsm8k: ModuleType) -> None:
    row = rows(DATA / "gsm8k_train.jsonl")[0]
    assert {"input", "target", "rationale"} <= set(row)
    pred = run(gsm8k.MathWord(), [{"reasoning": row["rationale"], "target": row["target"]}], input=row["input"])
    assert pred.target == row["target"]


# --- hotpotqa ---

PARAGRAPHS = [
    {"title": "Pear", "sentences": ["A pear is a fruit.", " It is green."]},
    {"title": "Plum", "sentences": ["A plum is a fruit.", " It is blue."]},
    {"title": "Oak", "sentences": ["An oak is a tree."]},
]


@pytest.mark.parametrize(
    ("titles", "expected"),
    [
        (["Oak", "Pear"], ["Oak", "Pear"]),
        (["  oak", '"PEAR"'], ["Oak", "Pear"]),
        (["Oak", "Oak"], ["Oak", "Plum"]),
        (["Birch", "Oak"], ["Oak", "Plum"]),
        (["Pear", "Plum", "Oak"], ["Pear", "Plum"]),
        ([], ["Plum", "Pear"]),
    ],
)
def test_hotpotqa_survives_wrong_titles(hotpotqa: ModuleType, titles: list[str], expected: list[str]) -> None:
    replies = [{"search_query": "plum blue"}, {"titles": json.dumps(titles)}, {"answer": "blue"}]
    pred = run(hotpotqa.TwoHop(), replies, question="Which colour has the plum?", paragraphs=PARAGRAPHS)
    assert pred.answer == "blue"
    assert pred.titles == expected


def test_hotpotqa_with_too_few_paragraphs(hotpotqa: ModuleType) -> None:
    replies: list[dict[str, Any]] = [{"search_query": "q"}, {"titles": '["Pear"]'}, {"answer": "unknown"}]
    pred = run(hotpotqa.TwoHop(), replies, question="Why?", paragraphs=PARAGRAPHS[:1])
    assert pred.titles == ["Pear"]


def test_hotpotqa_runs_on_the_data(hotpotqa: ModuleType) -> None:
    row = rows(DATA / "hotpotqa100.jsonl")[0]
    titles = list(dict.fromkeys(title for title, _ in row["supporting_facts"]))
    replies = [{"search_query": "q"}, {"titles": json.dumps(titles)}, {"answer": row["answer"]}]
    pred = run(hotpotqa.TwoHop(), replies, question=row["question"], paragraphs=row["paragraphs"])
    assert pred.titles == titles
    assert pred.answer == row["answer"]


def test_the_readme_names_every_program() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    programs = sorted(path.relative_to(ROOT).as_posix() for path in EXAMPLES.glob("*/program.py"))
    assert len(programs) == 4
    assert all(f"vitrify compile {program}:" in text for program in programs)

"""What runs share: replies that another run has paid for, and calls that two candidates have in common."""

import itertools
import json
from pathlib import Path
from typing import Any

import dspy
import pytest

import vitrify

from .commands import Answers
from .desks import ROOT, TICKETS, Desk, Route, small
from .server import ScriptedServer

ROWS = [json.loads(line) for line in (ROOT / "examples/helpdesk/tickets.jsonl").read_text().splitlines()][:60]


def compile_(server: ScriptedServer, run_dir: Path, program: Any = None, **more: Any) -> vitrify.Artifact:
    options = small(api_base=server.url, api_key="k", **more)
    return vitrify.compile(program or Desk(), TICKETS[:60], "exact:team", lm="any", run_dir=run_dir, options=options)


def test_another_run_pays_for_nothing_that_one_has_paid_for(tmp_path: Path) -> None:
    with ScriptedServer(Answers(ROWS)) as server:
        first = compile_(server, tmp_path / "first")
        paid = len(server.requests)
        again = compile_(server, tmp_path / "again")
        assert paid == len(server.requests)
        assert first.to_bytes() == again.to_bytes()  # what a compile takes is counted logically, whoever answered
        compile_(server, tmp_path / "own", cache=False)
        assert 2 * paid == len(server.requests)
    text = (tmp_path / "again" / "ledger.jsonl").read_text()
    assert '"kind": "shared"' in text and '"kind": "attempt"' not in text
    with ScriptedServer(Answers(ROWS)) as elsewhere:
        compile_(elsewhere, tmp_path / "elsewhere")
        assert paid == len(elsewhere.requests)  # another endpoint is another model


class Answer(dspy.Signature):
    """Write a reply to the customer."""

    message: str = dspy.InputField()
    team: str = dspy.InputField()
    text: str = dspy.OutputField()


class Two(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.route = dspy.Predict(Route)
        self.answer = dspy.Predict(Answer)

    def forward(self, message: str) -> dspy.Prediction:
        team = self.route(message=message).team
        return dspy.Prediction(team=team, text=self.answer(message=message, team=team).text)


def test_a_candidate_that_changes_the_second_predictor_pays_only_for_that(tmp_path: Path) -> None:
    with ScriptedServer(Answers(ROWS)) as server:
        compile_(server, tmp_path / "run", Two(), instructions=3, demo_sets=0)
        bodies = [json.dumps(body, sort_keys=True) for body in server.bodies]
        assert len(bodies) == len(set(bodies))
    outcomes = [
        json.loads(line) for line in (tmp_path / "run" / "ledger.jsonl").read_text().splitlines() if '"outcome"' in line
    ]
    assert sum(outcome["calls"] for outcome in outcomes) > len(bodies)  # each needs two, and many are shared


@pytest.mark.parametrize("concurrency", [1, 4])
def test_requests_with_a_common_prefix_are_neighbours(tmp_path: Path, concurrency: int) -> None:
    with ScriptedServer(Answers(ROWS)) as server:
        compile_(server, tmp_path / "run", concurrency=concurrency)
        prefixes = [json.dumps(body["messages"][:-1]) for body in server.bodies]
    changes = sum(a != b for a, b in itertools.pairwise(prefixes))
    # Shuffled, nearly every request would follow one with another prefix.
    assert changes < len(prefixes) / 3

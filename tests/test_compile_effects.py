"""Tools and retrieval of a compiled program: what is marked is made once, and not again after an interruption."""

import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import dspy
import pytest
from vitrify.programs.lm import LMError

import vitrify

from .desks import TICKETS, Counting, Desk, small

SEARCHES: "Counter[str]" = Counter()
BOOKED: list[str] = []
LOCK = threading.Lock()


@vitrify.cached
def search(query: str) -> list[str]:
    with LOCK:
        SEARCHES[query] += 1
    return [query.upper()]


@vitrify.once
def book(message: str) -> int:
    with LOCK:
        BOOKED.append(message)
        return len(BOOKED)


class Booking(Desk):
    def forward(self, message: str) -> dspy.Prediction:
        found = search(message[:12])
        try:
            number = book(message)
        except ValueError:
            number = 0
        return dspy.Prediction(team=super().forward(message=message).team, found=found, number=number)


def compile_(model: Any, run_dir: Path) -> vitrify.Artifact:
    return vitrify.compile(
        Booking(), TICKETS[:100], "exact:team", lm=model, run_dir=run_dir, options=small(concurrency=3)
    )


def test_marked_calls_are_made_once_over_an_interruption(tmp_path: Path) -> None:
    SEARCHES.clear()
    BOOKED.clear()
    with pytest.raises((LMError, vitrify.WorkError)):
        compile_(Counting(dies_at=150), tmp_path / "run")
    before = len(BOOKED)
    assert before > 100
    artifact = compile_(Counting(), tmp_path / "run")
    assert max(SEARCHES.values()) == 1
    assert len(BOOKED) > before
    outcomes = {
        (line["candidate"], line["example"])
        for line in map(json.loads, (tmp_path / "run" / "ledger.jsonl").read_text().splitlines())
        if line["kind"] == "outcome"
    }
    # As often as there are evaluations: those before the interruption weren't made again.
    assert len(outcomes) == len(BOOKED)
    free = compile_(Counting(), tmp_path / "other")
    assert free.predictors == artifact.predictors


def test_outside_of_a_compile_they_are_plain_functions() -> None:
    BOOKED.clear()
    assert [1, 2] == [book("a"), book("a")]
    assert ["X"] == search("x")

"""A compile that is interrupted leaves its incumbent, uncertified, and a run that goes on."""

import _thread
from pathlib import Path
from typing import Any, get_args

import pytest
from vitrify.programs.artifact import read_artifact
from vitrify.programs.lm import Reply, Request

import vitrify

from .desks import TICKETS, Counting, Desk, Team, small


class Interrupting(Counting):
    """The embedded model; at request number `at` somebody presses Ctrl-C."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def complete(self, request: Request) -> Reply:
        reply = super().complete(request)
        if len(self.asked) == self.at:
            _thread.interrupt_main()
        return reply


def compile_(model: Any, run_dir: Path, **more: Any) -> vitrify.Artifact:
    return vitrify.compile(
        Desk(), TICKETS[:120], "exact:team", lm=model, run_dir=run_dir, options=small(concurrency=2, **more)
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> vitrify.Artifact:
    return compile_(Counting(), tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("at", [1, 30, 300])
def test_the_incumbent_is_written_uncertified_and_the_run_goes_on(
    tmp_path: Path, whole: vitrify.Artifact, at: int
) -> None:
    model = Interrupting(at)
    with pytest.raises(KeyboardInterrupt) as stopped:
        compile_(model, tmp_path / "run")
    told: Any = stopped.value
    assert tmp_path / "run" == told.run_dir
    left = read_artifact(told.uncertified)
    assert not left.evidence.certified and not left.evidence.sealed and not left.evidence.improved
    assert not left.reproducible and left.selection.reason.startswith("uncertified")
    assert "uncertified" in str(left.evidence)
    if at > 100:
        assert left.evidence.n > 0 and "select rows" in str(left.evidence)
    with vitrify.load(told.uncertified) as program:
        assert program(message="where is my parcel?").team in get_args(Team)
    again = Counting()
    assert whole.to_bytes() == compile_(again, tmp_path / "run").to_bytes()
    assert not set(again.asked) & set(model.asked[: at - 2])  # what was answered isn't asked for again


def test_more_budget_goes_on(tmp_path: Path) -> None:
    def run(calls: int) -> tuple[vitrify.Artifact, int]:
        model = Counting()
        artifact = vitrify.compile(
            Desk(), TICKETS[:120], "exact:team", lm=model, run_dir=tmp_path / "run",
            budget=vitrify.Budget(calls=calls), options=small(concurrency=2),
        )  # fmt: skip
        return artifact, len(model.asked)

    little, paid = run(330)
    more, added = run(600)
    assert little.selection.evaluations < more.selection.evaluations
    assert added > 0 and paid + added <= 600

"""The default strategy: which traces become demonstrations, what the sets cover, what the proposer is shown."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import dspy
import pytest
from vitrify.compiler.data import Example
from vitrify.compiler.outcome import Cost, Malformed, Outcome, Scored
from vitrify.compiler.strategy import Needs, View
from vitrify.programs.candidate import Candidate
from vitrify.programs.program import lower_program
from vitrify.teleprompters.bootstrap import bootstrap, demonstration_sets
from vitrify.teleprompters.grounded import Grounded
from vitrify.teleprompters.propose import TIPS, propose


class Route(dspy.Signature):
    """Route a message."""

    message: str = dspy.InputField()
    team: Literal["a", "b", "c"] = dspy.OutputField()


class Two(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.route = dspy.Predict(Route)
        self.reply = dspy.Predict("message, team -> answer")

    def forward(self, message: str) -> dspy.Prediction:
        return self.reply(message=message, team=self.route(message=message).team)


TRAIN = tuple(Example({"message": f"m{i}"}, {"team": "abc"[i % 3]}, row=i + 1) for i in range(24))


class Runner:
    """Answers with a trace in which the routing is right on every other row, and writes what it was asked."""

    def __init__(self, right: Callable[[int], float] = lambda row: float(row % 2 == 0)) -> None:
        self.right = right
        self.runs: list[tuple[Candidate, tuple[Example, ...]]] = []
        self.asked: list[dict[str, Any]] = []
        self.written: Callable[[int], Any] = lambda number: dspy.Prediction(
            proposed_instruction=f"Do it, way {number}."
        )

    def run(
        self, candidate: Candidate, examples: Sequence[Example], *, traced: bool = False, teacher: bool = False
    ) -> list[Outcome]:
        assert traced
        assert teacher
        self.runs.append((candidate, tuple(examples)))
        outcomes: list[Outcome] = []
        for example in examples:
            if example.row == 1:
                outcomes.append(Malformed("no values", Cost()))
                continue
            team = example.labels["team"]
            steps = (
                ("route", {"message": example.inputs["message"]}, {"team": team}),
                ("reply", {"message": example.inputs["message"], "team": team}, {"answer": f"to {team}"}),
            )
            outcomes.append(Scored(self.right(example.row), None, None, steps, Cost()))
        return outcomes

    def follow(
        self,
        candidate: Candidate,
        examples: Sequence[Example],
        then: Callable[[Example, Outcome], Candidate | None],
        **more: Any,
    ) -> list[tuple[Outcome, Outcome | None]]:
        told = []
        for example, outcome in zip(examples, self.run(candidate, examples, **more), strict=True):
            chosen = then(example, outcome)
            told.append((outcome, None if chosen is None else self.run(chosen, [example], **more)[0]))
        return told

    def ask(self, module: Any, asked: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[Any]:
        answers = []
        for inputs, config in asked:
            self.asked.append({**inputs, **config})
            answers.append(self.written(len(self.asked)))
        return answers


def view(runner: Runner, **more: Any) -> View:
    spec = lower_program(Two())
    settings: dict[str, Any] = {"needs": Needs(instructions=4, demo_sets=4, max_demos=6), **more}
    return View(spec, "class Two: ...", spec.baseline, TRAIN, "exact:team", runner, 0, **settings)


def test_accepted_traces_are_demonstrations_of_every_predictor_in_them() -> None:
    runner = Runner()
    accepted = bootstrap(view(runner))
    assert {2, 4, 6} <= {item.example.row for item in accepted}
    first = accepted[0]
    assert {"message": "m1", "team": "b", "answer": "to b"} == dict(first.demos["reply"][0])
    assert [item.example.row for item in accepted] == sorted(item.example.row for item in accepted)


def test_rows_that_failed_are_tried_again_with_other_rows_shown() -> None:
    runner = Runner()
    bootstrap(view(runner))
    for candidate, examples in runner.runs[1:]:
        shown = {demo["message"] for demo in candidate["route"].demos}
        assert shown
        assert not shown & {example.inputs["message"] for example in examples}
        assert () == candidate["reply"].demos  # no label supplies its answer


def test_an_unreadable_answer_is_never_a_demonstration() -> None:
    accepted = bootstrap(view(Runner(right=lambda row: 1.0)))
    assert 1 not in {item.example.row for item in accepted}


@pytest.mark.parametrize(
    ("right", "accept", "rows"),
    [
        (lambda row: 1.0 if row <= 8 else 0.5, None, set(range(2, 9))),
        (lambda row: 1.0 if row <= 8 else 0.5, 0.5, set(range(2, 25))),
        (lambda row: row / 100, None, set(range(16, 25))),
        (lambda row: 0.0, None, set()),
    ],
)
def test_what_is_accepted(right: Callable[[int], float], accept: float | None, rows: set[int]) -> None:
    needs = Needs(max_demos=6, accept=accept)
    assert rows == {item.example.row for item in bootstrap(view(Runner(right), needs=needs))}


def test_sets_cover_the_kinds_of_answer_and_differ() -> None:
    runner = Runner()
    seen = view(runner)
    sets = demonstration_sets(replace(seen, accepted=bootstrap(seen)))
    assert {"route", "reply"} == set(sets)
    assert 4 == len(sets["route"])
    contents = [tuple(demo["message"] for demo in level.demos) for level in sets["route"]]
    assert len(set(contents)) == len(contents)
    for level in sets["route"]:
        assert len(level.demos) <= 6
        if len(level.demos) >= 3:
            assert {"a", "b", "c"} == {demo["team"] for demo in level.demos}
        assert len(level.rows) == len(level.demos)
    assert {"bootstrap", "labelled"} == {level.provenance.method for level in sets["route"]}
    assert {"bootstrap"} == {level.provenance.method for level in sets["reply"]}


def test_one_demonstration_of_each_of_many_kinds() -> None:
    labels = [f"kind{i}" for i in range(20)]

    class Many(dspy.Signature):
        message: str = dspy.InputField()
        kind: Literal[tuple(labels)] = dspy.OutputField()  # type: ignore[valid-type]

    spec = lower_program(dspy.Predict(Many))
    train = tuple(Example({"message": f"m{i}"}, {"kind": labels[i % 20]}, row=i + 1) for i in range(60))
    seen = View(spec, "", spec.baseline, train, "exact:kind", Runner(), 0, Needs(max_demos=4, demo_sets=3))
    largest = max(demonstration_sets(seen)["self"], key=lambda level: len(level.demos))
    assert set(labels) == {demo["kind"] for demo in largest.demos}


def test_the_same_seed_makes_the_same_sets() -> None:
    first, second = (demonstration_sets(view(Runner())) for _ in range(2))
    assert first == second
    assert first != demonstration_sets(replace(view(Runner()), seed=1))


def test_proposals_are_grounded_in_code_fields_and_examples() -> None:
    runner = Runner()
    seen = view(runner)
    levels = propose(replace(seen, accepted=bootstrap(seen)))
    assert 8 == len(runner.asked)
    asked = runner.asked[0]
    assert "class Two" in asked["program_code"]
    assert "Step `route`" in asked["step"]
    assert "- team:" in asked["step"]
    assert "Route a message." == asked["current_instruction"]
    assert "message: m1\nteam: b" in asked["examples"]
    assert "answer: to b" in runner.asked[4]["examples"]
    assert [0, 1, 2, 3] == [one["rollout_id"] for one in runner.asked[:4]]
    assert [tip for _, tip in TIPS[:4]] == [one["tip"] for one in runner.asked[:4]]
    assert ["Do it, way 1.", "Do it, way 2.", "Do it, way 3.", "Do it, way 4."] == [x.text for x in levels["route"]]
    assert all(level.provenance.method == "grounded" for level in levels["route"])


def test_proposals_wait_for_the_traces_only_where_labels_do_not_say_it_all() -> None:
    class Coming(Sequence[Any]):
        looked = 0

        def __len__(self) -> int:
            return 0

        def __getitem__(self, index: Any) -> Any:
            self.looked += 1
            raise IndexError(index)

    coming = Coming()
    spec = lower_program(dspy.Predict(Route))
    propose(View(spec, "", spec.baseline, TRAIN, "exact:team", Runner(), 0, accepted=coming))
    assert 0 == coming.looked
    propose(replace(view(Runner()), accepted=coming))  # nobody has labelled what `reply` answers
    assert coming.looked > 0


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("  Do it.  ", "Do it."),
        ('"Do it."', "Do it."),
        ("```\nDo it.\n```", "Do it."),
        ("```text\nDo it.\n```", "Do it."),
        ("Route a message.", None),
        ("", None),
        ("x" * 7000, None),
        (None, None),
    ],
)
def test_what_a_model_writes_is_cleaned_or_dropped(written: str | None, kept: str | None) -> None:
    runner = Runner()
    runner.written = lambda number: None if written is None else dspy.Prediction(proposed_instruction=written)
    levels = propose(view(runner))
    assert ([] if kept is None else [kept]) == [level.text for level in levels["route"]]


def test_the_default_strategy_is_all_of_it() -> None:
    strategy, runner = Grounded(), Runner()
    seen = view(runner)
    accepted = strategy.bootstrap(seen)
    assert accepted == bootstrap(view(Runner()))
    assert set(strategy.demonstrations(replace(seen, accepted=accepted))) == set(strategy.instructions(seen))


def test_labels_serve_a_chain_of_thought_whose_reasoning_they_lack() -> None:
    spec = lower_program(dspy.ChainOfThought(Route))
    seen = View(spec, "", spec.baseline, TRAIN, "exact:team", Runner(), 0, Needs(max_demos=6, demo_sets=2))
    (levels,) = demonstration_sets(seen).values()
    assert {"message", "team"} == set(levels[0].demos[0])


def test_labels_that_a_field_cannot_have_are_not_shown() -> None:
    spec = lower_program(dspy.Predict(Route))
    train = tuple(Example({"message": f"m{i}"}, {"team": "abcz"[i % 4]}, row=i + 1) for i in range(24))
    seen = View(spec, "", spec.baseline, train, "exact:team", Runner(), 0, Needs(max_demos=24, demo_sets=2))
    assert {"a", "b", "c"} == {demo["team"] for level in demonstration_sets(seen)["self"] for demo in level.demos}


def test_a_trace_that_contradicts_the_rows_label_is_no_demonstration() -> None:
    class Lucky(Runner):
        def run(self, candidate: Candidate, examples: Sequence[Example], **more: Any) -> list[Outcome]:
            steps = (
                ("route", {"message": "m"}, {"team": "a"}),
                ("reply", {"message": "m", "team": "a"}, {"answer": "x"}),
            )
            return [Scored(1.0, None, None, steps, Cost()) for _ in examples]

    accepted = bootstrap(view(Lucky()))
    assert len(TRAIN) == len(accepted)
    assert 8 == sum("route" in item.demos for item in accepted)
    assert len(TRAIN) == sum("reply" in item.demos for item in accepted)


def test_a_model_that_copies_what_was_not_supplied_has_written_nothing() -> None:
    class Copying(Runner):
        def run(self, candidate: Candidate, examples: Sequence[Example], **more: Any) -> list[Outcome]:
            said = "Not supplied for this particular example. "
            steps = (("reply", {"message": "m", "team": "a"}, {"answer": said}),)
            return [Scored(1.0, None, None, steps, Cost()) for _ in examples]

    assert all(not item.demos for item in bootstrap(view(Copying())))

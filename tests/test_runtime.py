"""vitrify.load and what it returns: inputs, predictions, errors, threads, the user's own types, DSPy's evaluation."""

import asyncio
import copy
import enum
import json
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import dspy
import pydantic
import pytest
from dspy.evaluate.metrics import answer_exact_match
from vitrify.programs.artifact import Artifact
from vitrify.programs.lm import Capabilities, LMError, Request
from vitrify.programs.models import Model
from vitrify.programs.prediction import Prediction
from vitrify.programs.program import lower_program
from vitrify.programs.runtime import Unreadable, run_artifact
from vitrify.signatures.errors import ArtifactError, RequestError, WorkError

import vitrify
from tests.sealing import load_source
from tests.test_sealed_equals_bound import HEAD, Scripted, frozen

TYPED = (
    HEAD
    + '''
class S(dspy.Signature):
    """Do it."""
    q: str = dspy.InputField()
    color: Color = dspy.OutputField()
    item: Item = dspy.OutputField()
    team: Literal["a", "b"] = dspy.OutputField()

class P(dspy.Module):
    def __init__(self):
        super().__init__()
        self.first = dspy.Predict(S)
    def forward(self, q, limit=3):
        out = self.first(q=q)
        return dspy.Prediction(color=out.color, item=out.item, team=out.team, name=out.item.name, limit=limit)
'''
)
REPLY = (
    '[[ ## color ## ]]\nred\n\n[[ ## item ## ]]\n{"name": "n", "tags": ["t"], "price": 2}\n\n[[ ## team ## ]]\na\n\n'
    "[[ ## completed ## ]]"
)


class Color(enum.Enum):
    RED = "red"


class Item(pydantic.BaseModel):
    name: str
    tags: list[str]
    price: float


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    program = load_source(TYPED, tmp_path_factory.mktemp("typed")).P()
    spec = lower_program(program)
    return frozen(program, spec, spec.baseline, Capabilities())


def running(artifact: Artifact, *replies: str | None, **given: Any) -> tuple[Any, Scripted]:
    lm = Scripted(list(replies) or [REPLY], Capabilities())
    return run_artifact(artifact, Model(lm), **given), lm


# Inputs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "inputs", "message"),
    [
        ((), {}, "the input 'q' is missing: P takes q, limit"),
        (
            (),
            {"q": "x", "limt": 1},
            "the input 'limt' is none of the program's: P takes q, limit; did you mean `limit`?",
        ),
        (("x",), {}, "`inputs are given by name`, got 'x' without one: P takes q, limit"),
        ((), {"q": "\ud800"}, "first: an input can't be written .*valid Unicode"),
        ((), {"q": "<<CUSTOM-TYPE-START-IDENTIFIER>>"}, "load it with program="),
        ((), {"q": [1, 2]}, "first: an input can't be written"),
    ],
)
def test_wrong_inputs_are_request_errors(typed: Artifact, args: Any, inputs: Any, message: str) -> None:
    program, lm = running(typed)
    runs: list[Callable[[], Any]] = [
        lambda: program(*args, **inputs),
        lambda: asyncio.run(program.acall(*args, **inputs)),
    ]
    for run in runs:
        with pytest.raises(RequestError, match=message.replace("?", r"\?")):
            run()
    assert [] == lm.requests


def test_defaults(typed: Artifact) -> None:
    program, _ = running(typed)
    assert 3 == program(q="x").limit
    assert [1] == program(q="x", limit=[1]).limit
    assert "<SealedRun of P(q, limit)>" == repr(program)


# Predictions ---------------------------------------------------------------------------------------------------------


def test_a_prediction_behaves_as_dspys_own(typed: Artifact) -> None:
    program, lm = running(typed)
    mine = program(q="x")
    theirs = dspy.Prediction(**mine)
    assert "a" == mine.team == mine["team"] == mine.get("team")
    assert "n" == mine.name == mine.item.name
    assert 1 == mine.get("other", 1)
    for ask in (list, len, lambda p: p.keys(), lambda p: p.values(), lambda p: p.items(), repr, lambda p: p.toDict()):
        assert ask(theirs) == ask(mine)
    assert "team" in mine
    assert "other" not in mine
    assert {"name": "n", "tags": ["t"], "price": 2.0} == mine.toDict()["item"]
    with pytest.raises(AttributeError, match="has no field 'other'; it has color, item, team, name, limit"):
        _ = mine.other
    with pytest.raises(KeyError):
        mine["other"]
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert {lm.name: usage} == mine.get_lm_usage()
    assert 1 == mine.calls


def test_a_prediction_is_changed_copied_and_compared() -> None:
    one = Prediction({"a": 1, "calls": "field"})
    assert "field" == one.calls
    one.a = 2
    assert 2 == one["a"]
    one["b"] = 3
    assert 3 == one.b
    del one["b"]
    assert one == copy.deepcopy(one) == copy.copy(one) == pickle.loads(pickle.dumps(one))
    assert hash(one) == hash(copy.copy(one))
    assert one != Prediction({"a": 1}) and one != {"a": 2}


# Failures ------------------------------------------------------------------------------------------------------------


def test_a_reply_that_cannot_be_read_is_said_after_the_second_request(typed: Artifact) -> None:
    program, lm = running(typed, "nonsense")
    with pytest.raises(Unreadable, match="first: the model's reply has no readable values"):
        program(q="x")
    with pytest.raises(WorkError):
        asyncio.run(program.acall(q="x"))
    assert 4 == len(lm.requests)


class Failing(Scripted):
    def complete(self, request: Request) -> Any:
        raise LMError("the server is down", cause="server", status=500)


@pytest.mark.parametrize("own", [False, True])
def test_lm_errors_are_lm_errors(typed: Artifact, tmp_path: Path, own: bool) -> None:
    program = load_source(TYPED, tmp_path).P() if own else None
    loaded = run_artifact(typed, Model(Failing([], Capabilities())), program=program)
    runs: list[Callable[[], Any]] = [lambda: loaded(q="x"), lambda: asyncio.run(loaded.acall(q="x"))]
    for run in runs:
        with pytest.raises(LMError, match="^the server is down$") as caught:
            run()
        assert ("server", 500, True) == (caught.value.cause, caught.value.status, caught.value.retryable)


def test_an_item_that_is_not_there_is_a_work_error(tmp_path: Path) -> None:
    source = TYPED.replace("name=out.item.name", "name=out.item.tags[7]")
    program = load_source(source, tmp_path).P()
    spec = lower_program(program)
    loaded, _ = running(frozen(program, spec, spec.baseline, Capabilities()))
    with pytest.raises(WorkError, match="reads item 7 of .*IndexError"):
        loaded(q="x")


# Threads, loops, batches ---------------------------------------------------------------------------------------------


def test_acall_from_a_running_loop_and_many_at_once(saved: Path) -> None:
    desk = vitrify.load(saved)

    async def main() -> list[Any]:
        return list(await asyncio.gather(*(desk.acall(message=f"refund {n}") for n in range(20))))

    assert [desk(message=f"refund {n}") for n in range(20)] == asyncio.run(main())


def test_threads_share_a_program(saved: Path, tickets: Any) -> None:
    desk = vitrify.load(saved)
    alone = [desk(message=row["message"]) for row in tickets]
    with ThreadPoolExecutor(32) as pool:
        assert alone * 4 == list(pool.map(lambda row: desk(message=row["message"]), tickets * 4))


def test_batch_keeps_the_order_and_puts_errors_in_their_place(saved: Path) -> None:
    desk = vitrify.load(saved)
    example = dspy.Example(message="Where is my parcel?", team="delivery").with_inputs("message")
    rows: list[Any] = [{"message": "refund"}, {"mesage": "x"}, example, 3, {"message": "parcel"}]
    found = desk.batch(rows, concurrency=2)
    assert desk(message="refund") == found[0]
    assert isinstance(found[1], RequestError) and "did you mean `message`" in str(found[1])
    assert desk(**example.inputs()) == found[2]
    assert isinstance(found[3], RequestError) and "a row is a mapping" in str(found[3])
    assert desk(message="parcel") == found[4]
    assert [] == desk.batch([])
    with pytest.raises(RequestError, match="concurrency is at least 1"):
        desk.batch(rows, concurrency=0)


def test_a_program_is_a_context_manager(saved: Path) -> None:
    with vitrify.load(saved) as desk:
        assert desk(message="refund").team


# types= --------------------------------------------------------------------------------------------------------------


def test_without_types_values_have_classes_made_from_the_file(typed: Artifact) -> None:
    out = running(typed)[0](q="x")
    assert ("RED", "red", "Item") == (out.color.name, out.color.value, type(out.item).__name__)


def test_types_bind_the_users_own_classes_some_or_all(typed: Artifact) -> None:
    out = running(typed, types={"color": Color, "first.item": Item})[0](q="x")
    assert Color.RED is out.color
    assert Item(name="n", tags=["t"], price=2) == out.item
    assert Color.RED is running(typed, types={"color": Color})[0](q="x").color
    assert "a" == running(typed, types={"team": Literal["a", "b"]})[0](q="x").team


class Longer(pydantic.BaseModel):
    name: str
    tags: list[str]
    price: float
    more: int


@pytest.mark.parametrize("own", [Longer, str, Literal["a"], lambda: None, object, list[Item], 3])
def test_a_class_that_is_another_is_refused_with_both(typed: Artifact, own: Any) -> None:
    with pytest.raises(ArtifactError, match=r"types\['item'\] isn't the type of the compile"):
        running(typed, types={"item": own})


def test_types_for_unknown_fields_or_a_program_of_ones_own(typed: Artifact, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="types: 'colour' is no output field of the program; did you mean `color`?"):
        running(typed, types={"colour": Color})
    with pytest.raises(RequestError, match="types: 'q' is no output field"):
        running(typed, types={"q": str})
    with pytest.raises(RequestError, match="types= is for a sealed program"):
        running(typed, types={"color": Color}, program=load_source(TYPED, tmp_path).P())


# DSPy's evaluation and metrics ---------------------------------------------------------------------------------------


def test_dspy_evaluates_a_sealed_program_as_it_does_the_class(saved: Path, tickets: Any) -> None:
    from vitrify.compiler.importing import load_object

    from tests.conftest import HELPDESK

    program: Any = load_object(f"{HELPDESK}:Helpdesk")
    metric: Any = load_object(f"{HELPDESK}:routed")
    devset = [dspy.Example(**row).with_inputs("message") for row in tickets[:30]]
    evaluate = dspy.Evaluate(devset=devset, metric=metric, num_threads=4)
    sealed, bound = evaluate(vitrify.load(saved)), evaluate(vitrify.load(saved, program=program()))
    assert sealed.score == bound.score > 0
    assert [dict(p) for _, p, _ in bound.results] == [dict(p) for _, p, _ in sealed.results]


def test_dspys_metrics_take_its_predictions() -> None:
    example = dspy.Example(answer="Paris")
    assert answer_exact_match(example, Prediction({"answer": "paris."}))
    assert not answer_exact_match(example, Prediction({"answer": "London"}))


# The file ------------------------------------------------------------------------------------------------------------


def reseal(artifact: Artifact, edit: Any) -> Artifact:
    data = json.loads(artifact.to_bytes())
    edit(data)
    from vitrify.programs.artifact import parse_artifact
    from vitrify.signatures.canonical import digest

    content = {key: value for key, value in data.items() if key != "sha256"}
    return parse_artifact(json.dumps({**content, "sha256": digest(content)}).encode(), "x")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d["canaries"][0]["inputs"].update(message="other"), "renders other messages .*pydantic"),
        (lambda d: d["canaries"][0].update(path="nobody"), "a canary names 'nobody', which is no predictor"),
        (lambda d: d["predictors"][0].update(plan=None, second_plan=None), "every predictor of a flow has a plan"),
        (lambda d: d["predictors"][0].update(plan=None), "a second plan only beside a plan"),
        (lambda d: d["predictors"][0].update(signature=None), "a plan only beside a signature"),
        (lambda d: d["predictors"][0]["plan"]["holes"].clear(), "the holes are the signature's inputs"),
        (lambda d: d["predictors"][0]["plan"].update(format="json"), "this plan's format is chat"),
        (lambda d: d["predictors"].append(d["predictors"][0]), "every name is there once, but 'triage' is there 2"),
        (lambda d: d["predictors"][0]["aliases"].append("prioritise"), "every name is there once"),
        (lambda d: d["inputs"].append(d["inputs"][0]), "every name is there once"),
        (lambda d: d["canaries"].extend(17 * d["canaries"][:1]), "at most 16 canaries of one predictor"),
        (lambda d: d["canaries"][0].update(sha256="0" * 64), "has another hash than the one recorded"),
        (lambda d: d["inputs"].append({"name": "more", "required": True}), "other inputs than the artifact names"),
        (lambda d: d["program"]["flow"].update(steps=[]), "a name is bound before it is used"),
        (lambda d: d["program"]["flow"].update(returns={"name": "message"}), "a flow returns a prediction"),
        (lambda d: d["program"]["flow"].update(returns={"eval": "1"}), "nobody knows the expression 'eval'"),
        (lambda d: d["predictors"][0]["signature"]["fields"][1].update(type="code"), "known type"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(artifact: Artifact, edit: Any, message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        running(reseal(artifact, edit))
    assert not re.search(r"\bNone\b", str(caught.value))


def test_a_text_that_doubles_itself_ends(typed: Artifact) -> None:
    def doubled(times: int, kind: str) -> Artifact:
        steps = [{"let": "x0", "value": {"name": "q"}}]
        steps += [{"let": f"x{n}", "value": {kind: [{"name": f"x{n - 1}"}] * 2}} for n in range(1, times)]
        return reseal(typed, lambda d: d["program"]["flow"].update(steps=steps, returns={"prediction": []}))

    for kind in ("text", "list", "tuple"):
        with pytest.raises(ArtifactError, match="a flow builds at most 100000 parts"):
            running(doubled(40, kind))
    program, _ = running(doubled(12, "text"))
    with pytest.raises(RequestError, match="a text has at most"):
        program(q="x" * 10_000)

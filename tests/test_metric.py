"""Metrics: DSPy's scores where DSPy has them, and every way a user's metric can answer."""

import enum
import functools
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dspy
import numpy as np
import pydantic
import pytest
from dspy.evaluate import metrics as theirs
from hypothesis import example as case
from hypothesis import given
from hypothesis import strategies as st
from vitrify.compiler.data import Example
from vitrify.compiler.metric import (
    MetricBug,
    MetricSpec,
    Score,
    call_metric,
    contains,
    exact,
    f1,
    numeric,
    required_labels,
    resolve_metric,
)
from vitrify.compiler.stock import last_number, normalize, token_f1
from vitrify.signatures.errors import MetricError, WorkError

TEXTS = st.text(alphabet=st.sampled_from("aAnthe THE 13.,-!?()$%'\"éÉ\u0301ßİ\n\t_xyz–—"), max_size=25) | st.text(
    max_size=15
)


def score(metric: Any, label: Any, found: Any) -> float:
    field = metric.field
    return float(metric(dspy.Example({field: label}), dspy.Prediction(**{field: found})))


# --- text as DSPy does it -------------------------------------------------------------------------------------------


@given(TEXTS)
@case("The  Éiffel, Tower's a “quote” an_the")
def test_normalisation_is_dspys(text: str) -> None:
    assert theirs.normalize_text(text) == normalize(text)


@given(TEXTS, TEXTS)
@case("the cat sat", "cat the sat sat")
def test_f1_is_dspys(label: str, found: str) -> None:
    assert theirs.f1_score(found, label) == pytest.approx(token_f1(found, label))


@given(st.lists(TEXTS, min_size=1, max_size=3), TEXTS)
@case(["Paris"], "paris.")
@case(["-3"], "3")
def test_exact_is_dspys_but_where_dspy_drops_the_answer(labels: list[str], found: str) -> None:
    ours, dspys = bool(score(exact("answer"), labels, found)), bool(theirs.EM(found, labels))
    if ours != dspys:
        # Texts of articles and punctuation only; and numbers that differ in sign or point only.
        sides = [label for label in labels if normalize(label) == normalize(found)]
        assert (
            normalize(found) == ""
            or any(normalize(label) == "" for label in labels)
            or any(last_number(label) != last_number(found) for label in sides)
        )


@pytest.mark.parametrize("label", ["Paris", ["Paris", "the city of Paris"], ["London"]])
@pytest.mark.parametrize("found", ["paris!", "The City of Paris", "Lyon", ""])
def test_exact_agrees_with_answer_exact_match(label: Any, found: str) -> None:
    row, prediction = dspy.Example(answer=label), dspy.Prediction(answer=found)
    assert float(theirs.answer_exact_match(row, prediction)) == score(exact("answer"), label, found)


class Team(enum.Enum):
    CARDS = "cards"
    THREE = 3


class Point(pydantic.BaseModel):
    x: int
    name: str = "n"


@pytest.mark.parametrize(
    ("label", "found", "same"),
    [
        ("(A)", "(A)", True), ("(A)", "A", True), ("(A)", "(B)", False), ("(A)", "", False), ("the", "a", False),
        ("] }", "] }", True), ("] }", "} ]", False), ("", "", True), ("-3", "3", False), ("1.5", "15", False),
        ("1,000", "1000", True), ("$5", "5", True), ("-3", " -3. ", True),
        (Team.CARDS, "Cards", True), ("cards", Team.CARDS, True), (Team.CARDS, Team.CARDS, True),
        (Team.THREE, "3", True),
        ("3", 3, True), (3, "3.0", True), (3, 3.0, True), (3, "4", False), ("three", 3, False), (np.int64(3), 3, True),
        (True, "Yes.", True), ("true", True, True), (True, "no", False), (False, "False", True), (True, 1, True),
        (True, "maybe", False), (False, "", False), (None, None, True), (None, "None", False), ("x", None, False),
        ([1, 2], [1, 2], True), ([1, 2], ["1", "2"], True), ([1, 2], [2, 1], False), ([1, 2], 2, True),
        (["a b", "c"], "A, B", True), ([], "x", False), ([], [], True), ((1, 2), [1, 2], True), ({1, 2}, {2, 1}, True),
        ([["a"], ["b"]], ["b"], True), ({"k": "The A1"}, {"k": "a1"}, True), ({"k": 1}, {"j": 1}, False),
        ({"x": 1, "name": "N"}, Point(x=1), True), (10**400, 10**400, True), (10**400, "x", False),
    ],
)  # fmt: skip
def test_exact_on_values(label: Any, found: Any, same: bool) -> None:
    assert float(same) == score(exact("answer"), label, found)


@pytest.mark.parametrize(
    ("label", "found", "expected"),
    [
        ("the cat sat", "cat sat down", 0.8), (["dog", "cat"], "a cat", 1.0), ("x", None, 0.0), ("", "", 0.0),
        (["a1", "b1"], ["b1", "a1"], 1.0), (Team.CARDS, "cards", 1.0), (42, "42", 1.0), ([], "x", 0.0),
    ],
)  # fmt: skip
def test_f1_on_values(label: Any, found: Any, expected: float) -> None:
    assert expected == pytest.approx(score(f1("answer"), label, found))


@pytest.mark.parametrize(
    ("label", "found", "expected"),
    [
        ("Paris", "It is in Paris, France.", True), ("car", "a card", False), ("new york", "New, York!", True),
        (["x", "york"], "York it is", True), ("3", "the answer is 3.", True), ("3", "the answer is -3", False),
        ("1,000", "about 1000 people", True), ("(A)", "The answer is (A).", True), ("(B)", "The answer is (A).", False),
        ("x", None, False), ("", "anything", False), ("b", ["a", "b"], True), ([], "x", False),
    ],
)  # fmt: skip
def test_contains(label: Any, found: Any, expected: bool) -> None:
    assert float(expected) == score(contains("answer"), label, found)


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", 42), ("#### 1,234", 1234), ("The answer is $18.", 18), ("She has 3 + 4 = 7 apples.", 7), ("-5", -5),
        ("5-3", 3), ("20 - 4", 4), ("answer: - 4", -4), ("= -2", -2), ("(-2)", -2), ("x is -3.5%", -3.5), ("−7", -7),
        ("$-5", -5), ("-$5", -5), ("$ 70,000", 70000), ("**70000**", 70000), ("USD5", 5), ("Rs.5", 5), (".5", 0.5),
        (r"\boxed{42} is it, by 3 steps", 42), (r"\boxed{\frac{1}{2}}", 0.5), (r"$\boxed{-\dfrac{3}{4}}$", -0.75),
        (r"\frac12", 0.5), ("3/4", 0.75), ("1 3/4 cups", 1.75), ("1/0", 1), ("3/5/1973", 1973), (r"\boxed{7", 7),
        (r"$1{,}000$", 1000), (r"\$5", 5), ("12 m^2", 12), ("2^{10}", 2), ("10²", 10), ("½", 0.5), ("1½", 1.5),
        ("CO2 weighs 12", 12), ("30-40%", 40), ("3.14.", 3.14), ("1,2,3", 3), ("1,234,567.89", 1234567.89),
        ("1e-3", 0.001), ("no number", None), ("", None), ("1st and 2nd", 2), ("12,5", 5), ("٣", 3), ("9" * 400, None),
        (r"\boxed{1} then \boxed{2}", 2), ("5\n-6", -6), ("20-1/2", 0.5),
    ],
)  # fmt: skip
def test_the_last_number(text: str, number: float | None) -> None:
    assert number == (None if number is None else pytest.approx(last_number(text))) or last_number(text) == number


@given(st.text(alphabet="0123456789.,-/$%^{}\\ eE()boxdfrac½²", max_size=60))
def test_any_text_has_a_finite_last_number_or_none(text: str) -> None:
    found = last_number(text)
    assert found is None or math.isfinite(found)


@given(
    st.integers(-(10**12), 10**12),
    st.sampled_from(["The answer is {}.", "#### {}", r"\boxed{{{}}}", "**{:,}**", "${:,}$"]),
)
def test_an_integer_is_found_again(number: int, template: str) -> None:
    assert float(number) == last_number(template.format(number))


@pytest.mark.parametrize(
    ("label", "found", "expected"),
    [
        ("18", "so she makes $18.00 a day", True), ("18", "17", False), (18, "18", True), ("1/3", "0.333333333", True),
        (["4", "5"], "5", True), ("4", None, False), ("4", "none", False), ("1e9", "1000000001", True), (1, True, True),
        ("72.0", 72, True),
    ],
)  # fmt: skip
def test_numeric(label: Any, found: Any, expected: bool) -> None:
    assert float(expected) == score(numeric("answer"), label, found)


def test_tolerance() -> None:
    assert 1.0 == score(numeric("answer", tolerance=0.1), "1", "1.05")
    assert 0.0 == score(numeric("answer", tolerance=0), "1", "1.0000001")
    for wrong in (-1, math.nan, math.inf, "x"):
        with pytest.raises(MetricError, match="tolerance"):
            numeric("answer", tolerance=wrong)  # type: ignore[arg-type]


def test_a_label_without_a_number_is_the_datas_fault() -> None:
    with pytest.raises(MetricError, match="the label holds a number"):
        score(numeric("answer"), "many", "3")


# --- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prediction", [dspy.Prediction(team="cards"), {"team": "cards"}, SimpleNamespace(team="cards")], ids=str
)
def test_predictions_by_item_or_attribute(prediction: Any) -> None:
    metric = exact("team")
    assert metric(dspy.Example(team="Cards"), prediction) is True
    assert metric({"team": "Cards"}, prediction, None) is True
    assert metric(Example({"m": "x"}, {"team": "Cards"}), prediction) is True


def test_fields_named_like_methods() -> None:
    assert exact("items")(dspy.Example({"items": "a1"}), dspy.Prediction(items="a1"))
    with pytest.raises(MetricError, match="the prediction has a field items"):
        exact("items")(dspy.Example({"items": "a1"}), dspy.Prediction(item="a1"))


def test_a_missing_field_names_the_nearest() -> None:
    with pytest.raises(MetricError, match="the prediction has a field team`; did you mean `teams`"):
        exact("team")(dspy.Example(team="a"), dspy.Prediction(teams="a"))
    with pytest.raises(MetricError, match="the label has a field team"):
        exact("team")(dspy.Example(tem="a"), dspy.Prediction(team="a"))
    with pytest.raises(MetricError, match="there is no prediction"):
        exact("team")(dspy.Example(team="a"), None)


# --- resolving ------------------------------------------------------------------------------------------------------


def plain_metric(example: Any, pred: Any, trace: Any = None) -> bool:
    return bool(example.team == pred.team)


@pytest.mark.parametrize("name", ["exact", "f1", "numeric", "contains"])
def test_stock_metrics_by_name(name: str) -> None:
    spec = resolve_metric(f"{name}:team")
    assert f"{name}:team" == spec.name
    assert ("team",) == required_labels(spec) == required_labels(f"{name}:team")
    assert (
        spec.digest
        == resolve_metric({"exact": exact, "f1": f1, "numeric": numeric, "contains": contains}[name]("team")).digest
    )
    assert spec.digest != resolve_metric(f"{name}:other").digest
    assert resolve_metric(spec) is spec


def test_callables_have_a_name_and_a_digest_of_their_source() -> None:
    spec = resolve_metric(plain_metric)
    assert ("plain_metric", 3, 2) == (spec.name, spec.arity, spec.needs)
    assert spec.digest is not None and () == required_labels(spec)
    assert "plain_metric" == resolve_metric(functools.partial(plain_metric, trace=None)).name
    assert "SemanticF1" == resolve_metric(dspy.evaluate.SemanticF1()).name
    assert resolve_metric(eval("lambda e, p: 1")).digest is None
    assert (
        numeric("a", 0.1) != numeric("a")
        and resolve_metric(numeric("a", 0.1)).digest != resolve_metric(numeric("a")).digest
    )


def test_files_and_modules(tmp_path: Path) -> None:
    (tmp_path / "my_metric.py").write_text("def good(example, pred, trace=None):\n    return 0.5\nVALUE = 3\n")
    spec = resolve_metric("my_metric.py:good", base_dir=tmp_path)
    assert "my_metric.py:good" == spec.name == resolve_metric(f"{tmp_path}/my_metric.py:good").name
    assert 0.5 == call_metric(spec, Example({"q": 1}, {}), None, None).value
    assert "dspy.evaluate:answer_exact_match" == resolve_metric("dspy.evaluate:answer_exact_match").name
    for text, part in (("my_metric.py:god", "did you mean `good`"),
    ("my_metrik.py:good", "did you mean `my_metric.py`"),
                       ("my_metric.py:VALUE", "found int 3")):  # fmt: skip
        with pytest.raises(MetricError, match=part):
            resolve_metric(text, base_dir=tmp_path)


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("exat:team", "did you mean `exact`"), ("exact", "no field"), ("exact:", "no field"),
        ("exact:a b", "is a name"),
        ("exct", "did you mean `exact`"), ("", "no colon"), ("nomod:thing", "no module `nomod`"),
        ("no.mod:thing", "no module `no`"), (3, "found int"), (None, "found NoneType"), (Score, "it is a class"),
        (lambda: 1, "its signature"), (lambda a: 1, "its signature"), (lambda a, b, c, d, e, f: 1, "its signature"),
    ],
)  # fmt: skip
def test_what_is_no_metric(spec: Any, part: str) -> None:
    with pytest.raises(MetricError, match=part):
        resolve_metric(spec)


# --- calling --------------------------------------------------------------------------------------------------------

ROW = Example({"q": "?"}, {"team": "cards"}, 7)
PREDICTION = dspy.Prediction(team="cards")
UNSET = object()


def two(example: Any, pred: Any) -> Any:
    return [UNSET]


def three(example: Any, pred: Any, trace: Any = "default") -> Any:
    return [trace]


def needs_three(example: Any, pred: Any, trace: Any) -> Any:
    return [trace]


def other_third(example: Any, pred: Any, frac: float = 1.0) -> Any:
    return [frac]


def by_name(example: Any, pred: Any, *, trace: Any = "default") -> Any:
    return [trace]


def fourth(example: Any, pred: Any, frac: float = 1.0, trace: Any = "default") -> Any:
    return [trace]


def star(*args: Any) -> Any:
    return [args[2] if len(args) > 2 else "default"]


def gepa(gold: Any, pred: Any, trace: Any, pred_name: Any, pred_trace: Any) -> Any:
    return [trace, pred_name, pred_trace]


def gepa_defaults(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
    return [trace, pred_name, pred_trace]


class Callable_:
    def __call__(self, example: Any, pred: Any, trace: Any = None) -> Any:
        return [trace]

    def method(self, example: Any, pred: Any, trace: Any = None) -> Any:
        return [trace]


@pytest.mark.parametrize(
    ("metric", "evaluating", "bootstrapping"),
    [
        (two, [UNSET], [UNSET]), (three, ["default"], [["t"]]), (needs_three, [None], [["t"]]),
        (other_third, [1.0], [1.0]),
        (by_name, [None], [["t"]]), (fourth, [None], [["t"]]), (star, ["default"], [["t"]]),
        (gepa, [None, None, None], [["t"], None, None]), (gepa_defaults, [None, None, None], [["t"], None, None]),
        (Callable_(), [None], [["t"]]), (Callable_().method, [None], [["t"]]),
        (functools.partial(three), ["default"], [["t"]]), (functools.partial(other_third, frac=2.0), [2.0], [2.0]),
    ],
)  # fmt: skip
def test_a_metric_is_called_by_its_signature(metric: Any, evaluating: Any, bootstrapping: Any) -> None:
    got: list[Any] = []

    def keep(found: Any) -> int:
        got.append(found)
        return 1

    spec = resolve_metric(metric)
    kept = MetricSpec("kept", lambda *args, **options: keep(metric(*args, **options)), None, spec.arity, spec.needs,
                      spec.trace_by_name)  # fmt: skip
    call_metric(kept, ROW, PREDICTION, None)
    call_metric(kept, ROW, PREDICTION, ["t"])
    assert [evaluating, bootstrapping] == got


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (True, Score(1.0)), (False, Score(0.0)), (2, Score(2.0)), (-0.5, Score(-0.5)), (np.float32(0.5), Score(0.5)),
        (np.bool_(True), Score(1.0)), (np.int64(3), Score(3.0)), (np.array(0.25), Score(0.25)),
        (Score(0.5, "why"), Score(0.5, "why")),
        (dspy.Prediction(score=0.5, feedback="why"), Score(0.5, "why")), (dspy.Prediction(score=1), Score(1.0)),
        ({"score": True, "feedback": None}, Score(1.0)), ({"score": 0.1, "feedback": ["a"]}, Score(0.1, "['a']")),
        (Fraction(1, 4), Score(0.25)), (Score(np.float64(1)), Score(1.0)),
    ],
)  # fmt: skip
def test_what_counts_as_a_score(returned: Any, expected: Score) -> None:
    found = call_metric(lambda e, p: returned, ROW, PREDICTION, None)
    assert expected == found
    assert type(found.value) is float


async def coroutine(example: Any, pred: Any) -> float:
    return 1.0


@pytest.mark.parametrize(
    "returned",
    [None, "1", "", math.nan, math.inf, -math.inf, [], [1.0], {}, {"score": "high"}, {"value": 1}, 1j, Score(math.nan),
     np.array([1.0, 2.0]), dspy.Prediction(answer="x"), dspy.Prediction(score=None), object(), Score(None)],  # type: ignore[arg-type]
    ids=lambda value: "object" if type(value) is object else repr(value),  # repr holds an address there
)  # fmt: skip
def test_what_is_no_score(returned: Any) -> None:
    def judged(example: Any, pred: Any) -> Any:
        return returned

    with pytest.raises(MetricError, match=r"`judged` breaks .*row 7"):
        call_metric(judged, ROW, PREDICTION, None)


@pytest.mark.filterwarnings("error")
def test_an_async_metric_is_no_score() -> None:
    with pytest.raises(MetricError, match="coroutine"):
        call_metric(coroutine, ROW, PREDICTION, None)


def test_a_metric_that_raises_names_the_row() -> None:
    def broken(example: Any, pred: Any) -> Any:
        return pred.nothing

    with pytest.raises(MetricBug, match=r"`broken` raised AttributeError on row 7: ") as caught:
        call_metric(broken, ROW, PREDICTION, None)
    assert isinstance(caught.value, WorkError)
    assert (ROW.id, 7) == (caught.value.example_id, caught.value.row)
    assert isinstance(caught.value.__cause__, AttributeError)


def test_our_own_errors_and_interrupts_pass() -> None:
    class Refusal(WorkError):
        pass

    for error in (Refusal("the server refused"), KeyboardInterrupt(), MetricError("x")):

        def raising(example: Any, pred: Any, error: BaseException = error) -> Any:
            raise error

        with pytest.raises(type(error)):
            call_metric(raising, ROW, PREDICTION, None)


def test_the_example_is_a_dspy_example_of_its_own() -> None:
    def spoil(example: Any, pred: Any) -> bool:
        example.team = "spoiled"
        return isinstance(example, dspy.Example) and example.inputs().toDict() == {"q": "?"}

    assert 1.0 == call_metric(spoil, ROW, PREDICTION, None).value
    assert "cards" == ROW.labels["team"]


def test_dspys_own_metric_and_evaluate_work_with_ours() -> None:
    row = Example({"q": "?"}, {"answer": "Paris"})
    found = call_metric(theirs.answer_exact_match, row, dspy.Prediction(answer="the paris"), None)
    assert 1.0 == found.value

    class Fixed(dspy.Module):
        def forward(self, q: str) -> Any:
            return dspy.Prediction(team="cards")

    result = dspy.Evaluate(devset=[ROW.to_dspy()], metric=exact("team"), display_progress=False)(Fixed())
    assert 100.0 == result.score


def test_a_model_is_in_force_while_the_metric_runs() -> None:
    lm = dspy.utils.DummyLM([{"answer": "x"}])
    seen: Callable[[Any, Any], float] = lambda e, p: float(dspy.settings.lm is lm)  # noqa: E731
    assert 1.0 == call_metric(seen, ROW, PREDICTION, None, lm=lm).value
    assert 0.0 == call_metric(seen, ROW, PREDICTION, None).value


def test_frozen_predictions_work_too() -> None:
    from vitrify.programs.prediction import Prediction

    assert 1.0 == call_metric(exact("team"), ROW, Prediction({"team": "Cards"}), None).value
    mapping: Mapping[str, str] = {"team": "x"}
    assert 0.0 == call_metric(exact("team"), ROW, mapping, None).value

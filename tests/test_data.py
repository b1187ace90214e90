"""Data: every way a file can be wrong, and what a row's identity is."""

import copy
import enum
import json
import pickle
from pathlib import Path
from typing import Any, Literal

import datasets
import dspy
import numpy as np
import pyarrow
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from vitrify.compiler.data import Dataset, Example, describe_source, load_rows, to_dataset
from vitrify.compiler.rows import plain
from vitrify.signatures.errors import DataError

ROWS = [{"question": "2+2?", "answer": "4"}, {"question": "3+3?", "answer": "6"}]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def problem(source: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_rows(source, **options)
    message = str(caught.value)
    assert "\n" not in message and "`" in message
    return message


# --- files ----------------------------------------------------------------------------------------------------------


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(row) for row in ROWS)
    files = [
        write(tmp_path / "a.csv", "question,answer\n2+2?,4\n3+3?,6\n"),
        write(tmp_path / "a.tsv", "question\tanswer\r\n2+2?\t4\r\n3+3?\t6"),
        write(tmp_path / "a.jsonl", lines),
        write(tmp_path / "a.ndjson", f"\ufeff{lines}\n\n"),
        write(tmp_path / "a.JSON", json.dumps(ROWS)),
    ]
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for file in [*files, tmp_path / "a.parquet"]:
        assert ROWS == load_rows(file)
        assert ROWS == load_rows(str(file))
        assert file.name == describe_source(str(file))


def test_csv_keeps_what_is_quoted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'q,a\n"a ""b"", c\nd",1\n\n , 2\n')
    assert [{"q": 'a "b", c\nd', "a": "1"}, {"q": " ", "a": " 2"}] == load_rows(path)


def test_json_lines_may_hold_line_separators_inside_a_string(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"q": "a\u2028b\x85c"}\r\n{"q": "d"}')
    assert [{"q": "a\u2028b\x85c"}, {"q": "d"}] == load_rows(path)


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("a.jsonl", '{"q": 1}\n{"q": 2', ["line 2", "column 8"]),
        ("a.jsonl", '{"q": 1}\n\n[1]', ["line 3", "list"]),
        ("a.jsonl", '{"q": NaN}', ["line 1", "NaN", "null"]),
        ("a.jsonl", '{"q": 1, "q": 2}', ["line 1", "'q' occurs twice"]),
        ("a.jsonl", "[" * 100_000, ["line 1"]),
        ("a.jsonl", "  \n \n", ["at least one row"]),
        ("a.json", '{"q": 1}', ["array", "dict", ".jsonl"]),
        ("a.json", '{"q": 1}\n{"q": 2}', ["line 2", ".jsonl"]),
        ("a.json", "[1]", ["row 1", "int"]),
        ("a.json", "[]", ["at least one row"]),
        ("a.csv", "q,a\n1,2\n1,2,3\n", ["line 3", "found 3", "2"]),
        ("a.csv", "q,a\n1\n", ["line 2", "found 1"]),
        ("a.csv", "q,a\n", ["at least one row"]),
        ("a.csv", "q,q\n1,2\n", ["`q` occurs twice"]),
        ("a.csv", "q,,a\n1,2,3\n", ["column 2"]),
        ("a.csv", "q;a\n1;2\n", ["';'", "commas"]),
        ("a.csv", "q\ta\n1\t2\n", [".tsv"]),
        ("a.csv", 'q,a\n"1,2\n', ["line", "CSV"]),
        ("a.csv", "q,a\n" + "x" * 140_000 + ",1\n", ["line 2", "JSON Lines"]),
        ("a.txt", "hello", [".jsonl", "`.txt`"]),
        ("data", "hello", [".jsonl"]),
        ("a.parquet", "not parquet", ["Parquet"]),
        ("a.csv", "", ["empty"]),
    ],
)
def test_a_broken_file_is_named_with_the_line(tmp_path: Path, name: str, text: str, parts: list[str]) -> None:
    message = problem(write(tmp_path / name, text))
    assert all(part in message for part in parts), message
    assert str(tmp_path) not in message


def test_a_file_that_is_not_utf8_is_named_with_line_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("q,a\nja,1\nn\u00e4,2\n".encode("latin-1"))
    message = problem(path)
    assert "line 3" in message and "0xe4" in message and "UTF-8" in message


def test_a_missing_file_names_the_nearest_one(tmp_path: Path) -> None:
    write(tmp_path / "tickets.jsonl", "{}")
    write(tmp_path / "ticket.py", "")
    assert "did you mean `tickets.jsonl`?" in problem(tmp_path / "ticket.jsonl")
    assert "isn't there either" in problem(tmp_path / "nowhere" / "ticket.jsonl")
    assert "no such file" in problem("no_such_file_anywhere")


# --- folders, datasets, lists ---------------------------------------------------------------------------------------


def test_a_saved_hugging_face_folder(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": table, "dev": table.select([0])}).save_to_disk(str(tmp_path / "two"))
    assert ROWS == load_rows(tmp_path / "one")
    assert ROWS[:1] == load_rows(f"{tmp_path / 'two'}:dev")
    assert "train, dev" in problem(tmp_path / "two")
    assert "did you mean `dev`?" in problem(f"{tmp_path / 'two'}:de")


def test_a_folder_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "tickets"
    folder.mkdir()
    assert "holds data" in problem(folder)
    write(folder / "notes.txt", "no data")
    assert "holds data" in problem(folder)
    write(folder / "train.jsonl", "\n".join(json.dumps(row) for row in ROWS))
    assert ROWS == load_rows(folder)


def test_a_name_goes_to_the_hub_with_config_and_split() -> None:
    asked: list[tuple[str, Any, Any]] = []

    def hub(path: str, name: str | None = None, split: str | None = None) -> Any:
        asked.append((path, name, split))
        return datasets.Dataset.from_list(ROWS)

    for text in ("org/name", "org/name:train", "org/name/config:train[:10%]", "squad:validation"):
        assert ROWS == load_rows(text, hub=hub)
        assert text == describe_source(text)
    assert [
        ("org/name", None, None),
        ("org/name", None, "train"),
        ("org/name", "config", "train[:10%]"),
        ("squad", None, "validation"),
    ] == asked


def test_what_the_hub_lacks_is_one_sentence() -> None:
    def hub(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("Dataset 'org/name' doesn't exist.\nmany\nlines")

    assert "doesn't exist" in problem("org/name", hub=hub)
    two = datasets.DatasetDict({name: datasets.Dataset.from_list(ROWS) for name in ("train", "test")})
    assert "name one" in problem("org/name", hub=lambda *_, **__: two)


def test_a_path_with_a_suffix_is_never_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()

    def hub(*_: Any, **__: Any) -> Any:
        raise AssertionError("asked the hub")

    problem("nowhere/tickets.jsonl", hub=hub)
    problem("data/tickets", hub=hub)
    problem("./tickets", hub=hub)


def test_datasets_and_streams() -> None:
    table = datasets.Dataset.from_dict({"q": ["a"], "n": [np.float32(1.5)], "l": [[1, 2]]})
    assert [{"q": "a", "n": 1.5, "l": [1, 2]}] == load_rows(table)
    assert "streams" in problem(table.to_iterable_dataset())
    assert "at least one row" in problem(table.select([]))


def test_numpy_and_arrow_values_become_plain() -> None:
    row = {"i": np.int64(3), "b": np.bool_(True), "f": np.float64(0.5), "a": np.array([[1, 2]]),
           "s": pyarrow.scalar("x"), "d": {"k": (np.int8(1), [np.str_("t")])}}  # fmt: skip
    found = load_rows([row])[0]
    assert {"i": 3, "b": True, "f": 0.5, "a": [[1, 2]], "s": "x", "d": {"k": (1, ["t"])}} == found
    assert [int, bool, float, list] == [type(found[name]) for name in "ibfa"]
    assert type(plain(np.str_("x"))) is str


def test_lists_of_other_things_are_refused() -> None:
    assert "Row 2" in problem([{"q": 1}, "text"])
    assert "Row 1" in problem([{1: "x"}])
    assert "at least one row" in problem([])
    assert "int" in problem(7)
    assert "dict" in problem({"q": ["a"]})


def test_dspy_examples_keep_their_declared_inputs() -> None:
    rows = load_rows([
        dspy.Example(question="a", context="c", answer="b").with_inputs("question"),
        dspy.Example(question="a2", context="c", answer="b2"),
    ])  # fmt: skip
    found = to_dataset(rows, input_names=["question"], optional_inputs=["context"])
    assert {"question": "a"} == dict(found.examples[0].inputs)
    assert {"context": "c", "answer": "b"} == dict(found.examples[0].labels)
    assert {"question": "a2", "context": "c"} == dict(found.examples[1].inputs)
    with pytest.raises(DataError, match=r"Row 1 .*`context`.*with_inputs"):
        to_dataset(rows, input_names=["question", "context"])
    extra = load_rows([dspy.Example(question="a", hint="h", answer="b").with_inputs("question", "hint")])
    assert ("question", "hint") == to_dataset(extra, input_names=["question"]).input_names


# --- typing and checking --------------------------------------------------------------------------------------------


def test_columns_are_divided_into_inputs_and_labels() -> None:
    found = to_dataset(ROWS, input_names=["question"], source="a.csv")
    assert ("question",) == found.input_names
    assert ("answer",) == found.label_names
    assert ["4", "6"] == [example.labels["answer"] for example in found]
    assert [1, 2] == [example.row for example in found]
    assert 2 == len(found)


def test_label_names_keep_only_those() -> None:
    rows = [{**row, "junk": {1, 2}} for row in ROWS]
    with pytest.raises(DataError, match=r"Row 1, column `junk`.*no order"):
        to_dataset(rows, input_names=["question"])
    assert ("answer",) == to_dataset(rows, input_names=["question"], label_names=["answer"]).label_names
    # A label that is an input too is where it is.
    assert () == to_dataset(rows, input_names=["question"], label_names=["question"]).label_names


def test_a_missing_column_names_the_nearest() -> None:
    with pytest.raises(DataError, match="no column `questions`; did you mean `question`"):
        to_dataset(ROWS, input_names=["questions"])
    with pytest.raises(DataError, match="no column `anwser`; did you mean `answer`"):
        to_dataset(ROWS, input_names=["question"], label_names=["anwser"])
    assert 2 == len(to_dataset(ROWS, input_names=["question"], optional_inputs=["hint"]))


def test_a_row_that_lacks_something_is_named() -> None:
    with pytest.raises(DataError, match=r"Row 2 .*`answer`"):
        to_dataset([{"q": 1, "answer": 1}, {"answer": 2}], input_names=["q"])
    with pytest.raises(DataError, match=r"Row 3 .*null"):
        to_dataset([{"q": 1}, {"q": 0}, {"q": None}], input_names=["q"])
    with pytest.raises(DataError, match=r"Row 2 .*answer"):
        to_dataset([{"q": 1, "answer": 1}, {"q": 2}], input_names=["q"], label_names=["answer"])
    with pytest.raises(DataError, match="at least one row"):
        to_dataset([], input_names=["q"])
    ragged = to_dataset([{"q": 1, "a": 1}, {"q": 2, "why": "x"}], input_names=["q"])
    assert {"why": "x"} == dict(ragged.examples[1].labels)
    partly = to_dataset([{"q": 1, "hint": None}], input_names=["q", "hint"])
    assert {"q": 1, "hint": None} == dict(partly.examples[0].inputs)


class Color(enum.Enum):
    RED = "red"


class Opaque:
    pass


class Point(pydantic.BaseModel):
    x: int
    y: int = 0


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (int, "3", 3),
        (float, "3", 3.0),
        (bool, "yes", True),
        (list[int], "[1, 2]", [1, 2]),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (int | None, "", None),
        (str | None, "", ""),
        (int | str, "3", "3"),
        (str, "3", "3"),
        (Any, "3", "3"),
        (Color, "red", "red"),
        (Literal["a", "b"], "a", "a"),
        (Literal[1, 2], "1", 1),
        (Point, '{"x": 1}', {"x": 1, "y": 0}),
        (object, "x", "x"),
        (Opaque, "x", "x"),
    ],
)
def test_strings_are_typed_by_annotation(annotation: Any, text: str, value: Any) -> None:
    found = to_dataset([{"q": text, "p": "p"}], input_names=["q", "p"], types={"q": annotation})
    assert value == found.examples[0].inputs["q"]
    assert type(value) is type(found.examples[0].inputs["q"])


def test_null_from_an_empty_cell_is_no_input() -> None:
    with pytest.raises(DataError, match="Row 1"):
        to_dataset([{"q": ""}], input_names=["q"], types={"q": int})


@pytest.mark.parametrize(("annotation", "text"), [(int, "three"), (bool, "maybe"), (list[int], "1,2"), (Color, "blue")])
def test_a_string_that_does_not_fit_names_row_and_column(annotation: Any, text: str) -> None:
    rows = [{"q": "1", "n": text}]
    with pytest.raises(DataError, match=f"Row 1, column `n`.*{text}"):
        to_dataset(rows, input_names=["q", "n"], types={"n": annotation})
    # As a label it stays: how it is compared is up to the metric.
    assert text == to_dataset(rows, input_names=["q"], types={"n": annotation}).examples[0].labels["n"]


def test_values_that_are_no_strings_are_left_alone() -> None:
    assert 3 == to_dataset([{"q": 3}], input_names=["q"], types={"q": bool}).examples[0].inputs["q"]


# --- identity -------------------------------------------------------------------------------------------------------


def test_identity_is_the_content() -> None:
    one, other = Example({"a": 1, "b": 2}, {"c": 3}, 1), Example({"b": 2, "a": 1}, {"c": 3}, 9)
    assert one == other and hash(one) == hash(other) and one.id == other.id
    assert 64 == len(one.id)
    assert one != Example({"a": 1}, {"b": 2, "c": 3})
    assert one != "text"


def test_an_example_is_frozen_and_travels() -> None:
    example = Example({"a": [1]}, {"c": 3}, 4)
    with pytest.raises(TypeError):
        example.inputs["a"] = 2  # type: ignore[index]
    with pytest.raises(AttributeError):
        example.row = 2  # type: ignore[misc]
    for twin in (pickle.loads(pickle.dumps(example)), copy.deepcopy(example)):
        assert example == twin and 4 == twin.row


def test_what_a_program_does_to_a_dspy_example_stays_there() -> None:
    example = Example({"items": ["a"]}, {"keys": "k"})
    given_ = example.to_dspy()
    assert {"items": ["a"]} == given_.inputs().toDict()
    assert "k" == given_["keys"]
    given_["items"].append("b")
    assert ["a"] == example.inputs["items"]


@pytest.mark.parametrize(
    "value", [{1, 2}, frozenset({"a"}), Opaque(), [Opaque()], {"k": {"s": {1}}}, float("nan"), 2**60, "\ud800", len]
)
def test_what_has_no_reproducible_text_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match="Row 2, column `q`"):
        to_dataset([{"q": "fine"}, {"q": value}], input_names=["q"])
    with pytest.raises(DataError, match="Row 1, column `label`"):
        to_dataset([{"q": "fine", "label": value}], input_names=["q"])


@pytest.mark.parametrize(
    "value", [None, True, 0, -1.5, "", "ü", [1, ["a"]], {"a": None}, Color.RED, Point(x=1), (1, 2)]
)
def test_plain_values_have_an_identity(value: Any) -> None:
    assert Example({"q": value}, {}) == Example({"q": copy.deepcopy(value)}, {}, 7)


def test_duplicates_are_dropped_and_conflicts_counted() -> None:
    rows = [{"q": "a", "l": 1}, {"l": 1, "q": "a"}, {"q": "a", "l": 2}, {"q": "b", "l": 1}, {"q": "a", "l": 1}]
    found = to_dataset(rows, input_names=["q"])
    assert [1, 3, 4] == [example.row for example in found]
    assert (2, 1) == (found.duplicates, found.conflicts)


@given(st.permutations(range(6)))
def test_the_digest_does_not_depend_on_the_order(order: list[int]) -> None:
    rows = [{"q": str(number), "a": number} for number in range(6)]
    known = to_dataset(rows, input_names=["q"]).digest
    assert known == to_dataset([rows[place] for place in order], input_names=["q"]).digest
    assert known != to_dataset(rows[1:], input_names=["q"]).digest


def test_describe_source_holds_no_absolute_path(tmp_path: Path) -> None:
    assert "x.jsonl" == describe_source(tmp_path / "x.jsonl")
    assert "list of 2 rows" == describe_source(ROWS)
    assert isinstance(to_dataset(ROWS, input_names=["question"]), Dataset)
